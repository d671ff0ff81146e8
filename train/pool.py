"""Runs in processes: one thread each, as many at a time as asked, each after the run it starts from."""

import multiprocessing
import os
import queue
from collections.abc import Callable
from dataclasses import dataclass

from train.config import Run
from train.process import settle

Say = Callable[[dict], None]


@dataclass
class _Worker:
    """A process that does one run after another, and the name of the one it is at."""

    process: multiprocessing.Process
    tasks: multiprocessing.Queue
    busy: str | None = None


def in_processes(
    runs: dict[str, Run], work: Callable[[Run, Say], dict], jobs: int, show: Callable[[str, dict], None]
) -> dict[str, str]:
    """Call `work(run, say)` for every run, elsewhere. Returns the complaints of those that failed, by name.

    `show(name, event)` is told what a run says and, when it has ended, `{"finished": id}` with what `work` returned.
    A run whose start failed is not begun. Complaints come as they arise too, as `{"error": ...}`: `show` may raise to
    end everything.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    waiting, finished, failed, workers = dict(runs), set(), {}, []
    by_id = {run.id: name for name, run in runs.items()}

    def fail(name: str, why: str) -> None:
        failed[name] = why
        show(name, {"error": why})

    try:
        while True:
            for name, run in list(waiting.items()):
                start = by_id.get(run.init)
                if start in failed:
                    del waiting[name]
                    fail(name, f"its start, {start}, failed")
                elif start is None or start in finished:
                    idle = next((w for w in workers if w.busy is None), None)
                    if idle is None and len(workers) < jobs:
                        tasks = context.Queue()
                        process = context.Process(target=_serve, args=(work, tasks, events), daemon=True)
                        process.start()
                        workers.append(idle := _Worker(process, tasks))
                    if idle is None:
                        break
                    idle.busy = name
                    idle.tasks.put((name, run))
                    del waiting[name]
            if not any(w.busy for w in workers):
                return failed
            try:
                name, event = events.get(timeout=0.5)
            except queue.Empty:
                for dead in [w for w in workers if w.process.exitcode is not None and events.empty()]:
                    workers.remove(dead)
                    if dead.busy:
                        fail(dead.busy, f"its process ended with code {dead.process.exitcode}; run again to go on")
                continue
            if "finished" in event or "error" in event:
                next(w for w in workers if w.busy == name).busy = None
            if "error" in event:
                fail(name, event["error"])
                continue
            if "finished" in event:
                finished.add(name)
            show(name, event)
    finally:
        for worker in workers:
            worker.process.terminate()


def _serve(work: Callable[[Run, Say], dict], tasks, events) -> None:
    """A worker process: what it is given, until it is ended."""
    settle()
    while True:
        name, run = tasks.get()
        try:
            told = work(run, lambda event, name=name: events.put((name, event)))
            events.put((name, {"finished": run.id, **told}))
        except (ValueError, RuntimeError, OSError) as e:
            events.put((name, {"error": str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__}))
