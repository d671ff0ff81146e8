"""Nothing is lost: a kill at every line of the code that writes, and files that are not what was written."""

import dataclasses
import json
import logging
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from eval.environments import Cups, build
from kernels.errors import UserError
from latent import files, load
from latent.config import LearnedStop, ModelConfig
from latent.methods import Sim
from latent.methods.base import Method
from train import checkpoint, distill, record
from train import run as runs
from train.config import RLVR, SFT, Judge, Run
from train.engine import Engine
from train.loop import Trainer
from train.resume import choose_start
from train.start import begin

MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=1)
JUDGE = Judge(items=4, level_items=0, batch=16)
METHOD = Sim(n_latent=2, step_tokens=16, halt=LearnedStop(bias=-1.0))
SHORT = Run(Cups(), MODEL, METHOD, SFT(steps=3, batch=2, warmup=2, log_every=2, save_every=1, keep=1), JUDGE)
LONGER = dataclasses.replace(SHORT, train=SFT(steps=12, batch=4, warmup=2, log_every=5, save_every=4))
TENSORS = "__0_0.distcp"  # of the only process
WRITES = {module.__file__ for module in (files, record, checkpoint)}


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def execute(run: Run, root: Path, kill_at: int | None = None) -> None:
    def say(event):
        if event["stage"] == "train" and event["done"] == kill_at:
            raise Killed

    if kill_at is None:
        runs.execute(run, root, say, "cpu")
        return
    with pytest.raises(Killed):
        runs.execute(run, root, say, "cpu")


def logged(root: Path, run: Run, name: str) -> list[dict]:
    lines = (root / run.id / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "core_seconds"} for line in lines]


def what_came_out(root: Path, run: Run) -> tuple:
    """All of a finished run that does not depend on when and where it ran; the files that it left, by name."""
    home = root / run.id
    result = json.loads((home / "result.json").read_text()) | {"core_seconds": 0}
    weights = {k: v.tolist() for k, v in load(home).method.state_dict().items()}
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return result, weights, logged(root, run, "metrics.jsonl"), logged(root, run, "samples.jsonl"), names


def states_on_disk(folder: Path, kept: Path, act) -> list[Path]:
    """A copy of `folder` at every line that `act` runs of the code that writes: what a kill at that line would leave.

    Copies of the same content are one.
    """
    seen, copies, last = set(), [], None

    def look(frame, event, arg):
        nonlocal last
        there = [(p, p.lstat()) for p in sorted(folder.rglob("*"))]
        stamp = [(str(p), s.st_ino, s.st_size, s.st_mtime_ns) for p, s in there]
        if stamp != last:
            last = stamp
            content = sha256()
            for p, _ in there:
                content.update(str(p).encode() + (p.read_bytes() if p.is_file() else b"/"))
            if content.digest() not in seen:
                seen.add(content.digest())
                copies.append(kept / str(len(copies)))
                shutil.copytree(folder, copies[-1])
        return look

    def enter(frame, event, arg):
        return look if frame.f_code.co_filename in WRITES else None

    folder.mkdir()
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act()
    finally:
        sys.settrace(before)
    return copies


def train_only(run: Run, root: Path) -> tuple:
    """The updates of a run and all that they write, without the judge; weights and log that came of it."""
    env = build(run.env)
    engine = Engine.start("cpu")
    torch.manual_seed(run.seed)
    trainer = Trainer(begin(run, env, root), record.Record(root, run), engine, lambda event: None)
    choose_start(trainer)
    with record.exclusive_lock(root / f"{run.id}.lock"):
        trainer.record.open(None, "a command", trainer.start.step if trainer.start else 0)
        distill.fit(trainer, env)
    weights = {k: v.tolist() for k, v in trainer.method.state_dict().items()}
    newest = checkpoint.saved_steps(root / run.id / "checkpoint")[0]
    return weights, logged(root, run, "metrics.jsonl"), newest, sorted(p.name for p in (root / run.id).iterdir())


def test_a_kill_at_any_line_while_training_loses_and_doubles_nothing(tmp_path):
    came = []
    copies = states_on_disk(
        tmp_path / "run", tmp_path / "kept", lambda: came.append(train_only(SHORT, tmp_path / "run"))
    )
    assert len(copies) > 50
    for copy in copies:
        assert train_only(SHORT, copy) == came[0], copy
        starts = json.loads((copy / SHORT.id / "env.json").read_text())["starts"]
        assert 1 <= len(starts) <= 2 and all(start["command"] == "a command" for start in starts)


def test_a_kill_at_any_line_after_training_leaves_a_run_that_ends_as_a_whole_one(tmp_path):
    root = tmp_path / "run"
    run = dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, steps=2))
    copies = states_on_disk(root, tmp_path / "kept", lambda: execute(run, root))
    whole = what_came_out(root, run)
    ending = [copy for copy in copies if list((copy / run.id).glob("model*"))]
    assert len(ending) > 12
    for copy in ending:
        execute(run, copy)
        assert what_came_out(copy, run) == whole, copy


@pytest.mark.parametrize("steps", [0, 3])
def test_a_kill_amid_judging_doubles_no_sample(steps, tmp_path):
    run = dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, steps=steps))

    def say(event):
        if event["stage"] == "judge" and event["done"] == event["total"]:
            raise Killed

    execute(run, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Killed):
            runs.execute(run, tmp_path / "killed", say, "cpu")
    execute(run, tmp_path / "killed")
    assert logged(tmp_path / "killed", run, "samples.jsonl") == logged(tmp_path / "whole", run, "samples.jsonl")
    starts = json.loads((tmp_path / "killed" / run.id / "env.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, steps, steps]  # training is not repeated
    assert all(start["packages"]["torch"] == torch.__version__ for start in starts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    execute(LONGER, root)
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Killed at step 10: checkpoints of steps 4 and 8, a log line of step 5 and one of step 10."""
    root = tmp_path_factory.mktemp("killed")
    execute(LONGER, root, kill_at=10)
    assert checkpoint.saved_steps(root / LONGER.id / "checkpoint") == [8, 4]
    return root


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0x10
    path.write_bytes(data)


def edit_step(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 8', '"step": 6'))


def of_another(folder: Path, **change) -> None:
    """The checkpoint of the same step of another run in place of this one."""
    train = {k: v for k, v in change.items() if k != "seed"}
    other = dataclasses.replace(LONGER, seed=change.get("seed", 0), train=dataclasses.replace(LONGER.train, **train))
    root = folder.parent.parent.parent / "other"
    execute(other, root, kill_at=8 + 1)
    shutil.rmtree(folder)
    shutil.copytree(root / other.id / "checkpoint" / folder.name, folder)
    shutil.rmtree(root)


DAMAGE = {
    **{f"a bit flipped at {at} of the tensors": lambda f, at=at: flip(f / TENSORS, at) for at in (0, 0.3, 0.7, 0.999)},
    **{
        f"a bit flipped at {at} of the manifest": lambda f, at=at: flip(f / "manifest.json", at) for at in (0, 0.2, 0.9)
    },
    **{f"a bit flipped at {at} of their index": lambda f, at=at: flip(f / ".metadata", at) for at in (0, 0.5)},
    "half of the tensors": lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:999]),
    "no tensors": lambda f: (f / TENSORS).unlink(),
    "no index": lambda f: (f / ".metadata").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a manifest of another shape": lambda f: (f / "manifest.json").write_text('{"manifest": {"run": 1}, "sha256": 2}'),
    "an edited step": edit_step,
    "a name of another step": lambda f: f.rename(f.with_name("step-9")),
    "another seed's": lambda f: of_another(f, seed=1),
    "another rate's": lambda f: of_another(f, lr=1e-4),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_that_is_not_what_was_written_is_refused_for_the_one_before_it(damage, killed, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(killed, root)
    home = root / LONGER.id / "checkpoint"
    damage(home / "step-8")
    found, (why,) = checkpoint.newest(home, LONGER.id, record.Record(root, LONGER).unfit)
    assert found.step == 4 and "checkpoint/step-" in why and "\n" not in why


def test_the_checkpoint_before_a_damaged_one_gives_the_same_run(killed, whole, tmp_path, caplog):
    root = tmp_path / "run"
    shutil.copytree(killed, root)
    flip(root / LONGER.id / "checkpoint" / "step-8" / TENSORS, 0.5)
    with caplog.at_level(logging.WARNING):
        execute(LONGER, root)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "train.resume"]
    assert said.endswith("step-8/__0_0.distcp is damaged: its checksum is another: not used; going on from step 4")
    assert what_came_out(root, LONGER) == what_came_out(whole, LONGER)


def test_without_a_good_checkpoint_the_run_is_refused_with_a_remedy_and_nothing_changes(killed, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(killed, root)
    home = root / LONGER.id
    for step in (4, 8):
        flip(home / "checkpoint" / f"step-{step}" / TENSORS, 0.5)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"step-8/__0_0.distcp is damaged.*remove .*/checkpoint to begin the run"):
        execute(LONGER, root)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    shutil.rmtree(home / "checkpoint")  # the remedy
    execute(LONGER, root)


@pytest.mark.parametrize("left", [0, 20])
def test_a_log_that_does_not_go_with_its_checkpoint_is_said(left, killed, whole, tmp_path, caplog):
    root = tmp_path / "run"
    shutil.copytree(killed, root)
    log = root / LONGER.id / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        execute(LONGER, root)
    assert f"does not go with the log: {log} has {left} bytes" in caplog.text
    assert what_came_out(root, LONGER) == what_came_out(whole, LONGER)


def test_a_log_that_was_edited_is_said(killed, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(killed, root)
    log, home = root / LONGER.id / "metrics.jsonl", root / LONGER.id / "checkpoint"
    log.write_text(log.read_text().replace('"step": 5', '"step": 4'))
    shutil.rmtree(home / "step-4")
    with pytest.raises(ValueError, match=r"step-8 does not go with the log: .*metrics.jsonl was changed"):
        execute(LONGER, root)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept_and_their_number_changes_no_id(keep, tmp_path):
    run = dataclasses.replace(LONGER, train=dataclasses.replace(LONGER.train, save_every=2, keep=keep))
    assert run.id == dataclasses.replace(run, train=dataclasses.replace(run.train, keep=7)).id
    execute(run, tmp_path, kill_at=9)
    assert checkpoint.saved_steps(tmp_path / run.id / "checkpoint") == [8, 6, 4][:keep]


def test_a_full_disk_is_named_by_path_and_leaves_what_was_there(tmp_path, monkeypatch):
    """/dev/full stands for the disk: every write there ends in ENOSPC."""
    with pytest.raises(OSError, match=r"No space left on device: '.*full'"):
        checkpoint.write_state(Path("/dev/full"), {"x": torch.zeros(9999)})
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / TENSORS).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*step/__0_0.distcp'"):
        checkpoint.write_tensors(folder, {"x": torch.zeros(9999)}, shared=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*full'"):
        files.append(Path("/dev/full"), [{"step": 1}])
    (tmp_path / "a.json.part").symlink_to("/dev/full")
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError, match=r"No space left on device: '.*a.json.part'"):
        files.write_json(tmp_path / "a.json", {"step": 1})
    assert (tmp_path / "a.json").read_text() == "old"


ROUGH = {
    "sft": dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, steps=1, lr=1e38)),
    "sft, later": dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, lr=1e38)),
}


@pytest.mark.parametrize("run", ROUGH.values(), ids=ROUGH)
def test_weights_that_are_not_finite_are_saved_nowhere(run, tmp_path):
    with pytest.raises(UserError, match=r"training diverged at step 0: not finite: .*nothing was saved after step 0"):
        execute(run, tmp_path)
    check_nothing_bad_is_kept(tmp_path / run.id, build(run.env).train_batch(0, 0, 2))


def test_rl_saves_no_weights_that_are_not_finite_either(tmp_path):
    start = dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, steps=0))
    execute(start, tmp_path)
    how = RLVR(steps=1, batch=2, group=16, lr=1e38, warmup=0, latent_cost=0.1)
    run = dataclasses.replace(SHORT, train=how, init=start.id)
    with pytest.raises(UserError, match="training diverged at step 0: not finite"):
        execute(run, tmp_path)
    check_nothing_bad_is_kept(tmp_path / run.id, build(run.env).train_batch(f"0 after {start.id}", 0, 2))


def test_weights_that_rollouts_cannot_be_drawn_from_are_said_in_words(tmp_path):
    """The first update is not saved; the second draws from what it made, which is no distribution."""
    start = dataclasses.replace(SHORT, method=Sim(n_latent=2, step_tokens=16, halt=LearnedStop()))
    start = dataclasses.replace(start, train=dataclasses.replace(SHORT.train, steps=0))
    execute(start, tmp_path)
    how = RLVR(steps=3, batch=2, group=16, lr=1e38, warmup=0, latent_cost=0.1)
    with pytest.raises(UserError, match="training diverged at step 1: not finite"):
        execute(dataclasses.replace(start, train=how, init=start.id), tmp_path)


def check_nothing_bad_is_kept(home: Path, problems: list) -> None:
    """No model, no checkpoint, and a dump that says which problems the update was given."""
    assert not (home / "model").exists() and not list(home.glob("checkpoint/*")) and not (home / "result.json").exists()
    (dump,) = (home / "diverged").iterdir()
    about = json.loads(dump.read_text())
    assert about["step"] == 0 and about["keys"] == [p.key for p in problems]
    assert [p["question"] for p in about["problems"]] == [p.question for p in problems]


def test_a_loss_that_is_no_number_leaves_the_state_before_it(tmp_path, monkeypatch):
    """The update that is dumped, done again from its dump, is the update of a run that did not diverge."""
    run = dataclasses.replace(LONGER, train=dataclasses.replace(LONGER.train, save_every=2))
    real, calls = Method.forward, []

    def broken(self, verb, *args):
        terms, logged = real(self, verb, *args)
        calls.append(1)
        for term in terms:
            term.total = term.total * float("nan") if len(calls) == 6 else term.total
        return terms, logged

    monkeypatch.setattr(Method, "forward", broken)
    with pytest.raises(UserError, match=r"diverged at step 5: loss nan.*nothing was saved after step 4"):
        execute(run, tmp_path)
    home = tmp_path / run.id
    about = json.loads((home / "diverged" / "step-5-process-0.json").read_text())
    assert about["keys"] == [p.key for p in build(run.env).train_batch(0, 5, 4)] and about["checkpoint"] == 4
    monkeypatch.undo()
    dumped = torch.load(home / "diverged" / "state.pt", weights_only=True)
    execute(run, tmp_path / "again", kill_at=5)
    # the state after five updates, from the checkpoint of four and the update after it
    assert dumped["step"] == 5 and all(v.isfinite().all() for v in dumped["method"].values())
    saved, wrong = checkpoint.newest(home / "checkpoint", run.id, lambda ends: None)
    assert saved.step == 4 and not wrong


def test_a_checkpoint_of_another_run_is_refused_whatever_its_log(tmp_path):
    checkpoint.save(tmp_path, 3, {"x": torch.ones(2)}, {}, "a", dict, 2, Engine.start("cpu"))
    assert checkpoint.newest(tmp_path, "a", lambda ends: None)[0].step == 3
    found, (why,) = checkpoint.newest(tmp_path, "b", lambda ends: None)
    assert found is None and why == f"{tmp_path / 'step-3'} is of run a, this is run b"
