"""The main job: `python -m train.latent [PRESET] [--flags]` trains the arms of a preset, judges and compares them.

One process an arm, one thread a process, as many at a time as there are cores. A run that was stopped goes on where
it was; one that has finished is not repeated. Under a launcher (torchrun, accelerate launch) the arms run one after
the other, each over all processes.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import os
import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from eval.cli import at_least, do_not_wait_for_the_hub, guarded, launched, program
from eval.cli import parse as parse_flags
from kernels.errors import UserError
from latent.files import check_writable
from train.config import Experiment, Run
from train.presets import PAPERS, PRESETS
from train.process import Stopped, heeding_sigterm, prepare_launch


@dataclass(frozen=True)
class Options:
    """How to run, which changes nothing of what is run."""

    out: Path = Path("runs")
    """Folder of the run records."""
    jobs: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Arms trained at a time."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; auto is a GPU if there is one."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """What runs the fused steps: auto is Triton on a GPU, torch elsewhere. As LATENT_KERNELS in the environment."""
    latency: bool = True
    """Measure the latency of an answer when all arms are done."""
    estimate: bool = False
    """Only say what it would cost: FLOPs, memory, time here and on a GPU, and what the paper reports."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Also log to this tracker, which must be installed; under OUT/trackers or its own login."""
    push_to_hub: str | None = None
    """Upload the finished models to the Hugging Face hub under this name, an arm's after a hyphen. Needs a login."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""
    args = sys.argv[1:] if args is None else args

    def body() -> int:
        name, asked, options = parse(args)
        return run(name, asked, options, again(args))

    code = guarded(body)
    if code in (130, Stopped.code) and "--estimate" not in args and (launched() or (0, 1))[0] == 0:
        print(f"stopped; this goes on from the last checkpoint: {again(args)}", file=sys.stderr)
    return code


def again(args: list[str]) -> str:
    """The command to give once more."""
    called = program("train.latent", "latent-train")
    if launched():
        nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
        if nodes > 1:
            return f"the same launcher with {shlex.join(['-m', 'train.latent', *args])}"
        called = f"torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m train.latent"
    return f"{called} {shlex.join(args)}".strip()


def parse(args: list[str]) -> tuple[str, Run | Experiment, Options]:
    """Preset name, its config with the flags applied, and the options."""
    name = "cups"
    if args and not args[0].startswith("-"):
        name, args = args[0], args[1:]
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    called, plain = program("train.latent", "latent-train"), (tyro.conf.AvoidSubcommands,)
    if args and args[0].startswith(("--tyro-print-completion", "--tyro-write-completion")):
        named = [Annotated[type(c), tyro.conf.subcommand(n, default=c)] for n, c in map(_command, PRESETS)]
        tyro.cli(Union[tuple(named)], args=args, prog=called, config=plain)  # noqa: UP007  prints it, and exits
    _, default = _command(name)
    command = parse_flags(
        type(default),
        args,
        prog=called if called == "latent-train" else f"{called} {name}",
        description=f"{PRESETS[name].__doc__} Presets: {', '.join(PRESETS)}.",
        default=default,
        config=plain,
    )
    at_least(command.options, jobs=1)
    return name, command.config, command.options


def _command(name: str):
    """A preset's name, and what it and the options are unless said, as tyro wants them: of a class of their own."""
    preset = PRESETS[name]()

    @dataclass(frozen=True)
    class Command:
        config: Annotated[type(preset), tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
        options: Annotated[Options, tyro.conf.arg(name="")] = Options()

    return name, Command(config=preset)


def run(name: str, asked: Run | Experiment, options: Options, command: str) -> int:
    """Run every arm, then print the table and write it with its figure."""
    runs = asked.runs() if isinstance(asked, Experiment) else {name: asked}
    prepare_launch()
    if options.kernels != "auto":
        os.environ["LATENT_KERNELS"] = options.kernels  # for the arms' processes too
    if options.push_to_hub or any(needs_the_hub(each) for each in runs.values()):
        do_not_wait_for_the_hub()
    if options.estimate:
        from train import estimate

        print(*estimate.report(runs), *papers(name), sep="\n")
        return 0
    check(runs, options)
    started = time.monotonic()
    place = launched()
    if place:
        under_launcher(runs, options, command)
        if place[0]:
            return 0
    else:
        in_processes(runs, options, command)
    from train import report

    report.publish(name, runs, options.out, options.latency, time.monotonic() - started, papers(name))
    if options.push_to_hub:
        from train import card
        from train.record import Record

        for arm, each in runs.items():
            full = options.push_to_hub if len(runs) == 1 else f"{options.push_to_hub}-{arm}"
            print(card.publish(Record(options.out, each), full))
    return 0


def needs_the_hub(run: Run) -> bool:
    """Whether data or backbone are named as on the hub."""
    name = run.model.pretrained
    return "hub:" in str(run.env) or (name is not None and not Path(name).is_dir())


def papers(name: str) -> list[str]:
    """What a preset's paper reports of its arms."""
    if name not in PAPERS:
        return []
    source, said = PAPERS[name]
    return [f"Published ({source}): " + ", ".join(f"{arm} {value:.3f}" for arm, value in said.items())]


def check(runs: dict[str, Run], options: Options) -> None:
    """Raise UserError for what every arm would fail on: data that cannot be read, a start that is no run, memory that
    there is not, a folder that cannot be written."""
    from eval import environments
    from train import memory

    if options.kernels == "triton":
        import torch

        from kernels import dispatch

        gpu = options.device == "auto" and torch.cuda.is_available()
        if why := dispatch.unavailable(torch.device("cuda" if gpu else "cpu")):
            raise UserError(f"--kernels triton: {why}")
    if options.track != "none" and find_spec(options.track) is None:
        raise UserError(f"--track {options.track}: it is not installed (pip install {options.track})")
    if options.push_to_hub:
        from train import card

        card.may_publish()
    ids = {run.id for run in runs.values()}
    samples = {}
    for env in {run.env for run in runs.values()}:
        made = environments.build(env)
        samples[env] = made.problems("test", made.main_level, 8)
    check_writable(options.out, "--out", folder=True)
    for run in runs.values():
        memory.check(run, samples[run.env])
        place = options.out / run.init if run.init else None
        if run.init and run.init not in ids and not place.is_dir() and not Path(run.init).is_dir():
            raise UserError(
                f"init {run.init!r} is neither an arm of this command nor a run in {options.out} nor a folder"
            )


def under_launcher(runs: dict[str, Run], options: Options, command: str) -> None:
    """The arms one after the other, each over all processes, of which this is one."""
    with heeding_sigterm():
        for each in runs.values():
            _execute(each, print_event, options, command)
    from accelerate import PartialState

    PartialState().destroy_process_group()


def in_processes(runs: dict[str, Run], options: Options, command: str) -> None:
    """All arms as processes, each after the arm it starts from. Raises RuntimeError when one fails."""
    from train import pool
    from train.report import Screen

    if os.environ.pop("WORLD_SIZE", "1") != "1":  # the arms' processes would wait for others
        print(
            "WORLD_SIZE is set and RANK is not, so no launcher started this: one process trains an arm", file=sys.stderr
        )
    with Screen() as screen:

        def show(arm: str, event: dict) -> None:
            if "error" in event:
                raise RuntimeError(f"arm {arm}: {event['error']}")
            screen.show(arm, event)

        pool.in_processes(runs, partial(_execute, options=options, command=command), options.jobs, show)


def _execute(run: Run, say, options: Options, command: str) -> dict:
    """One arm, here. Tells whether anything was left to do."""
    from train.record import Record
    from train.run import execute

    new = Record(options.out, run).result is None
    execute(run, options.out, say, options.device, command, options.track)
    return {"new": new}


def print_event(event: dict) -> None:
    """Progress as plain lines, under a launcher."""
    leads = (launched() or (0, 1))[0] == 0
    if event["stage"] == "note" and leads:
        print("note:", event["said"], flush=True)
    if "metrics" in event and leads:
        print(event["stage"], f"{event['done']}/{event['total']}", event["metrics"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
