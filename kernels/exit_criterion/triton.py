"""The second difference in one launch, KL in two.

KL: each program takes 16 rows and every n-th tile of the vocabulary, n the number of splits, multiplies one read of E
with both states, and keeps, online, for z = h e and y = before e: the maxima m and k, the sums s and r of exponentials
below them, and u = sum exp(z - m) ((z - m) - (y - k)). Joined: KL = u / s - (log s - log r).
The second launch joins them: as a dozen of torch's it took as long as reading the table.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import product


@triton.jit(do_not_specialize=["N"])
def difference_kernel(
    h, before, earlier, out, N, D, stride_h, stride_b, stride_e, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    second = tl.zeros((BLOCK_D,), tl.float32)
    now = tl.zeros((BLOCK_D,), tl.float32)
    then = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(h + row * stride_h + d, mask=d < D, other=0.0).to(tl.float32)
        y = tl.load(before + row * stride_b + d, mask=d < D, other=0.0).to(tl.float32)
        z = tl.load(earlier + row * stride_e + d, mask=d < D, other=0.0).to(tl.float32)
        second += (x - 2 * y + z) * (x - 2 * y + z)
        now += (x - y) * (x - y)
        then += (y - z) * (y - z)
    tl.store(out + row, tl.sqrt(tl.sum(second, 0)))
    tl.store(out + N + row, tl.sqrt(tl.sum(now, 0)))
    tl.store(out + 2 * N + row, tl.sqrt(tl.sum(then, 0)))


@triton.jit(do_not_specialize=["N", "V", "splits"])
def kl_kernel(
    h, before, e, stats, N, V, D, stride_h, stride_b, stride_e, splits,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    ok = rows < N
    far_rows = rows[:, None].to(tl.int64)
    m = tl.full((BLOCK_N,), -1e38, tl.float32)
    k = tl.full((BLOCK_N,), -1e38, tl.float32)
    s = tl.zeros((BLOCK_N,), tl.float32)
    r = tl.zeros((BLOCK_N,), tl.float32)
    u = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(split * BLOCK_V, V, splits * BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        z = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        y = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            e_tile = tl.load(
                e + cols[:, None].to(tl.int64) * stride_e + d[None, :],
                mask=(cols[:, None] < V) & (d[None, :] < D), other=0.0,
            )  # fmt: skip
            there = ok[:, None] & (d[None, :] < D)
            h_tile = tl.load(h + far_rows * stride_h + d[None, :], mask=there, other=0.0)
            b_tile = tl.load(before + far_rows * stride_b + d[None, :], mask=there, other=0.0)
            z = product(h_tile, tl.trans(e_tile), z, UPCAST)
            y = product(b_tile, tl.trans(e_tile), y, UPCAST)
        inside = cols[None, :] < V
        z = tl.where(inside, z, -1e38)
        y = tl.where(inside, y, -1e38)
        new_m = tl.maximum(m, tl.max(z, 1))
        new_k = tl.maximum(k, tl.max(y, 1))
        p = tl.where(inside, tl.exp(z - new_m[:, None]), 0.0)
        scale = tl.exp(m - new_m)
        shift = tl.where(s > 0, (m - k) - (new_m - new_k), 0.0)
        gap = (z - new_m[:, None]) - (y - new_k[:, None])
        u = scale * (u + s * shift) + tl.sum(tl.where(inside, p * gap, 0.0), 1)
        s = scale * s + tl.sum(p, 1)
        r = tl.exp(k - new_k) * r + tl.sum(tl.where(inside, tl.exp(y - new_k[:, None]), 0.0), 1)
        m = new_m
        k = new_k
    at = stats + split * 5 * N + rows
    tl.store(at, m, mask=ok)
    tl.store(at + N, s, mask=ok)
    tl.store(at + 2 * N, k, mask=ok)
    tl.store(at + 3 * N, r, mask=ok)
    tl.store(at + 4 * N, u, mask=ok)


@triton.jit(do_not_specialize=["N", "splits"])
def join_kernel(stats, out, N, splits, BLOCK_S: tl.constexpr):
    """One row's KL from all splits."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_S)
    ok = part < splits
    at = stats + part * 5 * N + row
    m = tl.load(at, mask=ok, other=-1e38)
    s = tl.load(at + N, mask=ok, other=0.0)
    k = tl.load(at + 2 * N, mask=ok, other=-1e38)
    r = tl.load(at + 3 * N, mask=ok, other=0.0)
    u = tl.load(at + 4 * N, mask=ok, other=0.0)
    below = m - tl.max(m, 0)
    below_k = k - tl.max(k, 0)
    scale = tl.exp(below)
    total = tl.sum(scale * s, 0)
    gap = tl.sum(scale * (u + s * (below - below_k)), 0) / total  # mean of (z - max z) - (y - max y)
    tl.store(out + row, gap - (tl.log(total) - tl.log(tl.sum(tl.exp(below_k) * r, 0))))


def second_difference(h_ND: Tensor, before_ND: Tensor, earlier_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, d = h_ND.shape
    out = h_ND.new_empty(3, n, dtype=torch.float32)
    if n:
        difference_kernel[(n,)](
            h_ND, before_ND, earlier_ND, out, n, d, h_ND.stride(0), before_ND.stride(0), earlier_ND.stride(0),
            BLOCK_D=min(1024, triton.next_power_of_2(d)),
        )  # fmt: skip
    return out.unbind(0)


def step_kl(h_ND: Tensor, before_ND: Tensor, e_VD: Tensor) -> Tensor:
    (n, d), v = h_ND.shape, len(e_VD)
    row_tiles = triton.cdiv(n, 16)
    splits = max(1, min(triton.cdiv(v, 128), 264 // max(1, row_tiles)))
    stats, out = h_ND.new_empty(splits, 5, n, dtype=torch.float32), h_ND.new_empty(n, dtype=torch.float32)
    if n:
        kl_kernel[(row_tiles, splits)](
            h_ND, before_ND, e_VD, stats, n, v, d, h_ND.stride(0), before_ND.stride(0), e_VD.stride(0), splits,
            BLOCK_N=16, BLOCK_V=128, BLOCK_D=64, UPCAST=interpreted(), num_warps=8, num_stages=3,
        )  # fmt: skip
        join_kernel[(n,)](stats, out, n, splits, BLOCK_S=triton.next_power_of_2(splits))
    return out
