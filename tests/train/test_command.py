"""`python -m train.latent` as its user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def command(*args, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "train.latent", *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False
    )


TINY = ["--model.n-embd", 32, "--model.n-head", 2, "--judge.items", 30, "--judge.level-items", 4]


def tiny(arm: str, steps: int = 4) -> list:
    return [f"--arms.{arm}.train.steps", steps, f"--arms.{arm}.train.batch", 8]


def test_an_experiment_ends_in_a_table_and_a_figure_and_is_not_repeated(tmp_path):
    arms = [*tiny("half-trained"), *tiny("rlvr"), *tiny("sft"), "--arms.rlvr.train.group", 4]
    args = ["cups-rlvr", *TINY, *arms, "--out", tmp_path]
    done = command(*args)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("cups-rlvr-*")
    table = (folder / "table.md").read_text()
    assert (folder / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for arm in ("half-trained", "rlvr", "sft", "floor: parity"):
        assert f"| {arm} |" in table and arm in done.stdout
    assert "rlvr - half-trained" in table and "[rlvr] train 4/4" in done.stdout and "eta" in done.stdout
    results = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/result.json")}
    assert len(results) == 3
    again = command(*args)
    assert again.returncode == 0 and again.stdout.count("was finished before") == 3
    assert {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/result.json")} == results


@pytest.mark.parametrize(
    "args, message",
    [
        (["nonsense"], "no preset 'nonsense'"),
        (["sim", "--method.nlatent", 3], "--method.nlatent"),
        (["sim", "--method.n-latent", -1], "n_latent must be at least 0, got -1"),
        (["sim", "--model.n-embd", 0], "n_embd must be at least 1, got 0"),
        (["sim", "--train.batch", 0], "train.batch must be at least 1, got 0"),
        (["sim", "--env.min-swaps", 9], "env.min_swaps must be in 1..env.swaps = 8, got 9"),
        (["sim", "--judge.items", 0], "judge.items must be at least 1, got 0"),
        (["sim", "--train.clip", -1], "train.clip must be > 0, got -1"),
        (["sim", "--method.step-tokens", 3], "a latent's step has 4 tokens, method.step_tokens is 3"),
        (["sim", "--judge.sweep", 30], "needs 132 positions"),
        (["recurrent", "--env.cups", 5], "must have method.answer_tokens = 4 tokens"),
        (["sim", "--kernels", "cuda"], "--kernels"),
        (["sim", "--jobs", 0], "--jobs must be at least 1, got 0"),
        (["sim", "--init", "abc"], "init 'abc' is neither"),
        (
            ["sim", "--model.n-positions", 20],
            "needs 44 positions (9 to read, the rest to think and answer), the model has 20",
        ),
        (["gsm8k", "--env.train", "nowhere.json"], "no such data file: nowhere.json"),
        (["gsm8k", "--env.train", "README.md"], "README.md, line 1: not JSON"),
        (["gsm8k", "--model.pretrained", "nowhere", "--env.train", "{data}"], "cannot load a causal LM from 'nowhere'"),
        (["recurrent", "--method.coda", 1], "need 3 layers, the model has 2"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{i}", "answer": "#### {i}"}}\n' for i in range(20)))
    out = tmp_path / "out"
    done = command(*[str(a).replace("{data}", str(data)) for a in args], "--out", out)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert not out.exists()


def test_two_processes_train_what_one_does(tmp_path):
    """The same problems an update, split over two processes: the same weights up to rounding."""
    from latent import load

    args = ["no-cot", *TINY, "--train.steps", 4, "--train.batch", 8, "--device", "cpu", "--no-latency"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "train.latent"]
    two = [*torchrun, *map(str, args), "--out", str(tmp_path / "two")]
    done = subprocess.run(two, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert command(*args, "--out", tmp_path / "one").returncode == 0
    (a,), (b,) = ([p.parent for p in (tmp_path / n).glob("*/result.json")] for n in ("one", "two"))
    assert a.name == b.name
    one, two = (load(home).method.state_dict() for home in (a, b))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-4)
    for home in (a, b):
        assert json.loads((home / "metrics.jsonl").read_text())["step"] == 4
