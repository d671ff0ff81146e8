"""Fused forward and backward.

Forward: each program takes some rows and every n-th tile of the vocabulary, n the number of splits, and keeps,
online, the maximum m of z = h e / temperature, s = sum exp(z - m) and t = sum exp(z - m) (z - m); the splits are joined
afterwards, so that

    lse = m + log s,   entropy = log s - t / s.

Backward: with p = exp(z - lse), g the gradient of the log-prob and w that of the entropy H,

    dz_v = g (1[v = id] - p_v) - w p_v (z_v - lse + H)

is written for one chunk of the vocabulary at a time; dh and de of that chunk are then two ordinary products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import logits_tile, narrow

CHUNK = 2048  # columns of dz held at once: 8192 rows of it in bf16 are 32 MB


@triton.jit(do_not_specialize=["N", "V", "splits"])
def forward_kernel(
    h, e, ids, stats, best, N, V, D, stride_h, stride_e, inverse_temperature, splits,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    target = tl.load(ids + rows, mask=rows < N, other=-1)
    m = tl.full((BLOCK_N,), -1e38, tl.float32)
    s = tl.zeros((BLOCK_N,), tl.float32)
    t = tl.zeros((BLOCK_N,), tl.float32)
    z_target = tl.zeros((BLOCK_N,), tl.float32)
    top = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(split * BLOCK_V, V, splits * BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        z = logits_tile(h, e, rows, cols, N, V, D, stride_h, stride_e, BLOCK_N, BLOCK_V, BLOCK_D, UPCAST)
        z = tl.where(cols[None, :] < V, z * inverse_temperature, -1e38)
        z_target += tl.sum(tl.where(cols[None, :] == target[:, None], z, 0.0), 1)
        here = tl.max(z, 1)
        top = tl.where(here > m, start + tl.argmax(z, 1).to(tl.int32), top)
        new = tl.maximum(m, here)
        x = z - new[:, None]
        p = tl.where(cols[None, :] < V, tl.exp(x), 0.0)
        scale = tl.exp(m - new)
        t = scale * (t + s * (m - new)) + tl.sum(tl.where(p > 0, p * x, 0.0), 1)
        s = scale * s + tl.sum(p, 1)
        m = new
    at = stats + split * 4 * N + rows
    tl.store(at, m, mask=rows < N)
    tl.store(at + N, s, mask=rows < N)
    tl.store(at + 2 * N, t, mask=rows < N)
    tl.store(at + 3 * N, z_target, mask=rows < N)
    tl.store(best + split * N + rows, top, mask=rows < N)


@triton.jit(do_not_specialize=["first", "width", "N", "V"])
def backward_kernel(
    h, e, ids, lse, entropy, g_logp, g_entropy, dz, first, width, N, V, D, stride_h, stride_e, inverse_temperature,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    local = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    cols = first + local
    z = logits_tile(h, e, rows, cols, N, V, D, stride_h, stride_e, BLOCK_N, BLOCK_V, BLOCK_D, UPCAST)
    ok = rows < N
    logp = z * inverse_temperature - tl.load(lse + rows, mask=ok, other=0.0)[:, None]
    p = tl.exp(logp)
    target = tl.load(ids + rows, mask=ok, other=-1)
    g = tl.load(g_logp + rows, mask=ok, other=0.0)[:, None]
    w = tl.load(g_entropy + rows, mask=ok, other=0.0)[:, None]
    hit = (cols[None, :] == target[:, None]).to(tl.float32)
    out = g * (hit - p) - w * p * (logp + tl.load(entropy + rows, mask=ok, other=0.0)[:, None])
    out = narrow(out * inverse_temperature, dz.dtype.element_ty, UPCAST)
    at = rows[:, None].to(tl.int64) * width + local[None, :]
    tl.store(dz + at, out, mask=ok[:, None] & (local[None, :] < width))


def tiles(n: int, dtype: torch.dtype) -> dict:
    """Tile sizes: large products for many rows, 16 rows for decoding; fp32 takes half. Wider ones spill."""
    if dtype == torch.float32:
        return {"BLOCK_N": 16 if n <= 16 else 64, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 4}
    if n <= 64:
        return {"BLOCK_N": 16 if n <= 16 else 64, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 4 if n <= 16 else 8}
    return {"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 64, "num_warps": 8}


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_ND: Tensor, e_VD: Tensor, ids_N: Tensor, temperature: float):
        (n, d), v = h_ND.shape, len(e_VD)
        sizes = tiles(n, h_ND.dtype)
        row_tiles = triton.cdiv(n, sizes["BLOCK_N"])
        splits = max(1, min(triton.cdiv(v, sizes["BLOCK_V"]), 264 // max(1, row_tiles)))
        stats = h_ND.new_empty(splits, 4, n, dtype=torch.float32)
        best = h_ND.new_empty(splits, n, dtype=torch.int32)
        if n:
            forward_kernel[(row_tiles, splits)](
                h_ND, e_VD, ids_N, stats, best, n, v, d, h_ND.stride(0), e_VD.stride(0), 1 / temperature, splits,
                **sizes, UPCAST=interpreted(),
            )  # fmt: skip
        m, s, t, z_target = stats.unbind(1)
        most, where = m.max(0)
        scale = (m - most).exp()
        total = (scale * s).sum(0)
        entropy_N = total.log() - (scale * (t + s * (m - most))).sum(0) / total
        lse_N = most + total.log()
        ctx.save_for_backward(h_ND, e_VD, ids_N, lse_N, entropy_N)
        ctx.temperature = temperature
        top_N = best.gather(0, where[None])[0].long()
        ctx.mark_non_differentiable(top_N)
        return z_target.sum(0) - lse_N, entropy_N, top_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_logp, g_entropy, _):
        h_ND, e_VD, ids_N, lse_N, entropy_N = ctx.saved_tensors
        (n, d), v = h_ND.shape, len(e_VD)
        dh = torch.zeros(n, d, device=h_ND.device) if ctx.needs_input_grad[0] else None
        de = torch.zeros_like(e_VD) if ctx.needs_input_grad[1] else None
        g_logp, g_entropy = g_logp.contiguous(), g_entropy.contiguous()
        sizes = tiles(n, h_ND.dtype)
        for first in range(0, v if n else 0, CHUNK):
            width = min(CHUNK, v - first)
            dz_NC = h_ND.new_empty(n, width)
            grid = (triton.cdiv(n, sizes["BLOCK_N"]), triton.cdiv(width, sizes["BLOCK_V"]))
            backward_kernel[grid](
                h_ND, e_VD, ids_N, lse_N, entropy_N, g_logp, g_entropy, dz_NC, first, width, n, v, d,
                h_ND.stride(0), e_VD.stride(0), 1 / ctx.temperature,
                **sizes, UPCAST=interpreted(),
            )  # fmt: skip
            if dh is not None:
                dh += dz_NC @ e_VD[first : first + width]
            if de is not None:
                torch.mm(dz_NC.t(), h_ND, out=de[first : first + width])
        return dh if dh is None else dh.to(h_ND.dtype), de, None, None
