"""Data sets from a local file or from the hub, row by row, each row with its place for error messages."""

import json
from collections.abc import Iterator
from pathlib import Path

from kernels.errors import UserError, first_line

UTF_16 = "it is UTF-16: save it as UTF-8"
NO_TEXT = {b"\x1f\x8b": "it is gzip: unpack it", b"\xff\xfe": UTF_16, b"\xfe\xff": UTF_16}  # by a file's first bytes


def json_rows(source: str) -> Iterator[tuple[dict, str]]:
    """Rows of a JSON list, of JSON lines, or of hub:NAME[:SPLIT[:CONFIG]], each with where it stands.

    Raises UserError, naming file and line, for a missing file, for what is not JSON, for rows that are no objects and
    for text that is not Unicode (half of a surrogate pair), and for an empty set.
    """
    rows = _hub_rows(source) if source.startswith("hub:") else _file_rows(Path(source))
    n = 0
    for row, place in rows:
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object, got {type(row).__name__}")
        for key in row:
            _check_unicode(row[key], f"{place}: field {key!r:.40}")
        n += 1
        yield row, place
    if n == 0:
        raise UserError(f"{source} holds no problems")


def _file_rows(path: Path) -> Iterator[tuple[object, str]]:
    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a data file")
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        why = next((why for start, why in NO_TEXT.items() if e.object.startswith(start)), str(e))
        raise UserError(f"{path} is not text: {why}") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if text.lstrip().startswith("["):
        yield from ((row, f"{path}, item {i}") for i, row in enumerate(_loads(text, path, 1), 1))
        return
    if fields := _object(text):
        raise UserError(f"{path} is one JSON object ({fields}): expected a list of objects, or one object a line")
    for i, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028, which JSON allows
        if line.strip():
            yield _loads(line, path, i), f"{path}, line {i}"


def _object(text: str) -> str:
    """The names of a JSON object that more than one line holds, "" where the text is none."""
    if "\n" not in text.strip():
        return ""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return ", ".join(whole) if isinstance(whole, dict) else ""


def _loads(text: str, path: Path, line: int):
    """JSON that begins at a line of a file. Raises UserError naming the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{path}, line {line + e.lineno - 1}: not JSON: {e.msg}") from None
    except RecursionError:
        raise UserError(f"{path}, line {line}: not JSON that can be read: nested too deeply") from None
    except ValueError as e:  # a number of more digits than Python reads
        raise UserError(f"{path}, line {line}: not JSON that can be read: {e}") from None


def _check_unicode(value, place: str) -> None:
    """Raise UserError for a string anywhere in a value that no tokenizer can encode."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as e:
                raise UserError(
                    f"{place} is not Unicode text: half of a surrogate pair at character {e.start}"
                ) from None
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _check_unicode(part, place)


def text_field(row: dict, key: str, place: str) -> str:
    """A field that must be a string with something in it, without blanks around."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{place}: field {key!r} must be a string, got {value!r:.40}")
    if not value.strip():
        raise UserError(f"{place}: field {key!r} is empty")
    return value.strip()


def steps_field(row: dict, place: str) -> list[str]:
    """Field "steps", a list of strings, without blanks around. Empty ones, which GSM8K-Aug has, are no steps."""
    value = row.get("steps")
    if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
        raise UserError(f"{place}: field 'steps' must be a list of strings, got {value!r:.40}")
    return [step.strip() for step in value if step.strip()]


def _hub_rows(source: str) -> Iterator[tuple[object, str]]:
    name, _, rest = source.removeprefix("hub:").partition(":")
    split, _, config = rest.partition(":")
    if not name:
        raise UserError(f"{source} names no data set: hub:NAME[:SPLIT[:CONFIG]]")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{source} needs the hub extra: pip install '.[hub]'") from None
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as e:  # whatever the hub's client raises: no network, no such set, no such split
        instead = "a local file can be given instead (--env.train, --env.test; to lm-eval --metadata file=FILE)"
        raise UserError(f"cannot load {source} ({first_line(e)}); {instead}") from None
    yield from ((row, f"{source}, row {i}") for i, row in enumerate(rows))


def whole_number(row: dict, key: str, place: str, below: int) -> int:
    """A field that must be an index below `below`."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise UserError(f"{place}: field {key!r} must be a whole number below {below}, got {value!r:.40}")
    return value
