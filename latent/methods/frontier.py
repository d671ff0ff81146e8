"""What methods share that are taught where a search may stand after each step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latent.backbone import Backbone
from latent.methods.terms import Mean
from latent.text import Batch, sent


def reached(latent: int, k: int, steps: int) -> int:
    """Which of a problem's steps latent `latent` of k, from 1, should have reached: a longer chain is dealt evenly over
    the latents, a shorter one ends before them."""
    return min(latent, steps) if steps <= k else -(-latent * steps // k)


def frontier_targets(batch: Batch, k: int, vocab: int, every: int = 1) -> Tensor:
    """The distribution (B, K, V) over `vocab` tokens that every `every`-th of k latents should be, in fp64; the last
    one stays."""
    assert batch.frontiers is not None  # `told` asks for them
    taught = range(every, k + 1, every)
    rows = [steps[reached(i, k, len(steps)) - 1] for steps in batch.frontiers for i in taught]
    p_BKV = sent(torch.stack(rows).unflatten(0, (-1, len(taught))), batch.prompt.ids_BT.device)
    return F.pad(p_BKV, (0, vocab - p_BKV.shape[-1]))  # a pretrained head may have rows to spare


def frontier_loss(backbone: Backbone, h_BKD: Tensor, p_BKV: Tensor) -> tuple[Mean, dict[str, Mean]]:
    """KL (nats) from what the head reads off states to the distributions they should say: summed over K, a mean over B.

    Logs `step_kl`, the mean of one state's, and `step_mass`, the probability on the tokens where the search may stand.
    """
    logp_BKV = backbone.head(h_BKD).log_softmax(-1)
    p_BKV = p_BKV.to(logp_BKV.dtype)
    kl = (torch.special.xlogy(p_BKV, p_BKV) - p_BKV * logp_BKV).sum()
    mass = (logp_BKV.detach().exp() * (p_BKV > 0)).sum()
    b, k, _ = p_BKV.shape
    return Mean(kl, b), {"step_kl": Mean(kl.detach(), b * k), "step_mass": Mean(mass, b * k)}
