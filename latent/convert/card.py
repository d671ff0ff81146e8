"""The model card of a converted checkpoint: what it was, what became of it, and which score to expect."""

from __future__ import annotations

from pathlib import Path

from latent.convert import LAYOUTS, Converted
from latent.convert.source import Source
from latent.files import write_text


def write(folder: Path, source: Source, layout: str, made: Converted) -> None:
    """Write README.md into the folder."""
    lists = [("What is not as published", made.notes), ("Published scores, none of them ours", made.published)]
    parts = [f"## {head}\n\n" + "".join(f"* {line}\n" for line in lines) for head, lines in lists if lines]
    write_text(
        folder / "README.md",
        f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {made.title}

Converted from `{source.name}`, {LAYOUTS[layout]}, by `python -m latent.convert`.

{chr(10).join(parts)}""",
    )
