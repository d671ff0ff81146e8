"""The paper's first table says what the README's says."""

from types import SimpleNamespace

from paper import main_table

README = [
    "|  | a floor | answers at once | *pause*, told the same |",
    "|---|---|---|---|",
    "| [`modular`](paper/tables/order.md): many branches | 0.37 (commonest answer) | 0.389 (0.359 to 0.420) "
    "| 0.395 (0.365 to 0.426) |",
    "| steps, core-s | | 1, 74 | 2, 61 |",
]


def test_every_number_of_the_readmes_table_stands_beside_its_arm():
    text = main_table.latex(README, SimpleNamespace(seeds=5, items=1000))
    assert r"\textbf{modular}: many branches" in text and "commonest answer & 0.37 &" in text
    assert r"answers at once & 0.389 & 0.359 to 0.420 & 1 & 74 \\" in text
    assert r"\emph{pause}, told the same & 0.395 & 0.365 to 0.426 & 2 & 61 \\" in text
    assert "5 training seeds on 1,000 held-out problems" in text
