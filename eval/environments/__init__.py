"""The environments, one file each. To add one: a file, and a line in the table; outside this package, `register`."""

from pathlib import Path
from typing import TypeVar

from eval.environments.base import EnvConfig, Environment, Problem, Verdict
from eval.environments.countdown import Countdown
from eval.environments.cups import Cups
from eval.environments.gsm8k import GSM8K
from eval.environments.math500 import Math500
from eval.environments.mnns import MNNS
from eval.environments.modular import Modular
from eval.environments.prontoqa import ProntoQA
from eval.environments.prosqa import ProsQA
from eval.environments.reach import Reach
from eval.environments.signs import Signs
from kernels.errors import UserError
from latent import plugins
from latent.files import field, read_json
from latent.plain import register_in, unpack

ENVIRONMENTS: dict[str, type[EnvConfig]] = {
    cls.name: cls for cls in (Cups, ProsQA, GSM8K, ProntoQA, Countdown, Math500, MNNS, Modular, Signs, Reach)
}
ConfigT = TypeVar("ConfigT", bound=type[EnvConfig])

__all__ = [
    "ENVIRONMENTS",
    "GSM8K",
    "MNNS",
    "Countdown",
    "Cups",
    "EnvConfig",
    "Environment",
    "Math500",
    "Modular",
    "Problem",
    "ProntoQA",
    "ProsQA",
    "Reach",
    "Signs",
    "Verdict",
    "build",
    "of_run",
    "register",
]


def register(cls: ConfigT) -> ConfigT:
    """Make an environment known by its config's class, as a decorator. Raises UserError for a name that another has."""
    return register_in(ENVIRONMENTS, cls, "environment")


def build(config: EnvConfig) -> Environment:
    """The environment of a config. Raises UserError for bad data, naming file, line and field."""
    return config.make()


def of_run(folder: str | Path) -> Environment | None:
    """The environment that a run was trained in, by its folder or its model's; None where that does not say.

    Raises UserError where this version does not have it, and where its data has changed since.
    """
    for place in (Path(folder), Path(folder).parent):
        path = place / "config.json"
        about = read_json(path) if path.exists() else {}
        if about.get("class") == "Run":
            plugins.load_all()
            config = unpack(field(about, "env", dict, path), ENVIRONMENTS.values(), f"{path}: env")
            env, record = build(config), place / "env.json"
            if record.exists() and read_json(record).get("data") not in (None, env.fingerprint()):
                raise UserError(f"{place} was trained on other data than is there now under the same name")
            return env
    return None
