"""Parts of a decoder layer as device functions, for the kernels that run whole layers."""

import triton
import triton.language as tl

from kernels.tiles import narrow, product

NORMS = {"none": 0, "rms": 1, "layer": 2}
ACTS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}


@triton.jit
def residual_tile(x, part, rows, k, N, K, stride_x, SPLITS_IN: tl.constexpr):
    """x[rows, k] plus the partial sums that belong to it, in fp32."""
    ok = (rows[:, None] < N) & (k[None, :] < K)
    tile = tl.load(x + rows[:, None] * stride_x + k[None, :], mask=ok, other=0.0).to(tl.float32)
    for s in tl.static_range(SPLITS_IN):
        tile += tl.load(part + (s * N + rows[:, None]) * K + k[None, :], mask=ok, other=0.0)
    return tile


@triton.jit
def norm_stats(
    x, part, rows, N, K, stride_x, eps,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Mean (0 for RMSNorm) and reciprocal deviation of each row."""
    mean = tl.zeros((BLOCK_N,), tl.float32)
    square = tl.zeros((BLOCK_N,), tl.float32)
    if NORM == 2:
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mean += tl.sum(residual_tile(x, part, rows, k, N, K, stride_x, SPLITS_IN), 1)
        mean = mean / K
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile = residual_tile(x, part, rows, k, N, K, stride_x, SPLITS_IN) - mean[:, None]
        square += tl.sum(tl.where(k[None, :] < K, tile * tile, 0.0), 1)
    return mean, tl.rsqrt(square / K + eps)


@triton.jit
def normed(tile, mean, rstd, weight, bias, k, K, NORM: tl.constexpr):
    tile = (tile - mean[:, None]) * rstd[:, None]
    tile = tile * tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    if NORM == 2:
        tile += tl.load(bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    return tile


@triton.jit
def operand(
    x, part, norm_weight, norm_bias, mean, rstd, rows, k, N, K, stride_x, SPLITS_IN: tl.constexpr, NORM: tl.constexpr
):
    """What a projection multiplies: x[rows, k] plus partial sums, normed if asked."""
    tile = residual_tile(x, part, rows, k, N, K, stride_x, SPLITS_IN)
    if NORM:
        tile = normed(tile, mean, rstd, norm_weight, norm_bias, k, K, NORM)
    return tile


@triton.jit
def activated(x, ACT: tl.constexpr):
    if ACT == 1:
        x = tl.maximum(x, 0.0)
    if ACT == 2:
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    if ACT == 3:  # tanh u = 2 sigmoid 2u - 1
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACT == 4:
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def weight_tile(w, k, cols, K, C, stride_k, stride_c):
    """w[k, cols], zeros beyond it."""
    at = k[:, None].to(tl.int64) * stride_k + cols[None, :].to(tl.int64) * stride_c
    return tl.load(w + at, mask=(k[:, None] < K) & (cols[None, :] < C), other=0.0)


@triton.jit
def project_tile(
    x, part, norm_weight, norm_bias, w, w_up, kept, kept_up, bias, bias_up, total, out, row_tile, col_tile, split,
    N, K, C, eps, stride_x, stride_k, stride_c,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
    SPLITS: tl.constexpr, KEPT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of out[split] = act(norm(x + parts) w + bias), gated if asked; `total` receives x + parts.

    The first KEPT chunks of the weights' tiles are in `kept` and `kept_up` already, the others are read.
    """
    rows = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = col_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = 0.0
    rstd = 1.0
    if NORM:
        mean, rstd = norm_stats(x, part, rows, N, K, stride_x, eps, SPLITS_IN, NORM, BLOCK_K, BLOCK_N)
    if SPLITS_IN:
        if col_tile == 0:
            for start in range(0, K, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                tile = residual_tile(x, part, rows, k, N, K, stride_x, SPLITS_IN)
                tl.store(total + rows[:, None] * K + k[None, :], tile, mask=(rows[:, None] < N) & (k[None, :] < K))
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    acc_up = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for i in tl.static_range(KEPT):
        k = (split + i * SPLITS) * BLOCK_K + tl.arange(0, BLOCK_K)
        tile = operand(x, part, norm_weight, norm_bias, mean, rstd, rows, k, N, K, stride_x, SPLITS_IN, NORM)
        tile = narrow(tile, kept[i].dtype, UPCAST)
        acc = product(tile, kept[i], acc, UPCAST)
        if GATED:
            acc_up = product(tile, kept_up[i], acc_up, UPCAST)
    for start in range((split + KEPT * SPLITS) * BLOCK_K, K, SPLITS * BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile = operand(x, part, norm_weight, norm_bias, mean, rstd, rows, k, N, K, stride_x, SPLITS_IN, NORM)
        w_tile = weight_tile(w, k, cols, K, C, stride_k, stride_c)
        tile = narrow(tile, w_tile.dtype, UPCAST)
        acc = product(tile, w_tile, acc, UPCAST)
        if GATED:
            acc_up = product(tile, weight_tile(w_up, k, cols, K, C, stride_k, stride_c), acc_up, UPCAST)
    if BIAS:
        once = cols < tl.where(split == 0, C, 0)
        acc += tl.load(bias + cols, mask=once, other=0.0).to(tl.float32)[None, :]
        if GATED:
            acc_up += tl.load(bias_up + cols, mask=once, other=0.0).to(tl.float32)[None, :]
    acc = activated(acc, ACT)
    if GATED:
        acc *= acc_up
    tl.store(
        out + (split * N + rows[:, None]) * C + cols[None, :], narrow(acc, out.dtype.element_ty, UPCAST),
        mask=(rows[:, None] < N) & (cols[None, :] < C),
    )  # fmt: skip


@triton.jit
def head_vectors(
    qkv, heads, ok, weight, cos, sin, turn, turned, d, D: tl.constexpr, eps, NORM: tl.constexpr, ROPE: tl.constexpr
):
    """Vectors `heads` of width D out of projections, RMS-normed and rotated where the family does.

    Each thing is read where it is needed: in a loop over positions there are no registers to read ahead into.

    `turn`: where their cosines and sines are, one row for all or one each; `turned`: which of them there are.
    """
    there = ok[:, None] & (d[None, :] < D)
    x = tl.load(qkv + heads[:, None] * D + d[None, :], mask=there, other=0.0).to(tl.float32)
    if NORM:
        rstd = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        x = x * rstd[:, None] * tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if ROPE:
        half: tl.constexpr = D // 2
        other = tl.where(d < half, d + half, d - half)
        y = tl.load(qkv + heads[:, None] * D + other[None, :], mask=there, other=0.0).to(tl.float32)
        if NORM:
            y = y * rstd[:, None] * tl.load(weight + other, mask=d < D, other=0.0).to(tl.float32)[None, :]
        y = tl.where(d < half, -y, y)
        x = x * tl.load(cos + turn, mask=turned, other=0.0) + y * tl.load(sin + turn, mask=turned, other=0.0)
    return x


@triton.jit
def finish_row(
    x, part, weight, bias, out, row, N, K, eps,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The final norm of one row's residual stream and partial sums."""
    rows = row + tl.zeros((1,), tl.int32)
    mean, rstd = norm_stats(x, part, rows, N, K, K, eps, SPLITS_IN, NORM, BLOCK_K, 1)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile = normed(residual_tile(x, part, rows, k, N, K, K, SPLITS_IN), mean, rstd, weight, bias, k, K, NORM)
        tl.store(out + rows[:, None] * K + k[None, :], narrow(tile, out.dtype.element_ty, UPCAST), mask=k[None, :] < K)
