"""The definition, in fp32 or better."""

import torch
from torch import Tensor


def vocab_mix(
    h_ND: Tensor, e_VD: Tensor, out_VD: Tensor, temperature: float, noise_NV: Tensor | None, top_k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mix (N, D), logsumexp and entropy (N,) of what was mixed by."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    z_NV = (h_ND @ e_VD.t()).to(more) / temperature
    if noise_NV is not None:
        z_NV = z_NV + noise_NV
    if top_k is not None and top_k < z_NV.shape[1]:
        z_NV = torch.full_like(z_NV, float("-inf")).scatter(1, *reversed(z_NV.topk(top_k, 1)))
    lse_N = z_NV.logsumexp(1)
    logp_NV = z_NV - lse_N[:, None]
    p_NV = logp_NV.exp()
    entropy_N = -(p_NV * logp_NV.masked_fill(p_NV == 0, 0)).sum(1)
    return (p_NV.to(h_ND.dtype) @ out_VD).to(h_ND.dtype), lse_N, entropy_N
