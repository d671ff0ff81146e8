"""The environments, one file each; `build` makes one from its config."""

from eval.environments import cups, gsm8k, prosqa
from eval.environments.base import Environment, Problem, Verdict
from eval.environments.cups import Cups
from eval.environments.gsm8k import GSM8K
from eval.environments.prosqa import ProsQA

EnvConfig = Cups | ProsQA | GSM8K

__all__ = ["GSM8K", "Cups", "EnvConfig", "Environment", "Problem", "ProsQA", "Verdict", "build"]


def build(config: EnvConfig) -> Environment:
    """The environment of a config. Raises ValueError for bad data, naming file, line and field."""
    match config:
        case Cups():
            return cups.CupsEnvironment(config)
        case ProsQA():
            return prosqa.build(config)
        case GSM8K():
            return gsm8k.GSM8KEnvironment(config)
    raise ValueError(f"no environment of config {type(config).__name__}")
