"""What our command lines share: flags from dataclasses by tyro, and every complaint in one line."""

import contextlib
import io
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse
from urllib.request import getproxies

import tyro

from kernels.errors import UserError, mendable
from latent.startup import end_quietly

T = TypeVar("T")


def parse(cls: type[T], args: list[str] | None, prog: str, description: str, **settings) -> T:
    """An instance of a dataclass from flags. Raises UserError for a wrong one, one that is given twice or without a
    value, and a number that is none; --help prints and exits."""
    check_flags(sys.argv[1:] if args is None else args)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            made = tyro.cli(cls, args=args, prog=prog, description=description, **settings)
    except SystemExit as e:
        if e.code:
            raise UserError(in_one_line(complaint.getvalue())) from None
        raise
    for f in fields(made):
        value = getattr(made, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{f.name.replace('_', '-')} must be finite, got {value}")
    return made


def check_flags(args: list[str]) -> None:
    """Raise UserError for a flag that is given twice, of which the parser would take the last, and an empty value."""
    seen = set()
    flag = "an argument"
    for arg in args:
        if arg.startswith("--"):
            flag, equals, value = arg.partition("=")
            *group, last = flag.replace("_", "-").removeprefix("--").split(".")
            name = ".".join([*group, last.removeprefix("no-")])
            if name in seen:
                raise UserError(f"{flag} is given twice")
            seen.add(name)
            if equals and not value.strip():
                raise UserError(f"{flag} has an empty value")
        elif not arg.strip():
            raise UserError(f"{flag} has an empty value")


def in_one_line(box: str) -> str:
    """The parser's complaint without its frame, up to its first rule."""
    said: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯ \n")
        if set(text) <= {"─"} and said:
            break
        said.append(text)
    return " ".join(said).removeprefix("Error parsing ")


def guarded(body: Callable[[], int | None]) -> int:
    """The exit code of a command: 0, or 2 for what a user can mend, in one line; 130 where it was interrupted.

    Any other exception is a bug and passes, for Python to show whole.

    Under a launcher one process speaks: the first with something to say, for what the others then meet follows from it.
    """
    interrupted = []

    def interrupt(signum, frame) -> None:
        interrupted.append(signum)
        raise KeyboardInterrupt

    before, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if heeds := main and callable(before):  # and is not told to ignore it, as in the background
        signal.signal(signal.SIGINT, interrupt)
    try:
        return body() or 0
    except KeyboardInterrupt as e:
        return getattr(e, "code", 130)
    except BrokenPipeError:  # who read our output, as `head` does, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as e:
        if interrupted:  # an import that ^C came amid makes another error of it
            return 130
        said = mendable(e)
        if not speaks_first():
            return 1 if said is None else 2
        if said is None:  # a bug: whole, so that it can be found
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2
    finally:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler if before is end_quietly else before)


def launched() -> tuple[int, int] | None:
    """This process's rank and how many there are, under a launcher of several; None elsewhere.

    Raises UserError for numbers that are none. A shell that has WORLD_SIZE alone, as on a cluster, is no launcher.
    """
    found = []
    for name in ("RANK", "WORLD_SIZE"):
        value = os.environ.get(name)
        if value is None:
            return None
        if not value.isdecimal():
            raise UserError(f"{name} must be a whole number, got {value!r}: it is set by launchers, unset it")
        found.append(int(value))
    return (found[0], found[1]) if found[1] > 1 else None


def speaks_first() -> bool:
    """Whether no process of this launch has complained before; True where that cannot be known."""
    try:
        if launched() is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return True
        from torch.distributed import TCPStore

        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.add(f"complaints of {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except Exception:  # no launcher's store, or one that has ended: then rather twice than never
        return True


def program(module: str, script: str) -> str:
    """How this command was called: by its installed name, or as a module."""
    return script if Path(sys.argv[0]).stem == script else f"python -m {module}"


MOST = 100_000  # problems that a command of ours looks at


def at_most(options, *names: str) -> None:
    """Raise UserError for a number of problems that would take days to draw."""
    for name in names:
        if getattr(options, name) > MOST:
            raise UserError(f"--{name.replace('_', '-')} must be at most {MOST}, got {getattr(options, name)}")


def at_least(options, **least: int) -> None:
    """Raise UserError for an option below its least value."""
    for name, n in least.items():
        if getattr(options, name) < n:
            raise UserError(f"--{name.replace('_', '-')} must be at least {n}, got {getattr(options, name)}")


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
