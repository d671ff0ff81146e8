"""The definition: the prefix copied to every rollout, one softmax, in fp32 or better."""

import torch
from torch import Tensor


def shared_prefix_attention(
    q_PGHd: Tensor,
    prefix: tuple[Tensor, Tensor],
    suffix: tuple[Tensor, Tensor],
    visible_PS: Tensor | None,
    lengths_PG: Tensor | None,
) -> Tensor:
    """Attention output, (P, G, H, d)."""
    more = torch.promote_types(q_PGHd.dtype, torch.float32)
    p, g, h, d = q_PGHd.shape
    k, v = (
        torch.cat([a[:, None].expand(-1, g, -1, -1, -1), b], 3).repeat_interleave(h // a.shape[1], 2).to(more)
        for a, b in zip(prefix, suffix)
    )
    size, late = prefix[0].shape[2], suffix[0].shape[3]
    score = torch.einsum("pghd,pghsd->pghs", q_PGHd.to(more), k) * d**-0.5
    seen_PGS = torch.ones(p, g, size + late, dtype=torch.bool, device=q_PGHd.device)
    if visible_PS is not None:
        seen_PGS[..., :size] = visible_PS[:, None]
    if lengths_PG is not None:
        seen_PGS[..., size:] = torch.arange(late, device=q_PGHd.device) < lengths_PG[..., None]
    weights = score.masked_fill(~seen_PGS[:, :, None], float("-inf")).softmax(-1)
    return torch.einsum("pghs,pghsd->pghd", weights, v).to(q_PGHd.dtype)
