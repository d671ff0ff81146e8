"""The definitions, in fp32 or better."""

import torch
from torch import Tensor


def second_difference(h_ND: Tensor, before_ND: Tensor, earlier_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """||(h - before) - (before - earlier)||, ||h - before|| and ||before - earlier||, (N,) each."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    h, before, earlier = (x.to(more) for x in (h_ND, before_ND, earlier_ND))
    return (h - 2 * before + earlier).norm(dim=-1), (h - before).norm(dim=-1), (before - earlier).norm(dim=-1)


def step_kl(h_ND: Tensor, before_ND: Tensor, e_VD: Tensor) -> Tensor:
    """KL(softmax(h E^T) || softmax(before E^T)) in nats, (N,)."""
    more = torch.promote_types(h_ND.dtype, torch.float32)
    logp, logq = ((x @ e_VD.t()).to(more).log_softmax(-1) for x in (h_ND, before_ND))
    return (logp.exp() * (logp - logq)).sum(-1)
