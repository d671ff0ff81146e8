"""Estimates before a run, against what torch counts in one."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval import environments
from eval.environments import GSM8K, Cups
from latent import make, methods
from latent.config import ModelConfig
from latent.methods import Codi, CoT, NoCoT, Recurrent, Sim
from latent.text import Batch
from train import estimate, presets
from train.config import SFT, Experiment, Run

MODEL = ModelConfig(n_layer=3, n_embd=128, n_head=2)


@pytest.mark.parametrize(
    "method", [NoCoT(), CoT(), Sim(n_latent=8), Codi(), Codi(n_latent=0), Recurrent(core=2, r_min=6, r_max=6)]
)
def test_training_flops_are_about_what_torch_counts(method):
    run = Run(env=Cups(), model=MODEL, method=method, train=SFT(steps=1, batch=16))
    env = environments.build(run.env)
    codec = env.codec(MODEL)
    made = methods.build(method, make.from_scratch(MODEL, codec.size, codec.pad, codec.end))
    batch = Batch.of(env.train_batch(0, 0, 16), codec)
    with FlopCounterMode(display=False) as counter:
        made.loss(batch)[0].backward()
    empty, total, trained = estimate.on_meta(run)
    assert total == trained == sum(p.numel() for p in made.parameters())
    guess = 16 * estimate.problem_flops(run, empty, *estimate.lengths(run)[:3])
    # the estimate has the last layer's unread positions, which are not computed, and lacks the step decoder
    assert 0.7 < guess / counter.get_total_flops() < 1.45


def test_a_published_preset_is_estimated_without_its_data_or_weights():
    runs = presets.coconut_gpt2_gsm8k().runs()
    lines = estimate.report(runs)
    assert [line.split()[0] for line in lines[1:5]] == ["start", "latent", "cot", "no-cot"]
    assert all("124.4 M" in line for line in lines[1:5])  # GPT-2 small
    assert "usual ones" in lines[-1] and "Estimates" in lines[-1]
    no_cot = Run(GSM8K(train="nowhere.json"), MODEL, NoCoT(), SFT())
    with pytest.raises(ValueError, match="nowhere"):
        estimate.report({"a": dataclasses.replace(no_cot, model=ModelConfig(pretrained="./nowhere"))})


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_a_valid_set_of_runs(name):
    asked = presets.PRESETS[name]()
    runs = asked.runs() if isinstance(asked, Experiment) else {name: asked}
    assert len({run.id for run in runs.values()}) == len(runs)
    if name in presets.PAPERS:
        source, published = presets.PAPERS[name]
        assert "arXiv" in source and ("another task" in source or set(published) <= set(runs))


def test_huginns_shape_thinks():
    asked = presets.huginn()
    env = environments.build(asked.env)
    codec = env.codec(asked.model)
    torch.manual_seed(0)
    small = dataclasses.replace(asked.model, n_embd=32)
    made = methods.build(asked.method, make.from_scratch(small, codec.size, codec.pad, codec.end))
    loss, _ = made.loss(Batch.of(env.train_batch(0, 0, 2), codec))
    assert torch.isfinite(loss)
