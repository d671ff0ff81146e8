"""Ablations whose claim is written and whose runs are not all made: no table of the paper is of them.

`LATENT_IMPORT=paper.planned python -m paper.run NAME` runs one. When its records are there it moves to `ABLATIONS`.
"""

from latent.methods import CoT2, FixedEmbedding, NoCoT, Pause
from latent.plain import Change
from paper.ablations import ABLATIONS, CONTROLS
from paper.design import Ablation, Contrast, Control
from train.presets_cot2 import EPOCH

COT2_EPOCHS = 100  # of the paper's 1,000
_ARMS = ("discrete", "continuous")
_REDUCED: Change = {f"arms.{arm}.train.steps": COT2_EPOCHS * EPOCH for arm in _ARMS}
_WIDEST: Change = {**_REDUCED, "model.n_embd": 32}

for name, kind in (("pause", Pause), ("fixed", FixedEmbedding)):
    CONTROLS[f"{name}, width 32"] = Control(
        {**_WIDEST, "arms.continuous.method": kind(CoT2(n_latent=3))}, "cot2-mnns", "continuous"
    )
CONTROLS["no-CoT, width 32"] = Control({**_WIDEST, "arms.discrete.method": NoCoT()}, "cot2-mnns", "discrete")

PLANNED: dict[str, Ablation] = {
    "one-token": Ablation(
        claim="Where order matters and there is one branch, mixtures solve as much as a chain of as many steps, and "
        "more than pause tokens and fixed passes.",
        base="cups-one-token",
        axes=(),
        core_minutes=20,
        contrasts=(
            Contrast("cot2", "cot", claim="same"),
            Contrast("cot2", "pause", claim="more"),
            Contrast("cot2", "fixed", claim="more"),
            Contrast("cot", "no-cot"),
        ),
        figure="costs",
    ),
    # CoT2's figure of accuracy by embedding dimension, with a tenth of its epochs and one split for all seeds
    "cot2": Ablation(
        claim="Mixtures taught the frontier solve more than a chain at widths 24 and 32.",
        base="cot2-mnns",
        axes=({f"width {d}": {**_REDUCED, "model.n_embd": d} for d in (16, 24, 32)},),
        seeds=(42, 43, 44, 45, 46),
        controls=("no-CoT, width 32", "pause, width 32", "fixed, width 32"),
        core_minutes=130,
        contrasts=(
            Contrast("width 24, continuous", "width 24, discrete", claim="more"),
            Contrast("width 32, continuous", "width 32, discrete", claim="more"),
            Contrast("width 16, continuous", "width 16, discrete"),
            Contrast("width 32, continuous", "pause, width 32"),
            Contrast("width 32, continuous", "fixed, width 32"),
        ),
    ),
}
ABLATIONS |= PLANNED
