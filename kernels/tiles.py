"""Device functions that several kernels share.

Everything is computed in fp32: a tile is converted as soon as it is loaded. Only the operands of a product on tensor
cores stay in their own dtype. The interpreter (UPCAST) cannot multiply bfloat16, and cuts off what it should round.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr):
    """acc + a @ b, accumulated in fp32; fp32 operands are multiplied exactly, not as TF32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def narrow(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """x in a narrower dtype, rounded to nearest, ties to even."""
    if UPCAST:
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def softmax_tile(score, seen, v_tile, m, total, acc, UPCAST: tl.constexpr):
    """Running maximum, sum and unnormalised output of attention after one more tile; `seen`: what counts of it."""
    score = tl.where(seen, score, -1e38)
    new = tl.maximum(m, tl.max(score, 1))
    p = tl.where(seen, tl.exp(score - new[:, None]), 0.0)
    fade = tl.exp(m - new)
    total = total * fade + tl.sum(p, 1)
    acc = product(narrow(p, v_tile.dtype, UPCAST), v_tile, acc * fade[:, None], UPCAST)
    return new, total, acc


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
