"""Configs as plain data: how they are written, what a run's id is made of, and how they are read. No torch here."""

import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, TypeVar

from kernels.errors import UserError

SCHEMA = 2  # of ids; it must change with any default, because an old id would then name another run
Change = Mapping[str, object]  # dotted path of a config field -> its value
HOW = {"how": True}  # metadata of a field that changes no result, and so is no part of the id


def plain(config) -> Any:
    """A config as plain data: every field, and the class name of every dataclass."""
    return _written(config, lambda f, value: True)


def identity(config) -> Any:
    """The same with only the fields that differ from their defaults: a new field with a default adds nothing."""
    return _written(config, lambda f, value: f.metadata != HOW and value != _default(f))


def id_of(identity: dict) -> str:
    """The id of a run with this identity: a hash of it and of the schema number."""
    text = json.dumps({"schema": SCHEMA, **identity}, sort_keys=True)
    return blake2b(text.encode(), digest_size=6).hexdigest()


def unlike(written: dict, config, name: str = "") -> str | None:
    """The first field in which a written config differs from `config`; None where none does.

    A field that did not exist when it was written must be at its default. Fields marked `HOW` are not compared.
    """
    if not isinstance(written, dict) or written.get("class") != type(config).__name__:
        return name or "class"
    for f in fields(config):
        value, path = getattr(config, f.name), f"{name}.{f.name}".lstrip(".")
        if f.metadata == HOW:
            continue
        if f.name not in written:
            if value != _default(f):
                return path
        elif is_dataclass(value):
            if odd := unlike(written[f.name], value, path):
                return odd
        elif written[f.name] != plain(value):
            return path
    unknown = written.keys() - {"class", *(f.name for f in fields(config))}
    return f"{name}.{min(unknown)}".lstrip(".") if unknown else None


def unpack(data, classes: Iterable[type], what: str = "config") -> Any:
    """The config that `plain` or `identity` has written, made of the given dataclasses.

    Raises UserError for an unknown class or field, a value of a wrong type, and a value that the class refuses.
    """
    known = {cls.__name__: cls for cls in classes}

    def made(data, what: str) -> Any:
        if isinstance(data, list):
            return tuple(made(v, what) for v in data)
        if not isinstance(data, dict):
            return data
        name = data.get("class")
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{what}: this version has no {name!r:.40} (a file that registers it: LATENT_IMPORT)")
        cls = known[name]
        given = {k: made(v, f"{what}.{k}") for k, v in data.items() if k != "class"}
        of_field, names = hints(cls), {f.name for f in fields(cls)}
        for key, value in given.items():
            if key not in names:
                raise UserError(f"{what}: {name} has no field {key!r:.40} in this version")
            if not fits(value, of_field[key]):
                raise UserError(f"{what}.{key} cannot be {value!r:.40}")
        try:
            return cls(**given)
        except TypeError as e:  # a field without a default is missing
            raise UserError(f"{what}: {name} does not fit this version: {e}") from None

    return made(data, what)


def changed(config, change: Change):
    """A config with fields replaced. Raises UserError for a path that does not exist."""
    for path, value in change.items():
        config = _put(config, path.split("."), value, path)
    return config


def _put(config, names: list[str], value, path: str):
    if not names:
        return value
    first, *rest = names
    if isinstance(config, dict):
        if first not in config:
            raise UserError(f"{path}: there is no {first!r}, there are {', '.join(config)}")
        return {**config, first: _put(config[first], rest, value, path)}
    known = [f.name for f in fields(config)] if is_dataclass(config) else []
    if first not in known:
        there = f", it has {', '.join(known)}" if known else ""
        raise UserError(f"{path}: {type(config).__name__} has no field {first!r}{there}")
    return replace(config, **{first: _put(getattr(config, first), rest, value, path)})


class Named(Protocol):
    """A config with a name for the command line."""

    name: ClassVar[str]


ClassT = TypeVar("ClassT", bound=type[Named])


def register_in(table: dict[str, Any], cls: ClassT, what: str) -> ClassT:
    """Add a config's class to a table, by its name. Raises UserError where another has its name or class name."""
    for other in table.values():
        alike = cls.__name__ == other.__name__ or cls.name == other.name
        if alike and other.__module__ != cls.__module__:  # a file that is run again makes its class again
            raise UserError(f"there is a {what} {other.name!r} of class {other.__name__} already")
    table[cls.name] = cls
    return cls


def _written(config, keep: Callable[[Any, Any], bool]) -> Any:
    """A config as plain data, with the fields for which `keep(field, value)` holds."""
    if is_dataclass(config):
        values = [(f, getattr(config, f.name)) for f in fields(config)]
        kept = {f.name: _written(value, keep) for f, value in values if keep(f, value)}
        return {"class": type(config).__name__} | kept
    if isinstance(config, dict):
        return {k: _written(v, keep) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [_written(v, keep) for v in config]
    return config


def _default(f) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


@cache
def hints(cls: type) -> dict[str, Any]:
    """The type of each field of a config's class."""
    return typing.get_type_hints(cls)


def check_types(config, name: str = "") -> None:
    """Raise UserError naming a field of a config, or of one within it, whose value is of another type than it says."""
    cls: type = type(config)
    for f in fields(config) if is_dataclass(config) else ():
        path, value, hint = f"{name}.{f.name}".lstrip("."), getattr(config, f.name), hints(cls)[f.name]
        if not fits(value, hint):
            named = hint.__name__ if isinstance(hint, type) else str(hint)
            raise UserError(f"{path} must be of type {named}, got {value!r:.40}")
        check_types(value, path)
    for key, value in config.items() if isinstance(config, dict) else ():
        check_types(value, f"{name}.{key}")


def fits(value, hint) -> bool:
    """Whether a value fits a field's type: numbers, strings, literals, tuples, dicts, unions and other configs."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if origin is tuple:
        inner = args[:1] * len(value) if isinstance(value, tuple) and args[1:] == (...,) else args
        return isinstance(value, tuple) and len(inner) == len(value) and all(map(fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, str, bool):
        return type(value) is hint
    return value is None if hint in (None, type(None)) else isinstance(value, hint)
