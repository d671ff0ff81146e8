"""The judge: a reasoner on an environment's held-out problems, item by item."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol

from torch import Tensor

from eval.environments.base import Environment, Problem, Verdict, iterate
from eval.stats import grouped, over_items
from kernels.errors import UserError
from latent.codec import Codec
from latent.generate import Reasoner


@dataclass(frozen=True)
class Item:
    """One judged answer: the text, the verdict, latent steps used and tokens written.

    `cluster`: see `Environment.cluster`; empty for the rollouts of training, of which no interval is made.
    """

    key: str
    level: int
    text: str
    correct: bool
    reward: float
    parsed: bool
    reason: str
    used: int
    tokens: int
    cluster: str = ""


def verify(env: Environment, problem: Problem, text: str) -> Verdict:
    """The environment's verdict. Where the verifier raises, RuntimeError names the problem: never a silent 0.

    Raises UserError where it gives no `Verdict`, or one that is neither right nor wrong.
    """
    try:
        verdict = env.verify(problem, text)
    except UserError:
        raise
    except Exception as e:
        raise RuntimeError(f"the verifier failed on problem {problem.key}: {type(e).__name__}: {e}") from e
    if not isinstance(verdict, Verdict):
        raise UserError(f"{type(env).__name__}.verify must give a Verdict, got {verdict!r:.40}")
    reward, correct = _scalar(verdict.reward), _scalar(verdict.correct)
    if not (_is_finite(reward) and isinstance(correct, Real) and correct in (0, 1)):
        raise UserError(
            f"{type(env).__name__}.verify must give a number as the reward and True or False for correct, got "
            f"{verdict!r:.200} on problem {problem.key}"
        )
    return Verdict(float(reward), bool(correct), bool(_scalar(verdict.parsed)), verdict.reason)


def _scalar(x: Any) -> Any:
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    return x.item() if getattr(x, "shape", None) == () and hasattr(x, "item") else x


def _is_finite(x: Any) -> bool:
    return isinstance(x, Real) and math.isfinite(x)


class Sessions:
    """The sessions of a batch of rollouts, one for each row, with their rewards and texts so far."""

    def __init__(self, env: Environment, problems: list[Problem], codec: Codec):
        self.env, self.problems, self.codec = env, problems, codec
        self.sessions = [env.open(p) for p in problems]
        self.reward = [0.0] * len(problems)
        self.texts: list[list[str]] = [[] for _ in problems]  # of every turn

    def react(self, rows: list[int], tokens_NT: Tensor) -> list[tuple[int, ...] | None]:
        """The next observation of each row that has written a turn's text, as ids; None where its session has ended."""
        observations: list[tuple[int, ...] | None] = []
        for row, text in zip(rows, self.codec.texts(tokens_NT), strict=True):
            observation, reward, done = self._step(row, text)
            self.reward[row] += reward
            self.texts[row].append(text)
            observations.append(None if done or observation is None else self.codec.observation(observation))
        return observations

    def _step(self, row: int, text: str) -> tuple[str | None, float, bool]:
        """A session's step. Where it raises, RuntimeError names the problem. Raises UserError where its reward is no
        number."""
        key = self.problems[row].key
        try:
            observation, reward, done = self.sessions[row].step(text)
        except UserError:
            raise
        except Exception as e:
            raise RuntimeError(f"the session of problem {key} failed: {type(e).__name__}: {e}") from e
        if not _is_finite(value := _scalar(reward)):
            raise UserError(f"the session of problem {key} must give a number as the reward, got {reward!r:.40}")
        return observation, float(value), done

    def verdicts(self) -> list[Verdict]:
        """For each row the verdict on its last text, as the answer of the turn in which its session ended, with the
        rewards of all its turns."""
        found = []
        for p, texts, reward in zip(self.problems, self.texts, self.reward, strict=True):
            turns = self.env.turns_of(p)
            at = turns[min(len(texts), len(turns)) - 1]
            found.append(replace(verify(self.env, at, texts[-1]), reward=reward))
        return found


class Processes(Protocol):
    """The processes that share an evaluation; this one is `rank` of `world`."""

    rank: int
    world: int

    def gather(self, mine: list) -> list[list]:
        """Every process's list, by rank, on all processes."""


def judge(
    reasoner: Reasoner, env: Environment, problems: list[Problem], batch=256, steps=None, tick=None,
    among: Processes | None = None,
) -> list[Item]:  # fmt: skip
    """Greedy answers to `problems`, verified. `steps` overrides the latent steps; `tick(n)` is called after n problems.

    The processes in `among` take the rows of every batch in turn, and all of them return all items.
    """
    was_training = reasoner.method.training
    reasoner.method.eval()
    rank, world = (among.rank, among.world) if among else (0, 1)
    items = []
    for part in iterate(problems, batch):
        items += _items(reasoner, env, part[rank::world], steps)
        if tick:
            tick(len(part))
    reasoner.method.train(was_training)
    if among is None or world == 1:
        return items
    shares = [iter(share) for share in among.gather(items)]
    return [next(shares[i % world]) for part in iterate(problems, batch) for i in range(len(part))]


def _items(reasoner: Reasoner, env: Environment, problems: list[Problem], steps: int | None) -> list[Item]:
    """The judged answers to problems of a batch."""
    if not problems:
        return []
    if env.turns > 1:
        return _items_of_turns(reasoner, env, problems, steps)
    tokens_BT, thought = reasoner.tokens([p.question for p in problems], steps)
    lengths, items = text_lengths(tokens_BT, reasoner.codec.end), []
    for p, text, used, length in zip(problems, reasoner.codec.texts(tokens_BT), thought.used_B.tolist(), lengths):
        v = verify(env, p, text)
        judged = Item(p.key, p.level, text, v.correct, v.reward, v.parsed, v.reason, used, length, env.cluster(p))
        items.append(judged)
    return items


def _items_of_turns(reasoner: Reasoner, env: Environment, problems: list[Problem], steps: int | None) -> list[Item]:
    """The same for problems of several turns. An item's text is those of all turns, line by line."""
    sessions = Sessions(env, problems, reasoner.codec)
    rolled = reasoner.episodes([p.question for p in problems], sessions.react, steps)
    tokens = text_lengths(rolled.tokens_BT, reasoner.codec.end)
    for turn in rolled.later:
        for row, n in zip(turn.rows_N.tolist(), text_lengths(turn.tokens_NT, reasoner.codec.end)):
            tokens[row] += n
    rows = zip(problems, sessions.texts, sessions.verdicts(), rolled.all_used_B.tolist(), tokens)
    return [
        Item(p.key, p.level, "\n".join(texts), v.correct, v.reward, v.parsed, v.reason, used, n, env.cluster(p))
        for p, texts, v, used, n in rows
    ]


def text_lengths(tokens_BT, end: int | None) -> list[int]:
    """Tokens written in each row, the end token included."""
    return [row.index(end) + 1 if end in row else len(row) for row in tokens_BT.tolist()]


def summary(items: list[Item]) -> dict:
    """Accuracy with its 95 % Wilson interval over clusters, and means of reward, parsed, latents used and tokens."""
    n, hits = len(items), sum(i.correct for i in items)
    low, high = over_items([i.correct for i in items], [i.cluster or i.key for i in items])

    def mean(name: str) -> float:
        return sum(getattr(i, name) for i in items) / n

    return {
        "n": n,
        "accuracy": hits / n,
        "low": low,
        "high": high,
        "reward": mean("reward"),
        "parsed": mean("parsed"),
        "used": mean("used"),
        "tokens": mean("tokens"),
    }


def clusters(items: list[Item]) -> list[int] | None:
    """The number of each item's cluster; None where all of them are alone."""
    found = grouped([item.cluster or item.key for item in items], len(items))
    return None if found is None else found.tolist()


def by_level(items: list[Item]) -> dict[int, dict]:
    """A summary for each level."""
    levels = defaultdict(list)
    for item in items:
        levels[item.level].append(item)
    return {level: summary(levels[level]) for level in sorted(levels)}
