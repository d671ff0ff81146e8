"""One run from config to result: build, train, judge, record. It runs in a process of its own or under a launcher."""

import contextlib
import logging
import os
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch

from eval import environments
from eval.environments.base import Environment, Problem
from eval.judge import Item, by_level, clusters, judge, summary
from kernels.errors import UserError, memory_for, mendable
from latent import hub, lora
from latent.codec import Codec
from latent.files import PART, check_writable, put_folder
from latent.plain import plain
from train import card, checkpoint, curves, distill, resume, rlvr, start
from train.checks import check
from train.config import RLVR, Run
from train.engine import Engine
from train.loop import Trainer
from train.memory import JUDGING
from train.record import Record, check_lock_is_free, exclusive_lock
from train.selection import Selection

log = logging.getLogger(__name__)


def noted(event: dict) -> None:
    """Log a note: what a user should know of a run beside its numbers."""
    if event.get("stage") == "note":
        log.warning(event["said"])


def execute(
    run: Run,
    root: Path | str,
    say: Callable[[dict], None] = noted,
    device: str = "auto",
    command: str | None = None,
    track: str = "none",
) -> dict:
    """Train and judge `run`, going on where it was stopped. Returns its result, of a finished run at once.

    Raises UserError for what a user can mend, such as another process that trains it. For any other error the traceback
    is also written into the run's folder.
    """
    root = Path(root)
    try:
        return _execute(run, root, say, device, command, track)
    except Exception as e:
        if mendable(e) is None:
            with contextlib.suppress(OSError):  # the first error is the one to raise
                Record(root, run).keep_error(traceback.format_exc(), int(os.environ.get("RANK") or 0))
        raise


def _execute(run: Run, root: Path, say, device: str, command: str | None, track: str) -> dict:
    check_writable(root / run.id, "--out", folder=True)
    trackers = {} if track == "none" else {"log_with": track, "project_dir": root / "trackers"}
    engine = Engine.start(device, **trackers)
    record = Record(root, run)
    env = environments.build(run.env)
    data = env.fingerprint()
    weights = engine.on_first(lambda: start.fingerprint(run, root))
    record.check_same_run(data, weights)
    result = record.result
    engine.wait()  # all processes have read the record before one writes
    if result is not None:
        if engine.leads:
            checkpoint.remove(record.home / "checkpoint")  # a kill may have come between the result and this
        return result
    lock = root / f"{run.id}.lock"
    engine.on_first(lambda: check_lock_is_free(lock))
    torch.manual_seed(run.seed)
    reasoner = start.begin(run, env, root)
    problems = judged_problems(run, env)
    record.check_same_problems(digest(problems))
    notes, reasoner.answer_tokens, reasoner.chain_tokens = engine.on_first(  # it encodes all problems: once is enough
        lambda: (check(reasoner, env, run, problems), reasoner.answer_tokens, reasoner.chain_tokens)
    )
    for line in notes:
        say({"stage": "note", "said": line})
    with memory_for(f"moving the model to {engine.device}", "it needs a smaller model or more memory"):
        reasoner.method.to(engine.device)
    trainer = Trainer(reasoner, record, engine, say)
    trainer.selection = Selection(env, run)
    resume.choose_start(trainer)
    with ExitStack() as held:
        engine.on_first(lambda: held.enter_context(exclusive_lock(lock)))  # until here nothing is written
        held.enter_context(engine.ending_together())
        begun_at = trainer.start.step if trainer.start else 0
        engine.on_first(lambda: record.open(data, command, begun_at, weights, digest(problems)))
        return _fit(run, root, env, trainer, problems, track)


def _fit(run, root, env, trainer, problems, track) -> dict:
    """The part of `execute` that writes: train, judge, save."""
    reasoner, record, engine = trainer.reasoner, trainer.record, trainer.engine
    if track != "none":
        named = {} if track == "tensorboard" else {track: {"name": run.id}}
        if track == "wandb":  # it would write into the working directory
            (root / "trackers").mkdir(parents=True, exist_ok=True)
            named["wandb"]["dir"] = str(root / "trackers")
        project = run.id if track == "tensorboard" else "latent-reasoning"
        engine.accelerator.init_trackers(project, config=flattened(plain(run)), init_kwargs=named)
    engine.wait()
    (rlvr if isinstance(run.train, RLVR) else distill).fit(trainer, env)
    result = trainer.selection.choose(trainer)
    reasoner.method.critic = None  # used in training only
    lora.merge(reasoner.method.backbone.lm)
    with engine.while_one_works():
        if engine.leads:
            part = record.home / f"model{PART}"
            hub.save(reasoner, part)
            put_folder(part, record.home / "model")
    result |= final(run, env, problems, trainer, result.get("selected", {}).get("step", trainer.done)) | {
        "core_seconds": trainer.core_seconds,
        "updates": trainer.done,
        "latents": reasoner.method.trained_steps,
        "steps_written": reasoner.method.steps_written(env.chain_steps),
        "parameters": sum(p.numel() for p in reasoner.method.parameters()),
    }
    with engine.while_one_works():
        if engine.leads:
            card.write(record, result)
            curves.draw(record.home)
            record.finish(result)
            checkpoint.remove(record.home / "checkpoint")
    for tracker in engine.accelerator.trackers:
        tracker.finish()
    return result


def flattened(config, name: str = "") -> dict:
    """A nested config as one dict with dotted names, the form that trackers take."""
    if not isinstance(config, dict):
        return {name: config if isinstance(config, (bool, int, float, str)) else str(config)}
    return {k: v for key, each in config.items() for k, v in flattened(each, f"{name}.{key}".lstrip(".")).items()}


def judged_problems(run: Run, env: Environment) -> list[Problem]:
    """The problems that the run is judged on: those of the main level first, then the others."""
    split = run.judge.split
    main = env.problems(split, env.main_level, run.judge.items)
    if not main:
        raise UserError(f"the environment has no {'test' if split == 'test' else 'validation'} problems (judge.split)")
    others = [lv for lv in env.levels() if lv != env.main_level]
    asked = {env.main_level: main} | {lv: env.problems(split, lv, run.judge.level_items) for lv in others}
    for level, problems in asked.items():
        for p in problems:
            if p.level != level:
                raise UserError(f"{type(env).__name__}: problem {p.key} was asked of level {level}, it says {p.level}")
    return [p for problems in asked.values() for p in problems]


def digest(problems: list[Problem]) -> str:
    """Of the problems that are judged, with their answers, in order: accuracies are paired where it is the same."""
    return sha256(repr([(p.key, p.level, p.answer) for p in problems]).encode()).hexdigest()[:12]


def final(run: Run, env: Environment, problems: list[Problem], trainer: Trainer, updates: int) -> dict:
    """Judge on held-out problems, shared among all processes: the main level, the other levels, the sweep.

    Writes samples.jsonl, and returns the result's evaluation. `updates`: those that the weights have had.
    """
    reasoner, engine, say = trainer.reasoner, trainer.engine, trainer.say
    main = [p for p in problems if p.level == env.main_level]
    sweep = [k for k in run.sweep if k != reasoner.method.trained_steps]
    total, done = len(problems) + len(main) * len(sweep), 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        say({"stage": "judge", "done": done, "total": total})

    what, less = JUDGING
    less += f" (--init {run.id} --train.steps 0 judges what is trained)"  # the batch is in a run's id
    with trainer.precision(), memory_for(what, less):
        items: list[Item] = judge(reasoner, env, problems, run.judge.batch, tick=tick, among=engine)
    if engine.leads:
        at = {"step": updates, "split": run.judge.split}
        trainer.record.samples([{**at, **asdict(item)} for item in items])
    levels, at_main = by_level(items), summary(items[: len(main)])
    swept = {}
    for k in sorted(sweep):
        with trainer.precision(), memory_for(what, less):
            judged = judge(reasoner, env, main, run.judge.batch, steps=k, tick=tick, among=engine)
        swept[str(k)] = summary(judged) | {"correct": [int(i.correct) for i in judged]}
    prompt = sum(prompt_tokens(reasoner.codec, env.turns_of(p)) for p in main) / len(main)
    together = clusters(items[: len(main)])
    return {
        "main": at_main,
        "levels": {str(k): v for k, v in levels.items()},
        "used_mean": sum(v["used"] for v in levels.values()) / len(levels),
        "sweep": swept,
        "floors": env.floors(main),
        "steps": reasoner.method.passes(at_main["used"], at_main["tokens"]),
        "flops": reasoner.method.flops(prompt, at_main["used"], at_main["tokens"]),
        "correct": [int(i.correct) for i in items[: len(main)]],
        "problems": digest(main),
        **({} if together is None else {"clusters": together}),
    }


def prompt_tokens(codec: Codec, turns: list[Problem]) -> int:
    """The tokens of a problem's questions and observations, in all its turns."""
    first, *later = turns
    return len(codec.question(first.question)) + sum(len(codec.observation(p.question)) for p in later)
