"""Soft Thinking (arXiv:2505.15778) and Latent-SFT (arXiv:2510.15522): latents are mixtures of token embeddings."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import at_least
from latent.methods.config import SequenceConfig


@dataclass(frozen=True)
class Soft(SequenceConfig):
    """Soft Thinking (arXiv:2505.15778): mixtures of likely tokens; or trained (arXiv:2510.15522)."""

    name: ClassVar[str] = "soft"
    recipe: ClassVar = {"method.n_latent": 32, "train.steps": 1200}
    feedback: Literal["soft"] = "soft"
    """What is fed back: the mean input embedding of the likeliest tokens, always."""
    top_k: int = 10
    """Tokens that are mixed, by their probabilities made to sum to 1; 0 = all."""
    temperature: float = 1.0
    """Temperature of the probabilities that tokens are mixed by."""
    label_weight: float = 1.0
    """Weight of the divergence of each latent's distribution from its part of the chain."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "top_k", 0)
        if self.feedback != "soft":
            raise UserError(f"method.feedback of soft must be soft, got {self.feedback!r}")
        if not self.temperature > 0:
            raise UserError(f"method.temperature must be > 0, got {self.temperature}")
        if not self.label_weight >= 0:
            raise UserError(f"method.label_weight must be at least 0, got {self.label_weight}")

    def method_class(self):
        from latent.methods.soft.method import SoftMethod

        return SoftMethod
