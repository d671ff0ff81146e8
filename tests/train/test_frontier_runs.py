"""Runs told a frontier, a drawn chain or a whole search, and RL over merged tokens: on policy, in any pieces."""

from dataclasses import replace

import pytest
import torch

from eval.environments import MNNS, build
from eval.environments.base import Problem
from kernels.errors import UserError
from latent.config import LearnedStop, ModelConfig
from latent.methods import CoT, CoT2, Pause, Sim
from latent.methods.base import Method
from latent.policies import Tokens
from tests.train.by_hand import trainer_of
from train import distill, rlvr
from train.algorithms import PPO
from train.config import RLVR, SFT, Run
from train.data import batch
from train.distill import taught
from train.latent import main

MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=32)
ENV = MNNS(digits=4, largest=4)
SUPERVISED = SFT(steps=3, batch=6, lr=0.02, warmup=0, log_every=1)
LEARN = RLVR(steps=2, batch=8, group=4, lr=0.02, warmup=0, log_every=1)
MERGED = CoT2(n_latent=3, policy=Tokens(k=2))


def trained(run: Run, root):
    """Weights, and the log."""
    logged = []
    trainer, env, _ = trainer_of(run, root, lambda event: logged.append(event["metrics"]))
    (rlvr if isinstance(run.train, RLVR) else distill).fit(trainer, env)
    return dict(trainer.method.state_dict()), logged


def assert_same(got, want):
    for name, x in want[0].items():
        torch.testing.assert_close(got[0][name], x, rtol=0, atol=1e-9)
    for a, b in zip(got[1], want[1], strict=True):
        assert {k: float(v) for k, v in a.items()} == pytest.approx({k: float(v) for k, v in b.items()}, abs=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        CoT2(n_latent=3),
        CoT2(n_latent=2, teacher=False),
        CoT2(n_latent=3, told="answer"),
        Sim(n_latent=3, told="frontier"),
        Sim(n_latent=3, told="frontier", head=True),
        Sim(n_latent=3, told="chains", step_tokens=1),
        Pause(CoT2(n_latent=3)),
        CoT(told="chains"),
        CoT(told="search"),
    ],
)
def test_any_micro_batch_gives_the_weights_and_log_of_one_piece(method, tmp_path):
    """Chains that are drawn, too, are drawn for the problem at its place in the batch."""
    run = Run(ENV, MODEL, method, SUPERVISED)
    cut = replace(run, train=replace(run.train, micro_batch=4))
    assert_same(trained(cut, tmp_path / "cut"), trained(run, tmp_path / "whole"))
    trainer, env, made = trainer_of(run, tmp_path / "counts")
    told = taught(env, method, env.train_batch(0, 0, 5), trainer.reasoner.codec)
    assert made.counts(told) == [int(n) for n in Method.counts(made, told)]


@pytest.mark.parametrize(
    "method, algorithm, micro_batch",
    [(MERGED, LEARN.algorithm, 8), (MERGED, PPO(), 0), (replace(MERGED, halt=LearnedStop(bias=-1.0)), PPO(), 2)],
)
def test_rl_over_merged_tokens_is_on_policy_and_the_same_in_any_pieces(method, algorithm, micro_batch, tmp_path):
    run = Run(ENV, MODEL, method, replace(LEARN, algorithm=algorithm))
    whole = trained(run, tmp_path / "whole")
    for metrics in whole[1]:
        assert float(metrics["ratio_min"]) == float(metrics["ratio_max"]) == 1.0
        assert float(metrics["sampler_gap"]) < 1e-9 and float(metrics["entropy_thought"]) > 0
    cut = replace(run, train=replace(run.train, micro_batch=micro_batch))
    assert_same(trained(cut, tmp_path / "cut"), whole)


def test_drawn_chains_differ_from_update_to_update(tmp_path):
    """What `terms` is given of the same problem in several updates is each of its best chains."""
    run = Run(ENV, MODEL, CoT(told="chains"), replace(SUPERVISED, steps=30, batch=4))
    trainer, env, _ = trainer_of(run, tmp_path)
    tied: Problem = build(ENV).parse_question("1 2 3 4")
    trainer.problems = lambda env, step: [tied] * 4
    seen, terms = set(), trainer.method.terms
    trainer.method.terms = lambda batch: (seen.update(tuple(map(tuple, s)) for s in batch.steps), terms(batch))[1]
    distill.fit(trainer, env)
    codec = trainer.reasoner.codec
    every = [env.told(tied, "chains", f"seed {i}").steps for i in range(50)]
    assert seen == {tuple(codec.step(s) for s in steps) for steps in every} and len(seen) == 2


def test_a_run_learns_from_so_many_problems_and_one_that_starts_from_it_too(tmp_path):
    run = Run(ENV, MODEL, CoT2(n_latent=3), replace(SUPERVISED, problems=20, batch=16))
    trainer, env, _ = trainer_of(run, tmp_path)
    seen = [[p.key for p in trainer.problems(env, step)] for step in range(40)]
    few = {key for each in seen for key in each}
    assert len(few) == 20 and len({tuple(each) for each in seen}) == 40
    assert all(env.split(p) == "train" for p in trainer.problems(env, 7))
    after = replace(run, init="another")
    assert {p.key for step in range(40) for p in batch(env, after, step)} == few
    assert few < {p.key for step in range(80) for p in batch(env, replace(run, train=more(run, 30)), step)}
    assert few != {p.key for step in range(40) for p in batch(env, replace(run, seed=1), step)}
    with pytest.raises(UserError, match=r"train\.problems 500: there are \d+ in the training split"):
        batch(env, replace(run, train=more(run, 500)), 0)


def more(run: Run, n: int) -> SFT:
    return replace(run.train, problems=n)


@pytest.mark.parametrize(
    "args, said",
    [
        (["cot2", "--env", "cups"], "CoT2 is taught by the frontier (method.told frontier), which this environment"),
        (["sim", "--method.told", "frontier"], "Sim is taught by the frontier"),
        (["cot", "--method.told", "search"], "CoT is taught by a chain of all branches"),
        (["pause", "--method.of.told", "frontier"], "Pause is taught by the frontier"),
        (["cot2", "--env.largest", "3000"], "have 24001 partial sums, each a token of its own"),
        (["cot2", "--method.policy", "tokens", "--method.policy.k", "0"], "k must be at least 1, got 0"),
        (["cups", "--env.state-tokens", "1", "--env.cups", "8"], "of 8 cups take 40320 words"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(args, said, tmp_path, capfd):
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out").exists()
