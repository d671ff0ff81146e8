"""PPO with a critic (Schulman et al. 2017, arXiv:1707.06347): each decision is judged by what it changed.

The critic reads the expected reward off the hidden state that a decision was made from, latent or token alike, and
shapes none of them: its input carries no gradient. Advantages are generalised estimates (GAE, arXiv:1506.02438, eq.
16) over the decisions of a rollout in the order in which they were made, whatever their kind:

    delta_t = gamma V_{t+1} - V_t, plus the reward at the last;   A_t = sum_l (gamma lambda)^l delta_{t+l}

and the critic learns A_t + V_t. Deviates: advantages are not whitened over the batch, and the critic's loss is not
clipped. In several turns the rewards of all turns are added up and come at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kernels.errors import UserError
from train.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latent.methods.terms import Mean
    from latent.thought import Decision
    from train.losses import Logged


@dataclass(frozen=True)
class PPO(Algorithm):
    """PPO (arXiv:1707.06347) with a linear critic on the hidden states, and GAE over the decisions in order."""

    name: ClassVar[str] = "ppo"
    least_group: ClassVar[int] = 1
    terms: ClassVar[int] = 2
    gamma: float = 1.0
    """Discount of the reward, a decision."""
    lam: float = 0.95
    """GAE's lambda: 1 credits every decision with the reward alone, 0 with the critic's next value."""
    critic_weight: float = 0.5
    """Weight of the critic's loss, half the squared error."""

    def __post_init__(self):
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"train.algorithm.{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.critic_weight > 0:
            raise UserError(f"train.algorithm.critic_weight must be > 0, got {self.critic_weight}")

    def critic(self, width: int) -> nn.Module:
        from torch import nn

        made = nn.Linear(width, 1)
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)
        return made

    def outcome(self, reward_PG: Tensor) -> Tensor:
        return reward_PG

    def signal(self, reward_PG: Tensor) -> bool:
        return bool(reward_PG.max() > reward_PG.min())

    def credit(self, outcome_B: Tensor, old: list[Decision]) -> list[Tensor]:
        return [adv_BT for adv_BT, _ in self.estimates(outcome_B, old)]

    def estimates(self, outcome_B: Tensor, old: list[Decision]) -> list[tuple[Tensor, Tensor]]:
        """Advantage and return (B, T) of the decisions of each kind; 0 where none was made."""
        made = [(d.turn, int(time), i, t) for i, d in enumerate(old) for t, time in enumerate(d.time_T)]
        adv, returns = ([d.logp_BT.new_zeros(d.logp_BT.shape) for d in old] for _ in range(2))
        next_B, carried_B = outcome_B, outcome_B.new_zeros(outcome_B.shape)  # after the last comes the reward itself
        gamma_B = outcome_B.new_ones(outcome_B.shape)  # undiscounted
        for *_, i, t in sorted(made, reverse=True):
            expected_BT = old[i].expected_BT
            assert expected_BT is not None  # there is a critic
            live_B, value_B = old[i].mask_BT[:, t], expected_BT[:, t].detach()
            adv_B = gamma_B * next_B - value_B + self.gamma * self.lam * carried_B
            adv[i][:, t] = adv_B.where(live_B, adv[i][:, t])
            returns[i][:, t] = (adv_B + value_B).where(live_B, returns[i][:, t])
            next_B, carried_B = value_B.where(live_B, next_B), adv_B.where(live_B, carried_B)
            gamma_B = gamma_B.masked_fill(live_B, self.gamma)
        return list(zip(adv, returns))

    def loss(
        self, now: list[Decision], old: list[Decision], outcome_B: Tensor, clip: tuple[float, float], entropy: float
    ) -> tuple[list[Mean], dict[str, Logged]]:
        from latent.methods.terms import Mean
        from train.losses import policy_loss

        estimates = self.estimates(outcome_B, old)
        policy, logged = policy_loss(now, old, [adv_BT for adv_BT, _ in estimates], clip, entropy)
        squares = []
        for new, was, (_, return_BT) in zip(now, old, estimates, strict=True):
            assert new.expected_BT is not None  # there is a critic
            squares.append((new.expected_BT - return_BT).square()[was.mask_BT].sum())
        squared = Mean(sum(squares[1:], squares[0]), policy.count)
        half = Mean(squared.total / 2, policy.count, weight=self.critic_weight)
        return [policy, half], logged | {"critic_error": squared}
