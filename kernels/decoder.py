"""A decoder as plain tensors: what every op on a whole latent step takes, whichever library the model came from.

One layer, with W stored as (in, out) and every bias optional:

    n = norm_1(x);  q, k, v = n W_qkv;  q, k = rope(norm(q)), rope(norm(k));  a = attention(q; K, V with k, v appended)
    y = x + a W_out;  m = norm_2(y);  x' = y + (act(m W_up) or act(m W_gate) * (m W_up)) W_down

GPT-2 (learned positions, LayerNorm, one fused W_qkv), Llama (RMSNorm, rotary, gated) and Qwen3 (the same with RMSNorm
on q and k of each head) are special cases.
"""

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # weight and bias of a norm, (D,), or of a projection, (in, out) and (out,)


@dataclass(frozen=True)
class Layer:
    """Weights of one layer. `qkv`: one fused projection or three; `up`: one projection, or the gate and it."""

    norm_1: Affine
    qkv: tuple[Affine, ...]
    qk_norm: tuple[Affine, ...]
    out: Affine
    norm_2: Affine
    up: tuple[Affine, ...]
    down: Affine


@dataclass(frozen=True)
class Decoder:
    """Layers and the final norm. `d` is a head's width; RMSNorm multiplies after rounding, as Llama does."""

    layers: tuple[Layer, ...]
    norm: Affine
    heads: int
    kv_heads: int
    d: int
    kind: Literal["layer", "rms"]
    eps: float
    act: Literal["relu", "gelu", "gelu_tanh", "silu"]

    def affines(self) -> list[Affine]:
        """Every weight with its bias, in a fixed order: layer by layer, the final norm last."""
        found = []
        for layer in self.layers:
            for field in fields(layer):
                value = getattr(layer, field.name)
                nested = not value or isinstance(value[0], tuple)
                found += value if nested else [value]
        return [*found, self.norm]
