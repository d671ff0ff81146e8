"""Cups: k cups in a row, swapped two at a time; where does each end up? (the word problem of the symmetric group S_k)

A swap names two places. Padding swaps "." do nothing, so every problem has `swaps` moves of which `level` are live. The
chain is the whole arrangement after every move, the answer the last one. The parity of the swaps alone leaves k!/2
arrangements: a model that cannot compose swaps ends at 2 / k!.
"""

import random
import re
from dataclasses import dataclass
from itertools import combinations, permutations
from math import factorial
from typing import ClassVar

from eval.environments.base import EnvConfig, Generated, Problem, Verdict
from kernels.errors import UserError

ROW = re.compile(r"\d+(?:\s+\d+)*", re.ASCII)
MOST_SWAPS = 10_000  # a chain of so many is a million tokens
MOST_NAMED = 6  # cups whose arrangements are a token each, 720 of them
GLUE = tuple("-+.,/_")  # before a row, they make its first number another one


@dataclass(frozen=True)
class Cups(EnvConfig):
    """Track cups through swaps."""

    name: ClassVar[str] = "cups"
    cups: int = 4
    """Cups k."""
    swaps: int = 8
    """Moves in a problem; tables report problems with this many live ones."""
    min_swaps: int = 2
    """Fewest live swaps."""
    one_token: bool = False
    """Name an arrangement by one token instead of one for each cup."""
    turns: int = 1
    """2: half of the moves are told, an answer is given, then the other half is told and the last answer counts."""

    def __post_init__(self):
        if not 2 <= self.cups <= 9:
            raise UserError(f"env.cups must be in 2..9, got {self.cups}")
        if not 1 <= self.swaps <= MOST_SWAPS:
            raise UserError(f"env.swaps must be in 1..{MOST_SWAPS}, got {self.swaps}")
        if not 1 <= self.min_swaps <= self.swaps:
            raise UserError(f"env.min_swaps must be in 1..env.swaps = {self.swaps}, got {self.min_swaps}")
        if self.one_token and self.cups > MOST_NAMED:
            raise UserError(
                f"env.one_token: {self.cups} cups have {factorial(self.cups)} arrangements, each a token of its own: "
                f"at most {MOST_NAMED} cups"
            )
        if not 1 <= self.turns <= 2 or self.swaps % self.turns:
            raise UserError(f"env.turns must be 1, or 2 with an even number of env.swaps, got {self.turns}")

    def make(self):
        return CupsEnvironment(self)


class CupsEnvironment(Generated):
    def __init__(self, config: Cups):
        self.config = config
        self.turns, told = config.turns, config.swaps // config.turns
        self.answer_tokens = 1 if config.one_token else config.cups
        self.chain_tokens, self.chain_steps = self.answer_tokens * told, told
        if config.one_token and self.turns == 1:
            self.tells = (*self.tells, "frontier")
        self.main_level = config.swaps
        self._moves = {f"{i}{j}": (i, j) for i, j in combinations(range(config.cups), 2)}
        self._names = list(self._moves)
        self._valid = sorted(str(c + 1) for c in range(config.cups))

    def levels(self):
        return list(range(self.config.min_swaps, self.config.swaps + 1))

    def draw(self, rng: random.Random, level: int) -> Problem:
        moves = rng.choices(self._names, k=level) + ["."] * (self.config.swaps - level)
        if self.turns == 2:  # dots at the end of each half, as there
            moves = [m for half in (moves[::2], moves[1::2]) for m in half]
        steps, half = self.oracle(moves), len(moves) // self.turns
        more = (" ".join(moves[half:]),) if self.turns == 2 else ()
        return Problem(" ".join(moves[:half]), steps[:half], steps[half - 1].rstrip(), level, more=more)

    def turns_of(self, problem):
        if not problem.more:
            return [problem]
        steps = self.oracle(f"{problem.question} {problem.more[0]}".split())
        half = len(problem.steps)
        return [problem, Problem(problem.more[0], steps[half:], steps[-1].rstrip(), problem.level)]

    def parse_question(self, question):
        moves = question.split()
        if not moves or any(m != "." and m not in self._moves for m in moves):
            return None
        steps = self.oracle(moves)
        return Problem(" ".join(moves), steps, steps[-1].rstrip(), sum(m != "." for m in moves))

    def oracle(self, moves: list[str]) -> tuple[str, ...]:
        """The arrangement after every move."""
        cups, steps = [str(c + 1) for c in range(self.config.cups)], []
        for move in moves:
            if move != ".":
                i, j = self._moves[move]
                cups[i], cups[j] = cups[j], cups[i]
            steps.append(f"{''.join(cups)} " if self.config.one_token else " ".join(cups))
        return tuple(steps)

    def frontier(self, problem, step):
        """There is one branch: the arrangement after a step, where it is one word."""
        one = "frontier" in self.tells and step <= len(problem.steps)
        return ((problem.steps[step - 1].rstrip(), 1.0),) if one else ()

    def verify(self, problem, text):
        said = self.last_arrangement(text)
        if sorted(said) != self._valid:
            return Verdict(0.0, False, False, "not an arrangement")
        correct = said == [digit for digit in problem.answer if digit != " "]
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.answer}")

    def last_arrangement(self, text: str) -> list[str]:
        """The last k places of the last row of numbers in a text; nothing where they are a piece of something longer.

        The row is one arrangement or several, so its digits are a multiple of k: "5 4 2 1 3" does not end in one.
        """
        k, backwards = self.config.cups, text[::-1]
        row = ROW.search(backwards)  # the last one, in a text read from its end
        if row is None or sum(map(str.isdigit, row[0])) % k or backwards[row.end() : row.end() + 1] in GLUE:
            return []
        said = row[0][::-1].split()
        return list("".join(said[-1:])) if self.config.one_token else said[-k:]

    def codec(self, model):
        from latent.codec import word_codec

        words = map("".join, permutations(self._valid)) if self.config.one_token else self._valid
        return word_codec([*self._names, ".", *words], fixed_answer=self.answer_tokens)

    def floors(self, problems):
        arrangements = factorial(self.config.cups)
        return {"chance": 1 / arrangements, "parity": 2 / arrangements}
