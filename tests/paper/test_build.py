"""The paper from records: numbers against numpy, the same bytes twice, nothing typed by hand."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.stats import bootstrap, interval
from latent.plain import plain
from paper import build, claims, markup, overview, records, tables
from paper import run as paper_run
from paper.ablations import ABLATIONS, METHODS
from paper.controls import CONTROLS
from paper.design import Contrast, cells
from tests.helpers import python
from tests.paper.helpers import MINI, planted, seeds, written
from train.presets import PRESETS

PAPER = Path(build.__file__).parent
RNG = np.random.default_rng(0)
BETTER = {"1 latents": RNG.integers(2, size=(5, 200)).tolist(), "2 latents": np.ones((5, 200), int).tolist()}
FIVE = seeds(MINI, 5)


def gathered(correct, ablation=FIVE):
    return tables.gather("mini", ablation, cells(ablation, {}), planted(correct, ablation), 2000)


def test_a_table_is_the_mean_and_the_interval_of_its_records():
    table = gathered(BETTER)
    half = np.array(BETTER["1 latents"])
    row = table.rows["1 latents"]
    assert row.value == pytest.approx(half.mean()) and row.interval == interval(half, 2000)
    assert row.mean("core_seconds") == 12.0 and (table.seeds, table.items) == (5, 200)
    (contrast, difference, p) = table.contrasts[0]
    assert contrast.name == "2 latents - 1 latents" and difference.mean == pytest.approx(1 - half.mean()) and p < 0.05
    text = markup.markdown(table)
    assert f"| 1 latents | one chain | {half.mean():.3f} | {row.interval[0]:.3f} to {row.interval[1]:.3f} |" in text
    assert "over 5 seeds and 200 held-out problems" in text and "no effect shown" not in text
    known = markup.numbers(table)
    assert known["mini: 1 latents"].startswith(f"{half.mean():.3f} (")
    assert known["mini: 2 latents - 1 latents"].startswith(f"{100 * (1 - half.mean()):+.1f} points, 95 % interval")
    low, high = (f"{100 * x:+.1f}" for x in (difference.low, difference.high))
    short = f"{100 * (1 - half.mean()):+.1f} points [{low}, {high}]"
    assert known["mini: 2 latents - 1 latents: brief"] == short
    assert known["mini: 1 latents: value"] == f"{half.mean():.3f}"
    seeds_of = sorted(half.mean(1))
    assert known["mini: 1 latents: by seed"] == f"{seeds_of[0]:.3f} to {seeds_of[-1]:.3f}"


def test_no_effect_is_written_as_no_effect():
    same = {"1 latents": BETTER["1 latents"], "2 latents": RNG.integers(2, size=(5, 200)).tolist()}
    table = gathered(same)
    known = markup.numbers(table)
    assert known["mini: 2 latents - 1 latents"].startswith("no effect shown (")
    assert known["mini: 2 latents - 1 latents: brief"].startswith("no effect shown: ")
    assert "no effect shown" in markup.markdown(table) and table.verdict == "not shown"
    assert "Claim: Two latents are not one. By these runs: not shown." in markup.markdown(table)


def test_a_claim_is_supported_contradicted_or_not_shown():
    more, less = (replace(FIVE, contrasts=(Contrast("2 latents", "1 latents", claim=c),)) for c in ("more", "less"))
    assert gathered(BETTER, more).verdict == "supported" and gathered(BETTER, less).verdict == "contradicted"
    both = replace(more, contrasts=(*more.contrasts, Contrast("1 latents", "1 latents", claim="more")))
    assert gathered(BETTER, both).verdict == "not shown (1 of 2 differences as claimed)"
    open_end = replace(more, contrasts=(*more.contrasts, Contrast("1 latents", "1 latents")))
    assert gathered(BETTER, open_end).verdict == "supported"


def test_no_difference_is_claimed_within_a_margin_and_not_because_none_was_found():
    same = replace(FIVE, contrasts=(Contrast("2 latents", "1 latents", claim="same"),))
    assert gathered(BETTER, same).verdict == "contradicted"
    few = {"1 latents": RNG.integers(2, size=(5, 50)).tolist(), "2 latents": RNG.integers(2, size=(5, 50)).tolist()}
    assert gathered(few, same).verdict == "not shown"  # its interval is wide
    many = np.ones((5, 2000), int)
    many[:, :20] = 0
    assert gathered({"1 latents": many.tolist(), "2 latents": many[:, ::-1].tolist()}, same).verdict == "supported"


def test_no_more_may_be_less_but_not_beyond_the_margin():
    up, down = (
        replace(FIVE, contrasts=(Contrast(a, b, claim="not more"),))
        for a, b in (("2 latents", "1 latents"), ("1 latents", "2 latents"))
    )
    assert gathered(BETTER, up).verdict == "contradicted" and gathered(BETTER, down).verdict == "supported"
    few = {"1 latents": RNG.integers(2, size=(5, 50)).tolist(), "2 latents": RNG.integers(2, size=(5, 50)).tolist()}
    assert gathered(few, up).verdict == "not shown"  # its interval reaches beyond the margin


def test_training_counts_with_what_it_started_from():
    lines = planted(BETTER, FIVE)
    first, *_ = (c.run.id for c in cells(FIVE, {}) if c.row == "2 latents" and c.seed == 0)
    lines["start"] = {"identity": {}, "result": {"core_seconds": 7.0}}
    lines[first]["identity"] = {**lines[first]["identity"], "init": "start"}
    table = tables.gather("mini", FIVE, cells(FIVE, {}), lines, 20)
    assert table.rows["2 latents"].mean("core_seconds") == pytest.approx(12.0 + 7.0 / 5)


def test_runs_on_different_problems_are_not_compared():
    lines = planted(BETTER, FIVE)
    next(iter(lines.values()))["result"]["pooled"]["problems"] = "others"
    with pytest.raises(ValueError, match="table mini: its runs were judged on different problems"):
        tables.gather("mini", FIVE, cells(FIVE, {}), lines, 20)


def test_a_row_is_compared_with_itself_in_other_numbers_of_steps():
    lines, rng = planted(BETTER, FIVE), np.random.default_rng(3)
    swept = {}
    for line in lines.values():
        hits = {k: rng.integers(2, size=200) for k in ("3", "5")}
        line["result"]["sweep"] = {k: {"correct": records.pack(h.tolist())} for k, h in hits.items()}
        swept[line["config"]["method"]["n_latent"], line["config"]["seed"]] = hits
    ablation = replace(FIVE, contrasts=(Contrast("2 latents", "2 latents", 5, steps_b=3),))
    ((contrast, d, _),) = tables.gather("mini", ablation, cells(FIVE, {}), lines, 200).contrasts
    want = np.mean([swept[2, s]["5"] - swept[2, s]["3"].astype(float) for s in range(5)])
    assert contrast.name == "2 latents, 5 steps - 2 latents, 3 steps" and d.mean == pytest.approx(want)


def test_one_of_many_contrasts_is_corrected_for_all():
    """A difference that is barely significant alone is not when it is the smallest of sixty."""
    hits = np.zeros((5, 400), int)
    more = hits.copy()
    more[:, :6] = 1  # 6 items of 400 in every seed
    correct = {"1 latents": hits.tolist(), "2 latents": more.tolist()}
    (_, d, alone), *_ = gathered(correct).contrasts
    assert alone == d.p < 0.05
    many = replace(FIVE, contrasts=tuple(Contrast("2 latents", "1 latents") for _ in range(60)))
    assert all("no effect shown" in markup.effect(d, p) for _, d, p in gathered(correct, many).contrasts)


def test_another_metric_is_compared_seed_by_seed():
    lines = planted(BETTER, FIVE)
    for line in lines.values():
        line["result"]["pooled"]["used"] = line["config"]["method"]["n_latent"] + line["config"]["seed"] / 10
    table = tables.gather("mini", replace(FIVE, metric="pooled.used"), cells(FIVE, {}), lines, 2000)
    row = table.rows["1 latents"]
    assert row.value == pytest.approx(1.2) and row.interval == bootstrap(
        np.array([[1.0], [1.1], [1.2], [1.3], [1.4]]), 2000
    )
    _, d, p = table.contrasts[0]
    half = 2.776445 * 0.5 / 200 / np.sqrt(5)  # five seeds that agree, to one of 200 problems: Student's
    assert (d.mean, d.low, d.high) == pytest.approx((1, 1 - half, 1 + half)) and 0 < p < 0.01
    text = markup.markdown(table)
    assert "Latents used over levels, greedy" in text and "over 5 seeds and 200 held-out problems" in text
    assert "| 2 latents - 1 latents | +1 | +0.997 to +1 |" in text
    mixed = replace(FIVE, contrasts=(Contrast("2 latents", "1 latents", metric="pooled.used"),))
    mixed = tables.gather("mini", mixed, cells(FIVE, {}), lines, 2000)
    assert mixed.rows["1 latents"].value != row.value and mixed.contrasts[0][1] == d
    assert markup.numbers(mixed)["mini: 2 latents - 1 latents: pooled.used"].startswith(
        "+1 latents used over levels, 95 %"
    )
    swept = replace(FIVE, contrasts=(Contrast("2 latents", "1 latents", 3, "pooled.used"),))
    with pytest.raises(ValueError, match=r"only accuracy was swept over latent steps, not pooled\.used"):
        tables.gather("mini", swept, cells(FIVE, {}), lines, 20)
    with pytest.raises(ValueError, match=r"has no result 'main\.speed'"):
        tables.gather("mini", replace(FIVE, metric="main.speed"), cells(FIVE, {}), lines, 20)


def test_a_curriculum_that_did_not_end_is_said():
    lines = planted(BETTER, FIVE)
    for line in lines.values():
        line["result"]["steps_written"] = 4 * (line["config"]["method"]["n_latent"] - 1)
    table = tables.gather("mini", FIVE, cells(FIVE, {}), lines, 20)
    assert "2 latents still writes 4.0 steps of the chain." in markup.caption(table)
    assert "1 latents still" not in markup.caption(table)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Records of one ablation, which is all there is."""
    for module in (build, paper_run):
        monkeypatch.setattr(module, "ABLATIONS", {"mini": FIVE})
    return written(tmp_path / "records", planted(BETTER, FIVE))


def built(home, out, *names):
    return build.main([*names, "--records", str(home), "--out", str(out)])


SCRIPT = """
import sys
from pathlib import Path
from paper import build
from tests.paper.helpers import MINI, seeds
build.ABLATIONS.clear()
build.SEARCHES.clear()
build.ABLATIONS["mini"] = seeds(MINI, 5)
build.HERE = Path(sys.argv[1])
sys.exit(build.main(sys.argv[2:]))
"""


def test_the_same_records_give_the_same_files(home, tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    source.mkdir()
    text = r"\documentclass{article}\usepackage{booktabs,float,graphicx}\pdftrailerid{}\input{numbers}\begin{document}"
    text += "\n" + r"\result{mini: 2 latents}\input{tables/mini}\includegraphics{figures/mini}\cite{x}"
    text += "\n" + r"\bibliographystyle{plain}\bibliography{references}\end{document}" + "\n"
    (source / "main.tex").write_text(text)
    (source / "references.bib").write_text("@misc{x, author={A. Nobody}, title={Nothing}, year={2000}}")

    def in_a_process(out, seed):
        return python(
            "-c", SCRIPT, source, "--records", home, "--out", tmp_path / out, cwd=PAPER.parent, PYTHONHASHSEED=seed
        )

    for out, seed in (("a", "1"), ("b", "2")):
        assert (done := in_a_process(out, seed)).returncode == 0, done.stderr
    kinds = (".md", ".tex", ".png", ".pdf")
    made = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.suffix in kinds}
    assert {Path("tables/mini.md"), Path("tables/mini.tex"), Path("figures/mini.pdf"), Path("numbers.tex")} <= made
    assert (Path("main.pdf") in made) == any(map(shutil.which, build.ENGINES))
    for path in made:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    (source / "main.tex").write_text(text.replace("mini: 2 latents", "mini: 3 latents"))
    monkeypatch.setattr(build, "HERE", source)
    monkeypatch.setattr(build, "SEARCHES", {})
    assert built(home, tmp_path / "c") == 2
    assert "quotes a number that there is not: 'mini: 3 latents'" in capsys.readouterr().err
    assert not list((tmp_path / "c").iterdir())  # nothing half made


def test_a_pages_block_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    begins, ends = "<!-- results: made by python -m paper.build -->", "<!-- end of results -->"
    path.write_text(f"before\n{begins}\nold\n{ends}\nafter\n")
    table = gathered(BETTER)

    def page() -> str:
        return build.page(path, build.PAGES["README.md"], build.blocks([table]))

    before, _, rest = page().partition(begins)
    block, _, after = rest.partition(ends)
    assert (before, after) == ("before\n", "\nafter\n") and "old" not in block
    assert f"| {MINI.claim} | supported |" in block
    table.registration = claims.Registration("mini", "0" * 40, "Another claim.", ())
    assert f"| {MINI.claim} * | supported, as reworded |" in page()
    (contrast, d, p) = table.contrasts[0]
    assert f"| {contrast.name} | {markup.effect(d, p)} |" in build.contrasts([table])
    path.write_text("no marks")
    with pytest.raises(ValueError, match="has no block between"):
        page()


def test_the_first_table_is_the_records_of_its_arms():
    """Accuracies and costs of the README's rows against means taken here from the records, task by task."""
    lines, _ = records.read(PAPER / "records")
    ids = {c.run.id for name in overview.TASKS for c in cells(ABLATIONS[name], CONTROLS)}
    made = {
        name: tables.gather(name, ABLATIONS[name], cells(ABLATIONS[name], CONTROLS), lines, 200)
        for name in overview.TASKS
    }
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in overview.lines(made)[2:]]
    classes = ("NoCoT", "CoT", "CoT2", "Pause", "FixedEmbedding")
    for env, accuracy, costs in zip(("Modular", "MNNS", "Cups"), rows[::2], rows[1::2]):
        for i, method in enumerate(classes):
            found = [
                line for line in lines.values() if line["id"] in ids
                and line["config"]["env"]["class"] == env and line["config"]["method"]["class"] == method
                and line["config"]["train"]["batch"] == 128 and not line["config"]["train"]["problems"]
                and (method != "CoT2" or env != "Modular" or not line["config"]["method"]["teacher"])
                and line["config"]["method"].get("told", "chain") in ("chain", "frontier")
            ]  # fmt: skip
            assert len(found) == 5
            assert accuracy[2 + i].startswith(f"{np.mean([x['result']['main']['accuracy'] for x in found]):.3f} (")
            spent = np.mean([x["result"]["core_seconds"] + before(x, lines) for x in found])
            assert costs[2 + i] == f"{found[0]['result']['steps']:.0f}, {spent:.0f}"


def test_the_table_of_methods_is_the_records_of_its_arms():
    """Each method's accuracy and costs against means taken here from the records; starts are no rows."""
    lines, _ = records.read(PAPER / "records")
    made = {
        name: tables.gather(name, ABLATIONS[name], cells(ABLATIONS[name], CONTROLS), lines, 200)
        for name in overview.METHODS_ON
        if name in ABLATIONS
    }
    said = "\n".join(overview.methods(made))
    for name in made:
        for label, arm in PRESETS[name]().arms.items():
            if label in ("start", "forced"):
                assert f"| `{label}` |" not in said
                continue
            (row,) = (row for row in said.splitlines() if row.startswith(f"| `{label}` |"))
            found = [
                line for line in lines.values()
                if line["config"]["method"] == plain(arm.method) and line["config"]["train"] == plain(arm.train)
                and line["config"]["env"] == plain(PRESETS[name]().env)
            ]  # fmt: skip
            assert len(found) == 5, label
            accuracy = np.mean([line["result"]["main"]["accuracy"] for line in found])
            spent = np.mean([line["result"]["core_seconds"] + before(line, lines) for line in found])
            assert f"| {accuracy:.3f} (" in row and f"| {spent:.0f} |" in row, label
            if (method := label.partition("-")[0]) in METHODS:
                of_it = [each for each in overview.of_method(made, method) if f"/{name}.md)" in each]
                assert any(f"| {accuracy:.3f} (" in each and f"| {spent:.0f} |" in each for each in of_it), label


def before(line: dict, lines: dict[str, dict]) -> float:
    """Core-seconds of the run that a run started from."""
    start = line["identity"].get("init")
    return lines[start]["result"]["core_seconds"] if start else 0.0


def test_a_missing_cell_is_named(home, tmp_path, capsys):
    lines, _ = records.read(home)
    gone = next(c for c in cells(FIVE, {}) if c.row == "2 latents" and c.seed == 3)
    (home / "runs.jsonl").unlink()
    written(home, {id: line for id, line in lines.items() if id != gone.run.id})
    assert built(home, tmp_path / "out", "mini") == 2
    err = capsys.readouterr().err
    assert f"table mini: no record of '2 latents', seed 3 (run {gone.run.id})" in err and "paper.run mini" in err
    assert not (tmp_path / "out" / "tables").exists()


def test_records_of_other_configs_are_counted_and_left_out(home, tmp_path, capsys):
    other = planted({"1 latents": [[1] * 9] * 9, "2 latents": [[1] * 9] * 9}, replace(FIVE, seeds=(8,)))
    written(home, other)
    text = (home / "runs.jsonl").read_text()
    (home / "runs.jsonl").write_text(text + text.splitlines()[0][:80])
    assert built(home, tmp_path / "out", "mini") == 0
    out = capsys.readouterr().out
    assert f"{len(other)} of {len(other) + 10} records belong to no ablation" in out and "not a whole record" in out
    assert "over 5 seeds and 200" in (tmp_path / "out" / "tables" / "mini.md").read_text()


def test_no_number_of_the_results_is_typed_by_hand():
    text = (PAPER / "main.tex").read_text()
    for part in (text[text.index("\\begin{abstract}") : text.index("\\end{abstract}")],
                 text[text.index("\\section{Results}") : text.index("\\section{Limits}")],
                 text[text.index("\\appendix") :]):  # fmt: skip
        said = re.sub(r"\\(result|ref|cite|label|input)\{[^}]*\}", "", part)
        assert not re.search(r"\d", said), re.search(r".*\d.*", said)[0]


def test_an_installed_package_is_not_written_into(tmp_path):
    site = tmp_path / "site"
    for name in ("kernels", "latent", "eval", "train", "paper"):
        left_out = shutil.ignore_patterns("records", "figures", "tables", "__pycache__")
        shutil.copytree(PAPER.parent / name, site / name, ignore=left_out)
    code = "from paper import build, run; print(build.Options().out, run.Options().records, build.Options().records)"
    for home, out in ((site, Path("latent-paper")), (PAPER.parent, PAPER)):
        done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(home))
        assert done.stdout.split() == [str(out), str(out / "records"), str(home / "paper" / "records")], done.stderr


def test_text_is_made_safe_for_latex():
    assert markup.tex("95 % & a_b #1 $x") == r"95 \% \& a\_b \#1 \$x"
    assert markup.tex("-0.4 to -0.1, a-b, 8 latents - CoT, < 0.001") == (
        "$-$0.4 to $-$0.1, a-b, 8 latents $-$ CoT, $<$ 0.001"
    )


@pytest.mark.parametrize(
    "args, message",
    [
        (["nothing"], "no ablation 'nothing'"),
        (["--records"], "--records"),
        (["mini"], "no record of"),
        (["mini", "--out", __file__], f"--out {__file__} cannot be written"),
    ],
)
def test_bad_input_is_one_line(args, message, home, tmp_path, capsys):
    (home / "runs.jsonl").unlink()
    assert build.main([*args, *(["--records", str(home)] if args != ["--records"] else [])]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


def test_what_is_committed_is_what_the_records_make():
    """Tables, numbers and the README's block, to the last character: no number of them is altered by hand."""
    lines, left_out = records.read(PAPER / "records")
    every = {name: cells(ablation, CONTROLS) for name, ablation in ABLATIONS.items()}
    assert not left_out and {c.run.id for each in every.values() for c in each} == set(lines)
    found = claims.read()
    made = [
        tables.gather(name, ABLATIONS[name], each, lines, build.N_BOOT, found[name]) for name, each in every.items()
    ]
    known = build.numbers(made, [lines[id] for id in sorted(lines)])
    want = build.texts(made, known) | build.searches(PAPER / "records")
    assert {f"tables/{p.name}" for p in (PAPER / "tables").iterdir()} | {"numbers.tex"} == set(want)
    for name, text in want.items():
        assert (PAPER / name).read_text() == text, f"{name} is not what python -m paper.build makes"
    for name, blocks in build.PAGES.items():
        path = PAPER.parent / name
        assert path.read_text() == build.page(path, blocks, build.blocks(made)), f"{name}: not what paper.build makes"
    build.check_quoted(PAPER / "main.tex", known)
