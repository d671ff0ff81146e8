"""`python -m paper.run` as its user meets it."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from paper import records, run
from paper.design import cells
from tests.paper.helpers import MINI, TINY, planted, written
from train.record import exclusive_lock

pytestmark = pytest.mark.slow  # commands with processes of their own

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import resource, sys
from paper import run
from tests.paper.helpers import MINI
run.ABLATIONS["mini"] = MINI
if sys.argv[1] != "-":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(run.main(sys.argv[2:]))
"""


def command(*args, limit="-", cwd=ROOT):
    script = [sys.executable, "-c", SCRIPT, limit, *map(str, args)]
    return subprocess.run(script, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def mini(monkeypatch):
    monkeypatch.setitem(run.ABLATIONS, "mini", MINI)


def places(tmp_path, jobs=1):
    return ["--out", str(tmp_path / "out"), "--records", str(tmp_path / "records"), "--jobs", str(jobs)]


def test_the_smoke_of_everything_ends_in_the_paper():
    done = subprocess.run(
        [sys.executable, "-m", "paper.run", "--smoke"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "main.pdf" in done.stdout or "no PDF: install" in done.stdout
    assert "depth: always 8 in training, seed 1: finished" in done.stdout and "eta" in done.stdout


def test_an_ablation_is_run_recorded_and_not_repeated(mini, tmp_path, capsys):
    assert run.main(["mini", *places(tmp_path), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "4 cells, about 1 core-minutes" in dry and "mini: 2 latents, seed 1" in dry
    assert not (tmp_path / "out").exists()
    assert run.main(["mini", *places(tmp_path, jobs=2)]) == 0
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


LONGER = """
import sys
from paper import run
from tests.paper.helpers import MINI, replace
axis = {"long": {**MINI.axes[0]["1 latents"], "train.steps": 60, "train.log_every": 20}}
run.ABLATIONS["mini"] = replace(MINI, axes=(axis,), contrasts=())
sys.exit(run.main(sys.argv[1:]))
"""


def test_a_killed_command_ends_its_workers_and_goes_on_inside_a_cell(tmp_path):
    args = [sys.executable, "-c", LONGER, "mini"]
    process = subprocess.Popen([*args, *places(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("*/checkpoint/step-*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not records.read(tmp_path / "records")[0]
    for home in (tmp_path, tmp_path / "other"):
        done = subprocess.run([*args, *places(home)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    ids = set(records.read(tmp_path / "records")[0])
    assert len(ids) == 2 and ids == set(records.read(tmp_path / "other" / "records")[0])
    for id in ids:  # the same losses, to the bit, as never killed
        logs = [
            (home / "out" / id / "metrics.jsonl").read_text().splitlines() for home in (tmp_path, tmp_path / "other")
        ]
        losses = [[json.loads(line)["loss"] for line in log] for log in logs]
        assert losses[0] == losses[1] and len(losses[0]) == 3


def test_two_commands_do_not_write_the_same_run(mini, tmp_path, capsys):
    (first, *_) = cells(MINI, {})
    with exclusive_lock(tmp_path / "out" / f"{first.run.id}.lock"):
        assert run.main(["mini", *places(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert f"another process is at {tmp_path}/out/{first.run.id}" in err and "1 of 4 cells failed" in err


def test_a_record_that_cannot_be_written_fails_its_cell(mini, tmp_path, capsys):
    (tmp_path / "records").write_text("a file where a folder should be")
    assert run.main(["mini", *places(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "failed: mini: 1 latents, seed 0: its record could not be written" in err and "4 of 4 cells failed" in err


def test_a_full_disk_fails_cells_and_they_can_be_run_again(tmp_path):
    done = command("mini", *places(tmp_path), limit="20000")
    assert done.returncode == 1
    assert "failed: mini: 1 latents, seed 0: " in done.stderr and "4 of 4 cells failed" in done.stderr
    assert "Traceback" not in done.stderr
    done = command("mini", *places(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(records.read(tmp_path / "records")[0]) == 4


def broken():
    """One row whose problems do not fit the model's positions."""
    return replace(MINI, axes=(MINI.axes[0] | {"broken": {**TINY, "model.n_positions": 12}},))


def test_failed_cells_are_named_and_the_others_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(run.ABLATIONS, "mini", broken())
    assert run.main(["mini", *places(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "failed: mini: broken, seed 0: problem" in err and "failed: mini: broken, seed 1: problem" in err
    assert "2 of 6 cells failed" in err and len(records.read(tmp_path / "records")[0]) == 4


def test_cells_go_through_submitit(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(run.ABLATIONS, "mini", replace(broken(), seeds=(0,)))
    assert run.main(["mini", *places(tmp_path, jobs=3), "--launcher", "local"]) == 1
    told = capsys.readouterr()
    assert "mini: 2 latents, seed 0: finished" in told.out and "failed: mini: broken, seed 0: problem" in told.err
    assert len(records.read(tmp_path / "records")[0]) == 2


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
