"""A decoder layer at one position in five launches, made for the bandwidth of small batches.

    1  n = norm_1(x);             qkv = n W_qkv + b             project_kernel
    2  norm of q, k; rotary; append to the cache; attention     attend_kernel
    3  partial sums of a W_out + b                              project_kernel
    4  y = x + partial sums;      act(norm_2(y) W_up + b) ...   project_kernel
    5  partial sums of inner W_down + b                         project_kernel

The next layer's phase 1, or the final norm, adds up what phase 5 left. Products whose output is narrow are split along
the input, so that every multiprocessor streams weights; whoever reads the partial sums adds them, in a fixed order. The
residual stream stays in fp32. Each program normalises its rows anew: they are in cache, the weights are what is slow.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoder import Decoder, Layer
from kernels.dispatch import interpreted
from kernels.tiles import narrow, product, softmax_tile

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


@triton.jit(do_not_specialize=["N"])
def project_kernel(
    x, part, norm_weight, norm_bias, w, w_up, bias, bias_up, total, out, N, K, C, eps, stride_x, stride_k, stride_c,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    project_tile(
        x, part, norm_weight, norm_bias, w, w_up, (), (), bias, bias_up, total, out,
        tl.program_id(0), tl.program_id(1), tl.program_id(2), N, K, C, eps, stride_x, stride_k, stride_c,
        SPLITS_IN, NORM, ACT, GATED, BIAS, SPLITS, 0, BLOCK_N, BLOCK_C, BLOCK_K, UPCAST,
    )  # fmt: skip


@triton.jit
def head_vectors(
    qkv, heads, ok, weight, cos, sin, turn, turned, d, D: tl.constexpr, eps, NORM: tl.constexpr, ROPE: tl.constexpr
):
    """Vectors `heads` of width D out of projections, RMS-normed and rotated where the family does.

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
def attend_head(
    qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, hidden, out, row, head, size, room, eps, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, MASK: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One row and one K/V head: prepare q, k, v of the new position, append k and v, attend all positions so far."""
    row = row.to(tl.int64)
    groups: tl.constexpr = H // H_KV
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    one = tl.zeros((1,), tl.int32)
    base = qkv + row * (H + 2 * H_KV) * D
    turn = row * D + d[None, :]
    ok = d[None, :] < D
    q = head_vectors(base, head * groups + g, g < groups, q_weight, cos, sin, turn, ok, d, D, eps, NORM, ROPE)
    k = head_vectors(base, one + H + head, one == 0, k_weight, cos, sin, turn, ok, d, D, eps, NORM, ROPE)
    v = head_vectors(base, one + H + H_KV + head, one == 0, k_weight, cos, sin, turn, ok, d, D, eps, 0, 0)
    cache = (row * H_KV + head) * room * D
    dtype = k_cache.dtype.element_ty
    at = cache + (size + one[:, None]) * D + d[None, :]
    k = narrow(k, dtype, UPCAST)
    v = narrow(v, dtype, UPCAST)
    tl.store(k_cache + at, k, mask=d[None, :] < D)
    tl.store(v_cache + at, v, mask=d[None, :] < D)
    q *= scale
    m = tl.sum(q * k.to(tl.float32), 1)  # the new position, always visible, starts the softmax
    total = tl.full((BLOCK_G,), 1.0, tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32) + v.to(tl.float32)
    for start in range(0, size, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        there = (s[:, None] < size) & (d[None, :] < D)
        k_tile = tl.load(k_cache + cache + s[:, None] * D + d[None, :], mask=there, other=0.0)
        v_tile = tl.load(v_cache + cache + s[:, None] * D + d[None, :], mask=there, other=0.0)
        score = product(narrow(q, dtype, UPCAST), tl.trans(k_tile), tl.zeros((BLOCK_G, BLOCK_S), tl.float32), UPCAST)
        seen = s < size
        if MASK:
            seen = seen & (tl.load(hidden + row * room + s, mask=s < size, other=1) == 0)
        m, total, acc = softmax_tile(score, seen[None, :], v_tile, m, total, acc, UPCAST)
    acc = narrow(acc / total[:, None], out.dtype.element_ty, UPCAST)
    at = (row * H + head * groups + g[:, None]) * D + d[None, :]
    tl.store(out + at, acc, mask=(g[:, None] < groups) & (d[None, :] < D))


@triton.jit(do_not_specialize=["size", "room"])
def attend_kernel(
    qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, hidden, out, size, room, eps, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, MASK: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    attend_head(
        qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, hidden, out, tl.program_id(0), tl.program_id(1),
        size, room, eps, scale, H, H_KV, D, NORM, ROPE, MASK, BLOCK_G, BLOCK_D, BLOCK_S, UPCAST,
    )  # fmt: skip


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


@triton.jit(do_not_specialize=["N"])
def finish_kernel(
    x, part, weight, bias, out, N, K, eps,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    finish_row(x, part, weight, bias, out, tl.program_id(0), N, K, eps, SPLITS_IN, NORM, BLOCK_K, UPCAST)


class Packed:
    """A layer's projections as the kernels read them: q, k and v in one matrix, copied where the model has three."""

    def __init__(self, layer: Layer):
        self.layer = layer
        if len(layer.qkv) == 1:
            self.qkv = layer.qkv[0]
            return
        weights, biases = zip(*layer.qkv)
        # columns side by side, each contiguous along its input like the weights of a linear layer
        weight = torch.cat([w.detach().t() for w in weights], 0).t()
        self.qkv = (weight, None if biases[0] is None else torch.cat([b.detach() for b in biases]))

    def refresh(self) -> None:
        """Copy again: nothing says whether the model's weights changed, as fused optimizers leave versions alone."""
        if len(self.layer.qkv) == 1:
            return
        for i, mine in enumerate(self.qkv):
            if mine is not None:
                torch.cat([pair[i].detach() for pair in self.layer.qkv], -1, out=mine)


class Step:
    """A decoder made ready for one-position steps of a batch: packed weights and the buffers between the launches."""

    def __init__(self, decoder: Decoder, batch: int):
        self.decoder, self.n = decoder, batch
        self.layers = [Packed(layer) for layer in decoder.layers]
        like, width = decoder.norm[0], decoder.norm[0].shape[0]
        self.splits = 4 if batch <= 4 else 2 if batch <= 16 else 1
        full = {"dtype": torch.float32, "device": like.device}
        inner = decoder.layers[0].down[0].shape[0]
        self.residual = torch.empty(3, batch, width, **full)
        self.parts = [torch.empty(self.splits, batch, width, **full) for _ in range(2)]
        self.qkv = like.new_empty(batch, (decoder.heads + 2 * decoder.kv_heads) * decoder.d)
        self.a = like.new_empty(batch, decoder.heads * decoder.d)
        self.inner = like.new_empty(batch, inner)

    def refresh(self) -> None:
        """Bring packed weights up to date with the model's."""
        for packed in self.layers:
            packed.refresh()

    def __call__(
        self, x_BD: Tensor, kv: list[tuple[Tensor, Tensor]], size: int, rope: tuple | None, hidden_BS: Tensor | None,
        out_BD: Tensor,
    ) -> None:  # fmt: skip
        """Final hidden state of x into `out_BD`; k and v into each layer's cache (B, H_kv, room, d) at `size`.

        `rope`: cosines and sines (B, d) in fp32. `hidden_BS`: uint8 (B, room), 1 = not to be attended.
        """
        dec, n = self.decoder, self.n
        x, other, last = self.residual
        first_parts, second_parts = self.parts
        x.copy_(x_BD)
        parts = None
        for packed, (k, v) in zip(self.layers, kv):
            layer = packed.layer
            norm, qk = NORMS[dec.kind], bool(layer.qk_norm)
            self.project(x, parts, layer.norm_1, norm, packed.qkv, None, "none", other, self.qkv, 1)
            x, other = (other, x) if parts is not None else (x, other)
            q_weight, k_weight = (a[0] for a in layer.qk_norm) if qk else (None, None)
            groups = dec.heads // dec.kv_heads
            attend_kernel[(n, dec.kv_heads)](
                self.qkv, q_weight, k_weight, *(rope or (self.qkv, self.qkv)), k, v, hidden_BS, self.a,
                size, k.shape[2], dec.eps, dec.d**-0.5,
                H=dec.heads, H_KV=dec.kv_heads, D=dec.d, NORM=qk, ROPE=rope is not None, MASK=hidden_BS is not None,
                BLOCK_G=max(16, triton.next_power_of_2(groups)), BLOCK_D=max(16, triton.next_power_of_2(dec.d)),
                BLOCK_S=64, UPCAST=interpreted(), num_warps=4,
            )  # fmt: skip
            self.project(self.a, None, None, 0, layer.out, None, "none", None, first_parts, self.splits)
            gate, *up = layer.up
            self.project(x, first_parts, layer.norm_2, norm, gate, up[0] if up else None, dec.act, last, self.inner, 1)
            x, last = last, x
            self.project(self.inner, None, None, 0, layer.down, None, "none", None, second_parts, self.splits)
            parts = second_parts
        width = x.shape[1]
        weight, bias = dec.norm
        finish_kernel[(n,)](
            x, parts, weight, bias, out_BD, n, width, dec.eps,
            SPLITS_IN=self.splits, NORM=NORMS[dec.kind], BLOCK_K=min(1024, triton.next_power_of_2(width)),
            UPCAST=interpreted(),
        )  # fmt: skip

    def project(self, x, parts, affine, norm, first, second, act, total, out, splits) -> None:
        """One launch of `project_kernel`; narrow outputs in small tiles, so that there are programs enough."""
        (weight, bias), (norm_weight, norm_bias) = first, affine or (None, None)
        (k, c), n = weight.shape, self.n
        block_n = 16 if n <= 16 else 32 if n <= 32 else 64
        block_c = 16 if n <= 16 else 32
        w_up, bias_up = second or (None, None)
        strides = (1, weight.stride(1)) if weight.stride(0) == 1 else (weight.stride(0), 1)
        project_kernel[(triton.cdiv(n, block_n), triton.cdiv(c, block_c), splits)](
            x, parts, norm_weight, norm_bias, weight, w_up, bias, bias_up, total, out,
            n, k, c, self.decoder.eps, x.stride(0), *strides,
            SPLITS_IN=0 if parts is None else len(parts), NORM=norm, ACT=ACTS[act], GATED=second is not None,
            BIAS=bias is not None, SPLITS=splits, BLOCK_N=block_n, BLOCK_C=block_c,
            BLOCK_K=128 if n <= 16 and weight.dtype != torch.float32 else 64, UPCAST=interpreted(),
            num_warps=4 if n <= 32 else 8,
        )  # fmt: skip
