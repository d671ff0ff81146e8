"""The best weights by the validation split: against those of runs that end there, through kills, never by the test."""

import dataclasses
import json
import os
import signal

import pytest
import torch

from eval.environments import GSM8K, MNNS, Cups, build
from eval.environments.base import Generated
from eval.judge import judge
from latent import load
from latent.config import LearnedStop, ModelConfig
from latent.methods import Coconut, NoCoT, Sim
from paper import records
from train import run as runs
from train.config import RLVR, SFT, Judge, Run
from train.process import Stopped, heeding_sigterm
from train.selection import valid_problems

MODEL = ModelConfig(n_layer=2, n_embd=32, n_head=2)
TRAIN = SFT(steps=24, batch=16, lr=0.02, warmup=1, log_every=12, save_every=9, valid_every=6, valid_items=64)
BASE = Run(Cups(), MODEL, NoCoT(), TRAIN, Judge(items=20, level_items=2, batch=16))


def changed(run: Run, **train) -> Run:
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **train))


def lines(root, run: Run) -> list[dict]:
    return [json.loads(line) for line in (root / run.id / "metrics.jsonl").read_text().splitlines()]


def weights(root, run: Run) -> dict:
    return load(root / run.id).method.state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_best_weights_are_those_of_a_run_that_ends_with_them(tmp_path):
    """A run that diverges after its best: `best` ends as the run that was stopped there, `last` as ever."""
    best, last = changed(BASE, select="best", decay=0.0), changed(BASE, decay=0.0)
    results = {run.train.select: runs.execute(run, tmp_path, device="cpu") for run in (best, last)}
    valid = {line["step"]: line["valid"] for line in lines(tmp_path, best) if "valid" in line}
    assert list(valid) == [6, 12, 18, 24] and "selected" not in results["last"]
    assert [x for x in lines(tmp_path, last) if "valid" in x] == [x for x in lines(tmp_path, best) if "valid" in x]
    at = max(valid, key=lambda step: (valid[step], step))
    assert results["best"]["selected"] == {"step": at, "valid": valid[at]}
    n = len(valid_problems(build(Cups()), 64))
    assert results["best"]["valid"] == {"accuracy": valid[at], "n": n}  # of the weights that each ends with
    assert results["last"]["valid"] == {"accuracy": valid[24], "n": n}
    stopped = changed(BASE, decay=0.0, steps=at, valid_every=0)
    runs.execute(stopped, tmp_path, device="cpu")
    assert same(weights(tmp_path, best), weights(tmp_path, stopped))
    plain_run = changed(BASE, decay=0.0, valid_every=0)
    runs.execute(plain_run, tmp_path, device="cpu")
    assert same(weights(tmp_path, last), weights(tmp_path, plain_run))  # looking changes nothing
    env = build(Cups())
    problems = valid_problems(env, 64)
    items = judge(load(tmp_path / best.id), env, problems, 16)
    assert sum(i.correct for i in items) / len(items) == valid[at]


@pytest.mark.parametrize(
    "method", [Coconut(n_latent=2, stage_steps=4), Sim(n_latent=2, step_tokens=16, halt=LearnedStop())]
)
def test_a_killed_run_selects_as_one_that_was_not(method, tmp_path):
    run = changed(dataclasses.replace(BASE, method=method), steps=24, select="best", valid_every=5, save_every=8)
    whole = runs.execute(run, tmp_path / "a", device="cpu")

    class Killed(BaseException):
        pass

    def say(event):
        if event["stage"] == "train" and event["done"] == 22:
            raise Killed

    with pytest.raises(Killed):
        runs.execute(run, tmp_path / "b", say, "cpu")
    again = runs.execute(run, tmp_path / "b", device="cpu")
    assert again["selected"] == whole["selected"] and again["correct"] == whole["correct"]
    assert same(weights(tmp_path / "a", run), weights(tmp_path / "b", run))
    seen = [[(x["step"], x["valid"]) for x in lines(tmp_path / root, run) if "valid" in x] for root in "ab"]
    assert seen[0] == seen[1] and [step for step, _ in seen[0]] == [5, 10, 15, 20, 24]


def test_validation_problems_are_neither_trained_nor_tested_on(tmp_path):
    rows = [{"question": f"{i}+1?", "answer": f"#### {i + 1}"} for i in range(160)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = build(GSM8K(train=str(path)))
    keys = {name: {p.key for p in env.splits[name]} for name in ("train", "valid", "test")}
    assert [len(keys[name]) for name in ("train", "valid", "test")] == [135, 9, 16]
    assert not keys["valid"] & (keys["train"] | keys["test"])
    trained = {p.key for i in range(20) for p in env.train_batch(0, i, 8)}
    assert trained <= keys["train"]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    back = build(GSM8K(train=None, test=str(path)))
    with pytest.raises(ValueError, match=r"train\.valid_every needs problems to validate on"):
        valid_problems(back, 8)
    cups = valid_problems(build(Cups()), 64)
    levels = [p.level for p in cups]
    assert {levels.count(level) for level in build(Cups()).levels()[2:]} == {-(-64 // len(build(Cups()).levels()))}


@pytest.mark.parametrize(
    "more, message",
    [({"select": "best"}, r"train\.select best needs train\.valid_every"), ({"valid_items": 0}, r"train\.valid_items")],
)
def test_bad_input_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        SFT(**more)


def test_of_equally_good_weights_the_later_are_kept(tmp_path):
    """A rate so small that no answer changes: all validations say the same."""
    run = changed(BASE, select="best", steps=12, lr=1e-12)
    result = runs.execute(run, tmp_path, device="cpu")
    valid = [line["valid"] for line in lines(tmp_path, run) if "valid" in line]
    assert len(valid) == 2 and len(set(valid)) == 1
    assert result["selected"] == {"step": 12, "valid": valid[0]}


def test_what_is_validated_on_is_the_validation_split():
    """By the hash that says a problem's split, and the first of each level."""
    env = build(Cups())
    found = valid_problems(env, 64)
    assert {int(p.key[0], 16) for p in found} == {2}
    assert found == [p for level in env.levels() for p in env.problems("valid", level, 10)]


def test_a_run_of_a_search_is_judged_on_the_validation_split_alone(tmp_path, monkeypatch):
    """Its samples are of that split; no test problem is drawn; and permutations of its digits are one cluster."""
    env = MNNS(digits=3)
    run = Run(env, MODEL, NoCoT(), SFT(steps=2, batch=4), Judge(items=30, level_items=0, batch=16, split="valid"))
    asked = []
    drawn = Generated.problems
    monkeypatch.setattr(
        Generated, "problems", lambda self, split, *more: asked.append(split) or drawn(self, split, *more)
    )
    result = runs.execute(run, tmp_path, device="cpu")
    assert set(asked) == {"valid"}
    samples = [json.loads(x) for x in (tmp_path / run.id / "samples.jsonl").read_text().splitlines()]
    problems = build(env).problems("valid", 3, 30)
    assert [x["split"] for x in samples] == ["valid"] * len(problems)
    assert [x["key"] for x in samples] == [p.key for p in problems]
    digits = [sorted(p.question.split()) for p in problems]
    same = [[a == b for a in result["clusters"]] for b in result["clusters"]]
    assert same == [[a == b for a in digits] for b in digits] and len(set(result["clusters"])) < len(problems)
    line = records.of_run(tmp_path / run.id, run)
    assert records.unpack_clusters(line["result"]["clusters"]) == result["clusters"]
    assert len(records.unpack(line["result"]["pooled"]["correct"])) == len(problems)
    records.check(line, "here")
    assert "problems of the validation split" in (tmp_path / run.id / "model" / "README.md").read_text()
    nobody = GSM8K(train=None, test=str(rows_of(tmp_path)))
    with pytest.raises(ValueError, match=r"no validation problems \(judge\.split\)"):
        runs.judged_problems(dataclasses.replace(run, env=nobody), build(nobody))
    with pytest.raises(ValueError, match=r"judge\.split must be test or valid, got 'train'"):
        dataclasses.replace(run.judge, split="train")


def rows_of(folder):
    path = folder / "rows.jsonl"
    path.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    return path


def test_a_validation_that_a_signal_came_before_is_made_up_for(tmp_path):
    """SIGTERM in an update after which it validates: the resumed run logs and selects what the whole one does."""
    run = changed(BASE, select="best")

    def say(event):
        if event["stage"] == "train" and event["done"] == 17:  # it is heeded after update 18
            os.kill(os.getpid(), signal.SIGTERM)

    whole = runs.execute(run, tmp_path / "a", device="cpu")
    with pytest.raises(Stopped), heeding_sigterm():
        runs.execute(run, tmp_path / "b", say, "cpu")
    again = runs.execute(run, tmp_path / "b", device="cpu")
    assert [x["step"] for x in lines(tmp_path / "b", run) if "valid" in x] == [6, 12, 18, 24]
    assert {k: again[k] for k in ("selected", "valid", "correct")} == {
        k: whole[k] for k in ("selected", "valid", "correct")
    }
    assert same(weights(tmp_path / "a", run), weights(tmp_path / "b", run))


def test_an_end_that_a_signal_comes_with_is_an_end(tmp_path):
    """`stop_at` is reached in the update that a signal comes in: the resumed run makes no update more."""
    run = changed(BASE, steps=60, stop_at=1e-9, log_every=10, valid_every=0, lr=0.003)
    ended = runs.execute(run, tmp_path / "a", device="cpu")["updates"]
    assert ended < 60 and ended % 10 == 0

    def say(event):
        if event["stage"] == "train" and event["done"] == ended - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), heeding_sigterm():
        runs.execute(run, tmp_path / "b", say, "cpu")
    assert runs.execute(run, tmp_path / "b", device="cpu")["updates"] == ended
    assert same(weights(tmp_path / "a", run), weights(tmp_path / "b", run))


def test_rl_that_makes_it_worse_ends_with_what_it_started_from(tmp_path):
    start = dataclasses.replace(BASE, train=changed(BASE, steps=60, valid_every=0).train)
    runs.execute(start, tmp_path, device="cpu")
    how = RLVR(steps=6, batch=8, group=4, lr=0.5, warmup=0, select="best", valid_every=3, valid_items=64, patience=99)
    rl = dataclasses.replace(start, train=how, init=start.id)
    result = runs.execute(rl, tmp_path, device="cpu")
    valid = {line["step"]: line["valid"] for line in lines(tmp_path, rl) if "valid" in line}
    assert list(valid) == [0, 3, 6] and valid[0] > max(valid[3], valid[6])  # at such a rate
    assert result["selected"] == {"step": 0, "valid": valid[0]}
    assert same(weights(tmp_path, rl), weights(tmp_path, start))


def test_of_a_curriculum_the_last_stage_alone_is_selected_from_and_stopped_in(tmp_path):
    """Stages of 6 updates, validated every 6: the last begins with update 19. Of 16: with update 49, and an exact match
    that is reached before ends no run."""
    curriculum = dataclasses.replace(BASE, method=Coconut(n_latent=2, advance_at=1.0, stage_steps=6, earlier=0.0))
    result = runs.execute(changed(curriculum, select="best"), tmp_path, device="cpu")
    assert result["selected"]["step"] == 24 and result["steps_written"] == 0
    slow = dataclasses.replace(curriculum, env=Cups(swaps=2))
    slow = dataclasses.replace(slow, method=dataclasses.replace(curriculum.method, stage_steps=16))
    easy = changed(slow, steps=120, stop_at=0.1, log_every=4, valid_every=0, problems=1)
    result = runs.execute(easy, tmp_path, device="cpu")
    exact = {x["step"]: x["exact"] for x in lines(tmp_path, easy)}
    assert max(x for s, x in exact.items() if s <= 48) >= 0.1  # one problem is soon known by heart
    assert result["updates"] == next(s for s, x in exact.items() if x >= 0.1 and s > 48)
    begun = changed(curriculum, steps=18, valid_every=0)  # ends where its third stage does: judged in that
    result = runs.execute(begun, tmp_path, device="cpu")
    assert (result["latents"], result["steps_written"]) == (2, 6)
