"""Attention of one new position of G rollouts that share a prompt, whose keys and values are read once for all of them.

    out = softmax(q [K_prefix; K_suffix]^T / sqrt d) [V_prefix; V_suffix]

Plain attention reads, or even stores, the prefix G times. The same idea as cascade inference in FlashInfer and
Hydragen (Juravsky et al. 2024, arXiv:2402.05099).
"""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.shared_prefix_attention import reference

__all__ = ["shared_prefix_attention"]


@torch.no_grad()
def shared_prefix_attention(
    q_PGHd: Tensor,
    prefix: tuple[Tensor, Tensor],
    suffix: tuple[Tensor, Tensor],
    visible_PS: Tensor | None = None,
    lengths_PG: Tensor | None = None,
    impl: dispatch.Impl | None = None,
) -> Tensor:
    """Attention output (P, G, H, d) of one query a rollout and head.

    `prefix`: K and V of the prompts, (P, H_kv, S, d); `visible_PS` False on their padding. `suffix`: K and V that each
    rollout added, the query's own included, (P, G, H_kv, T, d), of which the first `lengths_PG` count (None = all).
    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    op = "shared_prefix_attention"
    dispatch.expect(op, "q", q_PGHd, (None, None, None, None))
    p, g, h, d = q_PGHd.shape
    dispatch.expect(op, "prefix k", prefix[0], (p, None, None, d), like=q_PGHd)
    kv_heads, size = prefix[0].shape[1:3]
    dispatch.expect(op, "suffix k", suffix[0], (p, g, kv_heads, None, d), like=q_PGHd)
    dispatch.expect(op, "prefix v", prefix[1], tuple(prefix[0].shape), like=q_PGHd)
    dispatch.expect(op, "suffix v", suffix[1], tuple(suffix[0].shape), like=q_PGHd)
    if kv_heads == 0 or h % kv_heads:
        raise ValueError(f"{op}: {h} heads cannot share {kv_heads} K/V heads evenly")
    if visible_PS is not None:
        dispatch.expect(op, "visible", visible_PS, (p, size))
    if lengths_PG is not None:
        dispatch.expect(op, "lengths", lengths_PG, (p, g))
    if dispatch.choose(op, impl, q_PGHd) == "triton":
        from kernels.shared_prefix_attention import triton

        with dispatch.launching(op, impl, q_PGHd):
            prefix, suffix = ((k.contiguous(), v.contiguous()) for k, v in (prefix, suffix))
            visible = None if visible_PS is None else visible_PS.to(torch.uint8).contiguous()
            lengths = None if lengths_PG is None else lengths_PG.contiguous()
            return triton.shared_prefix_attention(q_PGHd.contiguous(), prefix, suffix, visible, lengths)
    return reference.shared_prefix_attention(q_PGHd, prefix, suffix, visible_PS, lengths_PG)
