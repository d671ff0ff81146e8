"""Minimum non-negative sum (MNNS, CoT2, arXiv:2505.23648, sec. 3): give digits signs so that their sum is as small as
possible and not below 0.

    7 4 5, signed -7 +4 +5, has the partial sums =-7 =-3 =2, and no other signs come to 0 or 1

The chain is the partial sums of the best signs without the last, which is the answer: a chain commits to a sign before
it can know. The frontier after t digits is the distribution of the partial sums of all 2^t sign vectors, each as
likely. Every value is one token, and a digit's token is another one. Problems are split by the multiset of their
digits, which alone decides the answer: no order of a tested multiset is trained on.

Four digits need no search: to replace the two largest numbers by their difference, again and again, always comes to the
answer. Such rules are among the floors. Five digits of 5 to 16 leave the best of them right on about .64, which is low
among four to seven digits of ranges up to 30; six digits of 1 to 9 leave it at .92.

Problems of `other_digits` are judged and never trained on. Their tokens are those of the trained ones but for sums that
only more digits reach, which nobody has seen in training; positions beyond the trained ones are new as well, and
latents are as many as in training unless whoever judges says another number.

Deviates: the splits are those of every generated environment; with `epochs`, CoT2's own.
"""

import random
import re
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from eval.environments.base import EnvConfig, Generated, Problem, Verdict, is_whole, split_of
from kernels.errors import UserError
from latent.config import Told

MOST_VALUES = 4096  # tokens of partial sums
MOST_DIGITS = 12  # a search over all signs lists 2^11 sums then
MOST_SEQUENCES = 1_000_000  # held as a list where there are epochs
SAID = re.compile(r"=(-?\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class SignedDigits(EnvConfig):
    """What problems of signed digits share."""

    digits: int = 4
    """Digits L of a problem."""
    smallest: int = 1
    """Smallest digit."""
    largest: int = 9
    """Largest digit."""

    @property
    def lengths(self) -> list[int]:
        """Numbers of digits that problems have."""
        return [self.digits]

    def __post_init__(self):
        if not 2 <= self.digits <= MOST_DIGITS:
            raise UserError(f"env.digits must be in 2..{MOST_DIGITS}, got {self.digits}")
        if not 1 <= self.smallest < self.largest:
            raise UserError(
                f"env.smallest must be at least 1 and below env.largest, got {self.smallest} and {self.largest}"
            )
        longest = max(self.lengths)
        values = 2 * longest * self.largest + 1
        if values > MOST_VALUES:
            raise UserError(
                f"env.digits {longest} up to env.largest {self.largest} have {values} partial sums, "
                f"each a token of its own: at most {MOST_VALUES}"
            )

    def fits(self, said: list[str]) -> bool:
        """Whether these words are the digits of a problem."""
        known = len(said) in self.lengths and all(is_whole(d, 4) for d in said)
        return known and all(self.smallest <= int(d) <= self.largest for d in said)

    def words(self) -> list[str]:
        """A token for each digit, and for each value that a sum may have."""
        most = max(self.lengths) * self.largest
        return [*map(str, range(self.smallest, self.largest + 1)), *(f"={s}" for s in range(-most, most + 1))]


@dataclass(frozen=True)
class MNNS(SignedDigits):
    """The smallest non-negative sum of signed digits: a search over signs."""

    name: ClassVar[str] = "mnns"
    other_digits: tuple[int, ...] = ()
    """Further numbers of digits to judge, each a level; only problems of `digits` are trained on."""
    epochs: int | None = None
    """Seed of CoT2's own split, 80 % of all multisets of digits to train on, in epochs over their sequences, and the
    others to test; None = problems drawn anew, split by hash."""

    def __post_init__(self):
        if not all(2 <= n <= MOST_DIGITS for n in self.other_digits):
            raise UserError(f"env.other_digits must be in 2..{MOST_DIGITS}, got {self.other_digits}")
        super().__post_init__()
        if self.epochs is not None and self.epochs < 0:
            raise UserError(f"env.epochs must be at least 0, got {self.epochs}")
        if self.epochs is not None and self.lengths != [self.digits]:
            raise UserError(f"env.epochs has problems of env.digits alone, got env.other_digits {self.other_digits}")
        sequences = (self.largest - self.smallest + 1) ** self.digits
        if self.epochs is not None and sequences > MOST_SEQUENCES:
            raise UserError(
                f"env.epochs goes through all sequences of digits: {sequences:,} are more than {MOST_SEQUENCES:,}"
            )

    @property
    def lengths(self):
        return sorted({self.digits, *self.other_digits})

    def make(self):
        from eval.environments.mnns_epochs import EpochsMNNS

        return MNNSEnvironment(self) if self.epochs is None else EpochsMNNS(self, self.epochs)


class MNNSEnvironment(Generated):
    tells = ("answer", "chain", "chains", "search", "frontier")

    def __init__(self, config: MNNS):
        self.config = config
        self.answer_tokens, self.main_level = 1, config.digits
        self.chain_tokens = self.chain_steps = max(config.lengths) - 1

    def levels(self):
        return self.config.lengths

    def draw_train(self, rng: random.Random) -> Problem:
        return self.draw(rng, self.config.digits)

    def draw(self, rng: random.Random, level: int) -> Problem:
        return problem_of(tuple(rng.choices(range(self.config.smallest, self.config.largest + 1), k=level)))

    def split(self, problem):
        return split_of_digits(tuple(sorted(digits_of(problem))))

    def cluster(self, problem):
        return " ".join(map(str, sorted(digits_of(problem))))

    def parse_question(self, question):
        said = question.split()
        return problem_of(tuple(map(int, said))) if self.config.fits(said) else None

    def told(self, problem, what, seed):
        digits = digits_of(problem)
        if what == "chains":
            signs = drawn_signs(digits, smallest_sum(tuple(sorted(digits))), random.Random(seed))
            return problem_of(digits, tuple(map(spelt, partial_sums(digits, signs)[:-1])))
        if what == "search":
            return problem_of(digits, tuple("".join(map(spelt, each)) for each in searched(digits)))
        return problem

    def longest_chain(self, what):
        return 2**self.chain_steps - 1 if what == "search" else self.chain_tokens

    def frontier(self, problem, step):
        digits = digits_of(problem)
        return reachable(tuple(sorted(digits[:step]))) if step < len(digits) else ()

    def state(self, problem, step, told):
        """The sums where the search may stand, or that of the chain: see `held`."""
        return held(problem, step, told, ways_of(tuple(sorted(digits_of(problem)[:step]))))

    def answer_from(self, problem, step, state):
        left = ways_of(tuple(sorted(digits_of(problem)[step:])))
        sums = [value + more for value in state for more in left if value + more >= 0]
        return f"={min(sums)}" if sums else None

    def verify(self, problem, text):
        return value_verdict(problem, text, SAID)

    def codec(self, model):
        from latent.codec import word_codec

        return word_codec(self.config.words(), fixed_answer=1)

    def floors(self, problems):
        """What always the same answer gets at best, and one for each parity of the digits' sum, on these problems; and
        how often rules that search for nothing are right."""
        if not problems:
            return {}
        common = Counter(p.answer for p in problems)
        by_parity = [Counter(p.answer for p in problems if sum(digits_of(p)) % 2 == odd) for odd in (0, 1)]
        most = [max(answers.values(), default=0) for answers in (common, *by_parity)]
        found = {"commonest answer": most[0] / len(problems), "parity of the sum": sum(most[1:]) / len(problems)}
        for name, rule in RULES.items():
            found[name] = sum(f"={rule(sorted(digits_of(p)))}" == p.answer for p in problems) / len(problems)
        return found


def digits_of(problem: Problem) -> tuple[int, ...]:
    """The digits that a problem names."""
    return _digits(problem.question)


@lru_cache(maxsize=1 << 12)
def _digits(question: str) -> tuple[int, ...]:
    return tuple(map(int, question.split()))


def largest_first(digits: list[int]) -> int:
    """What is left where each digit, the largest first, is taken from the sum so far."""
    left = 0
    for digit in reversed(digits):
        left = abs(left - digit)
    return left


def largest_difference(digits: list[int]) -> int:
    """What is left where the two largest numbers give way to their difference until one is left (Karmarkar and Karp
    1982). Of up to four digits it is always the answer."""
    left = sorted(digits)
    while len(left) > 1:
        insort(left, left.pop() - left.pop())
    return left[0]


def two_halves(digits: list[int]) -> int:
    """The difference between the larger digits, half of them rounded down, and the others."""
    cut = (len(digits) + 1) // 2
    return abs(sum(digits[:cut]) - sum(digits[cut:]))


RULES: dict[str, Callable[[list[int]], int]] = {
    "largest first": largest_first,
    "largest differences": largest_difference,
    "larger half against the rest": two_halves,
}
"""Rules over sorted digits that a model may learn instead of a search."""


def value_verdict(problem: Problem, text: str, value: re.Pattern[str]) -> Verdict:
    """The verdict on a text that ends in a value; `value`: what such a word matches, with its number as a group."""
    *_, last = text.split() or [""]
    said = value.fullmatch(last)
    if said is None:
        return Verdict(0.0, False, False, "does not end in = and a number")
    correct = f"={int(said[1])}" == problem.answer
    return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.answer}")


def held(problem: Problem, step: int, told: Told, frontier: Iterable[int]) -> frozenset[int] | None:
    """The values that a search over two choices a step holds after a step: all of its frontier.

    Told one chain, it holds the chain's value. Of a chain that is drawn among several it is not known which: None.
    """
    if told == "chains":
        return None
    return frozenset([int(problem.steps[step - 1].strip(" ="))] if told == "chain" and step else frontier)


def spelt(value: int) -> str:
    """A partial sum as a piece of a chain."""
    return f"={value} "


@lru_cache(maxsize=1 << 14)
def problem_of(digits: tuple[int, ...], steps: tuple[str, ...] | None = None) -> Problem:
    """The problem of some digits, with the chain of the first best signs unless another is given."""
    sums = partial_sums(digits, first_signs(digits, smallest_sum(tuple(sorted(digits)))))
    steps = tuple(map(spelt, sums[:-1])) if steps is None else steps
    return Problem(" ".join(map(str, digits)), steps, f"={sums[-1]}", len(digits))


def partial_sums(digits: tuple[int, ...], signs: list[int]) -> list[int]:
    """The sums of the first 1, 2, ... signed digits."""
    sums, total = [], 0
    for digit, sign in zip(digits, signs, strict=True):
        total += sign * digit
        sums.append(total)
    return sums


@lru_cache(maxsize=1 << 14)
def ways_of(digits: tuple[int, ...]) -> Counter[int]:
    """How many sign vectors come to each sum, of digits in ascending order: no order matters."""
    if not digits:
        return Counter({0: 1})
    ways: Counter[int] = Counter()
    for value, n in ways_of(digits[1:]).items():
        ways[value + digits[0]] += n
        ways[value - digits[0]] += n
    return ways


def endings(digits: tuple[int, ...]) -> list[Counter[int]]:
    """For each i, how many sign vectors of digits[i:] come to each sum."""
    return [ways_of(tuple(sorted(digits[i:]))) for i in range(len(digits) + 1)]


@lru_cache(maxsize=1 << 16)
def smallest_sum(digits: tuple[int, ...]) -> int:
    """The smallest non-negative sum of digits in ascending order."""
    return min(value for value in ways_of(digits) if value >= 0)


@lru_cache(maxsize=1 << 16)
def split_of_digits(digits: tuple[int, ...]) -> str:
    """The split of digits in ascending order."""
    return split_of(Problem(" ".join(map(str, digits)), (), "").key)


def first_signs(digits: tuple[int, ...], left: int) -> list[int]:
    """Signs with which digits come to a sum `left` that some have; where several do, the first in the order + before -,
    place by place, as in CoT2's code."""
    ways, signs = endings(digits), []
    for i, digit in enumerate(digits):
        signs.append(1 if ways[i + 1][left - digit] else -1)
        left -= signs[-1] * digit
    return signs


def drawn_signs(digits: tuple[int, ...], left: int, rng: random.Random) -> list[int]:
    """The same, each vector of such signs as likely."""
    ways, signs = endings(digits), []
    for i, digit in enumerate(digits):
        plus, minus = ways[i + 1][left - digit], ways[i + 1][left + digit]
        signs.append(1 if rng.randrange(plus + minus) < plus else -1)
        left -= signs[-1] * digit
    return signs


def searched(digits: tuple[int, ...]) -> list[list[int]]:
    """What an exhaustive chain lists after each digit but the last: the partial sums of all signs, the first one a +.

    Those of a first - are their negatives, so half of all need not be written. Sum i of a step leads to the sums 2i and
    2i + 1 of the next, the digit added and subtracted.
    """
    steps = [[digits[0]]]
    for digit in digits[1:-1]:
        steps.append([value + sign * digit for value in steps[-1] for sign in (1, -1)])
    return steps


@lru_cache(maxsize=1 << 12)
def reachable(digits: tuple[int, ...]) -> tuple[tuple[str, float], ...]:
    """The sums of digits in ascending order, and the share of all sign vectors that come to each."""
    ways, whole = ways_of(digits), 2 ** len(digits)
    return tuple((f"={value}", ways[value] / whole) for value in sorted(ways))
