"""The code of a user's own that a run is made of: the classes in its config, and all that they refer to.

A run's id names classes and not what they do. Their code is kept beside its record, and a run is not taken for one of
other code, as it is not for one on other data. Of the file of such a class counts what the class needs: the configs and
other classes that stand in it, and comments, may change. Of files that are imported from there all counts but comments.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

OURS = {"kernels", "latent", "eval", "train", "paper"}


@dataclass(frozen=True)
class Sources:
    """The fingerprint of own code, None where there is none, and the files that it is in by names that differ.

    Of code that is in no file, as a notebook's, nothing can be read: no two fingerprints of it are the same.
    """

    digest: str | None
    files: dict[str, Path]


def of(config, calls: bool = True) -> Sources:
    """Those of a config, by the classes in it. `calls`: see `needed_for`."""
    code: dict[Path, str] = {}
    left: list[str] = []
    named = defaultdict(set)
    for cls in classes(config):
        named[cls.__module__].add(cls.__qualname__.partition(".")[0])
    for module, names in named.items():
        if (path := file_of(module)) is not None:
            needed = needed_for(names, path, calls)
            code[path] = text_of(path, needed)
            left += imported(needed, module, path)
    while left:
        module = left.pop()
        path = file_of(module)
        if path is not None and path not in code:
            whole = statements(path)
            code[path] = text_of(path, whole)
            left += imported(whole, module, path)
    if any(map(is_in_no_file, named)):
        return Sources(f"in no file {uuid4().hex}", {})
    if not code:
        return Sources(None, {})
    above = os.path.commonpath([path.parent for path in code])
    files = {str(path.relative_to(above)): path for path in sorted(code)}
    text = "\n".join(f"{name}:\n{code[path]}" for name, path in files.items())
    return Sources(blake2b(text.encode(), digest_size=8).hexdigest(), files)


def classes(config) -> Iterator[type]:
    """The classes of a config and of all configs in it."""
    if is_dataclass(config):
        yield type(config)
        for f in fields(config):
            yield from classes(getattr(config, f.name))


def file_of(module: str) -> Path | None:
    """The file of a module that is a user's own; None of ours, and of what is installed."""
    if module.partition(".")[0] in OURS or module in sys.builtin_module_names:
        return None
    origin = getattr(sys.modules.get(module), "__file__", None)
    if module not in sys.modules:
        try:
            found = importlib.util.find_spec(module)
        except Exception:  # it runs what is above the module, which may raise anything
            return None
        origin = found.origin if found is not None and found.has_location else None
    path = Path(origin).resolve() if origin else None
    if path is None or path.suffix != ".py" or not path.is_file():
        return None
    library = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    installed = {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, library))
    return None if installed else path


def is_in_no_file(module: str) -> bool:
    """Whether a module was typed in: a notebook, `python -c`, an interpreter."""
    return module == "__main__" and getattr(sys.modules[module], "__file__", None) is None


def statements(path: Path) -> list[ast.stmt]:
    """What stands at the top of a file; nothing where it is no Python any more."""
    try:
        return ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return []


def text_of(path: Path, some: Iterable[ast.stmt]) -> str:
    """Statements without comments; of a file that has none, its bytes."""
    return "\n".join(map(ast.unparse, some)) or repr(path.read_bytes())


def needed_for(names: set[str], path: Path, calls: bool = True) -> list[ast.stmt]:
    """The statements at the top of a file that names need, in order: those that bind them and what these refer to, and
    all that bind no name, and with `calls` those that call the user's own code, e.g. as a decorator: both may change
    anything."""
    every = statements(path)
    own_code = {name for node in every for name in ones_own(node)} if calls else set()
    binds = [set() if called(node) & own_code else bound(node) for node in every]
    kept = {i for i, own in enumerate(binds) if not own}
    left = {*names, *(name for i in kept for name in referred(every[i]))}
    seen: set[str] = set()
    while left:
        name = left.pop()
        seen.add(name)
        for i, own in enumerate(binds):
            if name in own and i not in kept:
                kept.add(i)
                left |= referred(every[i]) - seen
    return [every[i] for i in sorted(kept)]


def bound(node: ast.stmt) -> set[str]:
    """The names that a definition, an import or an assignment at the top of a file binds; none of anything else."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        return set() if "*" in names else names
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return names if all(isinstance(t, ast.Name | ast.Tuple) for t in targets) else set()
    return set()


def ones_own(node: ast.stmt) -> set[str]:
    """The names that a statement binds to functions and modules of the user's own. A capital letter begins a class,
    making one of which changes nothing."""
    if isinstance(node, ast.Import):
        names = {n.asname or n.name.partition(".")[0] for n in node.names if file_of(n.name) is not None}
    elif isinstance(node, ast.ImportFrom) and not node.level and file_of(node.module or "") is None:
        names = set()
    else:
        names = bound(node)
    return {name for name in names if not name[:1].isupper()}


def called(node: ast.stmt) -> set[str]:
    """The names of what a definition at the top of a file is decorated with, and of what makes the value of an
    assignment."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        calls = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
    else:
        value = getattr(node, "value", None)
        calls = [value.func] if isinstance(value, ast.Call) else []
    return {n.id for call in calls for n in ast.walk(call) if isinstance(n, ast.Name)}


def referred(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def imported(some: Iterable[ast.stmt], module: str, path: Path) -> list[str]:
    """The modules that statements import, wherever within them; of `from a import b` a, and a.b if that is one."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    out: list[str] = []
    for each in (n for node in some for n in ast.walk(node)):
        if isinstance(each, ast.Import):
            out += [alias.name for alias in each.names]
        elif isinstance(each, ast.ImportFrom):
            try:
                name = importlib.util.resolve_name("." * each.level + (each.module or ""), package or None)
            except (ImportError, ValueError):
                continue
            out += [name, *(f"{name}.{alias.name}" for alias in each.names if alias.name != "*")]
    parents = [".".join(name.split(".")[:i]) for name in out for i in range(1, name.count(".") + 1)]
    return [*out, *parents]
