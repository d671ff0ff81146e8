"""Control: chains whose tokens go one by one (iCoT, arXiv:2405.14838), until the answer stands alone."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import at_least
from latent.methods.config import MethodConfig


@dataclass(frozen=True)
class ICoT(MethodConfig):
    """iCoT (arXiv:2405.14838): in training a chain loses one token after another; none takes its place."""

    name: ClassVar[str] = "icot"
    recipe: ClassVar = {"train.steps": 2400}
    whole: int = 0
    """Updates on whole chains, before the first token goes."""
    remove_every: int = 50
    """Updates after which one token more is gone; the paper has 8 tokens an epoch."""
    smoothing: float = 4.0
    """Rate lambda of the exponential law of tokens removed beyond the schedule, drawn for each row; 0 = none."""
    all_beyond: int = 0
    """Remove the rest of every chain once this many tokens are gone (39 in the paper on GSM8K); 0 = one by one to the
    end."""
    side: Literal["left", "right"] = "left"
    """From which end tokens go."""
    reset_optimizer: bool = True
    """Forget AdamW's moments whenever one token more is gone."""

    @property
    def told(self):
        return "chain"

    def __post_init__(self):
        at_least(self, "whole", 0)
        at_least(self, "remove_every", 1)
        at_least(self, "all_beyond", 0)
        if not self.smoothing >= 0:
            raise UserError(f"method.smoothing must be at least 0, got {self.smoothing}")

    def method_class(self):
        from latent.methods.icot.method import ICoTMethod

        return ICoTMethod

    @property
    def thinks(self):
        return False

    def small(self):
        """Every update removes a token."""
        return replace(self, whole=0, remove_every=1)
