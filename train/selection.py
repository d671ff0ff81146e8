"""Which weights a run ends with: the last, or those with the best validation accuracy.

Of a curriculum those of its last stage alone are compared: before it the model writes what it is to think.
Problems of the split "valid", evenly over the levels, are answered greedily and judged as test problems are; test
problems play no part. The best weights so far are kept with the trainer's counters, so that checkpoints hold them.
Validation draws nothing at random: the updates are the same with it and without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from eval.environments.base import Environment, Problem
from eval.judge import judge
from kernels.errors import UserError, memory_for
from train.config import RLVR, Run
from train.memory import JUDGING

if TYPE_CHECKING:
    from train.loop import Trainer


class Selection:
    """The validation of one run: call `after` after every update and `choose` at the end, on all processes."""

    def __init__(self, env: Environment, run: Run):
        self.env, self.config, self.batch = env, run.train, run.judge.batch
        self.problems = valid_problems(env, self.config.valid_items) if self.config.valid_every else []

    def after(self, trainer: Trainer) -> None:
        """Validate, where the number of updates asks for it and it has not been done."""
        if self.config.valid_every and trainer.done % self.config.valid_every == 0 and not self._is_done(trainer):
            self._validate(trainer)

    def choose(self, trainer: Trainer) -> dict:
        """Validate the last weights, and load the best ones where they are selected. Returns a part of the result.

        `valid`: the accuracy of the weights that the run ends with, and of how many problems it is.
        """
        if not self.config.valid_every:
            return {}
        if not self._is_done(trainer):
            self._validate(trainer)
        best = trainer.counters.get("best")
        ended_with = best or trainer.counters["last"]
        result: dict = {"valid": {"accuracy": ended_with["valid"], "n": len(self.problems)}}
        if best is not None:
            trainer.method.load_state_dict(best["method"])
            result["selected"] = {"step": best["step"], "valid": best["valid"]}
        return result

    @staticmethod
    def _is_done(trainer: Trainer) -> bool:
        """Whether the weights as they are have been validated."""
        return trainer.counters.get("last", {}).get("step") == trainer.done

    def _validate(self, trainer: Trainer) -> None:
        """Log the validation accuracy, and keep the weights if they are the best so far.

        Among equally good weights the latest are kept: they were trained longest, and RL with a cost on latents makes
        them cheaper.
        """
        engine, counters = trainer.engine, trainer.counters
        with engine.whole(), trainer.precision(), memory_for(*JUDGING):
            items = judge(trainer.reasoner, self.env, self.problems, self.batch, among=engine)
        accuracy = sum(i.correct for i in items) / len(self.problems)
        line = {"step": trainer.done, "valid": accuracy}
        if engine.leads:
            trainer.record.log(line)
        engine.log(line, trainer.done)
        counters["last"], best = line, counters.get("best")
        counts = isinstance(self.config, RLVR) or trainer.method.in_last_stage
        if self.config.select == "best" and counts and (best is None or accuracy >= best["valid"]):
            counters["best"] = {**line, "method": copied(engine.full(trainer.method.state_dict()))}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of weights and buffers in main memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def valid_problems(env: Environment, n: int) -> list[Problem]:
    """About n validation problems, evenly over the levels, fewer where a level has fewer.

    Raises UserError where the environment has none.
    """
    levels = env.levels()
    problems = [p for level in levels for p in env.problems("valid", level, -(-n // len(levels)))]
    if not problems:
        raise UserError("train.valid_every needs problems to validate on: this environment has none")
    return problems
