"""Signs that come to a target, against brute force over all signs: what is right, what is told, the floors."""

from collections import Counter
from itertools import product

import pytest

from eval.environments import MNNS, Signs, build
from eval.environments.mnns import largest_difference
from kernels.errors import UserError

SPELT = {1: "+", -1: "-"}


def solutions(digits, target):
    """Every right vector of signs, in the order + before -."""
    each = product((1, -1), repeat=len(digits))
    return [signs for signs in each if sum(s * d for s, d in zip(signs, digits)) == target]


def asked(problem):
    *digits, target = problem.question.split()
    return [int(d) for d in digits], int(target.removeprefix("="))


CONFIGS = [Signs(), Signs(digits=4, smallest=1, largest=5), Signs(digits=2, smallest=1, largest=9)]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_right_vector_of_signs_is_correct_and_no_other(config):
    env = build(config)
    several = 0
    for problem in env.train_batch(0, 0, 30):
        digits, target = asked(problem)
        right = solutions(digits, target)
        several += len(right) > 1
        for signs in product((1, -1), repeat=len(digits)):
            verdict = env.verify(problem, " ".join(SPELT[s] for s in signs))
            assert verdict.parsed and verdict.correct == (signs in right) == bool(verdict.reward)
    assert several or config.digits == 2


@pytest.mark.parametrize("config", CONFIGS)
def test_chain_and_frontier_are_sums_from_the_last_digit_on(config):
    env = build(config)
    for problem in env.train_batch(1, 0, 30):
        digits, target = asked(problem)
        right = solutions(digits, target)
        assert problem.answer == " ".join(SPELT[s] for s in right[0])
        sums = [sum(s * d for s, d in zip(right[0][-t:], digits[-t:])) for t in range(1, len(digits))]
        assert [step.strip() for step in problem.steps] == [f"={v}" for v in sums]
        found = env.frontiers(problem)
        assert len(found) == len(digits) - 1 == env.chain_steps == len(problem.steps)
        for t, after in enumerate(found, 1):
            shares = Counter(sum(s * d for s, d in zip(signs, digits[-t:])) for signs in product((1, -1), repeat=t))
            assert dict(after) == {f"={v}": n / 2**t for v, n in shares.items()}
        if len(digits) > 1:  # the first sign can be told from the last frontier
            last = {int(word[1:]) for word, _ in found[-1]}
            for sign in (1, -1):
                assert (target - sign * digits[0] in last) == any(signs[0] == sign for signs in right)


def test_a_told_vector_is_each_of_the_right_ones_as_often():
    env = build(Signs(digits=4, smallest=1, largest=9))
    problem = env.parse_question("1 2 3 4 =0")
    drawn = Counter((p.answer, p.steps) for p in (env.told(problem, "chains", f"seed {i}") for i in range(2000)))
    assert set(drawn) == {("+ - - +", ("=4 ", "=1 ", "=-1 ")), ("- + + -", ("=-4 ", "=-1 ", "=1 "))}
    assert abs(drawn[problem.answer, problem.steps] / 2000 - 0.5) < 4 * 0.5 / 2000**0.5
    assert all(env.told(problem, what, "any") is problem for what in ("answer", "chain", "frontier"))
    assert problem.key == env.told(problem, "chains", "seed 1").key


def test_targets_are_the_values_that_signs_reach_each_as_likely():
    """Of the digits 1 1 the values are 2, 0 and -2, 0 by two of the four vectors: 5 standard errors of 600 draws."""
    env = build(Signs(digits=2, smallest=1, largest=2))
    drawn = [asked(p) for i in range(200) for p in env.train_batch(i, 0, 16)]
    said = Counter(target for digits, target in drawn if digits == [1, 1])
    n = sum(said.values())
    assert set(said) == {2, 0, -2} and all(abs(k / n - 1 / 3) < 5 * (2 / 9 / n) ** 0.5 for k in said.values())


def test_no_order_of_a_tested_multiset_is_trained_on_with_any_target():
    env = build(Signs(digits=4))
    of = lambda problems: {tuple(sorted(asked(p)[0])) for p in problems}  # noqa: E731
    train = of(p for i in range(40) for p in env.train_batch(i, i, 64))
    valid, test = (of(env.problems(split, 4, 400)) for split in ("valid", "test"))
    assert not train & valid and not train & test and not valid & test and len(test) > 20


def test_floors_are_what_rules_without_a_search_get():
    env = build(Signs(digits=3, smallest=1, largest=4))
    problems = env.problems("test", 3, 60)
    tried = [(digits, target, solutions(digits, target)) for digits, target in map(asked, problems)]
    n = len(problems)

    def greedy(digits, target):
        signs, total = {}, 0
        for i, d in digits:
            signs[i] = 1 if target - total >= 0 else -1
            total += signs[i] * d
        return tuple(signs[i] for i in range(len(signs)))

    want = {
        "random signs": sum(len(right) for *_, right in tried) / 8 / n,
        "commonest signs": max(sum(v in right for *_, right in tried) for v in product((1, -1), repeat=3)) / n,
        "towards the target": sum(greedy(list(enumerate(d)), t) in right for d, t, right in tried) / n,
        "largest first": sum(greedy(sorted(enumerate(d), key=lambda x: -x[1]), t) in r for d, t, r in tried) / n,
        "largest differences": sum(largest_difference(sorted([*d, abs(t)])) == 0 for d, t, _ in tried) / n,
    }
    assert env.floors(problems) == pytest.approx(want)
    default = build(Signs())
    floors = default.floors(default.problems("test", 6, 500))
    assert floors["random signs"] < 0.04 and max(floors.values()) < 0.72


@pytest.mark.parametrize(
    "text, parsed, correct",
    [
        ("+ + -", True, True),
        ("=5 =-1 + + -", True, True),
        ("+ - +", True, False),
        ("+ + - -", False, False),
        ("+ + + -", False, False),
        ("+ -", False, False),
        ("++-", False, False),
        ("+ + - =6", False, False),
        ("+7 +4 -5", False, False),
        ("", False, False),
    ],
)
def test_the_signs_at_the_end_are_the_answer_where_they_are_as_many_as_the_digits(text, parsed, correct):
    env = build(Signs(digits=3, smallest=1, largest=9))
    verdict = env.verify(env.parse_question("7 4 5 =6"), text)
    assert (verdict.parsed, verdict.correct, verdict.reward) == (parsed, correct, float(correct))
    assert verdict.reason or correct


@pytest.mark.parametrize("question", ["7 4 5", "7 4 5 =5", "7 4 =3", "7 4 10 =1", "7 4 5 6", "7 4 5 =x", ""])
def test_what_asks_nothing_that_has_an_answer_is_no_problem(question):
    assert build(Signs(digits=3, smallest=1, largest=9)).parse_question(question) is None


def test_tokens_are_one_a_digit_sum_and_sign_and_bad_ranges_are_said():
    env = build(Signs(digits=3, smallest=1, largest=4))
    codec, problem = env.codec(None), env.problems("test", 3, 1)[0]
    assert len(codec.answer(problem.answer)) == 3 and all(len(codec.step(s)) == 1 for s in problem.steps)
    assert len(codec.question(problem.question)) == 5 and codec.size == 2 + 4 + 25 + 2
    with pytest.raises(UserError, match=r"env\.digits must be in 2\.\.12, got 13"):
        Signs(digits=13)
    with pytest.raises(UserError, match=r"below env\.largest, got 16 and 16"):
        Signs(smallest=16)
    assert MNNS() != Signs(digits=4, smallest=1, largest=9)
