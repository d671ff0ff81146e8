"""The environments as lm-eval tasks: their problems as rows, their verifiers as scorers."""

import json
import re
from collections.abc import Callable
from dataclasses import fields

from datasets import Dataset

from eval import environments
from eval.environments import (
    GSM8K,
    MNNS,
    Countdown,
    Cups,
    Environment,
    Math500,
    Modular,
    Problem,
    ProntoQA,
    ProsQA,
    Reach,
    Signs,
    answers,
)
from eval.environments.countdown import evaluate, typed
from eval.environments.math500 import last_answer
from eval.judge import verify
from kernels.errors import UserError
from latent.plain import fits, hints

_environments: dict[str, Environment] = {}  # of every task that was loaded, by the name that its rows carry


def _rows(config, given: dict) -> dict[str, Dataset]:
    """The test problems of a config, as a data set for lm-eval. `given`: --metadata, with `file`, `items`, `level`."""
    own = {f.name: given[f.name] for f in fields(config) if f.name in given and f.name not in ("train", "test")}
    cls: type = type(config)
    for name, value in own.items():
        own[name] = value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        if not fits(value, hints(cls)[name]):
            raise UserError(f"--metadata {name}: {value!r:.40} is no value of it")
    if not isinstance(given.get("level", 0), int):
        raise UserError(f"--metadata level must be a whole number, got {given['level']!r:.40}")
    if not isinstance(items := given.get("items", 1), int) or items < 1:
        raise UserError(f"--metadata items must be a whole number of at least 1, got {items!r:.40}")
    if not isinstance(given.get("file", ""), str):
        raise UserError(f"--metadata file must be a path in quotes, got {given['file']!r:.40}")
    config = cls(**({f.name: getattr(config, f.name) for f in fields(config)} | own))
    try:
        env = environments.build(config)
    except UserError as e:
        raise UserError(f"{e}: --metadata file=PATH") from None
    if env.turns > 1:
        raise UserError(f"--metadata: lm-eval asks once, this environment in {env.turns} turns: `python -m eval.runs`")
    name = repr(config)
    _environments[name] = env
    level = given.get("level", env.main_level)
    problems = env.problems("test", level, given.get("items", 1000 if is_endless(env) else 10**9))
    return {
        "test": Dataset.from_list(
            [
                {
                    "env": name,
                    "question": p.question,
                    "steps": list(p.steps),
                    "answer": p.answer,
                    "level": p.level,
                    "data": json.dumps(p.data),
                }
                for p in problems
            ]
        )
    }


def is_endless(env: Environment) -> bool:
    """Whether problems are generated, and so have no number."""
    return not isinstance(env, environments.base.Finite)


def _generated(config, given: dict) -> dict[str, Dataset]:
    if "file" in given:
        raise UserError(f"{type(config).__name__} is generated: it takes no file")
    return _rows(config, given)


def cups(**given):
    return _generated(Cups(), given)


def prosqa(**given):
    return _rows(ProsQA(test=given.get("file")), given)


def prosqa_closed(**given):
    return _generated(ProsQA(closed=True), given)


def prontoqa(**given):
    return _rows(ProntoQA(test=given.get("file")), given)


def countdown(**given):
    return _generated(Countdown(), given)


def mnns(**given):
    return _generated(MNNS(), given)


def modular(**given):
    return _generated(Modular(), given)


def signs(**given):
    return _generated(Signs(), given)


def reach(**given):
    return _generated(Reach(), given)


def gsm8k(**given):
    return _words("hub:openai/gsm8k:test:main", given)


def gsm8k_aug(**given):
    return _words("hub:whynlp/gsm8k-aug:test", given)


def gsm_hard(**given):
    return _words("hub:reasoning-machines/gsm-hard:train", given)


def svamp(**given):
    return _words("hub:ChilleD/SVAMP:test", given)


def multiarith(**given):
    return _words("hub:ChilleD/MultiArith:test", given)


def math_500(**given):
    return _rows(Math500(test=given.get("file", Math500().test)), given)


def _words(source: str, given: dict):
    return _rows(GSM8K(train=None, test=given.get("file", source)), given)


def judge(doc: dict, results: list[str]) -> dict[str, float]:
    """The environment's verdict on a completion."""
    data = {k: tuple(map(tuple, v)) if k == "edges" else v for k, v in json.loads(doc["data"]).items()}
    problem = Problem(doc["question"], tuple(doc["steps"]), doc["answer"], doc["level"], data)
    return {"exact_match": float(verify(_environments[doc["env"]], problem, results[0]).correct)}


def _filter(pick: Callable[[str], str]):
    """An lm-eval filter that replaces each completion by what `pick` finds in it, which may be empty."""

    def apply(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
        return [[pick(text) for text in texts] for texts in resps]

    return apply


def _marked(answer: str) -> str:
    """An answer behind the mark that our verifiers look for; empty where there is none."""
    return f"### {' '.join(answer.split())}" if answer else ""


def _arrangement(text: str, answer: str) -> str:
    """The last row of numbers, with or without commas; of an answer of one word, the last number of its length."""
    marked, one = answer.startswith("="), len(answer.split()) == 1
    number = rf"\d{{{len(answer)}}}(?!\d)" if one else r"\d++(?:(?:,\s*|\s+)\d++)+"
    rows = re.findall(rf"(?<!\d){number}", text.replace("=", " ") if marked else text, re.ASCII)
    return rows[-1].replace(",", " ") if rows else ""


def last_arrangement(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
    """An lm-eval filter: the last arrangement in each completion, in as many words as the task's answers have."""
    return [[_arrangement(text, doc["answer"]) for text in texts] for texts, doc in zip(resps, docs)]


TAIL = 10_000  # characters at the end of a text, in which its last number or signs are looked for


def _sum(text: str) -> str:
    """The last whole number, as a sum is written."""
    found = re.findall(r"-?\d+", answers.fold(text[-TAIL:]), re.ASCII)
    return f"={found[-1]}" if found else ""


def _signs(text: str) -> str:
    """The last signs that stand together, with or without commas."""
    runs = re.findall(r"[+-](?:[\s,]*+[+-])*", answers.fold(text[-TAIL:]))
    return " ".join(c for c in runs[-1] if c in "+-") if runs else ""


def _node(text: str) -> str:
    """The last whole number."""
    found = re.findall(r"\d+", text, re.ASCII)
    return found[-1] if found else ""


def _membership(text: str) -> str:
    """The last "X is a y", unless it goes on as in "Tom is a y or z"."""
    found = re.findall(r"([A-Z][a-z]+ is an? [a-z]++)(\s+(?:or|and)\b)?", text)
    return _marked(found[-1][0]) if found and not found[-1][1] else ""


def _truth(text: str) -> str:
    """The last "true" or "false", unless it is negated or an alternative, as in "not true" and "true or false"."""
    found = re.findall(r"(\b(?:not|or|and)\s)?\b(true|false)\b", text, re.IGNORECASE)
    return _marked(found[-1][1].capitalize()) if found and not found[-1][0] else ""


def _expression(text: str) -> str:
    """The last expression with an operator, among the last 10,000 characters."""
    pieces = re.findall(r"[\d(][\d\s+\-*/()]*", typed(text[-10_000:]), re.ASCII)
    for piece in reversed(pieces):
        try:
            if len(evaluate(piece)[1]) > 1:
                return _marked(piece)
        except (ValueError, ArithmeticError):
            continue
    return ""


last_number = _filter(lambda text: _marked(answers.last_number(text)))
last_sum = _filter(_sum)
last_signs = _filter(_signs)
last_node = _filter(_node)
last_membership = _filter(_membership)
last_truth = _filter(_truth)
last_expression = _filter(_expression)
last_latex = _filter(lambda text: _marked(last_answer(text)))
