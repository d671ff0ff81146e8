"""CODI (Shen et al. 2025, arXiv:2502.21074, sec. 3): self-distillation of a chain in tokens into latents.

One model does two tasks. The teacher's is to write chain and answer, the student's to answer after k latents:

    L = CE(answer | latents) + gamma CE(chain, answer | prompt) + beta mean_l smooth_l1(h_l, sg(t_l)) / std(t_l)

h_l and t_l are the student's and the teacher's states of layer l = 1..M at the position that gives the answer's first
token: the last latent, and the chain's last token. sg stops the gradient, so that the student moves towards the teacher
and not the other way round. The chain's last step is left out: the answer stands in it, and the teacher would only copy
it. With k = 0 there is only the answer: no-CoT.

Deviates: std is taken over the width for each row, instead of over the batch, so that a batch in several pieces has
the loss of the whole. The answer follows the latents without <eot> and without the words "The answer is:", whose colon
is the paper's position. Both tasks follow the same think token. As in the paper and unlike in the authors' code
(github.com/zhenyi4/codi), the embeddings are no layer that is matched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from latent.backbone import Backbone
from latent.methods.base import AlongSequence, Mean, Taught, text_loss
from latent.methods.codi import Codi
from latent.taps import join
from latent.text import Batch, Text, pad_right, sent, tokens_in
from latent.thought import Greedy


class CodiMethod(AlongSequence[Codi]):
    """Trained on the answer after the latents, on the chain in tokens, and on the distance between both."""

    fresh = (*AlongSequence.fresh, "feedback.")

    def __init__(self, config: Codi, backbone: Backbone):
        super().__init__(config, backbone)
        self.matched = range(1, backbone.depth + 1)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        k = self.config.n_latent
        return prompt + max(sum(self.chain(steps)) if k else 0, self.stride * k) + answer - 1

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        """The student's and the teacher's, of a chain with its last step, however long that is."""
        return [(self.steps, answer), (0, chain + answer)] if self.steps else [(0, answer)]

    def chain(self, steps: list) -> list:
        """The steps that the teacher writes."""
        return steps if self.config.keep_last else steps[:-1]

    def turn(self, batch: Batch) -> Taught:
        k, device = self.config.n_latent, batch.prompt.ids_BT.device
        text = pad_right(batch.answers, batch.pad, device)
        with self.backbone.tap(self.matched, keep=1) as tapped:
            thought = self.loop(batch.prompt, Greedy(), 1, k, k, stop=None)
        loss, logged = text_loss(self.backbone, thought, text)
        if k == 0:
            return Taught(thought, text, [loss], logged)
        student_LBD = self.of_latent(tapped.calls, k).h_LBTD[:, :, 0]
        written, teacher_LBD = self.teach(batch)
        distance = Mean(distance_of(student_LBD, teacher_LBD.detach()).sum(), len(text.ids_BT))
        written.weight, distance.weight = self.config.teacher_weight, self.config.distill_weight
        return Taught(thought, text, [loss, written, distance], {**logged, "teacher_ce": written, "distill": distance})

    def turn_counts(self, batch: Batch) -> list[int]:
        answers = tokens_in(batch.answers)
        return [answers, tokens_in(self.taught(batch)), len(batch.answers)] if self.config.n_latent else [answers]

    def taught(self, batch: Batch) -> list[tuple[int, ...]]:
        """The teacher's text, a row of ids a problem."""
        return [sum(self.chain(steps), ()) + answer for steps, answer in zip(batch.steps, batch.answers)]

    def teach(self, batch: Batch) -> tuple[Mean, Tensor]:
        """Cross-entropy of chain and answer in tokens, and the states (L, B, D) that give the answer's first token."""
        text: Text = pad_right(self.taught(batch), batch.pad, batch.prompt.ids_BT.device)
        with self.backbone.tap(self.matched) as tapped:
            prompt = self.loop(batch.prompt, Greedy(), 1, 0, 0, stop=None)
            written, _ = text_loss(self.backbone, prompt, text)
        read, *rest = tapped.calls
        h_LBTD = join([read.at(-1), *rest]).h_LBTD  # state i gives token i of the text
        chain_B = sent([tokens_in(self.chain(steps)) for steps in batch.steps], h_LBTD.device)
        return written, h_LBTD[:, torch.arange(len(chain_B), device=h_LBTD.device), chain_B]


def distance_of(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Smooth L1 between states, in units of the teacher's standard deviation, the mean over layers: (B,)."""
    apart_LB = F.smooth_l1_loss(student_LBD, teacher_LBD, reduction="none").mean(-1)
    return (apart_LB / teacher_LBD.std(-1)).mean(0)
