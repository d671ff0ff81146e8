"""Two launches: all queries of a prompt on its prefix, a tile of them at a time; then each rollout on its own suffix.

The first leaves, for each query, the running maximum, sum and unnormalised output of its softmax; the second goes on
from there, so that the result is one softmax over both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import narrow, product, softmax_tile


@triton.jit
def prefix_kernel(
    q, k, v, visible, stats, acc_out, G, size, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    groups: tl.constexpr = H // H_KV
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)  # query r: rollout r // groups, head r % groups of its group
    d = tl.arange(0, BLOCK_D)
    row = (prompt * G + r // groups) * H + head * groups + r % groups
    mine = (r[:, None] < G * groups) & (d[None, :] < D)
    q_tile = tl.load(q + row[:, None] * D + d[None, :], mask=mine, other=0.0)
    m = tl.full((BLOCK_R,), -1e38, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    acc = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    base = (prompt * H_KV + head) * size * D
    for start in range(0, size, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        there = (s[:, None] < size) & (d[None, :] < D)
        k_tile = tl.load(k + base + s[:, None] * D + d[None, :], mask=there, other=0.0)
        v_tile = tl.load(v + base + s[:, None] * D + d[None, :], mask=there, other=0.0)
        score = product(q_tile, tl.trans(k_tile), tl.zeros((BLOCK_R, BLOCK_S), tl.float32), UPCAST) * scale
        seen = s < size
        if MASK:
            seen = seen & (tl.load(visible + prompt * size + s, mask=s < size, other=0) != 0)
        m, total, acc = softmax_tile(score, seen[None, :], v_tile, m, total, acc, UPCAST)
    tl.store(stats + row * 2, m, mask=r < G * groups)
    tl.store(stats + row * 2 + 1, total, mask=r < G * groups)
    tl.store(acc_out + row[:, None] * D + d[None, :], acc, mask=mine)


@triton.jit
def suffix_kernel(
    q, k, v, lengths, stats, acc_in, out, late, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rollout = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    groups: tl.constexpr = H // H_KV
    j = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    row = rollout * H + head * groups + j
    mine = (j[:, None] < groups) & (d[None, :] < D)
    q_tile = tl.load(q + row[:, None] * D + d[None, :], mask=mine, other=0.0)
    m = tl.load(stats + row * 2, mask=j < groups, other=0.0)
    total = tl.load(stats + row * 2 + 1, mask=j < groups, other=1.0)
    acc = tl.load(acc_in + row[:, None] * D + d[None, :], mask=mine, other=0.0)
    base = (rollout * H_KV + head) * late * D
    length = tl.load(lengths + rollout)
    for start in range(0, length, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        there = (s[:, None] < length) & (d[None, :] < D)
        k_tile = tl.load(k + base + s[:, None] * D + d[None, :], mask=there, other=0.0)
        v_tile = tl.load(v + base + s[:, None] * D + d[None, :], mask=there, other=0.0)
        score = product(q_tile, tl.trans(k_tile), tl.zeros((BLOCK_G, BLOCK_S), tl.float32), UPCAST) * scale
        seen = s < length
        m, total, acc = softmax_tile(score, seen[None, :], v_tile, m, total, acc, UPCAST)
    tl.store(out + row[:, None] * D + d[None, :], narrow(acc / total[:, None], out.dtype.element_ty, UPCAST), mask=mine)


def shared_prefix_attention(
    q_PGHd: Tensor,
    prefix: tuple[Tensor, Tensor],
    suffix: tuple[Tensor, Tensor],
    visible_PS: Tensor | None,
    lengths_PG: Tensor | None,
) -> Tensor:
    (p, g, h, d), (kv_heads, size), late = q_PGHd.shape, prefix[0].shape[1:3], suffix[0].shape[3]
    if lengths_PG is None:
        lengths_PG = torch.full((p, g), late, dtype=torch.int32, device=q_PGHd.device)
    stats = q_PGHd.new_empty(p, g, h, 2, dtype=torch.float32)
    acc = q_PGHd.new_empty(p, g, h, d, dtype=torch.float32)
    out = torch.empty_like(q_PGHd)
    if p * g == 0:
        return out
    rows, block_d = g * (h // kv_heads), max(16, triton.next_power_of_2(d))
    block_r = 16 if rows <= 16 else 32 if rows <= 32 else 64
    shared = {"H": h, "H_KV": kv_heads, "D": d, "BLOCK_S": 64, "BLOCK_D": block_d, "UPCAST": interpreted()}
    prefix_kernel[(p, kv_heads, triton.cdiv(rows, block_r))](
        q_PGHd, *prefix, visible_PS, stats, acc, g, size, d**-0.5,
        MASK=visible_PS is not None, BLOCK_R=block_r, num_warps=4, **shared,
    )  # fmt: skip
    suffix_kernel[(p * g, kv_heads)](
        q_PGHd, *suffix, lengths_PG.int(), stats, acc, out, late, d**-0.5,
        BLOCK_G=max(16, triton.next_power_of_2(h // kv_heads)), num_warps=4, **shared,
    )  # fmt: skip
    return out
