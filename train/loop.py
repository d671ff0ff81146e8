"""What every training run shares: optimizer, schedule, seeding, the update, logging, checkpoints, exact resume."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eval.environments.base import Environment, Problem
from kernels.errors import UserError
from latent.files import write_text
from latent.generate import Reasoner
from latent.methods.base import Mean
from latent.thought import Greedy
from train import checkpoint
from train.config import RLVR, SFT
from train.data import batch
from train.engine import Engine, held_here
from train.losses import Extreme, Logged
from train.process import Stopped, amid_update
from train.record import Record
from train.selection import Selection

log = logging.getLogger(__name__)
Terms = tuple[list[Mean], dict[str, Logged]]  # of a loss, and what to log beside it


class Diverged(RuntimeError):
    """Loss, gradient or weights are not finite."""


class Trainer:
    """One run's updates. `update(step)` says what the loss is made of and calls `descend`; `fit` does the rest.

    `say(event)` is told of progress: {"stage", "done", "total"} and, at logging steps, "metrics".
    """

    def __init__(self, reasoner: Reasoner, record: Record, engine: Engine, say: Callable[[dict], None]):
        self.reasoner, self.record, self.engine, self.say = reasoner, record, engine, say
        self.config: SFT = record.run.train
        self.method = reasoner.method
        self.reference = engine.frozen(self.method) if getattr(self.config, "kl", 0) else None
        if isinstance(self.config, RLVR):
            self.method.critic = self.config.algorithm.critic(self.method.backbone.width)
            self.method.to(engine.device, self.method.backbone.dtype)
        engine.prepare(self.method)
        self.core_seconds, self.done, self.enough = 0.0, 0, False
        self.counters: dict[str, Any] = {}  # what else a checkpoint keeps of the run's progress
        self.start: checkpoint.Saved | None = None  # what `choose_start` found
        self.saved = 0  # step of the newest checkpoint
        self.given: list[Problem] = []  # of the last batch
        self.selection: Selection | None = None  # validates, where somebody wants it
        stop = list(self.method.stop.parameters()) if self.method.stop is not None else []
        rest = [p for p in self.method.parameters() if not any(p is s for s in stop)]
        groups = [{"params": rest, "scale": 1.0}]
        if stop:
            groups.append({"params": stop, "scale": getattr(self.config, "stop_lr", 1.0)})
        c = self.config
        self.optimizer = torch.optim.AdamW(
            groups, lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay, fused=True
        )

    @property
    def share(self) -> int:
        """Problems an update for this process."""
        world = self.engine.world
        if self.config.batch % world:
            raise UserError(f"train.batch must be a multiple of the {world} processes, got {self.config.batch}")
        return self.config.batch // world

    def problems(self, env: Environment, step: int) -> list[Problem]:
        """This process's part of the data of a step."""
        whole = batch(env, self.record.run, step)
        self.given = [whole[i] for i in self.own()]
        return self.given

    def own(self) -> list[int]:
        """Which of a batch's problems are this process's."""
        parts = getattr(self.config, "minibatches", 1)  # each is shared, so that it is the same on any number of them
        size, own = self.config.batch // parts, self.share // parts
        return [i * size + self.engine.rank * own + j for i in range(parts) for j in range(own)]

    def drawing(self, step: int, device: str | torch.device = "cpu") -> torch.Generator:
        """What a step draws for its whole batch, on whichever process: that of a single one."""
        return torch.Generator(device).manual_seed(seed_of(self.record.run.seed, step, 0))

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay at the end: a factor of the peak rate."""
        c = self.config
        decay_from = c.steps * (1 - c.decay)
        down = 1.0 if step <= decay_from else 1 - (1 - c.decay_to) * (step - decay_from) / (c.steps - decay_from)
        return min(1.0, (step + 1) / max(1, c.warmup)) * down

    def descend(
        self, parts: Sequence[Callable[[], Terms]], counts: Callable[[], list] | None = None
    ) -> dict[str, Tensor]:
        """One optimizer step on a loss that is summed over micro-batches and processes. Returns what to log.

        Each part computes a micro-batch's terms; it is called once. Every term's total is divided by its count over all
        of them, so that the parts add up to the loss that one process would have had in one piece. Where there is more
        than one part, `counts` tells those of this process before the first is computed. Raises `Diverged`.
        """
        engine, tally = self.engine, Tally()
        whole = None
        if len(parts) > 1:
            assert counts is not None  # as said above
            whole = engine.sum(counts())
        for i, part in enumerate(parts):
            with engine.accumulating(last=i == len(parts) - 1):
                terms, logged = part()
                whole = engine.sum([m.count for m in terms]) if whole is None else whole
                if engine.world > 1:
                    whole = [int(n) for n in whole]
                engine.backward(summed(m.weight * Mean(m.total, n).taken() for m, n in zip(terms, whole, strict=True)))
            tally.add(terms, logged)
            del terms, logged  # and with them what this micro-batch's graph has kept
        metrics = tally.over_processes(engine)

        def check(norm: Tensor) -> None:  # both are the same on all processes
            if not (math.isfinite(float(norm)) and math.isfinite(float(metrics["loss"]))):
                raise Diverged(f"loss {float(metrics['loss'])}, gradient norm {float(norm)}")

        metrics["grad_norm"] = engine.step(self.optimizer, self.config.clip, check)
        return metrics

    def choose_start(self) -> None:
        """Find the checkpoint to go on from: the newest good one, saying what is wrong with newer ones. Writes nothing.

        Raises UserError where there are checkpoints and none is good, and for a batch that cannot be shared out.
        """
        home = self.record.home / "checkpoint"
        found: checkpoint.Saved | None = None
        wrong: list[str] = []
        per_update = self.share  # raises where the processes cannot share the batch
        parts = getattr(self.config, "minibatches", 1)
        if per_update % parts:
            raise UserError(
                f"{per_update} prompts a process cannot be cut into {parts} minibatches (train.minibatches)"
            )
        if self.engine.leads:
            found, wrong = checkpoint.newest(home, self.record.run.id, self.record.unfit)
        found, wrong = self.engine.from_first((found, wrong))  # one looks, and all go on from the same
        if wrong:
            if found is None:
                raise UserError(f"{wrong[0]}; put back what was there, or remove {home} to begin the run again")
            for each in wrong if self.engine.leads else ():
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
                torch.manual_seed(seed_of(self.record.run.seed, step, self.engine.rank))
                for group in self.optimizer.param_groups:
                    group["lr"] = c.lr * group["scale"] * self.rate(step)
                try:
                    window.append(update(step))
                except Diverged as e:
                    raise self._diverged(step, e) from None
                self.done = step + 1
                self.core_seconds += time.process_time() - start
                event: dict[str, Any] = {"stage": "train", "done": self.done, "total": total}
                if self.logs_after(step):
                    event["metrics"] = mean(window)
                    window.clear()
                    line = {"step": self.done, "core_seconds": self.core_seconds, **event["metrics"]}
                    if self.engine.leads:
                        self.record.log(line)
                    self.engine.log(line, self.done)
                leave = not self.engine.all_agree(not told_to_end())
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
        self.check_weights()
        self.method.eval()
        self.engine.release()

    def logs_after(self, step: int) -> bool:
        """Whether update `step`, counted from 0, ends with a log line: one in so many, and the last."""
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps or self.enough

    def check_weights(self, step: int | None = None) -> None:
        """Raise UserError where weights are not finite, or so large that the model computes what is not.

        `step`: the update that it was found in, None = the last one that is done.

        Asked before every save, and not after every update: weights that the next update's loss and gradient were
        finite with were finite, and that much every update checks.
        """
        odd = [n for n, v in self.method.state_dict().items() if v.is_floating_point() and not is_finite(v)]
        if self.engine.all_agree(not odd) and self.given:
            was_training = self.method.training
            self.method.eval()
            with torch.no_grad(), torch.random.fork_rng(), self.engine.whole():
                prompt = self.reasoner.codec.prompt([p.question for p in self.given[:2]], self.engine.device)
                states_PKD = self.method.think(prompt, Greedy()).states_UKD
                if not self.method.backbone.head(self.method.lens(states_PKD)).isfinite().all():
                    odd = ["what the model computes from its weights"]
            self.method.train(was_training)
        if not self.engine.all_agree(not odd):
            what = ", ".join(odd[:3]) or "something on another process"
            raise self._diverged(self.done - 1 if step is None else step, Diverged(f"not finite: {what}"), odd)

    def _diverged(self, step: int, why: Diverged, odd: Sequence[str] = ()) -> UserError:
        """The error to raise. In `diverged/` is what the step was given, and the state before it where that is whole.

        Data and randomness are functions of (seed, step): the same command, from the last checkpoint, comes here again.
        """
        place, rank = self.record.home / "diverged", self.engine.rank
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
        state = self.engine.full(self.method.state_dict())
        moments = self.engine.full(self._moments())
        if not odd and self.engine.leads and all(is_finite(v) for v in state.values() if v.is_floating_point()):
            checkpoint.write_state(place / "state.pt", {"step": self.done, "method": state, "optimizer": moments})
        first = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
        return UserError(
            f"training diverged at step {step}: {why}; nothing was saved after step {self.saved}; "
            f"its {len(keys)} problems ({first}) and what replays it are in {place}"
        )

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter and name: of those that have had a gradient."""
        state = self.optimizer.state
        return {f"{n}/{k}": v for n, p in self.method.named_parameters() for k, v in state.get(p, {}).items()}

    def _save(self) -> None:
        self.check_weights()
        window = self.counters["window"]
        window[:] = [{k: float(v) for k, v in m.items()} for m in window]
        tensors = {f"method/{n}": v for n, v in self.method.state_dict().items()}
        tensors |= {f"optimizer/{n}": v for n, v in self._moments().items()}
        counters, best = dict(self.counters), self.counters.get("best")
        if best is not None:
            tensors |= {f"best/{n}": v for n, v in best["method"].items()}
            counters["best"] = {k: v for k, v in best.items() if k != "method"}
        progress = {"core_seconds": self.core_seconds, "counters": counters}
        home, run, keep = self.record.home / "checkpoint", self.record.run.id, self.config.keep
        checkpoint.save(home, self.done, tensors, progress, run, self.record.ends, keep, self.engine)
        self.saved = self.done

    def _resume(self) -> None:
        if self.start:
            self._load(self.start)
        if self.engine.leads:
            self.record.go_back(self.start.ends if self.start else {})

    def _load(self, saved: checkpoint.Saved) -> None:
        """Take over all that a checkpoint holds, on as many processes as there are now."""
        self.done = self.saved = saved.step
        self.core_seconds, self.counters = saved.progress["core_seconds"], saved.progress["counters"]
        into = {f"method/{n}": v for n, v in self.method.state_dict().items()}
        best, params = {}, dict(self.method.named_parameters())
        for key, (size, dtype) in checkpoint.contents(saved).items():
            part, _, name = key.partition("/")
            if part == "best":
                best[name] = into[key] = torch.empty(size, dtype=dtype)
            elif part == "optimizer":
                param, _, name = name.rpartition("/")
                p = params[param]
                alone = size != p.shape or not size  # the number of steps, which is nobody's share
                made = torch.empty(size, dtype=dtype, device=p.device) if alone else torch.empty_like(p)
                self.optimizer.state[p][name] = into[key] = made.detach()
        if best:
            self.counters["best"]["method"] = best
        checkpoint.load(saved, into, self.engine)


class Tally:
    """What the micro-batches of an update add up to, on this process."""

    def __init__(self):
        self.terms: list[Mean] = []
        self.logged: dict[str, Logged] = {}

    def add(self, terms: list[Mean], logged: dict[str, Logged]) -> None:
        """One micro-batch's, which must log the same things as the others."""
        terms = [detached(m) for m in terms]
        logged = {name: detached(m) if isinstance(m, Mean) else m for name, m in logged.items()}
        first = not self.logged and not self.terms
        self.terms = terms if first else [a.joined(b) for a, b in zip(self.terms, terms, strict=True)]
        self.logged = logged if first else {name: joined(m, logged[name]) for name, m in self.logged.items()}

    def over_processes(self, engine: Engine) -> dict[str, Tensor]:
        """The loss, and what is logged: means over all that they average, extremes of all."""
        extremes = {name: m for name, m in self.logged.items() if isinstance(m, Extreme)}
        means = {name: m for name, m in self.logged.items() if isinstance(m, Mean)}
        every = [*self.terms, *means.values()]
        sums = engine.sum([m.total for m in every] + [m.count for m in every])
        counts = sums[len(every) :] if engine.world == 1 else [int(n) for n in sums[len(every) :]]
        taken = [Mean(total, n).taken() for total, n in zip(sums, counts)]
        furthest = engine.most([m.sign * m.value for m in extremes.values()])
        found = dict(zip(means, taken[len(self.terms) :]))
        found |= {name: m.sign * x for (name, m), x in zip(extremes.items(), furthest)}
        return {"loss": summed(m.weight * x for m, x in zip(self.terms, taken)), **{n: found[n] for n in self.logged}}


def summed(parts: Iterable[Tensor]) -> Tensor:
    """Their sum; a loss has one term at least."""
    whole = sum(parts)
    assert isinstance(whole, Tensor)
    return whole


def joined(a: Logged, b: Logged) -> Logged:
    """What two micro-batches log under one name, which is of one kind."""
    if isinstance(a, Mean):
        assert isinstance(b, Mean)
        return a.joined(b)
    assert isinstance(b, Extreme)
    return a.joined(b)


def detached(m: Mean) -> Mean:
    """The same without its graph."""
    return Mean(m.total.detach(), m.count, m.weight)


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it that is here is."""
    return bool(held_here(tensor).isfinite().all())


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of all randomness in one step on one process: no two coincide in practice."""
    return (seed * 1_000_003 + step) * 1_009 + rank + 1


def mean(window: list[dict]) -> dict[str, float]:
    """Mean of each metric over the updates that logged it."""
    names = {name for metrics in window for name in metrics}
    values = {name: [float(m[name]) for m in window if name in m] for name in sorted(names)}
    return {name: sum(v) / len(v) for name, v in values.items()}
