"""What every training run shares: data, schedule, seeding, the update, logging, and when to save.

Data and randomness are functions of (seed, step), so that a run goes on from a checkpoint as if it had never stopped.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from eval.environments.base import Environment, Problem
from kernels.errors import UserError, memory_for
from latent.generate import Reasoner
from latent.methods.terms import Mean
from train import memory, resume
from train.checkpoint import Saved
from train.config import RLVR, SFT
from train.data import batch, seed_of
from train.divergence import Diverged, check_weights, diverged
from train.engine import Engine
from train.losses import Extreme, Logged
from train.process import Stopped, amid_update, give_back_memory
from train.record import Record
from train.selection import Selection

Terms = tuple[list[Mean], dict[str, Logged]]  # the terms of a loss, and what to log beside it


class Trainer:
    """One run's updates: `fit` calls an `update(step)`, which computes a loss and calls `descend`.

    `say(event)` is called with progress: {"stage", "done", "total"} and, at logging steps, "metrics". Raises UserError
    for a batch that the processes cannot share.
    """

    def __init__(self, reasoner: Reasoner, record: Record, engine: Engine, say: Callable[[dict], None]):
        self.reasoner, self.record, self.engine, self.say = reasoner, record, engine, say
        self.config: SFT = record.run.train
        self.rows = own_rows(self.config, engine.rank, engine.world)
        self.method = reasoner.method
        self.reference = engine.frozen(self.method) if getattr(self.config, "kl", 0) else None
        if isinstance(self.config, RLVR):
            self.method.critic = self.config.algorithm.critic(self.method.backbone.width)
            self.method.to(engine.device, self.method.backbone.dtype)
        engine.prepare(self.method)
        # autocast to bfloat16 where the run asks for it: in sampling, training and judging alike
        self.precision = partial(torch.autocast, engine.device.type, torch.bfloat16, enabled=record.run.model.bf16)
        self.core_seconds, self.done = 0.0, 0  # the former of all processes, but for `own_seconds`
        self.own_seconds = 0.0  # of this process, since they were last added up
        self.counters: dict[str, Any] = {}  # further progress, which checkpoints keep
        self.start: Saved | None = None  # the checkpoint to go on from
        self.saved = 0  # step of the newest checkpoint
        self.last_problems: list[Problem] = []
        self.selection: Selection | None = None  # validates, where the run asks for it
        c = self.config
        scales = {"stop.": getattr(c, "stop_lr", 1.0), **self.method.lr_scales}
        groups: list[dict] = [{"params": [], "scale": scale} for scale in (1.0, *scales.values())]
        for name, p in self.method.named_parameters():
            group = next((i for i, begin in enumerate(scales, 1) if name.startswith(begin)), 0)
            groups[group]["params"].append(p)
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay, fused=True
        )

    def problems(self, env: Environment, step: int) -> list[Problem]:
        """This process's part of a step's batch."""
        whole = batch(env, self.record.run, step)
        self.last_problems = [whole[i] for i in self.rows]
        return self.last_problems

    def seed_dropout(self, step: int) -> None:
        """Seed torch's global generators for a step: the processor's, and the device's where it is another.

        `torch.manual_seed` seeds the same, and where there is no device it queues a call for each kind that there might
        be, with a stack trace: half a millisecond, and memory that no one frees.
        """
        seed = seed_of(self.record.run.seed, step, self.engine.rank)  # this process's own
        (torch.default_generator if self.engine.device.type == "cpu" else torch).manual_seed(seed)

    def generator(self, step: int, device: str | torch.device = "cpu") -> torch.Generator:
        """The generator of what a step draws for its whole batch: the same on every process."""
        return torch.Generator(device).manual_seed(seed_of(self.record.run.seed, step, 0))

    def rate(self, step: int) -> float:
        """The learning rate as a fraction of its peak: linear warm-up, constant, linear decay at the end."""
        c = self.config
        decay_from = c.steps * (1 - c.decay)
        down = 1.0 if step <= decay_from else 1 - (1 - c.decay_to) * (step - decay_from) / (c.steps - decay_from)
        return min(1.0, (step + 1) / max(1, c.warmup)) * down

    def descend(
        self,
        parts: Sequence[Callable[[], Terms]],
        counts: Callable[[], list] | None = None,
        check: Callable[[dict[str, Tensor]], None] = lambda metrics: None,
    ) -> dict[str, Tensor]:
        """One optimizer step on a loss that is summed over micro-batches and processes. Returns what to log.

        Each of `parts` computes a micro-batch's terms; it is called once. A term's total is divided by its count over
        all micro-batches and processes, so that the parts add up to the loss of the whole batch in one piece. With more
        than one part, `counts` gives this process's counts before the first part is computed. `check` sees what is
        logged before the weights change. Raises `Diverged`.
        """
        engine, done = self.engine, list[Terms]()
        whole: list | None = None
        if len(parts) > 1:
            assert counts is not None  # as said above
            whole = engine.sum(counts())
        for i, part in enumerate(parts):
            with engine.accumulating(last=i == len(parts) - 1):
                terms, logged = part()
                whole = engine.sum([m.count for m in terms]) if whole is None else whole
                if engine.world > 1:
                    whole = [int(n) for n in whole]
                means = [m.weight * Mean(m.total, n).taken() for m, n in zip(terms, whole, strict=True)]
                engine.backward(reduce(add, means))
            # detached, so that this micro-batch's graph is freed before the next one is computed
            terms = [replace(m, total=m.total.detach()) for m in terms]
            logged = {k: replace(m, total=m.total.detach()) if isinstance(m, Mean) else m for k, m in logged.items()}
            done.append((terms, logged))
            del means
        metrics = over_processes(done, engine)
        norm = engine.clip(self.optimizer, self.config.clip)
        metrics = fetched({**metrics, "grad_norm": norm})  # the one time in an update that the host waits for a GPU
        check(metrics)
        loss, length = metrics["loss"].item(), metrics["grad_norm"].item()
        # both numbers are the same on all processes, so that all of them raise or none
        if not (math.isfinite(length) and math.isfinite(loss)):
            raise Diverged(f"loss {loss}, gradient norm {length}")
        engine.step(self.optimizer)
        return metrics

    def fit(self, update: Callable[[int], dict[str, Tensor]], dropout: bool = True) -> None:
        """Make all updates that are left. The caller saves the model.

        SIGTERM writes a checkpoint after the update that it arrives in, and raises `Stopped`. There is one after the
        last update too: what is left then is judging, which may be interrupted as well.
        """
        c, total = self.config, self.config.steps
        resume.restore(self)
        if self.selection and (self.done or isinstance(c, RLVR)):
            self.selection.after(self)  # where a signal came before it, and of RL what it starts from
        self.method.train(dropout)
        window = self.counters.setdefault("window", [])  # metrics since the last log line
        less = memory.remedy(c, self.record.run.model.recompute)
        with amid_update() as told_to_end:
            for step in range(self.done, self.done if self.stop_early else total):
                start = time.process_time()
                self.seed_dropout(step)
                for group in self.optimizer.param_groups:
                    group["lr"] = c.lr * group["scale"] * self.rate(step)
                try:
                    with memory_for(f"update {step + 1}", less):
                        window.append(update(step))
                except Diverged as e:
                    raise diverged(self, step, e) from None
                give_back_memory()
                self.done = step + 1
                self.own_seconds += time.process_time() - start
                event: dict[str, Any] = {"stage": "train", "done": self.done, "total": total}
                if self.logs_after(step):
                    event["metrics"] = together(window)
                    window.clear()
                    self.add_up_seconds()
                    line = {"step": self.done, "core_seconds": self.core_seconds, **event["metrics"]}
                    if self.engine.leads:
                        self.record.log(line)
                    self.engine.log(line, self.done)
                leave = not self.engine.all_agree(not told_to_end())  # on every process, whichever was told
                if self.selection and not leave:
                    self.selection.after(self)
                self.say(event)
                if self.learned(event.get("metrics", {})):
                    self.counters["ended"] = True
                ended = self.done == total or self.stop_early
                if leave or ended or self.done % c.save_every == 0:
                    check_weights(self)
                    self.add_up_seconds()
                    resume.save(self)
                if leave:
                    raise Stopped
                if ended:
                    break
        self.method.eval()
        self.engine.release()

    @property
    def stop_early(self) -> bool:
        """Whether nothing is left to learn. Checkpoints keep it, so that a resume makes no update more."""
        return self.counters.get("ended", False)

    def learned(self, metrics: dict[str, float]) -> bool:
        """Whether what was logged reaches `stop_at`, in the last stage where there is a curriculum."""
        enough = self.config.stop_at
        return bool(enough) and self.method.in_last_stage and metrics.get("exact", 0.0) >= enough

    def add_up_seconds(self) -> None:
        """Add every process's seconds since the last time to `core_seconds`."""
        (seconds,) = self.engine.sum([self.own_seconds])
        self.core_seconds, self.own_seconds = self.core_seconds + float(seconds), 0.0

    def logs_after(self, step: int) -> bool:
        """Whether update `step`, counted from 0, ends with a log line: every `log_every`-th, and the last."""
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps or self.stop_early


def over_processes(parts: Sequence[Terms], engine: Engine) -> dict[str, Tensor]:
    """The loss and what is logged, over all micro-batches and processes: means over all that they average, extremes.

    `parts`: those of this process, one at least. All have the same terms and log the same names.
    """
    terms = [reduce(Mean.joined, each) for each in zip(*(terms for terms, _ in parts), strict=True)]
    logged = {name: reduce(joined, [found[name] for _, found in parts]) for name in parts[0][1]}
    extremes = {name: m for name, m in logged.items() if isinstance(m, Extreme)}
    means = {name: m for name, m in logged.items() if isinstance(m, Mean)}
    every = [*terms, *means.values()]
    sums = engine.sum([m.total for m in every] + [m.count for m in every])
    counts = sums[len(every) :] if engine.world == 1 else [int(n) for n in sums[len(every) :]]
    taken = [Mean(total, n).taken() for total, n in zip(sums, counts)]
    furthest = engine.most([m.sign * m.value for m in extremes.values()])
    values = dict(zip(means, taken[len(terms) :]))
    values |= {name: m.sign * x for (name, m), x in zip(extremes.items(), furthest)}
    loss = reduce(add, [m.weight * x for m, x in zip(terms, taken)])
    return {"loss": loss, **{name: values[name] for name in logged}}


def fetched(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars of any float dtype on the CPU, fetched together."""
    widest = reduce(torch.promote_types, [m.dtype for m in metrics.values()], torch.float32)
    values = torch.stack([m.detach().to(widest) for m in metrics.values()]).cpu()
    return {name: x.to(m.dtype) for (name, m), x in zip(metrics.items(), values)}


def joined(a: Logged, b: Logged) -> Logged:
    """What two micro-batches log under one name, together."""
    if isinstance(a, Mean):
        assert isinstance(b, Mean)
        return a.joined(b)
    assert isinstance(b, Extreme)
    return a.joined(b)


def own_rows(config: SFT, rank: int, world: int) -> list[int]:
    """Which of a batch's problems are a process's: its share of every minibatch.

    Minibatches are shared, not batches, so that a minibatch is the same on any number of processes. Raises UserError
    where they cannot be shared evenly.
    """
    minibatches = getattr(config, "minibatches", 1)
    if config.batch % world:
        raise UserError(f"train.batch must be a multiple of the {world} processes, got {config.batch}")
    share = config.batch // world
    if share % minibatches:
        raise UserError(f"{share} prompts a process cannot be cut into {minibatches} minibatches (train.minibatches)")
    size, own = config.batch // minibatches, share // minibatches
    return [i * size + rank * own + j for i in range(minibatches) for j in range(own)]


def together(steps: list[dict]) -> dict[str, float]:
    """Each metric over the steps that logged it: the mean, of names that end in `_max` or `_min` the extreme."""
    names = {name for metrics in steps for name in metrics}
    values = {name: [float(m[name]) for m in steps if name in m] for name in sorted(names)}
    return {
        name: max(v) if name.endswith("_max") else min(v) if name.endswith("_min") else sum(v) / len(v)
        for name, v in values.items()
    }
