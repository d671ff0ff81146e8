"""One run from config to result: build, train, judge, record. Called in a process of its own, or under a launcher."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from eval import environments
from eval.cost import forward_flops, sequential_steps
from eval.environments.base import Environment, Finite, Problem
from eval.judge import Item, by_level, judge, summary
from kernels.errors import UserError
from latent import backbone, hub, lora, methods
from latent.files import PART, check_writable, put_folder, read_json
from latent.generate import Reasoner
from latent.text import Codec
from train import card, checkpoint, curves, distill, rlvr
from train.checks import check
from train.config import RLVR, Run, plain
from train.engine import Engine
from train.loop import Trainer
from train.record import Record, alone, check_alone
from train.selection import Selection

TRAIN_ONLY = ("decoder.",)  # parameters that thinking never reads


def execute(
    run: Run,
    root: Path,
    say: Callable[[dict], None] = lambda event: None,
    device: str = "auto",
    command: str | None = None,
    track: str = "none",
) -> dict:
    """Train and judge `run`, going on where a killed one stopped. Returns its result, of a finished run at once.

    Raises RuntimeError where another process is at it.
    """
    check_writable(root / run.id, "--out", folder=True)
    trackers = {} if track == "none" else {"log_with": track, "project_dir": root / "trackers"}
    engine = Engine.start(device, **trackers)
    record = Record(root, run)
    env = environments.build(run.env)
    data = env.fingerprint()
    record.must_match(data)
    done = record.result
    engine.wait()  # all have looked before anyone writes
    if done:
        if engine.leads:
            checkpoint.remove(record.home / "checkpoint")  # where a kill came between the result and this
        return done
    lock = root / f"{run.id}.lock"
    if engine.leads:
        check_alone(lock)
    torch.manual_seed(run.seed)
    reasoner = begin(run, env, root)
    problems = test_problems(run, env)
    for line in check(reasoner, env, run, problems):
        say({"stage": "note", "said": line})
    reasoner.method.to(engine.device)
    trainer = Trainer(reasoner, record, engine, say)
    trainer.selection = Selection(env, run)
    trainer.choose_start()
    own = alone(lock) if engine.leads else nullcontext()
    with own, engine.ending_together():  # only now: what is refused writes nothing
        return _fit(run, root, env, trainer, problems, data, command, track)


def _fit(run, root, env, trainer, problems, data, command, track) -> dict:
    """Everything of `execute` that writes."""
    reasoner, record, engine = trainer.reasoner, trainer.record, trainer.engine
    if engine.leads:
        record.open(data, command, trainer.start.step if trainer.start else 0)
    if track != "none":
        named = {} if track == "tensorboard" else {track: {"name": run.id}}
        if track == "wandb":  # whose files would lie in the working directory
            (root / "trackers").mkdir(parents=True, exist_ok=True)
            named["wandb"]["dir"] = str(root / "trackers")
        place = run.id if track == "tensorboard" else "latent-reasoning"
        engine.accelerator.init_trackers(place, config=flat(plain(run)), init_kwargs=named)
    engine.wait()
    (rlvr if isinstance(run.train, RLVR) else distill).fit(trainer, env)
    result = trainer.selection.choose(trainer)
    lora.merge(reasoner.method.backbone.lm)
    with engine.while_one_works():
        if engine.leads:
            part = record.home / f"model{PART}"
            hub.save(reasoner, part)
            put_folder(part, record.home / "model")
    result |= final(run, env, problems, trainer) | {
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


def flat(config, name: str = "") -> dict:
    """A nested config as one level of names, as trackers want it."""
    if not isinstance(config, dict):
        return {name: config if isinstance(config, (bool, int, float, str)) else str(config)}
    return {k: v for key, each in config.items() for k, v in flat(each, f"{name}.{key}".lstrip(".")).items()}


def begin(run: Run, env: Environment, root: Path) -> Reasoner:
    """The untrained reasoner of a run: from scratch, from a pretrained model, or from another run's weights."""
    if isinstance(env, Finite) and not env.splits["train"]:
        raise UserError("there are problems to test on only: give --env.train")
    if run.init is not None:
        place = root / run.init if (root / run.init).is_dir() else Path(run.init)
        started = hub.load(place)
        same_model(run, place)
        prepare(run, started.method.backbone)
        method = methods.build(run.method, started.method.backbone)
        inherit(method, started.method, run.init)
        return Reasoner(method, started.codec, env.answer_tokens, env.chain_tokens, env.chain_steps)
    if run.model.pretrained is not None:
        body, tokenizer = backbone.from_pretrained(run.model.pretrained)
        codec = Codec(tokenizer, chat=run.model.chat_template)
        body.make_room(codec.size)
    else:
        codec = env.codec(run.model)
        body = backbone.from_scratch(run.model, codec.size, codec.pad, codec.end)
    prepare(run, body)
    return Reasoner(methods.build(run.method, body), codec, env.answer_tokens, env.chain_tokens, env.chain_steps)


def prepare(run: Run, body: backbone.Backbone) -> None:
    """What the config says of training the backbone: adapters, gradient checkpointing, precision."""
    if run.model.lora_rank:
        lora.add(body.lm, run.model.lora_rank, run.model.lora_alpha)
    body.recompute = run.model.recompute


def same_model(run: Run, place: Path) -> None:
    """Raise UserError where a run asks for another model than that of the run it starts from."""
    written = place / "config.json"
    old = read_json(written).get("model") if written.exists() else None
    if not isinstance(old, dict | None):
        raise UserError(f"{written}: field 'model' must be an object, got {old!r:.40}")
    new = plain(run.model)
    how = ("bf16", "recompute", "lora_rank", "lora_alpha")  # it is trained, not what it is
    odd = [k for k in new if k not in how and old is not None and old.get(k) != new[k]]
    if odd:
        k = odd[0]
        raise UserError(f"{run.init} has model.{k} {old.get(k)}, asked is {new[k]}: a run has the model it starts from")


def inherit(method, started, name: str) -> None:
    """Take over the weights of a finished method. Stop head, train-only parts and curriculum may start afresh or stay
    behind; everything else must be there in the same shape."""
    old, new = started.state_dict(), method.state_dict()
    free = ("stop.", *TRAIN_ONLY, *(n for m in (started, method) for n, _ in m.named_buffers()))
    same = {k: v for k, v in old.items() if k in new and v.shape == new[k].shape}
    odd = [k for k in old.keys() | new.keys() if k not in same and not k.startswith(free)]
    if odd:
        raise UserError(f"the weights of {name} do not fit {type(method).__name__}: {', '.join(sorted(odd)[:3])}")
    method.load_state_dict(same, strict=False)


def test_problems(run: Run, env: Environment) -> list[Problem]:
    """What the run is judged on: the main level first, then the others."""
    main = env.problems("test", env.main_level, run.judge.items)
    if not main:
        raise UserError("the environment has no test problems")
    others = [lv for lv in env.levels() if lv != env.main_level]
    return main + [p for lv in others for p in env.problems("test", lv, run.judge.level_items)]


def final(run: Run, env: Environment, problems: list[Problem], trainer: Trainer) -> dict:
    """Judge on held-out problems, which all processes share: the main level, the others, the sweep.

    Writes the samples; returns summaries.
    """
    reasoner, engine, say = trainer.reasoner, trainer.engine, trainer.say
    main = [p for p in problems if p.level == env.main_level]
    sweep = [k for k in run.judge.sweep if k != reasoner.method.trained_steps]
    total, done = len(problems) + len(main) * len(sweep), 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        say({"stage": "judge", "done": done, "total": total})

    items: list[Item] = judge(reasoner, env, problems, run.judge.batch, tick=tick, among=engine)
    if engine.leads:
        trainer.record.samples([{"step": run.train.steps, "split": "test", **asdict(item)} for item in items])
    levels, at_main = by_level(items), summary(items[: len(main)])
    swept = {}
    for k in sorted(sweep):
        judged = judge(reasoner, env, main, run.judge.batch, steps=k, tick=tick, among=engine)
        swept[str(k)] = summary(judged) | {"correct": [int(i.correct) for i in judged]}
    prompt = sum(len(reasoner.codec.question(p.question)) for p in main) / len(main)
    return {
        "main": at_main,
        "levels": {str(k): v for k, v in levels.items()},
        "used_mean": sum(v["used"] for v in levels.values()) / len(levels),
        "sweep": swept,
        "floors": env.floors(main),
        "steps": sequential_steps(reasoner, at_main["used"], at_main["tokens"]),
        "flops": forward_flops(reasoner, prompt, at_main["used"], at_main["tokens"]),
        "correct": [int(i.correct) for i in items[: len(main)]],
    }
