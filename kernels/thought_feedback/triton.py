"""One launch without a projection, two with one; the backward computes the definition again and differentiates it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.layer_tiles import norm_stats, normed, project_tile, residual_tile
from kernels.thought_feedback import reference
from kernels.tiles import narrow


@triton.jit(do_not_specialize=["N"])
def feedback_kernel(
    h, weight, bias, e, r, i, decay, out, N, D, eps, stride_h,
    NORM: tl.constexpr, GATE: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) + tl.zeros((1,), tl.int32)
    if NORM:
        mean, rstd = norm_stats(h, h, rows, N, D, stride_h, eps, 0, NORM, BLOCK_D, 1)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        y = residual_tile(h, h, rows, d, N, D, stride_h, 0)
        ok = d[None, :] < D
        at = rows[:, None] * D + d[None, :]
        if NORM:
            y = normed(y, mean, rstd, weight, bias, d, D, NORM)
        if GATE:
            opening = tl.sigmoid(tl.load(r + at, mask=ok, other=0.0).to(tl.float32))
            x = -tl.load(decay + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
            softplus = tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))
            rate = 8 * softplus * opening
            a = tl.exp(-rate)
            t = 2 * rate  # 1 - exp(-t), by its series where the difference would cancel
            series = t * (1 - t / 2 * (1 - t / 3 * (1 - t / 4 * (1 - t / 5))))
            kept = tl.sqrt(tl.maximum(tl.where(t < 0.1, series, 1 - a * a), 1e-12))
            kept *= tl.sigmoid(tl.load(i + at, mask=ok, other=0.0).to(tl.float32))
            y = a * tl.load(e + at, mask=ok, other=0.0).to(tl.float32) + kept * y
        tl.store(out + at, narrow(y, out.dtype.element_ty, UPCAST), mask=ok)


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


class ThoughtFeedback(torch.autograd.Function):
    """`tensors`: weight and bias of the norm, of the projection, and the four of the gate; None where absent."""

    @staticmethod
    def forward(ctx, h_ND: Tensor, eps: float, *tensors: Tensor | None):
        ctx.save_for_backward(h_ND, *tensors)
        ctx.eps = eps
        weight, bias, w, b, *gate = tensors
        n, d = h_ND.shape
        kind = 0 if weight is None else 1 if bias is None else 2
        if n == 0:
            return h_ND.new_empty(n, d if w is None else w.shape[1])
        y_ND = h_ND
        if w is not None:
            y_ND = h_ND.new_empty(n, w.shape[1])
            strides = (1, w.stride(1)) if w.stride(0) == 1 else (w.stride(0), 1)
            grid = (triton.cdiv(n, 16), triton.cdiv(w.shape[1], 16), 1)
            project_kernel[grid](
                h_ND, None, weight, bias, w, None, b, None, None, y_ND, n, d, w.shape[1], eps, h_ND.stride(0), *strides,
                SPLITS_IN=0, NORM=kind, ACT=0, GATED=False, BIAS=b is not None, SPLITS=1,
                BLOCK_N=16, BLOCK_C=16, BLOCK_K=64, UPCAST=interpreted(), num_warps=4,
            )  # fmt: skip
            kind = 0
        if kind == 0 and gate[0] is None:
            return y_ND
        out_ND = torch.empty_like(y_ND)
        d = y_ND.shape[1]
        feedback_kernel[(n,)](
            y_ND, weight, bias, *gate, out_ND, n, d, eps, y_ND.stride(0),
            NORM=kind, GATE=gate[0] is not None, BLOCK_D=min(1024, triton.next_power_of_2(d)), UPCAST=interpreted(),
        )  # fmt: skip
        return out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_ND):
        leaves = [x if x is None else x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        with torch.enable_grad():
            h, weight, bias, w, b, *gate = leaves
            y = reference.thought_feedback(
                h, None if weight is None else (weight, bias), ctx.eps, None if w is None else (w, b),
                None if gate[0] is None else tuple(gate),
            )  # fmt: skip
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, dy_ND))
        dh, *rest = [next(grads) if x is not None and x.requires_grad else None for x in leaves]
        return dh, None, *rest
