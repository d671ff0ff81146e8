"""Small reasoners whose answers depend on what they think, and problems for them."""

import torch

from eval.environments import Cups, build
from latent.methods import Sim
from tests.helpers import small_reasoner

ENV = build(Cups())
PROBLEMS = ENV.problems("test", 8, 8)
OF = Sim(n_latent=3, stride=4)


def lively(config, seed=0):
    """Untrained, its feedback large, so that what is fed back shows in the answer."""
    torch.manual_seed(seed)
    reasoner = small_reasoner(config, dtype=torch.float64)
    with torch.no_grad():
        reasoner.method.backbone.lm.transformer.ln_f.weight.mul_(4)
    return reasoner
