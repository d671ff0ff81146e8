"""SIM-CoT (arXiv:2509.20317): latents with a step decoder that exists only in training."""

from dataclasses import dataclass
from typing import ClassVar

from latent.config import at_least
from latent.methods.config import SequenceConfig


@dataclass(frozen=True)
class Sim(SequenceConfig):
    """SIM-CoT (arXiv:2509.20317): while training, a decoder must read step i off latent i."""

    name: ClassVar[str] = "sim"
    recipe: ClassVar = {"method.stride": 4, "train.steps": 1600}
    step_weight: float = 1.0
    """Weight of the step decoder's loss."""
    step_tokens: int = 4
    """Longest step that the train-only decoder can write, in tokens."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "step_tokens", 1)

    sizes: ClassVar[tuple[str, ...]] = ("n_latent", "step_tokens")

    def decoder_parameters(self, width):
        return self.step_tokens * width**2

    def method_class(self):
        from latent.methods.sim.method import SimMethod

        return SimMethod
