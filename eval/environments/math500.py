"""MATH-500: competition problems with answers in LaTeX (Hendrycks et al. 2021, arXiv:2103.03874; the 500 of Lightman et
al. 2023, arXiv:2305.20050). Rows are {problem, solution, answer}, the chain is the solution's sentences.

The answer stands after the last ### or in the last \\boxed; a heading (### Step 1) is no answer. It is right when it
says what the reference says (equivalence.py), and with `verifier` "math-verify" also where that library finds two
expressions equal, (x+1)^2 and x^2 + 2x + 1. Where the answer stands, its structure, numbers, units and words are ours
with either. The default is ours alone: the same verdict with every installation, in microseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from eval.environments.answers import LONGEST, TITLE, is_words, last_number, marked
from eval.environments.base import EnvConfig, Finite, Problem, Verdict, check_lengths
from eval.environments.equivalence import same
from eval.environments.files import text_field
from kernels.errors import UserError


@dataclass(frozen=True)
class Math500(EnvConfig):
    """Competition mathematics."""

    name: ClassVar[str] = "math500"
    train: str | None = None
    """A local file, or hub:NAME[:SPLIT[:CONFIG]], to train on."""
    test: str | None = "hub:HuggingFaceH4/MATH-500:test"
    """Problems to test on, in the same ways."""
    max_answer: int = 48
    """Longest answer in tokens."""
    max_chain: int = 512
    """Longest chain in tokens, for methods that write one."""
    verifier: Literal["spelling", "math-verify"] = "spelling"
    """What makes two answers one: how they are written, or math-verify's algebra too (the extra `math`)."""

    def __post_init__(self):
        check_lengths(self)
        if self.verifier not in ("spelling", "math-verify"):
            raise UserError(f"env.verifier must be spelling or math-verify, got {self.verifier!r}")

    def make(self):
        return Math500Environment(self)


class Math500Environment(Finite):
    chain_steps = 16
    algebra = False

    def __init__(self, config: Math500):
        self.answer_tokens, self.chain_tokens = config.max_answer, config.max_chain
        self.algebra = config.verifier == "math-verify"
        if self.algebra and find_spec("math_verify") is None:
            raise UserError("env.verifier math-verify needs the math extra: pip install '.[math]'")
        self.read(config.train, config.test, parse)

    def verify(self, problem, text):
        said = final(text)
        if not said:
            return Verdict(0.0, False, False, "nothing after ### and no \\boxed")
        gold = problem.data["gold"]
        late: list[str] = []
        correct = same(said, gold, self._equal(late) if self.algebra else None)
        reason = f"expected {gold}" + (f" ({late[0]})" if late else "")
        return Verdict(float(correct), correct, True, "" if correct else reason)

    @staticmethod
    def _equal(late: list[str]):
        """math-verify's answer about two expressions. `late` gets the reason where it gives none; no more are asked."""
        from eval.environments.algebra import equal

        def ask(said: str, gold: str) -> bool:
            try:
                return not late and equal(said, gold)
            except TimeoutError as e:
                late.append(str(e))
                return False

        return ask


_LABELLED = re.compile(  # words after a letter, a formula without numbers, or a sign
    r"\(?[a-zA-Z][.)]\s+[^\W\d_]{2}|\$[^$\d]*\$\s+[^\W\d_]{3}|[^\w\s\\$({\[|+.-]\W*[^\W\d_]{2}"
)
_SENTENCE = re.compile(r"\banswers?\s*(?:is|are|:|=)\s*:?\s*", re.IGNORECASE)
_INNER = r"(?:[^$\\]|\\[^()\[\]])"
_MATH = re.compile(rf"\$\$?([^$]+)\$|\\\(({_INNER}+)\\\)|\\\[({_INNER}+)\\\]")


def final(text: str) -> str:
    """The last answer in a text that is marked: after ### or in \\boxed{...}; empty where there is none.

    A box inside the line of a mark is that line's answer. What more text follows, and what parts of a text are called,
    are headings: an answer only where there is no other.
    """
    places = marked(text)
    weak = ""
    for place in reversed(places):
        if place.boxed:
            return place.text
        if "\\boxed" in place.text or "\\fbox" in place.text:
            continue  # its box comes later in this loop, or was never closed
        named = TITLE.match(place.text) or not any(map(str.isalnum, place.text))
        if not _is_heading(place.text) or (place.closing and not named):
            return place.text
        weak = weak or place.text
    return weak


def _is_heading(line: str) -> bool:
    """Whether a line reads as words, with or without a number, letter or sign before them, or has none: "(b) Check"."""
    return is_words(line) or bool(_LABELLED.match(line)) or not any(map(str.isalnum, line))


def last_answer(text: str) -> str:
    """The last thing in a text that looks like an answer; empty where there is none.

    What is marked; else what a sentence says the answer is, a formula first; else the last formula between dollars or
    the last number, whichever comes later.
    """
    if said := final(text):
        return said
    text = text[-TAIL:]
    sentences = list(_SENTENCE.finditer(text))
    if sentences:
        rest = text[sentences[-1].end() :]
        if m := _MATH.match(rest):
            return next(filter(None, m.groups())).strip()
        return last_number(rest[:LONGEST].split("\n")[0]) or re.split(r"[.!?](?:\s|$)|\n", rest)[0].strip()
    formulas = list(_MATH.finditer(text))
    if formulas and not any(c.isdecimal() for c in text[formulas[-1].end() :]):
        return next(filter(None, formulas[-1].groups())).strip()
    return last_number(text)


TAIL = 4 * LONGEST
"""Characters at the end of a text in which an answer without a mark is looked for."""


def parse(row: dict, place: str) -> Problem:
    """A row. Raises UserError naming place and field."""
    problem, gold = text_field(row, "problem", place), text_field(row, "answer", place)
    if len(gold) > LONGEST:
        raise UserError(f"{place}: field 'answer' is longer than {LONGEST} characters")
    solution = row.get("solution") or ""
    if not isinstance(solution, str):
        raise UserError(f"{place}: field 'solution' must be a string, got {solution!r:.40}")
    steps = tuple(s.strip() + "\n" for s in re.split(r"(?<=[.!?])\s+", solution) if s.strip())
    return Problem(problem + "\n", steps, f"### {gold}", 0, {"gold": gold})
