"""Random decoders of every family that the fused steps know."""

import torch
from torch import Tensor

from kernels.decoder import Affine, Decoder, Layer

FAMILIES = ["gpt2", "llama", "qwen3"]


def make_decoder(
    family: str, layers: int = 2, width: int = 24, heads: int = 4, d: int = 6, inner: int = 40,
    dtype=torch.float64, device="cpu",
) -> Decoder:  # fmt: skip
    """Weights of a size that keeps activations near 1; llama and qwen3 share each K and V among two heads."""

    def matrix(rows: int, cols: int, bias: bool) -> Affine:
        w = torch.randn(rows, cols) / rows**0.5
        if family != "gpt2":
            w = w.t().contiguous().t()  # (out, in) in memory, as linear layers are
        return leaf(w), leaf(0.3 * torch.randn(cols)) if bias else None

    def leaf(x: Tensor) -> Tensor:
        return x.to(device, dtype).requires_grad_()

    def norm(size: int, bias: bool) -> Affine:
        return leaf(1 + 0.3 * torch.randn(size)), leaf(0.3 * torch.randn(size)) if bias else None

    gpt2 = family == "gpt2"
    kv_heads = heads if gpt2 else heads // 2
    made = []
    for _ in range(layers):
        sizes = [heads * d, kv_heads * d, kv_heads * d]
        made.append(
            Layer(
                norm_1=norm(width, gpt2),
                qkv=(matrix(width, sum(sizes), True),) if gpt2 else tuple(matrix(width, n, False) for n in sizes),
                qk_norm=(norm(d, False), norm(d, False)) if family == "qwen3" else (),
                out=matrix(heads * d, width, gpt2),
                norm_2=norm(width, gpt2),
                up=tuple(matrix(width, inner, gpt2) for _ in range(1 if gpt2 else 2)),
                down=matrix(inner, width, gpt2),
            )
        )
    kind, act = ("layer", "gelu_tanh") if gpt2 else ("rms", "silu")
    return Decoder(tuple(made), norm(width, gpt2), heads, kv_heads, d, kind, 1e-5, act)


def make_past(decoder: Decoder, batch: int, size: int, dtype=torch.float64, device="cpu") -> list:
    """K and V of a prompt, one pair a layer."""
    shape = (batch, decoder.kv_heads, size, decoder.d)
    return [tuple(torch.randn(shape).to(device, dtype).requires_grad_() for _ in "kv") for _ in decoder.layers]


def make_rope(decoder: Decoder, batch: int, step: int, dtype=torch.float64, device="cpu"):
    """Cosines and sines (B, d) of some positions; None for learned positions."""
    if decoder.kind == "layer":
        return None
    angle = (torch.arange(batch)[:, None] + step) * 10.0 ** -torch.arange(decoder.d // 2)
    angle = torch.cat([angle, angle], 1)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)
