"""How often the host waits for a GPU in an update: counted on the CPU, where the same operations run."""

import weakref
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from eval.environments import MNNS, Countdown, Cups
from latent.config import LearnedStop, ModelConfig
from latent.methods import Coconut, Codi, CoT, CoT2, ICoT, Sim
from tests.helpers import small_reasoner
from tests.train.by_hand import trainer_of
from train import distill, rlvr
from train.config import RLVR, SFT, Run

aten = torch.ops.aten
# the shape or the value of what they return is data: on a GPU the host waits for it
OPS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.unique_dim,
    aten._unique2, aten.unique_consecutive, aten.bincount, aten.repeat_interleave, aten.allclose,
}  # fmt: skip
FETCH = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}
MAKE = {torch.rand, torch.randint, torch.tensor, torch.as_tensor, torch.arange, torch.zeros, torch.ones}


class Syncs(TorchFunctionMode):
    """Counts, by name, what would make the host wait for a GPU on which all tensors are but the host's own.

    The host's own are made without a device and have not been sent to one, or have been fetched (`cpu`).
    """

    def __init__(self):
        self.found: Counter[str] = Counter()
        self.host: dict[int, weakref.ref] = {}
        self.inner = _Ops(self)

    def __enter__(self):
        self.inner.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.inner.__exit__(*error)

    def keep(self, x) -> None:
        if isinstance(x, torch.Tensor):
            self.host[id(x)] = weakref.ref(x)

    def is_host(self, x) -> bool:
        return id(x) in self.host and self.host[id(x)]() is x

    def count(self, name: str, *tensors) -> None:
        if not all(self.is_host(x) for x in tensors if isinstance(x, torch.Tensor)):
            self.found[name] += 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FETCH:
            self.count(func.__name__, args[0])
        out = func(*args, **kwargs)
        if func is torch.Tensor.cpu or (func in MAKE and kwargs.get("device") is None):
            self.keep(out := out.clone() if func is torch.Tensor.cpu else out)
        elif func in MAKE and func in (torch.tensor, torch.as_tensor):
            self.found["a copy to the device that is waited for"] += 1
        elif func is torch.Tensor.to and self.is_host(args[0]):
            if not kwargs.get("non_blocking") and (kwargs.get("device") or isinstance(args[1], (str, torch.device))):
                out = out.clone()  # `sent` on a CPU: on a GPU it does not wait
            elif isinstance(args[1], torch.dtype):
                self.keep(out)
        return out


class _Ops(TorchDispatchMode):
    def __init__(self, syncs: Syncs):
        super().__init__()
        self.syncs = syncs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        if func.overloadpacket in OPS or any(x is not None and x.dtype == torch.bool for x in indices):
            self.syncs.count(func.overloadpacket.__name__, *tensors)
        out = func(*args, **(kwargs or {}))
        if tensors and all(self.syncs.is_host(x) for x in tensors):
            for x in torch.utils._pytree.tree_leaves(out):
                self.syncs.keep(x)
        return out


def test_the_counter_counts():
    """Each way of waiting, on tensors of the device; none on the host's own; none in what only computes."""
    x, own = torch.randn(4, requires_grad=True).detach(), None
    waits = {
        "item": lambda x: x[0].item(), "bool": lambda x: bool(x[0] > 0), "list": lambda x: x.tolist(),
        "index": lambda x: x[x > 0], "nonzero": lambda x: x.nonzero(), "cpu": lambda x: x.cpu(),
        "equal": lambda x: torch.equal(x, x), "unique": lambda x: torch.unique(x),
        "sent": lambda x: torch.tensor([1.0], device="cpu"),
    }  # fmt: skip
    for name, wait in waits.items():
        with Syncs() as syncs:
            wait(x)
        assert sum(syncs.found.values()) == 1, (name, syncs.found)
    with Syncs() as syncs:
        own = torch.rand(3)
        assert float(own[0] * 2) < 2 and (own + 1).tolist()
        fetched = x.cpu()
        fetched.tolist(), float(fetched[0]), (x * 2).masked_fill(x > 0, 1.0)[torch.tensor([0, 1])]
    assert syncs.found == {"cpu": 1}


MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=128)
CUPS = Cups(swaps=4, min_swaps=1)
RAGGED = Countdown(numbers=3)  # prompts, chains and answers of many lengths
SFT_METHODS = {
    "sim": (CUPS, Sim(n_latent=4)),
    "sim, ragged": (RAGGED, Sim(n_latent=4, step_tokens=32)),
    "sim, stops": (CUPS, Sim(n_latent=4, halt=LearnedStop(bias=0.0))),
    "cot, ragged": (RAGGED, CoT()),
    "cot2": (MNNS(), CoT2(n_latent=4)),
    "coconut, ragged": (RAGGED, Coconut(n_latent=4, first_stage=2)),
    "codi, ragged": (RAGGED, Codi(n_latent=4)),
}


@pytest.mark.parametrize("name", SFT_METHODS)
def test_a_supervised_update_waits_once(name, tmp_path):
    """For loss, gradient norm and what is logged, together."""
    env, method = SFT_METHODS[name]
    run = Run(env, MODEL, method, SFT(steps=3, batch=6, log_every=100, warmup=0))
    trainer, env, _ = trainer_of(run, tmp_path)
    counts, plain = [], trainer.fit

    def counting(update, *args):
        def counted(step: int):
            with Syncs() as syncs:
                for buffer in trainer.method.on_host:
                    syncs.keep(getattr(trainer.method, buffer))
                metrics = update(step)
            counts.append(dict(syncs.found))
            return metrics

        return plain(counted, *args)

    trainer.fit = counting
    distill.fit(trainer, env)
    assert counts == [{"cpu": 1}] * 3


@pytest.mark.parametrize("method", [Coconut(n_latent=4), ICoT()], ids=["coconut", "icot"])
def test_what_the_host_decides_by_stays_on_the_host(method):
    method = small_reasoner(method).method
    before = {name: getattr(method, name).clone() for name in method.on_host}
    method.to("meta")
    assert method.backbone.device.type == "meta" and len(before) > 1
    for name, buffer in before.items():
        assert getattr(method, name).device.type == "cpu" and torch.equal(getattr(method, name), buffer)
    method.begin_update()
    method.learned({"exact": torch.ones(()), "chain_left": torch.ones(())})
    assert dict(method.named_buffers()).keys() >= before.keys() == set(method.on_host)


def test_learning_from_rollouts_waits_three_times(tmp_path):
    """For the texts' lengths, for which of them are equal, and for what is checked and logged."""
    how = RLVR(steps=1, batch=4, group=4, log_every=100)
    trainer, env, _ = trainer_of(Run(CUPS, MODEL, Sim(n_latent=4), how), tmp_path)
    prompt = trainer.reasoner.codec.prompt([p.question for p in trainer.problems(env, 0)], trainer.engine.device)
    rolled = rlvr.sample(trainer, prompt, 0)
    outcome_B = torch.randn(16)
    trainer.done = 1  # in the first update the counts of the algorithm's terms are looked at as well
    with Syncs() as syncs:
        rlvr.learn(trainer, rolled, outcome_B, None)
    assert syncs.found == {"cpu": 3}
