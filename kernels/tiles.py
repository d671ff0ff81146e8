"""Device functions and launch helpers that several kernels share.

Everything is computed in fp32: a tile is converted as soon as it is loaded. Only the operands of a product on tensor
cores stay in their own dtype; the interpreter cannot multiply bfloat16, and there they are converted too.
"""

import triton
import triton.language as tl

from kernels.dispatch import interpreted


def precision(dtype) -> dict:
    """Compile-time arguments of `product`: fp32 is multiplied exactly, not as TF32."""
    return {"UPCAST": interpreted()}


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr):
    """acc + a @ b, accumulated in fp32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def logits_tile(
    h, e, rows, cols, N, V, D, stride_h, stride_e,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """h[rows] @ e[cols].T, (BLOCK_N, BLOCK_V); rows and columns beyond N and V count as zeros."""
    acc = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        h_tile = tl.load(
            h + rows[:, None].to(tl.int64) * stride_h + d[None, :],
            mask=(rows[:, None] < N) & (d[None, :] < D), other=0.0,
        )  # fmt: skip
        e_tile = tl.load(
            e + cols[:, None].to(tl.int64) * stride_e + d[None, :],
            mask=(cols[:, None] < V) & (d[None, :] < D), other=0.0,
        )  # fmt: skip
        acc = product(h_tile, tl.trans(e_tile), acc, UPCAST)
    return acc
