"""Checkpoints that hold all an exact resume needs: parameters, buffers, optimizer, counters.

Data and randomness are pure functions of (seed, step), so a step number stands for the state of both. Each is a folder
of its own, `checkpoint/step-N/`: state.pt, and manifest.json, which says whose it is, at which step, the checksum of
every file, and where the logs ended. It gets its name when it is whole, and no file in it is written twice.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from kernels.errors import UserError
from latent.files import PART, digest, drop_folder, drop_parts, named, put_folder, read_json, write_text

STATE, MANIFEST = "state.pt", "manifest.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose files are as they were written."""

    folder: Path
    step: int
    ends: dict[str, dict]


def save(home: Path, state: dict, run: str, ends: dict[str, dict], keep: int) -> None:
    """Write `state` as the checkpoint of its step, and drop all but the `keep` newest of the way that led there.

    `ends`: where the logs end. Raises OSError naming the file, on a full disk too; the others are then still there.
    """
    place = home / f"step-{state['step']}"
    part = place.with_name(place.name + PART)
    drop_parts(home)
    part.mkdir(parents=True)
    write_state(part / STATE, state | {"run": run})
    about = {"run": run, "step": state["step"], "files": {STATE: digest(part / STATE)}, "logs": ends}
    write_text(part / MANIFEST, rendered(about))
    put_folder(part, place)
    steps = found(home)
    mine = [step for step in steps if step <= state["step"]]
    for step in set(steps) - set(mine[:keep]):  # a later one was refused, or this run would have gone on from it
        drop_folder(home / f"step-{step}")


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
        self.file.flush()


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
    wrong = [f"{path} is no checkpoint of this version" for path in home.glob(STATE)]
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
    for name, checksum in about["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if digest(folder / name) != checksum:
            raise UserError(f"{folder / name} is damaged: its checksum is another")
    if why := unfit(about["logs"]):
        raise UserError(f"{folder} does not go with the log: {why}")
    return Saved(folder, about["step"], about["logs"])


def load(saved: Saved) -> dict:
    """The state of a checkpoint that was checked."""
    return torch.load(saved.folder / STATE, map_location="cpu", weights_only=True)


def remove(home: Path) -> None:
    """Drop the resume state of a finished run."""
    drop_folder(home)
