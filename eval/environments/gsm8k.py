"""GSM8K and its relatives: grade-school word problems, in any of the published formats.

`{question, answer}` with `<<a*b=c>>` annotations and `#### c` (GSM8K, Cobbe et al. 2021, arXiv:2110.14168), or
`{question, steps, answer}` (GSM8K-Aug, Deng et al. 2023, arXiv:2311.01460, as Coconut distributes it); the chain is the
equations alone. To test on, without chains: `{input, target}` (GSM-Hard, Gao et al. 2022, arXiv:2211.10435, whose
numbers count as equal within 0.001), `{Body, Question, Answer}` (SVAMP, Patel et al. 2021, arXiv:2103.07191),
`{question, final_ans}` (MultiArith, Roy & Roth 2015).
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from eval.environments.base import Finite, Problem, Verdict, after_mark

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII)
EQUATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class GSM8K:
    """Grade-school word problems."""

    train: str | None = "hub:openai/gsm8k:train:main"
    """A local file, or hub:NAME[:SPLIT[:CONFIG]]. None = nothing to train on."""
    test: str | None = None
    """Problems to test on, in the same ways. Without it, a tenth of `train`."""
    max_answer: int = 12
    """Longest answer in tokens."""
    max_chain: int = 96
    """Longest chain in tokens, for methods that write one."""

    def __post_init__(self):
        if self.max_answer < 1 or self.max_chain < 1:
            raise ValueError(
                f"env.max_answer and env.max_chain must be at least 1, got {self.max_answer}, {self.max_chain}"
            )


class GSM8KEnvironment(Finite):
    def __init__(self, config: GSM8K):
        self.answer_tokens, self.chain_tokens = config.max_answer, config.max_chain
        self.chain_steps = max(1, config.max_chain // 8)
        self.read(config.train, config.test, parse)

    def verify(self, problem, text):
        said = after_mark(text)
        if not NUMBER.fullmatch(said):
            return Verdict(0.0, False, False, "no number after ###")
        apart = abs(value(said) - value(problem.data["gold"]))
        correct = apart <= Decimal(problem.data.get("within", 0))
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.data['gold']}")


def value(text: str) -> Decimal:
    """A number as written: thousands separators do not count, 3.0 is 3."""
    return Decimal(text.replace(",", ""))


def parse(row: dict, place: str) -> Problem:
    """A row of any format. Raises ValueError naming place and field."""
    row, within = renamed(row, place)
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{place}: field {key!r} must be a string, got {row.get(key)!r:.40}")
    if "steps" in row:
        steps, gold = row["steps"], row["answer"].strip()
        if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
            raise ValueError(f"{place}: field 'steps' must be a list of strings, got {steps!r:.40}")
    else:
        if "####" not in row["answer"]:
            raise ValueError(f"{place}: field 'answer' must end in #### and a number, got {row['answer'][-30:]!r}")
        steps, gold = EQUATION.findall(row["answer"]), row["answer"].rsplit("####", 1)[1].strip()
    if not NUMBER.fullmatch(gold):
        raise ValueError(f"{place}: field 'answer' must give a number, got {gold!r:.40}")
    gold = gold.replace(",", "")
    steps = tuple(step.strip() + "\n" for step in steps)
    return Problem(row["question"].strip() + "\n", steps, f"### {gold}", 0, {"gold": gold} | within)


def renamed(row: dict, place: str) -> tuple[dict, dict]:
    """A row of a set to test on as {question, steps, answer}, and how far from its number an answer may be."""
    for question, answer in ((("input",), "target"), (("Body", "Question"), "Answer"), (("question",), "final_ans")):
        if answer not in row:
            continue
        parts = [row.get(key) for key in question]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{place}: field {question[0]!r} must be a string, got {parts[0]!r:.40}")
        try:
            number = Decimal(str(row[answer]).replace(",", ""))
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            raise ValueError(f"{place}: field {answer!r} must give a number, got {row[answer]!r:.40}")
        if number == number.to_integral_value():
            number = number.to_integral_value()
        within = {"within": "0.001"} if answer == "target" else {}
        return {"question": " ".join(p.strip() for p in parts), "steps": [], "answer": f"{number:f}"}, within
    return row, {}
