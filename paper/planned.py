"""Ablations whose claim is written and whose runs are not all made: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`.
"""

from paper.ablations import ABLATIONS, BESIDE
from paper.design import Ablation, Contrast

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
