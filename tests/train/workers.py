"""Functions run on several processes at once, as a launcher would start them: gloo on this machine's CPU.

The processes are forked from one that has imported everything, so that a launch takes no seconds.
"""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.preloaded"])


class Failed(RuntimeError):
    """What a process raised."""


def start(world: int, target: Callable, *args, **environment: str) -> list:
    """Start `target(*args)` on `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    started = []
    for rank in range(world):
        mine = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment
        started.append(CONTEXT.Process(target=_work, args=(mine, target, args), daemon=True))
        started[-1].start()
    return started


def run(world: int, target: Callable, folder: Path, *args, timeout: float = 240.0, **environment: str) -> None:
    """`target(folder, *args)` on `world` processes; raises `Failed` with what the first of them said."""
    started = start(world, target, folder, *args, **environment)
    codes = end(started, timeout)
    if any(codes):
        said = [path.read_text() for path in sorted(folder.glob("failed-*"), key=os.path.getmtime)]
        raise Failed(f"exit codes {codes}; {said[0] if said else 'nothing was said'}")


def end(started: list, timeout: float) -> list[int | None]:
    """Exit codes; None of a process that had not ended by itself after so many seconds in all, and is killed."""
    for process in started:
        process.join(timeout)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _work(environment: dict[str, str], target: Callable, args: tuple) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        target(*args)
    except BaseException:
        with contextlib.suppress(OSError):
            (args[0] / f"failed-{environment['RANK']}").write_text(traceback.format_exc())
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
