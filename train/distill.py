"""Supervised training: a method's own loss on problems with the teacher's chains."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from eval.environments.base import Environment, Problem, iterate
from latent.methods import MethodConfig
from latent.text import Batch, Codec
from train.loop import Terms, Trainer


def taught(
    env: Environment, method: MethodConfig, problems: Sequence[Problem], codec: Codec, device="cpu", **share
) -> Batch:
    """Problems, already `told`, as the batch that a method is trained on."""
    turns = zip(*(env.turns_of(p)[1:] for p in problems))
    frontiers = [env.frontiers(p) for p in problems] if method.told == "frontier" else None
    return Batch.of(problems, codec, device, turns, frontiers, **share)


def fit(trainer: Trainer, env: Environment) -> None:
    """Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, engine, c, run = trainer.reasoner.codec, trainer.engine, trainer.config, trainer.record.run

    def update(step: int) -> dict:
        batches, first = [], trainer.own()[0]
        problems = [
            env.told(p, run.method.told, f"told {run.seed} {step} {i}")
            for i, p in zip(trainer.own(), trainer.problems(env, step), strict=True)
        ]
        for some in iterate(problems, c.micro_batch or len(problems)):
            batches.append(taught(env, run.method, some, codec, engine.device, first=first, whole=c.batch))
            first += len(some)

        def drawing(batch: Batch) -> Batch:  # every micro-batch from the start: what is drawn is the whole batch's
            return replace(batch, generator=trainer.drawing(step))

        def terms(batch: Batch) -> Terms:
            with torch.autocast(engine.device.type, torch.bfloat16, enabled=run.model.bf16):
                return engine.call("terms", drawing(batch))

        def counts() -> list:
            with engine.whole():
                return [sum(of_term) for of_term in zip(*(trainer.method.counts(drawing(b)) for b in batches))]

        logged = trainer.descend([partial(terms, batch) for batch in batches], counts)
        norm = logged.pop("grad_norm")
        return {**logged, **trainer.method.learned(logged), "grad_norm": norm}

    trainer.fit(update)
