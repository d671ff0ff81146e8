"""SIM-CoT (arXiv:2509.20317): latents with a step decoder that exists only in training."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import Fixed, LearnedStop, at_least, one_of
from latent.methods.config import SequenceConfig, check_supervised


@dataclass(frozen=True)
class Sim(SequenceConfig):
    """SIM-CoT (arXiv:2509.20317): while training, a decoder must read step i off latent i."""

    name: ClassVar[str] = "sim"
    recipe: ClassVar = {"method.stride": 4, "train.steps": 1600}
    told: Literal["chain", "chains", "frontier", "answer"] = "chain"
    """What the decoder must read off latent i: step i of a chain; of a best chain drawn anew each time; or the
    distribution over where a search may stand after step i. Without a decoder: the answer alone is taught."""
    step_weight: float = 1.0
    """Weight of the step decoder's loss."""
    step_tokens: int = 4
    """Longest step that the train-only decoder can write, in tokens; of a frontier, one."""
    head: bool = False
    """Read the frontier by the LM head instead of a decoder, off the state that is fed back."""
    supervise_every: int = 1
    """Supervise every n-th latent only: n, 2n, ..."""
    early_stops: Literal["rest", "last", "never"] = "rest"
    """With a halting rule, after how many latents half of the rows answer in supervised training: any number from which
    on the chain changes no more; any after which it is where it ends; or all."""
    stop_weight: float = 0.0
    """Weight of the loss of a learned stop, which is taught to stop after the first latent whose step is the chain's
    last. 0: only RL teaches it."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "step_tokens", 1)
        check_supervised(self)
        one_of(self, "early_stops", ("rest", "last", "never"))
        if not self.stop_weight >= 0:
            raise UserError(f"method.stop_weight must be at least 0, got {self.stop_weight}")
        if self.stop_weight and not (isinstance(self.halt, LearnedStop) and self.told in ("chain", "chains")):
            raise UserError("method.stop_weight teaches a learned stop (method.halt learned) by a chain (method.told)")
        one_of(self, "told", ("chain", "chains", "frontier", "answer"))
        if self.head and self.told != "frontier":
            raise UserError(f"method.head reads a frontier (method.told frontier), told is {self.told}")

    sizes: ClassVar[tuple[str, ...]] = ("n_latent", "step_tokens")

    @property
    def learns_from(self):
        stops = not isinstance(self.halt, Fixed)  # when to stop early is told by the chain
        return super().learns_from if self.step_weight or stops else "answer"

    @property
    def decoder_tokens(self) -> int:
        """Tokens that the decoder can write; 0 where there is none."""
        return {"answer": 0, "frontier": int(not self.head)}.get(self.told, self.step_tokens)

    def decoder_parameters(self, width):
        return self.decoder_tokens * width**2

    def method_class(self):
        from latent.methods.sim.method import SimMethod

        return SimMethod
