"""Modular search: add or multiply by each digit, modulo a prime, so that the last value is as small as possible.

    20 ; 3 5 2 modulo 37:  20 + 3 = 23,  23 * 5 = 4,  4 + 2 = 6   is one of eight ways

Like `mnns` it is a search over two choices a step, a value is one token, and a chain commits to a choice before it can
know. Unlike there the order matters: to add and to multiply do not commute, so that where the search may stand after a
step is not a sum over the digits that could be read off all of them at once. A problem is a start and its digits.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from eval.environments.base import EnvConfig, Generated, Problem, is_whole, split_of
from eval.environments.mnns import held, spelt, value_verdict
from kernels.errors import UserError

MOST_DIGITS = 12  # the ways are 2^12 then
LARGEST_PRIME = 1021  # every value is a token
SAID = re.compile(r"=(\d{1,4})", re.ASCII)


@dataclass(frozen=True)
class Modular(EnvConfig):
    """The smallest value that adding or multiplying by each digit comes to, modulo a prime: a search in which order
    matters."""

    name: ClassVar[str] = "modular"
    digits: int = 4
    """Digits L of a problem."""
    prime: int = 37
    """Modulus p; values are 0 to p - 1."""
    smallest: int = 2
    """Smallest digit."""
    largest: int = 7
    """Largest digit."""

    def __post_init__(self):
        if not 2 <= self.digits <= MOST_DIGITS:
            raise UserError(f"env.digits must be in 2..{MOST_DIGITS}, got {self.digits}")
        if not 2 <= self.prime <= LARGEST_PRIME or any(self.prime % n == 0 for n in range(2, int(self.prime**0.5) + 1)):
            raise UserError(f"env.prime must be a prime of at most {LARGEST_PRIME}, got {self.prime}")
        if not 1 <= self.smallest < self.largest < self.prime:
            raise UserError(
                "env.smallest must be at least 1 and below env.largest, which is below env.prime, got "
                f"{self.smallest}, {self.largest} and {self.prime}"
            )

    def make(self):
        return ModularEnvironment(self)


class ModularEnvironment(Generated):
    tells = ("answer", "chain", "chains", "search", "frontier")

    def __init__(self, config: Modular):
        self.config = config
        self.answer_tokens, self.chain_tokens, self.chain_steps = 1, config.digits - 1, config.digits - 1
        self.main_level = config.digits

    def draw(self, rng: random.Random, level: int) -> Problem:
        c = self.config
        start, digits = rng.randrange(c.prime), tuple(rng.choices(range(c.smallest, c.largest + 1), k=level))
        return problem_of(start, digits, c.prime)

    def split(self, problem):
        return split_of_question(problem.question)

    def parse_question(self, question):
        c, said = self.config, question.split()
        numbers = said[:1] + said[2:]
        if len(said) != c.digits + 2 or said[1] != ";" or not all(is_whole(d, 9) for d in numbers):
            return None
        start, *digits = map(int, numbers)
        if start >= c.prime or not all(c.smallest <= d <= c.largest for d in digits):
            return None
        return problem_of(start, tuple(digits), c.prime)

    def told(self, problem, what, seed):
        start, digits = numbers_of(problem)
        if what == "chains":
            prime = self.config.prime
            return problem_of(start, digits, prime, tuple(best(start, digits, prime, random.Random(seed))))
        if what == "search":
            steps, values = [], [start]
            for digit in digits[:-1]:
                values = [v for value in values for v in after(value, digit, self.config.prime)]
                steps.append("".join(map(spelt, values)))
            return Problem(problem.question, tuple(steps), problem.answer, problem.level)
        return problem

    def longest_chain(self, what):
        return 2**self.config.digits - 2 if what == "search" else self.chain_tokens

    def frontier(self, problem, step):
        start, digits = numbers_of(problem)
        return reachable(start, digits[:step], self.config.prime) if step < self.config.digits else ()

    def state(self, problem, step, told):
        """The values where the search may stand, or that of the chain: see `mnns.held`."""
        start, digits = numbers_of(problem)
        return held(problem, step, told, ways_of(start, digits[:step], self.config.prime))

    def answer_from(self, problem, step, state):
        _, digits = numbers_of(problem)
        return f"={min(min(ways_of(value, digits[step:], self.config.prime)) for value in state)}"

    def verify(self, problem, text):
        return value_verdict(problem, text, SAID)

    def codec(self, model):
        from latent.codec import word_codec

        values = range(self.config.prime)
        return word_codec([";", *map(str, values), *(f"={v}" for v in values)], fixed_answer=1)

    def floors(self, problems):
        """What the commonest answer gets, and rules that follow one way only."""
        if not problems:
            return {}
        p, n = self.config.prime, len(problems)
        found = {"commonest answer": max(Counter(x.answer for x in problems).values()) / n}
        rules = {
            "always add": lambda value, digit: (value + digit) % p,
            "always multiply": lambda value, digit: value * digit % p,
            "the smaller of the two": lambda value, digit: min(after(value, digit, p)),
        }
        for name, rule in rules.items():
            right = 0
            for problem in problems:
                value, digits = numbers_of(problem)
                for digit in digits:
                    value = rule(value, digit)
                right += f"={value}" == problem.answer
            found[name] = right / n
        return found


def numbers_of(problem: Problem) -> tuple[int, tuple[int, ...]]:
    """The start and the digits that a problem names."""
    return _numbers(problem.question)


@lru_cache(maxsize=1 << 14)
def _numbers(question: str) -> tuple[int, tuple[int, ...]]:
    start, _, *digits = question.split()
    return int(start), tuple(map(int, digits))


@lru_cache(maxsize=1 << 16)
def split_of_question(question: str) -> str:
    """The split of a question: training draws the same ones again and again."""
    return split_of(Problem(question, (), "").key)


@lru_cache(maxsize=1 << 16)
def problem_of(start: int, digits: tuple[int, ...], prime: int, values: tuple[int, ...] = ()) -> Problem:
    """The problem of a start and digits, with the chain of the first best choices unless `values` has another's."""
    values = values or tuple(best(start, digits, prime))
    return Problem(
        f"{start} ; {' '.join(map(str, digits))}", tuple(map(spelt, values[:-1])), f"={values[-1]}", len(digits)
    )


def best(start: int, digits: tuple[int, ...], prime: int, rng: random.Random | None = None) -> list[int]:
    """The values after each digit that best choices come to: the first ones in the order +, * place by place, or with
    `rng` any, each as likely."""
    goal, values, value = min(ways_of(start, digits, prime)), [], start
    for i, digit in enumerate(digits):
        options = after(value, digit, prime)
        counts = [ways_of(option, digits[i + 1 :], prime)[goal] for option in options]
        if rng is None:
            value = options[0] if counts[0] else options[1]
        else:
            value = options[int(rng.randrange(sum(counts)) >= counts[0])]
        values.append(value)
    return values


def after(value: int, digit: int, prime: int) -> tuple[int, int]:
    """A value with a digit added, and multiplied."""
    return (value + digit) % prime, value * digit % prime


@lru_cache(maxsize=1 << 17)
def ways_of(start: int, digits: tuple[int, ...], prime: int) -> Counter[int]:
    """How many of the 2^L ways from a start come to each value."""
    if not digits:
        return Counter({start: 1})
    ways: Counter[int] = Counter()
    for value in after(start, digits[0], prime):
        ways.update(ways_of(value, digits[1:], prime))
    return ways


@lru_cache(maxsize=1 << 14)
def reachable(start: int, digits: tuple[int, ...], prime: int) -> tuple[tuple[str, float], ...]:
    """The values that ways from a start come to, and the share of all ways that comes to each."""
    ways, whole = ways_of(start, digits, prime), 2 ** len(digits)
    return tuple((f"={value}", ways[value] / whole) for value in sorted(ways))
