"""What every training run shares: optimizer, schedule, seeding, gradient sync, logging, checkpoints, exact resume."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from eval.environments.base import Environment, Problem
from kernels.errors import UserError
from latent.files import write_text
from latent.generate import Reasoner
from latent.methods.base import Mean
from latent.thought import Greedy
from train import checkpoint
from train.config import SFT
from train.process import Stopped, amid_update
from train.record import Record
from train.selection import Selection

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Loss, gradient or weights are not finite."""


class Trainer:
    """One run's updates. `update(step)` computes losses and calls `descend`; `fit` does the rest.

    `say(event)` is told of progress: {"stage", "done", "total"} and, at logging steps, "metrics".
    """

    def __init__(self, reasoner: Reasoner, record: Record, accelerator: Accelerator, say: Callable[[dict], None]):
        self.reasoner, self.record, self.accelerator, self.say = reasoner, record, accelerator, say
        self.config: SFT = record.run.train
        self.method = reasoner.method
        self.core_seconds, self.done, self.counters, self.enough = 0.0, 0, {}, False
        self.start: checkpoint.Saved | None = None  # what `choose_start` found
        self.saved, self.given = 0, []  # step of the newest checkpoint; the problems of the last batch
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
            raise UserError(f"train.batch must be a multiple of the {world} processes, got {self.config.batch}")
        return self.config.batch // world

    def problems(self, env: Environment, step: int) -> list[Problem]:
        """This process's part of the data of a step. A run that starts from another does not see its data again."""
        run, rank = self.record.run, self.accelerator.process_index
        stream = run.seed if run.init is None else f"{run.seed} after {run.init}"
        whole = env.train_batch(stream, step, self.config.batch)
        parts = getattr(self.config, "minibatches", 1)  # each is shared, so that it is the same on any number of them
        size, own = len(whole) // parts, self.share // parts
        self.given = [p for i in range(parts) for p in whole[i * size + rank * own :][:own]]
        return self.given

    def drawing(self, step: int) -> torch.Generator:
        """What a step draws for its whole batch, on whichever process: that of a single one."""
        return torch.Generator().manual_seed(seed_of(self.record.run.seed, step, 0))

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

    def over_processes(self, terms: list[Mean], logged: dict[str, Mean | Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's part of a loss, and what is logged of it.

        Every term's total is divided by its count over all processes, so that the parts add up to the loss that one
        process would have had. A plain tensor is logged as the mean over processes.
        """
        given = [*terms, *(m if isinstance(m, Mean) else Mean(m, 1) for m in logged.values())]
        counts, totals = [m.count for m in given], [m.total.detach() for m in given]
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            sums = torch.tensor([*map(float, counts), *map(float, totals)], dtype=torch.float64, device=device)
            counts, sums = self.accelerator.reduce(sums, "sum").split(len(given))
            counts = [int(n) for n in counts.tolist()]
            totals = [sums[i].to(t.dtype if t.is_floating_point() else torch.float32) for i, t in enumerate(totals)]
        means = [Mean(t, n).taken() for t, n in zip(totals, counts)]
        parts = [m.weight * Mean(m.total, n).taken() for m, n in zip(terms, counts)]
        values = dict(zip(logged, means[len(terms) :]))
        return sum(parts), {"loss": sum(m.weight * mean for m, mean in zip(terms, means)), **values}

    def descend(self, loss: Tensor) -> Tensor:
        """One optimizer step on `loss`, the sum over processes. Returns the gradient norm before clipping.

        Raises `Diverged`.
        """
        loss.backward()
        self._sync()
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.config.clip)
        if not self.all_agree(math.isfinite(float(norm)) and math.isfinite(loss.item())):
            raise Diverged(f"loss {loss.item()}, gradient norm {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _sync(self) -> None:
        """Sum gradients, and take buffers from process 0: the same calls on every process, whatever the data."""
        if self.accelerator.num_processes == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in self.params], device=self.accelerator.device)
        has = self.accelerator.reduce(has, "sum").tolist()  # AdamW would decay a parameter whose gradient is zero
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.params])
        flat = self.accelerator.reduce(flat, "sum")
        for p, g, n in zip(self.params, flat.split([p.numel() for p in self.params]), has):
            p.grad = g.view_as(p) if n else None
        for b in self.method.buffers():
            torch.distributed.broadcast(b, 0)

    def choose_start(self) -> None:
        """Find the checkpoint to go on from: the newest good one, saying what is wrong with newer ones. Writes nothing.

        Raises UserError where there are checkpoints and none is good, and for a batch that cannot be shared out.
        """
        home, found, wrong = self.record.home / "checkpoint", None, []
        per_update = self.share  # raises where the processes cannot share the batch
        parts = getattr(self.config, "minibatches", 1)
        if per_update % parts:
            raise UserError(
                f"{per_update} prompts a process cannot be cut into {parts} minibatches (train.minibatches)"
            )
        if self.accelerator.is_main_process:
            found, wrong = checkpoint.newest(home, self.record.run.id, self.record.unfit)
        if self.accelerator.num_processes > 1:  # one looks, and all go on from the same
            found, wrong = broadcast_object_list([found, wrong])
        if wrong and found is None:
            raise UserError(f"{wrong[0]}; put back what was there, or remove {home} to begin the run again")
        for each in wrong if self.accelerator.is_main_process else ():
            log.warning("%s: not used; going on from step %d", each, found.step)
        self.start = found

    def fit(self, update: Callable[[int], dict[str, Tensor]], dropout: bool = True) -> None:
        """All updates that are left; the caller saves the model. SIGTERM saves after the update that it comes in."""
        c, total = self.config, self.config.steps
        self._resume()
        self.method.train(dropout)
        window = self.counters.setdefault("window", [])  # metrics since the last log line
        with amid_update() as told_to_end:
            for step in range(self.done, total):
                start = time.process_time()
                torch.manual_seed(seed_of(self.record.run.seed, step, self.accelerator.process_index))
                for group in self.optimizer.param_groups:
                    group["lr"] = c.lr * group["scale"] * self.rate(step)
                try:
                    window.append(update(step))
                except Diverged as e:
                    raise self._diverged(step, e) from None
                self.done = step + 1
                self.core_seconds += time.process_time() - start
                event = {"stage": "train", "done": self.done, "total": total}
                if self.logs_after(step):
                    event["metrics"] = self._mean_over_processes(mean(window))
                    window.clear()
                    line = {"step": self.done, "core_seconds": self.core_seconds, **event["metrics"]}
                    if self.accelerator.is_main_process:
                        self.record.log(line)
                    self.accelerator.log(line, self.done)
                leave = not self.all_agree(not told_to_end())
                if self.selection and not leave:
                    self.selection.after(self)
                self.say(event)
                ended = self.enough or (c.stop_at and event.get("metrics", {}).get("exact", 0.0) >= c.stop_at)
                if leave or (self.done % c.save_every == 0 and self.done < total and not ended):
                    self._save()
                if leave:
                    raise Stopped  # on every process, whichever was told
                if ended:
                    break
        self._check_weights()
        self.method.eval()

    def logs_after(self, step: int) -> bool:
        """Whether update `step`, counted from 0, ends with a log line: one in so many, and the last."""
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps or self.enough

    def _mean_over_processes(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean over processes, so that all of them see, and act on, the same numbers."""
        if self.accelerator.num_processes == 1:
            return metrics
        values = torch.tensor(list(metrics.values()), device=self.accelerator.device)
        return dict(zip(metrics, self.accelerator.reduce(values, "mean").tolist()))

    def _check_weights(self) -> None:
        """Raise RuntimeError where weights are not finite, or so large that the model computes what is not.

        Asked before every save, and not after every update: weights that the next update's loss and gradient were
        finite with were finite, and that much every update checks.
        """
        odd = [n for n, v in self.method.state_dict().items() if v.is_floating_point() and not v.isfinite().all()]
        if not odd and self.given:
            was_training = self.method.training
            self.method.eval()
            with torch.no_grad(), torch.random.fork_rng():
                prompt = self.reasoner.codec.prompt([p.question for p in self.given[:2]], self.accelerator.device)
                states_PKD = self.method.think(prompt, Greedy()).states_UKD
                if not self.method.backbone.head(self.method.lens(states_PKD)).isfinite().all():
                    odd = ["what the model computes from its weights"]
            self.method.train(was_training)
        if not self.all_agree(not odd):
            what = ", ".join(odd[:3]) or "something on another process"
            raise self._diverged(self.done - 1, Diverged(f"not finite: {what}"), odd)

    def _diverged(self, step: int, why: Diverged, odd: list[str] = ()) -> RuntimeError:
        """The error to raise. In `diverged/` is what the step was given, and the state before it where that is whole.

        Data and randomness are functions of (seed, step): the same command, from the last checkpoint, comes here again.
        """
        place, rank = self.record.home / "diverged", self.accelerator.process_index
        place.mkdir(exist_ok=True)
        keys = [p.key for p in self.given]
        about = {"step": step, "process": rank, "why": str(why), "seed": seed_of(self.record.run.seed, step, rank)}
        about |= {
            "lr": [g["lr"] for g in self.optimizer.param_groups],
            "checkpoint": self.saved,
            "not_finite": list(odd),
        }
        about |= {"keys": keys, "problems": [asdict(p) for p in self.given]}
        write_text(place / f"step-{step}-process-{rank}.json", json.dumps(about, indent=1, default=str) + "\n")
        state = self.method.state_dict()
        if not odd and rank == 0 and all(v.isfinite().all() for v in state.values() if v.is_floating_point()):
            checkpoint.write_state(place / "state.pt", self._state())
        first = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
        return RuntimeError(
            f"training diverged at step {step}: {why}; nothing was saved after step {self.saved}; "
            f"its {len(keys)} problems ({first}) and what replays it are in {place}"
        )

    def _state(self) -> dict:
        return {
            "step": self.done,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "core_seconds": self.core_seconds,
            "counters": {k: v for k, v in self.counters.items() if k != "window"},
        }

    def _save(self) -> None:
        self._check_weights()
        window = self.counters["window"]
        window[:] = [{k: float(v) for k, v in m.items()} for m in window]
        windows = [window] if self.accelerator.num_processes == 1 else gather_object([window])
        if self.accelerator.is_main_process:
            home, keep = self.record.home / "checkpoint", self.config.keep
            state = self._state() | {"windows": windows}
            checkpoint.save(home, state, self.record.run.id, self.record.ends(), keep)
        self.saved = self.done
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        state = checkpoint.load(self.start) if self.start else None
        if state:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.core_seconds, self.counters = state["step"], state["core_seconds"], state["counters"]
            self.counters["window"] = window_of(state["windows"], self.accelerator)
            self.saved = self.done
        if self.accelerator.is_main_process:
            self.record.go_back(self.start.ends if self.start else {})


def window_of(windows: list[list[dict]], accelerator: Accelerator) -> list[dict]:
    """This process's metrics since the last log line; where the number of processes has changed, the mean over them."""
    if len(windows) == accelerator.num_processes:
        return windows[accelerator.process_index]
    return [mean(list(of_one_update)) for of_one_update in zip(*windows)]


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of all randomness in one step on one process: no two coincide in practice."""
    return (seed * 1_000_003 + step) * 1_009 + rank + 1


def mean(window: list[dict]) -> dict[str, float]:
    """Mean of each metric over the updates that logged it."""
    names = {name for metrics in window for name in metrics}
    values = {name: [float(m[name]) for m in window if name in m] for name in sorted(names)}
    return {name: sum(v) / len(v) for name, v in values.items()}
