"""Ablations whose claim is written and whose runs are not all made: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`.
"""

from paper.ablations import ABLATIONS
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
}
ABLATIONS |= PLANNED
