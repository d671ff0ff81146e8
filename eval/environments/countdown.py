"""Countdown: reach a target with the four operations from a few numbers, each used exactly once (Gandhi et al. 2024,
arXiv:2404.03683; as TinyZero has it, all numbers count).

The chain is the operations one by one, the answer one expression. Any expression that is right is correct, not only
the oracle's.
"""

import ast
import random
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from eval.environments.base import Generated, Problem, Verdict, after_mark

LARGEST_TARGET = 999


@dataclass(frozen=True)
class Countdown:
    """Reach a target from a few numbers."""

    numbers: int = 4
    """Numbers in a problem of the hardest level; the easiest has 2."""
    largest: int = 99
    """Largest number given."""

    def __post_init__(self):
        if not 2 <= self.numbers <= 6:
            raise ValueError(f"env.numbers must be in 2..6, got {self.numbers}")
        if not 10 <= self.largest <= LARGEST_TARGET:
            raise ValueError(f"env.largest must be in 10..{LARGEST_TARGET}, got {self.largest}")


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
        said = after_mark(text)
        try:
            value, used = evaluate(said)
        except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError) as e:
            return Verdict(0.0, False, False, f"no expression after ###: {e}")
        if Counter(used) != Counter(problem.data["numbers"]):
            return Verdict(0.0, False, True, f"uses {used}, not each of {problem.data['numbers']} once")
        correct = value == problem.data["target"]
        return Verdict(float(correct), correct, True, "" if correct else f"comes to {value}")

    def codec(self, model):
        from latent.text import bpe_codec

        return bpe_codec(
            (p.question + "".join(p.steps) + p.answer for p in self.train_batch(0, 0, 2000)), model.vocab_size
        )


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The value of an expression of whole numbers, + - * / and brackets, and the numbers in it.

    Raises ValueError or SyntaxError for anything else, ZeroDivisionError where it divides by zero.
    """
    if not re.fullmatch(r"[\d\s+\-*/()]{1,200}", text, re.ASCII):
        raise ValueError("it is more than numbers, + - * / and brackets, or longer than 200 characters")
    used: list[int] = []

    def walk(node) -> Fraction:
        match node:
            case ast.Expression(body=body):
                return walk(body)
            case ast.Constant(value=int() as n) if not isinstance(n, bool):
                used.append(n)
                return Fraction(n)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return walk(left) + walk(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return walk(left) - walk(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return walk(left) * walk(right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return walk(left) / walk(right)
        raise ValueError(f"{type(node).__name__} is not allowed")

    return walk(ast.parse(text, mode="eval")), used
