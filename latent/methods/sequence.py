"""The loop along the sequence that most methods share, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.errors import UserError, unwritten
from latent import halting
from latent.backbone import Backbone
from latent.cache import Context
from latent.halting import Settled, StopHead, stop_loss
from latent.methods.base import ConfigT, Edit, Method
from latent.methods.config import SequenceConfig
from latent.methods.feedback import Feedback, Feeding, flops_of
from latent.methods.terms import Mean, text_loss
from latent.policies.base import Policy
from latent.text import Batch, Text, pad_left
from latent.thought import Chooser, Prompt, Thought


@dataclass
class Taught:
    """A turn as it is taught: the thought, the text after it, the loss's terms and what is logged of it."""

    thought: Thought
    text: Text
    terms: list[Mean]
    logged: dict[str, Mean]


class AlongSequence(Method[ConfigT]):
    """Thinks by feeding the last hidden state back as the next input embedding (Coconut, arXiv:2412.06769, sec. 3).

    states[0] is the hidden state of the think token, states[i] that of latent i, whose input is fed back from
    states[i - 1]; states[used] gives the first token of the text, or that of the closing embedding after it, where the
    config asks for one. `recycles`: whether latents are made of the states before them; a control's are not.
    """

    closing: nn.Parameter | None
    recycles: ClassVar[bool] = True

    def __init__(self, config: ConfigT, backbone: Backbone):
        super().__init__(config, backbone)
        self.stride = 1
        self.feedback: Feeding | None = None
        self.policy: Policy | None = None
        self.closing = None
        if isinstance(config, SequenceConfig):  # the controls without latents loop no time
            self.steps, self.stride = config.n_latent, config.stride
            self.feedback = Feedback(config.feedback, backbone)
            self.stop = halting.build(config.halt, self)
            self.policy = config.policy.build(backbone)
            if config.closing:
                self.closing = nn.Parameter(backbone.random_embedding())

    @property
    def closing_positions(self) -> int:
        """Positions between the thoughts and the text."""
        return int(self.closing is not None)

    def reserved(self, steps: int) -> int:
        return self.stride * max(steps, self.trained_steps) + self.closing_positions

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        return prompt + self.stride * self.steps + self.closing_positions + answer - 1

    def passes(self, used: float, tokens: float) -> float:
        """Reading, each latent step, each token after the first; latents that do not wait are one pass."""
        waits = self.feedback is None or self.feedback.waits
        return 1 + (used if waits else min(used, 1)) + self.closing_positions + tokens - 1

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        fed = flops_of(self.feedback) if self.recycles and self.feedback is not None else 0
        return super().flops(prompt, used + self.closing_positions, tokens) + used * fed

    def of_latent(self, calls, step):
        return super().of_latent(calls[: len(calls) - self.closing_positions], step)

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        trained = self.trained_steps
        k = trained if steps is None else steps
        if k and self.feedback is None:
            raise UserError(f"{self.title} has no latents: the number of latent steps must be 0, got {k}")
        if self.policy is not None and not choose.random:
            choose = self.policy.greedy(choose, prompt, k)
        return self.closed(self.loop(prompt, choose, group, k, max(k, trained), self.stop, edit))

    def given(self, prompt: Prompt, x_BKD: Tensor, room: int) -> Thought:
        """The thought whose K latents are fed given embeddings, in one pass with the prompt; `room` as in `loop`."""
        k = x_BKD.shape[1]
        h_BTD, context = self.backbone.hidden(
            prompt.ids_BT, prompt.mask_BT, k + 1, prompt.after, then_BKD=x_BKD, stride=self.stride
        )
        states_BKD = h_BTD[:, -k - 1 :]
        context = context.skip(self.stride * (room - k))
        return Thought(states_BKD[:, -1:], context, states_BKD, prompt.ids_BT.new_full((len(h_BTD),), k))

    @staticmethod
    def cut_at(thought: Thought, used_U: Tensor) -> Thought:
        """The thought with the text following latent `used_U` of each row: the later ones are hidden from it."""
        context, states_UKD = thought.context, thought.states_UKD
        assert context is not None  # a loop along the sequence leaves one
        done = states_UKD.shape[1] - 1
        if done:
            context = context.hide(torch.arange(done, device=used_U.device) >= used_U[:, None])
        h_UD = states_UKD[torch.arange(len(used_U), device=used_U.device), used_U]
        return replace(thought, h_UTD=h_UD[:, None], context=context, used_U=used_U)

    def stop_term(self, thought: Thought, used_B: Tensor, most: int, weight: float = 1.0) -> dict[str, Mean]:
        """Cross-entropy of a learned stop that should come after `used_B` of at most `most` latents, as `stop_ce`.

        Nothing where no stop is learned.
        """
        if not isinstance(self.stop, StopHead):
            return {}
        return {"stop_ce": Mean(*stop_loss(self.stop, thought.states_UKD, used_B, most), weight)}

    def closed(self, thought: Thought) -> Thought:
        """The thought with the closing embedding read after it, where there is one."""
        if self.closing is None:
            return thought
        assert thought.context is not None  # a loop along the sequence leaves one
        h_U1D, context = self.backbone.step(self.closing.expand(len(thought.h_UTD), 1, -1), thought.context)
        return replace(thought, h_UTD=h_U1D, context=context)

    def turn(self, batch: Batch) -> Taught:
        """A turn of a batch as it is taught: what was thought, what is to be written after it, and what that costs."""
        raise unwritten(self, "turn")

    def without_latents(self, prompt: Prompt, text: Text) -> Taught:
        """A turn whose text follows the prompt with no latent in between, both read in one pass."""
        b, t = text.ids_BT.shape
        fed_BTD, kept = self.backbone.embed(text.ids_BT[:, :-1]), t + self.closing_positions
        if self.closing is not None:
            fed_BTD = torch.cat([self.closing.expand(b, 1, -1), fed_BTD], 1)
        real_B = None if text.lengths_B is None else text.lengths_B - 1 + self.closing_positions
        h_BTD, context = self.backbone.hidden(
            prompt.ids_BT, prompt.mask_BT, kept, prompt.after, then_BKD=fed_BTD, real_B=real_B
        )
        h_BTD = h_BTD[:, -kept:]
        context = context.without_last(t - 1)  # a next turn reads the text again, with what follows it
        thought = Thought(h_BTD[:, -t:], context, h_BTD[:, :1], prompt.ids_BT.new_zeros(b))
        loss, logged = text_loss(self.backbone, thought, text)
        return Taught(thought, text, [loss], logged)

    def terms(self, batch):
        """Those of every turn together: turn t + 1 follows what was thought in turn t and the text that is taught."""
        taught = self.turn(batch)
        if batch.then is None:
            return taught.terms, taught.logged
        prompt = followed(taught.thought, taught.text.rows(), batch.then.prompt, batch.pad)
        more, also = self.terms(replace(batch.then, prompt=prompt, generator=batch.generator))
        terms = [a.joined(b) for a, b in zip(taught.terms, more, strict=True)]
        return terms, {name: mean.joined(also[name]) for name, mean in taught.logged.items()}

    def turn_counts(self, batch: Batch) -> list[int]:
        """The counts of the terms of a turn, from the ids alone."""
        raise unwritten(self, "turn_counts")

    def counts(self, batch):
        found = self.turn_counts(batch)
        if batch.then is None:
            return found
        return [a + b for a, b in zip(found, self.counts(replace(batch.then, generator=batch.generator)), strict=True)]

    def loop(
        self,
        prompt: Prompt,
        choose: Chooser,
        group: int,
        k: int,
        room: int,
        stop: StopHead | Settled | None,
        edit: Edit | None = None,
    ) -> Thought:
        """Think for at most k latents; the text begins where `room` latents would end, whatever was used."""
        before = prompt.after.reach if prompt.after else 0
        self.backbone.check_length(before + prompt.ids_BT.shape[1] + self.stride * room)
        keep = None if prompt.keep else 1
        prompt_PTD, context = self.backbone.hidden(prompt.ids_BT, prompt.mask_BT, keep, prompt.after)
        h_PD = prompt_PTD[:, -1]
        policy = self.policy if choose.random else None
        if policy is not None and k and group > 1:  # no two rollouts of a prompt think alike
            prompt_B = torch.arange(len(h_PD), device=h_PD.device).repeat_interleave(group)
            h_PD, context, group = h_PD[prompt_B], context.rows(prompt_B), 1
        states, tracker = [h_PD], halting.HaltTracker(stop, choose, len(h_PD), group, h_PD.device)
        feedback = self.feedback
        known_KD = None
        if k and feedback is not None and (self.training or not feedback.waits):
            known_KD = feedback.known(k)
        at_once = self._at_once(h_PD, context, k, known_KD, edit) if k and policy is None else None
        if at_once is not None:
            states_PKD, context = at_once
            states += states_PKD.unbind(1)
        for i in range(k):
            if not tracker.advance(states[i]):
                # none is made, and said so: every share of a batch has every kind
                if policy is not None and i == 0:
                    choose("thought", policy(h_PD, h_PD), tracker.live_B, h_PD)
                break
            if at_once is not None:
                continue
            if known_KD is not None:
                x_PD = known_KD[i].expand_as(h_PD)
            elif policy is not None and not policy.around:
                x_PD = states[-1]
            else:
                assert feedback is not None  # as there is wherever there are latents
                x_PD = feedback(states[-1])
            if policy is not None:
                value_P = choose("thought", policy(x_PD, states[-1]), tracker.live_B, states[-1])
                x_PD = policy.fed(value_P, states[-1])
            if edit is not None:
                x_PD = edit(i, x_PD)
            h_P1D, context = self.backbone.step(x_PD[:, None], context.skip(self.stride - 1))
            states.append(h_P1D[:, 0])
        states_PKD = torch.stack(states, 1)
        context = context.skip(self.stride * (room - len(states) + 1))
        prompt_U, used_U, row_B = tracker.rows()
        if stop is not None and row_B is not None:
            context, states_PKD = context.rows(prompt_U), states_PKD[prompt_U]
        thought = Thought(states_PKD[:, -1:], context, states_PKD, used_U, choose.decisions(), row_B)
        if prompt.keep:
            thought.prompt_PTD = prompt_PTD
        return thought if stop is None else self.cut_at(thought, used_U)

    def _at_once(
        self, h_PD: Tensor, context: Context, k: int, known_KD: Tensor | None, edit: Edit | None
    ) -> tuple[Tensor, Context] | None:
        """States of all k latents (P, K, D) where nothing waits for the host, whatever the stops; None elsewhere."""
        if edit is not None:
            return None
        if known_KD is None:
            return self.backbone.chain(h_PD, context, self.feedback, k, self.stride)
        x_PKD = known_KD.expand(len(h_PD), -1, -1)
        return self.backbone.step(x_PKD, context.skip(self.stride - 1), self.stride)


def followed(thought: Thought, texts: list[list[int]], prompt: Prompt, pad: int) -> Prompt:
    """The prompts of a next turn, after a thought and the text that each row wrote then.

    The text's tokens are read again with what follows them, in one pass. Raises UserError after a loop along the
    depth, which keeps nothing to go on from.
    """
    if thought.context is None:
        raise UserError("a loop along the depth reads one question: several turns need a loop along the sequence")
    masks = prompt.mask_BT.tolist() if prompt.mask_BT is not None else None
    rows = []
    for b, (text, ids) in enumerate(zip(texts, prompt.ids_BT.tolist(), strict=True)):
        rows.append(text + (ids if masks is None else [i for i, real in zip(ids, masks[b]) if real]))
    after = thought.context if thought.row_B is None else thought.context.rows(thought.row_B)
    return replace(pad_left(rows, pad, prompt.ids_BT.device), after=after)
