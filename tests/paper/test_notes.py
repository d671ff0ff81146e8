"""What a caption adds where a plain interval would mislead: floors and ceilings, seeds that agree."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from eval.stats import interval, wilson
from paper import build, markup, records, tables
from paper.design import Control, cells
from tests.paper.helpers import MINI, planted, seeds, written

FIVE = seeds(MINI, 5)


def by_level(hits: dict[str, dict[str, list[list[int]]]]) -> dict[str, dict]:
    """Records whose pooled results are those of levels in turn, given row by row, level by level, seed by seed."""
    whole = {
        row: [[hit for level in levels.values() for hit in level[s]] for s in range(5)] for row, levels in hits.items()
    }
    lines = planted(whole, FIVE)
    for cell in cells(FIVE, {}):
        each = {level: x[cell.seed] for level, x in hits[cell.row].items()}
        lines[cell.run.id]["result"]["levels"] = {
            level: {"n": len(x), "accuracy": sum(x) / len(x)} for level, x in each.items()
        }
    return lines


def gathered(lines, ablation=FIVE):
    return tables.gather("mini", ablation, cells(ablation, {}), lines, 200)


RNG = np.random.default_rng(2)
RIGHT = [[1] * 200] * 5
SOME = [[1] * 8 + [0] * 2, [1] * 9 + [0], [1] * 10, [0] * 3 + [1] * 7, [1] * 10]
TEN = [[1] * 10] * 5
CEILING = {"1 latents": {"2": SOME, "9": RIGHT, "10": RIGHT}, "2 latents": {"2": TEN, "9": RIGHT, "10": RIGHT}}


def test_arms_at_a_ceiling_are_said_and_shown_where_they_differ(tmp_path, monkeypatch, capsys):
    lines = by_level(CEILING)
    for line in lines.values():  # in the order of numbers: level 2 comes before 9 and 10
        assert records.pooled_sizes(line["result"]["levels"]) == {"2": 10, "9": 200, "10": 200}
    table = gathered(lines)
    assert (table.end, table.telling_level) == ("over 0.98", "2")
    said = markup.caption(table)
    assert "All arms are over 0.98 at this metric" in said and "accuracy at level 2" in said and "10 problems)" in said
    low, high = interval(np.array(SOME), 200)
    text = markup.markdown(table)
    assert f"| {np.mean(SOME):.3f} ({low:.3f} to {high:.3f}) |" in text
    assert "| accuracy at level 2, 95 % interval |" in text
    assert r"\shortstack[r]{accuracy at \\ level 2, 95 \% \\ interval}" in markup.latex(table)
    monkeypatch.setattr(build, "ABLATIONS", {"mini": FIVE})
    home = written(tmp_path / "records", lines)
    assert build.main(["mini", "--records", str(home), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "table mini: all arms are over 0.98 at accuracy at the hardest level; they differ most at level 2" in out


def test_a_ceiling_without_results_by_level_shows_no_level():
    lines = by_level(CEILING)
    for line in lines.values():
        del line["result"]["levels"]
    table = gathered(lines)
    assert table.telling_level is None and "hardly be told apart. " in markup.caption(table)
    assert "at level" not in markup.markdown(table).replace("at the hardest level", "")


@pytest.mark.parametrize("share, end", [((0.1, 0.15), "under 0.2"), ((0.1, 0.3), None), ((0.97, 1.0), None)])
def test_only_where_all_arms_are_at_one_end_it_is_said(share, end):
    hits = {
        f"{k} latents": {n: [[1] * int(100 * x) + [0] * (100 - int(100 * x))] * 5 for n in ("1", "2")}
        for k, x in zip((1, 2), share)
    }
    table = gathered(by_level(hits))
    assert table.end == end and table.telling_level == ("2" if end else None)
    assert ("All arms are" in markup.caption(table)) == bool(end)


def test_problems_of_one_level_are_of_no_hardest_one():
    table = gathered(by_level({f"{k} latents": {"0": [[1] * k + [0] * (100 - k)] * 5} for k in (1, 2)}))
    said = markup.caption(table)
    assert table.end == "under 0.2" and table.telling_level is None
    assert "Accuracy, greedy, with the 95 % interval of the two-level bootstrap over 5 seeds" in said
    assert "at level" not in markup.markdown(table) and "hardest" not in markup.markdown(table)
    assert "Accuracy; 5 seeds, " in markup.short_caption(table)


def test_arms_that_differ_nowhere_are_shown_at_no_other_level():
    """All wrong at every level: the last column would say of another level what the first says of the hardest."""
    none = {f"{k} latents": {n: [[0] * 20] * 5 for n in ("1", "2")} for k in (1, 2)}
    table = gathered(by_level(none))
    assert table.end == "under 0.2" and table.telling_level is None


def test_one_seed_is_said_to_speak_for_no_other():
    one = seeds(MINI, 1)
    lines = planted({"1 latents": [[1] * 3 + [0] * 97], "2 latents": [[1] * 30 + [0] * 70]}, one)
    table = gathered(lines, one)
    assert "95 % interval over 100 held-out problems of one training seed, which says nothing of others" in (
        markup.caption(table)
    )
    assert "; 1 seed, 100 held-out problems." in markup.short_caption(table)
    assert (
        table.rows["1 latents"].interval[0]
        <= wilson(3, 100)[0]
        < wilson(3, 100)[1]
        <= table.rows["1 latents"].interval[1]
    )


def test_controls_and_other_metrics_are_at_no_end():
    """A control far below does not make the arms tell apart, and one arm has none to be told apart from."""
    lines = by_level(CEILING)
    ((_, change),) = list(MINI.axes[0].items())[:1]
    one = replace(FIVE, axes=({"2 latents": MINI.axes[0]["2 latents"]},), controls=("1 latents",), contrasts=())
    table = tables.gather("mini", one, cells(one, {"1 latents": Control(change)}), lines, 200)
    assert table.rows["1 latents"].control and table.end is None
    assert gathered(lines, replace(FIVE, metric="main.used")).end is None


def test_results_by_level_that_are_not_those_pooled_are_left_out(tmp_path):
    lines = by_level(CEILING)
    first, second, third, *_ = lines.values()
    first["result"]["levels"]["2"]["n"] = 9
    second["result"]["levels"]["easy"] = second["result"]["levels"].pop("2")
    third["result"]["levels"]["2"] = {"n": 10}
    (tmp_path / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    found, left_out = records.read(tmp_path)
    assert set(lines) - set(found) == {line["id"] for line in (first, second, third)}
    assert any("has 410 results, result.levels says 409" in why for why in left_out)
    assert any("'result.levels' must be by level, got 'easy'" in why for why in left_out)
    assert any("no field 'result.levels.2.accuracy'" in why for why in left_out)


def test_seeds_that_agree_have_both_intervals():
    """Student's over seeds and Wilson's over items, by scipy and by hand; others keep the one interval."""
    shares = np.array([0.9, 0.905, 0.9, 0.895, 0.9])
    agreeing = [[1] * round(200 * x) + [0] * round(200 * (1 - x)) for x in shares]
    apart = [[1] * (100 + 10 * s) + [0] * (100 - 10 * s) for s in range(5)]
    table = gathered(planted({"1 latents": apart, "2 latents": agreeing}, FIVE))
    low, high = student.interval(0.95, 4, loc=0.9, scale=shares.std(ddof=1) / np.sqrt(5))
    items = wilson(180, 200)
    said = markup.caption(table)
    assert f"2 latents: {low:.3f} to {high:.3f} over seeds, {items[0]:.3f} to {items[1]:.3f} over items." in said
    assert "1 latents:" not in said and "Where 5 of 5 seeds agree" in said
    assert f"above {0.025**0.2:.2f} (Clopper-Pearson)" in said
    both = markup.caption(gathered(planted({"1 latents": agreeing, "2 latents": agreeing}, FIVE)))
    assert "1 latents / 2 latents: " in both
    assert "agree" not in markup.caption(gathered(planted({"1 latents": apart, "2 latents": apart}, FIVE)))


def test_items_in_clusters_are_counted_as_such(tmp_path):
    """Every problem four times: the table of a quarter of them, which says how many clusters there are."""
    rng = np.random.default_rng(4)
    some = {"1 latents": [1] * 20 + [0] * 30, "2 latents": [1] * 35 + [0] * 15}
    once = {row: np.array([rng.permutation(hits) for _ in range(5)]) for row, hits in some.items()}
    lines = planted({row: np.repeat(hits, 4, axis=1).tolist() for row, hits in once.items()}, FIVE)
    for line in lines.values():
        packed = records.pack_clusters([f"multiset {i // 4}" for i in range(200)])
        line["result"]["clusters"] = line["result"]["pooled"]["clusters"] = packed
    found, left_out = records.read(written(tmp_path, lines))
    assert not left_out and records.unpack_clusters(packed) == [i // 4 for i in range(200)]
    table, want = gathered(found), gathered(planted({row: hits.tolist() for row, hits in once.items()}, FIVE))
    assert "200 held-out problems in 50 clusters that stand or fall together" in markup.caption(table)
    assert markup.body(table) == markup.body(want)


def test_clusters_of_other_items_are_left_out(tmp_path):
    lines = by_level(CEILING)
    first, second, *_ = lines.values()
    first["result"]["clusters"] = records.pack_clusters([0] * 409)
    second["result"]["pooled"]["clusters"] = "x"
    (tmp_path / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    _, left_out = records.read(tmp_path)
    assert "field 'result.clusters' has 409 items, the results 410" in left_out[0]
    assert "field 'result.pooled.clusters': not packed clusters: 'x'" in left_out[1] and len(left_out) == 2


def test_a_table_takes_no_run_of_a_search():
    lines = planted({"1 latents": RIGHT, "2 latents": RIGHT}, FIVE)
    odd = next(iter(lines.values()))
    odd["config"]["judge"]["split"] = "valid"
    with pytest.raises(ValueError, match=f"table mini: run {odd['id']} was judged on the validation split"):
        gathered(lines)
