"""Attention of a decoder layer at one position over a cache, cut into parts where there are few rows."""

import triton
import triton.language as tl

from kernels.decode_step.projection import follow, lead
from kernels.tiles import narrow


@triton.jit(do_not_specialize=["step", "room", "N"])
def attend_kernel(
    qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, hidden, out, parts, stats, arrived, sizes, step, N, room,
    eps, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One row, one head and one part of the cache: prepare q, k, v of the new position and attend.

    The first part also attends the new position, and of the heads that share a k and v the first one appends them.
    Where there are several parts, the one that is last puts them together, in their order.
    """
    lead(PDL)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    kv_head = head // (H // H_KV)
    d = tl.arange(0, BLOCK_D)
    one = tl.zeros((1,), tl.int32)
    cache = (row * H_KV + kv_head) * room * D
    size = tl.load(sizes + step)  # positions before this one
    each = tl.cdiv(tl.cdiv(size, PARTS), BLOCK_S) * BLOCK_S
    low = part * each
    high = tl.minimum(low + each, size)
    # positions of earlier steps: nothing that still runs writes them
    k_tile, v_tile, seen = cache_tile(k_cache, v_cache, hidden, cache, row * room, low, high, d, D, BLOCK_S)
    turn = row * D + d[None, :]
    ok = d[None, :] < D
    q_w = 0.0
    q_wy = 0.0
    k_w = 0.0
    k_wy = 0.0
    cosine = 0.0
    sine = 0.0
    if NORM:
        q_w, q_wy = head_weights(q_weight, d, D, ROPE)
        k_w, k_wy = head_weights(k_weight, d, D, ROPE)
    if ROPE:
        cosine = tl.load(cos + turn, mask=ok, other=0.0)
        sine = tl.load(sin + turn, mask=ok, other=0.0)
    follow(PDL)
    base = qkv + row * (H + 2 * H_KV) * D
    q, q_y = head_pair(base, one + head, one == 0, d, D, ROPE)
    k_raw, k_y = head_pair(base, one + H + kv_head, one == 0, d, D, ROPE)
    v_raw, _ = head_pair(base, one + H + H_KV + kv_head, one == 0, d, D, 0)
    q = head_turned(q, q_y, q_w, q_wy, cosine, sine, D, eps, NORM, ROPE) * scale
    m = tl.full((1,), -1e38, tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((1, BLOCK_D), tl.float32)
    if part == 0:
        k = head_turned(k_raw, k_y, k_w, k_wy, cosine, sine, D, eps, NORM, ROPE)
        at = cache + (size + one[:, None]) * D + d[None, :]
        k = narrow(k, k_cache.dtype.element_ty, UPCAST)
        v = narrow(v_raw, k_cache.dtype.element_ty, UPCAST)
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


@triton.jit
def head_pair(base, heads, ok, d, D: tl.constexpr, PAIR: tl.constexpr):
    """Vectors `heads` of width D, and what a rotation adds of them: their halves exchanged, the second negated."""
    there = ok[:, None] & (d[None, :] < D)
    x = tl.load(base + heads[:, None] * D + d[None, :], mask=there, other=0.0).to(tl.float32)
    y = x
    if PAIR:
        half: tl.constexpr = D // 2
        other = tl.where(d < half, d + half, d - half)
        y = tl.load(base + heads[:, None] * D + other[None, :], mask=there, other=0.0).to(tl.float32)
        y = tl.where(d < half, -y, y)
    return x, y


@triton.jit
def head_weights(weight, d, D: tl.constexpr, PAIR: tl.constexpr):
    """A norm's weights of a head, (1, D), and the same with the halves exchanged."""
    x = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    y = x
    if PAIR:
        half: tl.constexpr = D // 2
        y = tl.load(weight + tl.where(d < half, d + half, d - half), mask=d < D, other=0.0)
        y = y.to(tl.float32)[None, :]
    return x, y


@triton.jit
def head_turned(x, y, weight, weight_y, cos, sin, D: tl.constexpr, eps, NORM: tl.constexpr, ROPE: tl.constexpr):
    """Vectors of heads, RMS-normed and rotated where the family does: `head_pair` and `head_weights`, put together."""
    if NORM:
        rstd = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = x * rstd * weight
        if ROPE:
            y = y * rstd * weight_y
    if ROPE:
        x = x * cos + y * sin
    return x
