"""What a thought is, and how the random choices in it are made and recorded.

Tensors carry their dims as a suffix: B rows = P prompts x G rollouts, U distinct ones among them, T tokens, S cached
positions, K latent steps, R recurrences, D width, H heads, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from kernels.errors import UserError, unwritten
from latent.cache import Context


@dataclass
class Prompt:
    """Left-padded prompts. `mask_BT` is False on padding, None where there is no padding.

    `after`: the context of what each row has read, thought and written in earlier turns; None in the first turn.
    `keep`: whether the states of all its positions are wanted, and not of the last alone.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    after: Context | None = None
    keep: bool = False

    def rows(self, index: slice) -> "Prompt":
        """Some of the prompts, with their padding."""
        after = self.after
        if after is not None:
            after = after.rows(torch.arange(len(self.ids_BT), device=self.ids_BT.device)[index])
        return Prompt(self.ids_BT[index], None if self.mask_BT is None else self.mask_BT[index], after)


@dataclass
class Decision:
    """All choices of one kind made in a batch, e.g. the stops (`halt`) or the text (`token`).

    `value_BT...`: what was chosen. `logp_BT`: its log-probability under the policy that chose, at its temperature.
    `entropy_BT`: that of the distribution it came from (nats). `mask_BT`: which choices were made. `time_T`: when each
    was made, counted over all kinds of choices of an episode; `turn`: in which turn. `density`: the choices are
    continuous, so that log-probability and entropy are those of a density. `expected_BT`: the critic's value of the
    state that each was made from, None without a critic.
    """

    kind: str
    value_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor
    time_T: Tensor
    turn: int = 0
    density: bool = False
    expected_BT: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Decision"]) -> "Decision":
        """The decisions of all rows of `parts`, padded to the longest; padding is masked as not made."""
        longest = max(part.mask_BT.shape[1] for part in parts)

        def joined(name: str) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            padding = [t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:]) for t in tensors]
            return torch.cat([torch.cat(both, 1) for both in zip(tensors, padding)])

        value, logp, entropy, mask = map(joined, ("value_BT", "logp_BT", "entropy_BT", "mask_BT"))
        most = max(parts, key=lambda part: len(part.time_T))
        # in one batch no text begins before all rows have thought: the latest beginning holds for all
        later = max(int(part.time_T[0]) for part in parts) - most.time_T[0]
        return cls(most.kind, value, logp, entropy, mask, most.time_T + later, most.turn, most.density)

    def mapped(self, change: Callable[[Tensor], Tensor], **more) -> "Decision":
        """The same with every tensor of (B, T, ...) changed alike, and `more` fields set."""
        names = ["value_BT", "logp_BT", "entropy_BT", "mask_BT"]
        names += [] if self.expected_BT is None else ["expected_BT"]
        made: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **made, **more)

    def among(self, rows_N: Tensor, whole: int) -> "Decision":
        """The same as decisions of a batch of `whole` rows. Rows that are not in `rows_N` made none."""
        return self.mapped(lambda x: x.new_zeros(whole, *x.shape[1:]).index_copy(0, rows_N, x))

    def of(self, rows_N: Tensor) -> "Decision":
        """The decisions of some rows, with all T places."""
        return self.mapped(lambda x: x[rows_N])

    def detached(self) -> "Decision":
        """The same without gradient: as of the policy that chose."""
        return self.mapped(Tensor.detach)

    @cached_property
    def lengths(self) -> Tensor:
        """Places of each row up to the last where one was made (B,), on the CPU: fetched once for all that is cut."""
        places_T = torch.arange(1, self.mask_BT.shape[1] + 1, device=self.mask_BT.device)
        return (self.mask_BT * places_T).amax(1).cpu()

    def rows(self, index: slice | Tensor) -> "Decision":
        """The decisions of some rows, cut after the last place where one was made; one place at least is kept."""
        t = max([1, *self.lengths[index].tolist()])
        return self.mapped(lambda x: x[index, :t], time_T=self.time_T[:t])


@dataclass
class Thought:
    """The result of thinking. Rollouts that made the same choices share a row: B rollouts point at U rows.

    `h_UTD`: final hidden states that give the next tokens: T = 1 after a loop along the sequence, T = the answer's
    length where a loop along the depth reads the answer in parallel. `context`: the cache to go on decoding from, None
    where no text follows. `states_UKD`: the trace, states[:, 0] before the first latent step and states[:, i] after the
    i-th; in a loop along the depth, at the last position. `used_U`: latent steps used. `decisions`: every random choice
    (B rows), empty where thinking is deterministic. `row_B`: the row of each rollout, None where each has its own.
    `prompt_PTD`: final hidden states of the prompts, where they were to be kept and the method reads them in order.
    """

    h_UTD: Tensor
    context: Context | None
    states_UKD: Tensor
    used_U: Tensor
    decisions: list[Decision] = field(default_factory=list)
    row_B: Tensor | None = None
    prompt_PTD: Tensor | None = None

    @property
    def used_B(self) -> Tensor:
        """Latent steps used by each rollout."""
        return self.used_U if self.row_B is None else self.used_U[self.row_B]


Pick = Callable[..., Tensor]  # (a Categorical of (B, V), and noise where it takes any) -> values (B,)


def drawn(dist: Categorical, noise_BV: Tensor) -> Tensor:
    """A value of each row by exponential noise of its shape: argmax p / q, which is how torch draws a single one."""
    return (dist.probs / noise_BV).argmax(-1)


def likeliest(dist: Categorical) -> Tensor:
    return dist.logits.argmax(-1)


def weighed(dist: Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's value, and the entropy of the distribution that it came from (nats)."""
    logp_B = dist.log_prob(value)
    return logp_B, dist.entropy().expand_as(logp_B)


class Chooser:
    """Makes the random choices: `Sample` draws them, `Greedy` takes the mode, `Replay` repeats recorded ones.

    A method asks it wherever it needs randomness, so that it has no code of its own for sampling, evaluation and RL.
    Draws come from torch's global generator, which training seeds at each step. `used_B`: the latent steps after which
    each row stops, where a rule and not a random choice decides that; None = ask the rule. `turn`: the turn of the
    episode. `random`: whether it may choose anything but the mode.

    Text can be chosen on the device, many tokens before the host sees one, by a chooser that says how: `on_device` is
    the choice of a token as a function of its distribution and of what `noise` has drawn ahead, and gives what `pick`
    would; `record` takes what came of it. `draws_text` is False where it is the mode: no noise, and no record. A class
    that picks in its own way and does not say how is asked for every token.
    """

    random = True
    on_device: Pick | None = None
    draws_text = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "pick" in vars(cls) and "on_device" not in vars(cls):
            cls.on_device = None

    def __init__(self, temperature: float = 1.0, used_B: Tensor | None = None):
        if not temperature > 0:
            raise UserError(f"temperature must be > 0, got {temperature} (for greedy decoding use Greedy)")
        self.temperature = temperature
        self._used_B, self._asked = used_B, 0
        self.turn, self._time = 0, 0
        self.critic: nn.Module | None = None
        self._made: dict[tuple[str, bool], list[tuple]] = {}

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        """A value of every row."""
        raise unwritten(self, "pick")

    def noise(self, rows: int, values: int, device: torch.device) -> Tensor:
        """What one choice by `on_device` takes, (B, V) in fp32: the very numbers that `pick` would draw."""
        raise unwritten(self, "noise")

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        """Choose one value for each row. Choices of rows where `live_B` is False are masked.

        `h_UD`: the hidden states that the choice is made from, for the critic. Each belongs to B / U rows in order.
        """
        value = self.pick(kind, dist)
        logp_B, entropy_B = weighed(dist, value)
        if logp_B.shape != value.shape[:1]:
            raise UserError(
                f"the distribution of a {kind} must give one log-probability a row, ({len(value)},), got "
                f"{tuple(logp_B.shape)} (torch.distributions.Independent sums over coordinates)"
            )
        self.record(kind, value, logp_B, entropy_B, live_B, self._expected(h_UD, len(value)), dist.has_rsample)
        return value

    def record(
        self, kind: str, value: Tensor, logp_B: Tensor, entropy_B: Tensor, live_B: Tensor,
        expected_B: Tensor | None = None, density: bool = False,
    ) -> None:  # fmt: skip
        """Keep a choice that has been made, as `decisions` will give it."""
        choice = (value, logp_B, entropy_B, live_B.expand_as(logp_B), self._time, expected_B)
        self._made.setdefault((kind, density), []).append(choice)
        self._time += 1

    def _expected(self, h_UD: Tensor | None, rows: int) -> Tensor | None:
        if self.critic is None or h_UD is None:
            return None
        return self.critic(h_UD.detach())[:, 0].repeat_interleave(rows // len(h_UD))

    def settled(self, stop_B: Tensor) -> Tensor:
        """Which rows stop before the next latent step, where a rule without randomness says `stop_B`."""
        self._asked += 1
        return stop_B if self._used_B is None else self._used_B < self._asked

    def follow(self, made: list[Decision]) -> None:
        """Continue the count of time after decisions that another chooser has made."""
        self._time = max([self._time, *(int(d.time_T[-1]) + 1 for d in made if len(d.time_T))])

    def decisions(self) -> list[Decision]:
        """All choices since the last call: one `Decision` for each kind, its choices along T."""
        made, self._made = self._made, {}
        decisions = []
        for (kind, density), steps in made.items():
            *along_T, times, expected = zip(*steps)
            value, logp, entropy, live = (torch.stack(each, 1) for each in along_T)
            expected_BT = None if expected[0] is None else torch.stack(expected, 1)
            times_T = torch.tensor(times)
            decisions.append(Decision(kind, value, logp, entropy, live, times_T, self.turn, density, expected_BT))
        return decisions


@dataclass
class Share:
    """Which rows of a batch are here, so that draws do not depend on how the batch is shared.

    Every draw is made for all `whole` rows from `generator`, and the rows here take their part. A batch that is shared
    by processes or cut into micro-batches thus draws what it would draw in one piece.
    """

    rows_B: Tensor
    whole: int
    generator: torch.Generator

    def sample(self, dist: Distribution) -> Tensor:
        """What `dist.sample()` on all rows would draw for the rows here. Raises UserError for other kinds."""
        if isinstance(dist, Categorical):
            return drawn(dist, self.noise(dist.probs))
        if isinstance(dist, Bernoulli):
            p_W = dist.probs.new_zeros(self.whole, *dist.probs.shape[1:]).index_copy_(0, self.rows_B, dist.probs)
            return torch.bernoulli(p_W, generator=self.generator)[self.rows_B]
        if isinstance(dist, Independent):
            return self.sample(dist.base_dist)
        if isinstance(dist, Normal):
            mean_BD, std_BD = dist.loc, dist.scale
            noise_WD = mean_BD.new_empty(self.whole, *mean_BD.shape[1:]).normal_(generator=self.generator)
            return noise_WD[self.rows_B] * std_BD + mean_BD
        raise UserError(
            f"a {type(dist).__name__} cannot be drawn for a part of a batch, as --train.micro-batch and several "
            "processes do; Categorical, Bernoulli and Normal can"
        )

    def noise(self, like_BV: Tensor) -> Tensor:
        """Exponential numbers of this shape and dtype for the rows here."""
        noise_WV = like_BV.new_empty(self.whole, *like_BV.shape[1:]).exponential_(1, generator=self.generator)
        return noise_WV[self.rows_B]


class Sample(Chooser):
    """Draws from the policy, by torch's generator or for a share of a batch. `drawn`: the number of draws."""

    on_device = staticmethod(drawn)

    def __init__(self, temperature: float = 1.0, share: Share | None = None):
        super().__init__(temperature)
        self.share, self.drawn = share, 0

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        self.drawn += 1
        if self.share is not None:
            return self.share.sample(dist)
        if isinstance(dist, Categorical) and dist.probs.is_cuda:  # torch's own draw, without a look at the result
            return drawn(dist, torch.empty_like(dist.probs).exponential_(1))
        return dist.sample()

    def noise(self, rows: int, values: int, device: torch.device) -> Tensor:
        self.drawn += 1
        like_BV = torch.empty(rows, values, device=device)
        return like_BV.exponential_(1) if self.share is None else self.share.noise(like_BV)


class Greedy(Chooser):
    """Takes the mode, and records nothing."""

    random = draws_text = False
    on_device = staticmethod(likeliest)

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        if isinstance(dist, Bernoulli):
            return (dist.logits > 0).to(dist.logits.dtype)
        return likeliest(dist) if isinstance(dist, Categorical) else dist.mode


class Replay(Chooser):
    """Repeats recorded decisions, with their log-probabilities under the present parameters, with gradient."""

    def __init__(self, decisions: list[Decision], temperature: float = 1.0, used_B: Tensor | None = None):
        super().__init__(temperature, used_B)
        self._left = {d.kind: iter(d.value_BT.unbind(1)) for d in decisions}

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        return next(self._left[kind])
