"""What a person sees at the end: every number beside what it is read with, on a terminal of 100 columns."""

import pytest
import torch

from eval import cost
from eval.environments import MNNS, Cups, build
from eval.stats import mcnemar, paired
from latent import hub
from latent.config import LearnedStop, ModelConfig
from latent.generate import Reasoner
from latent.methods import CoT, CoT2, NoCoT, Pause, Sim
from tests.helpers import small_reasoner
from train import report
from train.config import RLVR, SFT, Run

LEVELS = {
    "1": {"accuracy": 1.0, "used": 2.0},
    "2": {"accuracy": 0.5, "used": 4.0},
    "3": {"accuracy": 0.25, "used": 6.0},
}


def row(arm: str, levels: dict, **more) -> report.Row:
    run = Run(Cups(), ModelConfig(), NoCoT(), SFT())
    main = {"accuracy": 0.25, "low": 0.125, "high": 0.375, "n": 1000, "used": 6.0}
    result = {"main": main, "levels": levels, "used_mean": 4.0, "sweep": {}, "floors": {"the parity of swaps": 0.0833}}
    result |= {"steps": 1234.5, "flops": 123456.78e6, "core_seconds": 1234567.0, "steps_written": 0, **more}
    return report.Row(arm, run, result, {1: 12.3456, 64: 123.456})


@pytest.mark.parametrize("arm", ["cot", "an arm with quite a long name " * 4])
@pytest.mark.parametrize("levels", [LEVELS, {"3": LEVELS["3"]}])
def test_the_printed_table_fits_a_terminal_and_shows_accuracy_beside_latents(arm, levels):
    out = report.printed([row(arm, levels), row("b", levels)])
    assert max(map(len, out)) <= 100
    head, rule, first, *_ = out
    shown = dict(zip(_cells(head), _cells(first)))
    assert set(rule) == {"-"} and shown["accuracy"] == "0.250" and shown["95 % interval"] == "0.125-0.375"
    assert shown["latents"] == "6.00"
    if len(levels) > 1:  # over levels: (1 + .5 + .25) / 3 right at 4 latents on the mean
        assert shown["accuracy, levels"] == "0.583" and shown["latents, levels"] == "4.00"
    else:
        assert "levels" not in head
    assert any("floor: the parity of swaps" in line and "0.083" in line for line in out)
    told, costs = out[out.index("") + 1 :][:4], out[out.index("") + 6 :]
    assert [_cells(line)[-1] for line in told] == ["told", told[1], "the answer", "the answer"]
    assert costs[0].split()[-1] == "run" and len(costs) == 4 and "123456.78" in costs[2]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_saved_table_holds_every_column():
    table = report.lines([row("a", LEVELS)])
    shown = dict(zip(table[0], table[1]))
    assert shown == {
        "arm": "a",
        "told": "the answer",
        "accuracy": "0.250",
        "95 % interval": "0.125-0.375",
        "items": "1000",
        "accuracy, levels": "0.583",
        "latents": "6.00",
        "latents, levels": "4.00",
        "steps": "1234.5",
        "MFLOP": "123456.78",
        "ms, batch 1": "12345.6",
        "ms, batch 64": "123456.0",
        "core-s": "1234567",
        "run": row("a", LEVELS).run.id,
    }


def test_what_an_arm_was_told_is_what_its_start_was_and_then_its_own():
    start = Run(MNNS(), ModelConfig(), CoT2(n_latent=3), SFT(problems=500))
    rl = Run(MNNS(), ModelConfig(), CoT2(n_latent=3), RLVR(), init=start.id)
    more = Run(MNNS(), ModelConfig(), CoT(told="chains"), SFT(), init=rl.id)
    by_id = {run.id: run for run in (start, rl, more)}
    assert report.told(rl, by_id) == "the frontier of 500, then a verifier"
    assert report.told(more, by_id) == "the frontier of 500, then a verifier, then all best chains"
    assert report.told(rl, {}) == "a verifier"
    on = Run(MNNS(), ModelConfig(), CoT2(n_latent=3, teacher=False), SFT(problems=500), init=start.id)
    assert report.told(on, by_id) == "the frontier of 500"


@pytest.mark.parametrize(
    "method, told",
    [
        (Sim(step_weight=0.0), "the answer"),
        (Sim(step_weight=0.1), "one chain"),
        (Sim(step_weight=0.0, halt=LearnedStop()), "one chain"),  # says when to answer early
        (Pause(Sim(step_weight=0.0)), "the answer"),
        (CoT2(step_weight=0.0), "the frontier"),  # of which its teacher makes the latents
        (CoT2(step_weight=0.0, teacher=False), "the answer"),
    ],
)
def test_a_loss_without_weight_tells_nothing(method, told):
    assert report.told(Run(MNNS(), ModelConfig(), method, SFT()), {}) == told


def test_a_selected_checkpoint_is_said():
    said = report.notes([row("a", LEVELS, selected={"step": 160, "valid": 0.873})], 60, None)
    assert "a: weights of update 160, best on the validation split, 0.873" in said
    assert not any("validation" in line for line in report.notes([row("a", LEVELS)], 60, None))


def test_notes_and_differences_count_clusters():
    """Eight items in four clusters: the notes say so, and a difference is that of four."""
    hits, other = [1, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]
    together = {"clusters": [0, 0, 1, 1, 2, 2, 3, 3]}
    a, b = row("a", LEVELS, correct=hits, **together), row("b", LEVELS, correct=other, **together)
    said = report.compared(a, b)
    d = paired(hits[::2], other[::2], n_boot=2000)
    assert f"{100 * d.low:+.1f} to {100 * d.high:+.1f} over clusters of items" in said
    assert f"McNemar p = {mcnemar(hits[::2], other[::2]):.2g}" in said
    (condition,) = [line for line in report.notes([a], 60, None) if "Wilson" in line]
    assert "over 4 clusters of items that stand or fall together" in condition
    (condition,) = [line for line in report.notes([row("a", LEVELS)], 60, None) if "Wilson" in line]
    assert "held-out problems" in condition and "Wilson intervals over items, one training seed" in condition


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_latency_is_measured_where_it_is_said_to_be(device, tmp_path, monkeypatch):
    """On a GPU every time is taken from idle to idle, in the dtype that the run is judged in; the note names it."""
    run = Run(Cups(cups=5), ModelConfig(n_layer=1, n_embd=16, n_head=2, bf16=True), NoCoT(), SFT())
    hub.save(small_reasoner(run.method, run.model, build(run.env)), tmp_path / run.id)
    seen: list = []
    move = torch.nn.Module.to

    def moved(self, *to, **how):
        if to in (("cuda",), ("cpu",)):  # there is no GPU here
            seen.append(to[0])
            return self
        return move(self, *to, **how)

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    answer = Reasoner.answer

    def answered(self, questions, **how):
        seen.append(torch.is_autocast_enabled("cpu"))
        return answer(self, questions, **how)

    monkeypatch.setattr(Reasoner, "answer", answered)
    made = report.Row("a", run, row("a", LEVELS).result)
    where = report.measure([made], tmp_path, device)
    assert seen == [device, *[True] * 20] and set(made.latency) == {1, 64}
    (note,) = [line for line in report.notes([made], 60, where) if "ms:" in line]
    said = {"cpu": "one thread", "cuda": "one NVIDIA H100, from idle to idle"}[device]
    assert f"ms: wall time of a whole batch, {said};" in note
    assert not any("ms:" in line for line in report.notes([made], 60, None))


def test_a_device_is_waited_for_before_and_after(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        cost.wait_for(device)
    assert waited == [torch.device("cuda", 1)]
