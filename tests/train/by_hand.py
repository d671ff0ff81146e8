"""A training step recomputed from its config: the optimizer as its paper writes it, in fp64 and without torch.optim."""

import copy
from pathlib import Path

import torch

from eval import environments
from train.config import Run
from train.engine import Engine
from train.loop import Trainer
from train.record import Record
from train.start import begin


def trainer_of(run: Run, root: Path, say=lambda event: None):
    """The trainer of a run in fp64, as `train.run.execute` sets it up, its environment, and a copy of its method."""
    env = environments.build(run.env)
    torch.manual_seed(run.seed)
    reasoner = begin(run, env, root)
    reasoner.method.double()
    record, engine = Record(root, run), Engine.start("cpu")
    if engine.leads:
        record.open(env.fingerprint(), None)
    kept = copy.deepcopy(reasoner.method)  # before the engine shares it out
    return Trainer(reasoner, record, engine, say), env, kept


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), gradients clipped by norm."""

    def __init__(self, method, config, stop_scale: float = 1.0):
        self.config, self.t = config, 0
        self.params = dict(method.named_parameters())
        self.scale = {name: stop_scale if name.startswith("stop.") else 1.0 for name in self.params}
        self.m = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.v = {name: torch.zeros_like(p) for name, p in self.params.items()}

    def step(self, loss: torch.Tensor, rate: float) -> float:
        """One update at `rate` times the peak learning rate. Returns the gradient's norm."""
        c, self.t = self.config, self.t + 1
        grads = torch.autograd.grad(loss, list(self.params.values()), allow_unused=True)
        norm = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
        with torch.no_grad():
            for (name, p), g in zip(self.params.items(), grads):
                if g is None:
                    continue
                g = g * min(1.0, c.clip / (norm + 1e-6))
                lr = c.lr * rate * self.scale[name]
                p -= lr * c.weight_decay * p
                self.m[name] = 0.9 * self.m[name] + 0.1 * g
                self.v[name] = c.beta2 * self.v[name] + (1 - c.beta2) * g * g
                m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - c.beta2**self.t)
                p -= lr * m / (v.sqrt() + 1e-8)
        return norm


def assert_same_weights(got, want, atol: float = 1e-9) -> None:
    """Every parameter of two methods."""
    for (name, a), (_, b) in zip(got.named_parameters(), want.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
