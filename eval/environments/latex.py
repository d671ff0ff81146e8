"""LaTeX as tokens in one spelling: what typesets only is dropped, arguments are in braces, synonyms are one."""

from __future__ import annotations

import re

from eval.environments.answers import FONTS

DEEPEST = 40
"""Brackets and arguments in each other; what is deeper is compared as its characters."""

TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[0-9]+|\s+|.", re.DOTALL)
TYPESETTING = {
    rf"\{name}"
    for name in "left right middle big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits nolimits".split()
}
SPACES = {r"\,", r"\;", r"\:", r"\!", r"\ ", r"\quad", r"\qquad", r"\thinspace", "~", r"\hline"}
TEXT = {rf"\{name}" for name in "text mbox hbox operatorname boxed fbox".split()} | {
    rf"\{name}" for name in FONTS if name.startswith(("text", "math", "bold", "bm", "pmb", "under", "emph"))
}
SWITCHES = {rf"\{name}" for name in FONTS} - TEXT  # of the rest of a group
LENGTH = re.compile(r"-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)")
SYNONYMS = {
    r"\cr": r"\\", r"\newline": r"\\", r"\tabularnewline": r"\\", r"\leqslant": r"\le", r"\geqslant": r"\ge",
    r"\bar": r"\overline",
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne",
    "≤": r"\le", "≥": r"\ge", "≠": r"\ne", r"\times": r"\cdot", "*": r"\cdot", "×": r"\cdot", "·": r"\cdot",
    "⋅": r"\cdot", r"\div": "/", "÷": "/", "π": r"\pi", "∞": r"\infty", "√": r"\sqrt", "∪": r"\cup", "∩": r"\cap",
    "±": r"\pm", "∈": r"\in", "θ": r"\theta", "ℝ": r"\mathbb{R}", r"\R": r"\mathbb{R}", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|",
    r"\varnothing": r"\emptyset", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    "∅": r"\emptyset", r"\to": r"\rightarrow",
}  # fmt: skip
MATRICES = dict.fromkeys(("pmatrix", "bmatrix", "smallmatrix", "array"), "matrix")  # whatever its brackets are


_HALF_OF_DAY = re.compile(r"(?<![a-zA-Z])([ap])\.?\s?m(?![a-zA-Z])\.?", re.IGNORECASE)


class TooDeep(ValueError):
    """More brackets in each other than an answer has."""


def read(text: str) -> list[str]:
    """The tokens of a text. Raises TooDeep."""
    return _Reader(TOKEN.findall(text)).read()


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
                out.append(self.words(depth))
            elif token in SWITCHES:
                out.append(" ")
            elif token in (r"\color", r"\textcolor"):
                self.argument(depth)
            elif token == r"\\":
                self.after_break()
                out.append(token)
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
                if argument[1:2] == ["/"] and len(argument) == 3:
                    argument = [r"\frac", "{", argument[0], "}", "{", argument[2], "}"]
                out += ["°"] if argument in ([r"\circ"], ["°"]) else [token, "{", *argument, "}"]
            elif token in (r"\degree", "°"):
                out.append("°")
            elif token in (r"\begin", r"\end"):
                name = "".join(self.argument(depth, as_it_is=True)).rstrip("*")
                out.append(f"{token}{{{MATRICES.get(name, name)}}}")
                if name == "array" and token == r"\begin":
                    self.argument(depth)
            elif token == "{" and self.left and self.left[-1] in SWITCHES:
                self.left[-1] = "{"  # {\rm cm} as \text{cm}
                out.append(self.words(depth))
            elif token == "{":
                inner = self.read("}", depth + 1)
                out += inner if inner in ([":"], [","]) else ["{", *inner, "}"]
            elif token == r"\mathbb":
                out.append(f"\\mathbb{{{''.join(self.argument(depth))}}}")
            elif token in ("$", r"\%", "%", "\\"):  # the last is half of "\\ " at the end
                out.append(" ")
            else:
                out.append(token)
        out = spaced(out)
        if r"\over" in out:
            at = out.index(r"\over")
            return [r"\frac", "{", *out[:at], "}", "{", *out[at + 1 :], "}"]
        return out

    def words(self, depth: int) -> str:
        """A text wrapper's argument as one token."""
        words = " ".join("".join(self.argument(depth, as_it_is=True)).split())
        if words in (r"\%", "%"):
            return " "
        return r"\$" if words == r"\$" else "\\text:" + _HALF_OF_DAY.sub(lambda m: f"{m[1]}m".lower(), words)

    def after_break(self) -> None:
        """Drop what a row break takes: a star, and a length in square brackets."""
        if self.left[-1:] == ["*"]:
            self.left.pop()
        if self.left[-1:] == ["["]:
            ahead = "".join(self.left[:-12:-1])
            length, bracket, _ = ahead[1:].partition("]")
            if bracket and LENGTH.fullmatch(length.strip()):
                while self.left.pop() != "]":
                    pass

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
        if whole_number and token in "+-" and self.left and self.left[-1].isdecimal():
            return [token, self.left.pop()]
        if token.isdecimal() and not whole_number and len(token) > 1:
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


def spaced(tokens: list[str]) -> list[str]:
    """Without spaces except those that part two numbers."""
    out: list[str] = []
    for i, token in enumerate(tokens):
        if token != " " or (out and i + 1 < len(tokens) and _of_number(out[-1]) and _of_number(tokens[i + 1])):
            out.append(token)
    return out


def _of_number(token: str) -> bool:
    return token[-1:].isdecimal() or token == "."


def joined(tokens: list[str]) -> str:
    """Tokens as a text that reads back as the same tokens; the words of wrappers without their spaces."""
    out = ""
    for token in tokens:
        token = token.removeprefix("\\text:").replace(" ", "") if token.startswith("\\text:") else token
        out += " " + token if token[:1].isalpha() and re.search(r"\\[a-zA-Z]+$", out[-20:]) else token
    return out.strip()
