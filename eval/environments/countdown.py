"""Countdown: reach a target with the four operations from a few numbers, each used exactly once (Gandhi et al. 2024,
arXiv:2404.03683; as TinyZero has it, all numbers count).

The chain is the operations one by one, the answer one expression. Any expression that is right is correct, not only
the oracle's.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from eval.environments.answers import after_marks, fold, fractions, is_words
from eval.environments.base import EnvConfig, Generated, Problem, Verdict
from kernels.errors import UserError

LARGEST_TARGET = 999
LONGEST_EXPRESSION, DEEPEST = 200, 50  # characters, brackets in each other


@dataclass(frozen=True)
class Countdown(EnvConfig):
    """Reach a target from a few numbers."""

    name: ClassVar[str] = "countdown"
    numbers: int = 4
    """Numbers in a problem of the hardest level; the easiest has 2."""
    largest: int = 99
    """Largest number given."""

    def __post_init__(self):
        if not 2 <= self.numbers <= 6:
            raise UserError(f"env.numbers must be in 2..6, got {self.numbers}")
        if not 10 <= self.largest <= LARGEST_TARGET:
            raise UserError(f"env.largest must be in 10..{LARGEST_TARGET}, got {self.largest}")

    def make(self):
        return CountdownEnvironment(self)


class CountdownEnvironment(Generated):
    def __init__(self, config: Countdown):
        self.config = config
        self.main_level, self.chain_steps = config.numbers, config.numbers - 1
        self.answer_tokens, self.chain_tokens = 8 * config.numbers, 16 * (config.numbers - 1)

    def levels(self):
        return list(range(2, self.config.numbers + 1))

    def draw(self, rng: random.Random, level: int) -> Problem:
        """Numbers joined two by two at random; what they come to is the target."""
        while True:
            given = [rng.randint(1, self.config.largest) for _ in range(level)]
            pool, steps = [(n, str(n)) for n in given], []
            while len(pool) > 1:
                (a, left), (b, right) = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
                if a < b:
                    a, left, b, right = b, right, a, left
                op = rng.choice("+-*/")
                if op == "/" and (b == 0 or a % b):
                    op = "+"
                c = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op]
                steps.append(f"{a} {op} {b} = {c}\n")
                pool.append((c, f"( {left} {op} {right} )"))
            target, expression = pool[0]
            if 0 < target <= LARGEST_TARGET:
                break
        numbers = " ".join(map(str, given))
        answer = f"### {expression.removeprefix('( ').removesuffix(' )')}"
        data = {"numbers": given, "target": target}
        return Problem(f"Numbers {numbers} . Target {target} .\n", tuple(steps), answer, level, data)

    def verify(self, problem, text):
        lines = after_marks(text)
        said = next((line for line in lines if not is_words(line)), lines[0] if lines else "")
        try:
            value, used = evaluate(without_dress(said))
        except (ValueError, ZeroDivisionError) as e:
            return Verdict(0.0, False, False, f"no expression after ###: {e}")
        if Counter(used) != Counter(problem.data["numbers"]):
            return Verdict(0.0, False, True, f"uses {used}, not each of {problem.data['numbers']} once")
        correct = value == problem.data["target"]
        return Verdict(float(correct), correct, True, "" if correct else f"comes to {value}")

    def codec(self, model):
        from latent.codec import bpe_codec

        return bpe_codec(
            (p.question + "".join(p.steps) + p.answer for p in self.train_batch(0, 0, 2000)), model.vocab_size
        )


SIGNS = str.maketrans({"×": "*", "÷": "/", "·": "*", "∙": "*", "⋅": "*"})
TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)


def typed(text: str) -> str:
    """A text with the signs that a keyboard has."""
    text = re.sub(r"\\(?:times|cdot|ast)(?![a-zA-Z])", "*", fold(text).translate(SIGNS))
    return re.sub(r"\\div(?![a-zA-Z])", "/", text)


def without_dress(said: str) -> str:
    """An expression without LaTeX and typesetting around its numbers and signs, and without "= value" at its end.

    Raises ValueError where the value after = is not what stands before it.
    """
    said = typed(said)
    said = re.sub(r"\\(?:left|right|[()\[\],;:! ])|\$", " ", said).strip().rstrip(" .")
    if (box := re.match(r"\\(?:boxed|fbox)\{", said)) and said.endswith("}"):
        said = said[box.end() : -1]
    said = re.sub(r"\\[dtc]?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}", lambda m: f"({fractions(m[0])})", said)
    said, equals, claim = said.partition("=")
    if equals and evaluate(said)[0] != evaluate(claim.rstrip(" ."))[0]:
        raise ValueError(f"it does not come to {claim.strip():.20}")
    return said.rstrip(" .")


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The value of an expression of whole numbers, + - * / and brackets, and the numbers in it.

    Precedence climbing over at most LONGEST_EXPRESSION characters. Raises ValueError for anything else (a sign before a
    number, numbers side by side, more than DEEPEST brackets in each other), ZeroDivisionError where it divides by zero.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"it is longer than {LONGEST_EXPRESSION} characters")
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        m = TOKEN.match(text, at)
        if m is None:
            raise ValueError("it is more than numbers, + - * / and brackets")
        tokens.append(m[1] or m[2])
        at = m.end()
    tokens.reverse()  # the next one is last
    used: list[int] = []

    def operand(depth: int) -> Fraction:
        token = tokens.pop() if tokens else "its end"
        if token == "(" and depth < DEEPEST:
            value = expression(depth + 1)
            if not tokens or tokens.pop() != ")":
                raise ValueError("a bracket is not closed")
            return value
        if not token.isdigit():
            raise ValueError(f"no number where {token} stands")
        used.append(int(token))
        return Fraction(used[-1])

    def product(depth: int) -> Fraction:
        value = operand(depth)
        while tokens and tokens[-1] in "*/":
            value = value * operand(depth) if tokens.pop() == "*" else value / operand(depth)
        return value

    def expression(depth: int) -> Fraction:
        value = product(depth)
        while tokens and tokens[-1] in "+-":
            value = value + product(depth) if tokens.pop() == "+" else value - product(depth)
        return value

    value = expression(0)
    if tokens:
        raise ValueError(f"it goes on with {tokens[-1]}")
    return value, used
