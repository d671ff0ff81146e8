"""What is reachable after each step, and the chains that search for it, against brute force over all signs."""

from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from itertools import product

import pytest

from eval.environments import MNNS, Cups, ProsQA, build
from eval.environments.base import Generated
from kernels.errors import UserError
from latent.methods import CoT, CoT2, NoCoT, Sim


def by_brute_force(digits):
    """Every sign vector's partial sums, in the order + before -, place by place."""
    found = []
    for signs in product((1, -1), repeat=len(digits)):
        sums = [sum(s * d for s, d in zip(signs[: t + 1], digits)) for t in range(len(digits))]
        found.append(sums)
    return found


def problems_of(config: MNNS, n: int = 40):
    env = build(config)
    return env, [(p, [int(d) for d in p.question.split()]) for p in env.train_batch(0, 0, n)]


def values(steps) -> list[list[int]]:
    return [[int(said.removeprefix("=")) for said in step.split()] for step in steps]


@pytest.mark.parametrize("config", [MNNS(), MNNS(digits=6), MNNS(digits=5, smallest=5, largest=20), MNNS(digits=2)])
def test_answer_chain_and_frontier_are_those_of_all_sign_vectors(config):
    env, problems = problems_of(config)
    for problem, digits in problems:
        paths = by_brute_force(digits)
        best = min(path[-1] for path in paths if path[-1] >= 0)
        assert problem.answer == f"={best}"
        ties = [path[:-1] for path in paths if path[-1] == best]
        assert [step[0] for step in values(problem.steps)] == ties[0]  # CoT2's code takes the first
        found = env.frontiers(problem)
        assert len(found) == len(digits) - 1 == env.chain_steps
        for t, after in enumerate(found):
            shares = Counter(path[t] for path in paths)
            assert dict(after) == {f"={v}": n / len(paths) for v, n in shares.items()}
        told = env.told(problem, "search", "any")
        assert replace(told, steps=problem.steps) == problem
        for t, listed in enumerate(values(told.steps)):
            assert listed == [path[t] for path in paths[: len(paths) // 2 : len(paths) >> (t + 1)]]
            assert {v for s in listed for v in (s, -s)} == {path[t] for path in paths}
        assert sum(len(step.split()) for step in told.steps) == env.longest_chain("search")


def test_a_chain_that_is_drawn_is_each_of_the_best_as_often():
    env = build(MNNS())
    problem = env.parse_question("1 2 3 4")  # 0 = +1-2-3+4 = -1+2+3-4
    drawn = Counter(env.told(problem, "chains", f"seed {i}").steps for i in range(2000))
    assert set(drawn) == {("=1 ", "=-1 ", "=-4 "), ("=-1 ", "=1 ", "=4 ")}
    assert abs(drawn[problem.steps] / 2000 - 0.5) < 4 * 0.5 / 2000**0.5
    assert env.told(problem, "chain", "any") is problem


@pytest.mark.parametrize("config", [MNNS(), MNNS(digits=5, largest=12)])
def test_no_order_of_a_tested_multiset_is_trained_on(config):
    env = build(config)
    of = lambda problems: {tuple(sorted(p.question.split())) for p in problems}  # noqa: E731
    train = of(p for i in range(40) for p in env.train_batch(i, i, 64))
    valid, test = (of(env.problems(split, config.digits, 400)) for split in ("valid", "test"))
    assert not train & valid and not train & test and not valid & test
    assert len(test) > 20 and len({p.key for p in env.problems("test", config.digits, 400)}) == 400


def test_every_order_of_a_multiset_is_in_one_split_as_its_digits_say():
    env = build(MNNS(digits=3, largest=4))
    splits = {}
    for digits in product(range(1, 5), repeat=3):
        problem = env.parse_question(" ".join(map(str, digits)))
        splits.setdefault(tuple(sorted(digits)), set()).add(env.split(problem))
    assert all(len(each) == 1 for each in splits.values()) and len(set.union(*splits.values())) > 1


def test_other_numbers_of_digits_are_judged_and_not_trained_on():
    """The tested problems of the trained length are those of an environment without the others."""
    alone, env = build(MNNS(largest=6)), build(MNNS(largest=6, other_digits=(6, 3)))
    assert env.levels() == [3, 4, 6] and env.main_level == 4 and env.longest_chain("search") == 31
    assert env.problems("test", 4, 40) == alone.problems("test", 4, 40)
    assert env.train_batch(0, 0, 200) == alone.train_batch(0, 0, 200)
    codec = env.codec(None)
    assert codec.size == 2 + 6 + 2 * 36 + 1
    for level in (3, 6):
        for p in env.problems("test", level, 20):
            digits = [int(d) for d in p.question.split()]
            paths = by_brute_force(digits)
            assert len(digits) == level == p.level and env.parse_question(p.question) == p
            assert p.answer == f"={min(path[-1] for path in paths if path[-1] >= 0)}"
            found = env.frontiers(p)
            assert len(found) == len(p.steps) == level - 1
            assert {word for word, _ in found[-1]} == {f"={path[-2]}" for path in paths}
            assert all(len(codec.step(word)) == 1 for word, _ in found[-1])
    assert env.parse_question("1 2 3 4 5") is None
    with pytest.raises(UserError, match="no level 5"):
        env.problems("test", 5, 1)


COT2_SPLITS = {  # seed: sequences trained on and tested, the first and last tested, a hash of all; by CoT2's own code
    42: (5253, 1308, "3 4 8 8", "9 6 4 3", "9d92254fc43c8b30"),
    43: (5187, 1374, "1 6 8 8", "5 3 1 1", "ee2ccec351dabe0f"),
    46: (5222, 1339, "1 3 5 8", "9 8 7 5", "4d2d1d75ba4f9461"),
}


@pytest.mark.parametrize("seed", COT2_SPLITS)
def test_epochs_have_the_split_of_cot2s_code_and_every_sequence_once(seed):
    n, tested, first, last, digest = COT2_SPLITS[seed]
    env = build(MNNS(epochs=seed))
    test = [p.question for p in env.problems("test", 4, 10_000)]
    assert (len(test), test[0], test[-1]) == (tested, first, last) and not env.problems("valid", 4, 10)
    assert blake2b("\n".join(test).encode(), digest_size=8).hexdigest() == digest
    drawn = [p for index in range(2 * n // 16 + 1) for p in env.train_batch("a", index, 16)]
    epochs = [[p.question for p in drawn[start : start + n]] for start in (0, n)]
    assert all(len(set(epoch)) == n and not set(epoch) & set(test) for epoch in epochs) and epochs[0] != epochs[1]
    assert env.train_batch("b", 0, 16) != drawn[:16] == env.train_batch("a", 0, 16)
    assert {env.split(p) for p in drawn} == {"train"} and {env.split(p) for p in env.problems("test", 4, 99)} == {
        "test"
    }
    plain = build(MNNS())
    assert plain.parse_question(drawn[0].question) == drawn[0]


def test_floors_are_the_best_guesses_without_any_sum():
    env = build(MNNS(digits=3, largest=6))
    problems = [env.parse_question(" ".join(map(str, digits))) for digits in product(range(1, 7), repeat=3)]
    best = [min(abs(a + s * b + t * c) for s in (1, -1) for t in (1, -1)) for a, b, c in product(range(1, 7), repeat=3)]
    odd = [sum(digits) % 2 for digits in product(range(1, 7), repeat=3)]
    common = max(best.count(v) for v in set(best)) / 216
    parity = sum(max(sum(b == v and o == p for b, o in zip(best, odd)) for v in set(best)) for p in (0, 1)) / 216
    floors = env.floors(problems)
    assert (floors["commonest answer"], floors["parity of the sum"]) == (common, parity) and common < parity


def test_rules_without_a_search_are_floors():
    """By hand on one problem each; and of four digits differencing is always right: CoT2's size needs no search."""
    env = build(MNNS(digits=5, smallest=5, largest=16))
    for digits, right in (
        ("16 15 14 5 5", (True, True, False)),  # 3: 16, 1, 13, 8, 3; the differences 1, 9, 4, 3; 31 against 24 is 7
        ("8 7 6 5 5", (False, False, True)),  # 1: 8, 1, 5, 0, 5; the differences 1, 1, 4, 3; 15 against 16
        ("8 8 8 8 8", (True, True, True)),
    ):
        floors = env.floors([env.parse_question(digits)])
        rules = ("largest first", "largest differences", "larger half against the rest")
        assert tuple(floors[name] == 1.0 for name in rules) == right, digits
    four = build(MNNS())
    floors = four.floors(
        [four.parse_question(" ".join(map(str, digits))) for digits in product(range(1, 10), repeat=4)]
    )
    assert floors["largest differences"] == floors["largest first"] == 1.0
    best = env.floors(env.problems("test", 5, 800))
    assert max(best.values()) < 0.7


def test_one_token_names_an_arrangement():
    plain, named = build(Cups(cups=4, swaps=5)), build(Cups(cups=4, swaps=5, state_tokens=1))
    codec = named.codec(None)
    for a, b in zip(plain.problems("test", 5, 30), named.problems("test", 5, 30)):
        assert a.question == b.question and [s.replace(" ", "") for s in a.steps] == [s.strip() for s in b.steps]
        assert len(codec.answer(b.answer)) == 1 and all(len(codec.step(s)) == 1 for s in b.steps)
        assert named.frontiers(b) == [((s.strip(), 1.0),) for s in b.steps]
        assert named.verify(b, "".join(b.steps)).correct and not named.verify(b, f"{b.answer}1").parsed
        other = b.answer[1] + b.answer[0] + b.answer[2:]
        assert named.verify(b, other).parsed and not named.verify(b, f"{b.answer} {other}").correct
    assert codec.size == 2 + 6 + 1 + 24


@pytest.mark.parametrize(
    "cups, tokens, widths, size",
    [(4, 2, (2, 2), 12), (4, 3, (2, 1, 1), 12 + 4), (4, 4, (1, 1, 1, 1), 4), (5, 2, (3, 2), 60 + 20)],
)
def test_tokens_name_as_many_cups_each_or_one_more(cups, tokens, widths, size):
    """The same problems in other words, each a token; a swap of two places is never the word of two cups."""
    plain, named = build(Cups(cups=cups, swaps=5)), build(Cups(cups=cups, swaps=5, state_tokens=tokens))
    codec = named.codec(None)
    assert codec.size == 2 + cups * (cups - 1) // 2 + 1 + size
    for a, b in zip(plain.problems("test", 5, 20), named.problems("test", 5, 20), strict=True):
        assert a.question == b.question and len(codec.question(b.question)) == 6
        for one, other in zip(a.steps, b.steps, strict=True):
            words = [word.removeprefix("=") for word in other.split()]
            assert tuple(map(len, words)) == widths and "".join(words) == one.replace(" ", "")
            assert len(codec.step(other)) == tokens == named.answer_tokens
        assert not set(codec.answer(b.answer)) & set(codec.question(b.question))
        text = codec.text([*codec.step(b.steps[0]), *codec.answer(b.answer)])
        assert named.verify(b, text).correct and named.verify(b, b.answer).correct
        assert not named.verify(b, " ".join(b.answer.split()[1:])).parsed
        swapped = " ".join([*b.answer.split()[1:], b.answer.split()[0]])
        assert not named.verify(b, swapped).correct and named.verify(b, swapped).parsed


def test_weights_of_tokens_are_the_frontiers_and_words_of_several_are_refused():
    env = build(MNNS())
    codec, (problem, *_) = env.codec(None), env.problems("test", 4, 1)
    for step in env.frontiers(problem):
        p_V = codec.weights(step)
        assert float(p_V.sum()) == 1.0 and int((p_V > 0).sum()) == len(step)
        assert all(float(p_V[codec.step(word)[0]]) == p for word, p in step)
    with pytest.raises(UserError, match="is 2 tokens: a frontier needs a token a word"):
        codec.weights((("1 2", 1.0),))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: MNNS(digits=1), r"env\.digits must be in 2\.\.12, got 1"),
        (lambda: MNNS(digits=12, largest=200), "have 4801 partial sums, each a token of its own: at most 4096"),
        (lambda: MNNS(other_digits=(3, 13)), r"env\.other_digits must be in 2\.\.12, got \(3, 13\)"),
        (lambda: MNNS(largest=200, other_digits=(11,)), "env.digits 11 up to env.largest 200 have 4401 partial sums"),
        (lambda: MNNS(epochs=-1), r"env\.epochs must be at least 0, got -1"),
        (lambda: MNNS(epochs=1, other_digits=(5,)), r"env\.epochs has problems of env\.digits alone"),
        (lambda: MNNS(digits=6, largest=20, epochs=0), "64,000,000 are more than 1,000,000"),
        (lambda: MNNS(smallest=0), r"env\.smallest must be at least 1"),
        (lambda: MNNS(smallest=9, largest=9), r"below env\.largest"),
        (
            lambda: Cups(cups=7, state_tokens=1),
            "arrangements of 7 cups take 5040 words, each a token of its own: at most",
        ),
        (lambda: Cups(cups=4, state_tokens=5), r"env\.state_tokens must be in 0\.\.env\.cups = 4, got 5"),
        (lambda: CoT(told="frontier"), "told must be one of chain, chains, search, got 'frontier'"),
        (lambda: CoT(told="search", every=2), r"method\.every must be 1"),
        (lambda: CoT2(feedback="hidden"), r"method\.feedback of cot2 is soft"),
        (lambda: CoT2(step_weight=-1.0), r"method\.step_weight must be at least 0"),
        (lambda: Sim(head=True), r"method\.head reads a frontier"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_an_environment_says_what_it_does_not_tell():
    cups, prosqa, mnns = build(Cups()), build(ProsQA(graphs=4)), build(MNNS())
    with pytest.raises(UserError, match=r"CoT2 is taught by the frontier \(method\.told frontier\).*answer, chain$"):
        cups.check_tells(CoT2().told, "CoT2")
    with pytest.raises(UserError, match="CoT is taught by a chain of all branches"):
        prosqa.check_tells(CoT(told="search").told, "CoT")
    for env, methods in ((prosqa, (CoT2(), CoT(), NoCoT())), (mnns, (CoT(told="search"), Sim(told="chains"), CoT2()))):
        assert isinstance(env, Generated)
        for method in methods:
            env.check_tells(method.told, type(method).__name__)


@pytest.mark.parametrize(
    "text, parsed, correct",
    [
        ("=-7 =-3 =2", True, True),
        ("=2", True, True),
        ("=02", True, True),
        ("=2 =7", True, False),
        ("=-2", True, False),
        ("2", False, False),
        ("=2 .", False, False),
        ("= 2", False, False),
        ("=" + "2" * 5000, False, False),
        ("=٢", False, False),
        ("", False, False),
    ],
)
def test_the_last_sum_that_is_said_is_the_answer(text, parsed, correct):
    env = build(MNNS(digits=3))
    problem = env.parse_question("7 4 5")
    verdict = env.verify(problem, text)
    assert (verdict.parsed, verdict.correct, verdict.reward) == (parsed, correct, float(correct))
    assert (
        env.parse_question("7 4") is None
        and env.parse_question("7 4 10") is None
        and env.parse_question("7 4 x") is None
    )
