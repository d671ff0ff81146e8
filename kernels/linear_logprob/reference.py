"""The definition, in fp32 or better: logits in memory, softmax, entropy; autograd does the rest."""

import torch
from torch import Tensor


def linear_logprob(
    h_ND: Tensor, e_VD: Tensor, ids_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of each id, entropy (nats) and the most likely id, (N,) each."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    logits_NV = (h_ND @ e_VD.t()).to(more)
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], entropy_N, logits_NV.detach().argmax(-1)
