"""What our command lines share: flags from dataclasses by tyro, and errors in one line."""

import contextlib
import difflib
import io
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
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
    """An instance of a dataclass, from flags. --help prints and exits.

    Raises UserError for a flag that is unknown, given twice or without a value, and for a number that is not finite.
    """
    check_flags(sys.argv[1:] if args is None else args)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            options = tyro.cli(cls, args=args, prog=prog, description=description, **settings)
    except SystemExit as e:
        if e.code:
            raise UserError(in_one_line(message.getvalue())) from None
        raise
    for f in fields(options):
        value = getattr(options, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{f.name.replace('_', '-')} must be finite, got {value}")
    return options


def check_flags(args: list[str]) -> None:
    """Raise UserError for an empty value, and for a flag given twice: the parser would silently use the last."""
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
    """The parser's message without the box around it, up to the first rule in the box, and the flags that it takes to
    be meant where they are named alike."""
    lines: list[str] = []
    meant: list[str] = []
    rules = 0
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯|+ \n")  # the latter two where the output is ASCII
        if set(text) <= {"─", "-"}:
            rules += bool(lines)
        elif rules == 0:
            lines.append(text)
        elif text.startswith("--"):
            meant.append(text.split()[0])
    message = " ".join(lines).removeprefix("Error parsing ")
    wrong = [word.rstrip(",") for word in message.split() if word.startswith("--")]
    near = [flag for flag in meant if any(alike(flag, word) and flag != word.rstrip(":") for word in wrong)]
    return message + (f"; did you mean {' or '.join(near[:3])}?" if near else "")


def alike(flag: str, other: str) -> bool:
    """Whether the names of two flags are, the groups before them left out."""
    one, two = (x.removeprefix("--").rpartition(".")[2].replace("_", "-") for x in (flag, other))
    return difflib.SequenceMatcher(None, one, two).ratio() > 0.75


def guarded(body: Callable[[], int | None]) -> int:
    """The exit code of a command: 0; 2 after an error that a user can mend, printed in one line; 130 after ^C.

    Any other exception is a bug and passes, so that Python shows its traceback. Under a launcher only the process that
    fails first prints: the errors of the others follow from its error.
    """
    interrupted = []

    def interrupt(signum, frame) -> None:
        interrupted.append(signum)
        raise KeyboardInterrupt

    before, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if handles := main and callable(before):  # not where a job in the background was told to ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        return body() or 0
    except KeyboardInterrupt as e:
        return getattr(e, "code", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as e:
        if interrupted:  # ^C during an import surfaces as an error of another type
            return 130
        message = mendable(e)
        if not fails_first():
            return 1 if message is None else 2
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    finally:
        if handles:
            signal.signal(signal.SIGINT, signal.default_int_handler if before is end_quietly else before)


def launched() -> tuple[int, int] | None:
    """This process's rank and the number of processes, under a launcher of several; None elsewhere.

    Where only one of RANK and WORLD_SIZE is set, as in the shell of some clusters, there is no launcher. Raises
    UserError for values that are not numbers.
    """
    numbers = []
    for name in ("RANK", "WORLD_SIZE"):
        value = os.environ.get(name)
        if value is None:
            return None
        if not value.isdecimal():
            raise UserError(f"{name} must be a whole number, got {value!r}: it is set by launchers, unset it")
        numbers.append(int(value))
    return (numbers[0], numbers[1]) if numbers[1] > 1 else None


def fails_first() -> bool:
    """Whether no process of this launch has failed before; True where that cannot be known."""
    try:
        if launched() is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return True
        from torch.distributed import TCPStore

        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.add(f"complaints of {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except Exception:  # there is no store, or it has closed: an error that is printed twice is better than none
        return True


def program(module: str, script: str) -> str:
    """The name that this command was started by: its installed script, or its module."""
    return script if Path(sys.argv[0]).stem == script else f"python -m {module}"


def hint(name: str, known: Iterable[str]) -> str:
    """What a name may have been meant as, to end an error with; empty where none of those known is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def there_are(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is unknown: the known ones that are like it, or all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


MOST = 100_000  # problems; more would take days to draw


def at_most(options, *names: str) -> None:
    """Raise UserError for an option above `MOST`."""
    for name in names:
        if getattr(options, name) > MOST:
            raise UserError(f"--{name.replace('_', '-')} must be at most {MOST}, got {getattr(options, name)}")


def at_least(options, **least: int) -> None:
    """Raise UserError for an option below its least value."""
    for name, n in least.items():
        if getattr(options, name) < n:
            raise UserError(f"--{name.replace('_', '-')} must be at least {n}, got {getattr(options, name)}")


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as lines of text, never wrapped: the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]


def set_offline_if_the_hub_is_unreachable(timeout: float = 2.0) -> None:
    """Set HF_HUB_OFFLINE where the Hugging Face hub does not answer: its clients would retry for half a minute.

    Behind a proxy nothing is tried, because a direct connection tells nothing there.
    """
    if os.environ.get("HF_HUB_OFFLINE") or getproxies():
        return
    url = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    connected = []

    def connect() -> None:  # in a thread, because name resolution has no timeout of its own
        try:
            socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout).close()
            connected.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if not connected:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
