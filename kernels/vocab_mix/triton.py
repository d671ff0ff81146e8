"""Attention with one query over the vocabulary, in two forms; and the top-k form, which has its ids and gathers.

Few states (`few_kernel`): one read of E. A program is a warp or two, so that hardly any waits for another. It takes
two whole rows of E at a time, multiplies them with the states, and keeps online what softmax needs and an unnormalised
mix, while the next rows are copied to shared memory. A last launch joins the programs.

More states: two products on tensor cores. The first reads E and leaves logits in fp32, with each program's maximum and
sums; once these are joined, the second reads the output embedding, makes the probabilities as it goes, and leaves
partial mixes for a sum. Rows of any width fit, as neither holds a row of E whole.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import logits_tile, narrow, product
from kernels.vocab_mix import by_one_read

FEW_PROGRAMS = 1056  # eight small ones for each of a large GPU's multiprocessors
PROGRAMS = 264  # two of the products


@triton.jit(do_not_specialize=["V", "programs"])
def few_kernel(
    h, e, out, noise, stats, mix, V, D, stride_h, stride_e, stride_o, stride_n, inverse_temperature, programs,
    N: tl.constexpr, TIED: tl.constexpr, NOISE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax statistics (3, N) and unnormalised mix (N, D) of the rows of E that are this program's."""
    program = tl.program_id(0)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mine = (n[:, None] < N) & (d[None, :] < D)
    h_tile = tl.load(h + n[:, None] * stride_h + d[None, :], mask=mine, other=0.0).to(tl.float32)
    m = tl.full((BLOCK_N,), -1e38, tl.float32)
    s = tl.zeros((BLOCK_N,), tl.float32)
    t = tl.zeros((BLOCK_N,), tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in tl.range(program * BLOCK_V, V, programs * BLOCK_V, num_stages=STAGES):
        v = start + tl.arange(0, BLOCK_V)
        rows = v[:, None].to(tl.int64)
        there = (rows < V) & (d[None, :] < D)
        e_tile = tl.load(e + rows * stride_e + d[None, :], mask=there, other=0.0).to(tl.float32)
        z = tl.sum(e_tile[None] * h_tile[:, None, :], 2) * inverse_temperature
        inside = v[None, :] < V
        if NOISE:
            z += tl.load(noise + n[:, None] * stride_n + v[None, :], mask=(n[:, None] < N) & inside, other=0.0)
        z = tl.where(inside, z, -1e38)
        new = tl.maximum(m, tl.max(z, 1))
        x = z - new[:, None]
        p = tl.where(inside, tl.exp(x), 0.0)
        scale = tl.exp(m - new)
        t = scale * (t + s * (m - new)) + tl.sum(tl.where(p > 0, p * x, 0.0), 1)
        s = scale * s + tl.sum(p, 1)
        m = new
        o_tile = e_tile
        if not TIED:
            o_tile = tl.load(out + rows * stride_o + d[None, :], mask=there, other=0.0).to(tl.float32)
        acc = acc * scale[:, None] + tl.sum(p[:, :, None] * o_tile[None], 1)
    at = stats + program * 3 * N + n
    tl.store(at, m, mask=n < N)
    tl.store(at + N, s, mask=n < N)
    tl.store(at + 2 * N, t, mask=n < N)
    tl.store(mix + (program * N + n[:, None]) * D + d[None, :], acc, mask=mine)


@triton.jit(do_not_specialize=["N", "splits"])
def join_kernel(
    stats, mix, lse, entropy, out, N, D, splits,
    MIX: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One row's logsumexp and entropy, and with MIX some columns of its mix, from all programs' parts."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_S)
    ok = part < splits
    at = stats + part * 3 * N + row
    m = tl.load(at, mask=ok, other=-1e38)
    s = tl.load(at + N, mask=ok, other=0.0)
    t = tl.load(at + 2 * N, mask=ok, other=0.0)
    most = tl.max(m, 0)
    scale = tl.exp(m - most)
    total = tl.sum(scale * s, 0)
    if tl.program_id(1) == 0:
        tl.store(lse + row, most + tl.log(total))
        tl.store(entropy + row, tl.log(total) - tl.sum(scale * (t + s * (m - most)), 0) / total)
    if MIX:
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        mixed = tl.zeros((BLOCK_D,), tl.float32)
        for start in range(0, splits, BLOCK_P):
            some = start + tl.arange(0, BLOCK_P)
            factor = tl.exp(tl.load(stats + some * 3 * N + row, mask=some < splits, other=-1e38) - most)
            places = mix + (some[:, None] * N + row) * D + d[None, :]
            tile = tl.load(places, mask=(some[:, None] < splits) & (d[None, :] < D), other=0.0)
            mixed += tl.sum(tile * factor[:, None], 0)
        tl.store(out + row.to(tl.int64) * D + d, narrow(mixed / total, out.dtype.element_ty, UPCAST), mask=d < D)


@triton.jit(do_not_specialize=["N", "V", "splits"])
def logits_kernel(
    h, e, noise, stats, z_out, N, V, D, stride_h, stride_e, stride_n, stride_z, inverse_temperature, splits,
    NOISE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Logits of some rows on every `splits`-th tile of the vocabulary, and their softmax statistics."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    ok = rows < N
    far_rows = rows[:, None].to(tl.int64)
    m = tl.full((BLOCK_N,), -1e38, tl.float32)
    s = tl.zeros((BLOCK_N,), tl.float32)
    t = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(split * BLOCK_V, V, splits * BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        z = logits_tile(h, e, rows, cols, N, V, D, stride_h, stride_e, BLOCK_N, BLOCK_V, BLOCK_D, UPCAST)
        z *= inverse_temperature
        there = ok[:, None] & (cols[None, :] < V)
        if NOISE:
            z += tl.load(noise + far_rows * stride_n + cols[None, :], mask=there, other=0.0)
        tl.store(z_out + far_rows * stride_z + cols[None, :], z, mask=there)
        z = tl.where(cols[None, :] < V, z, -1e38)
        new = tl.maximum(m, tl.max(z, 1))
        x = z - new[:, None]
        p = tl.where(cols[None, :] < V, tl.exp(x), 0.0)
        scale = tl.exp(m - new)
        t = scale * (t + s * (m - new)) + tl.sum(tl.where(p > 0, p * x, 0.0), 1)
        s = scale * s + tl.sum(p, 1)
        m = new
    at = stats + split * 3 * N + rows
    tl.store(at, m, mask=ok)
    tl.store(at + N, s, mask=ok)
    tl.store(at + 2 * N, t, mask=ok)


@triton.jit(do_not_specialize=["N", "V", "splits"])
def weigh_kernel(
    z, lse, out, mix, N, V, D, stride_z, stride_o, splits,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Some columns of softmax(z) O over every `splits`-th tile of the vocabulary."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    ok = rows < N
    far_rows = rows[:, None].to(tl.int64)
    total = tl.load(lse + rows, mask=ok, other=0.0)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(split * BLOCK_V, V, splits * BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        inside = ok[:, None] & (cols[None, :] < V)
        logp = tl.load(z + far_rows * stride_z + cols[None, :], mask=inside, other=-1e38) - total[:, None]
        o_tile = tl.load(
            out + cols[:, None].to(tl.int64) * stride_o + d[None, :],
            mask=(cols[:, None] < V) & (d[None, :] < D), other=0.0,
        )  # fmt: skip
        acc = product(narrow(tl.exp(logp), o_tile.dtype, UPCAST), o_tile, acc, UPCAST)
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
    n, d = h_ND.shape
    if n == 0:
        lse = h_ND.new_zeros(0, dtype=torch.float32)
        return h_ND.new_zeros(0, d), lse, lse
    form = by_few if by_one_read(h_ND) else by_products
    return form(h_ND, e_VD, out_VD, temperature, noise_NV)


def by_few(
    h_ND: Tensor, e_VD: Tensor, out_VD: Tensor, temperature: float, noise_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), v, full = h_ND.shape, len(e_VD), torch.float32
    tied = out_VD is e_VD or out_VD.data_ptr() == e_VD.data_ptr() != 0
    row = d * h_ND.element_size() * (1 if tied else 2)
    block_v = 2 if row <= 4096 else 1  # rows at once, in registers
    programs = min(triton.cdiv(v, block_v), FEW_PROGRAMS)
    stats, mix = h_ND.new_empty(programs, 3, n, dtype=full), h_ND.new_empty(programs, n, d, dtype=full)
    few_kernel[(programs,)](
        h_ND, e_VD, out_VD, noise_NV, stats, mix, v, d, h_ND.stride(0), e_VD.stride(0), out_VD.stride(0),
        0 if noise_NV is None else noise_NV.stride(0), 1 / temperature, programs,
        N=n, TIED=tied, NOISE=noise_NV is not None, BLOCK_N=triton.next_power_of_2(n), BLOCK_V=block_v,
        BLOCK_D=triton.next_power_of_2(d), STAGES=4, num_warps=1 if n * d <= 1024 else 2,
    )  # fmt: skip
    return join(stats, mix, torch.empty_like(h_ND, memory_format=torch.contiguous_format))


def by_products(
    h_ND: Tensor, e_VD: Tensor, out_VD: Tensor, temperature: float, noise_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), v, full = h_ND.shape, len(e_VD), torch.float32
    exact = h_ND.dtype == full  # multiplied without tensor cores: small tiles, or they spill
    block_n = 16 if n <= 16 or exact else 64
    narrow_v = exact or noise_NV is not None
    first = {"BLOCK_N": block_n, "BLOCK_V": 64 if narrow_v else 128, "BLOCK_D": 32 if exact else 64}
    second = {"BLOCK_N": block_n, "BLOCK_V": 32 if exact else 64, "BLOCK_D": 64 if exact else 256}
    plain = {"UPCAST": interpreted(), "num_stages": 3}
    row_tiles, d_tiles = triton.cdiv(n, block_n), triton.cdiv(d, second["BLOCK_D"])
    splits = max(1, min(triton.cdiv(v, first["BLOCK_V"]), PROGRAMS // row_tiles))
    stats = h_ND.new_empty(splits, 3, n, dtype=full)
    z_NV = h_ND.new_empty(n, triton.cdiv(v, 16) * 16, dtype=full)  # each row where 16 bytes can be read at once
    logits_kernel[(row_tiles, splits)](
        h_ND, e_VD, noise_NV, stats, z_NV, n, v, d, h_ND.stride(0), e_VD.stride(0),
        0 if noise_NV is None else noise_NV.stride(0), z_NV.stride(0), 1 / temperature, splits,
        NOISE=noise_NV is not None, num_warps=8, **first, **plain,
    )  # fmt: skip
    _, lse_N, entropy_N = join(stats, None, h_ND)
    splits = max(1, min(triton.cdiv(v, second["BLOCK_V"]), PROGRAMS // (row_tiles * d_tiles)))
    mix = h_ND.new_empty(splits, n, d, dtype=full)
    weigh_kernel[(d_tiles, row_tiles, splits)](
        z_NV, lse_N, out_VD, mix, n, v, d, z_NV.stride(0), out_VD.stride(0), splits,
        num_warps=8 if block_n == 64 else 4, **second, **plain,
    )  # fmt: skip
    return mix.sum(0).to(h_ND.dtype), lse_N, entropy_N


def join(stats: Tensor, mix: Tensor | None, out_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mix, written to `out_ND`, logsumexp and entropy; without a mix the last two."""
    splits, _, n = stats.shape
    lse_N, entropy_N = stats.new_empty(n), stats.new_empty(n)
    block_d = 16
    join_kernel[(n, 1 if mix is None else triton.cdiv(out_ND.shape[1], block_d))](
        stats, mix, lse_N, entropy_N, out_ND, n, out_ND.shape[1], splits,
        MIX=mix is not None, BLOCK_S=triton.next_power_of_2(splits), BLOCK_P=512, BLOCK_D=block_d, UPCAST=interpreted(),
        num_warps=8,
    )  # fmt: skip
    return out_ND, lse_N, entropy_N


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
