"""Projections of a decoder layer at one position, for few rows and for many; `triton.py` puts them together."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.layer_tiles import activated
from kernels.tiles import narrow, product


@triton.jit
def lead(PDL: tl.constexpr):
    """Let the kernel after begin to fetch its weights as soon as there is room for it (PDL 2)."""
    if PDL == 2:
        gdc_launch_dependents()


@triton.jit
def follow(PDL: tl.constexpr):
    """Wait for the kernel before, and only then let the one after begin (PDL 1)."""
    if PDL:
        gdc_wait()
        if PDL == 1:
            gdc_launch_dependents()


@triton.jit
def weight_chunk(w, cols, first, C, K: tl.constexpr, stride_k, stride_c, CHUNK: tl.constexpr):
    """w[cols, first : first + CHUNK], zeros beyond K and C."""
    k = first + tl.arange(0, CHUNK)
    at = cols[:, None].to(tl.int64) * stride_c + k[None, :].to(tl.int64) * stride_k
    return tl.load(w + at, mask=(cols[:, None] < C) & (k[None, :] < K), other=0.0)


@triton.jit
def sums_tile(
    sums, rows, N, WHICH: tl.constexpr, WANTED: tl.constexpr, TILES: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Each tile's sum of x (0) or x^2 (1) of some rows of the stream; zeros where nobody wants them."""
    if WANTED > 0:
        t = tl.arange(0, BLOCK_T)
        at = (t[None, :] * N + rows[:, None]) * 2 + WHICH
        return tl.load(sums + at, mask=(t[None, :] < TILES) & (rows[:, None] < N), other=0.0)
    else:
        return tl.zeros((BLOCK_N, 1), tl.float32)


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
    GATED: tl.constexpr, TILES: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, COPIES: tl.constexpr, PDL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of act(norm(x) w + bias), gated by w_2 if asked, of a few rows; added to the stream where there is one.

    All of the tile's weights are asked for before the kernel waits, and all else that it reads as soon as it has: what
    comes after waits for one trip to memory, not for one after the other.
    """
    lead(PDL)
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
    cols = first + mine
    ok = mine < wide
    rows = tl.arange(0, BLOCK_N)
    before = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    after = tl.zeros((BLOCK_C,), tl.float32)
    if stream is not None:
        after += tl.load(next_weight + cols, mask=ok, other=0.0).to(tl.float32)
    copy = tl.zeros((COPIES, 1), tl.int32)
    follow(PDL)
    if stream is not None:
        before += tl.load(stream + rows[:, None] * C + cols[None, :], mask=(rows[:, None] < N) & ok[None, :], other=0.0)
    squares = sums_tile(sums, rows, N, 1, NORM, TILES, BLOCK_N, BLOCK_T)
    totals = sums_tile(sums, rows, N, 0, NORM - 1, TILES, BLOCK_N, BLOCK_T)
    accs = ()
    accs_2 = ()
    for _ in tl.static_range(N):
        accs = accs + (in_copies(tl.zeros((BLOCK_C, CHUNK), tl.float32), COPIES),)  # noqa: RUF005
        accs_2 = accs_2 + (in_copies(tl.zeros((BLOCK_C, CHUNK), tl.float32), COPIES),)  # noqa: RUF005
    for i in tl.static_range((K + CHUNK - 1) // CHUNK):
        # a copy for each warp, so that each thread reads just what it multiplies and none waits for another
        k = i * CHUNK + tl.arange(0, CHUNK)[None, :] + copy
        tile = in_copies(tiles[i], COPIES).to(tl.float32)
        tile_2 = tile
        if GATED:
            tile_2 = in_copies(tiles_2[i], COPIES).to(tl.float32)
        sofar = accs
        sofar_2 = accs_2
        accs = ()
        accs_2 = ()
        for r in tl.static_range(N):
            x_k = tl.load(x + r * K + k, mask=k < K, other=0.0).to(tl.float32)
            if COPIES < BLOCK_C:
                x_k = x_k[None]
            accs = accs + (sofar[r] + tile * x_k,)  # noqa: RUF005
            if GATED:
                accs_2 = accs_2 + (sofar_2[r] + tile_2 * x_k,)  # noqa: RUF005
            else:
                accs_2 = accs_2 + (sofar_2[r],)  # noqa: RUF005
    acc = rows_of(accs, N, BLOCK_N, BLOCK_C)
    acc_2 = acc
    if GATED:
        acc_2 = rows_of(accs_2, N, BLOCK_N, BLOCK_C)
    scale, mean = scale_of(squares, totals, eps, K, NORM, BLOCK_N)
    finish_tile(
        acc, acc_2, shift[None, :], shift_2[None, :], slope[None, :], slope_2[None, :], scale, mean, sums, out, stream,
        before, after, rows, cols, ok, N, C, NORM, ACT, GATED, UPCAST,
    )  # fmt: skip


@triton.jit
def in_copies(tile, COPIES: tl.constexpr):
    """A tile (BLOCK_C, CHUNK) as (BLOCK_C / COPIES, COPIES, CHUNK), to be multiplied by COPIES equal rows."""
    if tile.shape[0] > COPIES:
        return tl.reshape(tile, (tile.shape[0] // COPIES, COPIES, tile.shape[1]))
    else:
        return tile


@triton.jit
def rows_of(accs, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """Each row's sums over the inner length, (BLOCK_N, BLOCK_C)."""
    if BLOCK_N == 1:
        return tl.reshape(tl.sum(accs[0], -1), (1, BLOCK_C))
    else:
        row = tl.arange(0, BLOCK_N)[:, None]
        out = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for r in tl.static_range(N):
            out = tl.where(row == r, tl.reshape(tl.sum(accs[r], -1), (1, BLOCK_C)), out)
        return out


@triton.jit(do_not_specialize=["N"])
def matrix_kernel(
    x, sums, norm_weight, norm_bias, w, w_2, w_3, bias, bias_2, bias_3, stride_k, stride_c,
    out, stream, next_weight, parts, arrived, N, eps,
    K: tl.constexpr, C: tl.constexpr, C_1: tl.constexpr, C_2: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, TILES: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The same of many rows, with tensor cores.

    What LayerNorm's weight and bias, times the weights, give each column is a product too, of two rows more: made of
    the tile that tensor cores read, not of another copy in registers. A stream's columns are few tiles, so that SPLITS
    programs share the inner length of each, and the last of them adds up the parts in their order.
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
    if bias is not None:
        shift += tl.load(bias + mine, mask=mine < wide, other=0.0).to(tl.float32)
        if GATED:
            shift_2 += tl.load(bias_2 + mine, mask=mine < wide, other=0.0).to(tl.float32)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    pair = tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    acc_2 = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    of_norm = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    of_norm_2 = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    EACH: tl.constexpr = ((K + CHUNK * SPLITS - 1) // (CHUNK * SPLITS)) * CHUNK
    low = tl.program_id(2) * EACH
    for start in range(low, tl.minimum(low + EACH, K), CHUNK):
        tile = row_chunk(x, rows, start, N, K, CHUNK)
        w_tile = weight_chunk(w, mine, start, wide, K, stride_k, stride_c, CHUNK)
        acc = product(tile, tl.trans(w_tile), acc, UPCAST)
        if NORM == 2:
            affine = norm_rows(norm_weight, norm_bias, pair, start, K, CHUNK)
            of_norm = product(affine, tl.trans(w_tile), of_norm, UPCAST)
        if GATED:
            w_tile = weight_chunk(w_2, mine, start, wide, K, stride_k, stride_c, CHUNK)
            acc_2 = product(tile, tl.trans(w_tile), acc_2, UPCAST)
            if NORM == 2:
                of_norm_2 = product(affine, tl.trans(w_tile), of_norm_2, UPCAST)
    if NORM == 2:
        slope += tl.sum(tl.where(pair[:, None] == 0, of_norm, 0.0), 0)
        shift += tl.sum(tl.where(pair[:, None] == 1, of_norm, 0.0), 0)
        if GATED:
            slope_2 += tl.sum(tl.where(pair[:, None] == 0, of_norm_2, 0.0), 0)
            shift_2 += tl.sum(tl.where(pair[:, None] == 1, of_norm_2, 0.0), 0)
    cols = first + mine
    ok = mine < wide
    last = True
    if SPLITS > 1:
        at = rows[:, None] * C + cols[None, :]
        there = (rows[:, None] < N) & ok[None, :]
        tl.store(parts + tl.program_id(2) * N * C + at, acc, mask=there)
        tl.debug_barrier()
        tile_of = arrived + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        last = tl.atomic_add(tile_of, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if last:
            acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
            for s in tl.static_range(SPLITS):
                acc += tl.load(parts + s * N * C + at, mask=there, other=0.0, cache_modifier=".cg")
            tl.store(tile_of, 0)
    if last:
        before = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        after = tl.zeros((BLOCK_C,), tl.float32)
        if stream is not None:
            here = (rows[:, None] < N) & ok[None, :]
            before += tl.load(stream + rows[:, None] * C + cols[None, :], mask=here, other=0.0)
            after += tl.load(next_weight + cols, mask=ok, other=0.0).to(tl.float32)
        squares = sums_tile(sums, rows, N, 1, NORM, TILES, BLOCK_N, BLOCK_T)
        totals = sums_tile(sums, rows, N, 0, NORM - 1, TILES, BLOCK_N, BLOCK_T)
        scale, mean = scale_of(squares, totals, eps, K, NORM, BLOCK_N)
        finish_tile(
            acc, acc_2, shift[None, :], shift_2[None, :], slope[None, :], slope_2[None, :], scale, mean, sums, out,
            stream, before, after, rows, cols, ok, N, C, NORM, ACT, GATED, UPCAST,
        )  # fmt: skip


@triton.jit
def norm_rows(norm_weight, norm_bias, pair, first, K: tl.constexpr, CHUNK: tl.constexpr):
    """A chunk of LayerNorm's weight and bias as the first two rows of a tile of zeros."""
    k = first + tl.arange(0, CHUNK)
    which = tl.where(pair[:, None] == 1, norm_bias, norm_weight)
    return tl.load(which + k[None, :], mask=(pair[:, None] < 2) & (k[None, :] < K), other=0.0)


@triton.jit
def row_chunk(x, rows, first, N, K: tl.constexpr, CHUNK: tl.constexpr):
    """x[rows, first : first + CHUNK], zeros beyond K and N."""
    k = first + tl.arange(0, CHUNK)
    return tl.load(x + rows[:, None] * K + k[None, :], mask=(rows[:, None] < N) & (k[None, :] < K), other=0.0)


@triton.jit
def scale_of(squares, totals, eps, K: tl.constexpr, NORM: tl.constexpr, BLOCK_N: tl.constexpr):
    """By what a norm multiplies rows of the stream, and for LayerNorm their means; 1 and 0 where there is none."""
    scale = tl.full((BLOCK_N,), 1.0, tl.float32)
    mean = tl.zeros((BLOCK_N,), tl.float32)
    if NORM:
        square = tl.sum(squares, 1) / K
        if NORM == 2:
            mean += tl.sum(totals, 1) / K
            square -= mean * mean
        scale *= tl.rsqrt(square + eps)
    return scale, mean


@triton.jit
def finish_tile(
    acc, acc_2, shift, shift_2, slope, slope_2, scale, mean, sums, out, stream, before, after, rows, cols, ok, N,
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
        add_to_stream(acc + before, stream, out, after, sums, rows, cols, tl.program_id(0), N, C, UPCAST)
    else:
        here = (rows[:, None] < N) & ok[None, :]
        tl.store(out + rows[:, None] * C + cols[None, :], narrow(acc, out.dtype.element_ty, UPCAST), mask=here)


@triton.jit
def add_to_stream(y, stream, scaled, weight, sums, rows, cols, tile, N, C: tl.constexpr, UPCAST: tl.constexpr):
    """The stream is y; what the next norm needs of it: its product with the norm's weight, and this tile's sums."""
    ok = (rows[:, None] < N) & (cols[None, :] < C)
    at = rows[:, None] * C + cols[None, :]
    y = tl.where(ok, y, 0.0)
    tl.store(stream + at, y, mask=ok)
    tl.store(scaled + at, narrow(y * weight[None, :], scaled.dtype.element_ty, UPCAST), mask=ok)
    place = sums + (tile * N + rows) * 2
    tl.store(place, tl.sum(y, 1), mask=rows < N)
    tl.store(place + 1, tl.sum(y * y, 1), mask=rows < N)
