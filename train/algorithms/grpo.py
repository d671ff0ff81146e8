"""Group-relative advantages: a rollout is judged beside the others of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kernels.errors import UserError
from train.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DrGRPO(Algorithm):
    """Dr. GRPO (arXiv:2503.20783, sec. 3.2): r - mean, without the division that favours groups of little spread."""

    name: ClassVar[str] = "dr-grpo"

    def outcome(self, reward_PG: Tensor) -> Tensor:
        centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
        flat_P = reward_PG.max(1).values == reward_PG.min(1).values
        return centred_PG.masked_fill(flat_P[:, None], 0.0)  # rounding is no signal


@dataclass(frozen=True)
class GRPO(DrGRPO):
    """GRPO (arXiv:2402.03300, sec. 4.1.2): (r - mean) / max(std, floor), the paper's floor only against zero.

    A larger floor is between GRPO and Dr. GRPO: where all rollouts are right and differ in cost alone, the cost then
    counts for about what it is and not for a whole standard deviation.
    """

    name: ClassVar[str] = "grpo"
    std_floor: float = 1e-6
    """Smallest standard deviation that a group's rewards are divided by."""

    def __post_init__(self):
        if not self.std_floor > 0:
            raise UserError(f"train.algorithm.std_floor must be > 0, got {self.std_floor}")

    def outcome(self, reward_PG: Tensor) -> Tensor:
        return super().outcome(reward_PG) / reward_PG.std(1, keepdim=True, correction=0).clamp(min=self.std_floor)
