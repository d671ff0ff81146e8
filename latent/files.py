"""Files that are whole or not there: text and JSON written at one stroke, lines added for good, JSON read with its file
named. No torch here: the command lines read before they need it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from kernels.errors import UserError

PART = ".part"  # how the name of what is not whole yet ends


def read_json(path: Path) -> dict:
    """An object from a file. Raises UserError for what cannot be read, is not JSON or is another thing."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:  # also what is not UTF-8, and what is nested without end
        raise UserError(f"{path} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold an object, got a {type(data).__name__}")
    return data


def read_lines(path: Path) -> list[dict]:
    """Objects from a file of JSON lines, none where there is no file. Raises UserError naming the line."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    rows = []
    for i, line in enumerate(text.split("\n")[:-1], 1):  # what a kill left of the last line does not end in one
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, line {i} is not JSON: {e}") from None
        if not isinstance(rows[-1], dict):
            raise UserError(f"{path}, line {i} must hold an object, got a {type(rows[-1]).__name__}")
    return rows


def field(data: dict, name: str, kind: type | tuple[type, ...], path: Path | str):
    """A field of what was read from `path`, by dotted name. Raises UserError where it is missing or another kind."""
    at: object = data
    for key in name.split("."):  # no key of ours has a dot
        if not isinstance(at, dict) or key not in at:
            raise UserError(f"{path} has no field {name!r}")
        at = at[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(at, kinds) or (isinstance(at, bool) and bool not in kinds):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise UserError(f"{path}: field {name!r} must be {wanted}, got {at!r:.40}")
    return at


def write_text(path: Path, text: str) -> None:
    """A text in place of whatever is there: a kill at any moment leaves the old one or the new one, whole."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The same of bytes. Raises OSError, which names the path."""
    part = path.with_name(path.name + PART)
    with named(part), part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, data: dict) -> None:
    """JSON in place of whatever is there."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def append(path: Path, rows: list[dict]) -> None:
    """JSON lines at a file's end, on disk when this returns; a kill may leave a part of them."""
    new = not path.exists()
    with named(path), path.open("ab") as f:
        f.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        f.flush()
        os.fsync(f.fileno())
    if new:
        sync_folder(path.parent)


def digest(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first `size` bytes."""
    hashed, left = sha256(), size
    with path.open("rb") as f:
        while chunk := f.read(1 << 20 if left is None else min(1 << 20, left)):
            hashed.update(chunk)
            left = None if left is None else left - len(chunk)
    return hashed.hexdigest()


def sync_folder(folder: Path) -> None:
    """Names in a folder survive a power cut from here on. Windows has no such call."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_folder(part: Path, place: Path) -> None:
    """Give a finished folder its name, in place of what has it now: what is there is never half of one."""
    for path in sorted(part.rglob("*")):
        if path.is_file():
            with named(path), path.open("rb") as f:
                os.fsync(f.fileno())
    sync_folder(part)
    drop_folder(place)
    part.replace(place)
    sync_folder(place.parent)


def drop_folder(place: Path) -> None:
    """Remove a folder: a kill leaves it whole, or under a name that nobody reads."""
    gone = place.with_name(f"{place.name}.gone{PART}")
    shutil.rmtree(gone, ignore_errors=True)
    if place.exists():
        place.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def drop_parts(folder: Path) -> None:
    """Remove what kills left behind in a folder."""
    for path in folder.glob(f"*{PART}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError from inside says which file it was about: a full disk does not say so by itself."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from None


def check_writable(path: Path, what: str, folder: bool = False) -> None:
    """Raise UserError where a file, or a folder with its files, could not be written. Nothing is left there."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if path.is_dir() and not folder:
        raise UserError(f"{what} {path} is a folder")
    try:
        if place == path and not folder:
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=place).close()
    except OSError as e:
        raise UserError(f"{what} {path} cannot be written: {place}: {e.strerror}") from None
