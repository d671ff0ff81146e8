"""What a thought is, and how the random choices made in it are recorded.

Tensors carry their dims as a suffix: B rows = P prompts x G rollouts, U distinct ones among them, T tokens, S cached
positions, K latent steps, R recurrences, D width, H heads, V vocabulary.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from kernels.errors import UserError
from latent.cache import Context


@dataclass
class Prompt:
    """Left-padded prompts. `mask_BT` is False on padding, None where there is none."""

    ids_BT: Tensor
    mask_BT: Tensor | None = None


@dataclass
class Decision:
    """All choices of one kind made in a batch, e.g. the stops (`halt`) or the text (`token`).

    `value_BT...` what was chosen, `logp_BT` its log-probability under the policy that chose, temperature included,
    `entropy_BT` of the distribution it came from (nats), `mask_BT` which choices were really made. `time_T`: when each
    was made, counted over all kinds of choices of an episode; `turn`: in which turn of it. `density`: they are real
    numbers, so that log-probability and entropy are those of a density.
    """

    kind: str
    value_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor
    time_T: Tensor
    turn: int = 0
    density: bool = False

    def rows(self, index: slice) -> "Decision":
        """The decisions of some rows, up to the last that any of them made."""
        made_T = self.mask_BT[index].any(0)
        t = int(made_T.nonzero().max()) + 1 if made_T.any() else 0
        fields = (self.value_BT, self.logp_BT, self.entropy_BT, self.mask_BT)
        return Decision(self.kind, *(f[index, :t] for f in fields), self.time_T[:t], self.turn, self.density)


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
        self._made: dict[tuple[str, bool], list[tuple]] = {}

    def pick(self, kind: str, dist: Distribution) -> Tensor:
        raise NotImplementedError  # each chooser's own

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor) -> Tensor:
        """Choose one value a row. Rows where `live_B` is False choose too, but it does not count."""
        value = self.pick(kind, dist)
        logp_B = dist.log_prob(value)
        entropy_B, live_B = dist.entropy().expand_as(logp_B), live_B.expand_as(logp_B)
        self._made.setdefault((kind, dist.has_rsample), []).append((value, logp_B, entropy_B, live_B, self._time))
        self._time += 1
        return value

    def settled(self, stop_B: Tensor) -> Tensor:
        """Which rows stop now, before one more latent step, where a rule without randomness says `stop_B`."""
        self._asked += 1
        return stop_B if self._used_B is None else self._used_B < self._asked

    def decisions(self) -> list[Decision]:
        """All that was chosen since the last call, one `Decision` a kind, its choices along T."""
        made, self._made = self._made, {}
        found = []
        for (kind, density), steps in made.items():
            *along_T, times = zip(*steps)
            fields = (torch.stack(each, 1) for each in along_T)
            found.append(Decision(kind, *fields, torch.tensor(times), self.turn, density))
        return found


class Sample(Chooser):
    """Draws from the policy."""

    def pick(self, kind, dist):
        return dist.sample()


class Greedy(Chooser):
    """Takes the mode and records nothing: there is no randomness to learn from."""

    random = False

    def __call__(self, kind, dist, live_B):
        if isinstance(dist, torch.distributions.Bernoulli):
            return (dist.logits > 0).to(dist.logits.dtype)
        return dist.logits.argmax(-1) if isinstance(dist, torch.distributions.Categorical) else dist.mode


class Replay(Chooser):
    """Repeats recorded decisions and gives them log-probabilities under the present parameters, with gradient."""

    def __init__(self, decisions: list[Decision], temperature: float = 1.0, used_B: Tensor | None = None):
        super().__init__(temperature, used_B)
        self._left = {d.kind: iter(d.value_BT.unbind(1)) for d in decisions}

    def pick(self, kind, dist):
        return next(self._left[kind])


@dataclass
class Rollout:
    """P prompts answered G times each, row p * G + g; all on the sampling policy, without gradient.

    `tokens_BT` right-padded completions, `used_B` latents used, `decisions` everything random, the text included.
    """

    prompt: Prompt
    group: int
    tokens_BT: Tensor
    used_B: Tensor
    decisions: list[Decision]

    def prompts(self, index: slice) -> "Rollout":
        """The rollouts of some prompts, e.g. a minibatch."""
        rows = slice(index.start * self.group, index.stop * self.group)
        decisions = [d.rows(rows) for d in self.decisions]
        mask = None if self.prompt.mask_BT is None else self.prompt.mask_BT[index]
        return replace(
            self,
            prompt=Prompt(self.prompt.ids_BT[index], mask),
            tokens_BT=self.tokens_BT[rows, : decisions[-1].mask_BT.shape[1]],
            used_B=self.used_B[rows],
            decisions=decisions,
        )
