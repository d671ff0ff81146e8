"""`python -m train.speed --device cuda`, tried out on a CPU: every arm runs, and all of them compute the same."""

import csv
import json

import pytest
import torch

from train import speed, speed_gpu


@pytest.mark.parametrize("name", ["speed.csv", "speed.jsonl"])
def test_the_comparison_runs_and_says_what_it_measured(name, tmp_path, capsys):
    out = tmp_path / name
    args = ["--what", "rivals", "--shape", "tiny", "--rounds", "2", "--out", str(out)]
    assert speed.main(args) == 0
    text = out.read_text()
    rows = list(csv.DictReader(text.splitlines())) if name.endswith("csv") else [*map(json.loads, text.splitlines())]
    ms = {
        (row["what"].split(",")[0] + ", ragged" * ("ragged" in row["what"]), row["arm"])
        for row in rows
        if row["unit"] == "ms"
    }
    cached, prefix, generate = (f"transformers, {x}" for x in ("cached", "whole prefix", "generate"))
    ours = ("ours", "ours, a token at a time")
    assert ms == {
        *((f"training step{ragged}", arm) for arm in ("ours", cached, prefix) for ragged in ("", ", ragged")),
        *(("6 rollouts of 2 prompts", arm) for arm in (*ours, cached, generate)),
        *(("answer", arm) for arm in (*ours, cached, prefix, generate)),
    }
    for row in rows:
        if row["unit"] == "ms":
            assert 0 < float(row["low"]) <= float(row["value"]) <= float(row["high"]) and int(row["rounds"]) == 2
        if "tokens" in row["unit"]:
            assert float(row["value"]) == 1.0
        assert (row["device"], row["dtype"], row["shape"]) == ("cpu", "fp32", "tiny")
    assert "training step, 4 rows, 9 + 2 + 3 positions" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: there is no GPU here")


@pytest.mark.parametrize("mistake", ["a latent less", "padding attended"])
def test_arms_that_differ_are_not_timed(mistake, monkeypatch):
    think = speed_gpu.Theirs.think

    def wrong(self, ids, k, mask=None):
        return think(self, ids, k - 1, mask) if mistake == "a latent less" else think(self, ids, k)

    monkeypatch.setattr(speed_gpu.Theirs, "think", wrong)
    with pytest.raises(RuntimeError, match="the arms' losses differ"):
        list(speed_gpu.compare("tiny", "cpu", 1))
