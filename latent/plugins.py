"""A user's own files, which register methods and environments: named by `--config` or LATENT_IMPORT.

LATENT_IMPORT holds paths of Python files or names of modules, separated as in PATH. Processes that we start inherit it,
so that they know what was registered. Nothing is ever imported because a checkpoint or a data set asks for it.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kernels.errors import UserError

VARIABLE = "LATENT_IMPORT"


def load_all() -> None:
    """Import what LATENT_IMPORT names; modules that are loaded already are not run again."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load(name)


def load(name: str) -> ModuleType:
    """Import a file or a module, and add it to LATENT_IMPORT for processes that are started from here on.

    A file becomes the module of its stem, and its folder comes last on sys.path. Raises UserError for a file that does
    not exist, for a file with the name of another module, and for whatever it raises itself.
    """
    path = Path(name).resolve()
    known = os.environ.get(VARIABLE, "").split(os.pathsep)
    if path.suffix != ".py":
        with naming(name):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as e:
                if e.name is None or not f"{name}.".startswith(f"{e.name}."):
                    raise  # the missing module is one that it imports itself
                raise UserError(f"there is no module {name!r}; a file is named with its .py") from None
        where = name
    else:
        module, where = _of_file(path), str(path)
    if where not in known:
        os.environ[VARIABLE] = os.pathsep.join(filter(None, [*known, where]))
    return module


@contextmanager
def naming(module: str) -> Iterator[None]:
    """Within, an error of a user's own module or file is a UserError that names it, and the last line reached there."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == module]
        place = f"{module}, line {lines[-1]}" if lines else module
        said = next(iter(str(e).strip().splitlines()), "")
        raise UserError(f"{place}: {type(e).__name__}: {said}".rstrip(": ")) from e


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path:
        return loaded
    found = None if loaded is not None else importlib.util.find_spec(path.stem)
    if loaded is not None or (found is not None and Path(found.origin or "").resolve() != path):
        raise UserError(f"{path} has the name of another module, {path.stem!r}: rename it")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # every .py file has them
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        with naming(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
