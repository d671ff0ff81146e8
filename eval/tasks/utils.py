"""The environments as lm-eval tasks: their problems as rows, their verifiers as scorers."""

import json
import re
from dataclasses import fields

from datasets import Dataset

from eval import environments
from eval.environments import GSM8K, Countdown, Cups, Environment, Math500, Problem, ProntoQA, ProsQA
from eval.environments.countdown import evaluate
from eval.judge import verify

_made: dict[str, Environment] = {}  # the environment of each task that was loaded, by what stands in its rows


def _rows(config, given: dict) -> dict[str, Dataset]:
    """The test problems of a config as lm-eval wants them. `given`: --metadata, with `file`, `items`, `level`."""
    own = {f.name: given[f.name] for f in fields(config) if f.name in given and f.name not in ("train", "test")}
    config = type(config)(**({f.name: getattr(config, f.name) for f in fields(config)} | own))
    try:
        env = environments.build(config)
    except ValueError as e:
        raise ValueError(f"{e}: --metadata file=PATH") from None
    name = repr(config)
    _made[name] = env
    level = given.get("level", env.main_level)
    problems = env.problems("test", level, int(given.get("items", 1000 if config_is_endless(env) else 10**9)))
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


def config_is_endless(env: Environment) -> bool:
    return not isinstance(env, environments.base.Finite)


def _generated(config, given: dict) -> dict[str, Dataset]:
    if "file" in given:
        raise ValueError(f"{type(config).__name__} is generated: it takes no file")
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
    return {"exact_match": float(verify(_made[doc["env"]], problem, results[0]).correct)}


def _last(pattern: str, put: str = "### {}"):
    """A filter: the last match of a pattern in each completion, in the form that the verifier asks for."""

    def apply(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
        found = [[re.findall(pattern, text) for text in texts] for texts in resps]
        return [
            [put.format(match[-1].rstrip(".,").replace("$", "")) if match else "" for match in row] for row in found
        ]

    return apply


last_number = _last(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
last_arrangement = _last(r"\d(?: \d)+", "{}")
last_membership = _last(r"[A-Z][a-z]+ is an? [a-z]+")


def last_truth(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
    """A filter: the last "true" or "false" in each completion."""
    found = [[re.findall(r"\b(?:true|false)\b", text, re.IGNORECASE) for text in texts] for texts in resps]
    return [[f"### {match[-1].capitalize()}" if match else "" for match in row] for row in found]


def last_expression(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
    """A filter: the last thing in each completion that is an expression with an operation in it."""

    def pick(text: str) -> str:
        for said in reversed(re.findall(r"[\d(][\d\s+\-*/()]*", text)):
            try:
                if len(evaluate(said.strip())[1]) > 1:
                    return f"### {said.strip()}"
            except (ValueError, SyntaxError, ArithmeticError):
                continue
        return ""

    return [[pick(text) for text in texts] for texts in resps]


def last_latex(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
    """A filter: what is in the last \\boxed or after the last ###, else the last number."""
    from eval.environments.math500 import final

    numbers = last_number(resps, docs)
    return [
        [f"### {final(text)}" if final(text) else number for text, number in zip(texts, row)]
        for texts, row in zip(resps, numbers)
    ]
