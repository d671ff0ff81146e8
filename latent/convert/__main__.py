"""Turn a published checkpoint into a folder that `latent.load`, lm-eval, eval.chat and transformers open.

A plain causal LM in a GGUF file becomes a folder for --model.pretrained instead.
"""

from __future__ import annotations

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from latent.cli import guarded, parse, program
from latent.convert import LAYOUTS, Asked, convert

DESCRIPTION = f"{__doc__}\nLayouts:\n" + "".join(f"  {name}: {said}\n" for name, said in LAYOUTS.items())


@dataclass(frozen=True)
class Options(Asked):
    """What to convert, and where to."""

    checkpoint: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """A folder, a file with weights, or a name on the Hugging Face hub."""
    out: Path = tyro.MISSING
    """The folder to write, which must be new or empty."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        options = parse(Options, args, program("latent.convert", "latent-convert"), DESCRIPTION)
        made = convert(options.checkpoint, options.out, options)
        print(f"{options.out}: {made.title}")
        for line in (*made.notes, *(f"published: {line}" for line in made.published)):
            print(f"  {line}")

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
