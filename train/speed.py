"""The speed of training and generation in core-seconds: `python -m train.speed`; on a GPU with `--device cuda`.

It measures the tiny cups model and the GPT-2-small shape. Arms run side by side in one process and alternate from round
to round, so that the drift of a shared machine affects all of them. Times are medians over rounds; ratios are medians
of each round's ratio. On a GPU the arms are ours and what the same loop takes in transformers (`train/speed_gpu.py`).
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

from latent.cli import guarded, parse
from train.process import configure_cpu_process, prepare_launch


@dataclass(frozen=True)
class Speed:
    """What to measure."""

    what: Literal["all", "tiny", "gpt2", "engine", "rivals"] = "all"
    """The tiny model of the preset cups, the GPT-2-small shape, or both; or the memory and time of an update in one
    process, DDP or FSDP2, as the launcher sets it up; or a training step, rollouts and answers beside transformers'."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compare with transformers; cuda measures nothing else."""
    shape: Literal["tiny", "gpt2", "qwen3-0.6b"] = "gpt2"
    """The model to compare with transformers, with random weights; tiny tries the comparison out."""
    rounds: int = 15
    """Rounds of the tiny model. The large one always has two or three."""
    run: str | None = None
    """A finished run of the preset cups, for rollouts. Those of an untrained policy never agree: the slowest case."""
    out: Path | None = None
    """Append the numbers to this file as JSON lines; of a comparison with transformers write them, as CSV if it ends
    in .csv."""


def main(args: list[str] | None = None) -> int:
    """The command line."""
    return guarded(lambda: measure(parse(Speed, args, "python -m train.speed", __doc__)))


def measure(options: Speed) -> int:
    """Measure, print, and append to a file."""
    if options.device == "cuda" or options.what == "rivals":
        return beside_transformers(options)
    if options.what == "engine":
        prepare_launch()
    else:
        configure_cpu_process()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    if options.what in ("all", "tiny"):
        rows += tiny(options)
    if options.what in ("all", "gpt2"):
        rows += gpt2()
    if options.what == "engine":
        rows += in_processes()
    for row in rows:
        print(f"{row['what']:66} {row['value']:9.3g} {row['unit']}")
    if options.out:
        from train.record import cpu

        with options.out.open("a") as f:
            f.writelines(json.dumps({**row, "cpu": cpu(), "torch": torch.__version__}) + "\n" for row in rows)
    return 0


def beside_transformers(options: Speed) -> int:
    """The same for a training step, rollouts and answers beside those of transformers."""
    if options.device == "cpu":
        configure_cpu_process()
    import csv

    import torch

    from train import speed_gpu

    rows = []
    for row in speed_gpu.compare(options.shape, options.device, options.rounds):
        print(f"{row['what']:66} {row['arm']:36} {row['value']:9.3g} {row['unit']}", flush=True)
        rows.append(row | {"torch": torch.__version__})
    if options.out is None:
        return 0
    with options.out.open("w", newline="") as f:
        if options.out.suffix == ".csv":
            table = csv.DictWriter(f, list(dict.fromkeys(name for row in rows for name in row)))
            table.writeheader()
            table.writerows(rows)
        else:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


def rounds(
    n: int, arms: dict[str, Callable[[int], None]], clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Core-seconds of each arm in each of n rounds, after one warm-up round. Every other round runs backwards."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(n + 1):
        for name in list(arms) if i % 2 else reversed(arms):
            start = clock()
            arms[name](i)
            if i:
                times[name].append(clock() - start)
    return times


def row(what: str, value: float, unit: str) -> dict:
    return {"what": what, "value": value, "unit": unit}


def ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b))


def tiny(options: Speed) -> list[dict]:
    """Training steps at batch 64, and RL updates of 64 prompts x 16 rollouts."""
    import torch

    from eval import environments
    from latent import load, make, methods
    from latent.generate import rollout, score
    from latent.text import Batch
    from train.losses import policy_loss
    from train.presets import cups

    preset = cups()
    env = environments.build(preset.env)
    codec = env.codec(preset.model)

    def step(method, optimizer, loss) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def trained(name: str) -> Callable[[int], None]:
        body = make.from_scratch(preset.model, codec.size, codec.pad, codec.end)
        method = methods.build(preset.arms[name].method, body)
        optimizer = torch.optim.AdamW(method.parameters(), fused=True)
        return lambda i: step(method, optimizer, method.loss(Batch.of(env.train_batch(0, i, 64), codec))[0])

    arms = {name: trained(name) for name in ("latent", "cot", "no-cot")}
    body = make.from_scratch(preset.model, codec.size, codec.pad, codec.end)
    policy = load(options.run).method if options.run else methods.build(preset.arms["latent"].method, body)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)
    rolled = {}

    def sample(i: int) -> None:
        prompt = codec.prompt([p.question for p in env.train_batch(1, i, 64)])
        rolled["now"] = rollout(policy, prompt, 16, env.answer_tokens, codec.end, 1.0)

    def learn(i: int) -> None:
        sample(i)
        now = score(policy, rolled["now"], 1.0)
        adv = [torch.randn(1024, 1)] * len(now)
        step(policy, optimizer, policy_loss(now, [d.detached() for d in now], adv, (0.2, 0.28), 0.0)[0].taken())

    t = rounds(options.rounds, arms) | rounds(options.rounds, {"sample": sample, "learn": learn})
    who = "trained" if options.run else "untrained"
    return [
        row("tiny: latent training step, 8 thoughts, batch 64", 1000 * median(t["latent"]), "core-ms"),
        row("tiny: CoT training step, batch 64", 1000 * median(t["cot"]), "core-ms"),
        row("tiny: latent step / CoT step", ratio(t["latent"], t["cot"]), ""),
        row("tiny: latent training examples", 64 / median(t["latent"]), "/ core-s"),
        row(f"tiny: rollouts sampled, {who} policy", 1024 / median(t["sample"]), "/ core-s"),
        row(f"tiny: rollouts sampled and learned from, {who} policy", 1024 / median(t["learn"]), "/ core-s"),
    ]


def gpt2() -> list[dict]:
    """GPT-2-small shape in fp32: 151 prompt + 6 latent + 17 answer tokens; untrained weights.

    Training at 8 rows and at 32, the share of a GPU in Coconut's GSM8K setting: the chain reads every weight once a
    latent, whatever the rows. Generation in wall seconds too, on all cores.
    """
    import torch

    from latent import make, methods
    from latent.config import ModelConfig
    from latent.generate import decode
    from latent.methods import Sim
    from latent.methods.terms import text_loss
    from latent.text import Text
    from latent.thought import Greedy, Prompt

    model = ModelConfig(n_layer=12, n_embd=768, n_head=12, n_positions=1024)
    method = methods.build(Sim(n_latent=6), make.from_scratch(model, 50257, 0, None))
    ids = torch.randint(50257, (64, 151))

    def training(batch: int, n: int) -> list[dict]:
        answer = torch.randint(50257, (batch, 17))
        everything = torch.cat([ids[:batch], torch.randint(50257, (batch, 6)), answer], 1)

        def latent(i: int) -> None:
            thought = method.think(Prompt(ids[:batch]), Greedy())
            text_loss(method.backbone, thought, Text(answer, None))[0].taken().backward()
            method.zero_grad()

        def plain(i: int) -> None:
            method.backbone.lm(everything, labels=everything, use_cache=False).loss.backward()
            method.zero_grad()

        t, what = rounds(n, {"latent": latent, "plain": plain}), f"GPT-2 small, batch {batch}:"
        return [
            row(f"{what} latent training step", median(t["latent"]), "core-s"),
            row(f"{what} plain full-sequence cross-entropy step", median(t["plain"]), "core-s"),
            row(f"{what} latent step / plain step", ratio(t["latent"], t["plain"]), ""),
        ]

    @torch.no_grad()
    def generate(n: int) -> None:
        decode(method, method.think(Prompt(ids[:n]), Greedy()), Greedy(), 16, None)

    rows = training(8, 3) + training(32, 2)
    arms = {"64": lambda i: generate(64), "1": lambda i: generate(1)}
    g = rounds(3, arms)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    w = rounds(3, arms, time.perf_counter)
    cores = f"wall s, {torch.get_num_threads()} threads"
    torch.set_num_threads(1)
    return [
        *rows,
        row("GPT-2 small: generation a prompt, batch 64", median(g["64"]) / 64, "core-s"),
        row("GPT-2 small: generation a prompt, batch 1", median(g["1"]), "core-s"),
        row("GPT-2 small: generation a prompt, batch 64", median(w["64"]) / 64, cores),
        row("GPT-2 small: generation a prompt, batch 1", median(w["1"]), cores),
    ]


def in_processes(updates: int = 4) -> list[dict]:
    """Memory and time of process 0: 42 million parameters, 8 latents, 8 rows in an update over all processes.

    It runs without `configure_cpu_process`, which keeps freed memory, and with nothing else in the process.
    """
    import resource
    import tempfile

    import torch

    from eval.environments import Cups, build
    from latent.config import ModelConfig
    from latent.methods import Sim
    from latent.text import Batch
    from train.config import SFT, Run
    from train.engine import Engine, held_here
    from train.loop import Trainer
    from train.record import Record
    from train.start import begin

    model = ModelConfig(n_layer=12, n_embd=512, n_head=8, n_positions=128)
    run = Run(Cups(cups=8), model, Sim(n_latent=8, step_tokens=16), SFT(steps=updates, batch=8))
    env, engine, seconds = build(run.env), Engine.start("cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        reasoner = begin(run, env, Path(folder))
        trainer = Trainer(reasoner, Record(Path(folder), run), engine, lambda event: None)
        for step in range(updates):
            batch = Batch.of(trainer.problems(env, step), reasoner.codec)
            start = time.process_time()
            trainer.descend([partial(engine.module, "terms", batch)])
            seconds.append(time.process_time() - start)
    held = {"parameters": list(trainer.method.parameters())}
    held["AdamW's moments"] = [x for state in trainer.optimizer.state.values() for x in state.values()]
    who = "FSDP2" if engine.plugin else "DDP" if engine.world > 1 else "one process"
    rows = [
        row(f"{who}, {engine.world} in all: {what} held", sum(held_here(x).nbytes for x in tensors) / 2**20, "MiB")
        for what, tensors in held.items()
    ]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows += [
        row(f"{who}, {engine.world} in all: resident between updates", resident / 2**20, "MiB"),
        row(f"{who}, {engine.world} in all: peak", peak / 2**10, "MiB"),
        row(f"{who}, {engine.world} in all: an update", median(seconds[1:]), "core-s"),
    ]
    engine.wait()
    if engine.world > 1:
        torch.distributed.destroy_process_group()
    return rows if engine.leads else []


if __name__ == "__main__":
    sys.exit(main())
