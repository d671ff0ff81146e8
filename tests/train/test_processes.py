"""Several processes, DDP or FSDP2, and any micro-batch train what one process does in one piece, on ragged texts."""

import dataclasses
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eval.environments import GSM8K, MNNS, Cups, EnvConfig, build
from eval.judge import judge
from latent.config import LearnedStop, ModelConfig
from latent.methods import (
    METHODS,
    Coconut,
    Codi,
    Colar,
    CoT,
    FixedEmbedding,
    Hrpo,
    ICoT,
    MethodConfig,
    Pause,
    Pccot,
    Recurrent,
    Sim,
    Soft,
)
from latent.methods.terms import Mean
from latent.policies import Gaussian
from latent.text import Batch
from tests.train import workers
from tests.train.by_hand import trainer_of
from train import distill, rlvr
from train.algorithms import GRPO, PPO
from train.config import RLVR, SFT, Run
from train.engine import Engine
from train.loop import over_processes
from train.losses import Extreme
from train.resume import choose_start
from train.selection import Selection
from train.start import begin

pytestmark = pytest.mark.slow  # launches of several processes, once for all tests (conftest.py)
MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=192, vocab_size=300)
SUPERVISED = SFT(steps=4, batch=8, lr=0.02, warmup=0, log_every=1)
LEARN = RLVR(steps=2, batch=8, group=3, lr=0.02, warmup=0, log_every=1, epochs=2, minibatches=2, kl=0.3, entropy=0.02,
             clip_low=0.01, clip_high=0.04, latent_cost=1 / 16)  # fmt: skip
CHOSEN = {  # settings that use more of a method than its defaults, and the micro-batches of several processes
    "cot": (CoT(every=2), 3),
    "coconut": (Coconut(n_latent=3, first_stage=2, earlier=0.5, stage_steps=3), 1),
    "sim": (Sim(n_latent=4, step_tokens=48, step_weight=0.5, halt=LearnedStop()), 3),
    "pause": (Pause(of=Coconut(n_latent=3, first_stage=4)), 0),
    "fixed": (FixedEmbedding(of=Sim(n_latent=2, step_tokens=96)), 2),
    "recurrent": (Recurrent(r_min=1, r_max=3, prelude=0), 1),
    "codi": (Codi(n_latent=3, distill_weight=5.0), 3),
    "pccot": (Pccot(n_latent=4, iterations=2), 2),
    "icot": (ICoT(whole=1, remove_every=2, smoothing=0.5), 3),
    "soft": (Soft(n_latent=5), 1),
    "hrpo": (Hrpo(n_latent=64, halt=LearnedStop()), 2),
    "colar": (Colar(n_latent=16, halt=LearnedStop()), 3),
}
BY_RL = {
    "rl": (Sim(n_latent=4, halt=LearnedStop(bias=-0.5)), 0),
    "rl, groups cut": (Sim(n_latent=4, halt=LearnedStop(bias=-0.5)), 2),
    "rl, prompts cut": (Sim(n_latent=4, halt=LearnedStop(bias=-0.5)), 4),
    "rl, nothing random in a thought": (Sim(n_latent=2), 4),
    "rl, gated tokens": (Hrpo(n_latent=3), 4),
    "rl, predicted latents": (Colar(n_latent=2, halt=LearnedStop(bias=-0.5)), 2),
    "rl, across prompts": (Sim(n_latent=4, halt=LearnedStop(bias=-0.5)), 2),
    "rl, ppo": (Sim(n_latent=2, halt=LearnedStop(bias=-0.5), policy=Gaussian(std=0.3)), 2),
}
RUNS: dict[str, tuple[MethodConfig, int]] = {name: CHOSEN.get(name, (cls(), 2)) for name, cls in METHODS.items()}
RUNS |= BY_RL
SHARDED = (*METHODS, "rl", "rl, groups cut", "rl, gated tokens")


@dataclasses.dataclass(frozen=True)
class Across(GRPO):
    """What a rollout is worth is measured against those of all prompts, as in REINFORCE++ (arXiv:2501.03262)."""

    name: ClassVar[str] = "across"

    def outcome(self, reward_PG):
        return (reward_PG - reward_PG.mean()) / (reward_PG.std() + 1e-6)


def run_of(name: str, data: str, micro_batch: int = 0, **change) -> Run:
    """The run of a name; rewards differ by the latents used, or by nothing at all."""
    method, learn = RUNS[name][0], LEARN if name in BY_RL else SUPERVISED
    env: EnvConfig = GSM8K(train=data, max_chain=192, max_answer=8)
    if method.told == "frontier":
        env = MNNS()
    elif name == "recurrent":  # its answers have one length
        env = Cups(cups=4)
    change |= {"algorithm": PPO(lam=0.8)} if "ppo" in name else {}
    change |= {"algorithm": Across()} if "across" in name else {}
    change |= {"steps": 1} if "cut" in name else {}
    return Run(env, MODEL, method, dataclasses.replace(learn, micro_batch=micro_batch, **change))


def train(run: Run, root: Path) -> tuple[dict, list]:
    """Weights and buffers, and all log lines."""
    logged = []
    trainer, env, _ = trainer_of(run, root, lambda event: logged.append(event["metrics"]))
    (rlvr if isinstance(run.train, RLVR) else distill).fit(trainer, env)
    return dict(trainer.method.state_dict()), logged


def on_two(folder: Path, data: str) -> None:
    """What each of two processes finds: everything in DDP, some of it in FSDP2."""
    rank = int(os.environ["RANK"])
    found = {name: train(run_of(name, data, cut), folder / f"{rank}") for name, (_, cut) in RUNS.items()}
    found["means"], found["last without"] = means(rank), last_without(folder / f"{rank}", data)
    found["judged"] = judged(data, Engine.start("cpu"))
    found["killed"] = stopped(folder / "two", data, at=3)
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    sharded = {name: train(run_of(name, data, RUNS[name][1]), folder / f"fsdp{rank}") for name in SHARDED}
    found["fsdp"] = sharded | {"last without": last_without(folder / f"fsdp{rank}", data)}
    found["held"] = held(folder / f"fsdp{rank}", data)
    torch.save(found, folder / f"two-{rank}.pt")


def on_four(folder: Path, data: str) -> None:
    """DDP on four processes, and FSDP2 on four that goes on from what two had saved in DDP."""
    rank, names = int(os.environ["RANK"]), ("sim", "rl, groups cut")
    found = {name: train(run_of(name, data, 1), folder / f"{rank}") for name in names}
    found["judged"] = judged(data, Engine.start("cpu"))
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    found["resumed"] = resumed(folder / "two", data)
    torch.save(found, folder / f"four-{rank}.pt")


def long_run(data: str) -> Run:
    return run_of("sim", data, steps=6, save_every=2, log_every=4, valid_every=2, valid_items=6, select="best")


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def stopped(root: Path, data: str, at: int) -> None:
    """A run that is killed after update `at`."""

    def say(event):
        if event["done"] == at:
            raise Killed

    with pytest.raises(Killed):
        resumed(root, data, say)


def resumed(root: Path, data: str, say=lambda event: None) -> tuple[dict, list]:
    """The same run to its end, from whatever it has saved: its weights and its best ones, and its log."""
    run = long_run(data)
    trainer, env, _ = trainer_of(run, root, say)
    choose_start(trainer)
    trainer.selection = Selection(env, run)
    distill.fit(trainer, env)
    last = {f"last {k}": v.clone() for k, v in trainer.method.state_dict().items()}
    said = trainer.selection.choose(trainer)
    log = [json.loads(line) for line in (root / run.id / "metrics.jsonl").read_text().splitlines()]
    return {**last, **trainer.method.state_dict()}, [said["selected"], *log]


def judged(data: str, among: Engine | None, batch: int = 5) -> list:
    """Items of texts that end where the longest prompt of their batch leaves no position: what is padded matters."""
    run = dataclasses.replace(run_of("cot", data), model=dataclasses.replace(MODEL, n_positions=40))
    torch.manual_seed(3)
    env = build(run.env)
    reasoner = begin(run, env, Path("."))
    return judge(reasoner, env, env.train_batch(0, 0, 13), batch=batch, among=among)


def last_without(root: Path, data: str) -> tuple[dict, list]:
    """An update in which each process's first micro-batch has steps for the decoder, and its last one none."""
    trainer, env, _ = trainer_of(run_of("sim", data), root)
    problems, engine = env.train_batch(0, 0, 40), trainer.engine
    having = [p for p in problems if p.steps][:2], [p for p in problems if not p.steps][:2]
    batches = [Batch.of([p], trainer.reasoner.codec) for pair in zip(*having) for p in pair]
    mine = batches[engine.rank * 2 :][:2] if engine.world == 2 else batches

    def counts() -> list:
        return [sum(each) for each in zip(*(trainer.method.counts(b) for b in mine))]

    parts = [lambda b=b: engine.module("terms", replace(b, generator=torch.Generator().manual_seed(0))) for b in mine]
    logged = trainer.descend(parts, counts)
    engine.release()
    return dict(trainer.method.state_dict()), [{name: float(x) for name, x in logged.items()}]


class Calls(TorchDispatchMode):
    """Counts collective calls by name."""

    def __init__(self):
        super().__init__()
        self.made = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in str(func):
            self.made[str(func).split(".")[1].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def held(root: Path, data: str) -> dict:
    """What one process of an FSDP2 run holds of parameters and moments, and what an update with k latents moves."""
    calls = {}
    for k in (1, 4):
        run = dataclasses.replace(run_of("sim", data), method=Sim(n_latent=k, step_tokens=96))
        trainer, env, _ = trainer_of(run, root)
        batch = Batch.of(trainer.problems(env, 0), trainer.reasoner.codec)
        with Calls() as counted:
            trainer.descend([lambda trainer=trainer, batch=batch: trainer.engine.module("terms", batch)])
        calls[k] = dict(counted.made)
    parameters = list(trainer.method.parameters())
    moments = [x for state in trainer.optimizer.state.values() for x in state.values() if x.dim()]
    here = [sum(x.to_local().numel() for x in each) for each in (parameters, moments)]
    return {"calls": calls, "whole": sum(p.numel() for p in parameters), "parameters": here[0], "moments": here[1]}


def means(rank: int) -> dict:
    """Of two micro-batches, by hand: what two processes find together."""
    parts, engine = [], Engine.start("cpu")
    for i in range(2):
        x, n = torch.tensor(2.0 + rank + i), 1 + 2 * rank
        extremes = {"most": Extreme(torch.tensor(float(rank - i)), 1), "least": Extreme(torch.tensor(rank + i), -1)}
        terms = [Mean(torch.tensor(3.0), 1 + rank, 2.0), Mean(torch.zeros(()), 0)]
        parts.append((terms, {"x": Mean(x, n), **extremes}))
    return {name: float(value) for name, value in over_processes(parts, engine).items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds, each of two and each of four."""
    folder = tmp_path_factory.mktemp("processes")
    rows = [
        {"question": f"Say {i}" * (1 + i % 3), "steps": [f"<<{j}+1={j + 1}>>" for j in range((5 * i) % 6)],
         "answer": str(i**2)}
        for i in range(80)
    ]  # fmt: skip
    data = folder / "ragged.json"
    data.write_text(json.dumps(rows))
    one = {name: train(run_of(name, str(data)), folder / "one") for name in RUNS}
    one["last without"] = last_without(folder / "one", str(data))
    one["resumed"], one["judged"] = resumed(folder / "whole", str(data)), judged(str(data), None)
    assert one["judged"] == judged(str(data), None, batch=1)  # nor do the rows beside it move where a text is cut
    workers.run(2, on_two, folder, str(data))
    workers.run(4, on_four, folder, str(data))
    two, four = ([torch.load(folder / f"{n}-{i}.pt", weights_only=False) for i in range(m)]
                 for n, m in (("two", 2), ("four", 4)))  # fmt: skip
    return one, two, four


def assert_same(got: tuple[dict, list], want: tuple[dict, list]) -> None:
    """Weights and buffers to rounding in fp64, and every number that was logged."""
    assert got[0].keys() == want[0].keys() and len(got[1]) == len(want[1])
    for name, x in want[0].items():
        torch.testing.assert_close(got[0][name], x, rtol=0, atol=1e-9, msg=lambda m, k=name: f"{k}: {m}")
    for a, b in zip(got[1], want[1], strict=True):
        drop = {"core_seconds"}
        assert {k: v for k, v in a.items() if k not in drop} == pytest.approx(
            {k: v for k, v in b.items() if k not in drop}, abs=1e-6
        )


@pytest.mark.parametrize("name", [*RUNS, "last without"])
def test_two_processes_are_one(name, found):
    """Whatever the micro-batches; in RL the rollouts, too, are those of one process."""
    one, two, _ = found
    for each in two:
        assert_same(each[name], one[name])


@pytest.mark.parametrize("name", [*SHARDED, "last without"])
def test_two_processes_that_share_the_parameters_are_one(name, found):
    one, two, _ = found
    for each in two:
        assert_same(each["fsdp"][name], one[name])


@pytest.mark.parametrize("name", ["sim", "rl, groups cut"])
def test_four_processes_are_one(name, found):
    one, _, four = found
    for each in four:
        assert_same(each[name], one[name])


def test_a_run_of_two_processes_goes_on_on_four_that_share_the_parameters(found):
    """Killed between two log lines: what they had measured since the last one is not lost, nor are the best weights."""
    one, _, four = found
    for each in four:
        assert_same(each["resumed"], one["resumed"])


def test_means_and_extremes_are_over_all_micro_batches_and_processes(found):
    """(4 * 3) / (1 + 1 + 2 + 2) twice weighted, a term of nothing, (2 + 3 + 3 + 4) / (1 + 1 + 3 + 3) logged."""
    _, two, _ = found
    for each in two:
        assert each["means"] == pytest.approx({"loss": 4.0, "x": 1.5, "most": 1.0, "least": 0.0})


def test_an_evaluation_is_shared_and_comes_out_as_that_of_one(found):
    one, two, four = found
    assert len(one["judged"]) == 13
    for each in (*two, *four):
        assert each["judged"] == one["judged"]


def test_each_process_holds_its_share_and_gathers_once_an_update(found):
    """However many latents: one gather of the parameters, one scatter of the gradients."""
    _, two, _ = found
    for each in two:
        held = each["held"]
        assert held["parameters"] <= 0.55 * held["whole"] and held["moments"] <= 2 * 0.55 * held["whole"]
        assert held["calls"][1] == held["calls"][4]
        gathers = [n for name, n in held["calls"][4].items() if "allgather_base" in name]
        scatters = [n for name, n in held["calls"][4].items() if "reduce_scatter" in name]
        assert sum(gathers) == sum(scatters) == 1, held["calls"]
