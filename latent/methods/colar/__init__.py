"""CoLaR (arXiv:2505.16552): each latent is a prediction of the next r tokens of a chain, pooled; r is chosen anew."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import at_least
from latent.methods.config import SequenceConfig
from latent.policies import Deterministic, Gaussian, PolicyConfig


@dataclass(frozen=True)
class Colar(SequenceConfig):
    """CoLaR (arXiv:2505.16552): a Gaussian head predicts the pooled embedding of the next r tokens."""

    name: ClassVar[str] = "colar"
    recipe: ClassVar = {"train.steps": 1600}
    feedback: Literal["project"] = "project"
    """What is fed back: what an MLP of the hidden state predicts, always."""
    policy: PolicyConfig = field(default_factory=lambda: Gaussian(std=1.0, learned=True))
    """The head's distribution around its prediction, sampled in RL; none = the prediction alone."""
    r: int = 4
    """Tokens that a latent stands for when answering: chains may have n_latent * r tokens."""
    r_max: int = 5
    """Most tokens that a latent stands for: in training r is drawn from 1 to this for each batch."""
    latent_loss: Literal["nll", "mse"] = "nll"
    """Of a latent's pooled tokens under the head's distribution: negative log-density, or expected squared error."""
    latent_weight: float = 1.0
    """Weight of that."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "r", 1)
        if self.feedback != "project":
            raise UserError(f"method.feedback of colar must be project, got {self.feedback!r}")
        if self.r > self.r_max:
            raise UserError(f"method.r must be at most method.r_max, got {self.r} and {self.r_max}")
        if not self.latent_weight >= 0:
            raise UserError(f"method.latent_weight must be at least 0, got {self.latent_weight}")
        if not isinstance(self.policy, (Gaussian, Deterministic)):
            raise UserError(f"method.policy of colar must be gaussian or none, got {self.policy.name}")
        if self.latent_loss == "nll" and not isinstance(self.policy, Gaussian):
            raise UserError("method.latent_loss nll needs method.policy gaussian: without one there is no density")

    sizes: ClassVar[tuple[str, ...]] = ("n_latent", "r_max")

    def decoder_parameters(self, width):
        return self.r_max * width

    def method_class(self):
        from latent.methods.colar.method import ColarMethod

        return ColarMethod
