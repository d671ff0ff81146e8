"""What the tests of lm-eval share: requests, our tasks, and what a model answers."""

import json

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from eval import harness

PAIRS = [("01 23 12", " 4 2 1 3"), ("01", " 1"), ("13 02 . .", " 2 1"), ("01", " 2"), ("12 01 23 . 01", " 3 4 1 2")]


def asked(kind: str, args: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(args)]


def ours(metadata: dict | None = None) -> TaskManager:
    """Our tasks alone: reading lm-eval's own takes seconds."""
    return TaskManager(include_path=str(harness.TASKS), include_defaults=False, metadata=metadata)


def likelihoods(lm) -> list[tuple[float, bool]]:
    return lm.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)


def texts(lm, limit=4) -> list[str]:
    how = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    return lm.generate_until(asked("generate_until", [(q, how) for q, _ in PAIRS]), disable_tqdm=True)


def whole(lm, limit=4) -> list[str]:
    """Texts that nothing but the limit and the end ends, special tokens and all."""
    how = {"until": [], "max_gen_toks": limit, "do_sample": False}
    return lm.generate_until(asked("generate_until", [(q, how) for q, _ in PAIRS]), disable_tqdm=True)


def pens(n: int) -> str:
    """Rows of word problems with chains, the longest answer and chain far below any task's usual limit."""
    rows = [{"question": f"Ann has {i} pens and buys {i + 1}.", "steps": [f"<<{i}+{i + 1}={2 * i + 1}>>"],
             "answer": str(2 * i + 1)} for i in range(n)]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)
