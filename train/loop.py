"""What every training run shares: optimizer, schedule, seeding, gradient sync, logging, checkpoints, exact resume."""

import math
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from eval.environments.base import Environment, Problem
from latent.generate import Reasoner
from train import checkpoint
from train.config import SFT
from train.record import Record
from train.selection import Selection


class Diverged(RuntimeError):
    """The loss is not a number."""


class Trainer:
    """One run's updates. `update(step)` computes losses and calls `descend`; `fit` does the rest.

    `say(event)` is told of progress: {"stage", "done", "total"} and, at logging steps, "metrics".
    """

    def __init__(self, reasoner: Reasoner, record: Record, accelerator: Accelerator, say: Callable[[dict], None]):
        self.reasoner, self.record, self.accelerator, self.say = reasoner, record, accelerator, say
        self.config: SFT = record.run.train
        self.method = reasoner.method
        self.core_seconds, self.done, self.counters, self.enough = 0.0, 0, {}, False
        self.selection: Selection | None = None  # validates, where somebody wants it
        stop = list(self.method.stop.parameters()) if getattr(self.method, "stop", None) is not None else []
        rest = [p for p in self.method.parameters() if not any(p is s for s in stop)]
        groups = [{"params": rest, "scale": 1.0}]
        if stop:
            groups.append({"params": stop, "scale": getattr(self.config, "stop_lr", 1.0)})
        c = self.config
        self.optimizer = torch.optim.AdamW(
            groups, lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay, fused=True
        )
        self.params = [p for g in groups for p in g["params"] if p.requires_grad]

    @property
    def share(self) -> int:
        """Problems an update for this process."""
        world = self.accelerator.num_processes
        if self.config.batch % world:
            raise ValueError(f"train.batch must be a multiple of the {world} processes, got {self.config.batch}")
        return self.config.batch // world

    def problems(self, env: Environment, step: int) -> list[Problem]:
        """This process's part of the data of a step. A run that starts from another does not see its data again."""
        run, share, rank = self.record.run, self.share, self.accelerator.process_index
        stream = run.seed if run.init is None else f"{run.seed} after {run.init}"
        return env.train_batch(stream, step, self.config.batch)[rank * share : (rank + 1) * share]

    def all_agree(self, yes: bool) -> bool:
        """Whether it holds on every process: a decision that all of them take alike."""
        if self.accelerator.num_processes == 1:
            return yes
        no = torch.tensor(float(not yes), device=self.accelerator.device)
        return self.accelerator.reduce(no, "sum").item() == 0

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay at the end: a factor of the peak rate."""
        c = self.config
        decay_from = c.steps * (1 - c.decay)
        down = 1.0 if step <= decay_from else 1 - (1 - c.decay_to) * (step - decay_from) / (c.steps - decay_from)
        return min(1.0, (step + 1) / max(1, c.warmup)) * down

    def descend(self, loss: Tensor) -> Tensor:
        """One optimizer step on `loss`. Returns the gradient norm before clipping. Raises `Diverged`."""
        loss.backward()
        self._sync()
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.config.clip)
        if not math.isfinite(float(norm)) or not math.isfinite(loss.item()):
            raise Diverged(f"loss {loss.item()}, gradient norm {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _sync(self) -> None:
        """Average gradients, and take buffers from process 0: the same calls on every process, whatever the data."""
        if self.accelerator.num_processes == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in self.params], device=self.accelerator.device)
        has = self.accelerator.reduce(has, "sum").tolist()  # AdamW would decay a parameter whose gradient is zero
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.params])
        flat = self.accelerator.reduce(flat, "mean")
        for p, g, n in zip(self.params, flat.split([p.numel() for p in self.params]), has):
            p.grad = g.view_as(p) if n else None
        for b in self.method.buffers():
            torch.distributed.broadcast(b, 0)

    def fit(self, update: Callable[[int], dict[str, Tensor]], dropout: bool = True) -> None:
        """All updates that are left; the caller saves the model."""
        c, total = self.config, self.config.steps
        self._resume()
        self.method.train(dropout)
        window = self.counters.setdefault("window", [])  # metrics since the last log line
        for step in range(self.done, total):
            start = time.process_time()
            torch.manual_seed(seed_of(self.record.run.seed, step, self.accelerator.process_index))
            for group in self.optimizer.param_groups:
                group["lr"] = c.lr * group["scale"] * self.rate(step)
            try:
                window.append(update(step))
            except Diverged as e:
                raise RuntimeError(
                    f"training diverged at step {step}: {e}; nothing was saved after step {self.saved}"
                ) from None
            self.done = step + 1
            self.core_seconds += time.process_time() - start
            event = {"stage": "train", "done": self.done, "total": total}
            if self.done % c.log_every == 0 or self.done == total or self.enough:
                event["metrics"] = self._over_processes(mean(window))
                window.clear()
                line = {"step": self.done, "core_seconds": self.core_seconds, **event["metrics"]}
                if self.accelerator.is_main_process:
                    self.record.log(line)
                self.accelerator.log(line, self.done)
            if self.selection:
                self.selection.after(self)
            self.say(event)
            if self.enough or (c.stop_at and event.get("metrics", {}).get("exact", 0.0) >= c.stop_at):
                break
            if self.done % c.save_every == 0 and self.done < total:
                self._save()
        self.method.eval()

    def _over_processes(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean over processes, so that all of them see, and act on, the same numbers."""
        if self.accelerator.num_processes == 1:
            return metrics
        values = torch.tensor(list(metrics.values()), device=self.accelerator.device)
        return dict(zip(metrics, self.accelerator.reduce(values, "mean").tolist()))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.counters["window"][:] = [{k: float(v) for k, v in m.items()} for m in self.counters["window"]]
            state = {
                "step": self.done,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "core_seconds": self.core_seconds,
                "counters": self.counters,
            }
            checkpoint.save(self.record.home / "checkpoint", state)
            self.saved = self.done
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        state = checkpoint.load(self.record.home / "checkpoint")
        self.saved = state["step"] if state else 0
        if state:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.core_seconds, self.counters = state["step"], state["core_seconds"], state["counters"]
        if self.accelerator.is_main_process:
            self.record.forget_after(self.saved)


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of all randomness in one step on one process: no two coincide in practice."""
    return (seed * 1_000_003 + step) * 1_009 + rank + 1


def mean(window: list[dict]) -> dict[str, float]:
    """Mean of each metric over the updates that logged it."""
    names = {name for metrics in window for name in metrics}
    values = {name: [float(m[name]) for m in window if name in m] for name in sorted(names)}
    return {name: sum(v) / len(v) for name, v in values.items()}
