"""A decoder layer at one position in five launches, made for the bandwidth of small batches.

    1  qkv   = norm_1(x) W_qkv + b                        vector_kernel or matrix_kernel
    2  norm of q, k; rotary; append to the cache; attend  attend_kernel
    3  x    += a W_out + b                                as 1
    4  inner = act(norm_2(x) W_up + b) ...                as 1
    5  x    += inner W_down + b                           as 1

What bounds a step is how fast the weights stream. Up to FEW rows are multiplied without tensor cores, which would want
sixteen: a program asks for its whole tile of weights at once, and on Hopper and newer it does so while the kernel
before still runs (programmatic dependent launch). More rows go through tensor cores, a pipelined loop over the input's
length.

The residual stream x stays in fp32. Whoever adds to it also leaves its product with the next norm's weight in the
model's dtype, and its tile's sums of x and x^2: a norm is then a scale (and, for LayerNorm, a shift) of what the next
projection gives, and nobody reads the stream twice. q, k and v are read where the model keeps them.

Measured on an H100 before it was settled (paper/LOG.md): parts of the cache put together by the projection that reads
them, all heads of a K and V in one program, whole weight tiles in registers for tensor cores, and dependent launch of
the matrix kernels were all slower.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.decoder import Affine, Decoder
from kernels.dispatch import interpreted
from kernels.layer_tiles import ACTS, NORMS, activated, head_vectors
from kernels.tiles import narrow, product

FEW = 4  # rows up to which products go without tensor cores
WARPS = 4  # of a vector kernel's program
CHUNK = 256  # of a product's inner length: 8 numbers for each thread of a warp
IN_FLIGHT = 32 * 1024  # bytes of weights that a program asks for at once, about
PARTS = 16  # of the cache at most, attended by different programs


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


@triton.jit(do_not_specialize=["N"])
def enter_kernel(
    x, add, weight, stream, scaled, sums, N,
    C: tl.constexpr, TILES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The stream of one row begins: its input, and what the position adds."""
    follow(PDL)
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK_C)
    ok = cols < C
    y = tl.load(x + row * C + cols, mask=ok, other=0.0).to(tl.float32)
    y += tl.load(add + row * C + cols, mask=ok, other=0.0).to(tl.float32)
    y = narrow(y, x.dtype.element_ty, UPCAST).to(tl.float32)  # the input of a layer is in the model's dtype
    tl.store(stream + row * C + cols, y, mask=ok)
    weight = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(scaled + row * C + cols, narrow(y * weight, scaled.dtype.element_ty, UPCAST), mask=ok)
    t = tl.arange(0, BLOCK_T)
    place = sums + (t * N + row) * 2
    tl.store(place, tl.where(t == 0, tl.sum(y, 0), 0.0), mask=t < TILES)
    tl.store(place + 1, tl.where(t == 0, tl.sum(y * y, 0), 0.0), mask=t < TILES)


@triton.jit(do_not_specialize=["N"])
def leave_kernel(
    stream, weight, bias, out, N, eps,
    C: tl.constexpr, NORM: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The final norm of one row of the stream."""
    follow(PDL)
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK_C)
    ok = cols < C
    y = tl.load(stream + row * C + cols, mask=ok, other=0.0)
    if NORM == 2:
        y = tl.where(ok, y - tl.sum(y, 0) / C, 0.0)
    y *= tl.rsqrt(tl.sum(y * y, 0) / C + eps)
    y *= tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32)
    if NORM == 2:
        y += tl.load(bias + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * C + cols, narrow(y, out.dtype.element_ty, UPCAST), mask=ok)


@triton.jit(do_not_specialize=["size", "room", "N"])
def attend_kernel(
    qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, hidden, out, parts, stats, arrived, N, size, room, eps, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One row, one head and one part of the cache: prepare q, k, v of the new position and attend.

    The first part also attends the new position, and of the heads that share a k and v the first one appends them.
    Where there are several parts, the one that is last puts them together, in their order.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    kv_head = head // (H // H_KV)
    d = tl.arange(0, BLOCK_D)
    one = tl.zeros((1,), tl.int32)
    cache = (row * H_KV + kv_head) * room * D
    each = tl.cdiv(tl.cdiv(size, PARTS), BLOCK_S) * BLOCK_S
    low = part * each
    high = tl.minimum(low + each, size)
    # positions of earlier steps: nothing that still runs writes them
    k_tile, v_tile, seen = cache_tile(k_cache, v_cache, hidden, cache, row * room, low, high, d, D, BLOCK_S)
    follow(PDL)
    base = qkv + row * (H + 2 * H_KV) * D
    turn = row * D + d[None, :]
    ok = d[None, :] < D
    q = head_vectors(base, one + head, one == 0, q_weight, cos, sin, turn, ok, d, D, eps, NORM, ROPE) * scale
    m = tl.full((1,), -1e38, tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((1, BLOCK_D), tl.float32)
    if part == 0:
        k = head_vectors(base, one + H + kv_head, one == 0, k_weight, cos, sin, turn, ok, d, D, eps, NORM, ROPE)
        v = head_vectors(base, one + H + H_KV + kv_head, one == 0, k_weight, cos, sin, turn, ok, d, D, eps, 0, 0)
        at = cache + (size + one[:, None]) * D + d[None, :]
        k = narrow(k, k_cache.dtype.element_ty, UPCAST)
        v = narrow(v, k_cache.dtype.element_ty, UPCAST)
        if head % (H // H_KV) == 0:
            tl.store(k_cache + at, k, mask=ok)
            tl.store(v_cache + at, v, mask=ok)
        m = tl.sum(q * k.to(tl.float32), 1)
        total += 1.0
        acc += v.to(tl.float32)
    for start in range(low, high, BLOCK_S):
        if not AHEAD and start > low:
            k_tile, v_tile, seen = cache_tile(k_cache, v_cache, hidden, cache, row * room, start, high, d, D, BLOCK_S)
        k_now = k_tile
        v_now = v_tile
        shown = seen
        if AHEAD:
            k_tile, v_tile, seen = cache_tile(
                k_cache, v_cache, hidden, cache, row * room, start + BLOCK_S, high, d, D, BLOCK_S
            )
        score = tl.where(shown, tl.sum(k_now.to(tl.float32) * q, 1), -1e38)
        new = tl.maximum(m, tl.max(score, 0))
        p = tl.where(shown, tl.exp(score - new), 0.0)
        fade = tl.exp(m - new)
        total = total * fade + tl.sum(p, 0)
        acc = acc * fade[:, None] + tl.sum(p[:, None] * v_now.to(tl.float32), 0)[None, :]
        m = new
    mine = row * H + head
    if PARTS == 1:
        tl.store(out + mine * D + d[None, :], narrow(acc / total[:, None], out.dtype.element_ty, UPCAST), mask=ok)
    else:
        here = part * N * H + mine
        tl.store(stats + 2 * here + one, m)
        tl.store(stats + 2 * here + 1 + one, total)
        tl.store(parts + here * D + d[None, :], acc, mask=ok)
        tl.debug_barrier()
        if tl.atomic_add(arrived + mine, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
            i = tl.arange(0, BLOCK_P)
            at_P = i * N * H + mine
            m_P = tl.load(stats + 2 * at_P, mask=i < PARTS, other=-1e38, cache_modifier=".cg")
            total_P = tl.load(stats + 2 * at_P + 1, mask=i < PARTS, other=0.0, cache_modifier=".cg")
            there = (i[:, None] < PARTS) & ok
            acc_PD = tl.load(parts + at_P[:, None] * D + d[None, :], mask=there, other=0.0, cache_modifier=".cg")
            fade_P = tl.exp(m_P - tl.max(m_P, 0))
            acc_D = tl.sum(acc_PD * fade_P[:, None], 0) / tl.sum(total_P * fade_P, 0)
            tl.store(out + mine * D + d, narrow(acc_D, out.dtype.element_ty, UPCAST), mask=d < D)
            tl.store(arrived + mine, 0)


@triton.jit
def cache_tile(k_cache, v_cache, hidden, cache, hidden_row, start, high, d, D: tl.constexpr, BLOCK_S: tl.constexpr):
    """K and V of some positions, and which of them may be attended; past L1, which other programs' writes leave old."""
    s = start + tl.arange(0, BLOCK_S)
    there = (s[:, None] < high) & (d[None, :] < D)
    at = cache + s[:, None] * D + d[None, :]
    k_tile = tl.load(k_cache + at, mask=there, other=0.0, cache_modifier=".cg")
    v_tile = tl.load(v_cache + at, mask=there, other=0.0, cache_modifier=".cg")
    seen = (tl.load(hidden + hidden_row + s, mask=s < high, other=1) == 0) & (s < high)
    return k_tile, v_tile, seen


class Step:
    """A decoder made ready for one-position steps of a batch: the buffers between the launches, and their tiles."""

    def __init__(self, decoder: Decoder, batch: int):
        self.decoder, self.n, self.few = decoder, batch, batch <= FEW
        like, self.width = decoder.norm[0], decoder.norm[0].shape[0]
        first = decoder.layers[0]
        heads, inner = decoder.heads * decoder.d, first.down[0].shape[0]
        self.dependent = self.few and _has_dependent_launch(like.device)
        self.narrow_c = self.columns(first.out[0], first.down[0]) if self.few else 16
        self.tiles = triton.cdiv(self.width, self.narrow_c)
        full = {"dtype": torch.float32, "device": like.device}
        self.stream = torch.empty(batch, self.width, **full)
        self.scaled = like.new_empty(batch, self.width)
        self.sums = torch.empty(self.tiles, batch, 2, **full)
        self.qkv = like.new_empty(batch, (decoder.heads + 2 * decoder.kv_heads) * decoder.d)
        self.a, self.inner = like.new_empty(batch, heads), like.new_empty(batch, inner)
        parts = PARTS if self.few else 1
        self.parts, self.stats = (
            torch.empty(parts, batch, heads, **full),
            torch.empty(parts, batch, decoder.heads, 2, **full),
        )
        self.arrived = torch.zeros(batch, decoder.heads, dtype=torch.int32, device=like.device)

    def columns(self, *weights: Tensor) -> int:
        """Columns of a tile that makes a good number of bytes of each weight."""
        longest, each = max(w.shape[0] for w in weights), weights[0].element_size()
        size = min(16, IN_FLIGHT // (longest * each))
        if weights[0].stride(0) != 1:  # (in, out) in memory: 32 bytes of a row at least
            size = max(size, 32 // each)
        return 1 << max(0, size.bit_length() - 1)

    def __call__(
        self, x_BD: Tensor, add_BD: Tensor, kv: list[tuple[Tensor, Tensor]], size: int, rope: tuple | None,
        hidden_BS: Tensor, out_BD: Tensor,
    ) -> None:  # fmt: skip
        """Final hidden state of x + add into `out_BD`; k and v into each layer's cache (B, H_kv, room, d) at `size`.

        `rope`: cosines and sines (B, d) in fp32. `hidden_BS`: uint8 (B, room), 1 = not to be attended.
        """
        dec, n = self.decoder, self.n
        plain = {"PDL": False, "UPCAST": interpreted(), "num_warps": 4}
        chained = plain | ({"PDL": True, "launch_pdl": True} if self.dependent else {})
        wide_d = triton.next_power_of_2(dec.d)
        row = {"C": self.width, "BLOCK_C": triton.next_power_of_2(self.width)}
        tile = {"TILES": self.tiles, "BLOCK_T": triton.next_power_of_2(self.tiles)}
        room = kv[0][0].shape[2]
        parts = min(len(self.parts), triton.cdiv(room, 64))
        halves = 2 if x_BD.dtype == torch.float32 else 1  # as many bytes a tile, whatever the dtype
        attention = {"BLOCK_S": 64 // halves, "AHEAD": False}
        if not self.few:  # programs enough: of one warp, which reads the next positions while it attends these
            attention = {"BLOCK_S": 16 // halves, "AHEAD": True, "num_warps": 1}
        enter_kernel[(n,)](
            x_BD, add_BD, dec.layers[0].norm_1[0], self.stream, self.scaled, self.sums, n, **row, **tile, **plain
        )
        norms = [layer.norm_1[0] for layer in dec.layers[1:]] + [dec.norm[0]]
        for layer, (k, v), after in zip(dec.layers, kv, norms):
            self.project(self.scaled, layer.qkv, self.qkv, chained | tile, norm=layer.norm_1)
            q_weight, k_weight = (pair[0] for pair in layer.qk_norm) if layer.qk_norm else (None, None)
            attend_kernel[(n, dec.heads, parts)](
                self.qkv, q_weight, k_weight, *(rope or (self.qkv, self.qkv)), k, v, hidden_BS,
                self.a, self.parts, self.stats, self.arrived, n, size, room, dec.eps, dec.d**-0.5,
                H=dec.heads, H_KV=dec.kv_heads, D=dec.d, NORM=bool(layer.qk_norm), ROPE=rope is not None, PARTS=parts,
                BLOCK_P=triton.next_power_of_2(parts), BLOCK_D=wide_d, **chained | attention,
            )  # fmt: skip
            self.project(self.a, (layer.out,), None, chained | tile, then=layer.norm_2[0])
            self.project(self.scaled, layer.up, self.inner, chained | tile, norm=layer.norm_2, act=dec.act)
            self.project(self.inner, (layer.down,), None, chained | tile, then=after)
        leave_kernel[(n,)](self.stream, *dec.norm, out_BD, n, dec.eps, NORM=NORMS[dec.kind], **row, **chained)

    def project(
        self, x: Tensor, affines: tuple[Affine, ...], out: Tensor | None, options: dict, norm: Affine | None = None,
        act: str = "none", then: Tensor | None = None,
    ) -> None:  # fmt: skip
        """One launch of a projection. `out` None: to the stream, whose next norm has the weight `then`."""
        n, gated = self.n, len(affines) == 2
        weights, biases = zip(*affines)
        w, widths = weights[0], [w.shape[1] for w in weights[: 1 if gated else 3]]
        if out is None:
            block_c = self.narrow_c
        else:
            block_c = max(1, self.columns(*weights) // (2 if gated else 1)) if self.few else 32
        full = w.dtype == torch.float32  # multiplied without tensor cores: small tiles, or they spill
        if full and not self.few:
            block_c = 16
        pad = lambda xs: (*xs, *[None] * (3 - len(xs)))  # noqa: E731
        tensors = (
            x, self.sums, *(norm or (None, None)), *pad(weights), *pad(biases), *w.stride(),
            *((self.scaled, self.stream) if out is None else (out, None)), then,
        )  # fmt: skip
        shape = {
            "K": w.shape[0], "C": sum(widths), "C_1": widths[0], "C_2": widths[1] if len(widths) > 1 else 0,
            "NORM": NORMS[self.decoder.kind] if norm else 0, "ACT": ACTS[act], "GATED": gated, "BLOCK_C": block_c,
        }  # fmt: skip
        tiles = sum(triton.cdiv(wide, block_c) for wide in widths)
        if self.few:
            held = block_c * w.shape[0] * w.element_size() // 4 // 32  # registers of a warp's threads for the tile
            warps = WARPS if n <= 2 or held <= 128 * WARPS else 2 * WARPS
            chunk = CHUNK * max(1, warps // block_c)  # no two warps have the same
            options = options | {"num_warps": warps}
            vector_kernel[(tiles,)](*tensors, self.decoder.eps, N=n, CHUNK=chunk, **shape, **options)
            return
        block_n = 16 if n <= 16 or full else 32 if n <= 32 else 64
        chunk, stages = (64, 3) if full else (256, 4) if n <= 16 else (64 if shape["NORM"] == 2 else 128, 4)
        options = {k: v for k, v in options.items() if k != "PDL"}
        matrix_kernel[(tiles, triton.cdiv(n, block_n))](
            *tensors, n, self.decoder.eps, BLOCK_N=block_n, CHUNK=chunk, num_stages=stages, **shape, **options
        )


def _has_dependent_launch(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9
