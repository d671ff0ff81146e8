"""The definition, in fp32 or better: logits in memory, softmax, entropy; autograd does the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_logprob(
    h_ND: Tensor, e_VD: Tensor, ids_N: Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-prob of each id, entropy (nats) if asked for, and the most likely id, (N,) each."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    logits_NV = F.linear(h_ND, e_VD).to(more)
    top_N = logits_NV.detach().argmax(-1)
    if not entropy:
        return -F.cross_entropy(logits_NV / temperature, ids_N, reduction="none"), None, top_N
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], entropy_N, top_N
