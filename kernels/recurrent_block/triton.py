"""Forward and backward, one launch each; a program takes every n-th row, n the number of programs.

Backward, with y = (x - mean) r and g = dn * weight:

    dx = dx_out + r (g - mean(g) - y mean(g y))      (RMSNorm: without mean(g))

Gradients of weight and bias are summed by each program over its rows, then over programs, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted
from kernels.tiles import narrow

PROGRAMS = 264  # two for each multiprocessor of an H200


@triton.jit(do_not_specialize=["N", "programs"])
def forward_kernel(
    s, constant, weight, bias, x_out, n_out, stats, N, D, programs, eps,
    LAYER: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    ok = d < D
    w = tl.load(weight + d, mask=ok, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0), N, programs):
        at = (tl.zeros((BLOCK_D,), tl.int64) + row) * D + d
        x = tl.load(s + at, mask=ok, other=0.0).to(tl.float32)
        x += tl.load(constant + at, mask=ok, other=0.0).to(tl.float32)
        x = narrow(x, x_out.dtype.element_ty, UPCAST)
        tl.store(x_out + at, x, mask=ok)
        x = x.to(tl.float32)
        mean = tl.sum(x, 0) / D if LAYER else 0.0
        y = tl.where(ok, x - mean, 0.0)
        r = tl.rsqrt(tl.sum(y * y, 0) / D + eps)
        y = y * r
        if LAYER:
            y = y * w + tl.load(bias + d, mask=ok, other=0.0).to(tl.float32)
            tl.store(stats + N + row, mean)
        else:
            y = narrow(y, n_out.dtype.element_ty, UPCAST).to(tl.float32) * w  # as Llama rounds
        tl.store(n_out + at, narrow(y, n_out.dtype.element_ty, UPCAST), mask=ok)
        tl.store(stats + row, r)


@triton.jit(do_not_specialize=["N", "programs"])
def backward_kernel(
    x, weight, stats, dx_out, dn, dx, dw, db, N, D, programs,
    LAYER: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    ok = d < D
    w = tl.load(weight + d, mask=ok, other=0.0).to(tl.float32)
    dw_sum = tl.zeros((BLOCK_D,), tl.float32)
    db_sum = tl.zeros((BLOCK_D,), tl.float32)
    for row in range(tl.program_id(0), N, programs):
        at = (tl.zeros((BLOCK_D,), tl.int64) + row) * D + d
        r = tl.load(stats + row)
        mean = tl.load(stats + N + row) if LAYER else 0.0
        y = tl.where(ok, (tl.load(x + at, mask=ok, other=0.0).to(tl.float32) - mean) * r, 0.0)
        g = tl.load(dn + at, mask=ok, other=0.0).to(tl.float32)
        dw_sum += g * y
        if LAYER:
            db_sum += g
        g = g * w
        inner = g - y * (tl.sum(g * y, 0) / D)
        if LAYER:
            inner -= tl.sum(g, 0) / D
        out = tl.load(dx_out + at, mask=ok, other=0.0).to(tl.float32) + r * inner
        tl.store(dx + at, narrow(out, dx.dtype.element_ty, UPCAST), mask=ok)
    tl.store(dw + tl.program_id(0) * D + d, dw_sum, mask=ok)
    if LAYER:
        tl.store(db + tl.program_id(0) * D + d, db_sum, mask=ok)


class Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s_ND: Tensor, constant_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float):
        n, d = s_ND.shape
        x_ND, n_ND = torch.empty_like(s_ND), torch.empty_like(s_ND)
        stats = s_ND.new_empty(1 if bias_D is None else 2, n, dtype=torch.float32)
        programs = max(1, min(n, PROGRAMS))
        if n:
            forward_kernel[(programs,)](
                s_ND, constant_ND, weight_D, bias_D, x_ND, n_ND, stats, n, d, programs, eps,
                LAYER=bias_D is not None, BLOCK_D=triton.next_power_of_2(d), UPCAST=interpreted(), num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(x_ND, weight_D, bias_D, stats)
        return x_ND, n_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dx_out, dn):
        x_ND, weight_D, bias_D, stats = ctx.saved_tensors
        n, d = x_ND.shape
        dx = torch.empty_like(x_ND)
        programs = max(1, min(n, PROGRAMS))
        dw, db = (torch.zeros(programs, d, device=x_ND.device) for _ in "wb")
        if n:
            backward_kernel[(programs,)](
                x_ND, weight_D, stats, dx_out.contiguous(), dn.contiguous(), dx, dw, db, n, d, programs,
                LAYER=bias_D is not None, BLOCK_D=triton.next_power_of_2(d), UPCAST=interpreted(), num_warps=4,
            )  # fmt: skip
        bias_grad = None if bias_D is None else db.sum(0).to(bias_D.dtype)
        return dx, dx, dw.sum(0).to(weight_D.dtype), bias_grad, None
