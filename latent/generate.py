"""Batched, cached generation: the text after a thought, groups of rollouts that share a prompt, and their replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Categorical

from kernels.decode_step import Tensors
from kernels.errors import UserError
from latent.backbone import Backbone
from latent.cache import Context
from latent.codec import Codec
from latent.methods.base import Edit, Method
from latent.methods.sequence import followed
from latent.methods.terms import text_hidden
from latent.rollout import Rollout, Turn
from latent.text import Batch, pad_left, sent
from latent.thought import Chooser, Decision, Greedy, Pick, Prompt, Replay, Sample, Thought, weighed

_LOOK = {"cuda": 8}  # tokens between two checks whether all rows have ended; elsewhere 1
_NOISE = 2**26  # bytes of random numbers at most that are drawn ahead, but for those of a single token


def decode(method: Method, thought: Thought, choose: Chooser, max_tokens: int, end: int | None) -> Tensor:
    """Write the text after a thought. Returns tokens (B, T), T <= max_tokens, filled with `end` after a row's end.

    Stops where all rows have ended, at the model's last position, and at the end of an answer that was read off in
    parallel. A row is cut at its own last position, as it would be alone; without an end token all are at that of the
    longest. On a GPU it checks only every few tokens whether all have ended, because it then waits for the device; rows
    are filled somewhat beyond the longest text. The tokens between two checks are one graph there (`Writer`).
    """
    backbone, h_UTD, context, row_B = method.backbone, thought.h_UTD, thought.context, thought.row_B
    read = h_UTD.shape[1]
    rollouts = len(h_UTD) if row_B is None else len(row_B)
    live_B, every = torch.ones(rollouts, dtype=torch.bool, device=h_UTD.device), _LOOK.get(h_UTD.device.type, 1)
    if row_B is not None and context is not None and max_tokens > read:
        apart = backbone.apart(context, row_B)
        if apart is not None:
            h_UTD, context, row_B = h_UTD[row_B], apart, None
    writer: Writer | None = None
    if choose.on_device is not None and read == 1 and row_B is None:
        writer = Writer(backbone, choose.on_device, choose.temperature, end, choose.draws_text)
    tokens: list[Tensor] = []
    written = 0  # tokens whose positions the writer has read
    while (t := len(tokens)) < max_tokens:
        if end is not None and t and t % every == 0 and not live_B.any():
            break
        if writer is not None and context is not None:
            several = writer.several(h_UTD[:, 0], context, live_B, choose, min(every - t % every, max_tokens - 1 - t))
            if several is not None:
                more, h_UTD, context, live_B = several
                tokens += more
                written = len(tokens)
                continue
            writer = None
        if t >= read and t > written:
            if context is None:
                break
            if context.reach == backbone.positions:
                if end is None:
                    break
                context, live_B = _without_full(context, row_B, live_B, backbone.positions)
                if context.reach == backbone.positions:
                    if not choose.draws_text:  # the texts that were cut last end as those before them
                        tokens.append(torch.full_like(tokens[-1], end))
                    break
            next_U = tokens[-1]
            if row_B is not None:  # rollouts that wrote the same so far go on as one row
                key_U, row_B = torch.unique(row_B * backbone.vocab + tokens[-1], return_inverse=True)
                context, next_U = context.rows(key_U // backbone.vocab), key_U % backbone.vocab
            h_UTD, context = backbone.step(backbone.embed(next_U[:, None]), context)
        logits_UV = backbone.head(h_UTD[:, t if t < read else 0]) / choose.temperature
        logits_BV = logits_UV if row_B is None else logits_UV[row_B]
        value_B = choose("token", Categorical(logits=logits_BV, validate_args=False), live_B)
        token_B, live_B = _ended(value_B, live_B, end)
        tokens.append(token_B)
    return torch.stack(tokens, 1)


def _without_full(context: Context, row_B: Tensor | None, live_B: Tensor, most: int) -> tuple[Context, Tensor]:
    """Where the longest row is at the last of `most` positions: which rows go on, as each would alone.

    A row that does not go on is read at the last position again, and says nothing. Without any the context is as it is.
    """
    full_U = context.next_B == most
    going_B = live_B & ~(full_U if row_B is None else full_U[row_B])
    if not bool(going_B.any()):
        return context, live_B
    return replace(context, next_B=context.next_B.clamp(max=most - 1), reach=most - 1), going_B


def _ended(value_B: Tensor, live_B: Tensor, end: int | None) -> tuple[Tensor, Tensor]:
    """What each row writes where a value was chosen for it, and which rows go on."""
    if end is None:
        return value_B, live_B
    token_B = value_B.masked_fill(~live_B, end)
    return token_B, live_B & (token_B != end)


@dataclass(frozen=True)
class Writer:
    """A token of text from the state before it, on the device alone: head, choice and embedding, as `decode` has them.

    A scan of `kernels.decode_step`, which a graph repeats. It carries which rows are still writing, is given the
    chooser's noise, and makes the value chosen, the token written, which rows were writing, and where text is `drawn`
    the value's log-prob and the entropy.
    """

    backbone: Backbone
    pick: Pick
    temperature: float
    end: int | None
    drawn: bool

    @property
    def key(self) -> tuple:
        """All that it computes depends on, but for the weights, which are asked for by address."""
        return self.pick, self.temperature, self.end, self.drawn

    def __call__(self, h_BD: Tensor, carry: Tensors, given: Tensors) -> tuple[Tensor, Tensors, Tensors]:
        (live_B,) = carry
        dist = Categorical(logits=self.backbone.head(h_BD) / self.temperature, validate_args=False)
        value_B = self.pick(dist, *given)
        token_B, still_B = _ended(value_B, live_B, self.end)
        made = value_B, token_B, live_B, *(weighed(dist, value_B) if self.drawn else ())
        return self.backbone.embed(token_B[:, None])[:, 0], (still_B,), made

    def several(
        self, h_BD: Tensor, context: Context, live_B: Tensor, choose: Chooser, n: int
    ) -> tuple[Sequence[Tensor], Tensor, Context, Tensor] | None:
        """At most n tokens (B,), and after them the state (B, 1, D), the context and which rows are still writing.

        The chooser has them recorded. None where no kernels run or no position is left.
        """
        rows, values = len(h_BD), self.backbone.vocab
        n = min(n, self.backbone.positions - context.reach)
        if self.drawn:
            n = min(n, max(1, _NOISE // (4 * rows * values)))

        def given() -> Tensors:
            if not self.drawn:
                return ()
            return (torch.stack([choose.noise(rows, values, h_BD.device) for _ in range(n)]),)

        done = self.backbone.write(h_BD, context, self, n, given, (live_B,)) if n > 0 else None
        if done is None:
            return None
        states_BTD, context, (live_B,), (value_BT, token_BT, live_BT, *weight) = done
        for choice in zip(*(x.unbind(1) for x in (value_BT, *weight, live_BT))) if self.drawn else ():
            choose.record("token", *choice)
        return token_BT.unbind(1), states_BTD[:, -1:], context, live_B


React = Callable[[list[int], Tensor], list[tuple[int, ...] | None]]
"""(rows, the texts that they have written (N, T)) -> what is said to each next, as ids, None where it has ended."""


@torch.no_grad()
def rollout(
    method: Method, prompt: Prompt, group: int, max_tokens: int, end: int | None, temperature: float,
    react: React | None = None,
) -> Rollout:  # fmt: skip
    """Answer P prompts G times each, sampled; what is deterministic is thought once a prompt.

    `react` says what follows a turn; without it an episode has one.
    """
    return episode(method, prompt, group, Sample(temperature), max_tokens, end, react)


def episode(
    method: Method, prompt: Prompt, group: int, choose: Chooser, max_tokens: int, end: int | None,
    react: React | None = None, steps: int | None = None,
) -> Rollout:  # fmt: skip
    """Episodes of P prompts, G each, by any chooser. `steps` overrides the number of latent steps."""
    thought = method.think(prompt, choose, group, steps)
    tokens_NT = decode(method, thought, choose, max_tokens, end)
    whole = Rollout(prompt, group, tokens_NT, thought.used_B, thought.decisions + choose.decisions())
    rows = list(range(len(tokens_NT)))
    while react is not None:
        said = react(rows, tokens_NT)
        going = [i for i, ids in enumerate(said) if ids is not None]
        if not going:
            break
        rows, choose.turn = [rows[i] for i in going], choose.turn + 1
        at_N = torch.tensor(going, device=tokens_NT.device)
        prompt = pad_left([said[i] for i in going], 0, tokens_NT.device)
        written = [row[: row.index(end) + 1] if end in row else row for row in tokens_NT[at_N].tolist()]
        thought = method.think(_next(thought, at_N, written, prompt), choose, 1, steps)
        tokens_NT = decode(method, thought, choose, max_tokens, end)
        rows_N = torch.tensor(rows, device=tokens_NT.device)
        made = [d.among(rows_N, len(whole.tokens_BT)) for d in thought.decisions + choose.decisions()]
        whole.later.append(Turn(rows_N, prompt, tokens_NT, thought.used_B, made))
    return whole


def _next(thought: Thought, at_N: Tensor, written: list[list[int]], prompt: Prompt) -> Prompt:
    """The prompt of the next turn for some of the rollouts of a turn, after all that they have read and written."""
    row_N = at_N if thought.row_B is None else thought.row_B[at_N]
    context = thought.context and thought.context.rows(row_N)
    return followed(replace(thought, context=context, row_B=None), written, prompt, 0)


def score(method: Method, rolled: Rollout, temperature: float) -> list[Decision]:
    """The rollout's decisions with log-probabilities and entropies under the present parameters, with gradient.

    The thoughts are thought again on the recorded choices, the texts read in parallel, equal ones once. With what the
    method's critic expects, where it has one.
    """
    thought, found = _scored(method, rolled, temperature)
    whole, last = len(rolled.tokens_BT), rolled
    rows_N = torch.arange(whole, device=rolled.tokens_BT.device)
    for turn in rolled.later:
        if not len(turn.rows_N):  # all of these episodes have ended before
            found += [unmade(d, method.critic is not None) for d in turn.decisions]
            continue
        at_N = torch.searchsorted(rows_N, turn.rows_N)  # both in order
        texts = zip(last.tokens_BT[at_N].tolist(), last.decisions[-1].mask_BT[at_N].sum(1).tolist())
        prompt = _next(thought, at_N, [row[:n] for row, n in texts], turn.prompt)
        last = Rollout(prompt, 1, turn.tokens_NT, turn.used_N, [d.of(turn.rows_N) for d in turn.decisions])
        thought, made = _scored(method, last, temperature)
        rows_N = turn.rows_N
        found += [d.among(rows_N, whole) for d in made]
    return found


def unmade(decision: Decision, expects: bool) -> Decision:
    """Decisions of a kind of which none was made. `expects`: whether there is a critic."""
    zeros_BT = torch.zeros_like(decision.logp_BT)
    return replace(decision, logp_BT=zeros_BT, entropy_BT=zeros_BT, expected_BT=zeros_BT if expects else None)


def _scored(method: Method, rolled: Rollout, temperature: float) -> tuple[Thought, list[Decision]]:
    """A turn thought again, and its decisions."""
    *thinking, text = rolled.decisions
    choose = Replay(thinking, used_B=rolled.used_B)
    choose.critic = method.critic
    choose.turn = text.turn
    thought = method.think(rolled.prompt, choose, rolled.group)
    every_B = torch.arange(len(rolled.tokens_BT), device=rolled.tokens_BT.device)
    row_B = every_B if thought.row_B is None else thought.row_B
    texts_BT = torch.cat([row_B[:, None], rolled.tokens_BT], 1).cpu()  # how many differ is the host's to know
    _, copy_B = torch.unique(texts_BT, dim=0, return_inverse=True)
    one_U = copy_B.new_empty(int(copy_B.max()) + 1)
    one_U[copy_B] = torch.arange(len(copy_B))  # one rollout of each kind, whichever
    copy_B, one_U = (sent(x, row_B.device) for x in (copy_B, one_U))
    ids_UT = rolled.tokens_BT[one_U]
    lengths_U = text.mask_BT[one_U].sum(1)
    h_UTD = text_hidden(method.backbone, thought, ids_UT, lengths_U=lengths_U, row_U=row_B[one_U])
    logp_N, entropy_N, _ = method.backbone.logprob(h_UTD.flatten(0, 1), ids_UT.flatten(), temperature)
    assert entropy_N is not None  # as it is where it is not declined
    logp_BT, entropy_BT = (x.view(ids_UT.shape)[copy_B] for x in (logp_N, entropy_N))
    expected_BT = None if method.critic is None else method.critic(h_UTD.detach())[..., 0][copy_B]
    written = replace(text, logp_BT=logp_BT, entropy_BT=entropy_BT, expected_BT=expected_BT)
    return thought, [*thought.decisions, written]


def longest_text(method: Method, answer_tokens: int, chain_tokens: int, chain_steps: int) -> int:
    """Tokens that a method writes at most: the answer, and the part of the longest chain that it does not think."""
    return answer_tokens + method.tokens_written(chain_tokens, chain_steps)


@dataclass
class Reasoner:
    """A method with the tokenizer and limits that make it answer text: what `load` returns.

    `answer_tokens` bounds the answer; `chain_tokens` and `chain_steps` the longest chain, of which the method writes
    what it does not think. `steps`: latent steps where a call does not say how many, None = as trained.
    """

    method: Method
    codec: Codec
    answer_tokens: int
    chain_tokens: int
    chain_steps: int
    steps: int | None = None

    def __repr__(self) -> str:
        backbone = self.method.backbone
        return f"Reasoner({self.method.made_from}, {type(backbone.lm).__name__}, {backbone.device}, {backbone.dtype})"

    @property
    def max_tokens(self) -> int:
        return longest_text(self.method, self.answer_tokens, self.chain_tokens, self.chain_steps)

    @torch.no_grad()
    def tokens(
        self, questions: Sequence[str], steps: int | None = None, temperature: float = 0.0,
        max_tokens: int | None = None, edit: Edit | None = None,
    ) -> tuple[Tensor, Thought]:  # fmt: skip
        """The completions of one batch as ids (B, T), and the thoughts before them; arguments as in `answer`."""
        prompt = self.codec.prompt(questions, self.method.backbone.device)
        choose = Sample(temperature) if temperature else Greedy()
        thought = self.method.think(prompt, choose, steps=self.steps_of(steps), edit=edit)
        most = self.max_tokens if max_tokens is None else whole(max_tokens, "max_tokens", 1)
        return decode(self.method, thought, choose, most, self.codec.end), thought

    @torch.no_grad()
    def episodes(self, questions: list[str], react: React, steps: int | None = None) -> Rollout:
        """Greedy episodes of one batch: `react` says what follows each turn."""
        prompt = self.codec.prompt(questions, self.method.backbone.device)
        steps = self.steps_of(steps)
        return episode(self.method, prompt, 1, Greedy(), self.max_tokens, self.codec.end, react, steps)

    def steps_of(self, steps: int | None) -> int | None:
        """The latent steps of a call, None = as trained."""
        return self.steps if steps is None else whole(steps, "the number of latent steps", 0)

    def answer(
        self, questions: Iterable[str], steps: int | None = None, batch: int = 64, return_thoughts: bool = False,
        temperature: float = 0.0, max_tokens: int | None = None, edit: Edit | None = None,
    ) -> list[str] | tuple[list[str], list[Tensor]]:  # fmt: skip
        """The text after thinking, one a question. `steps` overrides the number of latents or recurrences.

        With `return_thoughts` also the states that each went through, (used + 1, D), the one before any thought first:
        as many as were used, fewer where a halt stopped them. `batch`: questions read together. `temperature`: of the
        text, drawn by torch's generator; a learned stop and a latent policy then draw, too, at temperatures of their
        own. 0 is greedy. `max_tokens`: of the text at most, None = as in training. `edit(i, x_BD)` may change what goes
        into latent step i, of a batch.
        """
        whole(batch, "batch", 1)
        asked = questions if isinstance(questions, str) else list(questions)  # `tokens` refuses a single text
        was_training = self.method.training
        self.method.eval()
        texts, thoughts = [], []
        try:
            for i in range(0, len(asked), batch):
                tokens_BT, thought = self.tokens(asked[i : i + batch], steps, temperature, max_tokens, edit)
                texts += self.codec.texts(tokens_BT)
                row_B = range(len(tokens_BT)) if thought.row_B is None else thought.row_B.tolist()
                used_B = thought.used_B.tolist()
                thoughts += [thought.states_UKD[u, : used + 1].clone() for u, used in zip(row_B, used_B)]
        finally:
            self.method.train(was_training)
        return (texts, thoughts) if return_thoughts else texts

    def loss(self, problems: Sequence, **share) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's own loss of a batch of problems, a scalar to call `backward` on, and what to log of it.

        `problems`: anything with a question, steps and an answer as text. `share`: as `Batch.of` takes it. Raises
        UserError for a method that is told the frontier, without `frontiers=[env.frontiers(p) for p in problems]`.
        """
        if self.method.made_from.told == "frontier" and share.get("frontiers") is None:
            how = "frontiers=[env.frontiers(p) for p in problems]"
            raise UserError(f"{self.method.title} is told the frontier: give {how}")
        return self.method.loss(Batch.of(problems, self.codec, self.method.backbone.device, **share))

    def save(self, folder: str | Path) -> None:
        """Write it into a folder that `latent.load`, transformers and lm-eval open."""
        from latent.hub import save

        save(self, Path(folder))


def whole(x: object, name: str, least: int) -> int:
    """A whole number of at least `least`. Raises UserError, naming it, for anything else."""
    if not isinstance(x, Integral) or isinstance(x, bool) or x < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {x!r:.40}")
    return int(x)
