"""KaVa (Kuzina et al. 2025, arXiv:2510.02312): a chain's compressed K/V cache as the target of latents' K and V.

To the loss of `latent.methods.codi`, with the latents of `latent.methods.pccot`, comes a distance between what the M
latents leave in the cache in their last pass and what the teacher's chain leaves, of which R-KV keeps M positions:

    L = CE(answer | latents) + gamma CE(chain, answer | prompt) + alpha_1 L_CODI + alpha_2 L_KV
    L_KV = 1 / 2M (|sg(K~) - K|_p^p + |sg(V~) - V|_p^p),   K~, V~ = the M best positions by lambda I + (1 - lambda) R

K~ and V~ are chosen in every layer and head for itself (`latent.methods.kava.eviction`), by the attention that the
answer pays to the chain, and by how unlike the keys are. Nothing is evicted when it answers: the latents are the
compressed cache. sg stops the gradient. alpha_1 is `distill_weight`, gamma `teacher_weight` (1 in the paper).

Deviates: the paper's text was not at hand, and its authors have published no code. What is above, lambda = .1, M = 24,
T = 3 and the scores are as public summaries and reimplementations quote the equations and listing 1, and agree on them;
the weights are one reimplementation's quotation of table 6. Left open there, and chosen here: the norms are means over
layers, heads and coordinates as over positions; kept position i, in the order of the chain, is the target of latent i,
and where a chain is shorter than M the later latents have none; keys are matched as they are cached, rotated where the
family does that; the answer's attention is that of the positions that give its tokens; with grouped queries the largest
share of a group counts, as R-KV's code has it of the scores before the softmax. With `kv_std` the distance itself is
divided, as CODI's is, by the standard deviation of each row's K~, and V~, in a layer. R-KV's smoothing along positions,
its window of latest tokens and its threshold are no part of it. Otherwise as in `latent.methods.pccot`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.errors import UserError
from latent.backbone import Backbone
from latent.methods.kava import Kava
from latent.methods.kava.eviction import importance, kept, unlikeness
from latent.methods.pccot.method import PccotMethod
from latent.methods.terms import Mean
from latent.taps import Call, join
from latent.text import Batch, sent, tokens_in

DISTANCES = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss}


class KavaMethod(PccotMethod):
    """PCCoT with a term more: the distance between the K and V of latents and those of the chain that are kept."""

    config: Kava

    def __init__(self, config: Kava, backbone: Backbone):
        super().__init__(config, backbone)
        self.student_tap = {"keep": max(config.n_latent, 1), "kv": True}
        self.teacher_tap = {"kv": True, "attentions": True}

    def check_chains(self, chains: list[list[int]]) -> None:
        if self.config.n_latent and not any(sum(self.chain(steps)) for steps in chains):
            last = "" if self.config.keep_last else " of more than one step (the last is left out: --method.keep-last)"
            raise UserError(f"{self.title} learns from chains, and no training problem has one{last}")

    def turn_counts(self, batch: Batch) -> list[int]:
        counts = super().turn_counts(batch)
        if self.config.n_latent == 0:
            return counts
        return [*counts, sum(min(n, self.config.n_latent) for n in self.chain_lengths(batch))]

    def distances(self, batch: Batch, student: list[Call], teacher: list[Call]) -> dict[str, Mean]:
        found, count = super().distances(batch, student, teacher), self.turn_counts(batch)[-1]
        thought = student[1 : len(student) - self.closing_positions]
        latents = join(thought) if not self.recycles else thought[-1]  # a control's, or those of the last pass
        k_LBHKd, v_LBHKd = wide(latents.k_LBHTd), wide(latents.v_LBHTd)
        if count:
            k_LBHMd, v_LBHMd, real_BM = self.compressed(batch, teacher[-1])
            total = (self.apart(k_LBHKd, k_LBHMd, real_BM) + self.apart(v_LBHKd, v_LBHMd, real_BM)) / 2
        else:  # no row has a chain
            total = (k_LBHKd.sum() + v_LBHKd.sum()) * 0
        return {**found, "kv": Mean(total, count, self.config.kv_weight)}

    @torch.no_grad()
    def compressed(self, batch: Batch, text: Call) -> tuple[Tensor, Tensor, Tensor]:
        """K and V of the chain that are kept, (L, B, H, M, d) each, and which of them are real (B, M).

        `text`: the call that read chain and answer, all but the last token of the longest row.
        """
        k_LBHTd, v_LBHTd, a_LBHTS, t = wide(text.k_LBHTd), wide(text.v_LBHTd), wide(text.a_LBHTS), text.length
        chain_B1 = sent(self.chain_lengths(batch), k_LBHTd.device)[:, None]
        last_B1 = chain_B1 + sent([tokens_in([a]) for a in batch.answers], k_LBHTd.device)[:, None] - 2
        place_T = torch.arange(t, device=k_LBHTd.device)
        real_BT, asking_BT = place_T < chain_B1, (place_T >= chain_B1 - 1) & (place_T <= last_B1)
        weight = self.config.importance
        score_LBHT = weight * importance(a_LBHTS[..., -t:], asking_BT, real_BT, k_LBHTd.shape[2])
        score_LBHT = score_LBHT + (1 - weight) * unlikeness(k_LBHTd, real_BT)
        index_LBHM, real_BM = kept(score_LBHT, real_BT, self.config.n_latent)
        index_LBHMd = index_LBHM[..., None].expand(*index_LBHM.shape, k_LBHTd.shape[-1])
        return k_LBHTd.gather(3, index_LBHMd), v_LBHTd.gather(3, index_LBHMd), real_BM

    def apart(self, x_LBHKd: Tensor, target_LBHMd: Tensor, real_BM: Tensor) -> Tensor:
        """The sum over all pairs of a latent and its target of their distance, a mean over layers, heads and width."""
        layers, _, heads, m, width = target_LBHMd.shape
        apart_LBHMd = DISTANCES[self.config.kv_distance](x_LBHKd[..., :m, :], target_LBHMd, reduction="none")
        if self.config.kv_std:
            apart_LBHMd = apart_LBHMd / spread(target_LBHMd, real_BM)[..., None, None, None]
        return (apart_LBHMd * real_BM[:, None, :, None]).sum() / (layers * heads * width)


def wide(x: Tensor) -> Tensor:
    """In fp32 or better: sums of bf16 numbers would be rounded to bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def spread(x_LBHMd: Tensor, real_BM: Tensor) -> Tensor:
    """Standard deviation of a row's numbers in a layer, (L, B); 1 where there are none."""
    real_B1M1 = real_BM[:, None, :, None].to(x_LBHMd.dtype)
    n_B = real_BM.sum(1) * x_LBHMd.shape[2] * x_LBHMd.shape[4]
    mean_LB = (x_LBHMd * real_B1M1).sum((2, 3, 4)) / n_B.clamp_min(1)
    off_LBHMd = (x_LBHMd - mean_LB[..., None, None, None]) * real_B1M1
    std_LB = (off_LBHMd.square().sum((2, 3, 4)) / (n_B - 1).clamp_min(1)).sqrt()
    return std_LB.masked_fill(n_B == 0, 1.0)
