"""GSM8K and GSM8K-Aug: grade-school word problems, in either published format.

`{question, answer}` with `<<a*b=c>>` annotations and `#### c` (Cobbe et al. 2021, arXiv:2110.14168), or `{question,
steps, answer}` (GSM8K-Aug, Deng et al. 2023, arXiv:2311.01460, as Coconut distributes it). The chain is the equations
alone.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from eval.environments.base import Finite, Problem, Verdict
from eval.environments.files import json_rows

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII)
EQUATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class GSM8K:
    """Grade-school word problems."""

    train: str = "hub:openai/gsm8k:train:main"
    """A local file, or hub:NAME[:SPLIT[:CONFIG]]."""
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
        train = [parse(row, place) for row, place in json_rows(config.train)]
        self.hold(train, [parse(row, place) for row, place in json_rows(config.test)] if config.test else None)

    def verify(self, problem, text):
        said = text.rsplit("###", 1)[-1].strip() if "###" in text else ""
        if not NUMBER.fullmatch(said):
            return Verdict(0.0, False, False, "no number after ###")
        correct = value(said) == value(problem.data["gold"])
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.data['gold']}")

    def codec(self, model):
        from latent.text import bpe_codec

        train = self.splits["train"]
        return bpe_codec((p.question + "".join(p.steps) + p.answer for p in train), model.vocab_size)


def value(text: str) -> Decimal:
    """A number as written: thousands separators do not count, 3.0 is 3."""
    return Decimal(text.replace(",", ""))


def parse(row: dict, place: str) -> Problem:
    """A row of either format. Raises ValueError naming place and field."""
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
    return Problem(row["question"].strip() + "\n", steps, f"### {gold}", 0, {"gold": gold})
