"""What a latent policy does."""

from typing import ClassVar

from torch import Tensor, nn
from torch.distributions import Distribution

from kernels.errors import unwritten
from latent.thought import Chooser, Prompt


class Policy(nn.Module):
    """(what the method would feed back (B, D), the state that it comes from (B, D)) -> a distribution over choices.

    A choice is what is fed back, (B, D), unless `fed` makes that of it. Log-probabilities are one a row. A chooser that
    is not `random` feeds back what the method would, and asks no policy. `around`: whether choices lie around that;
    where they take its place instead it is not computed, and a control, which feeds back something else, has no such
    policy.
    """

    around: ClassVar[bool] = True

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Distribution:
        raise unwritten(self, "forward")

    def greedy(self, choose: Chooser, prompt: Prompt, k: int) -> Chooser:
        """The chooser of the k thoughts before greedy answers: `choose`, which takes modes, or one that draws them."""
        return choose

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        """What is fed back (B, D) where `value_B` was chosen from the state `h_BD`."""
        return value_B
