"""Projections of a decoder layer at one position, for few rows and for many; `triton.py` puts them together."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.layer_tiles import activated
from kernels.tiles import narrow, product


@triton.jit
def follow(PDL: tl.constexpr):
    """Wait for the kernel before, and let the one after begin to fetch its weights."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def weight_chunk(w, cols, first, C, K: tl.constexpr, stride_k, stride_c, CHUNK: tl.constexpr):
    """w[cols, first : first + CHUNK], zeros beyond K and C."""
    k = first + tl.arange(0, CHUNK)
    at = cols[:, None].to(tl.int64) * stride_c + k[None, :].to(tl.int64) * stride_k
    return tl.load(w + at, mask=(cols[:, None] < C) & (k[None, :] < K), other=0.0)


@triton.jit
def row_sums(sums, rows, N, WHICH: tl.constexpr, TILES: tl.constexpr, BLOCK_T: tl.constexpr):
    """Sums over the stream's width of x (0) or x^2 (1), of some rows."""
    t = tl.arange(0, BLOCK_T)
    at = (t[None, :] * N + rows[:, None]) * 2 + WHICH
    return tl.sum(tl.load(sums + at, mask=(t[None, :] < TILES) & (rows[:, None] < N), other=0.0), 1)


@triton.jit
def part_of(C: tl.constexpr, C_1: tl.constexpr, C_2: tl.constexpr, BLOCK_C: tl.constexpr):
    """A program's columns: whether they are w_2's, or w_3's; which of that weight's; how many it has; its first.

    Columns up to C_1 are w's, up to C_1 + C_2 w_2's and the rest w_3's.
    """
    TILES_1: tl.constexpr = (C_1 + BLOCK_C - 1) // BLOCK_C
    TILES_2: tl.constexpr = (C_2 + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    third = tile >= TILES_1 + TILES_2
    second = (tile >= TILES_1) & (tile < TILES_1 + TILES_2)
    wide = tl.where(third, C - C_1 - C_2, tl.where(second, C_2, C_1))
    first = tl.where(third, C_1 + C_2, tl.where(second, C_1, 0))
    tile -= tl.where(third, TILES_1 + TILES_2, tl.where(second, TILES_1, 0))
    return second, third, tile * BLOCK_C + tl.arange(0, BLOCK_C), wide, first


@triton.jit
def norm_terms(tile, norm_weight, norm_bias, first, K: tl.constexpr, CHUNK: tl.constexpr):
    """What LayerNorm's weight and bias, times a chunk of weights (C, CHUNK), give each column."""
    k = first + tl.arange(0, CHUNK)
    tile = tile.to(tl.float32)
    slope = tl.sum(tile * tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)[None, :], 1)
    shift = tl.sum(tile * tl.load(norm_bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :], 1)
    return slope, shift


@triton.jit
def vector_kernel(
    x, sums, norm_weight, norm_bias, w, w_2, w_3, bias, bias_2, bias_3, stride_k, stride_c,
    out, stream, next_weight, eps,
    K: tl.constexpr, C: tl.constexpr, C_1: tl.constexpr, C_2: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, TILES: tl.constexpr, N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of act(norm(x) w + bias), gated by w_2 if asked, of a few rows; added to the stream where there is one.

    All of the tile's weights are asked for before the kernel waits.
    """
    second, third, mine, wide, first = part_of(C, C_1, C_2, BLOCK_C)
    if C_1 < C:
        w = tl.where(third, w_3, tl.where(second, w_2, w))
        if bias is not None:
            bias = tl.where(third, bias_3, tl.where(second, bias_2, bias))
    shift = tl.zeros((BLOCK_C,), tl.float32)
    shift_2 = tl.zeros((BLOCK_C,), tl.float32)
    slope = tl.zeros((BLOCK_C,), tl.float32)
    slope_2 = tl.zeros((BLOCK_C,), tl.float32)
    tiles = ()
    tiles_2 = ()
    for i in tl.static_range((K + CHUNK - 1) // CHUNK):
        tiles = tiles + (weight_chunk(w, mine, i * CHUNK, wide, K, stride_k, stride_c, CHUNK),)  # noqa: RUF005
        if GATED:
            tiles_2 = tiles_2 + (weight_chunk(w_2, mine, i * CHUNK, wide, K, stride_k, stride_c, CHUNK),)  # noqa: RUF005
    if bias is not None:
        shift += tl.load(bias + mine, mask=mine < wide, other=0.0).to(tl.float32)
        if GATED:
            shift_2 += tl.load(bias_2 + mine, mask=mine < wide, other=0.0).to(tl.float32)
    if NORM == 2:
        for i in tl.static_range((K + CHUNK - 1) // CHUNK):
            by_weight, by_bias = norm_terms(tiles[i], norm_weight, norm_bias, i * CHUNK, K, CHUNK)
            slope += by_weight
            shift += by_bias
            if GATED:
                by_weight, by_bias = norm_terms(tiles_2[i], norm_weight, norm_bias, i * CHUNK, K, CHUNK)
                slope_2 += by_weight
                shift_2 += by_bias
    column = tl.zeros((BLOCK_C, 1), tl.int32)
    follow(PDL)
    for r in tl.static_range(N):
        scale, mean = norm_scale(sums, r + tl.zeros((1,), tl.int32), N, eps, K, NORM, TILES, BLOCK_T)
        acc = tl.zeros((BLOCK_C, CHUNK), tl.float32)
        acc_2 = tl.zeros((BLOCK_C, CHUNK), tl.float32)
        for i in tl.static_range((K + CHUNK - 1) // CHUNK):
            # as wide as the weights' tile, so that each thread reads just what it multiplies and none waits for another
            k = i * CHUNK + tl.arange(0, CHUNK)[None, :] + column
            x_k = tl.load(x + r * K + k, mask=k < K, other=0.0).to(tl.float32)
            acc += tiles[i].to(tl.float32) * x_k
            if GATED:
                acc_2 += tiles_2[i].to(tl.float32) * x_k
        finish_tile(
            tl.sum(acc, 1)[None, :], tl.sum(acc_2, 1)[None, :], shift[None, :], shift_2[None, :],
            slope[None, :], slope_2[None, :], scale, mean, sums, out, stream, next_weight,
            r + tl.zeros((1,), tl.int32), first + mine, mine < wide, N,
            C, NORM, ACT, GATED, UPCAST,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def matrix_kernel(
    x, sums, norm_weight, norm_bias, w, w_2, w_3, bias, bias_2, bias_3, stride_k, stride_c,
    out, stream, next_weight, N, eps,
    K: tl.constexpr, C: tl.constexpr, C_1: tl.constexpr, C_2: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, TILES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The same of many rows, with tensor cores."""
    second, third, mine, wide, first = part_of(C, C_1, C_2, BLOCK_C)
    if C_1 < C:
        w = tl.where(third, w_3, tl.where(second, w_2, w))
        if bias is not None:
            bias = tl.where(third, bias_3, tl.where(second, bias_2, bias))
    shift = tl.zeros((BLOCK_C,), tl.float32)
    shift_2 = tl.zeros((BLOCK_C,), tl.float32)
    slope = tl.zeros((BLOCK_C,), tl.float32)
    slope_2 = tl.zeros((BLOCK_C,), tl.float32)
    if bias is not None:
        shift += tl.load(bias + mine, mask=mine < wide, other=0.0).to(tl.float32)
        if GATED:
            shift_2 += tl.load(bias_2 + mine, mask=mine < wide, other=0.0).to(tl.float32)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    acc_2 = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    scale, mean = norm_scale(sums, rows, N, eps, K, NORM, TILES, BLOCK_T)
    for start in range(0, K, CHUNK):
        tile = row_chunk(x, rows, start, N, K, CHUNK)
        w_tile = weight_chunk(w, mine, start, wide, K, stride_k, stride_c, CHUNK)
        acc = product(tile, tl.trans(w_tile), acc, UPCAST)
        if NORM == 2:
            by_weight, by_bias = norm_terms(w_tile, norm_weight, norm_bias, start, K, CHUNK)
            slope += by_weight
            shift += by_bias
        if GATED:
            w_tile = weight_chunk(w_2, mine, start, wide, K, stride_k, stride_c, CHUNK)
            acc_2 = product(tile, tl.trans(w_tile), acc_2, UPCAST)
            if NORM == 2:
                by_weight, by_bias = norm_terms(w_tile, norm_weight, norm_bias, start, K, CHUNK)
                slope_2 += by_weight
                shift_2 += by_bias
    finish_tile(
        acc, acc_2, shift[None, :], shift_2[None, :], slope[None, :], slope_2[None, :], scale, mean, sums, out, stream,
        next_weight, rows, first + mine, mine < wide, N, C, NORM, ACT, GATED, UPCAST,
    )  # fmt: skip


@triton.jit
def row_chunk(x, rows, first, N, K: tl.constexpr, CHUNK: tl.constexpr):
    """x[rows, first : first + CHUNK], zeros beyond K and N."""
    k = first + tl.arange(0, CHUNK)
    return tl.load(x + rows[:, None] * K + k[None, :], mask=(rows[:, None] < N) & (k[None, :] < K), other=0.0)


@triton.jit
def norm_scale(sums, rows, N, eps, K: tl.constexpr, NORM: tl.constexpr, TILES: tl.constexpr, BLOCK_T: tl.constexpr):
    """By what a norm multiplies rows of the stream, and for LayerNorm their means; 1 and 0 where there is none."""
    scale = 1.0
    mean = 0.0
    if NORM:
        square = row_sums(sums, rows, N, 1, TILES, BLOCK_T) / K
        if NORM == 2:
            mean = row_sums(sums, rows, N, 0, TILES, BLOCK_T) / K
            square -= mean * mean
        scale = tl.rsqrt(square + eps)
    return scale, mean


@triton.jit
def finish_tile(
    acc, acc_2, shift, shift_2, slope, slope_2, scale, mean, sums, out, stream, next_weight, rows, cols, ok, N,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Norm, bias, activation and gate of a tile of products; stored, or added to the stream."""
    if NORM == 2:
        acc -= mean[:, None] * slope
        acc_2 -= mean[:, None] * slope_2
    if NORM:
        acc *= scale[:, None]
        acc_2 *= scale[:, None]
    acc = activated(acc + shift, ACT)
    if GATED:
        acc *= acc_2 + shift_2
    if stream is not None:
        add_to_stream(acc, stream, out, next_weight, sums, rows, cols, tl.program_id(0), N, C, UPCAST)
    else:
        here = (rows[:, None] < N) & ok[None, :]
        tl.store(out + rows[:, None] * C + cols[None, :], narrow(acc, out.dtype.element_ty, UPCAST), mask=here)


@triton.jit
def add_to_stream(y, stream, scaled, weight, sums, rows, cols, tile, N, C: tl.constexpr, UPCAST: tl.constexpr):
    """stream += y; what the next norm needs of it: its product with the norm's weight, and this tile's sums."""
    ok = (rows[:, None] < N) & (cols[None, :] < C)
    at = rows[:, None] * C + cols[None, :]
    y = tl.where(ok, y + tl.load(stream + at, mask=ok, other=0.0), 0.0)
    tl.store(stream + at, y, mask=ok)
    weight = tl.load(weight + cols, mask=cols < C, other=0.0).to(tl.float32)
    tl.store(scaled + at, narrow(y * weight[None, :], scaled.dtype.element_ty, UPCAST), mask=ok)
    place = sums + (tile * N + rows) * 2
    tl.store(place, tl.sum(y, 1), mask=rows < N)
    tl.store(place + 1, tl.sum(y * y, 1), mask=rows < N)
