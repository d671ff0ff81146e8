"""What `--gen_kwargs` say about an evaluation as a whole.

lm-eval passes these settings on with requests for texts only, and tells a model nothing else of them. They are local
variables of lm-eval's `simple_evaluate`, which every evaluation runs in, and are read from its frame.
"""

import sys
from types import FrameType

from kernels.errors import UserError

STEPS = ("num_latents", "num_recurrences")  # the settings that a likelihood after a context can take


def gen_kwargs() -> dict:
    """The settings of the evaluation that calls us; none where requests come from elsewhere."""
    return dict(_evaluation().get("gen_kwargs") or {})


def steps_of_likelihoods() -> dict:
    """Those of the settings that a request for a likelihood takes.

    Raises UserError for a setting that no request of the evaluation takes, because none of its tasks is of the kind.
    """
    evaluation, given = _evaluation(), gen_kwargs()
    kinds = {task.get_config("output_type") for task in evaluation["loaded"]["tasks"].values()} if given else set()
    for name in given if "generate_until" not in kinds else ():
        if name not in STEPS:
            raise UserError(f"--gen_kwargs {name}: no text is generated in these tasks, leave it out")
        if kinds == {"loglikelihood_rolling"}:
            raise UserError(f"--gen_kwargs {name}: these tasks score whole texts, before which nothing is thought")
    return {name: given[name] for name in STEPS if name in given}


def _evaluation() -> dict:
    """The local variables of the innermost `simple_evaluate` on the call stack; none outside of one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lm_eval.evaluator":
            return frame.f_locals
        frame = frame.f_back
    return {}
