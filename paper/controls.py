"""The rows that ablations read their own beside: what is trained on the same data without the thing that is claimed.

To add one: an entry in `CONTROLS`, named in an ablation's `controls`.
"""

from dataclasses import replace

from latent.config import LearnedStop
from latent.methods import Coconut, CoT, FixedEmbedding, NoCoT, Pause, Recurrent, Sim
from paper.design import Control

STEPWISE = Sim(n_latent=8, stride=4)
CURRICULUM = Coconut(n_latent=8, stride=4, stage_steps=400)  # controls must go through its stages, too
ANSWER_ONLY = Coconut(n_latent=8, stride=4, first_stage=9, earlier=0.0)
LONG = {"train.steps": 4400}  # nine stages before the last one
STOPPING = replace(STEPWISE, halt=LearnedStop())
ONCE = {"method": Recurrent(n_recurrence=1, r_min=1, r_max=1, supervise="answer"), "judge.sweep": ()}

# what latents are read beside
USUAL = ("no-CoT", "CoT", "pause", "fixed")
CONTROLS: dict[str, Control] = {
    "no-CoT": Control({"method": NoCoT()}),
    "CoT": Control({"method": CoT()}),
    "pause": Control({"method": Pause(STEPWISE)}),
    "fixed": Control({"method": FixedEmbedding(STEPWISE)}),
    "pause, curriculum": Control({"method": Pause(CURRICULUM), **LONG}),
    "fixed, curriculum": Control({"method": FixedEmbedding(CURRICULUM), **LONG}),
    "pause, answer only": Control({"method": Pause(ANSWER_ONLY), **LONG}),
    "pause, 4 latents": Control({"method": Pause(Sim(n_latent=4, stride=8, step_tokens=8))}),
    "pause, contiguous": Control({"method": Pause(replace(STEPWISE, stride=1))}),
    "fixed, contiguous": Control({"method": FixedEmbedding(replace(STEPWISE, stride=1))}),
    "one recurrence": Control(ONCE, "recurrent"),
    "one chain": Control({}, "modular", "cot"),
    "mixtures, told the frontier": Control({}, "modular", "cot2"),
    "answering at once": Control({}, "modular", "no-cot"),
    "pause, told the frontier": Control({}, "modular", "pause"),
    "fixed, told the frontier": Control({}, "modular", "fixed"),
}
for name in USUAL:
    CONTROLS[f"{name}, pairs"] = Control({**CONTROLS[name].change, "env.rest": "pairs"})
for name, kind in (("pause", Pause), ("fixed", FixedEmbedding)):  # trained first, and then by RL as the latents are
    stopping = {f"arms.{arm}.method": kind(STOPPING) for arm in ("latent", "latent-rlvr")}
    CONTROLS[f"{name}, cost 0.02"] = Control(stopping, "cups", "latent-rlvr")
    verified = {f"arms.{arm}.method": kind(STEPWISE) for arm in ("half-trained", "rlvr")}
    CONTROLS |= {f"{name}, {arm}": Control(verified, "cups-rlvr", arm) for arm in ("half-trained", "rlvr")}
ON_MODULAR = ("answering at once", "pause, told the frontier", "fixed, told the frontier")
