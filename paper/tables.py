"""Tables from records: rows with intervals over seeds and items, contrasts with corrected p-values."""

from dataclasses import dataclass, field

import numpy as np

from eval.stats import Difference, bootstrap, holm, interval, paired
from kernels.errors import UserError
from paper import records
from paper.claims import Registration
from paper.design import MARGIN, Ablation, Cell, Contrast
from train.report import told

ACCURACY = "main.accuracy"
ITEMS = {ACCURACY: ("correct",), "pooled.accuracy": ("pooled", "correct")}  # the path of per-item results
SHARES = {*ITEMS, "exchanged"}  # what is shown with three decimals, and its differences in points
FLOOR, CEILING = 0.2, 0.98  # accuracies beyond which arms can hardly be told apart
AGREE = 0.01  # the widest spread of accuracies of seeds that agree
NAMES = {  # of a result: its name in tables, and the factor to multiply by
    "main.accuracy": ("accuracy at the hardest level", 1.0),
    "pooled.accuracy": ("accuracy over levels", 1.0),
    "pooled.used": ("latents used over levels", 1.0),
    "sooner": ("updates to .9", 1.0),
    "exchanged": ("share of answers as the donor's", 1.0),
    "steps": ("sequential steps", 1.0),
    "flops": ("MFLOP", 1e-6),
    "main.used": ("latents used", 1.0),
    "core_seconds": ("core-s of training", 1.0),
}


@dataclass
class Row:
    """A row of a table: the records of its runs, one for each seed. `told`: what training told of a problem."""

    label: str
    control: bool
    metric: str
    diagnosed: bool
    told: str
    lines: list[dict]
    interval: tuple[float, float] = (0.0, 0.0)

    def results(self, steps: int | None = None, metric: str | None = None) -> np.ndarray:
        """The values of a metric: 0/1 (S, N) by seed and problem for accuracies, (S, 1) by seed for other metrics.

        `steps`: with this number of latent steps, from the judge's sweep. Raises UserError for a number that was not
        swept, and for metrics other than accuracy.
        """
        metric = metric or self.metric
        if metric != ACCURACY and steps is not None:
            raise UserError(f"{self.label}: only accuracy was swept over latent steps, not {metric}")
        if metric not in ITEMS:
            return named(metric)[1] * np.array([[value] for value in self.each(metric)])
        results = [line["result"] for line in self.lines]
        for part in ITEMS[metric][:-1]:
            results = [result[part] for result in results]
        if steps is not None:
            if any(str(steps) not in r["sweep"] and steps != r["latents"] for r in results):
                raise UserError(f"{self.label}: not all of its runs were judged at {steps} latent steps")
            results = [r["sweep"].get(str(steps), r) for r in results]
        return np.array([records.unpack(r["correct"]) for r in results])

    def clusters(self, metric: str | None = None) -> list[int] | None:
        """The cluster of each problem behind a metric, of accuracies; None where each is alone, as in old records."""
        if (metric or self.metric) not in ITEMS:
            return None
        parts = [line["result"] for line in self.lines]
        for name in ITEMS[metric or self.metric][:-1]:
            parts = [part[name] for part in parts]
        packed = next((part["clusters"] for part in parts if "clusters" in part), None)
        return None if packed is None else records.unpack_clusters(packed)

    def level_items(self, level: str) -> slice:
        """Where the problems of a level are in the pooled results."""
        sizes = records.pooled_sizes(self.lines[0]["result"]["levels"])
        first = sum(sizes[other] for other in sizes if int(other) < int(level))
        return slice(first, first + sizes[level])

    def at_level(self, level: str) -> np.ndarray:
        """0/1 (S, N) by seed and problem at a level: those of its problems that are in the pooled results."""
        return self.results(metric="pooled.accuracy")[:, self.level_items(level)]

    @property
    def seeds_agree(self) -> bool:
        """Whether the accuracies of several seeds are all but the same."""
        return self.metric in ITEMS and len(self.lines) > 1 and float(np.ptp(self.results().mean(1))) <= AGREE + 1e-9

    def unit(self, metric: str) -> float | None:
        """The resolution of a metric, None where it is not known: see `eval.stats.paired`."""
        if metric == "sooner":  # it is read off log lines
            return float(min(line["config"]["train"]["log_every"] for line in self.lines))
        if metric == "pooled.used":
            return 1 / min(len(records.unpack(line["result"]["pooled"]["correct"])) for line in self.lines)
        if metric == "exchanged":
            return 1 / min(line["diagnosis"]["causal"]["interchange"]["pairs"] for line in self.lines)
        return None

    @property
    def value(self) -> float:
        """The mean of the ablation's metric over seeds and problems."""
        return float(self.results().mean())

    def mean(self, name: str) -> float:
        """The mean over seeds of a number in the result, by dotted name."""
        values = self.each(name)
        return sum(values) / len(values)

    @property
    def unfinished(self) -> bool:
        """Whether a curriculum did not end: the model still writes steps that it should think."""
        return self.lines[0]["config"]["method"]["class"] != "CoT" and self.mean("steps_written") > 0

    def each(self, name: str) -> list[float]:
        """A number in the result, by dotted name, seed by seed."""
        values = []
        for line in self.lines:
            value = line["result"]
            for part in name.split("."):
                if part not in value:
                    raise UserError(f"{self.label}: run {line['id']} has no result {name!r}")
                value = value[part]
            values.append(value)
        return values


@dataclass
class Table:
    """An ablation with its records."""

    name: str
    ablation: Ablation
    rows: dict[str, Row]
    n_boot: int
    registration: Registration | None = None
    contrasts: list[tuple[Contrast, Difference, float]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The name of the ablation's metric; of no level where all problems are of one."""
        one = self.ablation.metric == ACCURACY and all(len(levels) == 1 for levels in self.levels)
        return "accuracy" if one else named(self.ablation.metric)[0]

    @property
    def levels(self) -> list[dict]:
        """The results by level of each run, empty where its record has none."""
        return [line["result"].get("levels", {}) for row in self.rows.values() for line in row.lines]

    @property
    def verdict(self) -> str:
        """Whether the contrasts support the claim: supported, contradicted or not shown, by the worst of them; and of
        how many it is not the worst, where they differ."""
        verdicts = [judged(c.claim, d, p) for c, d, p in self.contrasts if c.claim]
        worst = next((worst for worst in ("contradicted", "not shown") if worst in verdicts), "supported")
        n = verdicts.count("supported")
        return f"{worst} ({n} of {len(verdicts)} differences as claimed)" if n and worst != "supported" else worst

    @property
    def end(self) -> str | None:
        """The end of the scale at which all arms (rows that are no controls) are by the metric; None for neither."""
        values = [row.value for row in self.rows.values() if not row.control]
        if self.ablation.metric not in ITEMS or len(values) < 2:
            return None
        return f"under {FLOOR}" if max(values) < FLOOR else f"over {CEILING}" if min(values) > CEILING else None

    @property
    def telling_level(self) -> str | None:
        """The level at which arms differ most, the hardest of several; None unless they are all at an end of the scale
        by the metric, and where their records do not share several levels."""
        arms = [row for row in self.rows.values() if not row.control]
        shared = set.intersection(*map(set, self.levels)) if self.end else set()
        spread = {}
        for level in sorted(shared, key=int) if len(shared) > 1 else ():
            means = [row.mean(f"levels.{level}.accuracy") for row in arms]
            spread[level] = max(means) - min(means)
        widest = max(spread, key=lambda level: (spread[level], int(level)), default=None)
        return widest if widest is not None and spread[widest] > 0 else None

    @property
    def reworded(self) -> bool:
        """Whether the claim is worded otherwise than where it was registered."""
        return self.registration is not None and self.registration.claim != self.ablation.claim

    @property
    def seeds(self) -> int:
        return min(len(row.lines) for row in self.rows.values())

    @property
    def items(self) -> int:
        """The number of problems behind each run's metric."""
        row = next(iter(self.rows.values()))
        return row.results(metric=self.ablation.metric if self.ablation.metric in ITEMS else ACCURACY).shape[1]

    @property
    def problems(self) -> str:
        """The problems behind each run's metric in words, and in how many clusters they are where they share some."""
        first = next(iter(self.rows.values()))
        together = first.clusters(self.ablation.metric if self.ablation.metric in ITEMS else ACCURACY)
        inside = f" in {len(set(together))} clusters that stand or fall together" if together else ""
        return f"{self.items} held-out problems{inside}"


def named(result: str) -> tuple[str, float]:
    """A result's name in tables, and the factor to multiply it by."""
    return NAMES.get(result, (result, 1.0))


def gather(
    name: str, ablation: Ablation, cells: list[Cell], lines: dict[str, dict], n_boot: int,
    registration: Registration | None = None,
) -> Table:  # fmt: skip
    """The table of an ablation. Raises UserError naming a cell whose record is missing."""
    missing = [c for c in cells if not c.done(lines)]
    if missing:
        c = missing[0]
        lacks = "no record" if c.run.id not in lines else "no diagnosis"
        raise UserError(
            f"table {name}: {lacks} of {c.row or 'a start'!r}, seed {c.seed} (run {c.run.id}) and {len(missing) - 1} "
            f"more; python -m paper.run {name}"
        )
    rows: dict[str, Row] = {}
    runs = {c.run.id: c.run for c in cells}
    for c in cells:
        if c.row is None:
            continue
        line = lines[c.run.id]
        line = line | {"result": line["result"] | {"core_seconds": seconds(line, lines)}}
        row = Row(c.row, c.control, ablation.metric, c.diagnose, told(c.run, runs), [])
        rows.setdefault(c.row, row).lines.append(line)
    judged = [line for row in rows.values() for line in row.lines]
    if searched := [x for x in judged if x["config"]["judge"].get("split") == "valid"]:
        raise UserError(f"table {name}: run {searched[0]['id']} was judged on the validation split")
    problems = {line["result"]["pooled"]["problems"] for line in judged}
    if len(problems) > 1:
        raise UserError(f"table {name}: its runs were judged on different problems")
    order = sorted(rows.values(), key=lambda row: row.control)
    table = Table(name, ablation, {row.label: row for row in order}, n_boot, registration)
    for row in order:
        if ablation.metric in ITEMS:
            row.interval = interval(row.results(), n_boot, row.clusters())
        else:
            row.interval = bootstrap(row.results(), n_boot)
    differences = []
    for contrast in ablation.contrasts:
        for label in (contrast.a, contrast.b):
            if label not in rows:
                raise UserError(f"table {name}: no row {label!r}; there are {', '.join(rows)}")
        a = rows[contrast.a].results(contrast.steps, contrast.metric)
        b = rows[contrast.b].results(contrast.steps_b or contrast.steps, contrast.metric)
        unit = rows[contrast.a].unit(contrast.metric or ablation.metric)
        together = rows[contrast.a].clusters(contrast.metric) or rows[contrast.b].clusters(contrast.metric)
        differences.append(paired(a, b, n_boot, unit=unit, clusters=together))
    table.contrasts = list(zip(ablation.contrasts, differences, holm([d.p for d in differences])))
    return table


def seconds(line: dict, lines: dict[str, dict]) -> float:
    """Core-seconds of a run's training, with those of the runs that it started from."""
    start = line["identity"].get("init")
    return line["result"]["core_seconds"] + (seconds(lines[start], lines) if start in lines else 0.0)


def judged(claim: str, d: Difference, p: float) -> str:
    """Whether a difference supports what is claimed of it.

    "same" is supported where the whole interval is within `MARGIN` of none, which is the test of equivalence at half of
    the interval's level or less (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657); "not more" is one side of it.
    """
    if claim in ("same", "not more"):
        least = -MARGIN if claim == "same" else -float("inf")
        within = d.low >= least and d.high <= MARGIN
        beyond = d.low > MARGIN or d.high < least
        return "supported" if within else "contradicted" if beyond else "not shown"
    if none_shown(d, p):
        return "not shown"
    return "supported" if (d.mean > 0) == (claim == "more") else "contradicted"


def none_shown(d: Difference, p: float) -> bool:
    """Whether the interval or the corrected p-value does not exclude that there is no effect."""
    return p > 0.05 or d.low <= 0 <= d.high
