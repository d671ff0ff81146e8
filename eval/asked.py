"""What `--gen_kwargs` say of an evaluation as a whole.

lm-eval hands these settings on with requests for texts, and with no others; a model is told nothing of them. They stand
in the call of its `simple_evaluate` that every evaluation runs in, by its own command or ours, and are read from there.
"""

import sys
from types import FrameType

from kernels.errors import UserError

STEPS = ("num_latents", "num_recurrences")  # what a likelihood after a context can take


def gen_kwargs() -> dict:
    """The settings of the evaluation that calls us; none outside of one, where requests come from elsewhere."""
    return dict(_evaluation().get("gen_kwargs") or {})


def steps_of_likelihoods() -> dict:
    """The settings among them that a request for a likelihood takes.

    Raises UserError for one that no request of the evaluation takes, as it has no task of the kind.
    """
    evaluation, asked = _evaluation(), gen_kwargs()
    kinds = {task.get_config("output_type") for task in evaluation["loaded"]["tasks"].values()} if asked else set()
    for name in asked if "generate_until" not in kinds else ():
        if name not in STEPS:
            raise UserError(f"--gen_kwargs {name}: no text is generated in these tasks, leave it out")
        if kinds == {"loglikelihood_rolling"}:
            raise UserError(f"--gen_kwargs {name}: these tasks score whole texts, before which nothing is thought")
    return {name: asked[name] for name in STEPS if name in asked}


def _evaluation() -> dict:
    """The variables of the innermost `simple_evaluate` that we are called from, none outside of one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lm_eval.evaluator":
            return frame.f_locals
        frame = frame.f_back
    return {}
