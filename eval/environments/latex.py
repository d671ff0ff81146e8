"""Answers in LaTeX, compared by what they say: the structure of an answer, and when two are the same.

`structure` reads an answer once, token by token, into lists, tuples, intervals, sets, unions, matrices and leaves, and
`same` compares two. What typesets only is dropped: sizes of brackets, spaces, dollar and per cent signs, wrappers such
as \\text, units after a number. What tells answers apart is kept: 1 2 is not 12, 0,1 is not 01, (1,2) is not [1,2], a row
break is not a space. Numbers are compared by value where the answer is in lowest terms; nothing else is simplified,
as in the MATH paper: 2/4 is not 1/2, 2 + 2 is not 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from eval.environments.answers import fold, fractions, number_at, plain, separated
from eval.environments.units import NO_UNITS, UNITS, unit_of

DEEPEST = 40
"""Brackets and arguments in each other; what is deeper is compared as its characters."""

TOKEN = re.compile(r"\\\\|\\[a-zA-Z]+|\\.|[0-9]+|\s+|.", re.DOTALL)
TYPESETTING = {
    rf"\{name}"
    for name in "left right middle big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits nolimits".split()
}
SPACES = {r"\,", r"\;", r"\:", r"\!", r"\ ", r"\quad", r"\qquad", r"\thinspace", "~"}
TEXT = {
    rf"\{name}"
    for name in "text mbox hbox textrm textbf textit textnormal mathrm mathbf mathit mathsf bold operatorname "
    "boxed fbox".split()
}
SYNONYMS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne",
    "≤": r"\le", "≥": r"\ge", "≠": r"\ne", r"\times": r"\cdot", "*": r"\cdot", "×": r"\cdot", "·": r"\cdot",
    "⋅": r"\cdot", r"\div": "/", "÷": "/", "π": r"\pi", "∞": r"\infty", "√": r"\sqrt", "∪": r"\cup", "∩": r"\cap",
    "±": r"\pm", "∈": r"\in", "θ": r"\theta", "ℝ": r"\mathbb{R}", r"\R": r"\mathbb{R}", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|",
    r"\varnothing": r"\emptyset", "∅": r"\emptyset", r"\to": r"\rightarrow",
}  # fmt: skip
OPENERS = {"(": ")", "[": "]", r"\{": r"\}", "{": "}", r"\begin": r"\end"}
CLOSERS = set(OPENERS.values())
MATRICES = {"pmatrix": "matrix", "bmatrix": "matrix"}  # round and square brackets say the same
MONEY = {r"\$": "dollar", "€": "euro", "£": "pound sterling"}


class Leaf(NamedTuple):
    """An answer without parts: its spelling, its number if it is one, the variable that "x =" names, and its unit."""

    text: str
    value: Fraction | None = None
    reduced: bool = True
    variable: str = ""
    unit: tuple[str, int] | None = None


class Parts(NamedTuple):
    """Several answers: a list, "(" and ")" around a tuple, [ ) around an interval, a set, a union, rows of a matrix."""

    kind: str
    parts: tuple[Leaf | Parts, ...]


class TooDeep(ValueError):
    """More brackets in each other than an answer has."""


def same(said: str, gold: str, equal: Callable[[str, str], bool] | None = None) -> bool:
    """Whether two answers say the same. `equal` is asked about two expressions that are spelled differently."""
    if said.strip() == gold.strip():
        return True
    try:
        return _same(structure(said), structure(gold), equal)
    except TooDeep:
        return "".join(said.split()) == "".join(gold.split())


def _same(said: Leaf | Parts, gold: Leaf | Parts, equal) -> bool:
    if isinstance(said, Parts) and isinstance(gold, Parts):
        if said.kind != gold.kind or len(said.parts) != len(gold.parts):
            return False
        if said.kind not in ("set", "union"):
            return all(_same(a, b, equal) for a, b in zip(said.parts, gold.parts))
        left = list(gold.parts)  # in any order: each part of one takes a part of the other
        for a in said.parts:
            found = next((i for i, b in enumerate(left) if _same(a, b, equal)), None)
            if found is None:
                return False
            left.pop(found)
        return True
    if isinstance(said, Parts) or isinstance(gold, Parts):
        return False
    if said.variable and gold.variable and said.variable != gold.variable:
        return False
    if said.unit and gold.unit and said.unit != gold.unit:
        return False
    if said.text == gold.text:
        return True
    if said.value is not None and gold.value is not None and (said.reduced or said.value != gold.value):
        return said.value == gold.value
    return equal is not None and bool(said.text and gold.text) and equal(said.text, gold.text)


def unwrap(text: str) -> str:
    """An answer without what is around all of it: $ $, \\( \\), \\[ \\], bold marks, \\boxed, a full stop."""
    while True:
        before, text = text, plain(text).rstrip(".").strip()
        for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"')):
            if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
                text = text[len(start) : -len(end)]
        m = re.match(r"\\(?:boxed|fbox|text|mbox|textbf|mathbf|mathrm)\s*\{", text)
        if m and _closing(text, m.end() - 1) == len(text) - 1:
            text = text[m.end() : -1]
        if text == before:
            return text


def _closing(text: str, at: int) -> int:
    """Where the brace that opens at a place closes; -1 where it does not."""
    depth = 0
    for m in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at):
        depth += {"{": 1, "}": -1}.get(m[0], 0)
        if depth == 0:
            return m.start()
    return -1


def structure(text: str) -> Leaf | Parts:
    """What an answer says. Raises TooDeep."""
    said = _without_thousands(separated(fold(unwrap(text))))
    return _structure(_Reader(TOKEN.findall(said)).read(), 0)


def _without_thousands(text: str) -> str:
    """1,234 as 1234 outside brackets, where a comma parts the places of a tuple."""
    depth, out, end = 0, [], 0
    for m in re.finditer(r"[(\[{]|[)\]}]|[0-9]+(?:,[0-9]+)+", text):
        if len(m[0]) == 1:
            depth += 1 if m[0] in "([{" else -1
        elif depth == 0 and re.fullmatch(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+", m[0]):
            out += [text[end : m.start()], m[0].replace(",", "")]
            end = m.end()
    return "".join(out) + text[end:]


class _Reader:
    """Tokens of LaTeX in one spelling: arguments braced, synonyms replaced, spaces dropped except between numbers.

    A text wrapper is one token, "\\text:" and its words.
    """

    def __init__(self, tokens: list[str]):
        self.left = tokens[::-1]  # the next one is last

    def read(self, until: str | None = None, depth: int = 0) -> list[str]:
        """Up to a closing token, which is taken, or to the end."""
        if depth > DEEPEST:
            raise TooDeep
        out: list[str] = []
        while self.left:
            token = self.left.pop()
            token = SYNONYMS.get(token, token)
            if token == until:
                break
            if token in TYPESETTING:
                if self.left and self.left[-1] == ".":  # \left. is no full stop
                    self.left.pop()
            elif token in SPACES or token.isspace():
                if out and out[-1] != " ":
                    out.append(" ")
            elif token in TEXT:
                out.append("\\text:" + " ".join("".join(self.argument(depth, as_it_is=True)).split()))
            elif token == r"\frac":
                out += [token, "{", *self.argument(depth), "}", "{", *self.argument(depth), "}"]
            elif token == r"\sqrt":
                self.spaces()
                if self.left and self.left[-1] == "[":
                    self.left.pop()
                    out += [token, "[", *self.read("]", depth + 1), "]"]
                else:
                    out.append(token)
                out += ["{", *self.argument(depth), "}"]
            elif token in ("^", "_"):
                argument = self.argument(depth, whole_number=True)
                out += ["°"] if argument in ([r"\circ"], ["°"]) else [token, "{", *argument, "}"]
            elif token in (r"\degree", "°"):
                out.append("°")
            elif token in (r"\begin", r"\end"):
                name = "".join(self.argument(depth))
                out.append(f"{token}{{{MATRICES.get(name, name)}}}")
                if name == "array" and token == r"\begin":
                    self.argument(depth)
            elif token == "{":
                out += ["{", *self.read("}", depth + 1), "}"]
            elif token == r"\mathbb":
                out.append(f"\\mathbb{{{''.join(self.argument(depth))}}}")
            elif token not in ("$", r"\%", "%"):
                out.append(token)
        return _spaced(out)

    def spaces(self) -> None:
        while self.left and (self.left[-1].isspace() or self.left[-1] in SPACES):
            self.left.pop()

    def argument(self, depth: int, whole_number: bool = False, as_it_is: bool = False) -> list[str]:
        """What a command takes: a group, or one token; of digits one, unless they may be a whole number."""
        self.spaces()
        if not self.left:
            return []
        token = self.left.pop()
        if token == "{" and as_it_is:
            words, inside = [], 1
            while self.left:
                token = self.left.pop()
                inside += {"{": 1, "}": -1}.get(token, 0)
                if inside == 0:
                    break
                words.append(" " if token in SPACES else "" if token in "{}$" else token)
            return words
        if token == "{":
            return self.read("}", depth + 1)
        if whole_number and token in "+-" and self.left and self.left[-1].isdigit():
            return [token, self.left.pop()]
        if token.isdigit() and not whole_number and len(token) > 1:
            self.left.append(token[1:])
            return [token[0]]
        if token in (r"\frac", r"\dfrac", r"\tfrac", r"\sqrt", r"\mathbb"):
            self.left.append(token)
            inner = _Reader([])
            inner.left = self.left
            return inner.one(depth + 1)
        return [SYNONYMS.get(token, token)]

    def one(self, depth: int) -> list[str]:
        """One command with its arguments."""
        if depth > DEEPEST:
            raise TooDeep
        token = self.left.pop()
        token = SYNONYMS.get(token, token)
        arguments = 2 if token == r"\frac" else 1
        return [token, *(t for _ in range(arguments) for t in ("{", *self.argument(depth), "}"))]


def _spaced(tokens: list[str]) -> list[str]:
    """Without spaces except those that part two numbers."""
    digit = lambda t: t[-1:].isdigit() or t == "."  # noqa: E731
    out: list[str] = []
    for i, token in enumerate(tokens):
        if token != " " or (out and i + 1 < len(tokens) and digit(out[-1]) and digit(tokens[i + 1])):
            out.append(token)
    return out


def _split(tokens: list[str], at: set[str]) -> list[list[str]]:
    """Parts between separators that stand in no bracket."""
    parts, depth = [[]], 0
    for token in tokens:
        depth += (token in OPENERS or token.startswith(r"\begin{")) - (token in CLOSERS or token.startswith(r"\end{"))
        if depth == 0 and token in at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _around(tokens: list[str]) -> bool:
    """Whether the first token opens a bracket that the last one closes."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in OPENERS or token.startswith(r"\begin{")) - (token in CLOSERS or token.startswith(r"\end{"))
        if depth <= 0:
            return depth == 0 and 0 < i == len(tokens) - 1
    return False


def _structure(tokens: list[str], depth: int) -> Leaf | Parts:
    if depth > DEEPEST:
        raise TooDeep
    if depth == 0:
        tokens = ["," if t.lower() in ("\\text:and", "\\text:or") else t for t in tokens]
        tokens = [t for i, t in enumerate(tokens) if t != "," or tokens[i - 1 : i] != [","]]  # ", and" is one comma
    parts = _split(tokens, {","})
    if len(parts) > 1:
        return Parts("list", tuple(_structure(part, depth + 1) for part in parts))
    variable, tokens = _variable(tokens)
    parts = _split(tokens, {r"\cup"})
    if len(parts) > 1:
        return Parts("union", tuple(_structure(part, depth + 1) for part in parts))
    if _around(tokens):
        first, last, inner = tokens[0], tokens[-1], tokens[1:-1]
        if first.startswith(r"\begin{"):
            rows = [Parts("row", tuple(_structure(c, depth + 1) for c in _split(r, {"&"}))) for r in _split(inner, {"\\\\"})]
            if rows and rows[-1].parts == (Leaf(""),):  # a row break before the end
                rows.pop()
            return Parts(first, tuple(rows))
        parts = _split(inner, {","})
        if first + last in ("{}", r"\{\}") and (len(parts) > 1 or first == r"\{"):
            return Parts("set", tuple(_structure(part, depth + 1) for part in parts))
        if len(parts) > 1:
            return Parts(first + last, tuple(_structure(part, depth + 1) for part in parts))
        if first + last in ("()", "{}"):
            return _structure(inner, depth + 1)
    return _leaf(tokens, variable)


def _variable(tokens: list[str]) -> tuple[str, list[str]]:
    """What stands before = or \\in, if it is one variable, or f(x), and what stands after."""
    at = next((i for i, token in enumerate(tokens[:6]) if token in ("=", r"\in")), 0)
    name = "".join(tokens[:at])
    one = r"(?:[a-zA-Z]|\\[a-zA-Z]+)"
    if at and tokens.count("=") + tokens.count(r"\in") == 1 and re.fullmatch(rf"{one}(?:_\{{\w+\}}|\({one}\))?", name):
        return name, tokens[at + 1 :]
    return "", tokens


def _leaf(tokens: list[str], variable: str) -> Leaf:
    tokens, unit = _without_unit(tokens)
    spelled = _joined(tokens)
    value, text = _number(spelled)
    if value is not None:
        return Leaf(text, value.value, value.reduced, variable, unit)
    if len(spelled) > 2 and spelled.isalpha():
        spelled = spelled.lower()  # a word, not a product of variables
    over = _split(tokens, {"/"})
    if len(over) == 2 and all(over) and not {"+", "-", "=", r"\pm"} & set(over[0][1:]):
        sign = over[0][:1] if over[0][0] in "+-" else []
        top, bottom = (part[1:-1] if _around(part) and part[0] == "(" else part for part in (over[0][len(sign) :], over[1]))
        if top and (len(bottom) == 1 or bottom is not over[1] or bottom[0] == r"\sqrt"):  # 1/2x may be either
            spelled = _joined([*sign, r"\frac", "{", *top, "}", "{", *bottom, "}"])
    decimal = lambda m: str(Fraction(m[0])) if "." not in m[0] else f"{m[0].lstrip('0').rstrip('0').rstrip('.') or '0'}"  # noqa: E731
    return Leaf(re.sub(r"\d+(?:\.\d+)?|\.\d+", decimal, spelled), None, True, variable, unit)


def _without_unit(tokens: list[str]) -> tuple[list[str], tuple[str, int] | None]:
    """Without currency, degrees, and a unit at the end, after a number or after an expression that has one."""
    unit = next(((MONEY[t], 1) for t in tokens if t in MONEY), None)
    tokens = [t for t in tokens if t not in MONEY]
    if tokens and tokens[-1] == "°":
        unit = ("degree", 1)
    tokens = [t for t in tokens if t != "°"]
    end, power = len(tokens), 1
    if end > 4 and tokens[-4:-2] == ["^", "{"] and tokens[-2].isdigit() and tokens[-5].startswith("\\text:"):
        end, power = end - 4, int(tokens[-2])
    begin = end - 1
    if end and tokens[begin].startswith("\\text:"):
        words = tokens[begin].removeprefix("\\text:")
    else:
        while begin >= 0 and len(tokens[begin]) == 1 and tokens[begin].isalpha():
            begin -= 1
        begin += 1
        words = "".join(tokens[begin:end]) if end - begin > 1 else ""
        words = words if words in UNITS else ""
    said = re.findall(r"[a-z]+", words.lower().replace(".", ""))
    if not words or not said or NO_UNITS & set(said) or begin == 0:
        return tokens, unit
    known = all(w in UNITS or w in ("square", "sq", "cubic", "cu", "per", "of") for w in said)
    before = tokens[:begin]
    if _number(_joined(before))[0] is not None or (known and before[-1] not in "+-=<>,(" and any(map(_numeric, before))):
        return before, unit_of(words, power) or unit
    return tokens, unit


def _numeric(token: str) -> bool:
    return token.isdigit() or token == r"\pi"


def _number(spelled: str):
    text = fractions(spelled)
    found = number_at(text)
    return (found, text) if found and found.end == len(text) else (None, text)


def _joined(tokens: list[str]) -> str:
    """Tokens as a text that reads back as the same tokens; the words of wrappers without their spaces."""
    out = ""
    for token in tokens:
        token = token.removeprefix("\\text:").replace(" ", "") if token.startswith("\\text:") else token
        out += " " + token if token[:1].isalpha() and re.search(r"\\[a-zA-Z]+$", out[-20:]) else token
    return out.strip()
