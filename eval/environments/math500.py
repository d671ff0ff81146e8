"""MATH-500: competition problems with answers in LaTeX (Hendrycks et al. 2021, arXiv:2103.03874; the 500 of Lightman et
al. 2023, arXiv:2305.20050). Rows are {problem, solution, answer}, the chain is the solution's sentences.

An answer is right when it is the reference's after both are brought to one spelling, as the MATH paper judges:
spaces, sizes of brackets, units in \\text, dollar and per cent signs do not count; 1/2, \\frac12, \\dfrac{1}{2} and
0.5 are one number. Nothing is simplified: 2/4 is not 1/2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from eval.environments.base import Finite, Problem, Verdict, after_mark


@dataclass(frozen=True)
class Math500:
    """Competition mathematics."""

    train: str | None = None
    """A local file, or hub:NAME[:SPLIT[:CONFIG]], to train on."""
    test: str | None = "hub:HuggingFaceH4/MATH-500:test"
    """Problems to test on, in the same ways."""
    max_answer: int = 48
    """Longest answer in tokens."""
    max_chain: int = 512
    """Longest chain in tokens, for methods that write one."""


class Math500Environment(Finite):
    chain_steps = 16

    def __init__(self, config: Math500):
        self.answer_tokens, self.chain_tokens = config.max_answer, config.max_chain
        self.read(config.train, config.test, parse)

    def verify(self, problem, text):
        said = final(text)
        if not said:
            return Verdict(0.0, False, False, "nothing after ### and no \\boxed")
        correct = spelt(said) == spelt(problem.data["gold"])
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.data['gold']}")


def final(text: str) -> str:
    """The last answer in a text: after ###, or in \\boxed{...}; empty where there is none."""
    if "###" in text:
        return after_mark(text)
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin + 1 : i].strip()
    return ""


def spelt(answer: str) -> str:
    """One spelling of an answer in LaTeX."""
    s = answer.strip().strip("$").rstrip(".")
    s = re.sub(r"\\(?:left|right|quad|displaystyle)(?![a-zA-Z])|\\[,!;: ]", "", s)
    for mark in ("\\$", "\\%", "%", "^\\circ", "^{\\circ}"):
        s = s.replace(mark, "")
    s = re.sub(r"\\(?:dfrac|tfrac)(?![a-zA-Z])", r"\\frac", s).strip()
    unit = re.fullmatch(r"([^\\a-zA-Z]+)\\text\s*\{\s*([a-zA-Z. ]+?)\s*\}(?:\^\{?\d\}?)?", s)  # 5\text{ cm}^2
    if unit and unit[2].lower().replace(".", "") not in ("am", "pm"):
        s = unit[1]
    s = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", s)
    s = re.sub(r"^[a-zA-Z]\s*(?:=|\\in)\s*", "", s.strip())
    s = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", s)
    s = re.sub(r"\s+", "", s)
    s = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", s)
    s = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", s)
    s = re.sub(r"\\frac\{([^{}]*)\}(\w)", r"\\frac{\1}{\2}", s)
    s = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", s)
    s = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", s)
    if s in ("0.5", ".5", "0.50"):
        return "\\frac{1}{2}"
    if number := re.fullmatch(r"\+?(-?)0*(\d*)(?:\.(\d*?)0*)?", s):
        sign, whole, part = number[1], number[2] or "0", number[3] or ""
        return f"{sign}{whole}" + (f".{part}" if part else "") if any(c.isdigit() for c in s) else s
    return s


def parse(row: dict, place: str) -> Problem:
    """A row. Raises ValueError naming place and field."""
    for key in ("problem", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"{place}: field {key!r} must be a string, got {row.get(key)!r:.40}")
    steps = tuple(s.strip() + "\n" for s in re.split(r"(?<=[.!?])\s+", row.get("solution") or "") if s.strip())
    gold = row["answer"].strip()
    return Problem(row["problem"].strip() + "\n", steps, f"### {gold}", 0, {"gold": gold})
