"""PCCoT (arXiv:2506.18582): CODI whose latents are refreshed all together, a few times, and not one by one."""

from dataclasses import dataclass
from typing import ClassVar

from kernels.errors import UserError
from latent.config import at_least
from latent.methods.codi import Codi
from latent.policies import Deterministic


@dataclass(frozen=True)
class Pccot(Codi):
    """PCCoT (arXiv:2506.18582): CODI's training, the latents computed in parallel by Jacobi iteration."""

    name: ClassVar[str] = "pccot"
    iterations: int = 3
    """Times T that all latents are refreshed together; with as many as there are latents they are CODI's."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "iterations", 1)
        if self.policy != Deterministic():
            raise UserError(f"method.policy of {self.name} must be none: all its latents are refreshed together")

    def method_class(self):
        from latent.methods.pccot.method import PccotMethod

        return PccotMethod
