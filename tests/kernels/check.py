"""How a kernel is held to its definition."""

from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(op: Callable, tensors: list[Tensor], dtype, impl: str, weights: list[Tensor] | None) -> list[Tensor]:
    """Outputs of `op(*tensors, impl=...)` in a dtype, and, given weights, the gradients of their weighted sum."""
    x = [t.to(DEVICE, dtype).requires_grad_() if t.is_floating_point() else t.to(DEVICE) for t in tensors]
    out = op(*x, impl=impl)
    out = [out] if isinstance(out, Tensor) else [o for o in out if o is not None]
    grads = []
    if weights is not None:
        total = sum((o.double() * w.to(DEVICE)).sum() for o, w in zip(out, weights) if o.is_floating_point())
        wanted = [t for t in x if t.requires_grad]
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads)]
    return [o.detach().cpu() for o in [*out, *grads]]


def assert_at_most_twice_torchs_error(
    op: Callable, tensors: list[Tensor], dtype, grad: bool = True, floor: float = 1e-6
) -> None:
    """Against fp64: every output's and gradient's relative error at most twice that of plain torch in the same dtype.

    `floor`: where torch is luckier than this, relative to the tensor's norm, that much is allowed (fp32 rounding).
    """
    tensors = [t.to(dtype).double() if t.is_floating_point() else t for t in tensors]
    shapes = run(op, tensors, torch.float64, "torch", None)
    weights = [torch.randn(o.shape, dtype=torch.float64) for o in shapes] if grad else None
    exact = run(op, tensors, torch.float64, "torch", weights)
    torchs = run(op, tensors, dtype, "torch", weights)
    ours = run(op, tensors, dtype, "triton", weights)
    again = run(op, tensors, dtype, "triton", weights)
    assert len(ours) == len(exact)
    for i, (e, t, o, a) in enumerate(zip(exact, torchs, ours, again)):
        assert o.shape == e.shape and o.dtype == t.dtype, (i, o.shape, o.dtype)
        assert torch.equal(o, a), f"output {i} differs from run to run"
        if not e.is_floating_point():
            continue
        size = e.norm().clamp(min=1e-12)
        error, limit = (o - e).norm() / size, 2 * (t - e).norm() / size
        assert error <= max(limit, floor), f"output {i}: error {error:.2e}, twice torch's {limit:.2e}"
