"""What a thought is, and how the random choices made in it are recorded.

Tensors carry their dims as a suffix: B rows = P prompts x G rollouts, U distinct ones among them, T tokens, S cached
positions, K latent steps, R recurrences, D width, H heads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from kernels.errors import UserError
from latent.cache import Context


@dataclass
class Prompt:
    """Left-padded prompts. `mask_BT` is False on padding, None where there is none.

    `after`: what each row has read, thought and written before, in earlier turns; None where this is the first.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    after: Context | None = None

    def rows(self, index: slice) -> "Prompt":
        """Some of them, as they are padded here."""
        after = self.after
        if after is not None:
            after = after.rows(torch.arange(len(self.ids_BT), device=self.ids_BT.device)[index])
        return Prompt(self.ids_BT[index], None if self.mask_BT is None else self.mask_BT[index], after)


@dataclass
class Decision:
    """All choices of one kind made in a batch, e.g. the stops (`halt`) or the text (`token`).

    `value_BT...` what was chosen, `logp_BT` its log-probability under the policy that chose, temperature included,
    `entropy_BT` of the distribution it came from (nats), `mask_BT` which choices were really made. `time_T`: when each
    was made, counted over all kinds of choices of an episode; `turn`: in which turn of it. `density`: they are real
    numbers, so that log-probability and entropy are those of a density. `expected_BT`: the reward that a critic, where
    there is one, expects of the state that each was made from.
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
        """The decisions of all rows, padded with what was not made."""
        longest = max(part.mask_BT.shape[1] for part in parts)

        def over(name: str) -> Tensor:
            of_parts = [getattr(part, name) for part in parts]
            spare = [t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:]) for t in of_parts]
            return torch.cat([torch.cat(both, 1) for both in zip(of_parts, spare)])

        value, logp, entropy, mask = map(over, ("value_BT", "logp_BT", "entropy_BT", "mask_BT"))
        most = max(parts, key=lambda part: len(part.time_T))
        later = max(int(part.time_T[0]) for part in parts) - most.time_T[0]  # texts begin when all have thought
        return cls(most.kind, value, logp, entropy, mask, most.time_T + later, most.turn, most.density)

    def among(self, rows_N: Tensor, whole: int) -> "Decision":
        """The same as decisions of `whole` rows, of which those that are not in `rows_N` made none."""

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(whole, *x.shape[1:]).index_copy(0, rows_N, x)

        return replace(
            self,
            value_BT=spread(self.value_BT),
            logp_BT=spread(self.logp_BT),
            entropy_BT=spread(self.entropy_BT),
            mask_BT=spread(self.mask_BT),
            expected_BT=None if self.expected_BT is None else spread(self.expected_BT),
        )

    def of(self, rows_N: Tensor) -> "Decision":
        """The decisions of some rows, all places kept."""
        names = ("value_BT", "logp_BT", "entropy_BT", "mask_BT")
        return replace(self, **{name: getattr(self, name)[rows_N] for name in names}, expected_BT=None)

    def rows(self, index: slice | Tensor) -> "Decision":
        """The decisions of some rows, up to the last that any of them made; where none did, one place says so."""
        made_T = self.mask_BT[index].any(0)
        t = int(made_T.nonzero().max()) + 1 if made_T.any() else 1
        fields = ("value_BT", "logp_BT", "entropy_BT", "mask_BT")
        return replace(self, **{name: getattr(self, name)[index, :t] for name in fields}, time_T=self.time_T[:t])


@dataclass
class Thought:
    """What thinking leaves behind. Rollouts that chose alike are one row: U of them, and B rollouts that point at them.

    `h_UTD`: final hidden states whose next tokens are still to be chosen: T = 1 after a loop along the sequence, T =
    the answer's length where a loop along the depth reads the answer in parallel. `context`: the cache to go on
    decoding from, None where nothing follows. `states_UKD`: the trace, states[:, 0] before the first latent step,
    states[:, i] after the i-th; the trace of a loop along the depth is that of the last position. `used_U`: latent
    steps used. `decisions`: every random choice made (B rows), empty where thinking is deterministic. `row_B`: the row
    of each rollout, None where each has its own.
    """

    h_UTD: Tensor
    context: Context | None
    states_UKD: Tensor
    used_U: Tensor
    decisions: list[Decision] = field(default_factory=list)
    row_B: Tensor | None = None

    @property
    def used_B(self) -> Tensor:
        """Latent steps used by each rollout."""
        return self.used_U if self.row_B is None else self.used_U[self.row_B]


class Chooser:
    """Makes the random choices: `Sample` draws them, `Greedy` takes the mode, `Replay` repeats recorded ones.

    A method asks it wherever it needs randomness, and so needs no code of its own for sampling, evaluation or RL.
    Draws come from torch's global generator, which training seeds at each step. `used_B`: latent steps after which each
    row stops where that is no random choice but a rule's; None = as the rule says. `turn`: of an episode, that its
    choices are made in. `random`: whether anything but the mode may be chosen.
    """

    random = True

    def __init__(self, temperature: float = 1.0, used_B: Tensor | None = None):
        if not temperature > 0:
            raise UserError(f"temperature must be > 0, got {temperature} (for greedy decoding use Greedy)")
        self.temperature = temperature
        self._used_B, self._asked = used_B, 0
        self.turn, self._time = 0, 0
        self.critic: nn.Module | None = None
        self._made: dict[tuple[str, bool], list[tuple]] = {}

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        raise NotImplementedError  # each chooser's own

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        """Choose one value a row. Rows where `live_B` is False choose too, but it does not count.

        `h_UD`: the hidden states that it is chosen from, each those of as many rows, for the critic.
        """
        value = self.pick(kind, dist)
        logp_B = dist.log_prob(value)
        entropy_B, live_B = dist.entropy().expand_as(logp_B), live_B.expand_as(logp_B)
        made = (value, logp_B, entropy_B, live_B, self._time, self._expected(h_UD, len(value)))
        self._made.setdefault((kind, dist.has_rsample), []).append(made)
        self._time += 1
        return value

    def _expected(self, h_UD: Tensor | None, rows: int) -> Tensor | None:
        if self.critic is None or h_UD is None:
            return None
        return self.critic(h_UD.detach())[:, 0].repeat_interleave(rows // len(h_UD))

    def settled(self, stop_B: Tensor) -> Tensor:
        """Which rows stop now, before one more latent step, where a rule without randomness says `stop_B`."""
        self._asked += 1
        return stop_B if self._used_B is None else self._used_B < self._asked

    def follow(self, made: list[Decision]) -> None:
        """Count on from decisions that another chooser made before."""
        self._time = max([self._time, *(int(d.time_T[-1]) + 1 for d in made if len(d.time_T))])

    def decisions(self) -> list[Decision]:
        """All that was chosen since the last call, one `Decision` a kind, its choices along T."""
        made, self._made = self._made, {}
        found = []
        for (kind, density), steps in made.items():
            *along_T, times, expected = zip(*steps)
            value, logp, entropy, live = (torch.stack(each, 1) for each in along_T)
            expected_BT = None if expected[0] is None else torch.stack(expected, 1)
            times_T = torch.tensor(times)
            found.append(Decision(kind, value, logp, entropy, live, times_T, self.turn, density, expected_BT))
        return found


@dataclass
class Share:
    """Which rows of a batch are here, for draws that are those rows' own whoever else is here.

    Every draw is made for all `whole` rows from `generator`, and these take theirs: so a batch that is cut over
    processes or into micro-batches draws what it would have drawn in one piece, from torch's generator at that state.
    """

    rows_B: Tensor
    whole: int
    generator: torch.Generator

    def sample(self, dist: Distribution) -> Tensor:
        """As `dist.sample()` on all rows would have drawn for these. Raises NotImplementedError for unknown kinds."""
        if isinstance(dist, Categorical):  # as torch draws one value: the largest p / q, q exponential
            noise_WV = dist.probs.new_empty(self.whole, *dist.probs.shape[1:]).exponential_(1, generator=self.generator)
            return (dist.probs / noise_WV[self.rows_B]).argmax(-1)
        if isinstance(dist, Bernoulli):
            p_W = dist.probs.new_zeros(self.whole, *dist.probs.shape[1:]).index_copy_(0, self.rows_B, dist.probs)
            return torch.bernoulli(p_W, generator=self.generator)[self.rows_B]
        if isinstance(dist, Independent):
            return self.sample(dist.base_dist)
        if isinstance(dist, Normal):
            mean_BD, std_BD = dist.loc, dist.scale
            noise_WD = mean_BD.new_empty(self.whole, *mean_BD.shape[1:]).normal_(generator=self.generator)
            return noise_WD[self.rows_B] * std_BD + mean_BD
        raise NotImplementedError(f"a {type(dist).__name__} cannot be drawn for a share of a batch")


class Sample(Chooser):
    """Draws from the policy: from torch's generator, or for a share of a batch. `drawn`: how often."""

    def __init__(self, temperature: float = 1.0, share: Share | None = None):
        super().__init__(temperature)
        self.share, self.drawn = share, 0

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        self.drawn += 1
        return dist.sample() if self.share is None else self.share.sample(dist)


class Greedy(Chooser):
    """Takes the mode and records nothing: there is no randomness to learn from."""

    random = False

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        if isinstance(dist, torch.distributions.Bernoulli):
            return (dist.logits > 0).to(dist.logits.dtype)
        return dist.logits.argmax(-1) if isinstance(dist, torch.distributions.Categorical) else dist.mode


class Replay(Chooser):
    """Repeats recorded decisions and gives them log-probabilities under the present parameters, with gradient."""

    def __init__(self, decisions: list[Decision], temperature: float = 1.0, used_B: Tensor | None = None):
        super().__init__(temperature, used_B)
        self._left = {d.kind: iter(d.value_BT.unbind(1)) for d in decisions}

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        return next(self._left[kind])


@dataclass
class Turn:
    """A later turn of some episodes: N of the B rows, `rows_N`, each on its own from here on.

    `prompt`: what was said to them, without what went before; `tokens_NT` and `used_N` as in `Rollout`. `decisions` are
    of all B rows, of which the others made none.
    """

    rows_N: Tensor
    prompt: Prompt
    tokens_NT: Tensor
    used_N: Tensor
    decisions: list[Decision]

    def part(self, rows: slice | Tensor) -> "Turn":
        """The turn of some rows, numbered among themselves."""
        whole, device = len(self.decisions[-1].mask_BT), self.rows_N.device
        own = torch.arange(whole, device=device)[rows]
        at = torch.full((whole,), -1, device=device).index_copy(0, own, torch.arange(len(own), device=device))
        kept_N = at[self.rows_N] >= 0
        decisions = [d.rows(rows) for d in self.decisions]
        tokens_NT = self.tokens_NT[kept_N, : decisions[-1].mask_BT.shape[1]]
        prompt = Prompt(
            self.prompt.ids_BT[kept_N], None if self.prompt.mask_BT is None else self.prompt.mask_BT[kept_N]
        )
        return Turn(at[self.rows_N[kept_N]], prompt, tokens_NT, self.used_N[kept_N], decisions)


@dataclass
class Rollout:
    """P prompts answered G times each, row p * G + g; all on the sampling policy, without gradient.

    `tokens_BT` right-padded completions, `used_B` latents used, `decisions` everything random, the text included: of
    the first turn. `later`: the turns after it, of those episodes that have more than one.
    """

    prompt: Prompt
    group: int
    tokens_BT: Tensor
    used_B: Tensor
    decisions: list[Decision]
    later: list[Turn] = field(default_factory=list)

    @property
    def all_used_B(self) -> Tensor:
        """Latent steps used in all turns together."""
        used_B = self.used_B.clone()
        for turn in self.later:
            used_B[turn.rows_N] += turn.used_N
        return used_B

    @property
    def all_decisions(self) -> list[Decision]:
        """Those of every turn, in order."""
        return [*self.decisions, *(d for turn in self.later for d in turn.decisions)]

    @classmethod
    def joined(cls, prompt: Prompt, group: int, parts: list["Rollout"], end: int | None) -> "Rollout":
        """The rollouts of all prompts from those of their pieces in order, padded to the longest."""
        tokens = [part.tokens_BT for part in parts]
        longest = max(t.shape[1] for t in tokens)
        tokens_BT = torch.cat([F.pad(t, (0, longest - t.shape[1]), value=end or 0) for t in tokens])
        decisions = [Decision.joined(same) for same in zip(*(part.decisions for part in parts), strict=True)]
        return cls(prompt, group, tokens_BT, torch.cat([part.used_B for part in parts]), decisions)

    def prompts(self, index: slice) -> "Rollout":
        """The rollouts of some prompts, e.g. a minibatch."""
        return self.part(Piece(index, slice(0, self.group)))

    def part(self, piece: "Piece") -> "Rollout":
        """Some rollouts of some prompts, e.g. a micro-batch."""
        rows = piece.rows(self.group)
        decisions = [d.rows(rows) for d in self.decisions]
        return replace(
            self,
            prompt=self.prompt.rows(piece.prompts),
            group=piece.group.stop - piece.group.start,
            tokens_BT=self.tokens_BT[rows, : decisions[-1].mask_BT.shape[1]],
            used_B=self.used_B[rows],
            decisions=decisions,
            later=[turn.part(rows) for turn in self.later],
        )


@dataclass(frozen=True)
class Piece:
    """Some rollouts of some prompts: which prompts, and which of the G rollouts of each."""

    prompts: slice
    group: slice

    def rows(self, group: int) -> slice | Tensor:
        """Its rows among those of all prompts, G = `group` each."""
        first, last = self.prompts.start, self.prompts.stop
        if self.group == slice(0, group):
            return slice(first * group, last * group)
        return (torch.arange(first, last)[:, None] * group + torch.arange(group)[self.group]).flatten()


def pieces(prompts: range, group: int, most: int) -> list[Piece]:
    """Prompts and their groups of rollouts in order, cut so that no piece has more than `most` rows; 0 = one piece.

    A group that is larger than that is cut, too: its prompt is then read once a piece.
    """
    if not most or len(prompts) * group <= most:
        return [Piece(slice(prompts.start, prompts.stop), slice(0, group))]
    if group <= most:
        some = [prompts[i : i + most // group] for i in range(0, len(prompts), most // group)]
        return [Piece(slice(part.start, part.stop), slice(0, group)) for part in some]
    cut = [slice(g, min(g + most, group)) for g in range(0, group, most)]
    return [Piece(slice(p, p + 1), part) for p in prompts for part in cut]
