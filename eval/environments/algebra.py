"""math-verify in a process of its own: whether two expressions are equal, within a hard time limit.

The library parses with a grammar of its own and simplifies with sympy. That can take seconds, fills memory on towers of
powers, and its own limits are signals, which threads cannot take; so it runs in a worker (algebra_worker.py), which the
system ends at LIMIT and which is then started again. The limit is of processor time, so that a verdict does not hang on
what else the machine does. One worker a process, started when it is first asked.
"""

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

LIMIT = 3
"""Whole seconds of processor time that a question may take."""
PATIENCE = 120.0
"""Seconds until a worker that does not use the processor either is given up; importing the library takes some."""
LONGEST = 400
"""Characters of an expression that is worth asking about; longer ones are not equal."""


class _Worker:
    """The process, and the thread that reads what it says: a pipe has no time limit everywhere, a queue has."""

    def __init__(self):
        worker = Path(__file__).with_name("algebra_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(worker), str(LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.owner = os.getpid()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._line("start")

    def _read(self) -> None:
        assert self.process.stdout is not None  # a pipe
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # it has ended

    def _line(self, what: str) -> str:
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            self.stop()
            raise TimeoutError(f"math-verify did not {what} within {PATIENCE:g} s") from None
        if not line:
            self.process.wait()  # its output is closed: it ends by itself
            late = self.process.returncode == -getattr(signal, "SIGXCPU", 0)
            within = f"did not {what} within {LIMIT} s of processor time" if late else f"ended before it could {what}"
            raise TimeoutError(f"math-verify {within}")
        return line

    def ask(self, said: str, gold: str) -> bool:
        assert self.process.stdin is not None  # a pipe
        try:
            self.process.stdin.write(json.dumps([said, gold]) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.stop()
            raise TimeoutError("math-verify ended before it could answer") from None
        return json.loads(self._line("answer"))

    def stop(self) -> None:
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None


@lru_cache(maxsize=1 << 14)
def equal(said: str, gold: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal. Raises TimeoutError where it does not answer in LIMIT."""
    global _worker
    if max(len(said), len(gold)) > LONGEST:
        return False
    with _lock:
        if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
            _worker = _Worker()
            atexit.register(_worker.stop)
        return _worker.ask(said, gold)
