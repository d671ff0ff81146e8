"""HRPO (arXiv:2505.18454): sampled tokens, each through a gate with the mixture of what else could have been said."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.methods.config import SequenceConfig
from latent.policies import Deterministic


@dataclass(frozen=True)
class Hrpo(SequenceConfig):
    """HRPO (arXiv:2505.18454): sampled tokens, each gated with the mixture of all; learns by RL."""

    name: ClassVar[str] = "hrpo"
    # supervised, at a rate that is 600 times that of the authors' RL: the gates' multiples are for that
    recipe: ClassVar = {"method.n_latent": 32, "method.gate_lr": 1.0, "method.decay_lr": 1.0, "train.steps": 1200}
    feedback: Literal["soft"] = "soft"
    """What is gated with the sampled token's embedding: the mean embedding under what it is drawn from, always."""
    r_min: float = 0.99
    """Share of the token's embedding before training, drawn uniformly from this for each coordinate ..."""
    r_max: float = 0.999
    """... to this, where the gate's own sigmoid is 1; what it starts at, 1/2, gives the square root."""
    temperature: float = 1.0
    """Temperature that thinking tokens are drawn at, and of the mixture; the authors take .5."""
    gate_lr: float = 20.0
    """Learning rate of the gates, as a multiple; the authors take 1e-4 beside 5e-6."""
    decay_lr: float = 200.0
    """Learning rate of Lambda, as a multiple; the authors take 1e-3 beside 5e-6."""

    def __post_init__(self):
        super().__post_init__()
        if self.feedback != "soft":
            raise UserError(f"method.feedback of hrpo must be soft, got {self.feedback!r}")
        if self.policy != Deterministic():
            raise UserError(f"method.policy of hrpo must be none, for it draws tokens itself, got {self.policy.name}")
        if not 0 < self.r_min <= self.r_max < 1:
            raise UserError(f"method.r_min and r_max must be 0 < r_min <= r_max < 1, got {self.r_min} and {self.r_max}")
        if not self.temperature > 0:
            raise UserError(f"method.temperature must be > 0, got {self.temperature}")
        for name in ("gate_lr", "decay_lr"):
            if not getattr(self, name) >= 0:
                raise UserError(f"method.{name} must be at least 0, got {getattr(self, name)}")

    def method_class(self):
        from latent.methods.hrpo.method import HrpoMethod

        return HrpoMethod
