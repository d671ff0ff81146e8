"""Runs in processes: one thread each, as many at a time as asked, each after the run it starts from."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from train.config import Run
from train.process import settle

Say = Callable[[dict], None]


@dataclass
class _Worker:
    """A process that does one run after another, and the name of the one it is at."""

    process: multiprocessing.Process
    line: Connection
    busy: str | None = None


def in_processes(
    runs: dict[str, Run], work: Callable[[Run, Say], dict], jobs: int, show: Callable[[str, dict], None]
) -> dict[str, str]:
    """Call `work(run, say)` for every run, elsewhere. Returns the complaints of those that failed, by name.

    `show(name, event)` is told what a run says and, when it has ended, `{"finished": id}` with what `work` returned.
    A run whose start failed is not begun. Complaints come as they arise too, as `{"error": ...}`: `show` may raise to
    end everything. The processes end when this one does, however that is.
    """
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    waiting, finished, failed, workers = dict(runs), set(), {}, []
    by_id = {run.id: name for name, run in runs.items()}

    def fail(name: str, why: str) -> None:
        failed[name] = why
        show(name, {"error": why})

    def free() -> _Worker | None:
        idle = next((w for w in workers if w.busy is None), None)
        if idle is None and len(workers) < jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the line
            workers.append(idle := _Worker(process, ours))
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
                    name, event = line.recv()
                except (EOFError, ConnectionError):
                    workers.remove(worker)
                    worker.process.join()
                    if worker.busy:
                        fail(worker.busy, f"its process ended with code {worker.process.exitcode}; run again to go on")
                    continue
                if "finished" in event or "error" in event:
                    worker.busy = None
                if "error" in event:
                    fail(name, event["error"])
                    continue
                if "finished" in event:
                    finished.add(name)
                show(name, event)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _serve(work: Callable[[Run, Say], dict], line: Connection) -> None:
    """A worker process: what it is given, until it is ended or its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settle()
    while True:
        name, run = line.recv()
        try:
            told = work(run, lambda event, name=name: line.send((name, event)))
            line.send((name, {"finished": run.id, **told}))
        except Exception as e:
            line.send((name, {"error": complaint(e)}))


def complaint(e: Exception) -> str:
    """An exception in one line; its name too where it is none that a user is meant to see."""
    said = str(e).strip().splitlines()[0] if str(e).strip() else ""
    return said if said and isinstance(e, (ValueError, RuntimeError, OSError)) else f"{type(e).__name__}: {said}"


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
