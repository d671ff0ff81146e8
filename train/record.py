"""The record of a run, `runs/<id>/`: what was asked, on what, what happened, what came out.

config.json, env.json (code version, packages, hardware), metrics.jsonl, samples.jsonl, result.json, model/.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from train.config import Run, plain

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "triton")


class Record:
    """The folder of one run; what is written is on disk when the call returns."""

    def __init__(self, root: Path, run: Run):
        self.home = root / run.id
        self.run = run

    def must_match(self, data: str | None) -> None:
        """Raise ValueError where this run was begun on other data: the config, and so the id, names files only."""
        path = self.home / "env.json"
        if path.exists() and json.loads(path.read_text()).get("data") != data:
            raise ValueError(
                f"{self.home} was made from other data under the same name; remove it or give another --out"
            )

    def open(self, data: str | None, command: str | None) -> None:
        """Make the folder and say what runs on what, by which command."""
        self.home.mkdir(parents=True, exist_ok=True)
        write(self.home / "config.json", plain(self.run))
        write(self.home / "env.json", {**environment(), "data": data, "command": command})

    @property
    def result(self) -> dict | None:
        """What came out, None until the run has finished."""
        path = self.home / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, result: dict) -> None:
        """The result, last of all: its presence means that the run is whole."""
        write(self.home / "result.json", result)

    def log(self, metrics: dict) -> None:
        """One line of metrics."""
        append(self.home / "metrics.jsonl", [metrics])

    def samples(self, rows: list[dict]) -> None:
        """Completions with their verdicts."""
        append(self.home / "samples.jsonl", rows)

    def forget_after(self, step: int) -> None:
        """Drop lines after `step`: a resumed run writes them again. Before the first step there are none."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.home / name
            if path.exists():
                lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
                path.write_text("".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # half a line, from a kill while writing


@contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock, which ends with this process. Raises RuntimeError where another holds it, unless told to wait."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is at {path.with_suffix('')}") from None
        yield


def write(path: Path, data: dict) -> None:
    """JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text, whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.rename(path)


def append(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    with path.open("a") as f:
        f.write("".join(json.dumps(row) + "\n" for row in rows))


def environment() -> dict:
    """Code version with uncommitted changes, package versions, hardware."""
    here = Path(__file__).parent.parent

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    import torch

    return {
        "git": git("rev-parse", "HEAD"),
        "diff": git("diff", "HEAD"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
