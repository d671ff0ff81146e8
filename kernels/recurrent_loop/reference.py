"""The definition: whole causal sequences through the looped layers, again and again, by plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention
from kernels.decoder import Affine, Decoder
from kernels.latent_chain.reference import finish, heads


def run(
    decoder: Decoder,
    carry_DD: Tensor,
    norm: tuple[Affine, float],
    constant_BTD: Tensor,
    steps: int,
    ropes: tuple[Tensor, Tensor] | None,
    visible_BT: Tensor | None,
) -> Tensor:
    """States (B, R, T, D) after each recurrence; the arguments are those of `RecurrentLoop`."""
    shape = constant_BTD.shape
    rope = ropes and tuple(r.flatten(0, 1).to(constant_BTD.dtype) for r in ropes)
    s_BTD, states = torch.zeros_like(constant_BTD), []
    for _ in range(steps):
        x_ND = (s_BTD @ carry_DD + constant_BTD).flatten(0, 1)
        for layer in decoder.layers:
            q, k, v = (x.unflatten(0, shape[:2]).transpose(1, 2) for x in heads(x_ND, layer, decoder, rope))
            groups = decoder.heads // decoder.kv_heads
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            a_BHTd = attention(q, k, v, attended(shape[1], visible_BT, q.device))
            x_ND = finish(x_ND, a_BHTd.transpose(1, 2).flatten(2).flatten(0, 1), layer, decoder)
        s_BTD = normed(x_ND, *norm).view(shape)
        states.append(s_BTD)
    return torch.stack(states, 1)


def normed(x_ND: Tensor, affine: Affine, eps: float) -> Tensor:
    """LayerNorm with a bias, RMSNorm without."""
    weight, bias = affine
    if bias is None:
        return F.rms_norm(x_ND, x_ND.shape[-1:], weight, eps)
    return F.layer_norm(x_ND, x_ND.shape[-1:], weight, bias, eps)


def attended(t: int, visible_BT: Tensor | None, device) -> Tensor:
    """Which positions each one may attend, (T, T) or (B, 1, T, T): itself, and the visible ones before it."""
    before_TT = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    if visible_BT is None:
        return before_TT
    return ((before_TT & visible_BT[:, None]) | torch.eye(t, dtype=torch.bool, device=device))[:, None]
