"""`python -m train.latent` as its user meets it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kernels.errors import UserError
from tests.helpers import ROOT, python
from train import latent as main_job
from train import run as runs
from train.record import exclusive_lock

TINY = ["--model.n-embd", 32, "--model.n-head", 2, "--judge.items", 30, "--judge.level-items", 4]


def tiny(arm: str, steps: int = 4) -> list:
    return [f"--arms.{arm}.train.steps", steps, f"--arms.{arm}.train.batch", 8]


@pytest.mark.slow
def test_an_experiment_ends_in_a_table_and_a_figure_and_is_not_repeated(tmp_path, capfd):
    arms = [*tiny("half-trained"), *tiny("rlvr"), *tiny("sft"), "--arms.rlvr.train.group", 4]
    args = ["cups-rlvr", *TINY, *arms, "--out", tmp_path]
    done = python("-m", "train.latent", *args)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("cups-rlvr-*")
    table = (folder / "table.md").read_text()
    assert (folder / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for arm in ("half-trained", "rlvr", "sft", "floor: parity"):
        assert f"| {arm} |" in table and arm in done.stdout
    assert "rlvr - half-trained" in table and "[rlvr] train 4/4" in done.stdout and "eta" in done.stdout
    results = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/result.json")}
    assert len(results) == 3
    assert main_job.main([*map(str, args), "--no-latency", "--jobs", "1"]) == 0
    assert capfd.readouterr().out.count("was finished before") == 3
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
        (["sim", "--kernels", "cuda"], "--kernels"),
        (["sim", "--jobs", 0], "--jobs must be at least 1, got 0"),
        (["sim", "--init", "abc"], "init 'abc' is neither"),
        (["gsm8k", "--env.train", "nowhere.json"], "no such data file: nowhere.json"),
        (["gsm8k", "--env.train", "README.md"], "README.md, line 1: not JSON"),
        (["sim", "--train.lr", "nan"], "train.lr must be > 0, got nan"),
        (["sim", "--train.lr", "inf"], "train.lr must be finite, got inf"),
        (["sim", "--train.beta2", "1"], "train.beta2 must be in [0, 1), got 1.0"),
        (["sim", "--train.decay-to", "nan"], "train.decay_to must be in [0, 1], got nan"),
        (["sim", "--train.weight-decay", "nan"], "train.weight_decay must be finite, got nan"),
        (["sim", "--train.stop-at", "7"], "train.stop_at must be in [0, 1], got 7"),
        (["sim", "--method.step-weight", "-inf"], "method.step_weight must be finite, got -inf"),
        (["cups-rlvr", "--arms.rlvr.train.kl", "inf"], "arms.rlvr.train.kl must be finite, got inf"),
        (["sim", "--seed", -1], "seed must be in 0..4294967295, got -1"),
        (["sim", "--seed", 2**32], "seed must be in 0..4294967295"),
        (["sim", "--train.steps", 10**20], "train.steps must fit into 64 bits"),
        (["sim", "--train.keep", 0], "train.keep must be at least 1, got 0"),
        (["sim", "--train.batch", 10**9], "train.batch 1000000000 is more than this machine holds: 1e+09 rows"),
        (["cups-rlvr", "--arms.rlvr.train.group", 10**9], "train.group 1000000000 is more than this machine holds"),
        (["sim", "--model.n-layer", 10**8], "model.n_layer 100000000 is more than this machine holds: 4.92e+12 param"),
        (["sim", "--model.n-embd", 2**24], "model.n_embd 16777216 is more than this machine holds"),
        (["sim", "--judge.items", 10**12], "judge.items 1000000000000 is more than this machine holds"),
        (["sim", "--train.lr", 1, "--train.lr", 2], "--train.lr is given twice"),
        (["sim", "--train.log-every=3", "--train.log_every", 4], "--train.log_every is given twice"),
        (["sim", "--no-latency", "--latency"], "--latency is given twice"),
        (["sim", "--init", ""], "--init has an empty value"),
        (["sim", "--model.pretrained="], "--model.pretrained has an empty value"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{i}", "answer": "#### {i}"}}\n' for i in range(20)))
    out = tmp_path / "out"
    args = [str(a).replace("{data}", str(data)) for a in args]
    assert main_job.main([*args, "--out", str(out)]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and message in lines[0], lines
    assert not out.exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["sim", "--judge.sweep", 30], "needs 132 positions"),
        (["recurrent", "--env.cups", 5], "must have method.answer_tokens = 4 tokens"),
        (
            ["sim", "--model.n-positions", 20],
            "needs 44 positions (9 to read, the rest to think and answer), the model has 20",
        ),
        (["gsm8k", "--model.pretrained", "nowhere", "--env.train", "{data}"], "cannot load a causal LM from 'nowhere'"),
        (["recurrent", "--method.coda", 1], "need 3 layers, the model has 2"),
    ],
)
def test_what_an_arms_process_refuses_is_one_line_and_writes_nothing(args, message, tmp_path):
    """In this process: that another's line becomes the command's is asked above, of a latent's step."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{i}", "answer": "#### {i}"}}\n' for i in range(20)))
    _, run, _ = main_job.parse([str(a).replace("{data}", str(data)) for a in args])
    with pytest.raises(UserError) as e:
        runs.execute(run, tmp_path / "out", device="cpu")
    assert message in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["", "  ", "README.md", "README.md/runs", "/proc/runs"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(out, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main_job.main(["sim", "--train.steps", "1", "--out", out]) == 2
    (said,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert said.startswith("error: --out")


LONG = ["sim", *TINY, "--train.batch", 8, "--train.log-every", 10, "--no-latency", "--train.steps"]


def told_to_end(args: list, out: Path, number: int, begun: str) -> tuple[subprocess.CompletedProcess, float]:
    """A command that gets a signal as soon as it has printed a line that begins so; and the seconds until its end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, args), "--out", str(out)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(begun):
            break
    at = time.monotonic()
    # a terminal's ^C goes to all of its processes
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr), time.monotonic() - at


def losses(out: Path) -> list[tuple]:
    (log,) = out.glob("*/metrics.jsonl")
    return [(row["step"], row["loss"]) for row in map(json.loads, log.read_text().splitlines())]


@pytest.mark.parametrize("number, code, updates", [(signal.SIGTERM, 143, 200), (signal.SIGINT, 130, 2000)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, updates, tmp_path):
    """It is gone within ten seconds, and the run of the command that it names ends as one that was never stopped."""
    args = ["-m", "train.latent", *LONG, updates]
    done, seconds = told_to_end(args, tmp_path / "a", number, "[sim] train 10/")
    assert done.returncode == code and seconds < 10, done.stderr
    (said,) = done.stderr.splitlines()
    again = shlex.split(said.partition("this goes on where it stopped: ")[2])
    assert again[:3] == ["python", "-m", "train.latent"]
    _, run, options = main_job.parse(again[3:])
    assert list((options.out / run.id / "checkpoint").glob("step-*/manifest.json"))  # none was due
    if number == signal.SIGTERM:
        for out in (options.out, tmp_path / "b"):
            runs.execute(run, out, device="cpu")
        assert losses(tmp_path / "a") == losses(tmp_path / "b") and losses(tmp_path / "a")[-1][0] == updates


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "train.latent"]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_go_on_where_they_were_told_to_end(tmp_path):
    """The same problems an update, split over two processes: the same weights and log up to rounding, with what
    either had measured when they were stopped between log lines."""
    from latent import load

    args = ["no-cot", *TINY, "--train.steps", 60, "--train.batch", 8, "--train.log-every", 25, "--no-latency"]
    done, seconds = told_to_end([*TORCHRUN, *args], tmp_path / "two", signal.SIGTERM, "train 25/60")
    assert done.returncode != 0 and seconds < 15
    named = f"this goes on where it stopped: torchrun --nproc_per_node 2 -m train.latent {args[0]}"
    assert done.stderr.count(named) == 1
    (step,) = [int(p.name[5:]) for p in (tmp_path / "two").glob("*/checkpoint/step-*")]
    assert 25 <= step < 60
    done = python(*TORCHRUN, *args, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    _, run, _ = main_job.parse([*map(str, args)])
    runs.execute(run, tmp_path / "one", device="cpu")
    for (at, mine), (step, theirs) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert at == step and theirs == pytest.approx(mine, rel=1e-4)
    one, two = (load(tmp_path / name / run.id).method.state_dict() for name in ("one", "two"))
    for name in one:
        mine, theirs = one[name], two[name]
        if name.endswith("c_attn.bias"):  # softmax takes no notice of the keys' bias, which follows rounding alone
            mine, theirs = (x.view(3, -1)[[0, 2]] for x in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_under_a_launcher_an_error_appears_once(tmp_path):
    done = python(*TORCHRUN, "no-cot", "--train.batch", "3", "--out", tmp_path / "out")
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == ["error: train.batch must be a multiple of the 2 processes, got 3"]


@pytest.mark.slow
def test_under_a_launcher_all_end_at_once_where_another_process_is_at_the_run(tmp_path):
    """With code 2, the line once, nothing written; the launcher then ends whoever is slower to go."""
    _, run, _ = main_job.parse(["no-cot", "--train.batch", "4"])
    tmp_path.joinpath("out").mkdir()
    with exclusive_lock(tmp_path / "out" / f"{run.id}.lock"):
        done = python(*TORCHRUN, "no-cot", "--train.batch", "4", "--out", tmp_path / "out")
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == [f"error: another process is at {tmp_path / 'out' / run.id}"]
    assert done.returncode and re.search(r"exitcode +: 2 ", done.stderr), done.stderr[-3000:]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"{run.id}.lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "set, said",
    [
        ({"WORLD_SIZE": "2"}, ""),
        ({"RANK": "0"}, ""),
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE must be a whole number"),
    ],
)
def test_a_shell_with_half_a_launchers_variables(set, said, tmp_path, capfd, monkeypatch):
    for name, value in set.items():
        monkeypatch.setenv(name, value)
    args = ["no-cot", *TINY, "--train.steps", 2, "--no-latency", "--out", tmp_path]
    assert main_job.main([*map(str, args)]) == (2 if said else 0)
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err and len(err.splitlines()) <= 1


@pytest.mark.slow
def test_an_interrupted_launch_saves_as_one_that_is_told_to_end(tmp_path):
    """torchrun passes ^C on: the update that it comes in is finished, and nothing of the others is lost."""
    args = ["no-cot", *TINY, "--train.steps", 4000, "--train.batch", 8, "--train.log-every", 25, "--no-latency"]
    done, seconds = told_to_end([*TORCHRUN, *args], tmp_path, signal.SIGINT, "train 25/4000")
    assert done.returncode != 0 and seconds < 15
    assert "this goes on where it stopped: torchrun --nproc_per_node 2" in done.stderr
    (step,) = [int(p.name[5:]) for p in tmp_path.glob("*/checkpoint/step-*")]
    assert 25 <= step < 4000
