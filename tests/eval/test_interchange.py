"""What a donor's state leads to, against brute force, and patches of methods whose thoughts are made by hand."""

import random
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import pytest
import torch

from eval import interventions
from eval.environments import MNNS, Countdown, Cups, Modular, ProsQA, Reach, Signs, build
from eval.judge import verify
from latent import make
from latent.config import ModelConfig
from latent.generate import Reasoner
from latent.methods import MethodConfig
from latent.methods.base import Method
from latent.thought import Thought

WIDE = ModelConfig(n_layer=1, n_embd=128, n_head=2, n_positions=32)


def after(moves, row):
    """Cups by hand: an arrangement after some moves."""
    row = list(row)
    for move in moves:
        if move != ".":
            i, j = map(int, move)
            row[i], row[j] = row[j], row[i]
    return row


def ends(start, digits, ways):
    """The values that all ways of taking up digits lead to, one after the other."""
    values = {start}
    for digit in digits:
        values = {way(value, digit) for value in values for way in ways}
    return values


@pytest.mark.parametrize(
    "config",
    [
        Cups(),
        Cups(cups=5, swaps=6, state_tokens=1),
        Cups(state_tokens=2),
        Cups(turns=2),
        Cups(rest="identity"),
        Cups(cups=3, swaps=6, rest="pairs"),
    ],
)
def test_a_donors_arrangement_is_swapped_on_by_hand(config):
    env = build(config)
    problems = [p for level in env.levels() for p in env.problems("test", level, 4)]
    first = [str(c + 1) for c in range(config.cups)]
    for b, problem in enumerate(problems):
        moves = problem.question.split()
        for n, donor in enumerate(problems):
            step, theirs = (b + n) % (len(moves) + 1), (b * n) % (len(moves) + 1)
            want = after(moves[step:], after(donor.question.split()[:theirs], first))
            answer = env.answer_from(problem, step, env.state(donor, theirs, "chain"))
            assert [cup for cup in answer if cup.isdigit()] == want
            own = env.answer_from(problem, step, env.state(problem, step, "chain"))
            assert own == problem.answer and verify(env, problem, answer).correct == (answer == problem.answer)


PLUS, MINUS = (lambda value, digit: value + digit), (lambda value, digit: value - digit)


def test_a_donors_sums_are_signed_on_over_all_signs():
    env = build(MNNS(digits=5, smallest=2, largest=12, other_digits=(3, 6)))
    problems = [p for level in env.levels() for p in env.problems("test", level, 6)]
    nothing = 0
    for problem, donor in product(problems, problems):
        mine, theirs = ([int(d) for d in p.question.split()] for p in (problem, donor))
        for step in range(min(len(mine), len(theirs))):
            for told in ("frontier", "answer", "chain"):
                starts = ends(0, theirs[:step], (PLUS, MINUS))
                if told == "chain" and step:
                    starts = {int(donor.steps[step - 1].removeprefix("="))}
                sums = {s for start in starts for s in ends(start, mine[step:], (PLUS, MINUS)) if s >= 0}
                answer = env.answer_from(problem, step, env.state(donor, step, told))
                assert answer == (f"={min(sums)}" if sums else None)
                nothing += not sums
                assert env.answer_from(problem, step, env.state(problem, step, told)) == problem.answer
            assert env.state(donor, step, "chains") is None
    assert nothing  # a chain's sum may be too low for all that is left


def test_a_donors_values_are_taken_further_over_all_ways():
    env = build(Modular())
    ways = (lambda value, digit: (value + digit) % 37), (lambda value, digit: value * digit % 37)
    problems = env.problems("test", 4, 25)
    for problem, donor in product(problems, problems):
        (_, _, *mine), (start, _, *theirs) = (p.question.split() for p in (problem, donor))
        for step in range(4):
            for told in ("frontier", "chain"):
                starts = ends(int(start), map(int, theirs[:step]), ways)
                if told == "chain" and step:
                    starts = {int(donor.steps[step - 1].removeprefix("="))}
                best = min(v for begin in starts for v in ends(begin, map(int, mine[step:]), ways))
                assert env.answer_from(problem, step, env.state(donor, step, told)) == f"={best}"
                assert env.answer_from(problem, step, env.state(problem, step, told)) == problem.answer


@pytest.mark.parametrize("config", [ProsQA(), Reach(), Signs(), Countdown()])
def test_where_a_donors_state_means_nothing_there_is_none(config):
    env = build(config)
    (problem,) = env.problems("test", env.main_level, 1)
    assert env.state(problem, 1, "frontier") is None


@dataclass(frozen=True)
class ByHand(MethodConfig):
    """A method that computes the task by rule, its thought a set of words."""

    name: ClassVar[str] = "by-hand"
    holds: str = "state"
    """What a thought holds: the state; the answer; or the state, while one that is not its own breaks it: it then says
    what the question alone decides."""
    stops: bool = False
    """Stop after the last move that is no dot."""


class ByHandMethod(Method[ByHand]):
    """A state has a 1 at the token of each word that it holds, and the head says the token whose number is largest.

    `begin`: words before any move; `go(words, move)`: the words after one; `best(words)`: the answer among them.
    """

    def __init__(self, config, backbone, codec, env, begin, go, best):
        super().__init__(config, backbone)
        self.steps, self.parallel_answer = env.chain_steps, 1
        self.begin, self.go, self.best = begin, go, best
        vocab = codec.tokenizer.get_vocab()
        self.ids = {word: i for word, i in vocab.items() if i < backbone.vocab}
        self.words = {i: word for word, i in self.ids.items()}
        with torch.no_grad():
            backbone.lm.get_output_embeddings().weight.copy_(torch.eye(backbone.vocab, backbone.width))

    def said(self, words):
        h_D = torch.zeros(self.backbone.width)
        h_D[[self.ids[word] for word in words]] = 1
        return h_D

    def heard(self, h_D):
        whole = bool(((h_D == 0) | (h_D == 1)).all())
        return {self.words[i] for i in h_D.nonzero()[:, 0].tolist()} if whole else set()  # noise holds nothing

    def think(self, prompt, choose, group=1, steps=None, edit=None):
        k = self.steps if steps is None else steps
        questions = [[self.words[i] for i in row if self.words[i][0] != "<"] for row in prompt.ids_BT.tolist()]
        start, moves = zip(*(self.begin(question) for question in questions))
        used = [min(k, sum(m != "." for m in each)) if self.config.stops else k for each in moves]

        def walk(words, moves):
            for move in moves:
                words = self.go(words, move)
            return words

        answers = [{self.best(walk(words, each))} for words, each in zip(start, moves)]
        now = answers if self.config.holds == "answer" else list(start)
        states, broken = [torch.stack([self.said(words) for words in now])], set()
        for i in range(k):
            x_PD = states[-1] if edit is None else edit(i, states[-1])
            for b in [b for b in range(len(now)) if i < used[b]]:
                words = self.heard(x_PD[b])
                if self.config.holds == "answer":
                    now[b] = words
                    continue
                if self.config.holds == "broken" and words != now[b]:
                    broken.add(b)
                now[b] = walk(words, moves[b][i : i + 1])
            states.append(torch.stack([self.said(words) for words in now]))
        ends = [{self.best(walk(words, each[k:]))} if words else set() for words, each in zip(now, moves)]
        if self.config.holds == "answer":
            ends = now
        for b in broken:
            every = sorted({"".join(p) for p in product("1234", repeat=4) if len(set(p)) == 4} - answers[b])
            ends[b] = {random.Random(" ".join(questions[b])).choice(every)}
        h_PD = torch.stack([self.said(words) for words in ends])
        return Thought(h_PD[:, None], None, torch.stack(states, 1), torch.tensor(used))


CUPS, SUMS, SEARCH = Cups(state_tokens=1), MNNS(), Modular(digits=4, prime=17)
TASKS = {
    CUPS: (
        lambda question: ({"1234"}, question),
        lambda words, move: {"".join(after([move], word)) for word in words},
        min,
    ),
    SUMS: (
        lambda question: ({"=0"}, question),
        lambda words, digit: {f"={v + s * int(digit)}" for v in map(number, words) for s in (1, -1)},
        lambda words: f"={min(v for v in map(number, words) if v >= 0)}",
    ),
    SEARCH: (
        lambda question: ({f"={question[0]}"}, question[2:]),
        lambda words, digit: {f"={x % 17}" for v in map(number, words) for x in (v + int(digit), v * int(digit))},
        lambda words: f"={min(map(number, words))}",
    ),
}


def number(word):
    return int(word.removeprefix("="))


def by_hand(task, **fields):
    env = build(task)
    codec = env.codec(WIDE)
    body = make.from_scratch(WIDE, codec.size, codec.pad, codec.end)
    method = ByHandMethod(ByHand(**fields), body, codec, env, *TASKS[task])
    return Reasoner(method, codec, env.answer_tokens, env.chain_tokens, env.chain_steps), env


@pytest.mark.parametrize("task", list(TASKS), ids=lambda task: task.name)
def test_where_the_thought_is_the_state_every_patch_gives_what_the_donors_state_leads_to(task):
    reasoner, env = by_hand(task)
    found = interventions.causal(reasoner, env, env.problems("test", env.main_level, 34), 17)
    assert found["intact"] == [1] * 34
    for i, patch in enumerate(found["patches"]):
        assert patch["step"] == i
        if task != SEARCH and i == 0:  # nothing is done yet: all begin alike
            assert patch["pairs"] == 0 and patch["flipped"] == 0 and "iia" not in patch
            continue
        assert patch["iia"] == 1 and patch["unpatched"] == 0 and 0 < patch["pairs"] <= 34
        assert patch["flipped"] == patch["pairs"] / 34 and patch["chance"] < 1
        assert patch["iia_interval"][1] == 1 and patch["iia_interval"][0] < 1
    assert found["interchange"]["iia"] == 1
    assert found["interchange"]["pairs"] == sum(patch["pairs"] for patch in found["patches"])


def test_pairs_and_chance_are_those_of_swaps_made_by_hand():
    reasoner, env = by_hand(CUPS)
    problems = env.problems("test", 8, 12)
    found = interventions.causal(reasoner, env, problems, 12)
    moves = [p.question.split() for p in problems]
    right = [after(m, "1234") for m in moves]
    for i, patch in enumerate(found["patches"]):
        pairs, chances, earlier, later = 0, [], [], []
        for b in range(12):
            donor = next(d % 12 for d in range(b + 1, b + 12) if right[d % 12] != right[b])
            led = [after(moves[b][i:], after(m[:i], "1234")) for m in moves]
            if led[donor] == right[b]:
                continue
            pairs += 1
            others = [led[c] == led[donor] for c in range(12) if c not in (b, donor) and led[c] != right[b]]
            chances.append(sum(others) / len(others))
        for shift, hits in ((-1, earlier), (1, later)):
            for b in range(12) if i + shift >= 0 else ():
                donor = next(d % 12 for d in range(b + 1, b + 12) if right[d % 12] != right[b])
                wrong = after(moves[b][i + shift :], after(moves[donor][: i + shift], "1234"))
                if wrong != right[b]:
                    hits.append(wrong == after(moves[b][i:], after(moves[donor][:i], "1234")))
        assert patch["pairs"] == pairs
        assert patch.get("chance") == (pytest.approx(sum(chances) / pairs) if pairs else None)
        assert patch["before"] == (pytest.approx(sum(earlier) / len(earlier)) if earlier else None)
        assert patch["after"] == pytest.approx(sum(later) / len(later))


def test_a_donor_that_thought_less_gives_the_state_its_last_latent_is_made_of():
    """Levels are mixed, and rows stop at theirs: the only donors of the longest have thought fewer latents."""
    reasoner, env = by_hand(CUPS, stops=True)
    problems = env.problems("test", 8, 1) + [p for level in (2, 3, 5) for p in env.problems("test", level, 5)]
    found = interventions.causal(reasoner, env, problems, 16)
    assert found["intact"] == [1] * 16 and [p["n"] for p in found["patches"]] == [16, 16, 11, 6, 6, 1, 1, 1]
    assert all(patch["iia"] == 1 for patch in found["patches"] if patch["pairs"])
    assert sum(patch["pairs"] for patch in found["patches"][5:]) == 3


def test_a_thought_that_holds_the_answer_is_not_the_state():
    """Every patch gives the donor's answer, which the donor's state leads to only where arrangements coincide."""
    reasoner, env = by_hand(CUPS, holds="answer")
    found = interventions.causal(reasoner, env, env.problems("test", 8, 120), 60)
    assert all(patch["donor"] == 1 for patch in found["patches"])
    assert found["interchange"]["iia"] < 0.15


def test_a_thought_that_is_broken_by_any_patch_is_at_chance():
    """All answers change, and to none that depends on the donor."""
    reasoner, env = by_hand(CUPS, holds="broken")
    found = interventions.causal(reasoner, env, env.problems("test", 8, 120), 60)
    whole = found["interchange"]
    assert all(patch["flipped"] > 0.8 for patch in found["patches"][1:])
    assert whole["pairs"] > 600 and whole["unpatched"] == 0
    assert whole["iia_interval"][0] < whole["chance"] < whole["iia_interval"][1] < 0.1
    assert whole["chance"] == pytest.approx(1 / 23, abs=0.01)
