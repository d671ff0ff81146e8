"""Control: distilled on chains written in tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import at_least, one_of
from latent.methods.config import MethodConfig


@dataclass(frozen=True)
class CoT(MethodConfig):
    """Control: write the teacher's chain in tokens, then the answer."""

    name: ClassVar[str] = "cot"
    told: Literal["chain", "chains", "search"] = "chain"
    """Which chain it is taught: the oracle's; a best one, drawn anew each time among all that tie; or one that lists
    every branch of a search, for environments that have several branches."""
    every: int = 1
    """Write one step in so many, and not the last, which the answer repeats: a chain at the budget of latents."""

    def __post_init__(self):
        at_least(self, "every", 1)
        one_of(self, "told", ("chain", "chains", "search"))
        if self.told == "search" and self.every > 1:
            raise UserError("method.told search lists every step: method.every must be 1")

    def method_class(self):
        from latent.methods.cot.method import CoTMethod

        return CoTMethod

    @property
    def thinks(self):
        return False

    @property
    def chain_share(self):
        return 1 / self.every
