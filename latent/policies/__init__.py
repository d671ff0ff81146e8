"""What is random in a thought, a folder or file each. To add one: its file, and a line in the table; outside this
package, `register`. No torch here, so that `--help` answers at once.

A policy is asked before every latent step, for a distribution over what is fed back; the chooser draws from it and
records the draw as a decision of the kind "thought", with its log-probability.
"""

from typing import TypeVar

from latent.plain import register_in
from latent.policies.config import PolicyConfig
from latent.policies.gaussian import Gaussian
from latent.policies.none import Deterministic
from latent.policies.tokens import Tokens

POLICIES: dict[str, type[PolicyConfig]] = {cls.name: cls for cls in (Deterministic, Gaussian, Tokens)}
ConfigT = TypeVar("ConfigT", bound=type[PolicyConfig])

__all__ = ["POLICIES", "Deterministic", "Gaussian", "PolicyConfig", "Tokens", "register"]


def register(cls: ConfigT) -> ConfigT:
    """Make a policy known by its config's class, as a decorator. Raises UserError for a name that another has."""
    return register_in(POLICIES, cls, "policy")
