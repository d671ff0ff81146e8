"""Coconut (arXiv:2412.06769): a curriculum turns a chain in tokens into latents."""

from dataclasses import dataclass, replace
from typing import ClassVar

from kernels.errors import UserError
from latent.config import at_least
from latent.methods.config import SequenceConfig


@dataclass(frozen=True)
class Coconut(SequenceConfig):
    """Coconut (arXiv:2412.06769): a curriculum replaces the chain's steps by latents, stage by stage."""

    name: ClassVar[str] = "coconut"
    recipe: ClassVar = {"method.stride": 4, "train.steps": 4000}
    latents_per_step: int = 1
    """Latents c that stand for one step."""
    advance_at: float = 0.9
    """Go to the next stage when the moving average of teacher-forced exact match exceeds this ..."""
    stage_steps: int = 0
    """... or after this many updates in a stage (0 = never by count)."""
    first_stage: int = 0
    """Stage to begin with: 1 for weights that have been trained on whole chains."""
    earlier: float = 0.2
    """Share of batches drawn from earlier stages."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "latents_per_step", 1)
        at_least(self, "stage_steps", 0)
        if not 0 <= self.first_stage <= self.n_latent // self.latents_per_step + 1:
            raise UserError(f"method.first_stage must be one of the stages, got {self.first_stage}")
        if self.n_latent % self.latents_per_step:
            raise UserError(
                f"method.n_latent must be a multiple of method.latents_per_step, "
                f"got {self.n_latent} and {self.latents_per_step}"
            )
        if not 0 <= self.earlier <= 1:
            raise UserError(f"method.earlier must be in [0, 1], got {self.earlier}")

    def method_class(self):
        from latent.methods.coconut.method import CoconutMethod

        return CoconutMethod

    def small(self):
        """Every update ends a stage, so that it comes to latents."""
        return replace(self, stage_steps=1)
