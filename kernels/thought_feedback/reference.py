"""The definition, the parts in fp32 or better; autograd does the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.decoder import Affine


def thought_feedback(
    h_ND: Tensor, norm: Affine | None, eps: float, projection: Affine | None, gate: tuple[Tensor, ...] | None
) -> Tensor:
    """The next input embedding, (N, D)."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    y_ND = h_ND
    if norm is not None:
        weight, bias = norm
        full = h_ND.to(more)
        if bias is None:
            y_ND = (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps) * weight.to(more)).to(h_ND.dtype)
        else:
            y_ND = F.layer_norm(full, full.shape[-1:], weight.to(more), bias.to(more), eps).to(h_ND.dtype)
    if projection is not None:
        weight, bias = projection
        y_ND = y_ND @ weight if bias is None else torch.addmm(bias, y_ND, weight)
    if gate is not None:
        e_ND, r_ND, i_ND, decay_D = (x.to(more) for x in gate)
        rate_ND = 8 * F.softplus(-decay_D) * r_ND.sigmoid()
        kept_ND = torch.sqrt((-torch.expm1(-2 * rate_ND)).clamp(min=1e-12))  # at 0 the root has no gradient
        y_ND = (torch.exp(-rate_ND) * e_ND + kept_ND * i_ND.sigmoid() * y_ND.to(more)).to(h_ND.dtype)
    return y_ND
