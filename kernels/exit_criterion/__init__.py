"""When a loop may stop: how much a latent step still changes.

    second_difference = ||(h_t - h_{t-1}) - (h_{t-1} - h_{t-2})||     (Pappone et al. 2025, arXiv:2509.23314)
    step_kl = KL(p_t || p_{t-1}),   p_t = softmax(h_t E^T)            (Geiping et al. 2025, arXiv:2502.05171, sec. 6)

The first reads three states, the second the whole LM head once. Neither has a gradient: they decide, they do not train.
"""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.exit_criterion import reference

__all__ = ["second_difference", "step_kl"]


@torch.no_grad()
def second_difference(
    h_ND: Tensor, before_ND: Tensor, earlier_ND: Tensor, impl: dispatch.Impl | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """||h - 2 before + earlier||, ||h - before|| and ||before - earlier||, (N,) each, of three states in a row.

    The step sizes come along because an exit is usually decided on their ratio. Raises ValueError for states that
    differ in shape, dtype or device.
    """
    op = "second_difference"
    dispatch.expect(op, "h", h_ND, (None, None))
    for name, x in (("before", before_ND), ("earlier", earlier_ND)):
        dispatch.expect(op, name, x, tuple(h_ND.shape), like=h_ND)
    if dispatch.choose(op, impl, h_ND) == "triton":
        from kernels.exit_criterion import triton

        with dispatch.launching(op, impl, h_ND):
            return triton.second_difference(*(dispatch.rows(x) for x in (h_ND, before_ND, earlier_ND)))
    return reference.second_difference(h_ND, before_ND, earlier_ND)


@torch.no_grad()
def step_kl(h_ND: Tensor, before_ND: Tensor, e_VD: Tensor, impl: dispatch.Impl | None = None) -> Tensor:
    """KL (nats) from the step before's next-token distribution to this one's, (N,), one read of the LM head `e_VD`.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    op = "step_kl"
    dispatch.expect(op, "h", h_ND, (None, None))
    dispatch.expect(op, "before", before_ND, tuple(h_ND.shape), like=h_ND)
    dispatch.expect(op, "e", e_VD, (None, h_ND.shape[1]), like=h_ND)
    if dispatch.choose(op, impl, h_ND) == "triton":
        from kernels.exit_criterion import triton

        with dispatch.launching(op, impl, h_ND):
            return triton.step_kl(*(dispatch.rows(x) for x in (h_ND, before_ND, e_VD)))
    return reference.step_kl(h_ND, before_ND, e_VD)
