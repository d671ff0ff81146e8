"""From config to weights: every number of a supervised run's config reaches the update that it is about."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from eval.environments import Cups, build
from latent.config import ModelConfig
from latent.methods import NoCoT, Sim
from latent.text import Batch
from train import distill, record
from train.config import SFT, Judge, Run
from train.data import seed_of
from train.engine import Engine
from train.loop import Trainer
from train.resume import choose_start
from train.start import begin

HOW = SFT(
    steps=8, batch=4, lr=1e-2, warmup=3, decay=0.5, decay_to=0.1, weight_decay=0.4, beta2=0.95, clip=0.5, log_every=3
)
RUN = Run(
    Cups(), ModelConfig(n_layer=1, n_embd=16, n_head=1), Sim(n_latent=2, step_tokens=16), HOW, Judge(items=4), seed=3
)


def trainer_of(run: Run, root, engine=None) -> Trainer:
    torch.manual_seed(run.seed)
    reasoner = begin(run, build(run.env), root)
    reasoner.method.double()  # Adam blows up the rounding of gradients that are zero
    made = Trainer(reasoner, record.Record(root, run), engine or Engine.start("cpu"), lambda event: None)
    choose_start(made)
    (root / run.id).mkdir(exist_ok=True)
    return made


def by_hand(run: Run, root, **change) -> list[dict[str, torch.Tensor]]:
    """Weights after every update, written out: clipping, warm-up and decay of the rate, AdamW (arXiv:1711.05101)."""
    c = dataclasses.replace(run.train, **change)
    torch.manual_seed(run.seed)
    reasoner, env = begin(run, build(run.env), root), build(run.env)
    reasoner.method.double().train()
    params = dict(reasoner.method.named_parameters())
    m = {n: torch.zeros_like(p) for n, p in params.items()}
    v = {n: torch.zeros_like(p) for n, p in params.items()}
    after = []
    for step in range(c.steps):
        torch.manual_seed(seed_of(run.seed, step, 0))
        loss, _ = reasoner.method.loss(Batch.of(env.train_batch(run.seed, step, c.batch), reasoner.codec))
        grads = dict(zip(params, torch.autograd.grad(loss, params.values(), allow_unused=True)))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values() if g is not None))
        rate = c.lr * min(1.0, (step + 1) / max(1, c.warmup))
        begins = c.steps * (1 - c.decay)
        if step > begins:
            rate *= 1 + (c.decay_to - 1) * (step - begins) / (c.steps - begins)
        with torch.no_grad():
            for n, p in params.items():
                if grads[n] is None:
                    continue
                g = grads[n] * min(1.0, c.clip / norm)
                m[n] = 0.9 * m[n] + 0.1 * g
                v[n] = c.beta2 * v[n] + (1 - c.beta2) * g**2
                ahead = m[n] / (1 - 0.9 ** (step + 1))
                size = (v[n] / (1 - c.beta2 ** (step + 1))).sqrt() + 1e-8
                p.copy_(p * (1 - rate * c.weight_decay) - rate * ahead / size)
        after.append({n: p.detach().clone() for n, p in params.items()})
    return after


def gap(a: dict, b: dict) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def test_an_update_is_what_the_config_says_written_out(tmp_path):
    trainer, env, seen = trainer_of(RUN, tmp_path), build(RUN.env), []
    trainer.say = lambda event: seen.append({n: p.detach().clone() for n, p in trainer.method.named_parameters()})
    distill.fit(trainer, env)
    want = by_hand(RUN, tmp_path)
    assert len(seen) == 8
    for mine, theirs in zip(seen, want):
        assert gap(mine, theirs) < 1e-7
    # and each number matters by far more than that, so none of them can be left out unseen
    moved = {"warmup": 0, "decay": 0.0, "decay_to": 0.9, "weight_decay": 0.0, "beta2": 0.999, "clip": 1e9, "lr": 9e-3}
    for name, value in moved.items():
        assert gap(seen[-1], by_hand(RUN, tmp_path, **{name: value})[-1]) > 2e-4, name


@pytest.mark.parametrize("rank", [0, 1])
def test_every_update_and_process_draws_from_a_seed_of_its_own(rank, tmp_path):
    alone = SimpleNamespace(
        num_processes=1, process_index=rank, is_main_process=rank == 0, device=torch.device("cpu"),
        log=lambda *args: None, wait_for_everyone=lambda: None,
    )  # fmt: skip
    drawn = []

    def update(step: int) -> dict:
        drawn.append((step, torch.initial_seed(), float(torch.rand(()))))
        return {"loss": torch.tensor(0.0)}

    trainer_of(RUN, tmp_path, Engine(alone)).fit(update)
    assert [seed for _, seed, _ in drawn] == [seed_of(3, step, rank) for step in range(8)]
    assert len({x for *_, x in drawn}) == 8


def test_no_two_updates_processes_or_runs_share_a_seed():
    every = {seed_of(seed, step, rank) for seed in range(4) for step in range(300) for rank in range(8)}
    assert len(every) == 4 * 300 * 8 and min(every) > 0
    assert seed_of(2**32 - 1, 2**20, 1000) < 2**63  # torch takes no larger one


def test_a_run_ends_at_the_first_log_line_that_reaches_stop_at(tmp_path):
    """Two cups and one swap: two answers, so that a share of .3 right is soon reached."""
    how = SFT(steps=400, batch=16, warmup=0, stop_at=0.3, log_every=5)
    run = dataclasses.replace(RUN, env=Cups(cups=2, swaps=2, min_swaps=1), method=NoCoT(), train=how)
    trainer = trainer_of(run, tmp_path)
    distill.fit(trainer, build(run.env))
    log = [json.loads(line) for line in (tmp_path / run.id / "metrics.jsonl").read_text().splitlines()]
    assert trainer.done == log[-1]["step"] < 400 and log[-1]["exact"] >= 0.3
    assert all(line["exact"] < 0.3 for line in log[:-1])


def test_a_log_line_is_the_mean_of_the_updates_since_the_last_one(tmp_path):
    """The same run logged after every update and after every third: eight updates, three lines."""
    logs = []
    for every in (1, 3):
        run = dataclasses.replace(RUN, train=dataclasses.replace(HOW, log_every=every))
        distill.fit(trainer_of(run, tmp_path), build(run.env))
        text = (tmp_path / run.id / "metrics.jsonl").read_text()
        logs.append([json.loads(line) for line in text.splitlines()])
    each, lines = logs
    assert [line["step"] for line in lines] == [3, 6, 8]
    for line, part in zip(lines, (each[:3], each[3:6], each[6:]), strict=True):
        for name in ("loss", "grad_norm", "exact", "step_exact"):
            assert line[name] == pytest.approx(sum(x[name] for x in part) / len(part), abs=1e-12)


def test_seeding_a_step_seeds_dropout_and_leaves_nothing_behind(tmp_path):
    """Without a GPU torch.manual_seed keeps a call with its stack trace for every kind of device, at every call."""
    trainer = trainer_of(RUN, tmp_path)
    queued = len(torch.cuda._queued_calls)
    trainer.seed_dropout(5)
    seeded = torch.rand(4)
    assert len(torch.cuda._queued_calls) == queued
    torch.manual_seed(seed_of(RUN.seed, 5, 0))
    assert torch.equal(torch.rand(4), seeded)
