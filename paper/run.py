"""Run the ablations: `python -m paper.run` lists them, `python -m paper.run NAME` runs the missing cells of one.

Finished cells go into paper/records, and are not run again. A cell that was killed goes on from its last checkpoint.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import tyro

from kernels.errors import UserError
from latent import plugins
from latent.cli import at_least, guarded, parse, program, there_are
from latent.files import has_weights, write_json
from latent.plain import id_of, identity
from paper import claims, records
from paper.ablations import ABLATIONS
from paper.controls import CONTROLS
from paper.design import Cell, cells, search_cells
from paper.records import OUT
from paper.searches import SEARCHES
from train.config import Run

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """What to run, and how."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """An ablation, or "all"; without one they are listed."""
    search: str = ""
    """A search over settings to run instead, on the validation split."""
    out: Path = Path("runs/paper")
    """Folder of the runs."""
    records: Path = OUT / "records"
    """Folder of the records of finished runs."""
    jobs: int = CORES
    """Cells to run at a time."""
    launcher: Literal["here", "local", "slurm"] = "here"
    """Processes of this command, or submitit's jobs, on this machine or on Slurm."""
    partition: str = ""
    """Slurm partition."""
    timeout: int = 240
    """Time limit of a Slurm job, in minutes."""
    dry_run: bool = False
    """Only print the cells and their expected cost."""
    smoke: bool = False
    """Run two seeds of every cell for a few updates, and make the tables, in a folder that is removed."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; 1 where cells failed; 2 for what a user can mend, in one line."""

    def body() -> int:
        plugins.load_all()  # they may register ablations
        options = parse(Options, args, program("paper.run", "latent-paper"), __doc__)
        at_least(options, jobs=1)
        if options.search:
            return searched(options)
        if not options.name and not options.smoke:
            print(*listing(options), sep="\n")
            return 0
        names = asked_for(options.name)
        if options.smoke:
            with tempfile.TemporaryDirectory() as scratch:
                home = Path(scratch)
                code = ablate(names, replace(options, out=home / "runs", records=home))
                if code == 0 and not options.dry_run:
                    from paper import build

                    only = () if names == list(ABLATIONS) else tuple(names)
                    build.build(build.Options(only, records=home, out=home / "paper", smoke=True))
                return code
        return ablate(names, options)

    return guarded(body)


def asked_for(name: str) -> list[str]:
    """The ablations of a name; all for "all" and none, but those whose data is not in this folder, which it prints.

    Raises UserError where there is none of this name, and where it is alone and lacks its data.
    """
    everything = name in ("", "all")
    if not everything and name not in ABLATIONS:
        raise UserError(f"no ablation {name!r}; {there_are(name, [*ABLATIONS, 'all'])}")
    names = []
    for each in ABLATIONS if everything else [name]:
        lacking = ABLATIONS[each].missing()
        why = f"ablation {each} needs {' and '.join(lacking)} in this folder (its preset is {ABLATIONS[each].base})"
        if lacking and not everything:
            raise UserError(why)
        if lacking:
            print(f"left out: {why}")
        else:
            names.append(each)
    return names


def listing(options: Options) -> list[str]:
    """The lines that list every ablation with its claim, and how much of it is done."""
    done, left_out = records.read(options.records)
    share, wide = shares(), max(map(len, (*ABLATIONS, *SEARCHES)))
    lines, cells_of = [], {name: cells(ablation, CONTROLS) for name, ablation in ABLATIONS.items()}
    for name, ablation in ABLATIONS.items():
        missing = [c for c in cells_of[name] if not c.done(done)]
        state = f"{len(cells_of[name]) - len(missing)} of {len(cells_of[name])} cells"
        left = f", {sum(minutes(missing, done, share)):.0f} core-min left" if missing else ", done"
        lines.append(f"{name:>{wide}}  {state}{left}. {ablation.claim}")
    tried, odd = records.read(options.records, records.SEARCH_FILE)
    for name, search in SEARCHES.items():
        every = search_cells(name, search, ABLATIONS)
        lines.append(f"{name:>{wide}}  {sum(c.done(tried) for c in every)} of {len(every)} cells of --search {name}")
    left_out += odd
    known = {c.run.id for each in cells_of.values() for c in each}
    return lines + left_out + records.unlisted(done, known)


def shares() -> dict[str, float]:
    """Expected core-minutes of each run: the budget of the first ablation that has it, divided by that one's runs."""
    owner: dict[str, str] = {}
    for name, ablation in ABLATIONS.items():
        for cell in cells(ablation, CONTROLS):
            owner.setdefault(cell.run.id, name)
    owned = Counter(owner.values())
    return {id: ABLATIONS[name].core_minutes / owned[name] for id, name in owner.items()}


def minutes(some: list[Cell], done: dict[str, dict], share: dict[str, float]) -> list[float]:
    """Core-minutes expected of cells: the median of other seeds, or without any their `share` of a budget."""

    def seedless(identity: dict) -> str:
        return id_of({**identity, "seed": 0, "init": None})

    took: dict[str, list[float]] = {}
    for line in done.values():
        took.setdefault(seedless(line["identity"]), []).append(line["result"]["core_seconds"] / 60)
    return [median(took.get(seedless(identity(c.run)), [share.get(c.run.id, 0.1)])) for c in some]


def ablate(names: list[str], options: Options) -> int:
    """Run the missing cells of ablations. Returns the exit code."""
    claims.check({name: ABLATIONS[name] for name in names})
    every = {name: cells(ABLATIONS[name], CONTROLS, options.smoke) for name in names}
    return execute(every, shares(), options, records.FILE)


def searched(options: Options) -> int:
    """Run the missing cells of a search. Returns the exit code."""
    name = options.search
    if options.name:
        raise UserError(f"an ablation, {options.name!r}, or --search {name}: one at a time")
    if name not in SEARCHES:
        raise UserError(f"no search {name!r}; there are {', '.join(SEARCHES) or 'none'}")
    every = search_cells(name, SEARCHES[name], ABLATIONS, options.smoke)
    share = {c.run.id: SEARCHES[name].core_minutes / len(every) for c in every}
    with tempfile.TemporaryDirectory() as scratch:
        if options.smoke:
            options = replace(options, out=Path(scratch) / "runs", records=Path(scratch))
        return execute({name: every}, share, options, records.SEARCH_FILE)


def execute(every: dict[str, list[Cell]], share: dict[str, float], options: Options, file: str) -> int:
    """Run the missing ones of these cells, by ablation or search; their records are in `file`. Returns the exit code.

    `share`: the core-minutes expected of each run of which no other seed is recorded.
    """
    done, left_out = records.read(options.records, file)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    todo: dict[str, Cell] = {}
    expected: dict[str, float] = {}
    for name, here in every.items():
        ids = {c.run.id for c in here if not c.done(done)}
        # a cell may start from one whose record is there but whose weights are not: that one is run again
        for cell in reversed(here):  # each comes after the cell that it starts from
            if cell.run.id in ids and cell.run.init and not has_model(options, cell.run.init):
                ids.add(cell.run.init)
        some = [c for c in here if c.run.id in ids]
        for cell, m in zip(some, minutes(some, done, share)):
            label = next((k for k, c in todo.items() if c.run.id == cell.run.id), None)
            if label is None:
                label = f"{name}: {cell.row or f'start {cell.run.id}'}, seed {cell.seed}"
                todo[label], expected[label] = cell, m
            elif cell.diagnose:
                todo[label] = cell
    if not todo:
        print("nothing is missing")
        return 0
    if options.dry_run:
        print(*(f"{cell.run.id}  {expected[label]:5.1f} core-min  {label}" for label, cell in todo.items()), sep="\n")
        print(f"{len(todo)} cells, about {sum(expected.values()):.0f} core-minutes")
        return 0
    from train.start import check_starts  # here, because it loads torch

    runs = {label: cell.run for label, cell in todo.items()}
    check_starts(runs.values(), options.out)
    for run in runs.values():
        if run.init and not has_model(options, run.init):  # its result alone would be taken for a finished run
            (options.out / run.init / "result.json").unlink(missing_ok=True)
    diagnosed = frozenset(cell.run.id for cell in todo.values() if cell.diagnose)
    work = partial(one, out=options.out, diagnosed=diagnosed, smoke=options.smoke)
    unrecorded: dict[str, str] = {}

    def finished(label: str) -> str | None:
        """Add a finished run to the records. Returns why that failed, None where it did not."""
        try:
            records.add(options.records, records.of_run(options.out / runs[label].id, runs[label]), file)
        except (ValueError, KeyError, OSError) as e:
            unrecorded[label] = f"its record could not be written: {e}"
        return unrecorded.get(label)

    launch = in_processes if options.launcher == "here" else in_jobs
    failed = launch(runs, options, work, finished) | unrecorded
    for label, why in failed.items():
        print(f"failed: {label}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(runs)} cells failed; the same command runs them again", file=sys.stderr)
    return 1 if failed else 0


def has_model(options: Options, id: str) -> bool:
    """Whether a run's weights are in the folder of runs, so that another can start from them."""
    home = options.out / id
    return (home / "result.json").exists() and has_weights(home / "model")


def in_processes(
    runs: dict[str, Run], options: Options, work: Callable, finished: Callable[[str], str | None]
) -> dict[str, str]:
    """Run the cells in processes on this machine, with one progress bar. Returns the errors of failed cells."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from train import pool

    console = Console(soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    updates, ended = dict.fromkeys(runs, 0), 0
    with Progress(*columns, TextColumn("eta"), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("updates", total=sum(run.train.steps for run in runs.values()))

        def show(label: str, event: dict) -> None:
            nonlocal ended
            if event.get("stage") == "train":
                updates[label] = event["done"]
            if "finished" in event or "error" in event:
                why = event.get("error") or finished(label)
                if event.get("traceback"):
                    console.print(event["traceback"], markup=False, highlight=False)
                updates[label] = runs[label].train.steps
                ended += 1
                verb = f"failed, {why}" if why else "finished"
                console.print(f"{ended}/{len(runs)}  {label}: {verb}", markup=False, highlight=False)
            progress.update(bar, completed=sum(updates.values()))

        return pool.in_processes(runs, work, options.jobs, show)


def one(run: Run, say, out: Path, diagnosed: frozenset[str], smoke: bool) -> dict:
    """Train and judge one cell in this process, and diagnose it where its ablation asks for it."""
    from eval import diagnose
    from train.run import execute as train

    train(run, out, say, "cpu", f"python -m paper.run  # run {run.id}")
    if run.id in diagnosed and not (out / run.id / "diagnosis.json").exists():
        few: dict[str, Any] = {"items": 8, "batch": 8, "probe_items": 20, "group": 2} if smoke else {}
        write_json(
            out / run.id / "diagnosis.json", diagnose.diagnose(out / run.id, diagnose.Options(out / run.id, **few))
        )
    return {}


def in_jobs(
    runs: dict[str, Run], options: Options, work: Callable, finished: Callable[[str], str | None]
) -> dict[str, str]:
    """Run the cells as submitit's jobs, those that start from each other in one job. Returns the errors of cells."""
    try:
        import submitit
    except ImportError:
        raise UserError(f"--launcher {options.launcher} needs submitit (pip install '.[slurm]')") from None
    executor = submitit.AutoExecutor(options.out / "jobs", cluster=options.launcher)
    executor.update_parameters(timeout_min=options.timeout, cpus_per_task=1, slurm_array_parallelism=options.jobs)
    if options.partition:
        executor.update_parameters(slurm_partition=options.partition)
    chains: dict[str, list[str]] = {}
    for label, run in runs.items():  # in order: a cell comes after the one that it starts from
        start = next((other for other, each in runs.items() if each.id == run.init), label)
        chains.setdefault(next((head for head, chain in chains.items() if start in chain), label), []).append(label)
    failed: dict[str, str] = {}
    waves = list(chains.values())
    for i in range(0, len(waves), options.jobs if options.launcher == "local" else len(waves)):
        part = waves[i : i + options.jobs] if options.launcher == "local" else waves
        jobs = executor.map_array(partial(several, work=work), [[runs[label] for label in w] for w in part])
        for chain, job in zip(part, jobs):
            try:
                errors = job.result()
            except Exception as e:  # submitit raises the job's errors, and its own
                errors = [str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__] * len(chain)
            for label, why in zip(chain, errors):
                if why is None:
                    why = finished(label)
                    print(f"{label}: {f'failed, {why}' if why else 'finished'}", flush=True)
                else:
                    failed[label] = why
    return failed


def several(runs: list[Run], work: Callable) -> list[str | None]:
    """Run cells one after another, in a job. Returns the error of each, None where there is none."""
    from train.pool import one_line
    from train.process import configure_cpu_process

    configure_cpu_process()
    errors: dict[str | None, str | None] = {}
    for run in runs:
        if errors.get(run.init) is not None:
            errors[run.id] = f"its start, {run.init}, failed"
            continue
        try:
            work(run, lambda event: None)
            errors[run.id] = None
        except Exception as e:
            errors[run.id] = one_line(e)
    return list(errors.values())


if __name__ == "__main__":
    sys.exit(main())
