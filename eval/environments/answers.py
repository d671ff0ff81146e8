"""Where a completion says its answer, and which number it says: what the verifiers share.

An answer stands after ### (our own mark; GSM8K's #### is one too) or in \\boxed{...}; where there are several, the last
one counts. Everything here scans a text once: no regular expression backtracks over more than one token, and an answer
is at most LONGEST characters, so that a verifier's time is linear in the text. eval/README.md lists the forms.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from math import gcd
from typing import NamedTuple, TypeVar

T = TypeVar("T")
LONGEST = 2000
"""Characters of an answer; what is longer is none."""
LAST = 20
"""Marks, and boxes, that are looked at, from the end of a text."""
WINDOW = 200
"""Characters before and after the last digit of a text in which its last number is looked for."""

LEAD_IN = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s+)?(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?answer\b(?:\s+is\b)?[\s:=]*",
    re.IGNORECASE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
HEADING = re.compile(r"(\d{1,3})[.):]\s+[^\W\d]")
TITLE = re.compile(  # what parts of a text are called
    r"(?:step|part|case|stage|method|approach|solution|problem|question|example)\b|(?:final\s+)?(?:verif|check(?:ing)?\b|"
    r"double.check|conclusion|explanation|summary|remarks?\b|notes?\b|reasoning|analysis|proof\b|simplif|calculation|"
    r"thoughts?\b|result\s*$|given\s*$)",
    re.IGNORECASE,
)

# fonts, sizes and colours of LaTeX, before their argument or what they stand before
FONTS = (
    "mathrm mathbf mathit mathsf mathtt textrm textbf textit textsf texttt textnormal textsc emph underline boldsymbol "
    "bm pmb bold rm bf it sf tt large Large LARGE huge Huge normalsize small"
).split()
TYPESET = rf"\\(?:{'|'.join(FONTS)})(?![a-zA-Z])|\\(?:textcolor|color)\s*\{{\w*\}}"

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SLASHES = "\u2044\u2215"
_MINUSES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_THIN = "\u00a0\u2007\u2009\u200a\u202f"  # spaces that typeset thousands


class Marked(NamedTuple):
    """An answer's text and where it begins; `closing`: nothing but blank lines follows; `boxed`: it is in a box."""

    begin: int
    text: str
    closing: bool
    boxed: bool


def after_marks(text: str) -> list[str]:
    """What the marks ### of a text are followed by on their lines, the last one first."""
    return [place.text for place in reversed(_lines(text))]


def last_read(text: str, read: Callable[[str], T | None]) -> T | None:
    """What `read` finds in the last line after a mark in which it finds anything; a heading has nothing: None."""
    return next((found for line in after_marks(text) if (found := read(line)) is not None), None)


def is_words(line: str) -> bool:
    """Whether a line reads as words, or as a number before words: "Step 1", "2. Solve for x"."""
    return bool(HEADING.match(line) or re.match(r"[^\W\d_]{2}", line))


def marked(text: str) -> list[Marked]:
    """Every answer that is marked, in order: after ### up to the end of the line, and in \\boxed{...}.

    A line that holds nothing but words like "Final answer:" hands over to the next one that is not blank. What is
    longer than LONGEST is left out.
    """
    return sorted(_boxes(text) + _lines(text))


def _lines(text: str) -> list[Marked]:
    """What the last marks are followed by."""
    out, end = [], len(text)
    runs = [(end - m.end(), end - m.start()) for m in islice(re.finditer(r"#{3,}", text[::-1]), LAST)][::-1]
    last = len(text.rstrip())
    for i, (_, begin) in enumerate(runs):
        until = runs[i + 1][0] if i + 1 < len(runs) else end
        line = text.find("\n", begin, until)
        stop = until if line < 0 else line
        said = plain(text[begin:stop]) if stop - begin <= LONGEST else ""
        closes = not said and i > 0 and LEAD_IN.fullmatch(plain(text[runs[i - 1][1] : runs[i][0]]))  # "### Answer ###"
        if (closes or LEAD_IN.fullmatch(said)) and line >= 0:
            rest = re.compile(r"\s*([^\n]*)").match(text, line, until)
            assert rest is not None  # it matches the empty text, too
            said, stop = rest[1] if len(rest[1]) <= LONGEST else "", rest.end()
        said = LEAD_IN.sub("", said, count=1) if LEAD_IN.match(said) else said
        if said:
            out.append(Marked(begin, said.strip(), stop >= last, False))
    return out


def _boxes(text: str) -> list[Marked]:
    """The last boxes that are closed, without those in another one."""
    out: list[Marked] = []
    if "\\boxed" not in text and "\\fbox" not in text:
        return out
    for m in [*BOX.finditer(text)][-LAST:]:
        end = closing_brace(text, m.end() - 1, m.end() + LONGEST)
        said = text[m.end() : end].strip()
        inside = out and m.end() < out[-1].begin + len(out[-1].text)
        if said and end > 0 and not inside:
            out.append(Marked(m.end(), said, False, True))
    return out


def closing_brace(text: str, begin: int, until: int) -> int:
    """Where the brace that opens at a place closes; -1 where it does not before `until`."""
    depth = 0
    for m in BRACE.finditer(text, begin, until):
        depth += {"{": 1, "}": -1}.get(m[0], 0)
        if depth == 0:
            return m.start()
    return -1


_EMPHASIS = re.compile(r"(?<![\w*)`])(?:\*\*|__|`)(?=[^\s*`])|(?<=[^\s*`])(?:\*\*|__|`)(?![\w*(`])")


def plain(text: str) -> str:
    """Without the emphasis of Markdown around words, and without blanks around it all. 2**3 stays as it is."""
    return _EMPHASIS.sub("", text).strip()


class _Folded(dict):
    """Character codes to what they are read as; filled as they come."""

    def __missing__(self, code: int):
        c = chr(code)
        if c in _MINUSES:
            out = "-"
        elif c in _SLASHES:
            out = "/"
        elif c in _THIN:
            out = "\u2009"
        elif unicodedata.category(c) == "Nd":
            out = str(unicodedata.decimal(c))
        elif 0xFF01 <= code <= 0xFF5E:
            out = chr(code - 0xFEE0)
        elif unicodedata.category(c) == "Zs":
            out = " "
        elif unicodedata.category(c) == "Cf":  # invisible
            out = ""
        else:
            out = c
        self[code] = out
        return out


_FOLDED = _Folded({code: chr(code) for code in range(128)})


def fold(text: str) -> str:
    """One spelling of characters: full-width forms, digits of other scripts, minus signs, exponents, one half."""
    if text.isascii():
        return text
    text = text.translate(_FOLDED)
    text = re.sub(r"[⁰¹²³⁴-⁹⁻⁺]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    return re.sub(rf"(\d?)([{_VULGAR}])", lambda m: m[1] + (" " if m[1] else "") + _vulgar(m[2]), text)


@lru_cache(maxsize=64)
def _vulgar(c: str) -> str:
    return unicodedata.normalize("NFKC", c).replace("\u2044", "/")


class Number(NamedTuple):
    """A number, where its text ends, and whether it is written in lowest terms."""

    value: Fraction
    end: int
    reduced: bool


def _power_of_ten(name: str) -> str:
    exponent = r"[+-]?\d{1,3}"
    return rf"10\s*(?:\^|\*\*)\s*(?:\{{\s*(?P<{name}_braced>{exponent})\s*\}}|(?P<{name}>{exponent})(?!\d))"


_DIGITS = r"\d[\d,]*(?:\.\d+)?|\.\d+"  # thousands are checked afterwards: a pattern that does would be quadratic
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:{_power_of_ten('power')}"
    r"|(?P<whole>\d+) +(?P<part>\d+)/(?P<parts>\d+)"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    rf"|(?P<digits>{_DIGITS})"
    rf"(?:[eE](?P<e>[+-]?\d{{1,3}})(?!\w)|\s*(?:×|\*|x|\\times|\\cdot|·)\s*{_power_of_ten('times')})?)",
    re.ASCII,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_SEPARATOR = re.compile(
    r"(?<=\d)(?:\s*\{,\}\s*(?:\\!\s*)?|,\s*\\!\s*|\\thinspace\s*|\\[,;:! ]|~|\u2009)(?=\d{3}(?!\d))"
)
_SPACED_COMMA = re.compile(r"(?<=\d),\s*\\,\s*(?=\d{3}(?!\d))")
_FRAC = re.compile(r"(\d?)\s*\\[dtc]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\s*\d)")


def separated(text: str, by: str = ",") -> str:
    """Thousands separators of LaTeX and typesetting as `by`: 11{,}111, 11,\\!111, 11\\,111, thin spaces."""
    return _SPACED_COMMA.sub(",", _SEPARATOR.sub(by, text))


def fractions(text: str) -> str:
    """\\frac{1}{2} of whole numbers as 1/2, after a digit as the second half of a mixed number."""
    return _FRAC.sub(lambda m: f"{m[1]}{' ' if m[1] else ''}{m[2] or m[3]}/{m[4] or m[5]}", text)


def number_at(text: str, begin: int = 0) -> Number | None:
    """The number that begins at a place of a folded text; None where none does.

    Digits with or without thousands commas, decimals, 1e3, 1.5 x 10^3, 10^3, 1/2, 3 1/2. A comma that does not part
    thousands ends it: 1,2 is 1 and more.
    """
    m = NUMBER.match(text, begin)
    return read_number(m) if m else None


def read_number(m: re.Match) -> Number | None:
    """The number of a match of NUMBER; None where it divides by zero."""
    sign = -1 if m["sign"] == "-" else 1
    if m["parts"]:
        whole, part, parts = int(m["whole"]), int(m["part"]), int(m["parts"])
        if not parts:
            return None
        return Number(sign * (whole + Fraction(part, parts)), m.end(), part < parts and gcd(part, parts) == 1)
    if m["under"]:
        over, under = int(m["over"]), int(m["under"])
        return Number(sign * Fraction(over, under), m.end(), gcd(over, under) == 1 < under) if under else None
    exponent = m["power"] or m["power_braced"]
    if exponent:
        return Number(sign * Fraction(10) ** int(exponent), m.end(), True)
    digits, end = m["digits"], m.end()
    if digits[-1] == ",":  # of the sentence
        digits = digits.rstrip(",")
        end = m.start("digits") + len(digits)
    if "," in digits and not _THOUSANDS.fullmatch(digits):
        digits = digits.partition(",")[0]
        return Number(Fraction(sign * int(digits)), m.start("digits") + len(digits), True)
    exponent = m["e"] or m["times"] or m["times_braced"] or "0"
    return Number(sign * Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent), end, True)


def last_number(text: str) -> str:
    """The last number of a text as it is written there, folded; empty without one."""
    digit = re.search(rf"[\d{_VULGAR}]", text[::-1])
    if digit is None:
        return ""
    at = len(text) - digit.end()
    said = fractions(separated(fold(text[max(0, at - WINDOW) : at + WINDOW])))
    found = None
    for m in NUMBER.finditer(said):
        found = m
    if found is None:
        return ""
    whole = (found["digits"] or "").rstrip(",")
    if "," in whole and not _THOUSANDS.fullmatch(whole):  # a list, of which the last counts
        return whole.rpartition(",")[2]
    return found[0].rstrip(",")
