"""GSM8K and its relatives: grade-school word problems, in any of the published formats.

`{question, answer}` with `<<a*b=c>>` annotations and `#### c` (GSM8K, Cobbe et al. 2021, arXiv:2110.14168), or
`{question, steps, answer}` (GSM8K-Aug, Deng et al. 2023, arXiv:2311.01460, as Coconut distributes it); the chain is the
equations alone. To test on, without chains: `{input, target}` (GSM-Hard, Gao et al. 2022, arXiv:2211.10435, whose
numbers count as equal within 0.001), `{Body, Question, Answer}` (SVAMP, Patel et al. 2021, arXiv:2103.07191),
`{question, final_ans}` (MultiArith, Roy & Roth 2015).

The answer is the number after the last ### or in the last \\boxed, with units, currency or a sentence after it, and is
compared by value. It is none where the line offers two (42 or 43, 10-20, 1,2). On completions with one answer this is
the verdict of lm-eval's `gsm8k`; eval/README.md lists where it is not, and why.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import ClassVar

from eval.environments.answers import (
    HEADING,
    LONGEST,
    TITLE,
    TYPESET,
    fold,
    fractions,
    marked,
    number_at,
    plain,
    separated,
)
from eval.environments.base import EnvConfig, Finite, Problem, Verdict, check_lengths
from eval.environments.files import steps_field, text_field
from kernels.errors import UserError

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII)
EQUATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class GSM8K(EnvConfig):
    """Grade-school word problems."""

    name: ClassVar[str] = "gsm8k"
    train: str | None = "hub:openai/gsm8k:train:main"
    """A local file with a JSON object a line, {"question", "answer": "... #### 7"} or {"question", "steps", "answer"},
    or hub:NAME[:SPLIT[:CONFIG]]. None = nothing to train on."""
    test: str | None = None
    """Problems to test on, in the same ways. Without it, a tenth of `train`."""
    max_answer: int = 12
    """Longest answer in tokens."""
    max_chain: int = 96
    """Longest chain in tokens, for methods that write one."""

    def __post_init__(self):
        check_lengths(self)

    def make(self):
        return GSM8KEnvironment(self)


class GSM8KEnvironment(Finite):
    def __init__(self, config: GSM8K):
        self.answer_tokens, self.chain_tokens = config.max_answer, config.max_chain
        self.chain_steps = max(1, config.max_chain // 8)
        self.read(config.train, config.test, parse)

    def verify(self, problem, text):
        said = answer(text)
        if said is None:
            return Verdict(0.0, False, False, "no single number after ### or in \\boxed")
        apart = abs(said - Fraction(problem.data["gold"]))
        correct = apart <= Fraction(problem.data.get("within", 0))
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.data['gold']}")


class SeveralNumbers(ValueError):
    """A line offers more than one number as its answer."""


def answer(text: str) -> Fraction | None:
    """The last marked number of a completion. None without one, and where the last line with numbers has several."""
    places = [(clean(place.text), place.boxed) for place in marked(text)]
    numbered = {int(m[1]) for said, boxed in places if not boxed and (m := HEADING.match(said))}
    headings = {n for n in numbered if n == 1 or n - 1 in numbered or n + 1 in numbered}  # "### 2. Subtract"
    for said, boxed in reversed(places):
        heading = None if boxed else HEADING.match(said)
        if heading and (int(heading[1]) in headings or TITLE.match(said, heading.end() - 1)):
            continue
        try:
            found = single_number(said)
        except SeveralNumbers:
            return None
        if found is not None:
            return found
    return None


_LABEL = re.compile(r"[^\W\d][^\W\d_]*(?: [^\W\d][^\W\d_]*){0,5}\s*:\s*")  # "Total cost:"
_CURRENCY = re.compile(r"([-+]?)\s*(?:US\s*)?(?:[$€£¥₹]|(?:USD|EUR|GBP|INR|Rs\.?)(?![a-z]))\s*")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?:\s|$)")
_GOES_ON = re.compile(  # a list, a range, an operation, another number, a symbol
    r"\s*[-,:/<>~&|]?\s*[-+]?[$€£¥₹]?\.?\d|\.[-+]?\d|\s*(?:[+*×÷·^±≤≥]|\\[a-zA-Z])|\s*x\s*[$€£¥₹]?\.?\d|k\b"
    r"|[a-z]\s*[-+*]\s*\d|\s*;\s*[-+]?[$€£¥₹]?\.?\d[\d.,]*\s*$"
)
_OPERATED = re.compile(r"(?:[+*×÷]|(?<=\s)/|\bx\b)\s*[$€£¥₹]?\.?\d")  # "40 minutes + 2 minutes"
_ASIDE = re.compile(r"\(|,\s|[.!?;](?:\s|$)")  # where what says the number ends
_ANOTHER = re.compile(
    r"\b(?:or|to|and|through|versus|vs)\b\W{0,3}(?:\w+ ){0,2}?[-+$€£¥₹]{0,2}\.?\d|\bor\s+(?:more|less|so)\b"
    r"|\band\s+(?:a|one)\s+(?:half|third|quarter)\b(?!\s+of\b)"
)


def clean(said: str) -> str:
    """A line without the dress of its number: emphasis, boxes, LaTeX's dollars and brackets; characters folded."""
    said = fractions(separated(fold(plain(said))))
    said = re.sub(r"^([*_\"'])(.+)\1$|^\[(.+)\]$", lambda m: m[2] or m[3], said)
    said = re.sub(r"\\(?=[$%])|\^\{?\\circ\}?", "", said)
    said = re.sub(rf"{TYPESET}|\\(?:boxed|fbox|text|mbox|q?quad)(?![a-zA-Z])|\\[()\[\],;:! ]", " ", said)
    said = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "×", said)
    said = re.sub(r"\^\{\s*([-+]?\d{1,3})\s*\}", r"^\1", said)
    said = re.sub(r"[{}]|\$(?!\s*[-+.\d])", " ", said)
    return said.strip()


def single_number(said: str) -> Fraction | None:
    """The number that a cleaned line says first, None where it begins with none.

    An equation counts for its sides that are single numbers, which must agree; before its last side any other number
    makes several. What follows the number in its sentence may be words and other numbers. Raises SeveralNumbers where
    it is a range, a list, an operation or an alternative.
    """
    if "=" in said:
        values, several = set(), False
        sides = said.split("=")
        for i, side in enumerate(sides, 1):
            try:
                if is_worked(side, last=i == len(sides)):
                    raise SeveralNumbers
                values.add(single_number(side.strip()))
            except SeveralNumbers:
                several = True
        values -= {None}
        if len(values) > 1 or (several and not values):
            raise SeveralNumbers
        return values.pop() if values else None
    label = _LABEL.match(said)
    rest = said[label.end() :] if label else said
    if rest[:1] == "(" and rest[-1:] == ")":
        rest = rest[1:-1].strip()
    currency = _CURRENCY.match(rest)
    rest = rest[currency.end() :] if currency else rest
    found = number_at(rest)
    if found is None:
        return None
    value, rest = found.value, rest[found.end :]
    if scale := _SCALE.match(rest):
        value, rest = value * _SCALES[scale[1].lower()], rest[scale.end() :]
    if label and len(rest.split()) > 3:
        return None  # "Problem: 42 pens are shared by ..." is a heading
    end = _SENTENCE_END.search(rest)
    if _GOES_ON.match(rest) or _ANOTHER.search(rest, 0, end.start() if end else len(rest)):
        raise SeveralNumbers
    return -value if currency and currency[1] == "-" else value


def is_worked(side: str, last: bool) -> bool:
    """Whether a side of an equation works its number out: by an operation and, before the last side, of several."""
    first, *_ = _ASIDE.split(side.strip(), maxsplit=1)
    digit = re.search(r"\.?\d", first)
    found = number_at(first, digit.start()) if digit else None
    rest = first[found.end :] if found else ""
    return bool(_OPERATED.search(rest)) or (not last and bool(re.search(r"\d", rest)))


def parse(row: dict, place: str) -> Problem:
    """A row of any format. Raises UserError naming place and field."""
    row, within = renamed(row, place)
    question, said = text_field(row, "question", place), text_field(row, "answer", place)
    if "steps" in row:
        steps, gold = steps_field(row, place), said
    else:
        if "####" not in said:
            raise UserError(f"{place}: field 'answer' must end in #### and a number, got {said[-30:]!r}")
        steps, gold = EQUATION.findall(said), said.rsplit("####", 1)[1].strip()
    if len(gold) > LONGEST or not NUMBER.fullmatch(gold):
        raise UserError(f"{place}: field 'answer' must give a number, got {gold!r:.40}")
    gold = gold.replace(",", "")
    return Problem(question + "\n", tuple(step + "\n" for step in steps), f"### {gold}", 0, {"gold": gold} | within)


def renamed(row: dict, place: str) -> tuple[dict, dict]:
    """A row of a set to test on as {question, steps, answer}, and how far from its number an answer may be."""
    for question, answer in ((("input",), "target"), (("Body", "Question"), "Answer"), (("question",), "final_ans")):
        if answer not in row:
            continue
        parts = [row.get(key) for key in question]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise UserError(f"{place}: field {question[0]!r} must be a string, got {parts[0]!r:.40}")
        try:
            number = Decimal(str(row[answer]).replace(",", ""))
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or abs(number.adjusted()) > 400:  # as digits it would fill the memory
            raise UserError(f"{place}: field {answer!r} must give a number, got {row[answer]!r:.40}")
        if number == number.to_integral_value():
            number = number.to_integral_value()
        within = {"within": "0.001"} if answer == "target" else {}
        return {"question": " ".join(text.strip() for text in texts), "steps": [], "answer": f"{number:f}"}, within
    return row, {}
