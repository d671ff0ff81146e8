"""The algorithms of RL. To add one: a file, and a line in the table; outside this package, `register`."""

from typing import TypeVar

from latent.plain import register_in
from train.algorithms.base import Algorithm
from train.algorithms.expert import ExpertIteration
from train.algorithms.grpo import GRPO, DrGRPO
from train.algorithms.ppo import PPO

ALGORITHMS: dict[str, type[Algorithm]] = {cls.name: cls for cls in (GRPO, DrGRPO, PPO, ExpertIteration)}
ConfigT = TypeVar("ConfigT", bound=type[Algorithm])

__all__ = ["ALGORITHMS", "GRPO", "PPO", "Algorithm", "DrGRPO", "ExpertIteration", "register"]


def register(cls: ConfigT) -> ConfigT:
    """Make an algorithm known by its class, as a decorator. Raises UserError for a name that another has."""
    return register_in(ALGORITHMS, cls, "algorithm")
