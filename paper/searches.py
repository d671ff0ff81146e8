"""The searches over the settings of presets' arms, on the validation split; their records make no other table.

To add one: an entry in `SEARCHES`. `python -m paper.run --search NAME` runs it (`paper/search.py` reads what it found).
"""

from paper.ablations import BESIDE, METHODS, TRAINED_ON_ALL
from paper.design import Axis, Search, over

TWO: Axis = over("train.lr", 5e-3, 1e-2)
FOUR: Axis = over("train.lr", 2.5e-3, 5e-3, 1e-2, 2e-2)
OURS: Axis = over("train.lr", 1.5e-3, 3e-3, 6e-3, 1.2e-2)  # from our own initialisation
FINE: Axis = over("train.lr", 3e-5, 1e-4, 3e-4, 1e-3)  # for arms that go on from a start
FROM_FEW = ("few-more", "few-expert", "few-text", "few-rl", "few-cot-more", "few-cot-expert", "few-cot-rl")
OWN: Axis = over("train.lr", 6e-4, 1.2e-3, 2.4e-3, 4.8e-3)  # .4 of that, for mixtures that start from forced ones

SEARCHES: dict[str, Search] = {
    "one-token": Search("cups-one-token", dict.fromkeys(TRAINED_ON_ALL, FOUR), seed=100, core_minutes=20),
    "signs": Search(
        "signs",
        dict.fromkeys((*TRAINED_ON_ALL, "few", "few-cot"), FOUR) | dict.fromkeys(FROM_FEW, FINE),
        seed=100,
        core_minutes=25,
    ),
    "told": Search(  # the candidates of `modular`
        "modular-told", dict.fromkeys(("cot-ties", "cot-search", "sim", "answer"), TWO), seed=100, core_minutes=10
    ),
    "methods-modular": Search(
        "methods-modular",
        dict.fromkeys((*BESIDE, "forced", "start", *METHODS, "sim-frontier"), OURS) | {"cot2": OWN},
        seed=100,
        core_minutes=60,
    ),
    "methods-one-token": Search(
        "methods-one-token", dict.fromkeys((*BESIDE, "start", *METHODS), OURS), seed=100, core_minutes=56
    ),
}
