"""Supervised training: a method's own loss on problems with the teacher's chains."""

import torch

from eval.environments.base import Environment
from latent.text import Batch
from train.loop import Trainer


def fit(trainer: Trainer, env: Environment) -> None:
    """Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, device, rank = trainer.reasoner.codec, trainer.accelerator.device, trainer.accelerator.process_index

    def update(step: int) -> dict:
        share = {"generator": trainer.drawing(step), "first": rank * trainer.share, "whole": trainer.config.batch}
        batch = Batch.of(trainer.problems(env, step), codec, device, **share)
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.record.run.model.bf16):
            loss, logged = trainer.over_processes(*trainer.method.terms(batch))
        norm = trainer.descend(loss)
        return {**logged, **trainer.method.learned(logged), "grad_norm": norm}

    trainer.fit(update)
