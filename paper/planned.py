"""Ablations whose claim is written and whose runs are not all made: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`.
"""

from latent.methods import CoT, CoT2
from paper.ablations import ABLATIONS, TRAINED_ON_ALL
from paper.design import Ablation, Axis, Contrast
from train.presets_search import sft

# seeds that no other table has of these presets
OTHER_SEEDS = (5, 6, 7, 8, 9)
TEN_SEEDS = (0, 1, 2, 3, 4, *OTHER_SEEDS)

# of `signs`: at .4 of the first stage's rate, as on the other tasks
SECOND_ON_SIGNS: Axis = {
    name: {
        "arms.few-more.method": method,
        "arms.few-more.init": start,
        "arms.few-more.train": sft(0.4 * lr, 400, warmup=20),
    }
    for name, method, start, lr in (
        ("mixtures, then their own", CoT2(n_latent=3, teacher=False), "cot2", 2e-2),
        ("chain, then again", CoT(), "cot", 1e-2),
    )
}

PLANNED: dict[str, Ablation] = {
    # CoT2's comparison at width 24, at its own 1,000 epochs; one split for all seeds
    "cot2": Ablation(
        claim="At CoT2's own settings and width 24 mixtures taught the frontier solve more than a chain.",
        base="cot2-mnns",
        axes=(),
        seeds=(42, 43, 44, 45, 46),
        core_minutes=330,
        contrasts=(Contrast("continuous", "discrete", claim="more"),),
    ),
    # of `told`, with the core-seconds that mixtures have
    "told-longer": Ablation(
        claim="Trained for as many core-seconds, a chain that lists every branch solves more than a chain of one, and "
        "no more than mixtures do in a quarter of its steps.",
        base="modular-told",
        axes=({"cot-search, as long": {"arms.cot-search.train.steps": 1640}},),
        arms=("cot-search",),
        controls=("one chain", "mixtures, told the frontier"),
        seeds=TEN_SEEDS,
        core_minutes=27,
        contrasts=(
            Contrast("cot-search, as long", "one chain", claim="more"),
            Contrast("cot-search, as long", "mixtures, told the frontier", claim="not more"),
            Contrast("mixtures, told the frontier", "one chain"),
        ),
        figure="costs",
    ),
    "exchanged": Ablation(
        claim="Where a search branches and order matters, a state of another problem in a mixture's place leads to the "
        "answer that it should more often after the second stage than before it.",
        base="modular",
        axes=(),
        arms=("forced", "cot2"),
        seeds=OTHER_SEEDS,
        core_minutes=9,
        diagnose=True,
        contrasts=(Contrast("cot2", "forced", metric="exchanged", claim="more"), Contrast("cot2", "forced")),
    ),
    "supervision-longer": Ablation(
        claim="Trained three times as long, latents that are taught at a tenth of the weight solve as much as those "
        "that are taught at the whole, and are as much the states.",
        base="sim",
        axes=({"weight 1": {}, "weight 0.1, longer": {"method.step_weight": 0.1, "train.steps": 4800}},),
        seeds=OTHER_SEEDS,
        core_minutes=26,
        diagnose=True,
        contrasts=(
            Contrast("weight 0.1, longer", "weight 1", claim="same"),
            Contrast("weight 0.1, longer", "weight 1", metric="exchanged", claim="same"),
        ),
    ),
    "stages-signs": Ablation(
        claim="Where many answers are right, mixtures with a second stage of their own solve more than without it, and "
        "no more than a chain with as many updates.",
        base="signs",
        axes=(SECOND_ON_SIGNS,),
        arms=("few-more", *TRAINED_ON_ALL),
        core_minutes=7,
        contrasts=(
            Contrast("mixtures, then their own", "cot2", claim="more"),
            Contrast("mixtures, then their own", "chain, then again", claim="not more"),
            Contrast("chain, then again", "cot"),
        ),
        figure="costs",
    ),
}
ABLATIONS |= PLANNED
