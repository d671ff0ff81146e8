"""Ablations whose claim is written and whose runs are not all made, and searches: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`, a
search to `SEARCHES`.
"""

from latent.methods import CoT, CoT2
from paper.ablations import ABLATIONS, BESIDE, TRAINED_ON_ALL, UNSEEN
from paper.controls import ON_MODULAR
from paper.design import Ablation, Axis, Contrast, Search, over
from paper.searches import FOUR, SEARCHES
from train.config import SFT

FINE: Axis = over("train.lr", 3e-5, 1e-4, 3e-4, 1e-3)  # for arms that go on from a start
FROM_FEW = ("few-more", "few-expert", "few-text", "few-rl", "few-cot-more", "few-cot-expert", "few-cot-rl")

# what the second stage of `modular` is of: 400 updates at the same rate, from where the first stage of each ends
SECOND: Axis = {
    "mixtures, then their own": {},
    "mixtures, then forced again": {"arms.cot2.method": CoT2(n_latent=3)},
    "chain, then again": {"arms.cot2.method": CoT(), "arms.cot2.init": "cot"},
    "mixtures, their own throughout": {
        "arms.cot2.init": None,
        "arms.cot2.train": SFT(steps=1600, batch=128, lr=5e-3, warmup=100, decay=1.0, decay_to=0.1),
    },
}
# of `mnns`: at .4 of the first stage's rate, as there
SECOND_ON_MNNS: Axis = {
    name: {
        "arms.few-more.method": method,
        "arms.few-more.init": start,
        "arms.few-more.train": SFT(steps=400, batch=128, lr=0.4 * lr, warmup=20, decay=1.0, decay_to=0.1),
    }
    for name, method, start, lr in (
        ("mixtures, then their own", CoT2(n_latent=4, teacher=False), "cot2", 1e-2),
        ("chain, then again", CoT(), "cot", 2e-2),
    )
}
# of `methods-modular`, as long as mixtures and hidden states were first registered with
LONGER: Axis = {
    "longer": {
        "arms.cot.train.steps": 4200,
        "arms.sim-frontier.train.steps": 2400,
        "arms.forced.train.steps": 2000,
        "arms.cot2.train.steps": 1000,
    }
}

PLANNED: dict[str, Ablation] = {
    "stages": Ablation(
        claim="What mixtures gain over a chain is not their second stage: after as many updates more, a chain, and "
        "mixtures that are forced again, solve less than mixtures trained on their own.",
        base="modular",
        axes=(SECOND,),
        arms=("cot2",),
        controls=("one chain", *ON_MODULAR),
        core_minutes=22,
        contrasts=(
            Contrast("mixtures, then their own", "chain, then again", claim="more"),
            Contrast("mixtures, then their own", "mixtures, then forced again", claim="more"),
            Contrast("mixtures, then their own", "mixtures, their own throughout", claim="more"),
            Contrast("chain, then again", "one chain"),
        ),
        figure="costs",
    ),
    "stages-mnns": Ablation(
        claim="With a second stage of their own mixtures solve more than a chain where order does not matter, too.",
        base="mnns",
        axes=(SECOND_ON_MNNS,),
        arms=("few-more", *TRAINED_ON_ALL),
        seeds=UNSEEN,
        core_minutes=13,
        contrasts=(Contrast("mixtures, then their own", "chain, then again", claim="more"),),
        figure="costs",
    ),
    "longer": Ablation(
        claim="Trained half as long again, mixtures told the frontier solve more than a chain, and so do hidden states "
        "told the frontier.",
        base="methods-modular",
        axes=(LONGER,),
        arms=("cot", "cot2", "sim-frontier"),
        controls=ON_MODULAR,
        core_minutes=19,
        contrasts=(
            Contrast("longer, cot2", "longer, cot", claim="more"),
            Contrast("longer, sim-frontier", "longer, cot", claim="more"),
            Contrast("longer, cot2", "longer, sim-frontier"),
        ),
        figure="costs",
    ),
    # CoT2's comparison at width 24, at its own 1,000 epochs; one split for all seeds
    "cot2": Ablation(
        claim="At CoT2's own settings and width 24 mixtures taught the frontier solve more than a chain.",
        base="cot2-mnns",
        axes=(),
        seeds=(42, 43, 44, 45, 46),
        core_minutes=330,
        contrasts=(Contrast("continuous", "discrete", claim="more"),),
    ),
    "signs-rl": Ablation(
        claim="After few solved problems, where a verifier takes any right solution, RL on it solves more than its "
        "start, over a chain's text and over merged tokens; more of the few does not.",
        base="signs",
        axes=(),
        core_minutes=35,
        contrasts=(
            Contrast("few-cot-rl", "few-cot", claim="more"),
            Contrast("few-rl", "few", claim="more"),
            Contrast("few-cot-more", "few-cot", claim="not more"),
            Contrast("few-more", "few", claim="not more"),
            Contrast("few-cot-rl", "few-cot-expert"),
            Contrast("few-rl", "few-expert"),
            Contrast("few-rl", "few-text"),
            Contrast("few-cot-rl", "few-rl"),
            Contrast("cot", "cot2"),
        ),
    ),
    # one seed, for an arm takes half an hour; intervals are over problems alone
    "gsm8k": Ablation(
        claim="Half an hour of one core lets SmolLM2-135M solve more of GSM8K by a chain than at once; no method that "
        "thinks in latents (Coconut, SIM-CoT, CODI, Latent-SFT) solves more than pause tokens by as long.",
        base="gsm8k-smollm2",
        axes=(),
        arms=(*BESIDE, "coconut", "sim", "codi", "soft"),
        seeds=(0,),
        core_minutes=240,
        contrasts=(
            Contrast("cot", "no-cot", claim="more"),
            *(Contrast(arm, "pause", claim="not more") for arm in ("coconut", "sim", "codi", "soft")),
            *(Contrast(arm, "cot") for arm in ("coconut", "sim", "codi", "soft")),
        ),
        needs=("smollm2", "gsm8k_train.jsonl"),
    ),
}
ABLATIONS |= PLANNED
SEARCHES["signs"] = Search(
    "signs",
    dict.fromkeys((*TRAINED_ON_ALL, "few", "few-cot"), FOUR) | dict.fromkeys(FROM_FEW, FINE),
    seed=100,
    core_minutes=25,
)
