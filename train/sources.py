"""The code of a user's own that a run is made of: the classes in its config, and all that their modules need for them.

A run's id names classes and not what they do. Their code is kept beside its record, and a run is not taken for one of
other code, as it is not for one on other data. What does not matter for the classes may change: comments, other
classes, the configs that stand in the same file.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

OURS = {"kernels", "latent", "eval", "train", "paper"}


@dataclass(frozen=True)
class Sources:
    """The fingerprint of own code, None where there is none, and the files that it is in."""

    digest: str | None
    files: tuple[Path, ...]


def of(config) -> Sources:
    """Those of a config, by the classes in it."""
    left = [(cls.__module__, cls.__qualname__.partition(".")[0]) for cls in classes(config)]
    seen: dict[tuple[Path, str], str] = {}
    while left:
        module, name = left.pop()
        path = file_of(module)
        if path is None or (path, name) in seen:
            continue
        node = defined(path).get(name)
        if node is None:  # made at run time, or bound by a star: the whole file then
            seen[path, name] = repr(path.read_bytes())
            continue
        seen[path, name] = ast.unparse(node)
        left += [(module, other) for other in names_in(node) if other != name and other in defined(path)]
        left += imported(node)
    if not seen:
        return Sources(None, ())
    text = "\n".join(sorted(f"{path.name}: {name}:\n{code}" for (path, name), code in seen.items()))
    return Sources(blake2b(text.encode(), digest_size=8).hexdigest(), tuple(sorted({path for path, _ in seen})))


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
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        origin = found.origin if found is not None and found.has_location else None
    path = Path(origin).resolve() if origin else None
    if path is None or path.suffix != ".py" or not path.is_file():
        return None
    return None if any(path.is_relative_to(place) for place in installed()) else path


@cache
def installed() -> tuple[Path, ...]:
    """Where Python keeps what is no user's own."""
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def defined(path: Path) -> dict[str, ast.stmt]:
    """The statements at the top of a file, by the names that they bind."""
    return _defined(path, path.stat().st_mtime_ns)


@cache
def _defined(path: Path, changed: int) -> dict[str, ast.stmt]:
    out: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            out |= {alias.asname or alias.name.partition(".")[0]: node for alias in node.names}
        else:
            out |= {n.id: node for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return out


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """What imports within a statement bring: (module, name), of a whole module all of its names."""
    out: list[tuple[str, str]] = []
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom) and each.module and not each.level:
            out += [(each.module, alias.name) for alias in each.names]
        elif isinstance(each, ast.Import):
            for alias in each.names:
                path = file_of(alias.name)
                out += [(alias.name, name) for name in defined(path)] if path else []
    return out
