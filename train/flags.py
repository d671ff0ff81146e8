"""The main job's command line: a preset or a file, which classes its parts are of, and every field of them by flag.

    python -m train.latent [PRESET | --config FILE:NAME] [--method NAME] [--env NAME] [--train.lr 1e-3] ...

Fields come from the dataclasses by tyro. Where a part may be of several classes, a flag of the part's own name chooses:
`--method coconut`, `--method.halt learned`, `--arms.latent.train rlvr`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from eval.cli import at_least, check_flags, program
from eval.cli import parse as parse_flags
from eval.environments import ENVIRONMENTS, EnvConfig
from kernels.errors import UserError
from latent import plugins
from latent.config import HALTS
from latent.methods import METHODS, ControlConfig, MethodConfig, SequenceConfig
from latent.plain import changed
from latent.policies import POLICIES, PolicyConfig
from train.algorithms import ALGORITHMS, Algorithm
from train.config import RLVR, SFT, Experiment, Run
from train.presets import PRESETS

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
    """How to run, which changes nothing of what is run."""

    out: Path = Path("runs")
    """Folder of the run records."""
    jobs: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Arms trained at a time."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; auto is a GPU if there is one."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """What runs the fused steps: auto is Triton on a GPU, torch elsewhere. As LATENT_KERNELS in the environment."""
    latency: bool = True
    """Measure the latency of an answer when all arms are done."""
    estimate: bool = False
    """Only say what it would cost: FLOPs, memory, time here and on a GPU, and what the paper reports."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Also log to this tracker, which must be installed; under OUT/trackers or its own login."""
    push_to_hub: str | None = None
    """Upload the finished models to the Hugging Face hub under this name, an arm's after a hyphen. Needs a login."""


def parse(args: list[str]) -> tuple[str, Run | Experiment, Options]:
    """What to run by name, its config with the flags applied, and the options. --help prints and exits.

    Raises UserError for what is not there and what a class refuses.
    """
    check_flags(args)
    name, config, args = _asked(args)
    if args and args[0].startswith(("--tyro-print-completion", "--tyro-write-completion")):
        named = [Annotated[_command(p()), tyro.conf.subcommand(n, default=_command(p())())] for n, p in PRESETS.items()]
        any_of: Any = Union[tuple(named)]  # noqa: UP007
        tyro.cli(any_of, args=args, prog=_called(), config=PLAIN)  # prints it, and exits
    config, args = choose(config, args)
    if "--help" in args or "-h" in args:
        _help(name, config, args)
    command: Any = parse_flags(_command(config), args, prog=_called(name), description="", config=PLAIN)
    at_least(command.options, jobs=1)
    return name, command.config, command.options


def _asked(args: list[str]) -> tuple[str, Run | Experiment, list[str]]:
    """The config that the flags start from, with its name, and the arguments that are left."""
    preset = args[0] if args and not args[0].startswith("-") else None
    rest = args[1:] if preset else args
    where, rest = _take(rest, "--config")
    if where is None:
        name = preset or "mnns"
        if name not in PRESETS:
            raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return name, PRESETS[name](), rest
    if preset:
        raise UserError(f"--config takes the place of the preset {preset!r}: leave one of them out")
    return *of_file(where), rest


def of_file(where: str) -> tuple[str, Run | Experiment]:
    """What FILE.py:NAME or MODULE:NAME is, a `Run`, an `Experiment`, or a function that returns one. Its name, too."""
    file, colon, name = where.rpartition(":")
    if not colon or not file or not name:
        raise UserError(f"--config must be FILE.py:NAME or MODULE:NAME, got {where!r}")
    module = plugins.load(file)
    if not hasattr(module, name):
        raise UserError(f"--config {where}: {file} has no {name!r}")
    found = getattr(module, name)
    made = found() if callable(found) else found
    if not isinstance(made, Run | Experiment):
        raise UserError(
            f"--config {where}: it must be a Run, an Experiment or a function that returns one, got {made!r:.60}"
        )
    return name, made


def parts(config, path: str = "") -> Iterator[tuple[str, Any, dict[str, type]]]:
    """The parts of a config that may be of several classes: path, what stands there, and the classes by name."""
    for table, base in TABLES:
        if path and isinstance(config, base):
            within = SequenceConfig if path.endswith(".of") else object  # of controls
            yield path, config, {name: cls for name, cls in table.items() if issubclass(cls, within)}
    items = config.items() if isinstance(config, dict) else []
    if is_dataclass(config):
        items = [(f.name, getattr(config, f.name)) for f in fields(config)]
    for name, value in items:
        if is_dataclass(value) or isinstance(value, dict):
            yield from parts(value, f"{path}.{name}".lstrip("."))


def choose(config: Run | Experiment, args: list[str]) -> tuple[Run | Experiment, list[str]]:
    """The config with the classes that flags choose for its parts, outer ones first; and the arguments left.

    A method keeps of the one before it what both have and was not at its default; a control becomes that of the method
    before it. Raises UserError for a class that is not there.
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
    before: Any = old.of if isinstance(old, ControlConfig) else old  # a control refuses what it is none of
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


def _command(made) -> type:
    """What tyro reads: a config and the options, of a class of their own."""
    named: Any = Annotated[type(made), tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    options: Any = Annotated[Options, tyro.conf.arg(name="")]
    members = [("config", named, field(default=made)), ("options", options, field(default=Options()))]
    return make_dataclass("Command", members, frozen=True)


def _called(name: str = "") -> str:
    called = program("train.latent", "latent-train")
    return called if called == "latent-train" else f"{called} {name}".strip()


def _help(name: str, config: Run | Experiment, args: list[str]) -> None:
    """One screen; of a group, its flags; of `all`, every flag. Exits."""
    groups = {f.name: getattr(config, f.name) for f in fields(config) if is_dataclass(getattr(config, f.name))}
    if isinstance(config, Experiment):
        groups |= {f"arms.{arm}": part for arm, part in config.arms.items()}
    after = [arg for arg in args if arg not in ("--help", "-h")]
    asked = after[0] if after and not after[0].startswith("-") else None
    if asked == "all":
        tyro.cli(_command(config), args=["--help"], prog=_called(name), description="", config=PLAIN)
    if asked in groups:
        named: Any = Annotated[type(groups[asked]), tyro.conf.arg(name=asked), tyro.conf.FlagConversionOff]
        group = make_dataclass("Group", [("part", named, field(default=groups[asked]))], frozen=True)
        tyro.cli(group, args=["--help"], prog=_called(name), description="", config=PLAIN)
    if asked is not None:
        raise UserError(f"--help {asked}: there are {', '.join(groups)} and all")
    about = PRESETS.get(name, config).__doc__
    assert about is not None  # a preset's, or a dataclass's, which always has one
    lines = [f"{name}: {about.splitlines()[0]}", "", "What it is made of, by name:"]
    shown: dict[str, dict[str, type]] = {}
    for path, _, table in parts(config):
        top, _, rest = path.partition(".")
        general = f"arms.ARM.{rest.partition('.')[2]}" if top == "arms" else path
        shown.setdefault(general, table)
    lines += [f"  --{path.replace('_', '-')} {{{','.join(table)}}}" for path, table in shown.items()]
    lines += ["", "Flags of one part: --help PART, of " + ", ".join(groups) + "; of all: --help all.", ""]
    lines += [f"Presets: {', '.join(PRESETS)}; or --config FILE.py:NAME, a Run or an Experiment of your own."]
    head = make_dataclass(
        "Head", [("options", Annotated[Options, tyro.conf.arg(name="")], field(default=Options()))], frozen=True
    )
    tyro.cli(head, args=["--help"], prog=_called(name), description="\n".join(lines), config=PLAIN)
