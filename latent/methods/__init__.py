"""The methods, one file each: two verbs, `think(prompt) -> Thought` and `terms(batch) -> (loss's terms, metrics)`."""

from kernels.errors import UserError
from latent.backbone import Backbone
from latent.config import Coconut, CoT, FixedEmbedding, MethodConfig, NoCoT, Pause, Recurrent, Sim
from latent.methods.base import Method


def build(config: MethodConfig, backbone: Backbone) -> Method:
    """The method of a config."""
    from latent.methods import coconut, cot, fixed, no_cot, pause, recurrent, sim

    match config:
        case NoCoT():
            return no_cot.NoCoT(config, backbone)
        case CoT():
            return cot.CoT(config, backbone)
        case Coconut():
            return coconut.Coconut(config, backbone)
        case Sim():
            return sim.Sim(config, backbone)
        case Pause(of):
            return pause.control(config, build(of, backbone))
        case FixedEmbedding(of):
            return fixed.control(config, build(of, backbone))
        case Recurrent():
            return recurrent.Recurrent(config, backbone)
    raise UserError(f"no method of config {type(config).__name__}")
