"""The paper's first table says what the README's says."""

from types import SimpleNamespace

from paper import overview

ROWS = {  # accuracy, its interval, steps and core-seconds
    "no-cot": (0.389, (0.359, 0.420), 1, 74),
    "cot": (0.681, (0.647, 0.717), 4, 67),
    "cot2": (0.810, (0.769, 0.854), 4, 77),
    "pause": (0.395, (0.365, 0.426), 2, 61),
    "fixed": (0.389, (0.359, 0.420), 4, 62),
}


def made() -> dict:
    """Tables of the tasks, each with the same rows."""
    lines = [{"result": {"floors": {"commonest answer": 0.366, "parity": 0.083}}}]
    rows = {
        arm: SimpleNamespace(
            value=value, interval=ends, lines=lines, mean={"steps": steps, "core_seconds": spent}.__getitem__
        )
        for arm, (value, ends, steps, spent) in ROWS.items()
    }
    return {name: SimpleNamespace(rows=rows, seeds=5, items=1000) for name in overview.TASKS}


def test_every_number_of_the_readmes_table_stands_beside_its_arm():
    text, readme = overview.latex(made()), "\n".join(overview.lines(made()))
    assert r"\textbf{modular}: many branches" in text and "commonest answer & 0.37 &" in text
    assert r"answers at once & 0.389 & 0.359 to 0.420 & 1 & 74 \\" in text
    assert r"\emph{pause}, told the same & 0.395 & 0.365 to 0.426 & 2 & 61 \\" in text
    assert "5 training seeds on 1,000 held-out problems" in text
    assert readme.count("| 0.389 (0.359 to 0.420) | 0.681 (0.647 to 0.717) | 0.810 (0.769 to 0.854) |") == 3
    assert readme.count("| steps, core-s | | 1, 74 | 4, 67 | 4, 77 | 2, 61 | 4, 62 |") == 3
