"""Cups: k cups in a row, swapped two at a time; where does each end up? (the word problem of the symmetric group S_k)

A swap names two places. Padding swaps "." do nothing, so every problem has `swaps` moves of which `level` are live. The
chain is the whole arrangement after every move, the answer the last one. The parity of the swaps alone leaves k!/2
arrangements: a model that cannot compose swaps ends at 2 / k!.

The dots show how many steps are needed. With `rest` pairs or identity no count does: every problem has `swaps` swaps,
those after the first `level` are an even number that comes to nothing, and the arrangement after `level` swaps is none
that was there before. So a model may stop after `level` steps and not before; the chain goes on, away from its last
arrangement and back. A rule that compares neighbours still tells `pairs` (each a swap and the same swap again), those
of `identity`, drawn among all words of swaps that come to nothing, only where neighbours happen to cancel: of eight
swaps of four cups it stops after 6.6 where 5.0 are needed (`halting`). How often each swap is there says a little: a
perceptron on these counts names the level of .61 of the problems with pairs and of .36 with an identity, of four.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, permutations
from math import factorial, perm
from typing import ClassVar, Literal, TypeVar

from eval.environments.base import EnvConfig, Generated, Problem, Verdict
from kernels.errors import UserError
from latent.config import one_of

ROW = re.compile(r"\d+(?:\s+\d+)*", re.ASCII)
MOST_SWAPS = 10_000  # a chain of so many is a million tokens
MOST_WORDS = 720  # that arrangements are made of: those of six cups, each a word
MOST_CUPS = 6  # of which some swaps come to nothing: words are counted from each of 720 arrangements
MOST_UNDONE = 32  # swaps of which some come to nothing: of three cups, few longer words end where they never were
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
    state_tokens: int = 0
    """Tokens that an arrangement takes: 0, one for each cup; fewer, each for some cups side by side, as in =42 =13; 1,
    one for all of them, as in 4213."""
    turns: int = 1
    """2: half of the moves are told, an answer is given, then the other half is told and the last answer counts."""

    rest: Literal["dots", "pairs", "identity"] = "dots"
    """What the moves beyond the live ones are: dots; swaps, each made twice in a row; any swaps that come to nothing
    together. With swaps the question does not show how many steps are needed; levels are then an even number below
    `swaps`."""

    def __post_init__(self):
        one_of(self, "rest", ("dots", "pairs", "identity"))
        if not 2 <= self.cups <= 9:
            raise UserError(f"env.cups must be in 2..9, got {self.cups}")
        if not 1 <= self.swaps <= MOST_SWAPS:
            raise UserError(f"env.swaps must be in 1..{MOST_SWAPS}, got {self.swaps}")
        if not 1 <= self.min_swaps <= self.swaps:
            raise UserError(f"env.min_swaps must be in 1..env.swaps = {self.swaps}, got {self.min_swaps}")
        if not 0 <= self.state_tokens <= self.cups:
            raise UserError(f"env.state_tokens must be in 0..env.cups = {self.cups}, got {self.state_tokens}")
        if (words := sum(perm(self.cups, width) for width in set(self.widths))) > MOST_WORDS:
            raise UserError(
                f"env.state_tokens {self.state_tokens}: arrangements of {self.cups} cups take {words} words, "
                f"each a token of its own: at most {MOST_WORDS}"
            )
        if not 1 <= self.turns <= 2 or self.swaps % self.turns:
            raise UserError(f"env.turns must be 1, or 2 with an even number of env.swaps, got {self.turns}")
        if self.rest != "dots" and not (3 <= self.cups <= MOST_CUPS and self.swaps <= MOST_UNDONE and self.turns == 1):
            raise UserError(
                f"env.rest {self.rest} takes 3 to {MOST_CUPS} cups, up to {MOST_UNDONE} swaps and one turn, got "
                f"{self.cups}, {self.swaps} and {self.turns}"
            )

    @property
    def widths(self) -> list[int]:
        """Cups that each token of an arrangement names, from the left: as many each, or one more first."""
        n = self.state_tokens or self.cups
        return [self.cups // n + (i < self.cups % n) for i in range(n)]

    def make(self):
        return CupsEnvironment(self)


class CupsEnvironment(Generated):
    def __init__(self, config: Cups):
        self.config = config
        self.turns, told = config.turns, config.swaps // config.turns
        self.answer_tokens = config.state_tokens or config.cups
        self._mark = "=" if 1 < self.answer_tokens < config.cups else ""  # swaps are words of two digits as well
        self.chain_tokens, self.chain_steps = self.answer_tokens * told, told
        if self.answer_tokens == 1 and self.turns == 1:
            self.tells = (*self.tells, "frontier")
        self.main_level = config.swaps
        self._moves = {f"{i}{j}": (i, j) for i, j in combinations(range(config.cups), 2)}
        self._names = list(self._moves)
        self._valid = sorted(str(c + 1) for c in range(config.cups))

    def levels(self):
        every = range(self.config.min_swaps, self.config.swaps + 1)
        return [n for n in every if self.config.rest == "dots" or (self.config.swaps - n) % 2 == 0]

    def draw(self, rng: random.Random, level: int) -> Problem:
        if self.config.rest != "dots":
            return self.of_moves(self.undone(rng, level), level)
        moves = rng.choices(self._names, k=level) + ["."] * (self.config.swaps - level)
        if self.turns == 2:  # dots at the end of each half, as there
            moves = [m for half in (moves[::2], moves[1::2]) for m in half]
        return self.of_moves(moves, level)

    def undone(self, rng: random.Random, level: int) -> list[str]:
        """Swaps of which those after the first `level` come to nothing, and after no fewer."""
        while True:
            moves = rng.choices(self._names, k=level)
            if self.needed(moves) == level:
                break
        spare = self.config.swaps - level
        if self.config.rest == "pairs":
            return moves + [move for move in rng.choices(self._names, k=spare // 2) for _ in range(2)]
        at = tuple(range(self.config.cups))
        for left in reversed(range(spare)):
            back = words_back(self.config.cups, left)
            (move,) = rng.choices(self._names, [back[swapped(at, *self._moves[m])] for m in self._names])
            moves.append(move)
            at = swapped(at, *self._moves[move])
        return moves

    def needed(self, moves: list[str]) -> int:
        """After how many of the moves their last arrangement is there first."""
        trace = self.trace(moves)
        return trace.index(trace[-1])

    def trace(self, moves: list[str]) -> list[str]:
        """The arrangement before any move, and after each."""
        return [self.named(self._valid), *self.oracle(moves)]

    def halting(self, problems: list[Problem]) -> dict[str, tuple[float, float]]:
        """What rules that say when to stop get: the share of problems whose arrangement is the last one then, and the
        mean number of steps. Of each, the number of steps is told by the question: all; the moves that are no dots; all
        but an end in which neighbours that are alike cancel until nothing is left; as many as are needed."""

        def result(steps_of: Callable[[list[str]], int]) -> tuple[float, float]:
            stops = [(self.trace(moves), steps_of(moves)) for moves in asked]
            return sum(trace[n] == trace[-1] for trace, n in stops) / len(stops), sum(n for _, n in stops) / len(stops)

        asked = [p.question.split() for p in problems]
        rules = {"all": len, "dots": live, "neighbours": before_cancelling, "needed": self.needed}
        return {name: result(rule) for name, rule in rules.items()}

    def of_moves(self, moves: list[str], level: int) -> Problem:
        """The problem of some moves: its first turn, and what is said in the second."""
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
        level = live(moves) if self.config.rest == "dots" else self.needed(moves)
        return Problem(" ".join(moves), steps, steps[-1].rstrip(), level)

    def oracle(self, moves: list[str]) -> tuple[str, ...]:
        """The arrangement after every move."""
        cups, steps = tuple(self._valid), []
        for move in moves:
            cups = self.moved(cups, [move])
            steps.append(self.named(cups))
        return tuple(steps)

    def moved(self, cups: tuple[str, ...], moves: list[str]) -> tuple[str, ...]:
        """An arrangement after some moves."""
        for move in moves:
            cups = cups if move == "." else swapped(cups, *self._moves[move])
        return cups

    def named(self, cups: Iterable[str]) -> str:
        """An arrangement in words; as a piece of a chain, of several cups a word."""
        one_by_one = iter(cups)
        if self.answer_tokens == self.config.cups:
            return " ".join(one_by_one)
        return "".join(f"{self._mark}{''.join(islice(one_by_one, width))} " for width in self.config.widths)

    def frontier(self, problem, step):
        """There is one branch: the arrangement after a step, where it is one word."""
        one = "frontier" in self.tells and step <= len(problem.steps)
        return ((problem.steps[step - 1].rstrip(), 1.0),) if one else ()

    def state(self, problem, step, told):
        """The arrangement after so many moves of a first turn."""
        return self.moved(tuple(self._valid), problem.question.split()[:step])

    def answer_from(self, problem, step, state):
        return self.named(self.moved(state, problem.question.split()[step:])).rstrip()

    def verify(self, problem, text):
        said = self.last_arrangement(text)
        if sorted(said) != self._valid:
            return Verdict(0.0, False, False, "not an arrangement")
        correct = said == [digit for digit in problem.answer if digit in self._valid]
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.answer}")

    def last_arrangement(self, text: str) -> list[str]:
        """The last k places of the last row of numbers in a text; nothing where they are a piece of something longer.

        The row is one arrangement or several, so its digits are a multiple of k: "5 4 2 1 3" does not end in one.
        """
        k, n = self.config.cups, self.answer_tokens
        backwards = (text.replace(self._mark, " ") if self._mark else text)[::-1]
        row = ROW.search(backwards)  # the last one, in a text read from its end
        if row is None or sum(map(str.isdigit, row[0])) % k or backwards[row.end() : row.end() + 1] in GLUE:
            return []
        said = row[0][::-1].split()
        return said[-k:] if n == k else list("".join(said[-n:]))

    def codec(self, model):
        from latent.codec import word_codec

        parts = [part for width in sorted(set(self.config.widths)) for part in permutations(self._valid, width)]
        words = [self._mark + "".join(part) for part in parts]
        return word_codec([*self._names, ".", *words], fixed_answer=self.answer_tokens)

    def floors(self, problems):
        arrangements = factorial(self.config.cups)
        return {"chance": 1 / arrangements, "parity": 2 / arrangements}


def live(moves: list[str]) -> int:
    """How many of the moves are no dots."""
    return sum(move != "." for move in moves)


def before_cancelling(moves: list[str]) -> int:
    """How many moves come before the longest end in which neighbours that are alike cancel until nothing is left."""
    kept: list[str] = []
    found = len(moves)
    for n in reversed(range(len(moves))):
        if kept and kept[-1] == moves[n]:
            kept.pop()
        elif moves[n] != ".":
            kept.append(moves[n])
        found = found if kept else n
    return found


CupT = TypeVar("CupT")


def swapped(at: tuple[CupT, ...], i: int, j: int) -> tuple[CupT, ...]:
    """An arrangement after a swap of two places."""
    cups = list(at)
    cups[i], cups[j] = cups[j], cups[i]
    return tuple(cups)


@lru_cache(maxsize=MOST_CUPS * MOST_UNDONE)
def words_back(cups: int, n: int) -> Counter[tuple[int, ...]]:
    """From each arrangement, how many words of n swaps lead back to the first: as many as lead there from it."""
    if n == 0:
        return Counter({tuple(range(cups)): 1})
    words: Counter[tuple[int, ...]] = Counter()
    for at, ways in words_back(cups, n - 1).items():
        for i, j in combinations(range(cups), 2):
            words[swapped(at, i, j)] += ways
    return words
