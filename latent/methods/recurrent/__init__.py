"""Recurrent depth (Huginn, arXiv:2502.05171): one core of layers looped over the same positions."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from latent.config import Fixed, Halt, Told, at_least
from latent.methods.config import MethodConfig


@dataclass(frozen=True)
class Recurrent(MethodConfig):
    """Recurrent depth (Huginn, arXiv:2502.05171): prelude, core looped with the input injected, coda."""

    name: ClassVar[str] = "recurrent"
    recipe: ClassVar = {"train.steps": 2400, "judge.sweep": tuple(range(1, 17))}
    prelude: int = 1
    """Layers before the loop."""
    core: int = 1
    """Layers in the loop."""
    coda: int = 0
    """Layers after the loop."""
    n_recurrence: int = 8
    """Recurrences r when answering."""
    r_min: int = 4
    """Fewest recurrences in training, drawn uniformly ..."""
    r_max: int = 12
    """... up to this many."""
    answer_tokens: int = 4
    """Answer tokens, read in parallel off the last positions."""
    supervise: Literal["steps", "answer"] = "steps"
    """What recurrence i is trained on: the step it should have reached, or the answer alone."""
    halt: Halt = field(default_factory=Fixed)
    """When to stop the loop."""

    def __post_init__(self):
        for name in ("core", "n_recurrence", "r_min", "answer_tokens"):
            at_least(self, name, 1)
        for name in ("prelude", "coda"):
            at_least(self, name, 0)
        at_least(self, "r_max", self.r_min)

    sizes: ClassVar[tuple[str, ...]] = ("n_recurrence", "r_max")

    @property
    def told(self) -> Told:
        return "chain" if self.supervise == "steps" else "answer"

    def loops(self, steps=0):
        return steps or self.n_recurrence

    def trained_layers(self, layers):
        return max(layers, (self.r_min + self.r_max) // 2 * self.core)

    def method_class(self):
        from latent.methods.recurrent.method import RecurrentMethod

        return RecurrentMethod
