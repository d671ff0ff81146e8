"""Recurrent depth in the manner of Huginn (Geiping et al. 2025, arXiv:2502.05171, sec. 3): the loop along the depth.

    e = prelude(x),  s_0 = 0,  s_i = norm(core(W_s s_{i-1} + W_e e)),  answer = head(coda(s_r))

The prompt is followed by copies of the think token until there is one position an answer token; all positions loop
together and the answer is read off the last ones in parallel, so an answer costs r sequential steps, however long it
is.

Deviates: s_0 is zero instead of Gaussian, so that thinking is deterministic; r is uniform in r_min..r_max instead of
log-normal Poisson, with backpropagation through all recurrences; and every recurrence i is supervised on the step it
should have reached, recurrences beyond the chain on the answer. The answer is read in parallel, where Huginn writes
token by token. Blocks are those of the backbone's family, with norms before attention and MLP alone, where Huginn's
have norms after them too; the loop's norm is a LayerNorm, once a recurrence, and embeddings are not scaled up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.errors import UserError
from latent import halting
from latent.backbone import Backbone
from latent.halting import Settled, StopHead
from latent.layers import GPT2, Llama
from latent.methods.base import Edit, Method
from latent.methods.recurrent import Recurrent
from latent.methods.terms import Mean, share, token_loss
from latent.taps import Call
from latent.text import Batch, Text, positions, tokens_in
from latent.thought import Chooser, Greedy, Prompt, Thought


class RecurrentMethod(Method[Recurrent]):
    """One core of layers run r times over the same positions, the prelude's output injected each time."""

    def __init__(self, config: Recurrent, backbone: Backbone):
        super().__init__(config, backbone)
        if backbone.layers is None:
            lm = type(backbone.lm).__name__
            raise UserError(f"recurrent depth loops the layers of GPT-2, Llama and Qwen3, not those of {lm}")
        blocks, wanted = len(backbone.layers.blocks), config.prelude + config.core + config.coda
        if blocks != wanted:
            raise UserError(
                f"prelude {config.prelude} + core {config.core} + coda {config.coda} need {wanted} layers, "
                f"the model has {blocks} (--model.n-layer)"
            )
        self.steps, self.parallel_answer = config.n_recurrence, config.answer_tokens
        self.prelude = range(config.prelude)
        self.core = range(config.prelude, config.prelude + config.core)
        self.coda = range(config.prelude + config.core, blocks)
        d = backbone.width
        self.carry, self.inject = nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.stop = halting.build(config.halt, self)

    @property
    def layers(self) -> GPT2 | Llama:
        """The backbone's, without which there were no loop."""
        assert self.backbone.layers is not None
        return self.backbone.layers

    def reserved(self, steps: int) -> int:
        return self.config.answer_tokens - 1

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        return prompt + self.config.answer_tokens - 1

    def passes(self, used: float, tokens: float) -> float:
        """The recurrences: the answer is read off in parallel."""
        return used

    @property
    def mean_trained_steps(self) -> float:
        return (self.config.r_min + self.config.r_max) / 2

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        d, n = self.backbone.width, prompt + self.config.answer_tokens - 1
        per_layer, attention = self.layer_flops, 4 * d * n * (n + 1) / 2
        once = sum(per_layer[: self.core.start]) + sum(per_layer[self.core.stop :]) + 2 * d * d
        looped = sum(per_layer[self.core.start : self.core.stop]) + 2 * d * d
        layers = len(self.prelude) + len(self.coda) + len(self.core) * used
        return n * (once + looped * used) + attention * layers + self.head_flops * self.config.answer_tokens

    def kept(self, prompt: float, used: float, text: float) -> float:
        return (prompt + text) * used * len(self.core)

    def of_latent(self, calls: list[Call], step: int) -> Call:
        """The last position: of the prelude for step 0, then of each recurrence's core; the coda's call is the last."""
        if step > len(calls) - 2:
            raise UserError(f"the tap saw {len(calls) - 2} recurrences, not {step}")
        return calls[step].at(-1)

    def lens(self, states: Tensor, layer: int | None = None) -> Tensor:
        """Normed, the layers above left out: the last norm is outside of every loop."""
        return self.layers.norm(states)

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        r = self.steps if steps is None else steps
        trace, place, tracker = self.run(prompt, choose, group, r, self.stop, edit)
        prompt_U, used_U, row_B = tracker.rows()
        states_PRTD = torch.stack(trace, 1)
        h_UTD = self.read_out(states_PRTD[prompt_U, used_U], place.rows(prompt_U))
        return Thought(h_UTD, None, states_PRTD[prompt_U, :, -1], used_U, choose.decisions(), row_B)

    def run(
        self,
        prompt: Prompt,
        choose: Chooser,
        group: int,
        r: int,
        stop: StopHead | Settled | None,
        edit: Edit | None = None,
    ) -> tuple[list[Tensor], "Place", halting.HaltTracker]:
        """States (B, T, D) before the loop and after each recurrence, where their positions are, and who went on."""
        if prompt.after is not None:
            raise UserError("a loop along the depth reads one question: several turns need a loop along the sequence")
        extra = self.config.answer_tokens - 1
        ids_BT, mask_BT = prompt.ids_BT, prompt.mask_BT
        ids_BT = torch.cat([ids_BT, ids_BT[:, -1:].expand(-1, extra)], 1)
        self.backbone.check_length(ids_BT.shape[1])
        if mask_BT is not None:
            mask_BT = torch.cat([mask_BT, mask_BT[:, -1:].expand(-1, extra)], 1)
        place = Place(positions(ids_BT, mask_BT), mask_BT)
        h_BTD, _ = self.layers.enter(self.backbone.embed(ids_BT), place.pos_BT)
        injected_BTD = self.inject(self.backbone.loop(h_BTD, self.prelude, place.pos_BT, place.mask_BT))
        trace = [torch.zeros_like(injected_BTD)]
        tracker = halting.HaltTracker(stop, choose, len(ids_BT), group, ids_BT.device)
        at_once = None  # all r states where nothing waits for the host, whatever the stops
        if edit is None:
            at_once = self.backbone.recur(
                injected_BTD, self.carry, self.norm, self.core, r, place.pos_BT, place.mask_BT
            )
        for i in range(r):
            if not tracker.advance(trace[-1][:, -1]):
                break
            if at_once is not None:
                trace.append(at_once[:, i])
                continue
            s_BTD = trace[-1] if edit is None else edit(i, trace[-1])
            s_BTD = self.carry(s_BTD)
            s_BTD = self.backbone.loop(s_BTD, self.core, place.pos_BT, place.mask_BT, injected_BTD)
            trace.append(self.norm(s_BTD))
        return trace, place, tracker

    def read_out(self, s_BTD: Tensor, place: "Place") -> Tensor:
        """State -> final hidden states at the answer's positions."""
        h_BTD = self.backbone.loop(s_BTD, self.coda, place.pos_BT, place.mask_BT)
        return self.layers.norm(h_BTD[:, -self.config.answer_tokens :])

    def terms(self, batch: Batch) -> tuple[list[Mean], dict[str, Mean]]:
        r = self.draw_recurrences(batch)
        trace, place, _ = self.run(batch.prompt, Greedy(), 1, r, stop=None)
        states_NTD = torch.stack(trace[1:], 1).flatten(0, 1)  # row b * r + i - 1
        rows_N = torch.arange(len(place.pos_BT), device=place.pos_BT.device).repeat_interleave(r)
        h_NTD = self.read_out(states_NTD, place.rows(rows_N))
        loss, hit_NT = token_loss(self.backbone, h_NTD, self.targets(batch, r))
        exact_BR = hit_NT.all(1).view(-1, r)
        return [loss], {"ce": loss, "exact": share(exact_BR[:, -1]), "step_exact": share(exact_BR.flatten())}

    def counts(self, batch: Batch) -> list[int | Tensor]:
        return [self.draw_recurrences(batch) * tokens_in(batch.answers)]

    def draw_recurrences(self, batch: Batch) -> int:
        """How often the core runs in training on a batch."""
        return self.config.r_min + batch.draw_below(self.config.r_max + 1 - self.config.r_min)

    def check_chain(self, steps: list[int], answer: int) -> None:
        asked = steps[: self.config.r_max] if self.config.supervise == "steps" else []
        wrong = {answer, *asked} - {self.config.answer_tokens}
        if wrong:
            raise UserError(
                f"every step and answer must have method.answer_tokens = {self.config.answer_tokens} tokens "
                f"to be read off a recurrence, got one of {min(wrong)}"
            )

    def targets(self, batch: Batch, r: int) -> Text:
        """What each of r recurrences should read out: step i, and the answer beyond the chain."""
        rows = []
        for steps, answer in zip(batch.steps, batch.answers):
            self.check_chain([len(step) for step in steps], len(answer))
            rows += (steps[:r] + [answer] * (r - len(steps))) if self.config.supervise == "steps" else [answer] * r
        return Text(torch.tensor(rows, device=batch.prompt.ids_BT.device), None)


@dataclass
class Place:
    """Position ids (B, T) and the mask of padded prompts, the answer's positions included."""

    pos_BT: Tensor
    mask_BT: Tensor | None

    def rows(self, index_U: Tensor) -> "Place":
        return Place(self.pos_BT[index_U], None if self.mask_BT is None else self.mask_BT[index_U])
