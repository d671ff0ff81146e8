"""Micro-batches of any size on one process, and what they rest on: counts told beforehand, draws of whole batches."""

import dataclasses
import json

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from eval.environments import Cups, build
from kernels.errors import UserError
from latent.config import ModelConfig
from latent.generate import rollout
from latent.methods import METHODS
from latent.methods.base import Method
from latent.methods.terms import Mean
from latent.rollout import Rollout, pieces
from latent.text import Batch
from latent.thought import Share
from tests.train.by_hand import trainer_of
from tests.train.test_processes import BY_RL, LEARN, assert_same, run_of, train
from train import memory
from train.algorithms import Algorithm, DrGRPO
from train.config import RLVR, SFT, Run
from train.presets import PRESETS


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Problems with chains of 0 to 7 steps, of one token to several."""
    rows = [
        {"question": f"Say {i}" * (1 + i % 3), "steps": [f"<<{j}+1={j + 1}>>" for j in range((3 * i) % 8)],
         "answer": str(i**2)}
        for i in range(40)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("ragged") / "ragged.json"
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("name, size", [("sim", 1), ("sim", 5), ("coconut", 3), ("rl, groups cut", 1), ("rl", 7)])
def test_any_micro_batch_gives_the_weights_and_log_of_one_piece(name, size, data, tmp_path):
    whole = train(run_of(name, data), tmp_path / "whole")
    assert_same(train(run_of(name, data, size), tmp_path / "cut"), whole)
    assert run_of(name, data, size).id == run_of(name, data).id


@dataclasses.dataclass(frozen=True)
class ByRollout(DrGRPO):
    """A loss that is a mean over rollouts, and does not say so."""

    over: str = "rollouts"

    def counts(self, decisions):
        return Algorithm.counts(self, decisions)


@dataclasses.dataclass(frozen=True)
class WithMore(DrGRPO):
    """With a second term, a mean over all decisions."""

    terms = 2

    def loss(self, now, old, *args):
        (policy,), logged = super().loss(now, old, *args)
        total = sum((d.logp_BT * d.mask_BT).sum() for d in now)
        return [policy, Mean(-0.1 * total, sum(d.mask_BT.sum() for d in now))], logged


@pytest.mark.parametrize("over", ["rollouts", "sums"])
def test_a_mean_over_rollouts_is_that_of_one_piece(over, data, tmp_path):
    run = run_of("rl", data)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, algorithm=DrGRPO(over=over)))
    cut = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=5))
    assert_same(train(cut, tmp_path / "cut"), train(run, tmp_path / "whole"))


def test_a_term_more_counts_as_the_decisions_do(data, tmp_path):
    run = run_of("rl", data)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, algorithm=WithMore(over="sums")))
    cut = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=5))
    assert_same(train(cut, tmp_path / "cut"), train(run, tmp_path / "whole"))


def test_an_algorithm_whose_counts_are_not_those_of_its_terms_is_refused(data, tmp_path):
    run = run_of("rl", data)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, algorithm=ByRollout()))
    with pytest.raises(UserError, match=r"ByRollout\.counts says that .* are means over \[\d+\], and they are"):
        train(run, tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_terms(name, data, tmp_path):
    """As the method tells them and as the base class finds them out, of batches whose draws differ, drawn alike."""
    trainer, env, method = trainer_of(run_of(name, data), tmp_path)
    problems, seen = env.train_batch(0, 0, 9), set()
    for seed in range(6):
        some = problems[: 3 + seed]
        frontiers = [env.frontiers(p) for p in some] if method.config.told == "frontier" else None
        batch = Batch.of(some, trainer.reasoner.codec, frontiers=frontiers, numbers=range(3 + seed), whole=9)
        drawn = lambda batch=batch, seed=seed: dataclasses.replace(  # noqa: E731
            batch, generator=torch.Generator().manual_seed(seed)
        )
        want = [int(term.count) for term in method.terms(drawn())[0]]
        before = torch.get_rng_state()
        assert method.counts(drawn()) == want and [int(n) for n in Method.counts(method, drawn())] == want
        assert torch.equal(torch.get_rng_state(), before)
        seen.add(tuple(want))
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["token", "halt"])
def test_a_share_of_a_batch_draws_what_the_whole_would_have_drawn_for_it(kind):
    logits = torch.randn(12, *((7,) if kind == "token" else ()), dtype=torch.float64)
    make = lambda rows: (Categorical if kind == "token" else Bernoulli)(logits=logits[rows])  # noqa: E731
    torch.manual_seed(5)
    want = torch.stack([make(slice(None)).sample() for _ in range(50)])
    for rows in (torch.arange(12), torch.tensor([3, 4, 9]), torch.tensor([11])):
        share = Share(rows, 12, torch.Generator().manual_seed(5))
        assert torch.equal(torch.stack([share.sample(make(rows)) for _ in range(50)]), want[:, rows])
    assert len(want.unique(dim=0)) > 10


@pytest.mark.parametrize("prompts, group, most", [(5, 4, 0), (5, 4, 20), (5, 4, 9), (5, 4, 4), (5, 4, 3), (5, 4, 1)])
def test_pieces_are_all_rollouts_in_order_and_none_is_too_large(prompts, group, most):
    rows = torch.arange(2 * group, (2 + prompts) * group)
    every = torch.arange((2 + prompts) * group)
    cut = [every[piece.rows(group)] for piece in pieces(range(2, 2 + prompts), group, most)]
    assert torch.equal(torch.cat(cut), rows) and all(len(part) <= (most or 20) for part in cut)


def test_rollouts_that_were_cut_are_what_they_were_when_they_are_joined(tmp_path):
    run = Run(Cups(), ModelConfig(n_layer=1, n_embd=16, n_head=1), BY_RL["rl"][0], LEARN)
    trainer, env, method = trainer_of(run, tmp_path)
    prompt = trainer.reasoner.codec.prompt([p.question for p in env.train_batch(0, 0, 4)])
    rolled = rollout(method, prompt, 5, trainer.reasoner.max_tokens, None, 1.0)
    parts = [rolled.part(piece) for piece in pieces(range(4), 5, 3)]
    assert len({part.decisions[0].mask_BT.shape[1] for part in parts}) > 1  # cut to what each has decided
    joined = Rollout.joined(prompt, 5, parts, None)
    assert torch.equal(joined.tokens_BT, rolled.tokens_BT) and torch.equal(joined.used_B, rolled.used_B)
    for a, b in zip(joined.decisions, rolled.decisions, strict=True):
        made = b.mask_BT
        assert torch.equal(a.mask_BT, made) and torch.equal(a.logp_BT[made], b.logp_BT[made])
        assert torch.equal(a.value_BT[made], b.value_BT[made])


def test_a_group_that_no_machine_holds_fits_in_micro_batches(monkeypatch):
    (run, *_) = [run for run in PRESETS["cups-rlvr"]().runs().values() if isinstance(run.train, RLVR)]
    huge = dataclasses.replace(run, train=dataclasses.replace(run.train, group=10**9))
    sample = build(huge.env).problems("test", 2, 4)
    monkeypatch.setattr(memory, "machine", lambda: 2**33)
    with pytest.raises(UserError, match=r"train.group 1000000000 is more than this machine holds"):
        memory.check(huge, sample, 1)
    memory.check(dataclasses.replace(huge, train=dataclasses.replace(huge.train, micro_batch=64)), sample, 1)
    with pytest.raises(UserError, match=r"train.micro_batch 100000000 is more than this machine holds"):
        memory.check(dataclasses.replace(huge, train=dataclasses.replace(huge.train, micro_batch=10**8)), sample, 1)


def test_a_micro_batch_below_0_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"train.micro_batch must be at least 0, got -1"):
        SFT(micro_batch=-1)
