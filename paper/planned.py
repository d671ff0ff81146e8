"""Ablations whose claim is written and whose runs are not all made: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`.
"""

from paper.ablations import ABLATIONS, BESIDE
from paper.controls import ON_MODULAR
from paper.design import Ablation, Axis, Contrast

# as many core-seconds as at width 64 with two layers; rates fall as the width grows
SIZES: Axis = {
    name: model
    | {
        f"arms.{arm}.train.steps": round(at * factor / 10) * 10
        for arm, at in (("cot", 1700), ("forced", 1200), ("cot2", 400))
    }
    | {f"arms.{arm}.train.lr": at * rate for arm, at in (("cot", 5e-3), ("forced", 5e-3), ("cot2", 2e-3))}
    for name, model, factor, rate in (
        ("width 32", {"model.n_embd": 32}, 1.4, 2.0),
        ("width 64", {"model.n_embd": 64}, 1.0, 1.0),
        ("width 128", {"model.n_embd": 128}, 0.57, 0.5),
        ("4 layers", {"model.n_layer": 4}, 0.58, 1.0),
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
    "scale": Ablation(
        claim="Where a search branches and order matters, mixtures solve more than a chain at every width and depth, "
        "at equal compute.",
        registered="5ff3e64",
        base="modular",
        axes=(SIZES,),
        arms=("cot", "cot2"),
        controls=ON_MODULAR,
        core_minutes=40,
        contrasts=tuple(Contrast(f"{size}, cot2", f"{size}, cot", claim="more") for size in SIZES),
        figure="costs",
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
