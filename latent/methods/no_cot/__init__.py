"""Control: the answer at once, no chain and no latents."""

from dataclasses import dataclass
from typing import ClassVar

from latent.methods.config import MethodConfig


@dataclass(frozen=True)
class NoCoT(MethodConfig):
    """Control: answer at once."""

    name: ClassVar[str] = "no-cot"

    def method_class(self):
        from latent.methods.no_cot.method import NoCoTMethod

        return NoCoTMethod

    @property
    def thinks(self):
        return False
