"""JSON of the wrong shape in the files of a run, of a checkpoint and of the records: one line, never a traceback.

Every field in turn is removed or becomes another thing; of many such cases, one in so many is tried.
"""

import copy
import io
import json
import logging
from collections.abc import Iterator

import pytest
import torch

from eval import chat, diagnose, runs, view
from eval.environments import Cups
from kernels.errors import UserError
from latent import hub
from latent.config import ModelConfig
from latent.methods import Sim
from latent.plain import plain
from paper import build, records, tables
from paper.design import cells
from tests.helpers import small_reasoner
from tests.paper.helpers import MINI, planted
from train.config import SFT, Judge, Run

pytestmark = pytest.mark.slow  # thousands of spoilt files

WRONG = (None, [], 3, -1, 2**70, "x", {}, True, 1.5, [None], [[1]], {"class": "Sim"})
GONE = "a field that is removed"
SKIPPED = ("vocab", "merges", "id2label", "label2id")  # thousands of fields alike


def places(data, depth: int = 5) -> Iterator[tuple]:
    """Where there is something in nested data, of lists the first item."""
    inside = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in inside:
        yield (key,)
        if depth and key not in SKIPPED:
            yield from ((key, *rest) for rest in places(value, depth - 1))


def spoilt(data) -> Iterator[tuple[str, object]]:
    """What was done to it, and the data with that done: as a whole, then every field in every way."""
    yield from (("the whole", wrong) for wrong in WRONG)
    for place in places(data):
        for wrong in (GONE, *WRONG):
            made = copy.deepcopy(data)
            at = made
            for key in place[:-1]:
                at = at[key]
            if wrong is GONE:
                del at[place[-1]]
            else:
                at[place[-1]] = wrong
            yield f"{'.'.join(map(str, place))} = {wrong!r}", made


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of two runs, of which `a` is to be spoilt."""
    folder, run = tmp_path_factory.mktemp("runs"), Run(Cups(), ModelConfig(), Sim(n_latent=2), SFT(), Judge())
    torch.manual_seed(0)
    main = {"accuracy": 0.5, "low": 0.1, "high": 0.9, "used": 2.0, "tokens": 4.0}
    result = {"main": main, "correct": [1, 0], "steps": 8.0, "flops": 4e6, "core_seconds": 12.0, "sweep": {}}
    for name in ("a", "b"):
        hub.save(small_reasoner(Sim(n_latent=2, stride=2)), folder / name / "model")
        start = {"time": "2026-01-01T00:00:00+00:00", "step": 0, "command": None}
        files = {"config.json": plain(run), "env.json": {"data": None, "starts": [start]}, "result.json": result}
        for file, data in files.items():
            (folder / name / file).write_text(json.dumps(data))
        (folder / name / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 9, "loss": 0.5}\n')
    return folder


def said_by(command, args: list, capsys, what: str) -> tuple[int, str, list[str]]:
    """A command's code, output and complaints: it ends well, or with code 2 and one line."""
    try:
        code = command([str(arg) for arg in args])
    except Exception as e:
        raise AssertionError(f"{command.__module__}, {what}: {type(e).__name__}: {e}") from e
    told = capsys.readouterr()
    said = [line for line in told.err.splitlines() if line.strip() and "it/s]" not in line]
    assert len(said) <= 1 and (code == 0 or (code == 2 and said[0].startswith("error: "))), (what, code, said)
    return code, told.out, said


def each_spoilt(path, part: int, of: int) -> Iterator[str]:
    """One in `of` of the ways to spoil a file, which is as it was afterwards."""
    text = path.read_text()
    first, *rest = text.splitlines() if path.suffix == ".jsonl" else [text]
    for i, (what, made) in enumerate(spoilt(json.loads(first))):
        if i % of == part:
            path.write_text("".join(f"{line}\n" for line in [json.dumps(made), *rest]))
            yield f"{path.name}: {what}"
    path.write_text(text)


@pytest.mark.parametrize("file, of", [("config.json", 4), ("env.json", 1), ("metrics.jsonl", 1), ("result.json", 1)])
def test_the_list_of_runs(file, of, home, capsys):
    """It names a run that is damaged, in a line, or shows it, or passes over what is no run; the other is shown."""
    for what in each_spoilt(home / "a" / file, 0, of):
        code, out, said = said_by(runs.main, ["--out", home], capsys, what)
        assert code == 0 and any(line.startswith("b ") for line in out.splitlines()), what
        assert all(line.startswith("a is damaged and left out: ") for line in said), what
        said_by(runs.main, ["--out", home, "--compare", "a", "b"], capsys, what)


@pytest.mark.parametrize(
    "file, of",
    [
        ("config.json", 16),
        ("model/config.json", 16),
        ("model/generation_config.json", 3),
        ("model/tokenizer_config.json", 4),
        ("model/tokenizer.json", 12),
    ],
)
def test_a_talk(file, of, home, capsys, monkeypatch):
    logging.disable(logging.WARNING)
    try:
        for what in each_spoilt(home / "a" / file, 1, of):
            monkeypatch.setattr("sys.stdin", io.StringIO("/sample\n01 23\n/quit\n"))
            said_by(chat.main, [home / "a"], capsys, what)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("file, of", [("a/config.json", 100), ("b/config.json", 120), ("a/model/config.json", 160)])
def test_diagnosis_and_view(file, of, home, capsys):
    """Also where the run beside it is the spoilt one: then that one is left out, in a line."""
    small = ["--probe-items", 10, "--device", "cpu"]
    for what in each_spoilt(home / file, 2, of):
        for command, more in (
            (diagnose.main, ["--items", 2, "--batch", 2, "--group", 2]),
            (view.main, ["--problems", 1]),
        ):
            code, _, _ = said_by(command, [home / "a", *small, *more], capsys, what)
            assert code == 0 or file.startswith("a/"), what


def test_records(tmp_path):
    """A record that is kept makes tables and numbers; one that would not is left out, named, and only it is missing."""
    lines = planted({"1 latents": [[1, 0], [1, 1]], "2 latents": [[1, 1], [0, 1]]})
    every = cells(MINI, {})
    first, *rest = lines.values()
    kept = 0
    for what, made in spoilt(first):
        (tmp_path / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in [made, *rest]))
        found, left_out = records.read(tmp_path)
        assert set(found) >= {line["id"] for line in rest} and len(found) + len(left_out) == len(lines), what
        assert all(why.startswith(f"{tmp_path / records.FILE}, line 1: ") or "has no field" in why for why in left_out)
        try:
            table = tables.gather("mini", MINI, every, found, 20)
            build.texts([table], None)
            build.about(list(found.values()))
            kept += 1
        except UserError as e:  # the record is not there, or others of its row were judged on other problems
            assert "\n" not in str(e) and (left_out or "pooled.problems" in what), what
    assert kept > 20
