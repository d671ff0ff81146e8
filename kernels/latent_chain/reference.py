"""The definition: one position through a decoder by plain torch, K and V concatenated, autograd does the rest."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention
from kernels.decoder import Act, Affine, Decoder, Layer

ACTIVATIONS: dict[Act, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def step(
    x_BD: Tensor, past: list[tuple[Tensor, Tensor]], decoder: Decoder, rope: tuple | None, visible_BS: Tensor | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Final hidden state (B, D) and the longer K and V of each layer, (B, H_kv, S, d).

    `rope`: cosines and sines (B, d). `visible_BS`: which positions may be attended, the new one included; None = all.
    """
    longer = []
    for layer, (k_BHSd, v_BHSd) in zip(decoder.layers, past):
        q, k, v = heads(x_BD, layer, decoder, rope)
        k_BHSd, v_BHSd = torch.cat([k_BHSd, k[:, :, None]], 2), torch.cat([v_BHSd, v[:, :, None]], 2)
        longer.append((k_BHSd, v_BHSd))
        groups = decoder.heads // decoder.kv_heads
        mask = None if visible_BS is None else visible_BS[:, None, None]
        a_BH1d = attention(
            q[:, :, None], k_BHSd.repeat_interleave(groups, 1), v_BHSd.repeat_interleave(groups, 1), mask
        )
        x_BD = finish(x_BD, a_BH1d.flatten(1), layer, decoder)
    return norm(x_BD, decoder.norm, decoder), longer


def heads(x_BD: Tensor, layer: Layer, decoder: Decoder, rope: tuple | None) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, d), k and v (B, H_kv, d) of one position."""
    n_BD = norm(x_BD, layer.norm_1, decoder)
    parts = [linear(n_BD, p) for p in layer.qkv]
    if len(parts) == 1:
        parts = parts[0].split([h * decoder.d for h in (decoder.heads, decoder.kv_heads, decoder.kv_heads)], -1)
    q, k, v = (p.unflatten(-1, (-1, decoder.d)) for p in parts)
    if layer.qk_norm:
        q, k = (norm(x, p, decoder) for x, p in zip((q, k), layer.qk_norm))
    return (q, k, v) if rope is None else (rotate(q, *rope), rotate(k, *rope), v)


def finish(x_BD: Tensor, a_BD: Tensor, layer: Layer, decoder: Decoder) -> Tensor:
    """The layer's output from its input and what its heads attended: projection, residual, MLP, residual."""
    x_BD = x_BD + linear(a_BD, layer.out)
    m_BD = norm(x_BD, layer.norm_2, decoder)
    first, *second = (linear(m_BD, p) for p in layer.up)
    u_BF = ACTIVATIONS[decoder.act](first)
    return x_BD + linear(u_BF * second[0] if second else u_BF, layer.down)


def norm(x: Tensor, affine: Affine, decoder: Decoder) -> Tensor:
    weight, bias = affine
    if decoder.kind == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, decoder.eps)
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + decoder.eps)).to(x.dtype)


def linear(x: Tensor, affine: Affine) -> Tensor:
    weight, bias = affine
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def rotate(x_BHd: Tensor, cos_Bd: Tensor, sin_Bd: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, eq. 34), halves paired as in `transformers`."""
    a, b = x_BHd.chunk(2, -1)
    return x_BHd * cos_Bd[:, None] + torch.cat([-b, a], -1) * sin_Bd[:, None]
