"""Signs: digits and a target are given, signs are to be written with which the digits come to the target. Every such
vector of signs is right: the verifier adds up, and needs no gold answer.

    7 4 5 =6 is solved by + + -, and by no other signs; 4 4 5 =5 by + - + and by - + +

Every digit, sign and sum is one token, as in `mnns`. The search goes from the last digit to the first: after t steps it
holds the sums of the last t digits, so that the first sign, which is written first, can be told from what the last
step holds: it is right where the target without that signed digit is among the sums of the others. The chain is these
sums for one right vector of signs, the frontier their distribution over all 2^t, each as likely. Digits are drawn
uniformly, then the target among the values that some signs reach, each as likely; problems are split by the multiset of
their digits.

Six digits of 5 to 16 have 1.8 right vectors each on average. There signs at random are right on .028 of the problems,
signs that go towards the target digit by digit on .20, the largest first on .39, and differences of the two largest
numbers, the target among them, on .65; these are low among four to eight digits of ranges up to 24, and six digits of 1
to 9 leave .04, .27, .73 and .89.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from eval.environments.base import Generated, Problem, Verdict
from eval.environments.mnns import (
    SAID,
    SignedDigits,
    drawn_signs,
    first_signs,
    largest_difference,
    partial_sums,
    reachable,
    spelt,
    split_of_digits,
    ways_of,
)

SIGNS = {"+": 1, "-": -1}


@dataclass(frozen=True)
class Signs(SignedDigits):
    """Signs with which digits come to a target: any that do are right."""

    name: ClassVar[str] = "signs"
    digits: int = 6
    """Digits L of a problem."""
    smallest: int = 5
    """Smallest digit."""
    largest: int = 16
    """Largest digit."""

    def make(self):
        return SignsEnvironment(self)


class SignsEnvironment(Generated):
    tells = ("answer", "chain", "chains", "frontier")

    def __init__(self, config: Signs):
        self.config = config
        self.answer_tokens, self.chain_tokens, self.chain_steps = config.digits, config.digits - 1, config.digits - 1
        self.main_level = config.digits

    def cluster(self, problem):
        digits, target = asked(problem.question)
        return f"{sorted(digits)} {target}"

    def draw(self, rng: random.Random, level: int) -> Problem:
        digits = tuple(rng.choices(range(self.config.smallest, self.config.largest + 1), k=level))
        target = rng.choice(sorted(ways_of(tuple(sorted(digits)))))
        return problem_of(digits, target, first_signs(digits, target))

    def split(self, problem):
        return split_of_digits(tuple(sorted(asked(problem.question)[0])))

    def parse_question(self, question):
        *said, last = question.split() or [""]
        target = SAID.fullmatch(last)
        if target is None or not self.config.fits(said):
            return None
        digits = tuple(map(int, said))
        if int(target[1]) not in ways_of(tuple(sorted(digits))):
            return None
        return problem_of(digits, int(target[1]), first_signs(digits, int(target[1])))

    def told(self, problem, what, seed):
        if what != "chains":
            return problem
        digits, target = asked(problem.question)
        return problem_of(digits, target, drawn_signs(digits, target, random.Random(seed)))

    def frontier(self, problem, step):
        digits, _ = asked(problem.question)
        return reachable(tuple(sorted(digits[-step:]))) if step < len(digits) else ()

    def verify(self, problem, text):
        digits, target = asked(problem.question)
        words, n = text.split(), len(digits)
        said = [SIGNS[word] for word in words[-n:] if word in SIGNS]
        longer = len(words) > n and words[-n - 1] in SIGNS
        if len(said) < n or longer:
            return Verdict(0.0, False, False, f"does not end in {n} signs")
        total = partial_sums(digits, said)[-1]
        correct = bool(total == target)
        return Verdict(float(correct), correct, True, "" if correct else f"comes to {total}")

    def codec(self, model):
        from latent.codec import word_codec

        return word_codec([*self.config.words(), *SIGNS], fixed_answer=self.answer_tokens)

    def floors(self, problems):
        """How often signs at random are right, always the same signs at best, and rules that search for nothing."""
        if not problems:
            return {}
        rights, common = dict.fromkeys(("random signs", "towards the target", "largest first"), 0.0), Counter[str]()
        differences = 0
        for p in problems:
            digits, target = asked(p.question)
            ways = ways_of(tuple(sorted(digits)))
            rights["random signs"] += ways[target] / 2 ** len(digits)
            rights["towards the target"] += towards(digits, target) == 0
            rights["largest first"] += towards(sorted(digits, reverse=True), target) == 0
            differences += largest_difference(sorted((*digits, abs(target)))) == 0
            common.update(right_signs(digits, target))
        counts = {"commonest signs": max(common.values(), default=0), **rights, "largest differences": differences}
        return {name: n / len(problems) for name, n in counts.items()}


@lru_cache(maxsize=1 << 12)
def asked(question: str) -> tuple[tuple[int, ...], int]:
    """The digits and the target that a question names."""
    *digits, target = question.split()
    return tuple(map(int, digits)), int(target.removeprefix("="))


def problem_of(digits: tuple[int, ...], target: int, signs: list[int]) -> Problem:
    """The problem of digits and a target, with right signs and the chain that comes to them."""
    sums = partial_sums(digits[::-1], signs[::-1])
    answer = " ".join("+" if sign > 0 else "-" for sign in signs)
    question = f"{' '.join(map(str, digits))} ={target}"
    return Problem(question, tuple(map(spelt, sums[:-1])), answer, len(digits))


def towards(digits: Iterable[int], target: int) -> int:
    """What is left of the target where every digit in turn is taken from it, or added to it where it is below 0."""
    for digit in digits:
        target += -digit if target >= 0 else digit
    return target


def right_signs(digits: tuple[int, ...], target: int) -> list[str]:
    """All vectors of signs with which digits come to a target, as text without spaces."""
    if not digits:
        return [""] if target == 0 else []
    if target not in ways_of(tuple(sorted(digits))):
        return []
    *_, last = digits
    return [head + sign for sign, s in SIGNS.items() for head in right_signs(digits[:-1], target - s * last)]
