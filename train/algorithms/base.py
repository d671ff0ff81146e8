"""What an algorithm of RL decides: what each decision is credited with, and the loss. Both are pure functions.

The loop, the rollouts and the engine never change for a new one. No torch is imported here, so that `--help` answers
at once; tensors come as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kernels.errors import unwritten

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latent.methods.terms import Mean
    from latent.thought import Decision
    from train.losses import Logged


@dataclass(frozen=True)
class Algorithm:
    """An algorithm and its choices. `name` is what the command line calls it.

    `least_group`: fewest rollouts a prompt. `terms`: how many terms `loss` returns.
    """

    name: ClassVar[str]
    least_group: ClassVar[int] = 2
    terms: ClassVar[int] = 1

    def critic(self, width: int) -> nn.Module | None:
        """What reads off a hidden state (..., D) what reward is to be expected (..., 1); None where nothing does."""
        return None

    def outcome(self, reward_PG: Tensor) -> Tensor:
        """What the rollouts (P, G) of all prompts of an update are worth, those of every process, on the CPU."""
        raise unwritten(self, "outcome")

    def signal(self, reward_PG: Tensor) -> bool:
        """Whether anything can be learned from these rewards: here, whether those of any group differ."""
        return bool((reward_PG.max(1).values > reward_PG.min(1).values).any())

    def credit(self, outcome_B: Tensor, old: list[Decision]) -> list[Tensor]:
        """The advantage of every decision (B, T), of each kind; here the rollout's outcome for all of them (B, 1)."""
        return [outcome_B[:, None] for _ in old]

    def counts(self, decisions: list[Decision]) -> list[Tensor]:
        """What each term of `loss` is a mean over, known before it is computed: here the decisions made.

        Micro-batches and processes divide their share of a term by the sum of these counts.
        """
        from train.losses import counted

        return [counted(decisions, "decisions")] * self.terms

    def loss(
        self, now: list[Decision], old: list[Decision], outcome_B: Tensor, clip: tuple[float, float], entropy: float
    ) -> tuple[list[Mean], dict[str, Logged]]:
        """The terms of the loss, and what to log. `now` carries gradient, `old` is of the policy that chose."""
        from train.losses import policy_loss

        policy, logged = policy_loss(now, old, self.credit(outcome_B, old), clip, entropy)
        return [policy], logged
