"""Expert iteration: learn the rollouts that the verifier accepts, as if a teacher had written them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from train.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from latent.methods.terms import Mean
    from latent.thought import Decision
    from train.losses import Logged


@dataclass(frozen=True)
class ExpertIteration(Algorithm):
    """Expert iteration (STaR, arXiv:2203.14465; ReST-EM, arXiv:2312.06585): supervised training on own right answers.

    A rollout counts 1 where it is accepted and 0 elsewhere: its decisions' log-probabilities are raised, none is
    lowered. At the default that is where it is right, unless its latents cost half a reward.
    Nothing is clipped: with several updates a batch each is supervised training, too. Deviates: a round is one batch's
    rollouts, and not a pass over the data; the mean is over all decisions, wrong ones' included, which AdamW's scale
    makes up for.
    """

    name: ClassVar[str] = "expert"
    least_group: ClassVar[int] = 1
    accept: float = 0.5
    """Reward, less the cost of latents, from which on a rollout is learned."""

    def outcome(self, reward_PG: Tensor) -> Tensor:
        return (reward_PG >= self.accept).to(reward_PG.dtype)

    def loss(
        self, now: list[Decision], old: list[Decision], outcome_B: Tensor, clip: tuple[float, float], entropy: float
    ) -> tuple[list[Mean], dict[str, Logged]]:
        fresh = [d.detached() for d in now]  # the ratio to which is 1, so that its gradient is that of log p
        return super().loss(now, fresh, outcome_B, clip, entropy)

    def signal(self, reward_PG: Tensor) -> bool:
        return bool((reward_PG >= self.accept).any())
