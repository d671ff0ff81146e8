"""`python -m tests.mutants`: does the suite notice when the code is wrong? One change at a time, in a copy of the tree.

Every mutant (listed.py) is put into a copy of the tracked files, and the tests that should notice are run there;
the files of this tree are only read. A mutant survives where they pass. Exits 1 where fewer than 95 % are killed, where
a mutant's text is not there exactly once or breaks the import of the tests, or where they do not pass without any.
"""

import argparse
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.listed import AREAS, MUTANTS, ROOT, Mutant

ENOUGH = 0.95
LIMIT = 300  # seconds that the tests of a mutant may take; an endless loop is noticed too


class Copy:
    """A copy of the tracked files as they are now, with a process that runs tests in it (worker.py)."""

    def __init__(self, home: Path):
        self.home = home
        named = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, named.split("\0")):
            if (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, home / name)
        env = {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # as conftest.py has it, before any import
        self.worker = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))],
            cwd=home, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, tests: tuple[str, ...], limit: float) -> tuple[int, str]:
        """Exit code of pytest, and the first test that failed. Raises ValueError where there is no answer."""
        self.worker.stdin.write(json.dumps([limit, tests]) + "\n")
        self.worker.stdin.flush()
        line = self.worker.stdout.readline()
        if not line:
            raise ValueError("the process that runs the tests has ended")
        return tuple(json.loads(line))

    def judge(self, mutant: Mutant) -> tuple[int, str]:
        """What becomes of the tests with a change."""
        place = self.home / mutant.file
        before = place.read_bytes()
        try:
            place.write_text(mutant.text(self.home), encoding="utf-8")
            return self.run(mutant.tests, LIMIT)
        finally:
            place.write_bytes(before)

    def end(self) -> None:
        """End the process; where it runs tests, those too."""
        self.worker.stdin.close()
        try:
            self.worker.wait(1)
        except subprocess.TimeoutExpired:
            self.worker.send_signal(signal.SIGINT)
            self.worker.wait()


def baseline(mutants: list[Mutant], copies: list[Copy], pool: ThreadPoolExecutor) -> None:
    """Raise ValueError where the tests do not pass as things are."""
    ids = sorted({name for m in mutants for name in m.tests})
    parts = [(copy, tuple(ids[i :: len(copies)])) for i, copy in enumerate(copies)]
    for code, said in pool.map(lambda part: part[0].run(part[1], math.inf), [part for part in parts if part[1]]):
        if code:
            raise ValueError(f"without any mutant, pytest ends with {code}: {said}")


def judge(mutants: list[Mutant], copies: list[Copy], pool: ThreadPoolExecutor) -> dict[Mutant, bool]:
    """Whether each mutant was killed, said as it is known; without those whose tests could not be run at all."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def one(mutant: Mutant) -> tuple[int, str]:
        copy = free.get()
        try:
            return copy.judge(mutant)
        finally:
            free.put(copy)

    killed = {}
    for mutant, (code, said) in zip(mutants, pool.map(one, mutants)):
        if code in (0, 1):
            killed[mutant] = code == 1
        word = {0: "SURVIVED ", 1: "killed   "}.get(code, f"NO RESULT, pytest ends with {code}:")
        print(f"{word} {mutant}" + f" ({said})" * (code != 0), flush=True)
    return killed


def table(killed: dict[Mutant, bool]) -> str:
    """Counts by area, and the survivors' names."""
    made, dead = Counter(m.area for m in killed), Counter(m.area for m, gone in killed.items() if gone)
    rows = [(area, made[area], dead[area]) for area in (*AREAS, "others") if made[area]]
    rows.append(("all", len(killed), sum(killed.values())))
    lines = ["| area | mutants | killed | share |", "|---|---|---|---|"]
    lines += [f"| {area} | {n} | {k} | {k / n:.1%} |" for area, n, k in rows]
    return "\n".join([*lines, *(f"survived: {m}" for m, gone in killed.items() if not gone)])


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each in a copy of its own")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="those with this text in file or name; may be given again"
    )
    parser.add_argument("--list", action="store_true", help="only name them, with their tests")
    options = parser.parse_args(args)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    mutants = [m for m in MUTANTS if any(text in str(m) for text in options.only or [""])]
    if not mutants:
        parser.error(f"--only {' --only '.join(options.only)}: no mutant has that in its file or name")
    if options.list:
        for mutant in mutants:
            print(mutant, *mutant.tests, sep="\n    ")
        return 0
    started = time.monotonic()
    copies: list[Copy] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as home, ThreadPoolExecutor(options.jobs) as pool:
        try:
            for mutant in mutants:
                mutant.text()
            copies += (Copy(Path(home) / str(i)) for i in range(min(options.jobs, len(mutants))))
            baseline(mutants, copies, pool)
            killed = judge(mutants, copies, pool)
        except (ValueError, KeyboardInterrupt) as e:
            print(str(e) or "stopped", file=sys.stderr)
            return 1
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.end()
    print(table(killed), f"{time.monotonic() - started:.0f} s, {len(copies)} at a time", sep="\n")
    return int(len(killed) < len(mutants) or sum(killed.values()) < ENOUGH * len(killed))


if __name__ == "__main__":
    sys.exit(main())
