"""CoT2 (arXiv:2505.23648): a latent is the mean embedding under a distribution over tokens that is taught."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import one_of
from latent.methods.config import SequenceConfig, check_supervised


@dataclass(frozen=True)
class CoT2(SequenceConfig):
    """CoT2 (arXiv:2505.23648): mixtures of tokens, taught where a search may stand after each step."""

    name: ClassVar[str] = "cot2"
    recipe: ClassVar = {"method.n_latent": 3, "train.steps": 3000, "train.batch": 128}
    feedback: Literal["hidden", "norm", "project", "soft"] = "soft"
    """What is fed back: the mean input embedding under the next-token distribution; a mixture is nothing else."""
    told: Literal["frontier", "answer"] = "frontier"
    """What it is taught: the distribution over where a search may stand after each step, and the answer; or the answer
    alone."""
    step_weight: float = 1.0
    """Weight of the loss of the latents, summed over them."""
    teacher: bool = True
    """Feed back in training the mixture that a latent should be ("hard teacher"), instead of the one that it is."""
    supervise_every: int = 1
    """Teach every n-th latent only: n, 2n, ... The others are their own in training, too, which takes `teacher` off."""

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "told", ("frontier", "answer"))
        if self.feedback != "soft":
            raise UserError(f"method.feedback of cot2 is soft, got {self.feedback} (sim has the others)")
        if not self.step_weight >= 0:
            raise UserError(f"method.step_weight must be at least 0, got {self.step_weight}")
        check_supervised(self)
        if self.supervise_every > 1 and self.teacher:
            raise UserError(
                f"method.supervise_every {self.supervise_every} needs method.teacher off: a teacher feeds what each "
                "latent should be, also those that are not taught"
            )

    @property
    def learns_from(self):
        taught = self.step_weight or self.teacher  # a teacher feeds what latents should be
        return super().learns_from if taught else "answer"

    def method_class(self):
        from latent.methods.cot2.method import CoT2Method

        return CoT2Method
