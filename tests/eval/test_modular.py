"""Modular search against brute force over all ways of adding and multiplying."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from eval.environments import Modular, build
from kernels.errors import UserError


def by_brute_force(start, digits, prime):
    """The values of every way, in the order + before *, place by place."""
    found = []
    for choices in product("+*", repeat=len(digits)):
        values, value = [], start
        for choice, digit in zip(choices, digits):
            value = (value + digit if choice == "+" else value * digit) % prime
            values.append(value)
        found.append(values)
    return found


def said(problem):
    start, _, *digits = problem.question.split()
    return int(start), [int(d) for d in digits]


def values(steps):
    return [[int(word.removeprefix("=")) for word in step.split()] for step in steps]


@pytest.mark.parametrize("config", [Modular(), Modular(digits=6, prime=101), Modular(digits=2, prime=11, largest=10)])
def test_answer_chain_and_frontier_are_those_of_all_ways(config):
    env = build(config)
    for problem in env.train_batch(0, 0, 40):
        start, digits = said(problem)
        ways = by_brute_force(start, digits, config.prime)
        best = min(way[-1] for way in ways)
        assert problem.answer == f"={best}" and env.parse_question(problem.question) == problem
        ties = [way[:-1] for way in ways if way[-1] == best]
        assert [step[0] for step in values(problem.steps)] == ties[0]
        found = env.frontiers(problem)
        assert len(found) == len(digits) - 1 == env.chain_steps
        for t, after in enumerate(found):
            shares = Counter(way[t] for way in ways)
            assert dict(after) == {f"={v}": n / len(ways) for v, n in shares.items()}
        told = env.told(problem, "search", "any")
        assert replace(told, steps=problem.steps) == problem
        assert values(told.steps) == [[way[t] for way in ways[:: len(ways) >> (t + 1)]] for t in range(len(digits) - 1)]
        assert sum(len(step.split()) for step in told.steps) == env.longest_chain("search")


def test_a_chain_that_is_drawn_is_each_of_the_best_ways_as_often():
    env = build(Modular(digits=3, prime=37))
    problem = env.parse_question("0 ; 2 2 5")  # 0: 2+2 and 2*2 are 4, times 0 ... both come to 0 * 2 = 0 first
    ways = by_brute_force(0, [2, 2, 5], 37)
    ties = Counter(tuple(f"={v} " for v in way[:-1]) for way in ways if way[-1] == min(w[-1] for w in ways))
    drawn = Counter(env.told(problem, "chains", f"seed {i}").steps for i in range(2000))
    assert set(drawn) == set(ties)
    for steps, n in ties.items():
        assert abs(drawn[steps] / 2000 - n / sum(ties.values())) < 4 * 0.5 / 2000**0.5
    assert env.told(problem, "chain", "any") is problem


def test_order_matters_here():
    """The same digits in another order come to other values: no multiset decides the answer."""
    env = build(Modular())
    answers = {}
    for digits in product((2, 3, 5), repeat=4):
        answers.setdefault(tuple(sorted(digits)), set()).add(
            env.parse_question(f"20 ; {' '.join(map(str, digits))}").answer
        )
    assert any(len(each) > 1 for each in answers.values())


def test_floors_by_hand():
    env = build(Modular(digits=2, prime=11, largest=10))
    problems = [env.parse_question(q) for q in ("1 ; 2 5", "0 ; 2 2", "9 ; 2 2", "5 ; 3 3")]
    # 3+5=8, 3*5=4, 2+5=7, 2*5=10: 4. 0*2*2=0. 11+2=2, 0*2=0, 18=7+2=9, 7*2=3: 0. 8+3=0
    assert [p.answer for p in problems] == ["=4", "=0", "=0", "=0"]
    assert env.floors(problems) == {
        "commonest answer": 0.75,
        "always add": 0.25,  # 8, 4, 2, 0
        "always multiply": 0.25,  # 10, 0, 3, 1
        "the smaller of the two": 0.5,  # 2 and 7; 0 and 0; 0 and 0; 4 and 1
    }


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"digits": 1}, "env.digits must be in 2..12, got 1"),
        ({"digits": 13}, "env.digits must be in 2..12, got 13"),
        ({"prime": 36}, "env.prime must be a prime of at most 1021, got 36"),
        ({"prime": 1031}, "env.prime must be a prime of at most 1021, got 1031"),
        (
            {"prime": 5},
            "env.smallest must be at least 1 and below env.largest, which is below env.prime, got 2, 7 and 5",
        ),
        ({"smallest": 7}, "env.smallest must be at least 1 and below env.largest"),
    ],
)
def test_impossible_sizes_are_one_line(flags, message):
    with pytest.raises(UserError, match=message):
        Modular(**flags)


@pytest.mark.parametrize(
    "question",
    ["", "20", "20 ; 2 3", "20 ; 2 3 4 8", "9" * 5000 + " ; 2 3 4 5", "37 ; 2 3 4 5", "20 , 2 3 4 5", "-1 ; 2 3 4 5"],
)
def test_what_is_no_question_of_it_is_none(question):
    assert build(Modular()).parse_question(question) is None
