"""`python -m paper.run` as its user meets it."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from paper import records, run
from paper.ablations import ABLATIONS
from paper.controls import CONTROLS
from paper.design import Cell, cells
from tests.helpers import ROOT, python
from tests.paper.helpers import FEW, LONG, MINI, TINY, planted, written
from train.record import exclusive_lock
from train.run import execute as train

pytestmark = pytest.mark.slow  # commands with processes of their own

SMOKED = "search"
SCRIPT = """
import resource, sys
from paper import run
from tests.paper import helpers
_, name, bytes, *args = sys.argv
run.ABLATIONS[name] = getattr(helpers, name.upper())
if int(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(bytes),) * 2)
sys.exit(run.main([name, *args]))
"""


def command(name, args, limit=0):
    """A process of the command: of an ablation of the helpers, which may write no larger files."""
    script = [sys.executable, "-c", SCRIPT, name, str(limit), *args]
    return subprocess.Popen(script, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def mini(monkeypatch):
    monkeypatch.setitem(run.ABLATIONS, "mini", MINI)


@pytest.fixture
def few(monkeypatch):
    """The same of one seed, where two cells tell as much as four."""
    monkeypatch.setitem(run.ABLATIONS, "few", FEW)


def places(tmp_path, kept="records"):
    return ["--out", str(tmp_path / "out"), "--records", str(tmp_path / kept), "--jobs", "1"]


def test_the_smoke_of_an_ablation_ends_in_its_table():
    done = python("-m", "paper.run", SMOKED, "--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "search: cot2, seed 2: finished" in done.stdout and "eta" in done.stdout and "1 tables in" in done.stdout


def kind(cell: Cell) -> tuple:
    """What runs of one kind share: the classes that they are of, what is told, and whether latents are swept."""
    method, learn = cell.run.method, cell.run.train
    classes = cell.run.env, method, getattr(method, "of", None), learn, getattr(learn, "algorithm", None)
    return *map(type, classes), method.told, bool(cell.run.judge.sweep)


def test_a_run_of_every_kind_in_the_ablations_is_trained_judged_and_recorded(tmp_path):
    """Of a few updates, beside what it starts from; kinds that the smoke above has are left out."""
    here = [ablation for ablation in ABLATIONS.values() if not ablation.missing()]  # others need data of their own
    all_cells = [c for ablation in here for c in cells(ablation, CONTROLS, smoke=True)]
    every = {c.run.id: c for c in sorted(all_cells, key=lambda c: c.diagnose)}  # of equal runs one that is diagnosed
    ids, kinds = set(), {kind(c) for c in cells(ABLATIONS[SMOKED], CONTROLS, smoke=True)}
    for id, cell in every.items():
        if kind(cell) not in kinds:
            kinds.add(kind(cell))
            ids |= {id, cell.run.init} - {None}
    assert kinds == {kind(c) for c in every.values()} and not any(every[id].run.init not in {None, *ids} for id in ids)
    some = {id: [cell] for id, cell in every.items() if id in ids}  # rows of several ablations may have one name
    options = run.Options(out=tmp_path / "out", records=tmp_path / "records", jobs=2, smoke=True)
    assert run.execute(some, {}, options, records.FILE) == 0
    lines, left_out = records.read(options.records)
    assert set(lines) == ids and not left_out
    assert {id for id in ids if "diagnosis" in lines[id]} == {id for id in ids if every[id].diagnose} != set()
    together = {id: lines[id]["diagnosis"]["causal"].get("interchange", {}) for id in ids if every[id].diagnose}
    exchanged = {id: whole["iia"] for id, whole in together.items() if "iia" in whole}
    assert {id: x["result"]["exchanged"] for id, x in lines.items() if "exchanged" in x["result"]} == exchanged != {}


def test_an_ablation_whose_data_is_not_there_is_left_out_of_all_and_alone_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ABLATIONS", {"mini": MINI, "few": replace(FEW, needs=("there", "weights", "data.jsonl"))})
    said = "ablation few needs weights and data.jsonl in this folder (its preset is sim)"
    assert run.main(["few", *places(tmp_path)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert run.main(["all", *places(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"left out: {said}" in out and "4 cells" in out
    for name in ("weights", "data.jsonl"):
        (tmp_path / name).touch()
    assert run.main(["few", *places(tmp_path), "--dry-run"]) == 0
    assert "2 cells" in capsys.readouterr().out


def test_an_ablation_is_run_recorded_and_not_repeated(mini, tmp_path, capsys):
    assert run.main(["mini", *places(tmp_path), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "4 cells, about 1 core-minutes" in dry and "mini: 2 latents, seed 1" in dry
    assert not (tmp_path / "out").exists()
    assert run.main(["mini", *places(tmp_path)]) == 0
    assert "4/4" in capsys.readouterr().out
    lines, left_out = records.read(tmp_path / "records")
    assert set(lines) == {c.run.id for c in cells(MINI, {})} and not left_out
    for id, line in lines.items():
        result = json.loads((tmp_path / "out" / id / "result.json").read_text())
        assert records.unpack(line["result"]["correct"]) == result["correct"]
    assert run.main(["mini", *places(tmp_path)]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    path = tmp_path / "records" / "runs.jsonl"
    before = path.read_text()
    path.write_text(before[: len(before) - 50])  # half of the last record
    assert run.main(["mini", *places(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "line 4: not a whole record" in out and "1/1" in out and path.read_text() == before
    assert run.main(places(tmp_path)) == 0
    assert "mini  4 of 4 cells, done" in capsys.readouterr().out


def test_records_of_ablations_that_are_not_registered_are_counted_in_a_line(mini, monkeypatch, tmp_path, capsys):
    other = replace(MINI, seeds=(5, 6, 7))
    hits = [[1, 0]] * 8
    written(tmp_path / "records", planted({"1 latents": hits, "2 latents": hits}, other))
    said = "6 of 6 records belong to no ablation known here"
    assert run.main(places(tmp_path)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "belong" in line]
    assert line.startswith(said)
    monkeypatch.setitem(run.ABLATIONS, "other", other)
    assert run.main(places(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "other  6 of 6 cells, done" in out and "belong" not in out


def test_a_killed_command_ends_its_workers_and_goes_on_inside_a_cell(monkeypatch, tmp_path):
    process = command("long", places(tmp_path))
    while not list((tmp_path / "out").glob("*/checkpoint/step-*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not records.read(tmp_path / "records")[0]
    monkeypatch.setitem(run.ABLATIONS, "long", LONG)
    assert run.main(["long", *places(tmp_path)]) == 0
    (cell,) = cells(LONG, {})
    assert set(records.read(tmp_path / "records")[0]) == {cell.run.id}
    train(cell.run, tmp_path / "other", device="cpu")  # the same losses, to the bit, as never killed
    logs = [(tmp_path / home / cell.run.id / "metrics.jsonl").read_text().splitlines() for home in ("out", "other")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_cells_that_cannot_be_written_fail_and_can_be_run_again(few, tmp_path, capsys):
    """Neither they, on a full disk, nor their records, where something is in the place of their lock."""
    full = command("few", places(tmp_path), limit=20_000)
    said = full.communicate()[1]
    assert full.returncode == 1 and "Traceback" not in said
    assert "failed: few: 1 latents, seed 0: " in said and "2 of 2 cells failed" in said
    (tmp_path / "locked" / "runs.lock").mkdir(parents=True)
    assert run.main(["few", *places(tmp_path, "locked")]) == 1
    err = capsys.readouterr().err
    assert "failed: few: 1 latents, seed 0: its record could not be written" in err and "2 of 2 cells failed" in err
    (tmp_path / "file").write_text("where a folder should be")
    assert run.main(["few", *places(tmp_path, "file")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file is a file: --records is a folder\n"
    assert run.main(["few", *places(tmp_path)]) == 0
    assert len(records.read(tmp_path / "records")[0]) == 2


def test_a_start_whose_weights_are_gone_is_trained_again(monkeypatch, tmp_path):
    """Its record and its result are there; what it trains is what it had trained, and its log is not doubled."""
    small = {name: TINY[name] for name in ("model.n_embd", "model.n_head", "judge.items", "judge.level_items")}
    small |= {f"arms.{arm}.train.{what}": 4 for arm in ("half-trained", "sft") for what in ("steps", "batch")}
    chained = replace(FEW, base="cups-rlvr", arms=("sft",), axes=({"": small},), contrasts=())
    monkeypatch.setitem(run.ABLATIONS, "chained", chained)
    start, after = (cell.run for cell in cells(chained, {}))
    home = tmp_path / "out" / start.id
    train(start, tmp_path / "out", device="cpu")
    records.add(tmp_path / "records", records.of_run(home, start))
    paths = home / "metrics.jsonl", home / "model" / "model.safetensors"
    log, weights = (path.read_bytes() for path in paths)
    shutil.rmtree(home / "model")
    assert run.main(["chained", *places(tmp_path)]) == 0
    assert after.init == start.id and set(records.read(tmp_path / "records")[0]) == {start.id, after.id}
    assert paths[1].read_bytes() == weights and paths[0].read_bytes().count(b"\n") == log.count(b"\n")


def with_a_broken_row(ablation):
    """One row more, whose problems do not fit the model's positions."""
    return replace(ablation, axes=(ablation.axes[0] | {"broken": {**TINY, "model.n_positions": 12}},), contrasts=())


def test_failed_cells_are_named_and_the_others_are_kept(monkeypatch, tmp_path, capsys):
    """One that cannot be run, and one at which another command is."""
    monkeypatch.setitem(run.ABLATIONS, "mini", with_a_broken_row(FEW))
    (first, *_) = cells(FEW, {})
    with exclusive_lock(tmp_path / "out" / f"{first.run.id}.lock"):
        assert run.main(["mini", *places(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "failed: mini: broken, seed 0: problem" in err and "2 of 3 cells failed" in err
    assert f"another process is at {tmp_path}/out/{first.run.id}" in err
    assert len(records.read(tmp_path / "records")[0]) == 1


def test_cells_go_through_submitit(monkeypatch, tmp_path, capsys):
    """One job at a time: the second is sent when the first has ended."""
    one_row = replace(FEW, axes=({"1 latents": FEW.axes[0]["1 latents"]},))
    monkeypatch.setitem(run.ABLATIONS, "mini", with_a_broken_row(one_row))
    assert run.main(["mini", *places(tmp_path), "--launcher", "local"]) == 1
    told = capsys.readouterr()
    assert "mini: 1 latents, seed 0: finished" in told.out and "failed: mini: broken, seed 0: problem" in told.err
    assert len(records.read(tmp_path / "records")[0]) == 1


@pytest.mark.parametrize(
    "args, message",
    [
        (["nothing"], "no ablation 'nothing'; there are latents"),
        (["latents", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["latents", "--launcher", "cloud"], "--launcher"),
        (["wrong"], "method.latents: Sim has no field 'latents'"),
    ],
)
def test_bad_input_is_one_line(args, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(run.ABLATIONS, "wrong", replace(MINI, axes=({"a": {"method.latents": 1}},)))
    assert run.main([*args, *places(tmp_path)[:4]]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err
