"""The definition; autograd does the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor


def inject(
    s_ND: Tensor, constant_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x = s + constant, and x normed, (N, D) each."""
    x_ND = s_ND + constant_ND
    if bias_D is not None:
        return x_ND, F.layer_norm(x_ND, x_ND.shape[-1:], weight_D, bias_D, eps)
    full = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
    scale = torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    return x_ND, weight_D * (full * scale).to(x_ND.dtype)
