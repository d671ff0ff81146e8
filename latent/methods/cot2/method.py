"""CoT2 (Gozeten et al. 2025, arXiv:2505.23648, sec. 3): latents are mixtures of the vocabulary's embeddings.

    alpha_t = softmax(W h_{t-1}),   z_t = E^T alpha_t,   L = sum_{t<=k} KL(alpha*_t || alpha_t) - log p(answer)

(continuous supervised fine-tuning, CSFT): latent t is the mean input embedding z_t under what the head says at the
position before it, and is taught alpha*_t, the distribution over where a search may stand after step t. The last
latent's state gives the answer. In training z_t is made from alpha*_t (the paper's hard teacher), so that all latents
are read in one pass; in answering, from alpha_t. With `told` answer the latents are their own in training, too, and
learn from the answer's loss alone.

Deviates: the think token of every method stands where the paper's discrete model alone has one; AdamW's settings are
ours unless a preset says the paper's; latents beyond a problem's last step are taught to stay there.
"""

from latent.backbone import Backbone
from latent.methods.cot2 import CoT2
from latent.methods.frontier import frontier_loss, frontier_targets, reached
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import text_loss
from latent.text import Batch, pad_right, tokens_in
from latent.thought import Greedy


class CoT2Method(AlongSequence[CoT2]):
    """Trained on the answer after the latents and, told the frontier, on the distribution that makes every latent."""

    def __init__(self, config: CoT2, backbone: Backbone):
        super().__init__(config, backbone)
        self.is_taught = config.told == "frontier" and config.n_latent > 0

    def turn(self, batch: Batch) -> Taught:
        k, every = self.config.n_latent, self.config.supervise_every
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        p_BKV = frontier_targets(batch, k, self.backbone.vocab, every) if self.is_taught else None
        if p_BKV is not None and self.config.teacher and self.recycles:
            thought = self.given(batch.prompt, self.backbone.average(p_BKV), k)
        else:
            thought = self.loop(batch.prompt, Greedy(), 1, k, k, stop=None)
        thought = self.closed(thought)
        loss, logged = text_loss(self.backbone, thought, text)
        if p_BKV is None:
            return Taught(thought, text, [loss], logged)
        step_loss, more = frontier_loss(self.backbone, thought.states_UKD[:, every - 1 : -1 : every], p_BKV)
        step_loss.weight = self.config.step_weight
        return Taught(thought, text, [loss, step_loss], logged | more)

    def turn_counts(self, batch: Batch) -> list[int]:
        answers = tokens_in(batch.answers)
        return [answers, len(batch.answers)] if self.is_taught else [answers]

    def target_step(self, latent: int, chain: int) -> int:
        """A latent's state says the step after the one that the latent holds."""
        return reached(min(latent + 1, self.config.n_latent), self.config.n_latent, chain)
