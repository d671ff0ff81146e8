"""Runs in processes of one thread, several at a time, each run after the run that it starts from."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait

from kernels.errors import mendable
from latent import plugins
from train.config import Run
from train.process import PATIENCE, Stopped, configure_cpu_process, heeding_sigterm

Say = Callable[[dict], None]
POSIX = os.name == "posix"


class WorkerError(RuntimeError):
    """A bug in a worker process; its message is the traceback from there."""


@dataclass
class _Worker:
    """A process that does one run after another, and the name of its current run."""

    process: multiprocessing.process.BaseProcess
    line: Connection
    busy: str | None = None


def in_processes(
    runs: dict[str, Run], work: Callable[[Run, Say], dict], jobs: int, show: Callable[[str, dict], None]
) -> dict[str, str]:
    """Call `work(run, say)` for every run, in worker processes. Returns the errors of failed runs, by name.

    `show(name, event)` is called with every event that a run says; when a run has finished, with `{"finished": id}` and
    what `work` returned; when it has failed, with `{"error": ...}`, and a "traceback" where that is a bug. `show` may
    raise, which ends all runs. A run whose start failed does not begin. The workers end with this process, however it
    ends; on ^C and SIGTERM they save their runs first.
    """
    with heeding_sigterm():
        return _in_processes(runs, work, jobs, show)


def _in_processes(
    runs: dict[str, Run], work: Callable[[Run, Say], dict], jobs: int, show: Callable[[str, dict], None]
) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    waiting, finished = dict(runs), set()
    failed: dict[str, str] = {}
    workers: list[_Worker] = []
    by_id: dict[str | None, str] = {run.id: name for name, run in runs.items()}

    def fail(name: str, why: str, traceback: str | None = None) -> None:
        failed[name] = why
        show(name, {"error": why, "traceback": traceback})

    def free() -> _Worker | None:
        idle = next((w for w in workers if w.busy is None), None)
        if idle is None and len(workers) < jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if POSIX else None
            try:  # ^C goes to all processes of a terminal: a worker inherits that it is blocked, from its first import
                process.start()
                theirs.close()  # so that `ours` reads an EOF when the process ends
                workers.append(idle := _Worker(process, ours))
            finally:
                if kept is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        return idle

    try:
        while True:
            for name, run in list(waiting.items()):
                start = by_id.get(run.init)
                if start in failed:
                    del waiting[name]
                    fail(name, f"its start, {start}, failed")
                elif start is None or start in finished:
                    idle = free()
                    if idle is None:
                        break
                    idle.busy = name
                    idle.line.send((name, run))
                    del waiting[name]
            if not any(w.busy for w in workers):
                return failed
            for line in wait([w.line for w in workers]):
                worker = next(w for w in workers if w.line is line)
                try:
                    name, event = worker.line.recv()
                except (EOFError, ConnectionError):
                    workers.remove(worker)
                    worker.process.join()
                    if worker.busy:
                        fail(worker.busy, f"its process ended with code {worker.process.exitcode}; run again to go on")
                    continue
                if "finished" in event or "error" in event:
                    worker.busy = None
                if "error" in event:
                    fail(name, event["error"], event["traceback"])
                    continue
                if "finished" in event:
                    finished.add(name)
                show(name, event)
    finally:
        _end(workers)


def _end(workers: list[_Worker]) -> None:
    """End the workers: idle ones by closing their connection, busy ones by SIGTERM, upon which they save."""
    for worker in workers:
        if worker.busy:
            worker.process.terminate()
        worker.line.close()
    until = time.monotonic() + PATIENCE + 1
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _serve(work: Callable[[Run, Say], dict], line: Connection) -> None:
    """The body of a worker process: runs that arrive on `line`, until it or its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles ^C, and ends the worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with heeding_sigterm():
            configure_cpu_process()
            plugins.load_all()  # a config may have classes of the user's own
            while True:
                name, run = line.recv()
                try:
                    returned = work(run, partial(_send, line, name))
                    _send(line, name, {"finished": run.id, **returned})
                except Exception as e:
                    bug = mendable(e) is None
                    _send(line, name, {"error": one_line(e), "traceback": traceback.format_exc() if bug else None})
    except EOFError:  # the parent has closed the connection: no runs are left
        return
    except Stopped:
        sys.exit(Stopped.code)


def _send(line: Connection, name: str, event: dict) -> None:
    """Send an event to the parent, which no longer reads from a run that it has sent SIGTERM."""
    with contextlib.suppress(OSError):
        line.send((name, event))


def one_line(e: Exception) -> str:
    """An exception in one line; that of a bug begins with its type."""
    message = mendable(e)
    return f"{type(e).__name__}: {next(iter(str(e).strip().splitlines()), '')}" if message is None else message


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this
    parent.join()
    os._exit(1)
