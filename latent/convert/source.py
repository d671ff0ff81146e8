"""The files of a foreign checkpoint: a folder, one file with weights, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kernels.errors import UserError, first_line
from latent.files import is_ours, read_json
from latent.hub import downloaded

WANTED = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja", "*.gguf", "checkpoint_*")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_KINDS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source:
    """A checkpoint as published. `place`: a folder, or a file with weights. `name`: what to call it.

    Tensors are read when they are asked for, as they are stored. Nothing in a file is executed.
    """

    def __init__(self, place: Path, name: str):
        self.place, self.name = place, name
        self.folder = place if place.is_dir() else place.parent

    @classmethod
    def find(cls, name: str) -> Source:
        """A folder or file, or a checkpoint on the hub, which is downloaded. Raises UserError for what is neither."""
        place = Path(name).expanduser()
        if place.exists():
            try:
                ours = is_ours(place)
            except UserError:
                ours = False  # a damaged file is named where it is needed
            if ours:
                raise UserError(f"{place} is a checkpoint of ours: latent.load, lm-eval and eval.chat open it as it is")
            return cls(place, place.name)
        if not _HUB_NAME.fullmatch(name) or name.startswith("."):
            raise UserError(f"{name} is not a folder, a file, or a name on the hub")
        return cls(
            downloaded(name, "is no folder or file here, and was not downloaded", allow_patterns=list(WANTED)), name
        )

    @cached_property
    def files(self) -> list[Path]:
        """The files with weights. Raises UserError where there is none, or a choice between several."""
        if self.place.is_file():
            return [self.place]
        for index in (self.folder / name for name in _INDEXES):
            if index.exists():
                return self._shards(index)
        for whole in (self.folder / name for name in _WHOLE):
            if whole.exists():
                return [whole]
        found = sorted(
            p for p in self.folder.iterdir()
            if p.is_file() and p.name not in _NO_WEIGHTS
            and (p.suffix in _KINDS or (p.name.startswith("checkpoint") and not p.suffix))
        )  # fmt: skip
        if not found:
            raise UserError(f"{self.place} has no file with weights")
        if len(found) > 1:
            some = ", ".join(p.name for p in found[:3])
            raise UserError(f"{self.place} has several files with weights ({some} ...): give one of them")
        return found

    def _shards(self, index: Path) -> list[Path]:
        """The files that an index names. Raises UserError, naming it, for one that is not there."""
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
            raise UserError(f"{index} names no files: it has no weight_map")
        names = sorted(set(where.values()))  # which may lie in folders
        missing = [name for name in names if not (index.parent / name).is_file()]
        if missing:
            raise UserError(f"{index} names files that are missing: {', '.join(missing)}")
        return [index.parent / name for name in names]

    @cached_property
    def about(self) -> dict:
        """The contents of config.json, empty where there is none. Raises UserError for one that says nothing."""
        file = self.folder / "config.json"
        if not self.place.is_dir() or not file.exists():
            return {}
        if not file.read_bytes().strip():
            raise UserError(f"{file} is empty")
        said = read_json(file)
        if not said:
            raise UserError(f"{file} says nothing: it is {{}}")
        return said

    @property
    def names(self) -> set[str]:
        """The names of all tensors; none of a GGUF file, which has a layout of its own."""
        return set() if self.is_gguf else set(self.tensors)

    @property
    def is_gguf(self) -> bool:
        return [p.suffix for p in self.files] == [".gguf"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name. Raises UserError, naming the file, for one that is damaged or holds anything else."""
        merged: dict[str, Tensor] = {}
        for file in self.files:
            merged.update(_safetensors(file) if file.suffix == ".safetensors" else _pickled(file))
        if not merged:
            raise UserError(f"{self.place} holds no tensors")
        return merged


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no mapping
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is damaged: {first_line(e)}") from None


def _pickled(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`. Only tensors are taken: anything else could run code."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as e:
        named = re.search(r"(?:GLOBAL|Unsupported global|Unsupported class) ([\w.]+)", str(e))
        if named is None:
            raise UserError(f"{file} is damaged: it is no file of tensors") from None
        raise UserError(f"{file} is refused: it holds more than tensors ({named[1]}), and would run code") from None
    except Exception:  # bytes that are no pickle raise anything
        raise UserError(f"{file} is damaged or cut short: it is not as torch.save writes it") from None
    for key in ("state_dict", "model"):  # of some trainers, beside the optimizer's
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"{file} is no state dict: it is a {type(state).__name__}")
    wrong = [name for name, x in state.items() if not isinstance(x, Tensor)]
    if wrong:
        raise UserError(f"{file} is no state dict: {wrong[0]} is no tensor")
    return {name.removeprefix("module."): x for name, x in state.items()}  # the prefix of DistributedDataParallel
