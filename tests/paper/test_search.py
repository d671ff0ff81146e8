"""Searches over settings: the same for every arm, never on test problems, and their tables against planted records."""

from dataclasses import replace

import pytest

from latent.plain import identity, plain
from paper import build, records, run, search
from paper.ablations import ABLATIONS
from paper.design import Search, over, search_cells
from paper.searches import SEARCHES
from tests.paper.helpers import MINI, planted
from train.presets import PRESETS

RATES = over("train.lr", 1e-3, 3e-3, 9e-3)
COT = PRESETS["cups"]().arms["cot"]
MIXED = {
    "short": {"train.lr": 9e-3, "train.steps": 100},
    "as it is": {"train.lr": COT.train.lr, "train.steps": COT.train.steps},
    "long": {"train.lr": 1e-3, "train.steps": 3000},
}
TRIED = Search("cups", {"no-cot": RATES, "cot": MIXED, "latent-rlvr": RATES}, seed=100, core_minutes=9)
ACCURACIES = {
    "no-cot: 0.001": 0.1, "no-cot: 0.003": 0.3, "no-cot: 0.009": 0.3,
    "cot: short": 0.5, "cot: as it is": 0.6, "cot: long": 0.9,
    "latent-rlvr: 0.001": 0.2, "latent-rlvr: 0.003": 0.1, "latent-rlvr: 0.009": 0.0,
}  # fmt: skip


def searched() -> dict[str, dict]:
    """Records of the search, each of ten core-seconds, and of two problems in each of five clusters."""
    like = next(iter(planted({"1 latents": [[0, 1] * 5] * 2, "2 latents": [[0, 1] * 5] * 2}).values()))
    lines = {}
    for cell in search_cells("tried", TRIED, {}):
        main = {"accuracy": ACCURACIES.get(cell.row, 0.0), "used": 0.0}
        result = like["result"] | {"main": main, "core_seconds": 10.0}
        result["clusters"] = records.pack_clusters([i // 2 for i in range(10)])
        about = {"id": cell.run.id, "identity": identity(cell.run), "config": plain(cell.run)}
        lines[cell.run.id] = like | about | {"result": result}
    return lines


def test_every_arm_is_tried_alike_on_the_validation_split():
    """Each candidate as the preset's arm with its change, by hand; what an arm starts from is there once."""
    found = search_cells("tried", TRIED, ABLATIONS)
    assert {c.row for c in found} == {*ACCURACIES, None} and len(found) == 10
    assert all(c.run.judge.split == "valid" and c.run.seed == c.seed == 100 for c in found)
    preset = PRESETS["cups"]()
    by_row = {c.row: c.run for c in found}
    arm = preset.arms["cot"]
    assert by_row["cot: long"].train == replace(arm.train, lr=1e-3, steps=3000)
    assert by_row["cot: long"].method == arm.method and by_row["cot: as it is"].train == arm.train
    assert by_row[None].train == preset.arms["latent"].train
    assert {by_row[f"latent-rlvr: {x}"].init for x in (0.001, 0.003, 0.009)} == {by_row[None].id}
    names = [c.row for c in found]
    assert names.index(None) < names.index("latent-rlvr: 0.001")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"axes": {"cot": RATES, "no-cot": MIXED | {"more": {}}}}, "as the others, got cot 3, no-cot 4"),
        ({"axes": {"cot": MIXED | {"long": {"train.lr": 1.0}}}}, "all candidates of 'cot' must set the same fields"),
        ({"axes": {}}, "as many candidates as the others, got none"),
        ({"axes": {"nobody": RATES}}, "there is no 'nobody'"),
        ({"axes": {"cot": {"a": {}, "b": {}}}}, "'cot: a' and 'cot: b' are one and the same run"),
        ({"axes": {"cot": over("train.rate", 1.0)}}, "has no field 'rate'"),
        ({"seed": 1}, "seed 1 is one of the ablation 'mini'"),
        ({"base": "sim"}, "preset 'sim' is a single run"),
    ],
)  # fmt: skip
def test_a_search_that_is_not_fair_is_one_line(wrong, message, monkeypatch, tmp_path, capsys):
    for module in (run, build):
        monkeypatch.setattr(module, "ABLATIONS", {"mini": MINI})
        monkeypatch.setattr(module, "SEARCHES", {"tried": replace(TRIED, **wrong)})
    assert run.main(["--search", "tried", "--records", str(tmp_path), "--dry-run"]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


def test_its_table_says_what_was_tried_and_chosen(tmp_path, monkeypatch):
    """Of equally good ones the first; at the edge in each field that is least or largest; what the preset has."""
    lines = searched()
    for line in lines.values():
        records.add(tmp_path, line, records.SEARCH_FILE)
    assert not (tmp_path / records.FILE).exists()
    monkeypatch.setattr(build, "SEARCHES", {"tried": TRIED})
    monkeypatch.setattr(build, "ABLATIONS", {"mini": MINI})
    ((name, text),) = build.searches(tmp_path).items()
    assert name == "tables/search-tried.md"
    assert "3 candidates an arm, seed 100" in text and "10 problems of the validation split in 5 clusters" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    same = "yes" if PRESETS["cups"]().arms["no-cot"].train.lr == 3e-3 else "no"
    assert rows == [
        f"| no-cot | 0.001: 0.100; **0.003: 0.300**; 0.009: 0.300 | no | {same} | 30 |",
        "| cot | short: 0.500; as it is: 0.600; **long: 0.900** | train.lr, train.steps | no | 30 |",
        "| latent-rlvr | **0.001: 0.200**; 0.003: 0.100; 0.009: 0.000 | train.lr | no | 60 |",
    ]
    every = search_cells("tried", TRIED, {})
    best = {"cot: as it is": 1.0}
    for c in every:
        lines[c.run.id]["result"]["main"]["accuracy"] = best.get(c.row, 0.5)
    found = {each.arm: each for each in search.gather("tried", TRIED, every, lines)}
    assert found["cot"].in_preset and found["cot"].edges == () and found["cot"].chosen == "as it is"


def test_a_candidate_without_a_record_is_named(monkeypatch, tmp_path):
    lines = searched()
    gone = next(c for c in search_cells("tried", TRIED, {}) if c.row == "cot: long")
    del lines[gone.run.id]
    said = rf"search tried: no record of 'cot: long' \(run {gone.run.id}\) and 0 more; .* --search tried"
    with pytest.raises(ValueError, match=said):
        search.gather("tried", TRIED, search_cells("tried", TRIED, {}), lines)


def test_the_presets_have_what_was_chosen():
    """Of every search of the paper, from its records."""
    lines, left_out = records.read(build.HERE / "records", records.SEARCH_FILE)
    every = {name: search_cells(name, each, ABLATIONS) for name, each in SEARCHES.items()}
    assert not left_out and {c.run.id for each in every.values() for c in each} == set(lines)
    for name, each in SEARCHES.items():
        assert [x.arm for x in search.gather(name, each, every[name], lines) if not x.in_preset] == [], name


@pytest.mark.parametrize(
    "args, message",
    [
        (["--search", "nothing"], "no search 'nothing'; there are"),
        (["mini", "--search", "tried"], "one at a time"),
    ],
)
def test_bad_input_is_one_line(args, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "SEARCHES", {"tried": TRIED})
    assert run.main([*args, "--records", str(tmp_path)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


@pytest.mark.slow
def test_a_search_is_run_into_records_of_its_own(monkeypatch, tmp_path, capsys):
    tiny = {"train.steps": 3, "train.batch": 4}
    axis = {rate: {**tiny, "train.lr": float(rate)} for rate in ("0.001", "0.003")}
    small = Search("cups", {"no-cot": axis, "cot": axis}, seed=100, core_minutes=1)
    for module in (run, build):
        monkeypatch.setattr(module, "SEARCHES", {"small": small})
    args = ["--search", "small", "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records"), "--jobs", "1"]
    assert run.main([*args, "--dry-run"]) == 0
    assert "4 cells, about 1 core-minutes" in capsys.readouterr().out
    assert run.main(args) == 0
    lines, left_out = records.read(tmp_path / "records", records.SEARCH_FILE)
    assert set(lines) == {c.run.id for c in search_cells("small", small, {})} and not left_out
    assert not (tmp_path / "records" / records.FILE).exists()
    text = build.searches(tmp_path / "records")["tables/search-small.md"]
    for line in lines.values():
        assert f": {line['result']['main']['accuracy']:.3f}" in text
    assert run.main(args) == 0
    assert "nothing is missing" in capsys.readouterr().out
