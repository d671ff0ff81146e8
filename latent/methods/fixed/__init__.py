"""Control: as many passes in sequence as there are thoughts, one constant embedding fed back in each."""

from dataclasses import dataclass, field
from typing import ClassVar

from latent.methods.coconut import Coconut
from latent.methods.config import ControlConfig, SequenceConfig
from latent.methods.sim import Sim


@dataclass(frozen=True)
class FixedEmbedding(ControlConfig):
    """Control: as many passes in sequence as a method has thoughts, one constant fed back."""

    name: ClassVar[str] = "fixed"
    recipe: ClassVar = {"method.of": Sim(stride=4), "train.steps": 1600}
    of: SequenceConfig = field(default_factory=Coconut)
    """The method whose training and number of latents it has; its `feedback` does not apply."""

    def method_class(self):
        from latent.methods.control import controlled
        from latent.methods.fixed.method import Fixed

        return controlled(Fixed, self.of.method_class())
