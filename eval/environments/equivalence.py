"""When two answers in LaTeX say the same.

`structure` reads an answer into lists, tuples, intervals, sets, unions, matrices and leaves, and `same` compares two.
What typesets only is dropped: sizes of brackets, spaces, dollar and per cent signs, wrappers such as \\text, units
after a number. What tells answers apart is kept: 1 2 is not 12, 0,1 is not 01, (1,2) is not [1,2], a row break is not a
space. Numbers are compared by value where the answer is in lowest terms; nothing else is simplified, as in the MATH
paper: 2/4 is not 1/2, 2 + 2 is not 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from eval.environments.answers import TYPESET, closing_brace, fold, fractions, number_at, plain, separated
from eval.environments.latex import DEEPEST, TooDeep, joined, read, spaced
from eval.environments.units import UNITS, changes_number, unit_of

_MATRIX = r"\begin{matrix}"
OPENERS = {"(": ")", "[": "]", r"\{": r"\}", "{": "}", r"\begin": r"\end"}
CLOSERS = set(OPENERS.values())
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
    for _ in range(10):
        before, text = text, plain(text).rstrip(".").strip()
        for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"')):
            if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
                text = text[len(start) : -len(end)]
        text = text.removesuffix("\\\\").rstrip()
        m = re.match(rf"(?:\\(?:boxed|fbox|text|mbox)|{TYPESET})\s*\{{", text)
        if m and closing_brace(text, m.end() - 1, len(text)) == len(text) - 1:
            text = text[m.end() : -1]
        elif m := re.match(rf"(?:{TYPESET})\s+", text):  # \\large 42
            text = text[m.end() :]
        if text == before:
            break
    return text


def structure(text: str) -> Leaf | Parts:
    """What an answer says. Raises TooDeep."""
    said = _without_thousands(separated(fold(unwrap(text)), _TYPESET_COMMA))
    return _structure(read(said), 0)


_TYPESET_COMMA = "\u2063"  # invisible separator: what can be nothing but a comma between thousands


def _without_thousands(text: str) -> str:
    """1,234 as 1234 outside brackets, where a comma parts the places of a tuple; 1{,}234 everywhere."""
    depth, out, end = 0, [], 0
    for m in re.finditer(rf"[(\[{{]|[)\]}}]|(?<![0-9])[0-9]++(?:[,{_TYPESET_COMMA}][0-9]+)+", text):
        if len(m[0]) == 1:
            depth += 1 if m[0] in "([{" else -1
            continue
        numbers = [m[0]] if depth == 0 and _is_thousands(m[0]) else m[0].split(",")
        numbers = [re.sub(r"[^0-9]", "" if _is_thousands(n) else ",", n) for n in numbers]
        out += [text[end : m.start()], ",".join(numbers)]
        end = m.end()
    return "".join(out) + text[end:]


def _is_thousands(number: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,2}(?:[^0-9][0-9]{3})+", number) is not None


def _split(tokens: list[str], at: set[str]) -> list[list[str]]:
    """Parts between separators that stand in no bracket."""
    parts: list[list[str]] = [[]]
    depth = 0
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
            rows = [
                Parts("row", tuple(_structure(c, depth + 1) for c in _split(r, {"&"}))) for r in _split(inner, {"\\\\"})
            ]
            if rows and rows[-1].parts == (Leaf(""),):  # a row break before the end
                rows.pop()
            return Parts(first, tuple(rows))
        parts = _split(inner, {","})
        if first + last in ("{}", r"\{\}") and (len(parts) > 1 or first == r"\{"):
            return Parts("set", tuple(_structure(part, depth + 1) for part in parts))
        if len(parts) > 1:
            return Parts(first + last, tuple(_structure(part, depth + 1) for part in parts))
        if first + last in ("()", "{}") or (first + last == "[]" and inner[:1] == [_MATRIX] and _around(inner)):
            return _structure(inner, depth + 1)
    return _leaf(tokens, variable)


def _variable(tokens: list[str]) -> tuple[str, list[str]]:
    """What stands before = or \\in, if it is one variable, or f(x), and what stands after."""
    at = next((i for i, token in enumerate(tokens[:6]) if token in ("=", r"\in")), 0)
    name = "".join(tokens[:at])
    name = re.sub(r"\\(?:vec|hat|overrightarrow)\{?(\w)\}?|\\text:(?=\w(?:[_(]|$))", r"\1", name)
    one = r"(?:[a-zA-Z]|\\[a-zA-Z]+)"
    if at and tokens.count("=") + tokens.count(r"\in") == 1 and re.fullmatch(rf"{one}(?:_\{{\w+\}}|\({one}\))?", name):
        return name, tokens[at + 1 :]
    return "", tokens


def _leaf(tokens: list[str], variable: str) -> Leaf:
    tokens, unit = _without_unit(tokens[1:] if tokens[:1] == ["+"] else tokens)
    spelled = joined(tokens)
    value, text = _number(spelled)
    if value is not None:
        return Leaf(text, value.value, value.reduced, variable, unit)
    if len(spelled) > 2 and spelled.isalpha():
        spelled = spelled.lower()  # a word, not a product of variables
    over = _split(tokens, {"/"})
    sign = tokens[:1] if tokens and tokens[0] in "+-" else []
    if len(over) == 2 and all(over) and len(_split(over[0][len(sign) :], {"+", "-", "=", r"\pm"})) == 1:
        top, bottom = (
            part[1:-1] if _around(part) and part[0] == "(" else part for part in (over[0][len(sign) :], over[1])
        )
        if top and (len(bottom) == 1 or bottom is not over[1] or bottom[0] == r"\sqrt"):  # 1/2x may be either
            spelled = joined([*sign, r"\frac", "{", *top, "}", "{", *bottom, "}"])
    return Leaf(re.sub(r"\d+(?:\.\d+)?|\.\d+", _decimal, spelled), None, True, variable, unit)


def _decimal(m: re.Match) -> str:
    """A number within an expression without zeros that say nothing."""
    whole, _, part = m[0].partition(".")
    return (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")


def _without_unit(tokens: list[str]) -> tuple[list[str], tuple[str, int] | None]:
    """Without currency, degrees, and a unit at the end, after a number or after an expression that has one."""
    unit = next(((MONEY[t], 1) for t in tokens if t in MONEY), None)
    if tokens and tokens[-1] == "°":
        unit = ("degree", 1)
    tokens = spaced([" " if t in MONEY or t == "°" else t for t in tokens])  # 1\\$2 is not 12
    end, power = len(tokens), 1
    if end > 4 and tokens[-4:-2] == ["^", "{"] and tokens[-2].isdecimal():
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
    if not words or not said or changes_number(said) or begin == 0:
        return tokens, unit
    known = all(w in UNITS or w in ("square", "sq", "cubic", "cu", "per", "of") for w in said)
    before = tokens[:begin]
    if _number(joined(before))[0] is not None or (known and before[-1] not in "+-=<>,(" and any(map(_numeric, before))):
        return before, unit_of(words, power) or unit
    return tokens, unit


def _numeric(token: str) -> bool:
    return token.isdecimal() or token == r"\pi"


def _number(spelled: str):
    text = fractions(spelled)
    found = number_at(text)
    return (found, text) if found and found.end == len(text) else (None, text)
