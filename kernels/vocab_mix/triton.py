"""Attention with one query over the vocabulary: E is read once, as keys and as values.

Each program takes 16 rows and every n-th tile of E, n the number of splits, whole rows of it, and keeps online what
softmax needs and the unnormalised mix; the splits are joined afterwards. With an untied output embedding two tables are
read, each once. The top-k form has its ids already, and gathers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import narrow, product


@triton.jit(do_not_specialize=["N", "V", "splits"])
def mix_kernel(
    h, e, out, noise, stats, mix, N, V, D, stride_h, stride_e, stride_o, stride_n, inverse_temperature, splits,
    TIED: tl.constexpr, NOISE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    ok = rows < N
    far_rows = rows[:, None].to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    h_tile = tl.load(h + far_rows * stride_h + d[None, :], mask=ok[:, None] & (d[None, :] < D), other=0.0)
    m = tl.full((BLOCK_N,), -1e38, tl.float32)
    s = tl.zeros((BLOCK_N,), tl.float32)
    t = tl.zeros((BLOCK_N,), tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(split * BLOCK_V, V, splits * BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        there = (cols[:, None] < V) & (d[None, :] < D)
        e_tile = tl.load(e + cols[:, None].to(tl.int64) * stride_e + d[None, :], mask=there, other=0.0)
        z = product(h_tile, tl.trans(e_tile), tl.zeros((BLOCK_N, BLOCK_V), tl.float32), UPCAST) * inverse_temperature
        inside = cols[None, :] < V
        if NOISE:
            z += tl.load(noise + far_rows * stride_n + cols[None, :], mask=ok[:, None] & inside, other=0.0)
        z = tl.where(inside, z, -1e38)
        new = tl.maximum(m, tl.max(z, 1))
        x = z - new[:, None]
        p = tl.where(inside, tl.exp(x), 0.0)
        scale = tl.exp(m - new)
        t = scale * (t + s * (m - new)) + tl.sum(tl.where(p > 0, p * x, 0.0), 1)
        s = scale * s + tl.sum(p, 1)
        m = new
        if TIED:
            o_tile = e_tile
        else:
            o_tile = tl.load(out + cols[:, None].to(tl.int64) * stride_o + d[None, :], mask=there, other=0.0)
        acc = product(narrow(p, o_tile.dtype, UPCAST), o_tile, acc * scale[:, None], UPCAST)
    at = stats + split * 3 * N + rows
    tl.store(at, m, mask=ok)
    tl.store(at + N, s, mask=ok)
    tl.store(at + 2 * N, t, mask=ok)
    tl.store(mix + (split * N + far_rows) * D + d[None, :], acc, mask=ok[:, None] & (d[None, :] < D))


@triton.jit(do_not_specialize=["K"])
def gather_kernel(ids, weights, out, mix, K, D, stride_o, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(K):
        at = tl.load(ids + row * K + i)
        acc += tl.load(weights + row * K + i) * tl.load(out + at * stride_o + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(mix + row * D + d, narrow(acc, mix.dtype.element_ty, UPCAST), mask=d < D)


def vocab_mix(
    h_ND: Tensor, e_VD: Tensor, out_VD: Tensor, temperature: float, noise_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), v = h_ND.shape, len(e_VD)
    row_tiles = triton.cdiv(n, 16)
    splits = max(1, min(triton.cdiv(v, 16), 132 // max(1, row_tiles)))
    stats = h_ND.new_empty(splits, 3, n, dtype=torch.float32)
    mix = h_ND.new_empty(splits, n, d, dtype=torch.float32)
    if n:
        mix_kernel[(row_tiles, splits)](
            h_ND, e_VD, out_VD, noise_NV, stats, mix, n, v, d, h_ND.stride(0), e_VD.stride(0), out_VD.stride(0),
            0 if noise_NV is None else noise_NV.stride(0), 1 / temperature, splits,
            TIED=out_VD.data_ptr() == e_VD.data_ptr(), NOISE=noise_NV is not None,
            BLOCK_N=16, BLOCK_V=16, BLOCK_D=max(16, triton.next_power_of_2(d)), UPCAST=interpreted(),
            num_warps=8, num_stages=2,
        )  # fmt: skip
    m, s, t = stats.unbind(1)
    most = m.max(0).values
    scale = (m - most).exp()
    total = (scale * s).sum(0)
    mixed = (scale[..., None] * mix).sum(0) / total[:, None]
    entropy = total.log() - (scale * (t + s * (m - most))).sum(0) / total
    return mixed.to(h_ND.dtype), most + total.log(), entropy


def gather_mix(ids_NK: Tensor, weights_NK: Tensor, out_VD: Tensor) -> Tensor:
    """sum_k weights[n, k] out[ids[n, k]], (N, D)."""
    (n, k), d = ids_NK.shape, out_VD.shape[1]
    mix = out_VD.new_empty(n, d)
    block = min(1024, triton.next_power_of_2(d))
    if n:
        grid = (n, triton.cdiv(d, block))
        gather_kernel[grid](
            ids_NK, weights_NK, out_VD, mix, k, d, out_VD.stride(0), BLOCK_D=block, UPCAST=interpreted()
        )
    return mix
