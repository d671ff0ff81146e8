"""What the config of every method says of itself. No torch here, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from kernels.errors import UserError, unwritten
from latent.config import Fixed, Halt, Told, at_least
from latent.policies import Deterministic, PolicyConfig

if TYPE_CHECKING:
    from latent.methods.base import Method
    from latent.methods.sequence import AlongSequence


@dataclass(frozen=True)
class MethodConfig:
    """How a model thinks. A subclass is a method: its fields are the method's choices, its docstring says what it is.

    `name` is what the command line calls it. The rest has to be said where it is not as here.
    """

    name: ClassVar[str]
    recipe: ClassVar[Mapping[str, object]] = {}
    """What the method's own preset changes, by dotted path: of the method itself, of training, of the judge."""

    def method_class(self) -> type[Method]:
        """The class that thinks, imported only here, for it needs torch."""
        raise unwritten(self, "method_class")

    @property
    def latents(self) -> int:
        """Positions that thoughts take, at most."""
        return 0

    sizes: ClassVar[tuple[str, ...]] = ()
    """Fields that say how large it is, for a complaint to name."""

    def decoder_parameters(self, width: int) -> int:
        """Parameters, at least, of what it has beside the backbone and its fields make large."""
        return 0

    def loops(self, steps: int = 0) -> int:
        """Times that the layers run over all positions in one answer in so many latent steps, 0 = as it is set; 0 where
        they run over new positions alone."""
        return 0

    def trained_layers(self, layers: int) -> int:
        """Layers that a position goes through in training, on average, of a backbone with so many."""
        return layers

    @property
    def thinks(self) -> bool:
        """Whether anything happens between prompt and text that can be taken away."""
        return True

    @property
    def told(self) -> Told:
        """What supervised training tells it of a problem."""
        return "answer"

    @property
    def learns_from(self) -> Told:
        """What of that its loss takes: the answer alone where the weight of the rest is 0."""
        return self.told

    @property
    def chain_share(self) -> float:
        """Share of a chain's steps that the model writes in tokens by design."""
        return 0.0

    @property
    def underlying(self) -> MethodConfig:
        """The method that a control is of; any other is its own."""
        return self

    def small(self) -> Self:
        """The same cut down to a few updates, for a smoke run."""
        return self


@dataclass(frozen=True)
class SequenceConfig(MethodConfig):
    """What the methods that loop along the sequence share."""

    n_latent: int = 8
    """Latents k; 0 is no-CoT."""
    stride: int = 1
    """Positions a latent stands for: latent i sits where the last token of step i would have been, and the text after
    the thoughts begins at stride * k, whatever was used. 1 = contiguous."""
    feedback: Literal["hidden", "norm", "project", "soft"] = "hidden"
    """What is fed back: the last hidden state (Coconut), that at the embeddings' scale, an MLP of it (CODI), or the
    mean input embedding under its next-token distribution (soft tokens)."""
    halt: Halt = field(default_factory=Fixed)
    """When to stop thinking."""
    closing: bool = False
    """Read a learned embedding after the thoughts, whose state then gives the text's first token: Coconut's end of
    thought, CODI's eot. Without it the last latent's state does."""
    policy: PolicyConfig = field(default_factory=Deterministic)
    """What is random in a thought, sampled in RL and recorded as a decision. Supervised training does not ask it."""

    def method_class(self) -> type[AlongSequence]:
        raise unwritten(self, "method_class")

    def __post_init__(self):
        at_least(self, "n_latent", 0)
        at_least(self, "stride", 1)

    sizes: ClassVar[tuple[str, ...]] = ("n_latent",)

    @property
    def told(self) -> Told:
        return "chain"

    @property
    def learns_from(self) -> Told:
        return self.told if self.n_latent else "answer"

    @property
    def latents(self):
        return self.n_latent


def check_supervised(config) -> None:
    """Raise UserError for a `supervise_every` that leaves no latent supervised."""
    if not 1 <= config.supervise_every <= max(1, config.n_latent):
        raise UserError(
            f"method.supervise_every must be in 1..method.n_latent = {config.n_latent}, got {config.supervise_every}"
        )


@dataclass(frozen=True)
class ControlConfig(MethodConfig):
    """A control of a method that loops along the sequence: its training, its number of latents, other inputs."""

    of: SequenceConfig
    """The method whose training and number of latents it has; its `feedback` does not apply."""

    def __post_init__(self):
        if not isinstance(self.of, SequenceConfig):
            raise UserError(f"method.of of {type(self).__name__} must loop along the sequence, got {self.of}")

    @property
    def told(self):
        return self.of.told

    @property
    def learns_from(self):
        return self.of.learns_from

    @property
    def latents(self):
        return self.of.latents

    def decoder_parameters(self, width):
        return self.of.decoder_parameters(width)

    @property
    def underlying(self):
        return self.of

    def small(self):
        return replace(self, of=self.of.small())
