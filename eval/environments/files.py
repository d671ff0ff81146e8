"""Data sets from a local file or from the hub, row by row, each row with its place for error messages."""

import json
from collections.abc import Iterator
from pathlib import Path


def json_rows(source: str) -> Iterator[tuple[dict, str]]:
    """Rows of a JSON list, of JSON lines, or of hub:NAME[:SPLIT[:CONFIG]], each with where it stands.

    Raises ValueError for a missing file, for what is not JSON (file and line), and for an empty set.
    """
    rows = _hub_rows(source) if source.startswith("hub:") else _file_rows(Path(source))
    n = 0
    for row, place in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected an object, got {type(row).__name__}")
        n += 1
        yield row, place
    if n == 0:
        raise ValueError(f"{source} holds no problems")


def _file_rows(path: Path) -> Iterator[tuple[object, str]]:
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not text: {e}") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as e:
            raise ValueError(f"{path}, line {e.lineno}: not JSON: {e.msg}") from None
        yield from ((row, f"{path}, item {i}") for i, row in enumerate(rows, 1))
        return
    for i, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028, which JSON allows
        if line.strip():
            try:
                yield json.loads(line), f"{path}, line {i}"
            except json.JSONDecodeError as e:
                raise ValueError(f"{path}, line {i}: not JSON: {e.msg}") from None


def _hub_rows(source: str) -> Iterator[tuple[object, str]]:
    name, _, rest = source.removeprefix("hub:").partition(":")
    split, _, config = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{source} needs the hub extra: pip install 'latent-reasoning[hub]'") from None
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as e:  # whatever the hub's client raises: no network, no such set, no such split
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ValueError(f"cannot load {source} ({why}); a local file can be given instead") from None
    yield from ((row, f"{source}, row {i}") for i, row in enumerate(rows))


def whole_number(row: dict, key: str, place: str, below: int) -> int:
    """A field that must be an index below `below`."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ValueError(f"{place}: field {key!r} must be a whole number below {below}, got {value!r:.40}")
    return value
