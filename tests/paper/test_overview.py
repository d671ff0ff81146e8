"""The paper's first table says what the README's says."""

from types import SimpleNamespace

from eval.stats import Difference
from paper import overview
from paper.design import Contrast

ROWS = {  # accuracy, its interval, steps and core-seconds
    "no-cot": (0.389, (0.359, 0.420), 1, 74),
    "cot": (0.681, (0.647, 0.717), 4, 67),
    "cot2": (0.810, (0.769, 0.854), 4, 77),
    "pause": (0.395, (0.365, 0.426), 2, 61),
    "fixed": (0.389, (0.359, 0.420), 4, 62),
}


def made() -> dict:
    """Tables of the tasks, each with the same rows."""
    floors = {"parity": 0.083, "commonest answer": 0.366, "always add": 0.086}
    rows = {}
    for arm, (value, ends, steps, spent) in {**ROWS, "forced": ROWS["cot2"]}.items():
        lines = [{"result": {"floors": floors}, "config": {"train": {"steps": 100 * steps, "lr": 5e-3, "batch": 128}}}]
        means = {"steps": steps, "core_seconds": spent, "flops": 1.4e6}.__getitem__
        rows[arm] = SimpleNamespace(value=value, interval=ends, lines=lines, mean=means, told=f"what {arm} is told")
    rows["cot2"].lines[0]["config"]["init"] = "forced"
    differences = [
        (Contrast("cot2", "cot", metric="pooled.accuracy"), Difference(0.5, 0.4, 0.6, 0.001), 0.001),
        (Contrast("cot2", "cot", claim="more"), Difference(0.129, 0.071, 0.19, 0.004), 0.012),
        (Contrast("cot2", "pause"), Difference(0.13, -0.062, 0.321, 0.2), 0.529),
        (Contrast("cot", "no-cot"), Difference(0.3, 0.2, 0.4, 0.001), 0.001),
    ]
    return {name: SimpleNamespace(rows=rows, seeds=5, items=1000, contrasts=differences) for name in overview.TASKS}


def test_every_number_of_the_readmes_table_stands_beside_its_arm():
    text, readme = overview.latex(made()), "\n".join(overview.lines(made()))
    assert r"\textbf{modular}: many branches" in text and "best rule: commonest answer & 0.37 &" in text
    assert r"answers at once & 0.389 & 0.359 to 0.420 &  &  & 1 & 1.4 & 74 \\" in text
    assert r"a chain & 0.681 & 0.647 to 0.717 & +12.9 (+7.1 to +19.0) & 0.012 & 4 & 1.4 & 67 \\" in text
    assert r"told the same & 0.395 & 0.365 to 0.426 & +13.0 ($-$6.2 to +32.1) & none & 2 & 1.4 & 61 \\" in text
    assert readme.count("| 0.37 (commonest answer) |") == 3
    assert "5 training seeds on 1,000 held-out problems" in text
    assert readme.count("| 0.389 (0.359 to 0.420) | 0.681 (0.647 to 0.717) | 0.810 (0.769 to 0.854) |") == 3
    assert readme.count("| steps, core-s | | 1, 74 | 4, 67 | 4, 77 | 2, 61 | 4, 62 |") == 3


def test_what_arms_are_told_and_how_they_were_trained_stands_in_a_row_each():
    text = overview.setup(made())
    trained = " & ".join(["400 at 0.005"] * 3)
    assert rf"a chain & what cot is told & - & - & {trained} \\" in text
    assert r"mixtures & what cot2 is told" in text and "& + 400 at 0.005 &" in text  # after those of its start
    assert r"mixtures, forced & what forced is told" in text and "batches of 128 problems" in text
