"""One recurrence's entry: the input is injected again, and normed for the looped block's first layer.

    x = s + constant,   n = norm(x)

The concatenating adapter of Huginn (Geiping et al. 2025, arXiv:2502.05171), [s; e] W + b = s W_s + (e W_e + b), falls
into two halves, and the half of e is the same in every recurrence: a loop computes that constant once. `inject` adds it
and norms the sum in one pass over memory, forward and backward.
"""

from torch import Tensor

from kernels import dispatch
from kernels.recurrent_block import reference

__all__ = ["inject"]


def inject(
    s_ND: Tensor,
    constant_ND: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    eps: float = 1e-5,
    impl: dispatch.Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """x = s + constant and its norm, (N, D) each: LayerNorm with a bias, RMSNorm without; with gradient to all inputs.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    op = "recurrent_block"
    dispatch.expect(op, "s", s_ND, (None, None))
    dispatch.expect(op, "constant", constant_ND, tuple(s_ND.shape), like=s_ND)
    for name, x in (("weight", weight_D), ("bias", bias_D)):
        if x is not None:
            dispatch.expect(op, name, x, (s_ND.shape[1],), like=s_ND)
    wide = f"rows of {s_ND.shape[1]} are too wide for one tile (8192)" if s_ND.shape[1] > 8192 else None
    if dispatch.choose(op, impl, s_ND, wide) == "triton":
        from kernels.recurrent_block.triton import Inject

        with dispatch.launching(op, impl, s_ND):
            shift_D = None if bias_D is None else bias_D.contiguous()
            return Inject.apply(s_ND.contiguous(), constant_ND.contiguous(), weight_D.contiguous(), shift_D, eps)
    return reference.inject(s_ND, constant_ND, weight_D, bias_D, eps)
