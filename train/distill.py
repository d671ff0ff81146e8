"""Supervised training: a method's own loss on problems with the teacher's chains."""

from eval.environments.base import Environment
from latent.text import Batch
from train.loop import Trainer


def fit(trainer: Trainer, env: Environment) -> None:
    """Logs `loss`, `grad_norm` and what the method's loss logs."""
    codec, device = trainer.reasoner.codec, trainer.accelerator.device

    def update(step: int) -> dict:
        loss, metrics = trainer.method.loss(Batch.of(trainer.problems(env, step), codec, device))
        return {"loss": loss.detach(), **metrics, "grad_norm": trainer.descend(loss)}

    trainer.fit(update)
