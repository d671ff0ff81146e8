"""CODI (arXiv:2502.21074): a model that thinks in latents learns from itself where it writes the chain."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.methods.config import SequenceConfig


@dataclass(frozen=True)
class Codi(SequenceConfig):
    """CODI (arXiv:2502.21074): the model writes chains, too, and latents must lead to the same states."""

    name: ClassVar[str] = "codi"
    recipe: ClassVar = {"method.stride": 4, "train.steps": 1600}
    feedback: Literal["hidden", "norm", "project", "soft"] = "project"
    """What is fed back, as in every method along the sequence; CODI's own is the MLP."""
    distill_weight: float = 1.0
    """Weight beta of the distillation: the paper has 1 for GPT-2 and 20 for Llama 3.2 1B."""
    teacher_weight: float = 1.0
    """Weight gamma of the cross-entropy of chain and answer in tokens."""
    keep_last: bool = False
    """Whether the teacher writes the chain's last step, too, which gives the answer away."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("distill_weight", "teacher_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"method.{name} must be at least 0, got {getattr(self, name)}")

    def method_class(self):
        from latent.methods.codi.method import CodiMethod

        return CodiMethod
