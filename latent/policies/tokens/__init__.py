"""K tokens drawn from what the head says, merged into one thought."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.config import at_least, one_of
from latent.policies.config import PolicyConfig

MOST_TOKENS = 1024  # each is drawn, embedded and recorded


@dataclass(frozen=True)
class Tokens(PolicyConfig):
    """K tokens drawn from the next-token distribution; what is fed back is the mean of their embeddings."""

    name: ClassVar[str] = "tokens"
    k: int = 3
    """Tokens K that are merged; 1 is a discrete token."""
    temperature: float = 1.0
    """Of the distribution that they are drawn from, part of the log-probability; CoT2 takes K."""
    judged: Literal["method", "drawn"] = "method"
    """What greedy answers think in: what the method feeds back without a policy (of `cot2` and `soft` feedback, the
    mixture of all tokens), or K tokens drawn as in training, as CoT2 judges models after RL."""

    def __post_init__(self):
        at_least(self, "k", 1)
        if self.k > MOST_TOKENS:
            raise UserError(f"method.policy.k must be in 1..{MOST_TOKENS}, got {self.k}")
        one_of(self, "judged", ("method", "drawn"))
        if not self.temperature > 0:
            raise UserError(f"method.policy.temperature must be > 0, got {self.temperature}")

    def build(self, backbone):
        from latent.policies.tokens.policy import TokensPolicy

        return TokensPolicy(self, backbone)
