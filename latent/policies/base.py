"""What a latent policy does."""

from typing import ClassVar

from torch import Tensor, nn
from torch.distributions import Distribution

from latent.thought import Prompt


class Policy(nn.Module):
    """(what the method would feed back (B, D), the state that it comes from (B, D)) -> a distribution over choices.

    A choice is what is fed back, (B, D), unless `fed` makes that of it. Log-probabilities are one a row. Greedy
    evaluation feeds back what the method would, unless the policy has `noise` for it. `around`: whether choices lie
    around that; where they take its place instead it is not computed, and a control, which feeds back something else,
    has no such policy.
    """

    around: ClassVar[bool] = True

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Distribution:
        raise NotImplementedError  # each policy's own

    def noise(self, prompt: Prompt, k: int) -> Tensor | None:
        """What greedy answers draw k thoughts of each prompt with, (B, k, ...), a function of the prompt alone.

        None where they ask no policy, as here.
        """
        return None

    def drawn(self, dist: Distribution, noise_B: Tensor) -> Tensor:
        """The choice that noise of one thought makes from a distribution over it."""
        raise NotImplementedError  # of those that have noise

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        """What is fed back (B, D) where `value_B` was chosen from the state `h_BD`."""
        return value_B
