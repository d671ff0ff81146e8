"""Grids over config fields, and the ablations that are shipped."""

import copy
import importlib
import json
import sys
from dataclasses import replace

import pytest

from latent.config import Converged
from latent.methods import CoT, FixedEmbedding, NoCoT, Pause
from latent.plain import plain
from paper import records
from paper.ablations import ABLATIONS
from paper.controls import CONTROLS
from paper.design import Ablation, Control, candidate, cells, changed, over, search_cells
from paper.searches import SEARCHES
from tests.paper.helpers import MINI, planted, written
from train.presets import PRESETS


def test_a_field_is_changed_wherever_it_lies():
    run = changed(PRESETS["sim"](), {"method.n_latent": 3, "train.steps": 7, "method.halt": Converged()})
    assert run.method.n_latent == 3 and run.train.steps == 7 and run.method.halt == Converged()
    assert replace(run, method=PRESETS["sim"]().method, train=PRESETS["sim"]().train) == PRESETS["sim"]()
    cups = changed(PRESETS["cups"](), {"arms.latent-rlvr.train.latent_cost": 0.5})
    assert cups.arms["latent-rlvr"].train.latent_cost == 0.5 and cups.arms["latent"] == PRESETS["cups"]().arms["latent"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("method.n_latents", "method.n_latents: Sim has no field 'n_latents', it has n_latent, stride"),
        ("methods.n_latent", "methods.n_latent: Run has no field 'methods'"),
        ("seed.more", "seed.more: int has no field 'more'"),
    ],
)
def test_a_path_that_does_not_exist_is_an_error(path, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        changed(PRESETS["sim"](), {path: 1})
    with pytest.raises(ValueError, match="there is no 'nobody'"):
        changed(PRESETS["cups"](), {"arms.nobody.train.steps": 1})
    with pytest.raises(ValueError, match="n_latent must be at least 0, got -1"):
        changed(PRESETS["sim"](), {"method.n_latent": -1})


def test_cells_are_the_product_in_every_seed_and_equal_runs_are_one():
    ablation = replace(
        MINI, axes=(over("method.feedback", "hidden", "norm"), over("train.steps", 5, 1600)), seeds=(0, 4)
    )
    found = cells(ablation, {})
    assert {(c.row, c.seed) for c in found} == {
        (f"{a}, {n}", s) for a in ("hidden", "norm") for n in (5, 1600) for s in (0, 4)
    }
    control = {"the base": Control({}), "no-CoT": Control({"method": NoCoT()})}
    found = cells(replace(ablation, controls=("the base", "no-CoT")), control)
    assert [c.row for c in found if c.control] == ["no-CoT"] * 2  # the base is "hidden, 1600" already


def test_without_axes_the_arms_are_the_rows():
    found = cells(Ablation("", "cups-rlvr", (), 1, arms=("rlvr", "sft"), seeds=(3,)), {})
    assert [(c.row, c.seed) for c in found] == [(None, 3), ("rlvr", 3), ("sft", 3)]
    assert [c.run.id for c in found] == [run.id for run in replace(PRESETS["cups-rlvr"](), seed=3).runs().values()]


def test_what_an_arm_starts_from_is_run_too_and_equal_arms_once():
    ablation = Ablation("", "cups", (over("arms.latent-rlvr.train.latent_cost", 0.0, 0.5),), 1, arms=("latent-rlvr",))
    found = cells(replace(ablation, seeds=(0,)), {})
    assert [c.row for c in found] == [None, "0.0", "0.5"]
    assert {c.run.init for c in found[1:]} == {found[0].run.id} and found[0].run.init is None
    shown = cells(replace(ablation, seeds=(0,), arms=("latent", "latent-rlvr")), {})
    assert [c.row for c in shown] == ["latent", "0.0", "0.5"]


def test_a_control_may_be_an_arm_of_another_preset_with_all_that_it_starts_from():
    pauses = {f"arms.{arm}.method": Pause(PRESETS["sim"]().method) for arm in ("half-trained", "rlvr")}
    controls = {"of RL": Control(pauses, "cups-rlvr", "rlvr"), "start": Control(pauses, "cups-rlvr", "half-trained")}
    found = [c for c in cells(replace(MINI, seeds=(3,), controls=("of RL",)), controls) if type(c.run.method) is Pause]
    assert [(c.row, c.run.seed) for c in found] == [(None, 3), ("of RL", 3)] and found[1].control
    assert found[1].run.init == found[0].run.id and found[1].run.train == PRESETS["cups-rlvr"]().arms["rlvr"].train
    both = [c for c in cells(replace(MINI, seeds=(3,), controls=("of RL", "start")), controls) if c.control]
    assert {(c.row, c.run.id) for c in both} == {("start", found[0].run.id), ("of RL", found[1].run.id)}
    for wrong in (Control({}, "cups-rlvr"), Control({}, "sim", "rlvr")):
        with pytest.raises(ValueError, match="control 'wrong': arm"):
            cells(replace(MINI, controls=("wrong",)), {"wrong": wrong})


def test_one_name_for_two_runs_is_an_error():
    with pytest.raises(ValueError, match="two different runs are both called 'CoT', seed 0"):
        cells(
            replace(MINI, axes=({"CoT": {"method": CoT(every=2)}},), controls=("CoT",)),
            {"CoT": Control({"method": CoT()})},
        )


def test_shipped_ablations_name_rows_that_are_there_and_stand_beside_their_controls():
    total = 0
    for name, ablation in ABLATIONS.items():
        found = cells(ablation, CONTROLS)
        rows = {c.row for c in found}
        assert len(ablation.seeds) >= 5 or ablation.needs, name  # an arm on text takes half an hour
        assert any(c.claim for c in ablation.contrasts), name
        for contrast in ablation.contrasts:
            assert {contrast.a, contrast.b} <= rows, (name, contrast)
        kinds = {type(c.run.method) for c in found if c.row}
        assert {Pause, FixedEmbedding, NoCoT, CoT} <= kinds, name
        for row in rows - {None}:
            assert sorted(c.seed for c in found if c.row == row) == list(ablation.seeds), (name, row)
        total += 0 if ablation.needs else ablation.core_minutes
    assert total <= 800  # thirteen core-hours


def test_every_search_of_an_ablations_preset_tries_each_of_its_arms():
    """No arm of a table has fewer settings tried than another, the ones that it starts from included."""
    for name in ("one-token", "methods-modular", "methods-one-token"):
        search = SEARCHES[name]
        rows = {c.row for c in search_cells(name, search, ABLATIONS)}
        assert rows >= {candidate(arm, choice) for arm, axis in search.axes.items() for choice in axis}, name
        assert set(search.axes) == set(PRESETS[search.base]().arms), name


def test_planned_ablations_name_rows_that_are_there(monkeypatch):
    from paper import ablations

    monkeypatch.setattr(ablations, "ABLATIONS", dict(ABLATIONS))
    planned = importlib.import_module("paper.planned")
    del sys.modules["paper.planned"]
    assert set(ablations.ABLATIONS) == {*ABLATIONS, *planned.PLANNED} != set(ABLATIONS)
    for name, ablation in planned.PLANNED.items():
        found = cells(ablation, CONTROLS)
        rows = {c.row for c in found}
        assert all({c.a, c.b} <= rows for c in ablation.contrasts) and any(c.claim for c in ablation.contrasts), name
        for row in rows - {None}:
            assert sorted(c.seed for c in found if c.row == row) == list(ablation.seeds), (name, row)
        assert len({json.dumps(plain(c.run.env)) for c in found}) == 1, name  # one split: tables pair their problems


def test_a_packed_result_is_the_result():
    for n in (0, 1, 7, 8, 9, 1000):
        hits = [int(i * i % 7 < 3) for i in range(n)]
        assert records.unpack(records.pack(hits)) == hits
        assert records.unpack(records.pack([0] * n)) == [0] * n
    assert len(records.pack([1] * 1000)) < 40


def test_records_are_read_but_for_what_is_broken(tmp_path):
    lines = planted({"1 latents": [[0, 1]] * 2, "2 latents": [[1, 1]] * 2})
    written(tmp_path, lines)
    path = tmp_path / "runs.jsonl"
    assert records.read(tmp_path) == (dict(sorted(lines.items())), [])
    text = path.read_text().splitlines()
    other = json.loads(text[1])
    other["identity"]["seed"] = 9
    path.write_text("\n".join([text[0], json.dumps(other), text[2][: len(text[2]) // 2], "", '{"id": 3}', text[3]]))
    found, left_out = records.read(tmp_path)
    assert set(found) == {json.loads(text[0])["id"], json.loads(text[3])["id"]}
    assert [w.partition(": ")[2][:15] for w in left_out] == [f"run {other['id']}"[:15]] + ["not a whole rec"] * 3
    diagnosis = {"causal": {"intact": records.pack([1]), "sweep": {}, "interventions": {}, "patches": []}, "probe": []}
    records.add(tmp_path, lines[other["id"]] | {"diagnosis": diagnosis})
    records.add(tmp_path, lines[other["id"]])
    assert records.read(tmp_path)[0][other["id"]]["diagnosis"] == diagnosis
    assert set(records.read(tmp_path)[0]) == {*found, other["id"]}


def test_results_over_levels_are_of_judged_problems_alike_at_every_level(tmp_path):
    sample = lambda level, i, split="test": {  # noqa: E731
        "level": level, "key": f"{i:04}", "split": split, "correct": i % 3 == 0, "used": level,
    }  # fmt: skip
    made = (
        [sample(1, i) for i in range(6)] + [sample(2, i) for i in reversed(range(1000))] + [sample(1, 0, "train")] * 9
    )
    got = records.pooled(made)
    want = [i % 3 == 0 for i in range(6)] + [i % 3 == 0 for i in range(records.PER_LEVEL)]
    assert records.unpack(got["correct"]) == want and got["accuracy"] == sum(want) / len(want)
    assert got["used"] == (6 + 2 * records.PER_LEVEL) / len(want)
    assert got["problems"] != records.pooled(made[1:])["problems"]


def test_sooner_is_the_first_line_of_the_last_stage_that_is_good_enough(tmp_path):
    path, config = tmp_path / "metrics.jsonl", {"train": {"steps": 900}}
    lines = [
        {"step": 100 * i, "exact": e, "stage": s} for i, (e, s) in enumerate([(0.95, 0.0), (0.5, 1.0), (0.9, 1.0)])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert records.sooner(config, path) == 200
    path.write_text(json.dumps(lines[1]) + "\n")
    assert records.sooner(config, path) == 900


@pytest.mark.parametrize(
    "name, wrong, said",
    [
        ("result.core_seconds", "x", "field 'result.core_seconds' must be int or float, got 'x'"),
        ("result.sooner", None, "field 'result.sooner' must be int or float, got None"),
        ("result.main", 3, "no field 'result.main.accuracy'"),
        ("result.flops", float("nan"), "field 'result.flops' must be finite"),
        ("result.pooled", [], "no field 'result.pooled.accuracy'"),
        ("result.sweep", {"four": {}}, "field 'result.sweep' must be by numbers of latent steps, got 'four'"),
        ("result.sweep", {"4": {}}, "no field 'result.sweep.4.correct'"),
        ("result.correct", "999999999999:c$@", "field 'result.correct': not packed results: '999999999999:c$@'"),
        ("result.correct", "2:", "field 'result.correct': not packed results: '2:'"),
        ("env", None, "no field 'env.cpu'"),
        ("env.packages", {}, "no field 'env.packages.torch'"),
        ("diagnosis", 1, "no field 'diagnosis.causal'"),
        ("diagnosis.probe", [{"accuracy": 1.0}], "diagnosis.probe, 0 has no field 'majority'"),
        ("diagnosis.causal.patches", [{"flipped": None}], "field 'flipped' must be int or float, got None"),
        ("diagnosis.causal.patches", [{"flipped": 1, "iia": "x"}], "field 'iia' must be int or float, got 'x'"),
    ],
)
def test_a_record_of_the_wrong_shape_is_named_and_left_out(name, wrong, said, tmp_path):
    """Whatever stands in it, by file, line and field; the others are read."""
    lines = planted({"1 latents": [[1, 0], [1, 1]], "2 latents": [[1, 1], [0, 1]]})
    first = copy.deepcopy(next(iter(lines.values())))
    if name.startswith("diagnosis."):
        causal = {"intact": records.pack([1]), "sweep": {}, "interventions": {}, "patches": []}
        first["diagnosis"] = {"causal": causal, "probe": []}
    *inside, last = name.split(".")
    at = first
    for part in inside:
        at = at[part]
    at[last] = wrong
    rest = list(lines.values())[1:]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [first, *rest]))
    found, left_out = records.read(tmp_path)
    assert set(found) == {line["id"] for line in rest}
    assert len(left_out) == 1 and left_out[0].startswith(f"{tmp_path}/runs.jsonl, line 1") and said in left_out[0]


def test_results_are_unpacked_as_they_were_packed():
    for hits in ([], [0], [1], [0] * 9, [1, 0, 0, 1] * 5):
        assert records.unpack(records.pack(hits)) == hits
