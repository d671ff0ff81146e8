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
}
ABLATIONS |= PLANNED
