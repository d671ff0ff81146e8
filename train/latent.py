"""The main job: `python -m train.latent [PRESET] [--flags]` trains the arms of a preset, judges and compares them.

`train/flags.py` has the flags. Every arm runs in a process of its own, with one thread, as many at a time as there are
cores. A run that was stopped goes on where it was; a run that has finished is not repeated. Under a launcher (torchrun,
accelerate launch) the arms run one after the other, each over all processes.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import os
import shlex
import signal
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from kernels.errors import UserError
from latent.cli import guarded, launched, program, set_offline_if_the_hub_is_unreachable
from latent.files import check_writable
from train.config import RLVR, Experiment, Run
from train.flags import Options, parse
from train.presets import PAPERS
from train.process import Stopped, heeding_sigterm, prepare_launch, runs_on


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""
    args = sys.argv[1:] if args is None else args

    def body() -> int:
        name, config, options = parse(args)
        return run(name, config, options, command_of(args))

    code = guarded(body)
    if code in (130, Stopped.code) and "--estimate" not in args and (launched() or (0, 1))[0] == 0:
        print(f"stopped; this goes on where it stopped: {command_of(args)}", file=sys.stderr)
    return code


def command_of(args: list[str]) -> str:
    """The command line that was given, to be given again."""
    command = program("train.latent", "latent-train")
    if launched():
        nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
        if nodes > 1:
            return f"the same launcher with {shlex.join(['-m', 'train.latent', *args])}"
        command = f"torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m train.latent"
    return f"{command} {shlex.join(args)}".strip()


def run(name: str, config: Run | Experiment, options: Options, command: str) -> int:
    """Run every arm; then print the table, and write it with its figure."""
    runs = config.runs() if isinstance(config, Experiment) else {name: config}
    prepare_launch()
    if options.kernels != "auto":
        os.environ["LATENT_KERNELS"] = options.kernels  # processes of arms inherit it
    if options.push_to_hub or any(needs_the_hub(each) for each in runs.values()):
        set_offline_if_the_hub_is_unreachable()
    if options.estimate:
        from train import estimate

        print(*estimate.report(runs), *papers(name), sep="\n")
        return 0
    check(runs, options)
    started = time.monotonic()
    rank_and_world = launched()
    if rank_and_world:
        under_launcher(runs, options, command)
        if rank_and_world[0] > 0:
            return 0
    else:
        in_processes(runs, options, command)
    from train import report

    latency_on = runs_on(options.device) if options.latency else None
    report.publish(name, runs, options.out, latency_on, time.monotonic() - started, papers(name))
    if options.push_to_hub:
        from train import card
        from train.record import Record

        for arm, each in runs.items():
            full = options.push_to_hub if len(runs) == 1 else f"{options.push_to_hub}-{arm}"
            print(card.publish(Record(options.out, each), full))
    return 0


def needs_the_hub(run: Run) -> bool:
    """Whether the data or the backbone come from the Hugging Face hub."""
    name = run.model.pretrained
    return "hub:" in str(run.env) or (name is not None and not Path(name).is_dir())


def papers(name: str) -> list[str]:
    """What a preset's paper reports of its arms."""
    if name not in PAPERS:
        return []
    source, accuracies = PAPERS[name]
    return [f"Published ({source}): " + ", ".join(f"{arm} {value:.3f}" for arm, value in accuracies.items())]


def check(runs: dict[str, Run], options: Options) -> None:
    """Raise UserError for anything that an arm would fail on later: kernels, tracker, hub login, data, memory, starts.

    Nothing is written, and torch is loaded only where an option needs it.
    """
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
    ids: dict[str, str] = {}  # the arm of each
    for arm, run in runs.items():
        if ids.setdefault(run.id, arm) != arm:
            raise UserError(f"arms {ids[run.id]!r} and {arm!r} are one and the same run ({run.id})")
    samples = {}
    for env in {run.env for run in runs.values()}:
        made = environments.build(env)
        samples[env] = made.problems("test", made.main_level, 8), len(made.levels())
        for run in runs.values():
            if run.env == env and not isinstance(run.train, RLVR):
                made.check_tells(run.method.told, type(run.method).__name__)
    check_writable(options.out, "--out", folder=True)
    for run in runs.values():
        memory.check(run, *samples[run.env])
        places = [options.out / run.init, Path(run.init)] if run.init else []
        if run.init and run.init not in ids and not any(place.is_dir() for place in places):
            raise UserError(
                f"init {run.init!r} is neither an arm of this command nor a run in {options.out} nor a folder"
            )
    if any(run.init and (run.init not in ids or runs[ids[run.init]].method != run.method) for run in runs.values()):
        from train.start import check_starts  # here, because it loads torch

        check_starts(runs.values(), options.out)


def under_launcher(runs: dict[str, Run], options: Options, command: str) -> None:
    """Run the arms one after the other, each over all processes of the launcher. This is one of them."""
    with heeding_sigterm(signal.SIGINT):  # launchers pass ^C on to their workers
        for each in runs.values():
            _execute(each, print_event, options, command)
    from accelerate import PartialState

    PartialState().destroy_process_group()


def in_processes(runs: dict[str, Run], options: Options, command: str) -> None:
    """Run all arms in processes, each after the arm that it starts from.

    Raises UserError where one fails on something that a user can mend, `WorkerError` where one fails on a bug.
    """
    from train import pool
    from train.report import Screen

    if os.environ.pop("WORLD_SIZE", "1") != "1":  # accelerate would wait for other processes
        print(
            "WORLD_SIZE is set and RANK is not, so no launcher started this: one process trains an arm", file=sys.stderr
        )
    with Screen() as screen:

        def show(arm: str, event: dict) -> None:
            if event.get("traceback"):
                raise pool.WorkerError(f"arm {arm}, in its process:\n\n{event['traceback']}")
            if "error" in event:
                raise UserError(f"arm {arm}: {event['error']}")
            screen.show(arm, event)

        pool.in_processes(runs, partial(_execute, options=options, command=command), options.jobs, show)


def _execute(run: Run, say, options: Options, command: str) -> dict:
    """Run one arm in this process. Returns whether there was anything left to do."""
    from train.record import Record
    from train.run import execute

    new = Record(options.out, run).result is None
    execute(run, options.out, say, options.device, command, options.track)
    return {"new": new}


def print_event(event: dict) -> None:
    """Print progress as plain lines, under a launcher."""
    leads = (launched() or (0, 1))[0] == 0
    if event["stage"] == "note" and leads:
        print("note:", event["said"], flush=True)
    if "metrics" in event and leads:
        print(event["stage"], f"{event['done']}/{event['total']}", event["metrics"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
