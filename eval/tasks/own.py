"""What our tasks share beside their verifiers: the data of each task, costs as metrics, and default settings.

lm-eval loads this file with a task's YAML. Where a task is given by its path (`--tasks PATH/cups.yaml`) lm-eval does so
before it looks for the model, so that its stock command learns of `--model latent` here.
"""

import logging
from dataclasses import fields
from functools import partial
from typing import Any

import latent  # noqa: F401  makes --model latent known to lm-eval
from eval.environments import GSM8K, MNNS, Countdown, Cups, Math500, Modular, ProntoQA, ProsQA, Reach, Signs
from eval.task_defaults import DefaultNumber, DefaultStops
from eval.tasks import utils
from kernels.errors import UserError

log = logging.getLogger(__name__)
PARAGRAPH, GAP = DefaultStops(["\n\n"]), DefaultStops(["\n\n\n"])
SHORT, MIDDLE, LONG = DefaultNumber(36), DefaultNumber(160), DefaultNumber(1024)
SOURCES = {"latent_gsm8k": "gsm8k"}  # of tasks whose function in `utils` has another name
CONFIGS = {
    "cups": Cups,
    "prosqa": ProsQA,
    "prosqa_closed": ProsQA,
    "prontoqa": ProntoQA,
    "countdown": Countdown,
    "math_500": Math500,
    "mnns": MNNS,
    "modular": Modular,
    "signs": Signs,
    "reach": Reach,
}  # the config of each task; of all others GSM8K
_read: dict[str, str] = {}  # file -> the task that read it, of files that were given to all tasks


def settings(task: str) -> set[str]:
    """What --metadata may say of a task."""
    return {f.name for f in fields(CONFIGS.get(task, GSM8K))} - {"train", "test"} | {"file", "items", "level"}


def rows(task: str, **given):
    """The problems of a task. `given`: --metadata; its settings hold for all tasks, those under a task's name for it.

    Raises UserError for a setting that the task does not have.
    """
    own = given.get(task, {})
    if isinstance(own, dict):
        given = {name: value for name, value in given.items() if name != task}
    elif task in settings(task):  # of the task cups that many cups
        own = {}
    else:
        raise UserError(f'--metadata {task} must be an object, as in \'{{"{task}": {{"file": "PATH"}}}}\', got {own!r}')
    if strange := set(own) - settings(task):
        raise UserError(f"--metadata {task}: there is no setting {sorted(strange)[0]!r}")
    file = given.get("file")
    if "file" not in own and file is not None and _read.setdefault(str(file), task) != task:
        log.warning(
            '%s reads %s, as %s did: --metadata \'{"%s": {"file": ...}}\' is for one', task, file, _read[file], task
        )
    return getattr(utils, SOURCES.get(task, task))(**{**given, **own})


def __getattr__(task: str):
    """The function that gives a task's problems, under the task's name: the YAML files refer to it."""
    if hasattr(utils, SOURCES.get(task, task)):
        return partial(rows, task)
    raise AttributeError(f"module {__name__!r} has no attribute {task!r}")


def judged(doc: dict, results: list[str]) -> dict[str, float]:
    """The verdict, and where our model wrote the text its cost: latents used, tokens, MFLOP."""
    text: Any = results[0]  # of our models a `Written`
    cost = {} if not hasattr(text, "used") else {"latents": text.used, "tokens": text.tokens, "mflop": text.flops / 1e6}
    return utils.judge(doc, results) | cost
