"""Imported first by every command: it handles in one line what can go wrong before the command's own code runs.

That is ^C during slow imports, and a package of the user's that hides one of ours. It does nothing where no command of
ours was started, as in a notebook.
"""

import os
import signal
import sys
import threading
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

FLOORS = ("kernels", "latent", "eval", "train", "paper")
HOME = Path(__file__).resolve().parent.parent


def floor_of(program: str) -> str | None:
    """The package of ours that a program belongs to, by its installed name or its module; None for other programs."""
    path = Path(program)
    if path.stem.startswith("latent-"):
        return {"latent-train": "train", "latent-convert": "latent"}.get(path.stem, "eval")
    folder = path.resolve().parent
    if path.name == "__main__.py":  # a folder that is a command: the floor is the one above
        folder = folder.parent
    return folder.name if folder.parent == HOME and folder.name in FLOORS else None


def end_quietly(signum=None, frame=None) -> None:
    """Exit at once: nothing needs to be saved yet, and an interrupted import may raise any error."""
    os.write(2, b"stopped\n")
    os._exit(130)


def shadowed(floor: str) -> str | None:
    """An error message where the user's files hide a package that `floor` imports; None where none is hidden."""
    for name in FLOORS[2 : FLOORS.index(floor) + 1]:  # `import latent` handles the others
        spec = PathFinder.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        ours = HOME / name
        before = [Path(place).resolve() for place in places]
        what = spec.origin if spec else None
        if ours in before:  # folders of one name without __init__.py are one package, the first on the path first
            before = before[: before.index(ours)]
            what = next((str(p) for other in before for p in other.glob("*.py") if (ours / p.name).exists()), None)
            if what is None:
                continue
        return f"{what} hides the package {name!r} of latent-reasoning: rename it, or start from another folder"
    return None


def train() -> int:
    """The command `latent-train`. This and those below import by name, because imports must run downwards."""
    return import_module("train.latent").main()


def evaluate() -> int:
    """The command `latent-eval`."""
    return import_module("eval.harness").main()


def runs() -> int:
    """The command `latent-runs`."""
    return import_module("eval.runs").main()


def chat() -> int:
    """The command `latent-chat`."""
    return import_module("eval.chat").main()


def diagnose() -> int:
    """The command `latent-diagnose`."""
    return import_module("eval.diagnose").main()


def view() -> int:
    """The command `latent-view`."""
    return import_module("eval.view").main()


def convert() -> int:
    """The command `latent-convert`."""
    return import_module("latent.convert.__main__").main()


_floor = floor_of(sys.argv[0])
if _floor and threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_quietly)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter is shown its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if message := shadowed(_floor):
        sys.exit(print(f"error: {message}", file=sys.stderr) or 2)
