"""CODI (Shen et al. 2025, arXiv:2502.21074, sec. 3): self-distillation of a chain in tokens into latents.

One model does two tasks. The teacher's is to write chain and answer, the student's to answer after k latents:

    L = CE(answer | latents) + gamma CE(chain, answer | prompt) + beta mean_l smooth_l1(h_l, sg(t_l)) / std(t_l)

h_l and t_l are the student's and the teacher's states of layer l = 1..M at the position that gives the answer's first
token: the last latent, or the closing embedding after it, and the chain's last token. sg stops the gradient, so that
the student moves towards the teacher and not the other way round. The chain's last step is left out: the answer stands
in it, and the teacher would only copy it. With k = 0 there is only the answer: no-CoT.

Deviates: std is taken over the width for each row, instead of over the batch, so that a batch in several pieces has
the loss of the whole. The answer follows the latents without <eot>, unless `closing` asks for it, and without the words
"The answer is:", whose colon is the paper's position. Both tasks follow the same think token. As in the paper and
unlike in the authors' code (github.com/zhenyi4/codi), the embeddings are no layer that is matched.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent.backbone import Backbone
from latent.methods.codi import Codi
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import Mean, text_loss
from latent.taps import Call, join
from latent.text import Batch, Text, pad_right, sent, tokens_in
from latent.thought import Greedy


class CodiMethod(AlongSequence[Codi]):
    """Trained on the answer after the latents, on the chain in tokens, and on the distance between both."""

    fresh = (*AlongSequence.fresh, "feedback.")

    def __init__(self, config: Codi, backbone: Backbone):
        super().__init__(config, backbone)
        self.matched = range(1, backbone.depth + 1)
        self.student_tap: dict[str, Any] = {"keep": 1}
        self.teacher_tap: dict[str, Any] = {}

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        k = self.config.n_latent
        thought = self.stride * k + self.closing_positions
        return prompt + max(sum(self.chain(steps)) if k else 0, thought) + answer - 1

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        """The student's and the teacher's, of a chain with its last step, however long that is."""
        return [(self.steps, answer), (0, chain + answer)] if self.steps else [(0, answer)]

    def chain(self, steps: list) -> list:
        """The steps that the teacher writes."""
        return steps if self.config.keep_last else steps[:-1]

    def turn(self, batch: Batch) -> Taught:
        k, device = self.config.n_latent, batch.prompt.ids_BT.device
        text = pad_right(batch.answers, batch.pad, device)
        with self.backbone.tap(self.matched, **self.student_tap) as tapped:
            thought = self.closed(self.loop(batch.prompt, Greedy(), 1, k, k, stop=None))
        loss, logged = text_loss(self.backbone, thought, text)
        if k == 0:
            return Taught(thought, text, [loss], logged)
        written, teacher = self.teach(batch)
        written.weight = self.config.teacher_weight
        apart = self.distances(batch, tapped.calls, teacher)
        return Taught(thought, text, [loss, written, *apart.values()], {**logged, "teacher_ce": written, **apart})

    def distances(self, batch: Batch, student: list[Call], teacher: list[Call]) -> dict[str, Mean]:
        """The terms that draw the student to the teacher, by the names that they are logged under.

        `student`: the prompt's call, those of the latents and the closing embedding's, if any. `teacher`: the prompt's
        and that of the text, if any.
        """
        before_answer = self.of_latent(student, self.config.n_latent) if self.closing is None else student[-1]
        student_LBD = before_answer.h_LBTD[:, :, 0]
        h_LBTD = join([teacher[0].at(-1), *teacher[1:]]).h_LBTD  # state i gives token i of the text
        chain_B = sent(self.chain_lengths(batch), h_LBTD.device)
        teacher_LBD = h_LBTD[:, torch.arange(len(chain_B), device=h_LBTD.device), chain_B]
        apart_B = distance_of(student_LBD, teacher_LBD.detach())
        return {"distill": Mean(apart_B.sum(), len(apart_B), self.config.distill_weight)}

    def turn_counts(self, batch: Batch) -> list[int]:
        answers = tokens_in(batch.answers)
        return [answers, tokens_in(self.taught(batch)), len(batch.answers)] if self.config.n_latent else [answers]

    def taught(self, batch: Batch) -> list[tuple[int, ...]]:
        """The teacher's text, a row of ids a problem."""
        return [sum(self.chain(steps), ()) + answer for steps, answer in zip(batch.steps, batch.answers)]

    def chain_lengths(self, batch: Batch) -> list[int]:
        """Tokens of each row's chain as the teacher writes it."""
        return [tokens_in(self.chain(steps)) for steps in batch.steps]

    def teach(self, batch: Batch) -> tuple[Mean, list[Call]]:
        """Cross-entropy of chain and answer in tokens, and the calls that read the prompt and the text."""
        text: Text = pad_right(self.taught(batch), batch.pad, batch.prompt.ids_BT.device)
        with self.backbone.tap(self.matched, **self.teacher_tap) as tapped:
            prompt = self.loop(batch.prompt, Greedy(), 1, 0, 0, stop=None)
            written, _ = text_loss(self.backbone, prompt, text)
        return written, tapped.calls


def distance_of(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Smooth L1 between states, in units of the teacher's standard deviation, the mean over layers: (B,)."""
    apart_LB = F.smooth_l1_loss(student_LBD, teacher_LBD, reduction="none").mean(-1)
    return (apart_LB / teacher_LBD.std(-1)).mean(0)
