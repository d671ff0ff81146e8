"""What a method does, the loop along the sequence that most of them share, and the loss of a text after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kernels.errors import UserError
from latent import halting
from latent.backbone import Backbone
from latent.cache import Context
from latent.halting import Settled, StopHead
from latent.methods.config import MethodConfig, SequenceConfig
from latent.methods.feedback import Feedback, Feeding
from latent.policies.base import Policy
from latent.taps import Call
from latent.text import Batch, Text, pad_left
from latent.thought import Chooser, Greedy, Prompt, Thought


@dataclass
class Mean:
    """A mean that is not taken yet: the sum `total` over `count` things.

    Whoever has only a share of a batch sums its totals and its counts with those of the others before dividing: a mean
    of means is right only where all have equally many. `weight`: of a term in a loss.
    """

    total: Tensor
    count: int | Tensor
    weight: float = 1.0

    def joined(self, other: Mean) -> Mean:
        """The mean over both shares."""
        return Mean(self.total + other.total, self.count + other.count, self.weight)

    def taken(self) -> Tensor:
        """The mean over this share alone; 0 of nothing."""
        if isinstance(self.count, Tensor):  # which is not looked at: the host would wait for the device
            return self.total / self.count.clamp(min=1)
        return self.total / self.count if self.count else self.total


Edit = Callable[[int, Tensor], Tensor]  # what goes into latent step i (from 0), changed by a diagnostic


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(nn.Module, Generic[ConfigT]):
    """How a backbone thinks. Subclasses write `think` and `terms`.

    `steps` is the number of latent steps when answering, `stride` the positions that each takes. `stop`: what decides
    when to stop, None where nothing does. `parallel_answer`: tokens of an answer that is read off in parallel, None
    where the text is written one by one. `critic`: in RL with one, what reads the expected reward off a hidden state.
    `made_from`: the config that `build` makes it from again; of a control it is not `config`. `fresh`: how names of
    parameters begin that may start afresh, or stay behind, where a run starts from the weights of another; all others
    must be there in the same shape. `on_host`: buffers that stay on the CPU, for the host decides by them.
    """

    config: ConfigT
    made_from: MethodConfig
    stop: StopHead | Settled | None
    fresh: ClassVar[tuple[str, ...]] = ("stop.", "policy.", "critic.")
    on_host: ClassVar[tuple[str, ...]] = ()
    __getattr__ = nn.Module.__getattr__  # the same, but a name that no one declares is an error to mypy

    def __init__(self, config: ConfigT, backbone: Backbone):
        super().__init__()
        self.config = self.made_from = config
        self.backbone = backbone
        self.steps, self.stride = 0, 0
        self.parallel_answer: int | None = None
        self.stop = None
        self.critic: nn.Module | None = None

    def _apply(self, fn, recurse=True):
        kept = {name: self._buffers[name] for name in self.on_host}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(moved.dtype)
        return self

    @property
    def title(self) -> str:
        """What its config is called, a control's own."""
        return type(self.made_from).__name__

    @property
    def trained_steps(self) -> int:
        """Latent steps of `think` unless told otherwise: fewer than `steps` before a curriculum has ended."""
        return self.steps

    @property
    def mean_trained_steps(self) -> float:
        """Latent steps of a row in training, on average."""
        return self.steps

    @property
    def lr_scales(self) -> Mapping[str, float]:
        """How names of parameters begin that learn at a multiple of the learning rate, and the multiple."""
        return {}

    @property
    def begins_stage(self) -> bool:
        """Whether the next update is the first of a stage before which the optimizer's moments are forgotten."""
        return False

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        """Think about P prompts, G rollouts each: a thought for P * G rollouts, rollout p * G + g.

        `choose` makes the random choices. `steps` overrides the number of latent steps; 0 is no-CoT. `edit(i, x)` may
        change what goes into latent step i: the fed-back embeddings (P, D), or the looped state (P, T, D). Raises
        ValueError where prompt and thoughts need more positions than the model has.
        """
        raise NotImplementedError  # each method's own

    def reserved(self, steps: int) -> int:
        """Positions between a prompt and its text that `steps` latent steps take."""
        return 0

    def passes(self, used: float, tokens: float) -> float:
        """Forward passes that must follow one another in an answer of `tokens` after `used` latent steps."""
        raise NotImplementedError  # each method's own

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        """Forward FLOPs of one answer: 2 a weight and position, 4 d a pair of positions that attend, the head where
        read.

        Padding is not counted; the last layer is, in full, although only part of it is read.
        """
        n, per_layer = prompt + used + tokens - 1, self.layer_flops
        attention = 4 * self.backbone.width * n * (n + 1) / 2
        return n * sum(per_layer) + len(per_layer) * attention + self.head_flops * tokens

    @property
    def layer_flops(self) -> list[int]:
        """Of each layer's weights, a position."""
        return [2 * sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in self.backbone.blocks]

    @property
    def head_flops(self) -> int:
        return 2 * self.backbone.width * self.backbone.vocab

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        """What training reads of a problem, given the tokens of chain and answer: latent steps, and tokens of the text
        after them, on average. The first is what answering reads; each begins with the prompt."""
        if self.parallel_answer is not None:
            return [(self.mean_trained_steps, self.parallel_answer)]
        return [(self.mean_trained_steps, answer + chain * self.made_from.chain_share)]

    def kept(self, prompt: float, used: float, text: float) -> float:
        """Positions times layers that training keeps for backward of one row."""
        return (prompt + used + text) * len(self.backbone.blocks)

    def target_step(self, latent: int, chain: int) -> int:
        """Which of a chain's steps latent `latent`, from 1, should have reached in training; at most `chain`."""
        return min(latent, chain)

    def of_latent(self, calls: list[Call], step: int) -> Call:
        """Of the calls that a tap saw while `think` ran, the position of a latent step; 0 = the last one before.

        Rows are the prompts. Raises UserError for a step that was not thought or not kept.
        """
        first, *later = calls
        if step == 0:
            return first.at(-1)
        for call in later:
            if step <= call.length:
                return call.at(step - 1)
            step -= call.length
        raise UserError(f"the tap ends {step} latent steps before the one asked for")

    def lens(self, states: Tensor, layer: int | None = None) -> Tensor:
        """States (..., D) as the head reads them: those of a trace, or of a tapped layer."""
        return states if layer is None or layer == self.backbone.depth else self.backbone.norm(states)

    def steps_written(self, chain: int) -> int:
        """How many of a chain's steps the text still holds before the answer."""
        return 0

    def tokens_written(self, tokens: int, steps: int) -> int:
        """The same in tokens, of a chain of so many tokens in so many steps."""
        return -(-tokens * self.steps_written(steps) // steps)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        """Positions that a problem needs at most, given the tokens of its prompt, its chain's steps and its answer."""
        raise NotImplementedError  # each method's own

    def check_chain(self, steps: list[int], answer: int) -> None:
        """Raise UserError for a chain and answer, given the tokens of each, that `terms` cannot be trained on."""

    def terms(self, batch: Batch) -> tuple[list[Mean], dict[str, Mean]]:
        """The training loss, the weighted sum of the terms' means, and what to log.

        Each term has a count of its own (tokens of the text, tokens of the steps), and as many terms come back for
        every share of a batch, so that they can be summed over processes.
        """
        raise NotImplementedError  # each method's own

    def counts(self, batch: Batch) -> list[int | Tensor]:
        """The counts of the terms that `terms` would give of this batch, with the same draws, before any is computed.

        A batch that is cut into micro-batches divides each part by the count of the whole. This computes the terms to
        see; a method that can tell from the ids alone says so itself.
        """
        with torch.no_grad(), torch.random.fork_rng():
            return [term.count for term in self.terms(batch)[0]]

    def forward(self, verb: str | Callable, *args, **kwargs):
        """The one door for what is to be learned from: `terms` by name, or a function of the method, e.g. `score`.

        Engines that share parameters or gradients over processes hang on a module's `forward`; what is called past it
        is not seen by them.
        """
        return getattr(self, verb)(*args, **kwargs) if isinstance(verb, str) else verb(self, *args, **kwargs)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch that is all there is, a scalar, and what to log."""
        terms, logged = self.terms(batch)
        first, *others = (term.weight * term.taken() for term in terms)
        return sum(others, first), {name: mean.taken().detach() for name, mean in logged.items()}

    def learned(self, logged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Told after `terms` what was logged, over all processes: where a curriculum goes on.

        Returns what else to log.
        """
        return {}

    def written(self, steps: list[int]) -> int:
        """Tokens of a chain, given those of its steps, that the text still holds once training has ended."""
        return 0


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
    states[i - 1]; states[used] gives the first token of the text, with no token in between.
    """

    def __init__(self, config: ConfigT, backbone: Backbone):
        super().__init__(config, backbone)
        self.stride = 1
        self.feedback: Feeding | None = None
        self.policy: Policy | None = None
        if isinstance(config, SequenceConfig):  # the controls without latents loop no time
            self.steps, self.stride = config.n_latent, config.stride
            self.feedback = Feedback(config.feedback, backbone)
            self.stop = halting.build(config.halt, self)
            self.policy = config.policy.build(backbone)

    def reserved(self, steps: int) -> int:
        return self.stride * max(steps, self.trained_steps)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        return prompt + self.stride * self.steps + answer - 1

    def passes(self, used: float, tokens: float) -> float:
        """Reading, each latent step, each token after the first; latents whose inputs are known are one pass."""
        parallel = self.feedback is not None and self.feedback.known(1) is not None
        return 1 + (min(used, 1) if parallel else used) + tokens - 1

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        fed = self.feedback.flops if isinstance(self.feedback, Feedback) else 0
        return super().flops(prompt, used, tokens) + used * fed

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        trained = self.trained_steps
        k = trained if steps is None else steps
        if k and self.feedback is None:
            raise UserError(f"{self.title} has no latents: the number of latent steps must be 0, got {k}")
        return self.loop(prompt, choose, group, k, max(k, trained), self.stop, edit)

    def turn(self, batch: Batch) -> Taught:
        """A turn of a batch as it is taught: what was thought, what is to be written after it, and what that costs."""
        raise NotImplementedError  # each method's own

    def without_latents(self, prompt: Prompt, text: Text) -> Taught:
        """A turn whose text follows the prompt with no latent in between."""
        thought = self.loop(prompt, Greedy(), 1, 0, 0, stop=None)
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
        raise NotImplementedError  # each method's own

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
        h_PD, context = self.backbone.read(prompt.ids_BT, prompt.mask_BT, prompt.after)
        policy = self.policy if choose.random else None
        if policy is not None and k and group > 1:  # no two rollouts of a prompt think alike
            prompt_B = torch.arange(len(h_PD), device=h_PD.device).repeat_interleave(group)
            h_PD, context, group = h_PD[prompt_B], context.rows(prompt_B), 1
        states, tracker = [h_PD], halting.HaltTracker(stop, choose, len(h_PD), group, h_PD.device)
        feedback = self.feedback
        known_KD = feedback.known(k) if k and feedback is not None else None
        at_once = self._at_once(h_PD, context, k, known_KD, edit) if k and policy is None else None
        if at_once is not None:
            states_PKD, context = at_once
            states += states_PKD.unbind(1)
        for i in range(k):
            if not tracker.advance(states[i]):
                if policy is not None and i == 0:  # none is made, and said so: every share of a batch has every kind
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
        if stop is None:
            return Thought(states_PKD[:, -1:], context, states_PKD, used_U, choose.decisions(), row_B)
        if row_B is not None:
            context, states_PKD = context.rows(prompt_U), states_PKD[prompt_U]
        h_U1D, context = self.stopped(states_PKD, context, used_U)
        return Thought(h_U1D, context, states_PKD, used_U, choose.decisions(), row_B)

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

    @staticmethod
    def stopped(states_UKD: Tensor, context: Context, used_U: Tensor) -> tuple[Tensor, Context]:
        """State and context to write from after `used_U` of the latents thought: the later ones are hidden."""
        done = states_UKD.shape[1] - 1
        if done:
            context = context.hide(torch.arange(done, device=used_U.device) >= used_U[:, None])
        return states_UKD[torch.arange(len(used_U), device=used_U.device), used_U][:, None], context


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


def text_hidden(backbone: Backbone, thought: Thought, ids_UT: Tensor, row_U: Tensor | None = None) -> Tensor:
    """Final hidden states (U, T, D) that give each token of texts after a thought, the texts read in parallel.

    `row_U`: the thought's row that each text follows, where they are not one to one.
    """
    h_UTD, context, t = thought.h_UTD, thought.context, ids_UT.shape[1]
    if row_U is not None:
        h_UTD, context = h_UTD[row_U], context and context.rows(row_U)
    if t <= h_UTD.shape[1]:
        return h_UTD[:, :t]
    assert h_UTD.shape[1] == 1, f"a text of {t} tokens after a parallel answer of {h_UTD.shape[1]}"
    assert context is not None  # as it is after everything but a parallel answer, which is all of its text
    rest_UTD, _ = backbone.step(backbone.embed(ids_UT[:, :-1]), context)
    return torch.cat([h_UTD, rest_UTD], 1)


def text_loss(backbone: Backbone, thought: Thought, text: Text) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy (nats a token) of a text after a thought; logits only where there is a token.

    Logs `ce` and `exact`, the share of rows whose every token is the most likely one, teacher-forced.
    """
    h_BTD = text_hidden(backbone, thought, text.ids_BT)
    loss, hit_BT = token_loss(backbone, h_BTD, text)
    return loss, {"ce": loss, "exact": share(hit_BT.all(1))}


def share(yes_N: Tensor) -> Mean:
    """The share of N things for which something holds."""
    return Mean(yes_N.sum(), len(yes_N))


def token_loss(backbone: Backbone, h_BTD: Tensor, text: Text) -> tuple[Mean, Tensor]:
    """Cross-entropy of tokens given their hidden states, and where the most likely one is right (B, T)."""
    h_ND, ids_N, at_N = h_BTD.flatten(0, 1), text.ids_BT.flatten(), text.places()
    if at_N is not None:
        h_ND, ids_N = h_ND.index_select(0, at_N), ids_N.index_select(0, at_N)
    logp_N, _, top_N = backbone.logprob(h_ND, ids_N, entropy=False)
    hit_N = top_N == ids_N
    if at_N is not None:
        hit_N = hit_N.new_ones(text.ids_BT.numel()).index_copy(0, at_N, hit_N)
    return Mean(-logp_N.sum(), len(logp_N)), hit_N.view_as(text.ids_BT)
