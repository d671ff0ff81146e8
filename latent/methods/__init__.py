"""The methods, a folder each: its config with all that belongs to it, and `method.py`, the module that thinks.

A method has two verbs, `think(prompt) -> Thought` and `terms(batch) -> (loss's terms, metrics)`. To add one: a folder,
and a line in the table; outside this package, `register`. No torch here, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from kernels.errors import UserError
from latent import plugins
from latent.config import HALTS
from latent.methods.coconut import Coconut
from latent.methods.codi import Codi
from latent.methods.colar import Colar
from latent.methods.config import ControlConfig, MethodConfig, SequenceConfig
from latent.methods.cot import CoT
from latent.methods.cot2 import CoT2
from latent.methods.fixed import FixedEmbedding
from latent.methods.hrpo import Hrpo
from latent.methods.icot import ICoT
from latent.methods.kava import Kava
from latent.methods.no_cot import NoCoT
from latent.methods.pause import Pause
from latent.methods.pccot import Pccot
from latent.methods.recurrent import Recurrent
from latent.methods.sim import Sim
from latent.methods.soft import Soft
from latent.plain import check_types, register_in
from latent.plain import unpack as _unpack
from latent.policies import POLICIES

if TYPE_CHECKING:
    from latent.backbone import Backbone
    from latent.methods.base import Method

METHODS: dict[str, type[MethodConfig]] = {
    cls.name: cls
    for cls in (
        NoCoT,
        CoT,
        ICoT,
        Coconut,
        Sim,
        CoT2,
        Codi,
        Pccot,
        Kava,
        Soft,
        Hrpo,
        Colar,
        Pause,
        FixedEmbedding,
        Recurrent,
    )
}
ConfigT = TypeVar("ConfigT", bound=type[MethodConfig])

__all__ = [
    "METHODS",
    "CoT",
    "CoT2",
    "Coconut",
    "Codi",
    "Colar",
    "ControlConfig",
    "FixedEmbedding",
    "Hrpo",
    "ICoT",
    "Kava",
    "MethodConfig",
    "NoCoT",
    "Pause",
    "Pccot",
    "Recurrent",
    "SequenceConfig",
    "Sim",
    "Soft",
    "build",
    "register",
    "unpack",
]


def register(cls: ConfigT) -> ConfigT:
    """Make a method known by its config's class, as a decorator. Raises UserError for a name that another has."""
    return register_in(METHODS, cls, "method")


def build(config: MethodConfig, backbone: Backbone) -> Method:
    """The method of a config. Raises UserError naming a field of another type than it says."""
    check_types(config, "method")
    return config.method_class()(config, backbone)


def unpack(data: dict) -> MethodConfig:
    """A method's config from plain data. Raises UserError for a class or a field that this version does not have."""
    plugins.load_all()
    config = _unpack(data, [*METHODS.values(), *HALTS.values(), *POLICIES.values()], "method")
    if not isinstance(config, MethodConfig):
        raise UserError(f"method: {data!r:.40} is no method")
    return config
