"""The environments, one file each; `build` makes one from its config."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

from eval.environments import countdown, cups, gsm8k, math500, prontoqa, prosqa
from eval.environments.base import Environment, Problem, Verdict
from eval.environments.countdown import Countdown
from eval.environments.cups import Cups
from eval.environments.gsm8k import GSM8K
from eval.environments.math500 import Math500
from eval.environments.prontoqa import ProntoQA
from eval.environments.prosqa import ProsQA
from kernels.errors import UserError
from latent.files import field, read_json

EnvConfig = Cups | ProsQA | GSM8K | ProntoQA | Countdown | Math500

__all__ = [
    "GSM8K",
    "Countdown",
    "Cups",
    "EnvConfig",
    "Environment",
    "Math500",
    "Problem",
    "ProntoQA",
    "ProsQA",
    "Verdict",
    "build",
    "of_run",
]


def of_run(folder: str | Path) -> Environment | None:
    """The environment that a run was trained in, by its folder or its model's; None where it is not known."""
    for place in (Path(folder), Path(folder).parent):
        path = place / "config.json"
        about = read_json(path) if path.exists() else {}
        if about.get("class") == "Run":
            said = dict(field(about, "env", dict, path))
            cls = {c.__name__: c for c in get_args(EnvConfig)}.get(str(said.pop("class", None)))
            if cls is not None:
                try:
                    config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items()})
                    for f in fields(config):
                        if f.default is not None and type(getattr(config, f.name)) is not type(f.default):
                            raise TypeError(f"env.{f.name} is {getattr(config, f.name)!r:.40}")
                    return build(config)
                except (TypeError, AttributeError) as e:
                    raise UserError(f"{path} does not fit this version: {e}") from None
    return None


def build(config: EnvConfig) -> Environment:
    """The environment of a config. Raises UserError for bad data, naming file, line and field."""
    match config:
        case Cups():
            return cups.CupsEnvironment(config)
        case ProsQA():
            return prosqa.build(config)
        case GSM8K():
            return gsm8k.GSM8KEnvironment(config)
        case ProntoQA():
            return prontoqa.build(config)
        case Countdown():
            return countdown.CountdownEnvironment(config)
        case Math500():
            return math500.Math500Environment(config)
    raise UserError(f"no environment of config {type(config).__name__}")
