"""Checkpoint files for an exact resume: parameters, buffers, optimizer, counters.

Data and randomness are functions of (seed, step), so that a step number stands for the state of both. A checkpoint is a
folder, `checkpoint/step-N/`: tensors as torch.distributed.checkpoint writes them, each process its share, and
manifest.json with the run, the step, a checksum of every file, where the logs ended, and the counters. The folder gets
its name when it is complete, and its files are never changed. Any number of processes can read it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.errors import UserError
from latent.files import PART, digest, drop_folder, drop_parts, named, put_folder, read_json, write_text

if TYPE_CHECKING:
    from train.engine import Engine

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was verified. `ends`: where the logs ended. `progress`: everything but tensors."""

    folder: Path
    step: int
    ends: dict[str, dict]
    progress: dict


def save(
    home: Path, step: int, tensors: dict[str, Tensor], progress: dict, run: str, ends: Callable[[], dict[str, dict]],
    keep: int, engine: Engine,
) -> None:  # fmt: skip
    """Write the checkpoint of a step, and remove all but the `keep` newest.

    `ends()` gives where the logs end; `progress` must be JSON. All processes call it, with a folder that all of them
    see. Raises OSError naming the file, also on a full disk; the other checkpoints are then still there.
    """
    place = home / f"step-{step}"
    part = place.with_name(place.name + PART)
    if engine.leads:
        drop_parts(home)
        part.mkdir(parents=True)
    engine.wait()
    write_tensors(part, tensors, engine.world > 1)
    engine.wait()
    if engine.leads:
        sums = {path.name: digest(path) for path in sorted(part.iterdir())}
        about = {"run": run, "step": step, "files": sums, "logs": ends(), "progress": progress}
        write_text(part / MANIFEST, rendered(about))
        put_folder(part, place)
        steps = saved_steps(home)
        mine = [each for each in steps if each <= step]
        for each in set(steps) - set(mine[:keep]):  # later ones are damaged: a good one would have been resumed from
            drop_folder(home / f"step-{each}")
    engine.wait()


def write_tensors(folder: Path, tensors: dict[str, Tensor], shared: bool) -> None:
    """Write tensors into a folder. `shared`: all processes call it, and each writes its share."""
    from torch.distributed import checkpoint as dcp

    writer = dcp.FileSystemWriter(folder, sync_files=False)  # `put_folder` syncs
    writer.fs = naming_file_system()
    try:
        with named(folder), without_warning():
            dcp.save(tensors, storage_writer=writer, no_dist=not shared)
    except dcp.api.CheckpointException as e:
        for error, _ in e.failures.values():
            if isinstance(error, OSError):
                raise error from None
        raise


@contextmanager
def without_warning() -> Iterator[None]:
    """Silence torch's warning that a single process saves and loads without torch.distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def contents(saved: Saved) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Size and type of every tensor in a checkpoint, by name."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    sizes = {}
    for name, each in FileSystemReader(saved.folder).read_metadata().state_dict_metadata.items():
        assert isinstance(each, TensorStorageMetadata)  # `save` writes only tensors
        sizes[name] = (each.size, each.properties.dtype)
    return sizes


def load(saved: Saved, into: dict[str, Tensor], engine: Engine) -> None:
    """Read a checkpoint's tensors into those given, which may be sharded. All processes must call it."""
    from torch.distributed import checkpoint as dcp

    with without_warning():
        dcp.load(into, storage_reader=dcp.FileSystemReader(saved.folder), no_dist=engine.world == 1)


def write_state(path: Path, state: dict) -> None:
    """Write a state by `torch.save`. Raises OSError naming the file, for which torch raises a bare RuntimeError."""
    with named(path), path.open("wb") as f:
        file = _ErrorKeeping(f)
        try:
            torch.save(state, file)
        except RuntimeError:
            if file.error is None:
                raise
            raise file.error from None
        f.flush()


class _ErrorKeeping:
    """A file for torch to write to. It keeps the OSError that torch replaces by an error of its own."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        """Does nothing: torch calls it after every tensor, and closing the file flushes."""

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def naming_file_system():
    """A file system for torch.distributed.checkpoint whose errors name the file."""
    from torch.distributed.checkpoint.filesystem import FileSystem

    class Naming(FileSystem):
        @contextmanager
        def create_stream(self, path, mode: str) -> Iterator:
            with named(Path(path)), Path(path).open(mode, 1 << 14) as f:
                if "w" not in mode:
                    yield f
                    return
                file = _ErrorKeeping(f)
                try:
                    yield file
                except RuntimeError:
                    raise file.error or RuntimeError from None

    return Naming()


def rendered(about: dict) -> str:
    """The text of a manifest, with its own checksum."""
    text = json.dumps(about, sort_keys=True)
    return json.dumps({"manifest": about, "sha256": sha256(text.encode()).hexdigest()}, sort_keys=True, indent=1) + "\n"


def saved_steps(home: Path) -> list[int]:
    """The steps of all checkpoints, good or damaged, the newest first."""
    steps = (path.name.removeprefix("step-") for path in home.glob("step-*") if path.suffix != PART)
    return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)


def newest(home: Path, run: str, unfit: Callable[[dict], str | None]) -> tuple[Saved | None, list[str]]:
    """The newest good checkpoint of a run, None where there is none; and what is wrong with newer ones.

    `unfit(ends)` returns why the logs do not fit a checkpoint, None where they do. Nothing is written.
    """
    wrong = [f"{path} is no checkpoint of this version" for path in home.glob("state.pt")]
    for step in saved_steps(home):
        folder = home / f"step-{step}"
        try:
            return checked(folder, run, unfit), wrong
        except UserError as e:
            wrong.append(str(e))
    return None, wrong


def checked(folder: Path, run: str, unfit: Callable[[dict], str | None]) -> Saved:
    """A checkpoint of `run`, verified. Raises UserError naming a file that is damaged or another run's."""
    path = folder / MANIFEST
    about = read_json(path).get("manifest")
    if not isinstance(about, dict) or path.read_text() != rendered(about):
        raise UserError(f"{path} is damaged: its checksum is another")
    if about["run"] != run:
        raise UserError(f"{folder} is of run {about['run']}, this is run {run}")
    if folder.name != f"step-{about['step']}":
        raise UserError(f"{folder} holds step {about['step']}, which is not what it is named")
    if "progress" not in about:
        raise UserError(f"{folder} is no checkpoint of this version")
    for name, checksum in about["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if digest(folder / name) != checksum:
            raise UserError(f"{folder / name} is damaged: its checksum is another")
    if why := unfit(about["logs"]):
        raise UserError(f"{folder} does not go with the log: {why}")
    return Saved(folder, about["step"], about["logs"], about["progress"])


def remove(home: Path) -> None:
    """Remove the checkpoints of a finished run."""
    drop_folder(home)
