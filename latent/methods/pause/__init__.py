"""Control: pause tokens (arXiv:2310.02226), learned tokens where a method has thoughts."""

from dataclasses import dataclass, field
from typing import ClassVar

from latent.methods.coconut import Coconut
from latent.methods.config import ControlConfig, SequenceConfig
from latent.methods.sim import Sim


@dataclass(frozen=True)
class Pause(ControlConfig):
    """Control: learned tokens where a method has thoughts, read in one pass (arXiv:2310.02226)."""

    name: ClassVar[str] = "pause"
    recipe: ClassVar = {"method.of": Sim(stride=4), "train.steps": 1600}
    of: SequenceConfig = field(default_factory=Coconut)
    """The method whose training and number of latents it has; its `feedback` does not apply."""

    def method_class(self):
        from latent.methods.control import controlled
        from latent.methods.pause.method import Paused

        return controlled(Paused, self.of.method_class())
