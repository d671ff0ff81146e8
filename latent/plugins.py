"""Files of a user's own, with methods and environments that they register: named by `--config` or LATENT_IMPORT.

LATENT_IMPORT holds paths of Python files or names of modules, separated as in PATH. It is what processes that we start
inherit, so that they know what was registered; nothing is ever imported because a checkpoint or a data set says so.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from kernels.errors import UserError

VARIABLE = "LATENT_IMPORT"


def load_all() -> None:
    """Import what LATENT_IMPORT names, once."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load(name)


def load(name: str) -> ModuleType:
    """Import a file or a module, and name it to processes that are started from here on.

    A file is the module of its stem, and its folder stands on the path behind all others. Raises UserError for a file
    that is not there, and for one whose name another module has.
    """
    path = Path(name).resolve()
    known = os.environ.get(VARIABLE, "").split(os.pathsep)
    if path.suffix != ".py":
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is None or not f"{name}.".startswith(f"{e.name}."):
                raise  # what it imports itself
            raise UserError(f"there is no module {name!r}; a file is named with its .py") from None
        where = name
    else:
        module, where = _of_file(path), str(path)
    if where not in known:
        os.environ[VARIABLE] = os.pathsep.join(filter(None, [*known, where]))
    return module


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    there = sys.modules.get(path.stem)
    if there is not None and Path(getattr(there, "__file__", None) or "").resolve() == path:
        return there
    if there is not None or (importlib.util.find_spec(path.stem) is not None and str(path.parent) not in sys.path):
        raise UserError(f"{path} has the name of another module, {path.stem!r}: rename it")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as every .py file has
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
