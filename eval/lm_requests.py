"""What lm-eval's requests for texts ask of a checkpoint of ours, and the texts that answer them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lm_eval.models.utils import normalize_gen_kwargs

from eval.gen_kwargs import STEPS
from eval.task_defaults import TaskDefault
from kernels.errors import UserError
from latent.hf import LatentForCausalLM

log = logging.getLogger(__name__)
OURS = {"inputs", "input_ids", "attention_mask", "pad_token_id", "stopping_criteria"}
OURS |= {"return_dict_in_generate", "num_return_sequences"}
OURS_WHY = "one text is written for each request, and read as it was made"
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in lm-eval's order


class Written(str):
    """A text, and its cost: latent steps used, tokens written (the end token included), and forward FLOPs."""

    used: int
    tokens: int
    flops: float


@dataclass
class Request:
    """A context as ids, latent steps, the most tokens to write, stop strings, and other arguments of `generate`."""

    ids: list[int]
    steps: int
    limit: int
    until: list[str]
    how: dict


def requested(model: LatentForCausalLM, ids: list[int], steps: int, positions: int, how: dict) -> Request:
    """A request as the model takes it: a context, latent steps, the positions left beside them, lm-eval's settings.

    A limit that the request names holds. Where it and the context do not both fit, the context is cut from the left, as
    lm-eval does it. A limit that no text could reach in these positions counts as none. Without a limit the text may be
    as long as the checkpoint's longest, as far as there is room. Raises UserError for a context that leaves no room.
    """
    if "max_length" in how:
        raise UserError("max_length is not taken, as thoughts are not counted: give max_gen_toks")
    if odd := sorted(OURS & how.keys()):
        raise UserError(f"--gen_kwargs {odd[0]} is not taken: {OURS_WHY}")
    rest = {k: v for k, v in how.items() if k not in (*STEPS, "until", *LIMITS)}
    until = how.get("until") or []
    until = [] if isinstance(until, TaskDefault) else list(until) if isinstance(until, list | tuple) else [until]
    until = [str(each) for each in until]  # lm-eval reads --gen_kwargs until=4 as a number
    name, asked_limit = next(((name, how[name]) for name in LIMITS if how.get(name) is not None), ("", None))
    if asked_limit is not None and not isinstance(asked_limit, int):
        raise UserError(f"{name} must be a whole number, got {asked_limit!r:.40}")
    if not ids:
        raise UserError("a context of no tokens cannot be gone on with")
    # the last token that is written takes no position
    room = positions + 1 - len(ids) - len(model.thinking_ids(0, ids[-1]))
    if asked_limit is None or isinstance(asked_limit, TaskDefault) or int(asked_limit) >= room + len(ids):
        if room < 1:
            raise UserError(f"a context of {len(ids)} tokens and {steps} thoughts leave no room for text")
        limit = min(model.generation_config.max_new_tokens, room)
    else:
        limit = int(asked_limit) if model.text_limit is None else min(int(asked_limit), model.text_limit)
        if limit < 1:
            raise UserError(f"max_gen_toks must be at least 1, got {asked_limit}")
        if limit > room:
            log.warning("a context of %d tokens is cut from the left to %d", len(ids), len(ids) + room - limit)
            ids = ids[limit - room :]
    how = {k: v for k, v in normalize_gen_kwargs(rest).items() if k not in ("until", "max_gen_toks")}
    if not how.get("do_sample"):
        how.pop("temperature", None)  # lm-eval's default of 0, which `generate` warns of
    return Request(ids, steps, limit, [s for s in until if s], how)


def latent_steps(num_latents, num_recurrences) -> int | None:
    """The number of latent steps that is asked for, None where none is. Raises UserError for what is not a number."""
    if num_latents is not None and num_recurrences is not None:
        raise UserError("num_latents and num_recurrences are one setting: give one of them")
    steps = num_recurrences if num_latents is None else num_latents
    if steps is None:
        return None
    try:
        whole = int(steps)
        if whole != float(steps) or whole < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        shown = f"{steps:g}" if isinstance(steps, float) else steps  # lm-eval reads -3 as a float
        raise UserError(f"num_latents must be a whole number, at least 0, got {shown}") from None
    return whole
