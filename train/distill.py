"""Supervised training: a method's own loss on problems with the teacher's chains."""

from dataclasses import replace
from functools import partial

import torch

from eval.environments.base import Environment, iterate
from latent.text import Batch
from train.loop import Terms, Trainer


def fit(trainer: Trainer, env: Environment) -> None:
    """Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, engine, c = trainer.reasoner.codec, trainer.engine, trainer.config

    def update(step: int) -> dict:
        problems, batches, first = trainer.problems(env, step), [], trainer.own()[0]
        for some in iterate(problems, c.micro_batch or len(problems)):
            turns = zip(*(env.turns_of(p)[1:] for p in some))
            batches.append(Batch.of(some, codec, engine.device, turns, first=first, whole=c.batch))
            first += len(some)

        def drawing(batch: Batch) -> Batch:  # every micro-batch from the start: what is drawn is the whole batch's
            return replace(batch, generator=trainer.drawing(step))

        def terms(batch: Batch) -> Terms:
            with torch.autocast(engine.device.type, torch.bfloat16, enabled=trainer.record.run.model.bf16):
                return engine.call("terms", drawing(batch))

        def counts() -> list:
            with engine.whole():
                return [sum(of_term) for of_term in zip(*(trainer.method.counts(drawing(b)) for b in batches))]

        if trainer.method.begins_stage:
            trainer.optimizer.state.clear()
        logged = trainer.descend([partial(terms, batch) for batch in batches], counts)
        norm = logged.pop("grad_norm")
        return {**logged, **trainer.method.learned(logged), "grad_norm": norm}

    trainer.fit(update)
