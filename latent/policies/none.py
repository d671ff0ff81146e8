"""Nothing is random: a thought is what the method computes."""

from dataclasses import dataclass
from typing import ClassVar

from latent.policies.config import PolicyConfig


@dataclass(frozen=True)
class Deterministic(PolicyConfig):
    """What is fed back is what the method computes: nothing to record, nothing to explore."""

    name: ClassVar[str] = "none"

    def build(self, backbone):
        return None
