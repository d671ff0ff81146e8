"""Checkpoints that hold all an exact resume needs: parameters, buffers, optimizer, counters.

Data and randomness are pure functions of (seed, step), so a step number stands for the state of both.
"""

import os
import shutil
from pathlib import Path

import torch


def save(folder: Path, state: dict) -> None:
    """Write `state` as `folder`/state.pt: a kill at any moment leaves the old one or the new one whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with (part / "state.pt").open("wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> dict | None:
    """The last whole state, None where there is none."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        path = candidate / "state.pt"
        if path.exists():
            return torch.load(path, map_location="cpu", weights_only=True)
    return None


def remove(folder: Path) -> None:
    """Drop the resume state of a finished run."""
    for suffix in ("", ".part", ".old"):
        shutil.rmtree(folder.with_name(folder.name + suffix), ignore_errors=True)
