"""Problems and seeds of an update: functions of the run and the step, so that a resume goes on with the same."""

import random
from functools import lru_cache

from eval.environments.base import Environment, Problem
from kernels.errors import UserError
from train.config import Run


def batch(env: Environment, run: Run, step: int) -> list[Problem]:
    """The problems of an update, over all processes. A run that starts from another does not see its data again, but
    for the few that both are limited to."""
    stream = run.seed if run.init is None else f"{run.seed} after {run.init}"
    if not run.train.problems:
        problems = env.train_batch(stream, step, run.train.batch)
        if len(problems) != run.train.batch:
            raise UserError(
                f"{type(env).__name__}.train_batch was asked for {run.train.batch} problems, batch {step} has "
                f"{len(problems)}"
            )
        return problems
    few = pool(env, run.seed, run.train.problems)
    return random.Random(f"few {stream} {step}").choices(few, k=run.train.batch)


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of one step's randomness on one process. Distinct steps and processes have distinct seeds."""
    return (seed * 1_000_003 + step) * 1_009 + rank + 1


@lru_cache(maxsize=4)
def pool(env: Environment, seed: int, n: int) -> list[Problem]:
    """n problems of the training split, the same whatever learns from them; of a larger n, these and more.

    Raises UserError where the split has fewer.
    """
    found: dict[str, Problem] = {}
    for index in range(1000):
        before = len(found)
        found |= {p.key: p for p in env.train_batch(f"few {seed}", index, 256)}
        if len(found) >= n:
            return list(found.values())[:n]
        if len(found) == before:
            break
    raise UserError(f"train.problems {n}: there are {len(found)} in the training split")
