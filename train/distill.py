"""Supervised training: a method's own loss on problems with the teacher's chains."""

import torch

from eval.environments.base import Environment
from latent.text import Batch
from train.loop import Trainer


def fit(trainer: Trainer, env: Environment) -> None:
    """Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, device = trainer.reasoner.codec, trainer.accelerator.device

    def update(step: int) -> dict:
        batch = Batch.of(trainer.problems(env, step), codec, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.record.run.model.bf16):
            loss, metrics = trainer.method.loss(batch)
        return {"loss": loss.detach(), **metrics, "grad_norm": trainer.descend(loss)}

    trainer.fit(update)
