"""Files that survive kills and power cuts: atomic writes of text and JSON, durable appends, errors that name the file.

It imports no torch: command lines read files before they need it.
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

PART = ".part"  # suffix of files and folders that are not complete yet


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError for a file that cannot be read, or holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:  # also for text that is not UTF-8 or is nested too deep
        raise UserError(f"{path} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold an object, got a {type(data).__name__}")
    return data


def read_lines(path: Path) -> list[dict]:
    """The objects in a file of JSON lines; none where there is no file. Raises UserError naming a bad line."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    rows = []
    for i, line in enumerate(text.split("\n")[:-1], 1):  # a kill may leave a last line without a line break
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, line {i} is not JSON: {e}") from None
        if not isinstance(rows[-1], dict):
            raise UserError(f"{path}, line {i} must hold an object, got a {type(rows[-1]).__name__}")
    return rows


def field(data: dict, name: str, kind: type | tuple[type, ...], path: Path | str):
    """A field of `data`, by dotted name. Raises UserError, naming `path`, where it is missing or of another type."""
    value: object = data
    for key in name.split("."):  # none of our keys has a dot
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{path} has no field {name!r}")
        value = value[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise UserError(f"{path}: field {name!r} must be {wanted}, got {value!r:.40}")
    return value


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
    """Replace a file by JSON, atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def append(path: Path, rows: list[dict]) -> None:
    """Append JSON lines to a file. They are on disk when this returns; a kill may leave a part of them."""
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


def is_ours(folder: Path) -> bool:
    """Whether a folder is that of a run or a saved reasoner. Raises UserError for a config.json that is damaged."""
    config = folder / "config.json"
    about = read_json(config) if config.exists() else {}
    return about.get("class") == "Run" or about.get("model_type") == "latent"


def has_weights(folder: Path) -> bool:
    """Whether a model's weights lie in a folder, in one file or in shards."""
    return any(folder.glob("model*.safetensors"))


def sync_folder(folder: Path) -> None:
    """Write a folder's directory entries to disk, so that they survive a power cut. Does nothing on Windows."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_folder(part: Path, place: Path) -> None:
    """Rename a complete folder to `place`, replacing what is there. A kill never leaves half of a folder there."""
    for path in sorted(part.rglob("*")):
        if path.is_file():
            with named(path), path.open("rb") as f:
                os.fsync(f.fileno())
    sync_folder(part)
    drop_folder(place)
    part.replace(place)
    sync_folder(place.parent)


def drop_folder(place: Path) -> None:
    """Remove a folder. A kill leaves it complete, or under a name that nothing reads."""
    gone = place.with_name(f"{place.name}.gone{PART}")
    shutil.rmtree(gone, ignore_errors=True)
    if place.exists():
        place.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def drop_parts(folder: Path) -> None:
    """Remove incomplete files and folders that kills have left in a folder."""
    for path in folder.glob(f"*{PART}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError from inside that lacks one, such as that of a full disk."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from None


def check_writable(path: Path, what: str, folder: bool = False) -> None:
    """Raise UserError where a file, or with `folder` files in a folder, cannot be written. Nothing is left behind."""
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
