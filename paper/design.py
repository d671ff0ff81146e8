"""What an ablation is: a claim, and the runs that test it. It imports no torch, so that listing them is fast."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from kernels.errors import UserError
from latent.plain import Change, changed
from train.config import Experiment, Run
from train.presets import PRESETS

COSTS = ("steps", "flops", "core_seconds")  # columns beside the metric: two of an answer, one of training
MARGIN = 0.03  # differences of accuracies that count as none where a claim says "same" or "not more"
Axis = dict[str, Change]  # the name of a choice in tables -> the fields that it sets


@dataclass(frozen=True)
class Contrast:
    """The difference a - b between two rows on the same problems.

    `steps`: with this number of latent steps, from the judge's sweep; `steps_b`: that of `b`, None = as `a`. `metric`:
    of another metric than the ablation's. `claim`: the sign that the ablation claims, that the difference is within
    `MARGIN` of none, or that it is not above it; None = nothing.
    """

    a: str
    b: str
    steps: int | None = None
    metric: str | None = None
    steps_b: int | None = None
    claim: Literal["more", "less", "same", "not more"] | None = None

    @property
    def name(self) -> str:
        """Its name in tables and texts."""
        if self.steps_b:
            return f"{self.a}, {self.steps} steps - {self.b}, {self.steps_b} steps"
        return f"{self.a} - {self.b}" + (f", {self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class Control:
    """A control row: a preset with changes; where the preset has several arms, `arm` is the row."""

    change: Change
    base: str = "sim"
    arm: str | None = None


@dataclass(frozen=True)
class Ablation:
    """A claim with the grid that tests it. Cells are the product of the axes, with every seed.

    `metric` and `costs`: dotted names in a run's result, of the claim's metric and of the columns beside it. `arms`:
    the arms that make rows, of a preset with several; without axes they name them. `controls`: names of control rows
    in `CONTROLS`. `core_minutes`: the budget of all cells that no earlier ablation has. `diagnose`: whether its latents
    are used is tested as well. `contrasts`: the differences that the claim rests on. `figure`: accuracies by row,
    against the first two costs, or by latent steps when answering. `registered`: the commit in which the claim stood
    before its runs, None = in none; see `paper.claims`. `needs`: files and folders that its runs read in the working
    folder, which the repository does not have: without them "all" leaves it out.
    """

    claim: str
    base: str
    axes: tuple[Axis, ...]
    core_minutes: float
    controls: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    metric: str = "main.accuracy"
    costs: tuple[str, ...] = COSTS
    diagnose: bool = False
    contrasts: tuple[Contrast, ...] = ()
    figure: Literal["rows", "costs", "sweep"] = "rows"
    registered: str | None = None
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """What its runs need and the working folder does not have."""
        return [name for name in self.needs if not Path(name).exists()]


@dataclass(frozen=True)
class Search:
    """The same search over settings for every arm of a preset, judged on the validation split alone.

    `axes`: the candidates of each arm, as many for all; paths are the arm's ("train.lr"). `seed`: of which no ablation
    has a run. `core_minutes`: the budget of all its cells. All candidates of an arm set the same fields, so that they
    are the same runs once the preset has what was chosen. An arm that starts from another starts from that of the
    preset, and is searched after it.
    """

    base: str
    axes: dict[str, Axis]
    seed: int
    core_minutes: float


@dataclass(frozen=True)
class Cell:
    """One run of an ablation, or a run that another starts from (`row` None).

    `control`: it belongs to a control row. `diagnose`: whether its latents are used is tested as well.
    """

    row: str | None
    seed: int
    run: Run
    control: bool = False
    diagnose: bool = False

    def done(self, records: dict[str, dict]) -> bool:
        """Whether its result, and its diagnosis where it asks for one, are recorded."""
        line = records.get(self.run.id)
        return line is not None and (not self.diagnose or "diagnosis" in line)


def over(path: str, *values) -> Axis:
    """An axis of one field, whose choices are named by their values."""
    return {str(v): {path: v} for v in values}


def cells(ablation: Ablation, controls: dict[str, Control], smoke: bool = False) -> list[Cell]:
    """All cells, each after the cell that it starts from. Equal runs are one cell, whatever their rows are called.

    `smoke`: two seeds of a few updates each, to see that everything runs.
    """
    base = _preset(ablation.base)
    shared = set() if isinstance(base, Run) else _same_everywhere(ablation, base)
    by_id: dict[str, Cell] = {}

    def add(point: Run | Experiment, rows: dict[str, str], control: bool = False) -> None:
        """Add the runs of a point of the grid. `rows`: the names of their rows by arm, of a single run under ""."""
        point = tiny(point) if smoke else point
        for arm, run in ({"": point} if isinstance(point, Run) else wanted(point, tuple(rows))).items():
            old = by_id.get(run.id)
            if old is None or old.row is None:
                diagnose = ablation.diagnose and run.method.thinks
                by_id[run.id] = Cell(rows.get(arm), run.seed, run, control, diagnose)

    for seed in ablation.seeds[:2] if smoke else ablation.seeds:
        for choices in product(*(axis.items() for axis in ablation.axes)):
            point = replace(base, seed=seed)
            for _, change in choices:
                point = changed(point, change)
            label = ", ".join(name for name, _ in choices)
            if isinstance(point, Run):
                add(point, {"": label})
                continue
            shown = ablation.arms or tuple(point.arms)
            alone = len(set(shown) - shared) == 1  # the point's label then names the row
            add(point, {arm: arm if arm in shared else label if alone else f"{label}, {arm}" for arm in shown})
        for name in ablation.controls:
            if name not in controls:
                raise UserError(f"no control {name!r}; there are {', '.join(controls)}")
            control = controls[name]
            point = changed(replace(_preset(control.base), seed=seed), control.change)
            if (control.arm is None) != isinstance(point, Run):
                raise UserError(f"control {name!r}: arm {control.arm!r} of the preset {control.base!r}")
            add(point, {control.arm or "": name}, control=True)
    twice = [key for key, n in Counter((c.row, c.seed) for c in by_id.values() if c.row).items() if n > 1]
    if twice:
        raise UserError(f"two different runs are both called {twice[0][0]!r}, seed {twice[0][1]}")
    return list(by_id.values())


def candidate(arm: str, choice: str) -> str:
    """The row of one candidate of a search."""
    return f"{arm}: {choice}"


def search_cells(name: str, search: Search, ablations: dict[str, Ablation], smoke: bool = False) -> list[Cell]:
    """All cells of a search, each after the cell that it starts from.

    Raises UserError for arms with other numbers of candidates, candidates of one arm that set other fields or are one
    run, and the seed of a table.
    """
    base = _preset(search.base)
    if isinstance(base, Run):
        raise UserError(f"search {name}: preset {search.base!r} is a single run, without arms")
    counts = {arm: len(axis) for arm, axis in search.axes.items()}
    if len(set(counts.values())) != 1:
        numbers = ", ".join(f"{arm} {n}" for arm, n in counts.items())
        raise UserError(f"search {name}: every arm must have as many candidates as the others, got {numbers or 'none'}")
    for arm, axis in search.axes.items():
        if len({frozenset(change) for change in axis.values()}) > 1:
            raise UserError(f"search {name}: all candidates of {arm!r} must set the same fields")
    if taken := [other for other, ablation in ablations.items() if search.seed in ablation.seeds]:
        raise UserError(f"search {name}: seed {search.seed} is one of the ablation {taken[0]!r}; take another")
    base = replace(base, seed=search.seed, judge=replace(base.judge, split="valid", sweep=()))
    by_id: dict[str, Cell] = {}
    for arm, axis in search.axes.items():
        for choice, change in axis.items():
            point = changed(base, {f"arms.{arm}.{path}": value for path, value in change.items()})
            for other, run in wanted(tiny(point) if smoke else point, (arm,)).items():
                row = candidate(arm, choice) if other == arm else None
                old = by_id.get(run.id)
                if row and old and old.row:
                    raise UserError(f"search {name}: {old.row!r} and {row!r} are one and the same run")
                if old is None or row:
                    by_id[run.id] = Cell(row, run.seed, run)
    return list(by_id.values())


def _preset(name: str) -> Run | Experiment:
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def _same_everywhere(ablation: Ablation, base: Experiment) -> set[str]:
    """The arms that are one and the same run at every point of the grid: without axes, all of them."""
    if not ablation.axes:
        return set(base.arms)
    points = []
    for choices in product(*(axis.values() for axis in ablation.axes)):
        point = base
        for change in choices:
            point = changed(point, change)
        points.append(point.runs())
    return {arm for arm in base.arms if len(points) > 1 and len({runs[arm].id for runs in points}) == 1}


def wanted(experiment: Experiment, arms: tuple[str, ...]) -> dict[str, Run]:
    """The runs of arms, after those of the arms that they start from."""
    needed = set()
    for arm in arms:
        name: str | None = arm
        while name is not None and name not in needed:
            if name not in experiment.arms:
                raise UserError(f"no arm {name!r}; there are {', '.join(experiment.arms)}")
            needed.add(name)
            init = experiment.arms[name].init
            name = init if init in experiment.arms else None
    return {name: run for name, run in experiment.runs().items() if name in needed}


def tiny(config):
    """A run, an experiment or an arm, reduced to a few updates and problems."""
    if isinstance(config, Run | Experiment):
        config = replace(config, judge=replace(config.judge, items=12, level_items=2, batch=12))
    if isinstance(config, Experiment):
        return replace(config, arms={name: tiny(arm) for name, arm in config.arms.items()})
    small = {"steps": 3, "batch": 4, "log_every": 3}
    if hasattr(config.train, "group"):
        small |= {"steps": 2, "batch": 2, "group": 4}
    return replace(config, method=config.method.small(), train=replace(config.train, **small))
