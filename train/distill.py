"""Supervised training: a method's own loss on problems with the teacher's chains."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from eval.environments.base import Environment, Problem
from kernels.errors import UserError
from latent.codec import Codec
from latent.methods import MethodConfig
from latent.text import Batch
from train.loop import Terms, Trainer


def taught(
    env: Environment, method: MethodConfig, problems: Sequence[Problem], codec: Codec, device="cpu", **share
) -> Batch:
    """Problems, already `told`, as the batch that a method is trained on."""
    turns = zip(*(env.turns_of(p)[1:] for p in problems)) if env.turns > 1 else ()
    frontiers = [env.frontiers(p) for p in problems] if method.told == "frontier" else None
    for problem, steps in zip(problems, frontiers or ()):
        if not steps:
            raise UserError(
                f"problem {problem.key} has no frontier, which a method with method.told frontier is taught: "
                f"{type(env).__name__}.frontier gives none of its first step"
            )
    return Batch.of(problems, codec, device, turns, frontiers, **share)


def characters(problem: Problem) -> int:
    """The length of a problem with its chain and answer, by which rows that are padded together are chosen."""
    return sum(map(len, (problem.question, *problem.steps, problem.answer)))


def fit(trainer: Trainer, env: Environment) -> None:
    """Make all updates. Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, engine, c, run = trainer.reasoner.codec, trainer.engine, trainer.config, trainer.record.run

    def update(step: int) -> dict:
        problems = [
            env.told(p, run.method.told, f"told {run.seed} {step} {i}")
            for i, p in zip(trainer.rows, trainer.problems(env, step), strict=True)
        ]
        order = list(range(len(problems)))
        if c.micro_batch:  # rows of like length need little padding; the longest first, for the most memory
            order.sort(key=lambda i: characters(problems[i]), reverse=True)
        size, batches = c.micro_batch or len(problems), []
        for at in range(0, len(order), size):
            some, numbers = zip(*((problems[i], trainer.rows[i]) for i in order[at : at + size]), strict=True)
            share: dict = {"numbers": numbers, "whole": c.batch}
            batches.append(taught(env, run.method, some, codec, engine.device, **share))

        # Every micro-batch draws from a fresh generator: it draws for the whole batch, and takes its own rows' part.
        def counts() -> list:
            with engine.whole():
                drawn = [replace(batch, generator=trainer.generator(step)) for batch in batches]
                return [sum(of_term) for of_term in zip(*map(trainer.method.counts, drawn))]

        def terms(batch: Batch) -> Terms:
            with trainer.precision():
                return engine.module("terms", replace(batch, generator=trainer.generator(step)))

        if trainer.method.begin_update():
            trainer.optimizer.state.clear()
        logged = trainer.descend([partial(terms, batch) for batch in batches], counts)
        norm = logged.pop("grad_norm")
        return {**logged, **trainer.method.learned(logged), "grad_norm": norm}

    trainer.fit(update)
