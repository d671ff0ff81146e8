"""R-KV (Cai et al. 2025, arXiv:2505.24133): which positions of a cache to keep, in every layer and head for itself.

A position i scores

    S_i = lambda I_i + (1 - lambda) R_i

I_i, its importance, is its share of the attention that the positions of an answer pay to all that may be kept. R_i is
high where its key is unlike the others: softmax_i(- sum_{j != i} cos(k_i, k_j) / n), over the n positions that may be
kept. Both sum to 1, so that lambda weighs like with like. Shapes begin with L layers and B rows; C positions of H heads
of keys, d wide; M are kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def importance(a_LBHTC: Tensor, asking_BT: Tensor, real_BC: Tensor, heads: int) -> Tensor:
    """The mean share of attention that each real position gets from the T queries that ask, (L, B, heads, C).

    `a_LBHTC`: attention weights of H query heads; where several have the same keys, the largest of their shares counts,
    and the sum is more than 1.
    """
    a_LBHTC = a_LBHTC * real_BC[:, None, None]
    share_LBHTC = a_LBHTC / a_LBHTC.sum(-1, keepdim=True).clamp_min(torch.finfo(a_LBHTC.dtype).tiny)
    share_LBhTC = share_LBHTC.unflatten(2, (heads, -1)).amax(3)
    asking_BT = asking_BT.to(share_LBhTC.dtype)
    return torch.einsum("lbhtc,bt->lbhc", share_LBhTC, asking_BT / asking_BT.sum(1, keepdim=True).clamp_min(1))


def unlikeness(k_LBHCd: Tensor, real_BC: Tensor) -> Tensor:
    """Softmax over real positions of minus a key's mean cosine to the others, (L, B, H, C); 0 on padding.

    A row without real positions has finite numbers without a meaning.
    """
    unit_LBHCd = F.normalize(k_LBHCd, dim=-1) * real_BC[:, None, :, None]
    cos_LBHC = torch.einsum("lbhcd,lbhd->lbhc", unit_LBHCd, unit_LBHCd.sum(3))  # its own, 1 for all, falls out below
    mean_LBHC = cos_LBHC / real_BC.sum(1).clamp_min(1)[:, None, None]
    lowest = torch.finfo(mean_LBHC.dtype).min  # minus infinity would make a row without real positions NaN
    return mean_LBHC.neg().masked_fill(~real_BC[:, None], lowest).softmax(-1)


def kept(score_LBHC: Tensor, real_BC: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The positions of the `size` best scores, in order of position, (L, B, H, M), and which of them are real (B, M).

    M is at most C. Real positions come before padding, and of equal scores the earlier counts as the better.
    """
    best = score_LBHC.masked_fill(~real_BC[:, None], float("-inf")).argsort(dim=-1, descending=True, stable=True)
    index_LBHM = best[..., :size].sort(-1).values
    place_M = torch.arange(index_LBHM.shape[-1], device=real_BC.device)
    return index_LBHM, place_M < real_BC.sum(1)[:, None]
