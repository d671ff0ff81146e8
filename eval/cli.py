"""What our command lines share: flags from dataclasses by tyro, and every complaint in one line."""

import contextlib
import io
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse
from urllib.request import getproxies

import tyro

T = TypeVar("T")


def parse(cls: type[T], args: list[str] | None, prog: str, description: str, **settings) -> T:
    """An instance of a dataclass from flags. Raises ValueError for a wrong one; --help prints and exits."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, args=args, prog=prog, description=description, **settings)
    except SystemExit as e:
        if e.code:
            raise ValueError(in_one_line(complaint.getvalue())) from None
        raise


def in_one_line(box: str) -> str:
    """The parser's complaint without its frame, up to its first rule."""
    said = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯ \n")
        if set(text) <= {"─"} and said:
            break
        said.append(text)
    return " ".join(said).removeprefix("Error parsing ")


def guarded(body: Callable[[], int | None]) -> int:
    """The exit code of a command: 0, or 2 for what a user can mend, in one line; 130 where it was interrupted."""
    try:
        return body() or 0
    except (ValueError, RuntimeError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def program(module: str, script: str) -> str:
    """How this command was called: by its installed name, or as a module."""
    return script if Path(sys.argv[0]).stem == script else f"python -m {module}"


def at_least(options, **least: int) -> None:
    """Raise ValueError for an option below its least value."""
    for name, n in least.items():
        if getattr(options, name) < n:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {n}, got {getattr(options, name)}")


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as text, whole at any width of the terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]


def do_not_wait_for_the_hub(timeout: float = 2.0) -> None:
    """Where the Hugging Face hub does not answer, say so to its clients, which would try for half a minute.

    Behind a proxy it is not tried, for the proxy would have to be asked.
    """
    if os.environ.get("HF_HUB_OFFLINE") or getproxies():
        return
    url = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    answers = []

    def knock() -> None:  # in a thread: looking up a name has no timeout of its own
        try:
            socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout).close()
            answers.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answers:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
