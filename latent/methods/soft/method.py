"""Soft tokens: latents are mixtures of token embeddings, so that a thought stays where the model has learned to read.

Soft Thinking (Zhang et al. 2025, arXiv:2505.15778, sec. 3) asks for no training. Latent i is

    x_i = sum_v p_i(v) E_v,   p_i = softmax(logits_{i-1} / temperature) over its top_k tokens

and thinking ends after k latents, or where p is sharp (`method.halt converged`, by entropy: Cold Stop). With top_k = 1
the latents are the tokens of greedy decoding. A model that was trained on chains thinks so as it is:

    python -m train.latent soft --init RUN --method.n-latent 32 --train.steps 0

Latent-SFT (Deng et al. 2025, arXiv:2510.15522, stage 2) trains such latents. A chain of n tokens is dealt evenly over k
latents; q_i weighs the tokens of part i alike, and the latents are fed x_i = sum_v q_i(v) E_v, all in one pass:

    L = CE(answer | x_1..x_k) + label_weight mean_i KL(q_i || softmax(logits_{i-1}))

The order of the tokens in a part is lost. With k = 0 there is only the answer: no-CoT.

Deviates: Latent-SFT's q is what an encoder of the chain, trained before and then left behind, makes of it; here it is
the chain's own tokens, so that one run trains it all. No token ends the thoughts, unless `closing` asks for one after
the k-th; no top-p cuts p, and labels carry no Gumbel noise (its version 2). Where a chain has fewer tokens than there
are latents some stand for the same one, and where it has none for the prompt's last.
"""

from itertools import pairwise

import torch
from torch import Tensor

from kernels.errors import UserError
from latent.backbone import Backbone
from latent.methods.feedback import Feedback
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.soft import Soft
from latent.methods.terms import Mean, text_loss
from latent.text import Batch, Text, pad_right, tokens_in
from latent.thought import Greedy, Prompt, Thought


class SoftMethod(AlongSequence[Soft]):
    """Trained on the chain's tokens as mixtures, and on the answer after them."""

    def __init__(self, config: Soft, backbone: Backbone):
        super().__init__(config, backbone)
        if config.top_k > backbone.vocab:
            raise UserError(f"method.top_k must be at most the vocabulary's {backbone.vocab}, got {config.top_k}")
        self.feedback = Feedback("soft", backbone, config.top_k or None, config.temperature)

    def turn(self, batch: Batch) -> Taught:
        k, device = self.config.n_latent, batch.prompt.ids_BT.device
        text = pad_right(batch.answers, batch.pad, device)
        if k == 0:
            return self.without_latents(batch.prompt, text)
        parts = pad_right([part for row in self.dealt(batch) for part in row], batch.pad, device)
        thought = self.closed(self.led(batch.prompt, parts))
        loss, logged = text_loss(self.backbone, thought, text)
        apart = self.divergence(thought.states_UKD[:, :-1].flatten(0, 1), parts)
        apart.weight = self.config.label_weight
        return Taught(thought, text, [loss, apart], {**logged, "label_kl": apart})

    def led(self, prompt: Prompt, parts: Text) -> Thought:
        """The thought whose latents are fed the parts of a chain, in one pass; those of a control what it feeds."""
        k = self.config.n_latent
        if not self.recycles:
            return self.loop(prompt, Greedy(), 1, k, k, stop=None)
        return self.given(prompt, self.mixed(parts).unflatten(0, (-1, k)), k)

    def turn_counts(self, batch: Batch) -> list[int]:
        k, answers = self.config.n_latent, tokens_in(batch.answers)
        return [answers, k * len(batch.answers)] if k else [answers]

    def target_step(self, latent: int, chain: int) -> int:
        return min(chain, latent * chain // self.config.n_latent)

    def dealt(self, batch: Batch) -> list[list[tuple[int, ...]]]:
        """The part of a row's chain that each of its latents stands for, in tokens."""
        k, last, rows = self.config.n_latent, batch.prompt.ids_BT[:, -1].tolist(), []
        for steps, prompt in zip(batch.steps, last):
            chain = sum(steps, ()) or (prompt,)
            starts = [i * len(chain) // k for i in range(k + 1)]
            rows.append([chain[a : max(b, a + 1)] for a, b in pairwise(starts)])
        return rows

    def mixed(self, parts: Text) -> Tensor:
        """The mean input embedding (N, D) of the tokens of each part."""
        e_NTD = self.backbone.embed(parts.ids_BT)
        if parts.mask_BT is None:
            return e_NTD.mean(1)
        real_NT1 = parts.mask_BT[..., None].to(e_NTD.dtype)
        return (e_NTD * real_NT1).sum(1) / real_NT1.sum(1)

    def divergence(self, h_ND: Tensor, parts: Text) -> Mean:
        """KL (nats) of next-token distributions, given by their states, from the tokens of a part, weighed alike."""
        real_NT = torch.ones_like(parts.ids_BT, dtype=torch.bool) if parts.mask_BT is None else parts.mask_BT
        h_NTD = h_ND[:, None].expand(-1, parts.ids_BT.shape[1], -1)
        logp_M, _, _ = self.backbone.logprob(h_NTD[real_NT], parts.ids_BT[real_NT], entropy=False)
        same_NTT = (parts.ids_BT[:, :, None] == parts.ids_BT[:, None]) & real_NT[:, None]
        often_M = same_NTT.sum(-1)[real_NT].to(logp_M)  # a token's places in its part
        size_M = real_NT.sum(1, keepdim=True).expand_as(real_NT)[real_NT].to(logp_M)
        return Mean((((often_M / size_M).log() - logp_M) / size_M).sum(), len(h_ND))
