"""Imported first by every command, for it says in one line what goes wrong before a command has begun: ^C amid slow
imports, and another package of the user's under one of our names.

Nothing is done where no command of ours was started, as in a notebook.
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
    """The package of ours that a program is of, by an installed name or as a module; None for a program of others."""
    path = Path(program)
    if path.stem.startswith("latent-"):
        return "train" if path.stem == "latent-train" else "eval"
    folder = path.resolve().parent
    return folder.name if folder.parent == HOME and folder.name in FLOORS else None


def end_quietly(signum=None, frame=None) -> None:
    """There is nothing to put in order yet, and an import that is interrupted may raise anything."""
    os.write(2, b"stopped\n")
    os._exit(130)


def shadowed(floor: str) -> str | None:
    """What to say where a name that a package of ours imports means something of the user's, None where none does."""
    for name in FLOORS[2 : FLOORS.index(floor) + 1]:  # `import latent` sees to the others
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
    """The command `latent-train`; like those below it is looked up by name, for imports run the other way."""
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


_floor = floor_of(sys.argv[0])
if _floor and threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_quietly)
    if said := shadowed(_floor):
        sys.exit(print(f"error: {said}", file=sys.stderr) or 2)
