"""Sizes that no machine holds: refused in one line, by flag, before anything is drawn or built."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.environments import GSM8K, Countdown, Cups, Math500, ProntoQA, ProsQA, build
from kernels.errors import UserError
from latent.config import ModelConfig
from latent.methods import Coconut, Colar, CoT, FixedEmbedding, Hrpo, Pause, Pccot, Recurrent, Sim
from train import memory
from train.config import RLVR, SFT, Judge, Run
from train.latent import Options, check, parse

HUGE = (10**9, 2**40, 2**62)
RUN = Run(Cups(), ModelConfig(), Sim(), SFT(), Judge())


def refused(run: Run, tmp_path) -> str:
    """What the command says of a run before it begins it."""
    with pytest.raises(UserError) as said:
        check({"arm": run}, Options(out=tmp_path))
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize(
    "part, config, name",
    [
        ("model", ModelConfig(), "n_layer"),
        ("model", ModelConfig(), "n_positions"),
        ("model", ModelConfig(), "n_embd"),
        ("method", Sim(), "n_latent"),
        ("method", Sim(), "step_tokens"),
        ("method", Coconut(), "n_latent"),
        ("method", Recurrent(), "n_recurrence"),
        ("method", Recurrent(), "r_max"),
        ("method", Hrpo(), "n_latent"),
        ("method", Colar(), "r_max"),
        ("method", Pccot(), "n_latent"),
        ("train", SFT(), "batch"),
        ("train", RLVR(), "batch"),
        ("train", RLVR(), "group"),
        ("train", SFT(valid_every=1), "valid_items"),
        ("judge", Judge(), "items"),
        ("judge", Judge(), "level_items"),
    ],
)
def test_a_size_that_no_machine_holds_is_refused_by_its_flag(part, config, name, huge, tmp_path):
    asked = replace(RUN, **{part: replace(config, **{name: huge})})
    said = refused(asked, tmp_path)
    assert re.match(rf"{part}.{name} {huge} is more than this machine holds: .* need at least .* GiB, it has", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("of", [Pause(Sim(step_tokens=10**9)), FixedEmbedding(Sim(step_tokens=10**9))])
def test_the_flag_of_a_control_is_that_of_the_method_it_controls(of, tmp_path):
    assert refused(replace(RUN, method=of), tmp_path).startswith("method.of.step_tokens 1000000000 is more than")


def test_recurrences_of_a_sweep_count_too(tmp_path):
    asked = replace(RUN, method=Recurrent(), judge=Judge(sweep=(10**9,)))
    assert "1e+09 states of a problem that is judged need at least" in refused(asked, tmp_path)


@pytest.mark.parametrize("huge", HUGE)
def test_problems_of_absurd_length_are_never_drawn(huge):
    for make in (
        lambda: Cups(swaps=huge),
        lambda: Cups(cups=huge),
        lambda: Cups(min_swaps=huge),
        lambda: ProntoQA(hops=huge),
        lambda: Countdown(numbers=huge),
        lambda: Countdown(largest=huge),
        lambda: ProsQA(nodes=(huge, huge)),
        lambda: ProsQA(nodes=(huge,)),
    ):
        with pytest.raises(UserError, match=rf"env\.\w+ must be .*{huge}"):
            make()
    assert len(build(ProsQA(graphs=huge)).train_batch(0, 0, 1)) == 1  # drawn when they are needed


def test_the_longest_problems_are_refused_by_the_positions(tmp_path):
    said = refused(replace(RUN, env=Cups(swaps=10_000, min_swaps=9_999)), tmp_path)
    assert said == "a problem has 10000 words or more, the model has 64 positions (--model.n-positions)"
    asked = replace(RUN, env=Cups(swaps=3_000), model=ModelConfig(n_positions=200_000), judge=Judge(level_items=10**5))
    assert refused(asked, tmp_path).startswith("judge.level_items 100000 is more than this machine holds")


@pytest.mark.parametrize("env", [GSM8K, Math500])
def test_a_text_takes_as_many_tokens_as_one_can_have(env):
    for name in ("max_answer", "max_chain"):
        for wrong in (0, -1, *HUGE):
            with pytest.raises(UserError, match=rf"env\.{name} must be in 1\.\.1000000, got {wrong}"):
                env(**{name: wrong})


@pytest.mark.parametrize("flag", ["--train.lr", "--method.step-weight", "--train.weight-decay", "--train.clip"])
def test_numbers_beyond_fp32_are_refused_by_flag(flag):
    with pytest.raises(UserError, match=f"{flag[2:].replace('-', '_')} must fit into 32 bits"):
        parse(["sim", flag, "1e300"])
    parse(["sim", flag, "1e30"])


def test_presets_fit_where_there_is_room(tmp_path, monkeypatch):
    """What the estimate counts is the least: no small run is refused on a machine of one GiB."""
    monkeypatch.setattr(memory, "machine", lambda: 2**30)
    for method in (Sim(), CoT(), Coconut(), Recurrent(), Pause(Sim())):
        for train in (SFT(), RLVR(), SFT(valid_every=10)):
            check({"arm": replace(RUN, method=method, train=train)}, Options(out=tmp_path))


@pytest.mark.parametrize("version", [0, 1])
def test_what_a_container_may_still_take_is_read_in_both_versions(version, monkeypatch, tmp_path):
    """cgroup v2 and v1: files of other names, of which a machine has one kind."""
    places = [(str(tmp_path / f"v{2 - i}"), names) for i, (_, names) in enumerate(memory.CGROUPS)]
    monkeypatch.setattr(memory, "CGROUPS", places)
    monkeypatch.setattr(memory, "_gpu", lambda: 0)
    place, (limit, used) = places[version]
    Path(place).mkdir()
    (Path(place) / limit).write_text(f"{2**24}\n")
    (Path(place) / used).write_text(f"{2**23 + 5}\n")
    assert memory.available() == 2**24 - 2**23 - 5 and memory.machine() == 2**24
    (Path(place) / limit).write_text("max\n")
    assert memory.available() > 2**24 < memory.machine()
