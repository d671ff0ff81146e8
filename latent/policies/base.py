"""What a latent policy does."""

from torch import Tensor, nn
from torch.distributions import Distribution


class Policy(nn.Module):
    """(what the method would feed back (B, D), the state that it comes from (B, D)) -> a distribution over choices.

    A choice is what is fed back, (B, D), unless `fed` makes that of it. Log-probabilities are one a row. Greedy
    evaluation asks no policy: it feeds back what the method would.
    """

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Distribution:
        raise NotImplementedError  # each policy's own

    def fed(self, value_B: Tensor) -> Tensor:
        """What is fed back (B, D) where `value_B` was chosen."""
        return value_B
