"""Control: distilled on chains written in tokens."""

from dataclasses import dataclass
from typing import ClassVar

from latent.config import at_least
from latent.methods.config import MethodConfig


@dataclass(frozen=True)
class CoT(MethodConfig):
    """Control: write the teacher's chain in tokens, then the answer."""

    name: ClassVar[str] = "cot"
    every: int = 1
    """Write one step in so many, and not the last, which the answer repeats: a chain at the budget of latents."""

    def __post_init__(self):
        at_least(self, "every", 1)

    def method_class(self):
        from latent.methods.cot.method import CoTMethod

        return CoTMethod

    @property
    def thinks(self):
        return False

    @property
    def chain_share(self):
        return 1 / self.every
