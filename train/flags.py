"""The main job's command line: a preset or a file, the classes of its parts, and a flag for every field.

    python -m train.latent [PRESET | --config FILE:NAME] [--method NAME] [--env NAME] [--train.lr 1e-3] ...

tyro makes the flags from the dataclasses. Where a part may be of several classes, a flag with the part's name chooses
one: `--method coconut`, `--method.halt learned`, `--arms.latent.train rlvr`.
"""

import os
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from eval.environments import ENVIRONMENTS, EnvConfig
from kernels.errors import UserError
from latent import plugins
from latent.cli import at_least, check_flags, program, there_are
from latent.cli import parse as parse_flags
from latent.config import HALTS
from latent.methods import METHODS, ControlConfig, MethodConfig, SequenceConfig
from latent.plain import changed
from latent.policies import POLICIES, PolicyConfig
from train.algorithms import ALGORITHMS, Algorithm
from train.config import RLVR, SFT, Experiment, Run
from train.presets import GROUPS, PRESETS

TRAINING = {"sft": SFT, "rlvr": RLVR}
TABLES = (
    (METHODS, MethodConfig),
    (ENVIRONMENTS, EnvConfig),
    (HALTS, tuple(HALTS.values())),
    (POLICIES, PolicyConfig),
    (TRAINING, SFT),
    (ALGORITHMS, Algorithm),
)
PLAIN = (tyro.conf.AvoidSubcommands,)


@dataclass(frozen=True)
class Options:
    """How to run. None of these options changes a result."""

    out: Path = Path("runs")
    """Folder of the run records."""
    jobs: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Arms to train at a time."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; auto is a GPU if there is one."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Implementation of the fused steps: auto is Triton on a GPU, torch elsewhere. Sets LATENT_KERNELS."""
    latency: bool = True
    """Measure the latency of an answer after all arms have finished."""
    estimate: bool = False
    """Only print the cost: FLOPs, memory, time here and on a GPU; and the numbers that the paper reports."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Also log to this tracker, which must be installed; into OUT/trackers, or with the tracker's own login."""
    push_to_hub: str | None = None
    """Upload the finished models to the Hugging Face hub as NAME, or as NAME-ARM each. Needs a login."""


def parse(args: list[str]) -> tuple[str, Run | Experiment, Options]:
    """The name of what to run, its config with the flags applied, and the options. --help prints and exits.

    Raises UserError for unknown names and flags, and for values that a config's class refuses.
    """
    plugins.load_all()  # what a user's own files register may stand in any preset
    check_flags(args)
    alone = set(args) <= {"--help", "-h"}
    name, about, config, args = _named_config(args)
    if args and args[0].startswith(("--tyro-print-completion", "--tyro-write-completion")):
        forms = {n: _command(preset()) for n, preset in PRESETS.items()}
        named = [Annotated[form, tyro.conf.subcommand(n, default=form())] for n, form in forms.items()]
        any_of: Any = Union[tuple(named)]  # noqa: UP007
        tyro.cli(any_of, args=args, prog=_program(), config=PLAIN)  # prints the completion script and exits
    config, args = choose(config, args)
    if "--help" in args or "-h" in args:
        _help(name, config, args, about, alone)
    try:
        command: Any = parse_flags(_command(config), args, prog=_program(name), description="", config=PLAIN)
    except UserError as e:
        raise UserError(f"{e}{_of_others(config, args) if str(e).startswith('Unrecognized') else ''}") from None
    at_least(command.options, jobs=1)
    return name, command.config, command.options


def _of_others(config: Run | Experiment, args: list[str]) -> str:
    """Of the first flag that its part of a config does not have, whose it is; empty where it is no other class's."""
    by_path = {path.replace("_", "-"): (part, table) for path, part, table in parts(config)}
    for flag in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
        path, _, name = flag.removeprefix("--").rpartition(".")
        part, table = by_path.get(path.replace("_", "-"), (None, {}))
        name = name.replace("-", "_")
        owners = [key for key, cls in table.items() if name in {f.name for f in fields(cls)}]
        if owners and not hasattr(part, name):
            return f"; it is a flag of --{path} {' or '.join(owners[:3])}"
    return ""


def _named_config(args: list[str]) -> tuple[str, str, Run | Experiment, list[str]]:
    """The preset or the config of a file, after its name and a line about it, and the arguments that are left."""
    preset = args[0] if args and not args[0].startswith("-") else None
    rest = args[1:] if preset else args
    where, rest = _take(rest, "--config")
    if where is None:
        name = preset or "modular"
        if name not in PRESETS:
            raise UserError(f"no preset {name!r}; {there_are(name, PRESETS)}")
        return name, _about(PRESETS[name]), PRESETS[name](), rest
    if preset:
        raise UserError(f"--config takes the place of the preset {preset!r}: leave one of them out")
    name, config = of_file(where)
    return name, _about(config), config, rest


def of_file(where: str) -> tuple[str, Run | Experiment]:
    """The name and the `Run` or `Experiment` at FILE.py:NAME or MODULE:NAME, which may also be a function of one."""
    file, colon, name = where.rpartition(":")
    if not colon or not file or not name:
        raise UserError(f"--config must be FILE.py:NAME or MODULE:NAME, got {where!r}")
    module = plugins.load(file)
    if not hasattr(module, name):
        raise UserError(f"--config {where}: {file} has no {name!r}")
    value = getattr(module, name)
    with plugins.naming(module.__file__ or file):
        config = value() if callable(value) else value
    if not isinstance(config, Run | Experiment):
        raise UserError(
            f"--config {where}: it must be a Run, an Experiment or a function that returns one, got {config!r:.60}"
        )
    return name, config


def parts(config, path: str = "") -> Iterator[tuple[str, Any, dict[str, type]]]:
    """The parts of a config that may be of several classes: path, value, and the possible classes by name."""
    for table, base in TABLES:
        if path and isinstance(config, base):
            within = SequenceConfig if path.endswith(".of") else object  # what a control can be a control of
            yield path, config, {name: cls for name, cls in table.items() if issubclass(cls, within)}
    items = config.items() if isinstance(config, dict) else []
    if is_dataclass(config):
        items = [(f.name, getattr(config, f.name)) for f in fields(config)]
    for name, value in items:
        if is_dataclass(value) or isinstance(value, dict):
            yield from parts(value, f"{path}.{name}".lstrip("."))


def choose(config: Run | Experiment, args: list[str]) -> tuple[Run | Experiment, list[str]]:
    """The config with the classes that flags choose for its parts, outer parts first; and the arguments left.

    A new method takes over the fields that it shares with the old one and that were not at their default; a new control
    becomes a control of the old method. Raises UserError for an unknown name.
    """
    done: set[str] = set()
    while True:
        todo = [part for part in parts(config) if part[0] not in done]
        if not todo:
            return config, args
        path, old, table = min(todo, key=lambda part: part[0].count("."))
        done.add(path)
        name, args = _take(args, f"--{path.replace('_', '-')}")
        if name is None:
            continue
        if name not in table:
            raise UserError(f"--{path} must be one of {', '.join(table)}, got {name!r}")
        if type(old) is not table[name]:
            config = changed(config, {path: _in_place_of(old, table[name])})


def _in_place_of(old, cls: type[Any]):
    if not isinstance(old, MethodConfig):
        return cls()
    before: Any = old.underlying
    if issubclass(cls, ControlConfig):
        return cls(of=before)
    kept = {
        f.name: getattr(before, f.name)
        for f in fields(before)
        if getattr(before, f.name) != getattr(type(before)(), f.name)
    }
    return cls(**{f.name: kept[f.name] for f in fields(cls) if f.name in kept})


def _take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None where it is not given, and the other arguments."""
    for i, arg in enumerate(args):
        given, equals, value = arg.partition("=")
        if given.replace("_", "-") != flag:
            continue
        if equals:
            return value, args[:i] + args[i + 1 :]
        if i + 1 == len(args) or args[i + 1].startswith("--"):
            raise UserError(f"{flag} needs a value")
        return args[i + 1], args[:i] + args[i + 2 :]
    return None, args


def _form(**parts: tuple[str, Any]) -> type:
    """A dataclass for tyro, made of parts: a prefix of the names of their flags, and the default.

    A boolean of a config takes a value (`--model.bf16 True`), one of the options is a switch (`--estimate`).
    """
    members = []
    for name, (prefix, default) in parts.items():
        how = () if isinstance(default, Options) else (tyro.conf.FlagConversionOff,)
        members.append((name, Annotated[(type(default), tyro.conf.arg(name=prefix), *how)], field(default=default)))
    return make_dataclass("Command", members, frozen=True)


def _command(config: Run | Experiment) -> type:
    return _form(config=("", config), options=("", Options()))


def _program(name: str = "") -> str:
    command = program("train.latent", "latent-train")
    return command if command == "latent-train" else f"{command} {name}".strip()


def _help(name: str, config: Run | Experiment, args: list[str], about: str, alone: bool) -> None:
    """Print one screen, `about` the config, and where help is asked for `alone` the presets; or the flags of a part,
    `--help PART`; or all flags, `--help all`. Exits."""
    groups = {f.name: getattr(config, f.name) for f in fields(config) if is_dataclass(getattr(config, f.name))}
    if isinstance(config, Experiment):
        groups |= {f"arms.{arm}": part for arm, part in config.arms.items()}
    after = [arg for arg in args if arg not in ("--help", "-h")]
    asked = after[0] if after and not after[0].startswith("-") else None
    if asked == "all":
        tyro.cli(_command(config), args=["--help"], prog=_program(name), description="", config=PLAIN)
    if asked in groups:
        form = _form(part=(asked, groups[asked]))
        tyro.cli(form, args=["--help"], prog=_program(name), description="", config=PLAIN)
    if asked is not None:
        raise UserError(f"--help {asked}: there are {', '.join(groups)} and all")
    lines = _presets() if alone else []
    lines += [f"{name}: {about}", "", "Parts, and what each can be:"]
    shown: dict[str, dict[str, type]] = {}
    for path, _, table in parts(config):
        top, _, rest = path.partition(".")
        general = f"arms.ARM.{rest.partition('.')[2]}" if top == "arms" else path
        shown.setdefault(general, table)
    lines += [f"  --{path.replace('_', '-')} {{{','.join(table)}}}" for path, table in shown.items()]
    lines += ["", "Flags of one part: --help PART, of " + ", ".join(groups) + "; of all: --help all.", ""]
    lines += [] if alone else [f"All presets: {_program()} --help."]
    form = _form(options=("", Options()))
    prog = _program("[PRESET | --config FILE.py:NAME]" if alone else name)
    tyro.cli(form, args=["--help"], prog=prog, description="\n".join(lines), config=PLAIN)


def _presets() -> list[str]:
    """The presets by group, a line each, folded to the width of the terminal, where words fit into it."""
    column = 4 + max(map(len, PRESETS))
    width = max(column + 20, min(shutil.get_terminal_size((120, 24)).columns, 120))
    lines = ["Presets (PRESET --help shows the parts of one; --config: a Run or an Experiment of your own):"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for name, preset in group.items():
            first = f"  {name}".ljust(column)
            lines += textwrap.wrap(_about(preset), width, initial_indent=first, subsequent_indent=" " * column)
    return [*lines, ""]


def _about(documented) -> str:
    """The first line of the docstring of a preset or a config."""
    assert documented.__doc__  # they have one
    return documented.__doc__.splitlines()[0]
