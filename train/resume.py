"""What a trainer saves into a checkpoint, and how it goes on from one. The files are those of `checkpoint.py`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.errors import UserError
from train import checkpoint

if TYPE_CHECKING:
    from train.loop import Trainer

log = logging.getLogger(__name__)


def choose_start(trainer: Trainer) -> None:
    """Find the checkpoint to go on from: the newest good one. Warns of newer ones that are not good; writes nothing.

    Raises UserError where there are checkpoints and none is good.
    """
    engine, record = trainer.engine, trainer.record
    home = record.home / "checkpoint"
    start: checkpoint.Saved | None = None
    wrong: list[str] = []
    if engine.leads:
        start, wrong = checkpoint.newest(home, record.run.id, record.unfit)
    start, wrong = engine.from_first((start, wrong))  # one process looks, so that all go on from the same
    if wrong and start is None:
        raise UserError(f"{wrong[0]}; put back what was there, or remove {home} to begin the run again")
    if start is not None and engine.leads:
        for each in wrong:
            log.warning("%s: not used; going on from step %d", each, start.step)
    trainer.start = start


def restore(trainer: Trainer) -> None:
    """Take over the chosen checkpoint, on any number of processes, and cut the logs back to it."""
    if trainer.start is not None:
        _load(trainer, trainer.start)
    if trainer.engine.leads:
        trainer.record.go_back(trainer.start.ends if trainer.start else {})


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the last update."""
    window = trainer.counters["window"]
    window[:] = [{k: float(v) for k, v in metrics.items()} for metrics in window]
    tensors = {f"method/{n}": v for n, v in trainer.method.state_dict().items()}
    tensors |= {f"optimizer/{n}": v for n, v in optimizer_state(trainer).items()}
    counters, best = dict(trainer.counters), trainer.counters.get("best")
    if best is not None:
        tensors |= {f"best/{n}": v for n, v in best["method"].items()}
        counters["best"] = {k: v for k, v in best.items() if k != "method"}
    progress = {"core_seconds": trainer.core_seconds, "counters": counters}
    record, keep = trainer.record, trainer.config.keep
    home = record.home / "checkpoint"
    checkpoint.save(home, trainer.done, tensors, progress, record.run.id, record.ends, keep, trainer.engine)
    trainer.saved = trainer.done


def optimizer_state(trainer: Trainer) -> dict[str, Tensor]:
    """The optimizer's tensors as PARAMETER/NAME, of the parameters that have had a gradient."""
    state = trainer.optimizer.state
    return {f"{n}/{k}": v for n, p in trainer.method.named_parameters() for k, v in state.get(p, {}).items()}


def _load(trainer: Trainer, saved: checkpoint.Saved) -> None:
    trainer.done = trainer.saved = saved.step
    trainer.core_seconds, trainer.counters = saved.progress["core_seconds"], saved.progress["counters"]
    into = {f"method/{n}": v for n, v in trainer.method.state_dict().items()}
    best, params = {}, dict(trainer.method.named_parameters())
    for key, (size, dtype) in checkpoint.contents(saved).items():
        part, _, name = key.partition("/")
        if part == "best":
            best[name] = into[key] = torch.empty(size, dtype=dtype)
        elif part == "optimizer":
            param, _, name = name.rpartition("/")
            p = params[param]
            # AdamW's number of steps is a scalar, whole on every process; its moments are sharded as the parameter is
            is_scalar = size != p.shape or not size
            made = torch.empty(size, dtype=dtype, device=p.device) if is_scalar else torch.empty_like(p)
            trainer.optimizer.state[p][name] = into[key] = made.detach()
    if best:
        trainer.counters["best"]["method"] = best
    checkpoint.load(saved, into, trainer.engine)
