"""The judge: a reasoner on an environment's held-out problems, item by item."""

from collections import defaultdict
from dataclasses import dataclass

from eval.environments.base import Environment, Problem, Verdict, iterate
from eval.stats import wilson
from latent.generate import Reasoner


@dataclass(frozen=True)
class Item:
    """One judged answer: what was said, the verdict, latent steps used and tokens written."""

    key: str
    level: int
    text: str
    correct: bool
    reward: float
    parsed: bool
    reason: str
    used: int
    tokens: int


def verify(env: Environment, problem: Problem, text: str) -> Verdict:
    """The environment's verdict. A verifier that raises stops the run with the problem's key: never a silent 0."""
    try:
        return env.verify(problem, text)
    except Exception as e:
        raise RuntimeError(f"the verifier failed on problem {problem.key}: {type(e).__name__}: {e}") from e


def judge(
    reasoner: Reasoner, env: Environment, problems: list[Problem], batch=256, steps=None, tick=None
) -> list[Item]:
    """Greedy answers to `problems`, verified. `steps` overrides the latent steps; `tick(n)` is told of progress."""
    was_training = reasoner.method.training
    reasoner.method.eval()
    items = []
    for part in iterate(problems, batch):
        tokens_BT, thought = reasoner.tokens([p.question for p in part], steps)
        lengths = text_lengths(tokens_BT, reasoner.codec.end)
        for p, text, used, length in zip(part, reasoner.codec.texts(tokens_BT), thought.used_B.tolist(), lengths):
            v = verify(env, p, text)
            items.append(Item(p.key, p.level, text, v.correct, v.reward, v.parsed, v.reason, used, length))
        if tick:
            tick(len(part))
    reasoner.method.train(was_training)
    return items


def text_lengths(tokens_BT, end: int | None) -> list[int]:
    """Tokens written in each row, the end token included."""
    return [row.index(end) + 1 if end in row else len(row) for row in tokens_BT.tolist()]


def summary(items: list[Item]) -> dict:
    """Accuracy with its 95 % Wilson interval and the means that go beside it."""
    n, hits = len(items), sum(i.correct for i in items)
    low, high = wilson(hits, n)
    mean = lambda name: sum(getattr(i, name) for i in items) / n  # noqa: E731
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


def by_level(items: list[Item]) -> dict[int, dict]:
    """A summary a level."""
    levels = defaultdict(list)
    for item in items:
        levels[item.level].append(item)
    return {level: summary(levels[level]) for level in sorted(levels)}
