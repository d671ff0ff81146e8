"""What a latent policy does."""

from torch import Tensor, nn
from torch.distributions import Distribution


class Policy(nn.Module):
    """(what the method would feed back (B, D), the state that it comes from (B, D)) -> a distribution over (B, D).

    Its mode is what greedy evaluation feeds back. Log-probabilities are one a row.
    """

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Distribution:
        raise NotImplementedError  # each policy's own
