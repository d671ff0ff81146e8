"""Checkpoints that others published, turned into folders of ours: `python -m latent.convert NAME_OR_DIR --out DIR`.

A layout is a line in the table, and a module here with two functions:

    matches(source) -> whether a checkpoint is laid out so, from the names of its files, tensors and fields
    read(source, asked) -> Converted

and with `TAKES`, the names of what it reads of `Asked`.

No torch in this file, so that `--help` answers at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from kernels.errors import UserError
from latent.files import PART, check_writable, is_ours, put_folder

if TYPE_CHECKING:
    from latent.convert.source import Source

MOST = 1_000_000  # latents or tokens that anyone may ask for
LAYOUTS: dict[str, str] = {
    "coconut": "Coconut's state dict, or SIM-CoT's of the same kind",
    "codi": "CODI's state dict with LoRA adapters and projection, or SIM-CoT's of the same kind",
    "latenttts": "LatentTTS's Hugging Face folders of Coconut, CODI and CoLaR",
    "soft": "a plain Hugging Face folder, to think in mixtures of tokens: Soft Thinking, Latent-SFT",
    "gguf": "a GGUF file of llama.cpp, which becomes a plain Hugging Face folder for --model.pretrained",
}
"""What each layout is. Its module has its name."""


@dataclass(frozen=True)
class Asked:
    """What a checkpoint does not say of itself; None = as its authors' scripts have it."""

    layout: str | None = None
    """How the checkpoint is laid out. None = told from its files."""
    base: str | None = None
    """Hub name or folder of the backbone that was trained, for its config and tokenizer, where the checkpoint has none:
    gpt2, or meta-llama/Llama-3.2-1B-Instruct."""
    n_latent: int | None = None
    """Latents of an answer."""
    latents_per_step: int | None = None
    """Coconut's latents for a step of a chain (c_thought): 2 for GSM8K, 1 for ProsQA and ProntoQA. None = 2, or 1 where
    the latents are an odd number."""
    lora_alpha: float = 32.0
    """CODI's scale of the adapters, which its state dict does not hold."""
    top_k: int = 10
    """Tokens of a mixture (soft)."""
    answer_tokens: int | None = None
    """Longest answer in tokens."""

    def __post_init__(self):
        for name, least in (("n_latent", 0), ("latents_per_step", 1), ("top_k", 1), ("answer_tokens", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= MOST:
                raise UserError(f"{flag(name)} must be in {least}..{MOST}, got {value}")
        if not self.lora_alpha > 0:
            raise UserError(f"--lora-alpha must be > 0, got {self.lora_alpha}")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise UserError(f"--layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was read. `save` writes it into a folder. `title` says what became of it, `notes` what is not
    as its authors have it. `published`: scores to expect, each with its source."""

    title: str
    save: Callable[[Path], None]
    notes: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)


class Layout(Protocol):
    """A module of a layout. `TAKES`: the fields of `Asked` that it reads."""

    TAKES: tuple[str, ...]

    def matches(self, source: Source) -> bool: ...

    def read(self, source: Source, asked: Asked) -> Converted: ...


def layout(name: str) -> Layout:
    """The module of a layout."""
    return cast(Layout, import_module(f"latent.convert.{name}"))


def flag(name: str) -> str:
    """A field as the command line has it."""
    return "--" + name.replace("_", "-")


def told_from(source: Source) -> str:
    """The layout that a checkpoint's files say. Raises UserError where they say none."""
    for name in LAYOUTS:
        if layout(name).matches(source):
            return name
    some = ", ".join(sorted(source.names)[:3])
    raise UserError(f"{source.place}: the layout is not known (weights: {some} ...): none of {', '.join(LAYOUTS)}")


def opened(folder: Path, source: Source) -> None:
    """Raise UserError for a converted checkpoint that does not open, before it is put where it is asked for."""
    from latent import hub

    try:
        hub.load(folder)
    except UserError as e:
        raise UserError(f"{source.place}: what it was turned into does not open ({e})") from None


def convert(name: str, out: Path, asked: Asked) -> Converted:
    """Turn the checkpoint of a hub name, folder or file into the folder `out`, which is written whole or not at all.

    Raises UserError for a checkpoint that is damaged, of another layout or method than was asked for, or has weights
    without a place; and for an output folder that is not empty.
    """
    from latent.cli import set_offline_if_the_hub_is_unreachable

    if not all(Path(place).expanduser().exists() for place in (name, asked.base) if place is not None):
        set_offline_if_the_hub_is_unreachable()  # before its client is imported, which looks only then
    from latent.convert import card
    from latent.convert.source import Source

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder")
    check_writable(out, "--out", folder=True)
    source = Source.find(name)
    found = asked.layout or told_from(source)
    if not layout(found).matches(source):
        raise UserError(f"{source.place} is not laid out as {found}: {LAYOUTS[found]}")
    takes = layout(found).TAKES
    for f in fields(Asked):
        if f.name not in ("layout", *takes) and getattr(asked, f.name) != f.default:
            raise UserError(
                f"{flag(f.name)} is not of layout {found}: it takes {', '.join(map(flag, takes)) or 'none'}"
            )
    made = layout(found).read(source, asked)
    place = out.resolve()
    part = place.with_name(place.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    try:
        made.save(part)
        card.write(part, source, found, made)
        if is_ours(part):
            opened(part, source)
        put_folder(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made
