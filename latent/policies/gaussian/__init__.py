"""A Gaussian around what the method would feed back."""

from dataclasses import dataclass
from typing import ClassVar

from kernels.errors import UserError
from latent.policies.config import PolicyConfig


@dataclass(frozen=True)
class Gaussian(PolicyConfig):
    """A Gaussian around what the method would feed back, the same in all directions or of a learned width."""

    name: ClassVar[str] = "gaussian"
    std: float = 0.1
    """Standard deviation of each coordinate, in units of the fed-back vectors' root mean square; where it is learned,
    that before training."""
    learned: bool = False
    """Whether a linear head on the hidden state says the logarithm of the standard deviation, coordinate by
    coordinate."""

    def __post_init__(self):
        if not self.std > 0:
            raise UserError(f"method.policy.std must be > 0, got {self.std}")

    def build(self, backbone):
        from latent.policies.gaussian.policy import GaussianPolicy

        return GaussianPolicy(self, backbone.width)
