"""Runs in processes: one thread each, as many at a time as asked, each after the run it starts from."""

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
from train.process import PATIENCE, Stopped, heeding_sigterm, settle

Say = Callable[[dict], None]
POSIX = os.name == "posix"


class WorkerError(RuntimeError):
    """A bug in a worker process; its message is the traceback from there."""


@dataclass
class _Worker:
    """A process that does one run after another, and the name of the one it is at."""

    process: multiprocessing.process.BaseProcess
    line: Connection
    busy: str | None = None


def in_processes(
    runs: dict[str, Run], work: Callable[[Run, Say], dict], jobs: int, show: Callable[[str, dict], None]
) -> dict[str, str]:
    """Call `work(run, say)` for every run, elsewhere. Returns the complaints of those that failed, by name.

    `show(name, event)` is told what a run says and, when it has ended, `{"finished": id}` with what `work` returned.
    A run whose start failed is not begun. Complaints come as they arise too, as `{"error": ...}`, with a "traceback"
    where it is a bug: `show` may raise to end everything. The processes end when this one does, however that is; on ^C
    and SIGTERM their runs are saved first.
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
            try:  # a ^C is for this process alone: the others inherit that it is blocked, from their first import on
                process.start()
                theirs.close()  # so that the end of the process is the end of the line
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
    """End the processes: idle ones by the end of their line, so that they tidy up after themselves; busy ones by
    SIGTERM, which lets them save, and for as long as that may take."""
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
    """A worker process: what it is given, until it is ended or its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with heeding_sigterm():
            settle()
            plugins.load_all()  # a run may be made of classes of the user's own
            while True:
                name, run = line.recv()
                try:
                    told = work(run, partial(_tell, line, name))
                    _tell(line, name, {"finished": run.id, **told})
                except Exception as e:
                    bug = mendable(e) is None
                    _tell(line, name, {"error": complaint(e), "traceback": traceback.format_exc() if bug else None})
    except EOFError:  # nothing is left to do
        return
    except Stopped:
        sys.exit(Stopped.code)


def _tell(line: Connection, name: str, event: dict) -> None:
    """Say something to the parent, who may have stopped listening to a run that it has told to end."""
    with contextlib.suppress(OSError):
        line.send((name, event))


def complaint(e: Exception) -> str:
    """An exception in one line; a bug's with its name."""
    said = mendable(e)
    return f"{type(e).__name__}: {next(iter(str(e).strip().splitlines()), '')}" if said is None else said


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
