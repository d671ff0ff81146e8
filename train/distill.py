"""Supervised training: a method's own loss on problems with the teacher's chains."""

from dataclasses import replace
from functools import partial

from eval.environments.base import Environment, iterate
from latent.text import Batch
from train.loop import Terms, Trainer


def fit(trainer: Trainer, env: Environment) -> None:
    """Make all updates. Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, engine, c = trainer.reasoner.codec, trainer.engine, trainer.config

    def update(step: int) -> dict:
        problems, batches, first = trainer.problems(env, step), [], trainer.rows[0]
        for part in iterate(problems, c.micro_batch or len(problems)):
            turns = zip(*(env.turns_of(p)[1:] for p in part))
            batches.append(Batch.of(part, codec, engine.device, turns, first=first, whole=c.batch))
            first += len(part)

        # Every micro-batch draws from a fresh generator: it draws for the whole batch, and takes its own rows' part.
        def counts() -> list:
            with engine.whole():
                drawn = [replace(batch, generator=trainer.generator(step)) for batch in batches]
                return [sum(of_term) for of_term in zip(*map(trainer.method.counts, drawn))]

        def terms(batch: Batch) -> Terms:
            with trainer.precision():
                return engine.call("terms", replace(batch, generator=trainer.generator(step)))

        if trainer.method.begins_stage:
            trainer.optimizer.state.clear()
        logged = trainer.descend([partial(terms, batch) for batch in batches], counts)
        norm = logged.pop("grad_norm")
        return {**logged, **trainer.method.learned(logged), "grad_norm": norm}

    trainer.fit(update)
