"""Group-relative advantages: a rollout is judged beside the others of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from kernels.errors import UserError
from train.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from latent.methods.terms import Mean
    from latent.thought import Decision
    from train.losses import Logged


@dataclass(frozen=True)
class DrGRPO(Algorithm):
    """Dr. GRPO (arXiv:2503.20783, sec. 3.2): r - mean, without the division that favours groups of little spread.

    Deviates: the loss is a mean over all decisions, stops and thoughts included, unless `over` says sums, where the
    paper divides by a constant; clipping is asymmetric at the defaults of `train`.
    """

    name: ClassVar[str] = "dr-grpo"
    over: Literal["decisions", "rollouts", "sums"] = "decisions"
    """What the loss is a mean over: all decisions alike (as DAPO's tokens), rollouts by the mean of their decisions
    (GRPO), or rollouts by the sum of their decisions (Dr. GRPO, with 1 for its constant)."""

    def outcome(self, reward_PG: Tensor) -> Tensor:
        centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
        flat_P = reward_PG.max(1).values == reward_PG.min(1).values
        return centred_PG.masked_fill(flat_P[:, None], 0.0)  # rounding is no signal

    def counts(self, decisions: list[Decision]) -> list[Tensor]:
        from train.losses import counted

        return [counted(decisions, self.over), *super().counts(decisions)[1:]]

    def loss(
        self, now: list[Decision], old: list[Decision], outcome_B: Tensor, clip: tuple[float, float], entropy: float
    ) -> tuple[list[Mean], dict[str, Logged]]:
        from train.losses import policy_loss

        policy, logged = policy_loss(now, old, self.credit(outcome_B, old), clip, entropy, self.over)
        return [policy], logged


@dataclass(frozen=True)
class GRPO(DrGRPO):
    """GRPO (arXiv:2402.03300, sec. 4.1.2): (r - mean) / max(std, floor), the paper's floor only against zero.

    Deviates: the loss is a mean over all decisions, stops and thoughts included, unless `over` says rollouts, as the
    paper's; clipping is asymmetric, and there is no KL, at the defaults of `train`.

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
