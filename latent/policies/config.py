"""What the config of every latent policy says of itself. No torch here, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kernels.errors import unwritten

if TYPE_CHECKING:
    from latent.backbone import Backbone
    from latent.policies.base import Policy


@dataclass(frozen=True)
class PolicyConfig:
    """What is random in a thought. A subclass is a policy; `name` is what the command line calls it."""

    name: ClassVar[str]

    def build(self, backbone: Backbone) -> Policy | None:
        """The policy over the thoughts of a backbone; None where a thought is what the method computes."""
        raise unwritten(self, "build")
