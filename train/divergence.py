"""A run whose loss, gradient or weights are not finite: how it is noticed, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.errors import UserError
from latent.files import write_text
from latent.thought import Greedy
from train import checkpoint
from train.data import seed_of
from train.engine import held_here
from train.resume import optimizer_state

if TYPE_CHECKING:
    from train.loop import Trainer


class Diverged(RuntimeError):
    """Loss, gradient or weights are not finite."""


def check_weights(trainer: Trainer, step: int | None = None) -> None:
    """Raise UserError where weights are not finite, or so large that the model computes from them what is not.

    `step`: the update that this was noticed in; None: the last one that is done. It is asked before every save and not
    after every update, because every update checks loss and gradient norm, and these were finite with its weights.
    """
    engine, method = trainer.engine, trainer.method
    odd = [n for n, v in method.state_dict().items() if v.is_floating_point() and not is_finite(v)]
    if engine.all_agree(not odd) and trainer.last_problems:
        was_training = method.training
        method.eval()
        with torch.no_grad(), torch.random.fork_rng(), engine.whole():
            questions = [p.question for p in trainer.last_problems[:2]]
            states_PKD = method.think(trainer.reasoner.codec.prompt(questions, engine.device), Greedy()).states_UKD
            if not method.backbone.head(method.lens(states_PKD)).isfinite().all():
                odd = ["what the model computes from its weights"]
        method.train(was_training)
    if not engine.all_agree(not odd):
        what = ", ".join(odd[:3]) or "something on another process"
        raise diverged(trainer, trainer.done - 1 if step is None else step, Diverged(f"not finite: {what}"), odd)


def diverged(trainer: Trainer, step: int, why: Diverged, odd: Sequence[str] = ()) -> UserError:
    """The error to raise for a step. Writes what replays it into `diverged/` of the run's folder.

    That is the step's problems, seed and learning rate, and the state before it where no weight (`odd`) is damaged yet.
    Data and randomness are functions of (seed, step): the same command, from the last checkpoint, comes here again.
    """
    engine = trainer.engine
    place = trainer.record.home / "diverged"
    place.mkdir(exist_ok=True)
    keys = [p.key for p in trainer.last_problems]
    about = {
        "step": step,
        "process": engine.rank,
        "why": str(why),
        "seed": seed_of(trainer.record.run.seed, step, engine.rank),
        "lr": [g["lr"] for g in trainer.optimizer.param_groups],
        "checkpoint": trainer.saved,
        "not_finite": list(odd),
        "keys": keys,
        "problems": [asdict(p) for p in trainer.last_problems],
    }
    path = place / f"step-{step}-process-{engine.rank}.json"
    write_text(path, json.dumps(about, indent=1, default=str) + "\n")
    state = engine.full(trainer.method.state_dict())
    moments = engine.full(optimizer_state(trainer))
    if not odd and engine.leads and all(is_finite(v) for v in state.values() if v.is_floating_point()):
        before = {"step": trainer.done, "method": state, "optimizer": moments}
        checkpoint.write_state(place / "state.pt", before)
    first = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return UserError(
        f"training diverged at step {step}: {why}; nothing was saved after step {trainer.saved}; "
        f"its {len(keys)} problems ({first}) and what replays it are in {place}"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor that this process holds is finite."""
    return bool(held_here(tensor).isfinite().all())
