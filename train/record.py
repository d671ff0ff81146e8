"""The record of a run, `runs/<id>/`: its config, environment, logs, samples and result.

config.json; env.json (code version, packages and hardware of every start); metrics.jsonl; samples.jsonl; result.json;
model/; code/, where classes of the config are a user's own. A kill at any moment leaves a record that the next start
can go on from.
"""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

from kernels.errors import UserError
from latent.files import append, digest, drop_parts, field, read_json, sync_folder, write_bytes, write_json, write_text
from latent.plain import plain, unlike
from train import sources
from train.config import Run

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "triton")
ERROR = "error.txt"
LOGS = ("metrics.jsonl", "samples.jsonl")


class Record:
    """The folder of one run. What a method writes is on disk when it returns."""

    def __init__(self, root: Path | str, run: Run):
        self.home = Path(root) / run.id
        self.run = run

    @cached_property
    def code(self) -> sources.Sources:
        """The code of a user's own that it is made of."""
        return sources.of(self.run)

    def check_same_run(self, data: str | None, weights: str | None = None) -> None:
        """Raise UserError where this run was begun on other data, from other weights, by other code of a user's own or
        with another config.

        `data`, `weights`: fingerprints of the problems and of what it starts from; the config, and so the id, has only
        their names. Of weights None is anything: they are not needed any more once a run has finished.
        """
        path = self.home / "env.json"
        if path.exists():
            made, other = read_json(path), None
            if field(made, "data", (str, type(None)), path) != data:
                other = "data"
            elif None not in (weights, made.get("weights")) and made["weights"] != weights:
                other = "weights"
            elif made.get("code", self.code.digest) not in (self.code.digest, self._older_digest(made)):
                other = f"code ({', '.join(self.code.files) or 'that is in no file'})"
            if other:
                raise UserError(
                    f"{self.home} was made from other {other} under the same name; remove it or give another --out"
                )
        path = self.home / "config.json"
        if path.exists() and (odd := unlike(read_json(path), self.run)):
            raise UserError(f"{path} is not that of run {self.run.id}: it has another {odd}; give another --out")

    def _older_digest(self, made: dict) -> str | None:
        """The fingerprint of its own code as a record has it that was begun before those of its problems were kept."""
        return self.code.digest if "problems" in made else sources.of(self.run, calls=False).digest

    def check_same_problems(self, problems: str) -> None:
        """Raise UserError where this run was begun with other problems to judge it by, of an environment that does not
        draw the same ones in every process. `problems`: their digest."""
        path = self.home / "env.json"
        if path.exists() and (before := read_json(path).get("problems") or problems) != problems:
            raise UserError(
                f"{self.home} was begun with other problems to judge ({before}, now {problems}): the environment must "
                "give the same ones in every process (a set of strings has another order in each)"
            )

    def open(
        self, data: str | None, command: str | None, step: int = 0, weights: str | None = None,
        problems: str | None = None,
    ) -> None:  # fmt: skip
        """Create the folder, and write config.json and env.json for a start from `step` by `command`.

        env.json describes the latest start, and under "starts" every start, in order.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        drop_parts(self.home)
        if not (self.home / "config.json").exists():
            write_json(self.home / "config.json", plain(self.run))
        path = self.home / "env.json"
        before = read_json(path).get("starts", []) if path.exists() else []
        if not isinstance(before, list):
            raise UserError(f"{path}: field 'starts' must be a list, got {before!r:.40}")
        now = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "command": command}
        now |= environment()
        for name, source in self.code.files.items():
            place = self.home / "code" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, source.read_bytes())
        made_from = {"data": data, "weights": weights, "code": self.code.digest, "problems": problems}
        write_json(path, {**now, **made_from, "starts": [*before, now]})

    @property
    def result(self) -> dict | None:
        """The result; None until the run has finished."""
        path = self.home / "result.json"
        if not path.exists():
            return None
        result = read_json(path)
        for name in ("main.accuracy", "steps", "flops", "core_seconds"):
            field(result, name, (int, float), path)
        for name, kind in (("levels", dict), ("sweep", dict), ("correct", list)):
            field(result, name, kind, path)
        return result

    def finish(self, result: dict) -> None:
        """Write the result. It is written last, so that its presence means that the run is whole."""
        for path in self.home.glob(f"*{ERROR}"):  # of earlier starts
            path.unlink()
        write_json(self.home / "result.json", result)

    def keep_error(self, traceback: str, process: int) -> None:
        """Write a bug's traceback into the folder."""
        self.home.mkdir(parents=True, exist_ok=True)
        write_text(self.home / (ERROR if process == 0 else f"{process}-{ERROR}"), traceback)

    def log(self, metrics: dict) -> None:
        """Append a line of metrics."""
        append(self.home / "metrics.jsonl", [metrics])

    def samples(self, rows: list[dict]) -> None:
        """Append completions with their verdicts."""
        append(self.home / "samples.jsonl", rows)

    def ends(self) -> dict[str, dict]:
        """Where the logs end now: the size of each, and its checksum."""
        paths = {name: self.home / name for name in LOGS}
        return {
            name: {"bytes": path.stat().st_size, "sha256": digest(path)}
            for name, path in paths.items()
            if path.exists()
        }

    def unfit(self, ends: dict[str, dict]) -> str | None:
        """How the logs differ from those that ended at `ends`; None where they only may have grown."""
        for name, end in ends.items():
            path = self.home / name
            has = path.stat().st_size if path.exists() else 0
            if has < end["bytes"]:
                return f"{path} has {has} bytes, of {end['bytes']} that were written before it"
            if digest(path, end["bytes"]) != end["sha256"]:
                return f"{path} was changed in what was written before it"
        return None

    def go_back(self, ends: dict[str, dict]) -> None:
        """Cut the logs back to `ends`, because a resumed run writes the rest again. Without ends nothing is left."""
        for name in LOGS:
            path, size = self.home / name, ends.get(name, {}).get("bytes", 0)
            if not path.exists() or path.stat().st_size == size:
                continue
            if size:
                with path.open("rb") as f:
                    write_bytes(path, f.read(size))
            else:
                path.unlink()
                sync_folder(self.home)


@contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file lock, which also ends with the process. Raises UserError where another holds it, or waits for it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at {path.with_suffix('')}") from None
        yield


def check_lock_is_free(path: Path) -> None:
    """Raise UserError where another process holds a lock. It does not create the file."""
    if path.exists():
        with exclusive_lock(path):
            pass


@cache
def environment() -> dict:
    """Code version with uncommitted changes, package versions and hardware, as they were at the first call."""
    here = Path(__file__).parent.parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True)
        except OSError:  # there is none
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    import torch

    return {
        "git": git("rev-parse", "HEAD"),
        "diff": git("diff", "HEAD", "--", ".", ":(exclude)paper/records"),  # which runs add to, and none reads
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
