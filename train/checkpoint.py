"""Checkpoints that hold all an exact resume needs: parameters, buffers, optimizer, counters.

Data and randomness are pure functions of (seed, step), so a step number stands for the state of both. Each is a folder
of its own, `checkpoint/step-N/`: tensors as torch.distributed.checkpoint writes them, each process its share, and
manifest.json, which says whose it is, at which step, the checksum of every file, where the logs ended, and how far the
run had come. It gets its name when it is whole, and no file in it is written twice. Any number of processes reads it.
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
    """A checkpoint whose files are as they were written. `ends`: where the logs ended; `progress`: all but tensors."""

    folder: Path
    step: int
    ends: dict[str, dict]
    progress: dict


def save(
    home: Path, step: int, tensors: dict[str, Tensor], progress: dict, run: str, ends: Callable[[], dict[str, dict]],
    keep: int, engine: Engine,
) -> None:  # fmt: skip
    """Write the checkpoint of a step, and drop all but the `keep` newest of the way that led there.

    `ends` says where the logs end, `progress` what JSON can hold. All processes take part, in a folder that all of them
    see. Raises OSError naming the file, on a full disk too; the other checkpoints are then still there.
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
        steps = found(home)
        mine = [each for each in steps if each <= step]
        for each in set(steps) - set(mine[:keep]):  # a later one was refused, or this run would have gone on from it
            drop_folder(home / f"step-{each}")
    engine.wait()


def write_tensors(folder: Path, tensors: dict[str, Tensor], shared: bool) -> None:
    """Tensors into a folder; `shared`: over all processes, each of which calls this."""
    from torch.distributed import checkpoint as dcp

    writer = dcp.FileSystemWriter(folder, sync_files=False)  # `put_folder` does so
    writer.fs = disk()
    try:
        with named(folder), alone_in_silence():
            dcp.save(tensors, storage_writer=writer, no_dist=not shared)
    except dcp.api.CheckpointException as e:
        for error, _ in e.failures.values():
            if isinstance(error, OSError):
                raise error from None
        raise


@contextmanager
def alone_in_silence() -> Iterator[None]:
    """Without torch's warning that a process which is alone saves and loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def contents(saved: Saved) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Size and type of every tensor in a checkpoint, by name."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = {}
    for name, each in FileSystemReader(saved.folder).read_metadata().state_dict_metadata.items():
        assert isinstance(each, TensorStorageMetadata)  # `save` takes nothing else
        found[name] = (each.size, each.properties.dtype)
    return found


def load(saved: Saved, into: dict[str, Tensor], engine: Engine) -> None:
    """Read the tensors of a checkpoint that was checked into those given, whole or sharded. All processes take part."""
    from torch.distributed import checkpoint as dcp

    with alone_in_silence():
        dcp.load(into, storage_reader=dcp.FileSystemReader(saved.folder), no_dist=engine.world == 1)


def write_state(path: Path, state: dict) -> None:
    """Tensors and counters as torch writes them. Its own complaint of a full disk names neither disk nor file."""
    with named(path), path.open("wb") as f:
        kept = _Remembering(f)
        try:
            torch.save(state, kept)
        except RuntimeError:
            if kept.error is None:
                raise
            raise kept.error from None
        f.flush()


class _Remembering:
    """A file for torch to write, which keeps the error that torch replaces by one of its own."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        """Not after every tensor: closing does."""

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def disk():
    """A file system for torch.distributed.checkpoint that tells which file an error was about."""
    from torch.distributed.checkpoint.filesystem import FileSystem

    class Disk(FileSystem):
        @contextmanager
        def create_stream(self, path, mode: str) -> Iterator:
            with named(Path(path)), Path(path).open(mode, 1 << 14) as f:
                if "w" not in mode:
                    yield f
                    return
                kept = _Remembering(f)
                try:
                    yield kept
                except RuntimeError:
                    raise kept.error or RuntimeError from None

    return Disk()


def rendered(about: dict) -> str:
    """The manifest's text, its own checksum included."""
    text = json.dumps(about, sort_keys=True)
    return json.dumps({"manifest": about, "sha256": sha256(text.encode()).hexdigest()}, sort_keys=True, indent=1) + "\n"


def found(home: Path) -> list[int]:
    """The steps that have a checkpoint, whole or not, the newest first."""
    steps = (path.name.removeprefix("step-") for path in home.glob("step-*") if path.suffix != PART)
    return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)


def newest(home: Path, run: str, unfit: Callable[[dict], str | None]) -> tuple[Saved | None, list[str]]:
    """The newest good checkpoint of a run, None where there is none, and what is wrong with those that are newer.

    `unfit(ends)` says why the logs do not go with a checkpoint. Nothing is written.
    """
    wrong = [f"{path} is no checkpoint of this version" for path in home.glob("state.pt")]
    for step in found(home):
        folder = home / f"step-{step}"
        try:
            return checked(folder, run, unfit), wrong
        except ValueError as e:
            wrong.append(str(e))
    return None, wrong


def checked(folder: Path, run: str, unfit: Callable[[dict], str | None]) -> Saved:
    """A checkpoint of `run`. Raises UserError naming the file that is not what was written, or another run's."""
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
    """Drop the resume state of a finished run."""
    drop_folder(home)
