"""A decoder as plain tensors: what every op on a whole latent step takes, whichever library the model came from.

One layer, with W stored as (in, out) and every bias optional:

    n = norm_1(x);  q, k, v = n W_qkv;  q, k = rope(norm(q)), rope(norm(k));  a = attention(q; K, V with k, v appended)
    y = x + a W_out;  m = norm_2(y);  x' = y + (act(m W_up) or act(m W_gate) * (m W_up)) W_down

GPT-2 (learned positions, LayerNorm, one fused W_qkv), Llama (RMSNorm, rotary, gated) and Qwen3 (the same with RMSNorm
on q and k of each head) are special cases.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # weight and bias of a norm, (D,), or of a projection, (in, out) and (out,)
Kind = Literal["layer", "rms"]
Act = Literal["relu", "gelu", "gelu_tanh", "silu"]


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
    kind: Kind
    eps: float
    act: Act

    def affines(self) -> list[Affine]:
        """Every weight with its bias, in a fixed order: layer by layer, the final norm last."""
        found: list[Affine] = []
        for layer in self.layers:
            for field in fields(layer):
                value = getattr(layer, field.name)
                nested = not value or isinstance(value[0], tuple)
                found += value if nested else [value]
        return [*found, self.norm]

    def multiplied_in(self, dtype: torch.dtype) -> "Decoder":
        """The same with copies of the projections in another dtype, as under autocast; norms stay as they are."""

        def cast(affine: Affine) -> Affine:
            weight, bias = (x if x is None or x.dtype == dtype else x.detach().to(dtype) for x in affine)
            assert weight is not None  # only a bias may be left out
            return weight, bias

        made = []
        for layer in self.layers:
            qkv, up = (tuple(map(cast, affines)) for affines in (layer.qkv, layer.up))
            made.append(replace(layer, qkv=qkv, out=cast(layer.out), up=up, down=cast(layer.down)))
        return replace(self, layers=tuple(made))

    def mixed(self) -> str | None:
        """Why a kernel that takes all layers' projections in one form cannot serve; None if it can."""
        pairs = [p for layer in self.layers for p in (*layer.qkv, layer.out, *layer.up, layer.down)]
        if len({bias is None for _, bias in pairs}) > 1:
            return "some of its projections have a bias and others have none"
        fused = len(self.layers[0].qkv) == 1
        out_major = all(w.stride() == (1, w.shape[0]) for w, _ in pairs)
        if not out_major and not (fused and all(w.is_contiguous() for w, _ in pairs)):
            return "its weights are not all contiguous as (in, out), or all as (out, in)"
        if any(x.data_ptr() % 16 for pair in self.affines() for x in pair if x is not None and not x.is_meta):
            return "its weights do not all begin at a multiple of 16 bytes"
        return None
