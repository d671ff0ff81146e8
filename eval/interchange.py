"""Is a thought the state of the computation? Interchange interventions (Geiger et al. 2021, arXiv:2106.02997).

A patch feeds back the state of a donor d in problem b. Where the thought is what the task's own computation holds, the
answer is then what the donor's state leads to under the problem's own remaining steps:

    IIA_i = mean over (b, d) of [answer of b with state i of d = a_b(t, s_d(t))],   t the step that state i stands for

s_d(t) is `Environment.state`, a_b(t, s) is `Environment.answer_from`, and IIA is the interchange intervention accuracy.
Only patches count that should lead to another answer than the right one: a patch that does nothing gets none of them.

`chance` is the same mean with the state of another donor in place of s_d(t), which was not fed back: what a model gets
whose answer does not depend on which donor's state it is given, however the patch disturbs it.

Deviates: the paper looks for states that stand for a variable; here a method says which step its state stands for
(`Method.target_step`). IIA one step before and after shows whether that is so. Whether the model answers either problem
rightly by itself plays no part, so that its own errors count against it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING

from eval.environments.base import Environment, Problem
from eval.judge import verify
from eval.stats import over_items
from latent.methods.base import Method

if TYPE_CHECKING:
    from eval.interventions import Baseline

OTHERS = 16  # other donors, at most, that the chance of a patch is a mean over


@dataclass(frozen=True)
class Patch:
    """A patch that should lead to another answer than the right one.

    `hit`: the answer is that of the donor's state. `unpatched`: it was so without the patch. `chance`: the share of
    other donors whose state leads to the patched answer; None without another donor, and a step off, where nothing asks
    for it. `cluster`: that of the problem.
    """

    cluster: str
    hit: bool
    unpatched: bool
    chance: float | None


def patches(
    method: Method, env: Environment, baseline: Baseline, latent: int, texts: list[str], shift: int = 0
) -> list[Patch]:
    """The patches of the input of a latent, counted from 0, that gave the texts, with what they should lead to.

    That input is made of state `latent`, 0 = before the first latent. `shift`: steps by which it is taken to stand for
    a later step than the method says. Empty where the environment has no states.
    """
    problems, used = baseline.problems, baseline.thought.used_B.tolist()
    rows, donors = baseline.rows_thinking(latent).tolist(), baseline.donors.tolist()
    steps = [_step(method, p, latent, shift) for p in problems]
    states: list[Hashable | None] = []
    for problem, n in zip(problems, used):  # of a donor that thought fewer, the state that its last latent is made of
        step = _step(method, problem, min(latent, max(n - 1, 0)), shift)
        states.append(None if step is None else env.state(problem, step, method.made_from.learns_from))
    found = []
    for at, b in enumerate(rows):
        problem, step = problems[b], steps[b]
        wanted = _elsewhere(env, problem, step, states[donors[b]])
        if wanted is None:
            continue
        others = () if shift else (c for c in rows[at + 1 :] + rows[:at] if c != donors[b])
        elsewhere = filter(None, (_elsewhere(env, problem, step, states[c]) for c in others))
        by_chance = [verify(env, other, texts[b]).correct for other in islice(elsewhere, OTHERS)]
        hit, before = (verify(env, wanted, text).correct for text in (texts[b], baseline.texts[b]))
        found.append(Patch(env.cluster(problem), hit, before, fmean(by_chance) if by_chance else None))
    return found


def _elsewhere(env: Environment, problem: Problem, step: int | None, state: Hashable | None) -> Problem | None:
    """The problem with the answer that a state after a step leads to; None where that is right, or there is none."""
    answer = None if step is None or state is None else env.answer_from(problem, step, state)
    return None if answer is None or verify(env, problem, answer).correct else replace(problem, answer=answer)


def _step(method: Method, problem: Problem, latent: int, shift: int) -> int | None:
    """The step that state `latent` of a problem stands for, so many further; None where the chain has no such step."""
    step = method.target_step(latent, len(problem.steps)) + shift
    return step if 0 <= step <= len(problem.steps) else None


class Tally:
    """The patches of a method's latents, as they come."""

    def __init__(self, method: Method, env: Environment):
        self.method, self.env = method, env
        self.steps: list[list[int]] = []  # of each latent those that its state stands for, a problem each
        self.found: list[dict[int, list[Patch]]] = []  # of each latent, by shift

    def add(self, baseline: Baseline, latent: int, texts: list[str]) -> None:
        """Count the patches of a latent in a batch, which gave these texts. Latents come in order."""
        if self.env.state(baseline.problems[0], 0, self.method.made_from.learns_from) is None:
            return
        if latent == len(self.found):
            self.found.append({-1: [], 0: [], 1: []})
            self.steps.append([])
        for shift, found in self.found[latent].items():
            found += patches(self.method, self.env, baseline, latent, texts, shift)
        self.steps[latent] += [self.method.target_step(latent, len(p.steps)) for p in baseline.problems]

    def of(self, latent: int) -> dict:
        """What is known of a latent's patches: their `summary`; `step`, the step that the state stands for, a mean over
        problems; `before` and `after`, the accuracy if it stood for the step before or after that, None without pairs.

        Nothing where the environment has no states.
        """
        if not self.found:
            return {}
        before, own, after = (summary(found) for found in self.found[latent].values())
        around = {"before": before.get("iia"), "after": after.get("iia")}
        return {"step": fmean(self.steps[latent]), **own, **around}

    def together(self) -> dict:
        """The `summary` of all patches, as `interchange`. Nothing where the environment has no states."""
        return {"interchange": summary([p for each in self.found for p in each[0]])} if self.found else {}


def summary(found: list[Patch]) -> dict:
    """The number of `pairs`; where there are any, `iia` with its 95 % interval over clusters, `unpatched`, the share
    whose answer was that of the donor's state without a patch, and `chance`, where there were other donors."""
    if not found:
        return {"pairs": 0}
    hits = [int(p.hit) for p in found]
    low, high = over_items(hits, [p.cluster for p in found])
    chances = [p.chance for p in found if p.chance is not None]
    return {
        "pairs": len(found),
        "iia": fmean(hits),
        "iia_interval": [low, high],
        "unpatched": fmean(p.unpatched for p in found),
        **({"chance": fmean(chances)} if chances else {}),
    }
