"""The judge on answers that are known: what is counted, by level, with what it cost."""

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from eval.environments import MNNS, Cups, Verdict, build
from eval.judge import Item, by_level, clusters, judge, summary, text_lengths, verify
from eval.stats import over_items, wilson
from kernels.errors import UserError
from latent.config import ModelConfig
from latent.methods import CoT, NoCoT, Sim
from tests.helpers import small_reasoner

ENV = build(Cups())


def item(level: int, correct: bool, used: int, tokens: int) -> Item:
    return Item(f"{level}{correct}{used}", level, "", correct, correct - 0.5, True, "", used, tokens)


ITEMS = [item(1, True, 2, 4), item(1, False, 4, 6), item(2, True, 6, 8), item(2, True, 8, 10), item(2, False, 0, 2)]


def test_a_summary_is_counted_by_hand():
    s = summary(ITEMS)
    assert (s["n"], s["accuracy"], s["used"], s["tokens"]) == (5, 0.6, 4.0, 6.0)
    assert (s["low"], s["high"]) == wilson(3, 5) and s["reward"] == pytest.approx(0.1) and s["parsed"] == 1.0
    levels = by_level(ITEMS)
    assert list(levels) == [1, 2] and [levels[k]["n"] for k in levels] == [2, 3]
    assert (
        levels[1]["accuracy"] == 0.5 and levels[2]["accuracy"] == pytest.approx(2 / 3) and levels[2]["used"] == 14 / 3
    )


def test_lengths_count_the_end_token():
    assert text_lengths(torch.tensor([[5, 9, 9], [5, 6, 7], [9, 9, 9]]), 9) == [2, 3, 1]
    assert text_lengths(torch.tensor([[5, 9, 9]]), None) == [3]


@pytest.mark.parametrize("method, steps", [(NoCoT(), None), (CoT(), None), (Sim(n_latent=4, stride=2), 2)])
def test_an_item_is_its_own_answer_verified(method, steps):
    """Rows of every level, batched, against each question asked alone; dropout is off, and on again afterwards."""
    torch.manual_seed(0)
    reasoner = small_reasoner(method, ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=64))
    for module in reasoner.method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    reasoner.method.train()
    problems = [p for level in (2, 5, 8) for p in ENV.problems("test", level, 5)]
    told = []
    items = judge(reasoner, ENV, problems, 4, steps, told.append)
    assert reasoner.method.training and told == [4, 4, 4, 3]
    for p, i in zip(problems, items, strict=True):
        text = reasoner.answer([p.question], steps)[0]
        v = ENV.verify(p, text)
        assert (i.key, i.level, i.text) == (p.key, p.level, text)
        assert (i.correct, i.reward, i.parsed, i.reason) == (v.correct, v.reward, v.parsed, v.reason)
        assert i.used == (steps or 0) and i.tokens == len(text.split())


def test_permutations_of_a_multiset_are_one_cluster():
    """Their number by counting sorted digits; the interval of as many items as the design effect leaves."""
    torch.manual_seed(0)
    env = build(MNNS(digits=3))
    problems = env.problems("test", 3, 30)
    reasoner = small_reasoner(NoCoT(), ModelConfig(n_layer=1, n_embd=32, n_head=2), env)
    items = judge(reasoner, env, problems, 8)
    multisets = [tuple(sorted(p.question.split())) for p in problems]
    assert [i.cluster for i in items] == [" ".join(digits) for digits in multisets]
    found = clusters(items)
    assert found is not None and len(set(found)) == len(set(multisets)) < len(problems)
    assert all((a == b) == (x == y) for a, x in zip(found, multisets) for b, y in zip(found, multisets))
    s = summary([replace(item, correct=i % 3 == 0) for i, item in enumerate(items)])
    hits = [i % 3 == 0 for i in range(len(items))]
    assert (s["low"], s["high"]) == over_items(hits, ["-".join(digits) for digits in multisets])
    assert clusters(ITEMS) is None and all(ENV.cluster(p) == p.key for p in ENV.problems("test", 3, 4))


def test_a_verifier_that_fails_ends_the_run_and_names_the_problem():
    class Broken:
        def verify(self, problem, text) -> Verdict:
            raise KeyError("gold")

    (problem,) = ENV.problems("test", 3, 1)
    with pytest.raises(RuntimeError, match=f"the verifier failed on problem {problem.key}: KeyError: 'gold'"):
        verify(Broken(), problem, "1 2 3 4")


@pytest.mark.parametrize(
    "given",
    [
        Verdict(1.0, 0.5, True),  # a grade is no verdict
        Verdict(1.0, "False", True),
        Verdict(1.0, None, True),
        Verdict(1.0, np.array([True, False]), True),
        Verdict(None, True, True),
        Verdict(float("nan"), True, True),
        Verdict(float("inf"), True, True),
        Verdict("1", True, True),
        Verdict(np.ones(1), True, True),
    ],
)
def test_a_verdict_that_is_neither_right_nor_wrong_is_refused(given, monkeypatch):
    (problem,) = ENV.problems("test", 8, 1)
    monkeypatch.setattr(type(ENV), "verify", lambda self, problem, text: given)
    with pytest.raises(UserError, match=f"must give a number as the reward and True .* on problem {problem.key}"):
        verify(ENV, problem, "")


def test_scalars_of_other_libraries_are_verdicts(monkeypatch):
    (problem,) = ENV.problems("test", 8, 1)
    for given in (
        Verdict(1, 1, 0),
        Verdict(torch.tensor(1.0), torch.tensor(True), np.bool_(False)),
        Verdict(Fraction(1), 1.0, re.match("a", "b")),
    ):
        monkeypatch.setattr(type(ENV), "verify", lambda self, problem, text, given=given: given)
        found = verify(ENV, problem, "")
        assert found == Verdict(1.0, True, False) and type(found.correct) is type(found.parsed) is bool


def test_what_an_environment_says_of_itself_is_no_failure_of_its_verifier(monkeypatch):
    (problem,) = ENV.problems("test", 8, 1)

    def down(self, problem, text):
        raise UserError("the checker is down: start it")

    monkeypatch.setattr(type(ENV), "verify", down)
    with pytest.raises(UserError, match="the checker is down: start it"):
        verify(ENV, problem, "")
