"""Tables and numbers from records: rows with intervals over seeds and items, contrasts with corrected p-values."""

import re
from dataclasses import dataclass, field

import numpy as np

from eval.stats import Difference, bootstrap, holm, interval, paired
from kernels.errors import UserError
from paper import records
from paper.design import Ablation, Cell, Contrast

ACCURACY = "main.accuracy"
ITEMS = {ACCURACY: ("correct",), "pooled.accuracy": ("pooled", "correct")}  # the path of per-item results
FITTED = r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"  # scales wide tables down
SOONER = (
    "Updates to .9: until exact match in training is that high, in a curriculum's last stage; all of them where it "
    "never is. "
)
EXCHANGES = ("mean", "shuffled", "other problem")  # interventions that change nothing where all inputs are equal
NAMES = {  # of a result: its name in tables, and the factor to multiply by
    "main.accuracy": ("accuracy at the hardest level", 1.0),
    "pooled.accuracy": ("accuracy over levels", 1.0),
    "pooled.used": ("latents used over levels", 1.0),
    "sooner": ("updates to .9", 1.0),
    "steps": ("sequential steps", 1.0),
    "flops": ("MFLOP", 1e-6),
    "main.used": ("latents used", 1.0),
    "core_seconds": ("core-s of training", 1.0),
}


@dataclass
class Row:
    """A row of a table: the records of its runs, one for each seed."""

    label: str
    control: bool
    metric: str
    diagnosed: bool
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

    def unit(self, metric: str) -> float | None:
        """The resolution of a metric, None where it is not known: see `eval.stats.paired`."""
        if metric == "sooner":  # it is read off log lines
            return float(min(line["config"]["train"]["log_every"] for line in self.lines))
        if metric == "pooled.used":
            return 1 / min(len(records.unpack(line["result"]["pooled"]["correct"])) for line in self.lines)
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
    contrasts: list[tuple[Contrast, Difference, float]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The name of the ablation's metric."""
        return named(self.ablation.metric)[0]

    @property
    def verdict(self) -> str:
        """Whether the contrasts support the claim: supported, contradicted or not shown."""
        signs = {"more": 1, "less": -1}
        claimed = [(d, p, signs[c.claim]) for c, d, p in self.contrasts if c.claim]
        if any(not none_shown(d, p) and d.mean * sign < 0 for d, p, sign in claimed):
            return "contradicted"
        return "not shown" if any(none_shown(d, p) for d, p, _ in claimed) else "supported"

    @property
    def seeds(self) -> int:
        return min(len(row.lines) for row in self.rows.values())

    @property
    def items(self) -> int:
        """The number of problems behind each run's metric."""
        row = next(iter(self.rows.values()))
        return row.results(metric=self.ablation.metric if self.ablation.metric in ITEMS else ACCURACY).shape[1]


def named(result: str) -> tuple[str, float]:
    """A result's name in tables, and the factor to multiply it by."""
    return NAMES.get(result, (result, 1.0))


def gather(name: str, ablation: Ablation, cells: list[Cell], lines: dict[str, dict], n_boot: int) -> Table:
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
    for c in cells:
        if c.row is None:
            continue
        line = lines[c.run.id]
        line = line | {"result": line["result"] | {"core_seconds": seconds(line, lines)}}
        rows.setdefault(c.row, Row(c.row, c.control, ablation.metric, c.diagnose, [])).lines.append(line)
    problems = {line["result"]["pooled"]["problems"] for row in rows.values() for line in row.lines}
    if len(problems) > 1:
        raise UserError(f"table {name}: its runs were judged on different problems")
    order = sorted(rows.values(), key=lambda row: row.control)
    table = Table(name, ablation, {row.label: row for row in order}, n_boot)
    for row in order:
        row.interval = (interval if ablation.metric in ITEMS else bootstrap)(row.results(), n_boot)
    differences = []
    for contrast in ablation.contrasts:
        for label in (contrast.a, contrast.b):
            if label not in rows:
                raise UserError(f"table {name}: no row {label!r}; there are {', '.join(rows)}")
        a = rows[contrast.a].results(contrast.steps, contrast.metric)
        b = rows[contrast.b].results(contrast.steps_b or contrast.steps, contrast.metric)
        unit = rows[contrast.a].unit(contrast.metric or ablation.metric)
        differences.append(paired(a, b, n_boot, unit=unit))
    table.contrasts = list(zip(ablation.contrasts, differences, holm([d.p for d in differences])))
    return table


def seconds(line: dict, lines: dict[str, dict]) -> float:
    """Core-seconds of a run's training, with those of the runs that it started from."""
    start = line["identity"].get("init")
    return line["result"]["core_seconds"] + (seconds(lines[start], lines) if start in lines else 0.0)


def effect(d: Difference, p: float, metric: str = ACCURACY) -> str:
    """A difference in words: an effect only where both the interval and the corrected p-value show one."""
    unit = " points" if metric in ITEMS else f" {named(metric)[0]}"
    numbers = f"{points(d.mean, metric)}{unit}, 95 % interval {points(d.low, metric)} to {points(d.high, metric)}"
    if none_shown(d, p):
        return f"no effect shown ({numbers}, Holm p = {p:.2g})"
    return f"{numbers}, Holm p {'<' if p < 0.001 else '='} {max(p, 0.001):.2g}"


def none_shown(d: Difference, p: float) -> bool:
    """Whether the interval or the corrected p-value does not exclude that there is no effect."""
    return p > 0.05 or d.low <= 0 <= d.high


def points(x: float, metric: str = ACCURACY) -> str:
    """A difference as text, of accuracies in percentage points; never a negative zero."""
    text = f"{100 * x:+.1f}" if metric in ITEMS else f"{x:+.3g}" if abs(x) < 100 else f"{x:+.0f}"
    return text if float(text) else "0.0"


def amount(row: Row, name: str) -> str:
    """A mean over seeds as text: accuracies with three decimals, counts of updates with none, others with one."""
    return f"{row.mean(name) * named(name)[1]:,.{3 if name in ITEMS else 0 if name == 'sooner' else 1}f}"


def caption(table: Table) -> str:
    """The caption: claim, verdict, metric, numbers of problems and seeds, and curricula that did not end."""
    left = {row.label: row.mean("steps_written") for row in table.rows.values() if row.unfinished}
    still = "; ".join(f"{label} still writes {steps:.1f} steps of the chain" for label, steps in left.items())
    what = table.metric[0].upper() + table.metric[1:]
    return (
        f"Claim: {table.ablation.claim} By these runs: {table.verdict}. {reworded(table.ablation)}{what}, greedy, with "
        f"the 95 % interval of the two-level bootstrap over {table.seeds} seeds and {table.items} held-out problems; "
        "contrasts on the same problems, p-values corrected for their number (Holm). Core-seconds include those of a "
        "run's start. "
        + (SOONER if "sooner" in table.ablation.costs else "")
        + "Controls are in italics."
        + (f" Note: {still}." if still else "")
    )


def reworded(ablation: Ablation) -> str:
    """A sentence with the first wording of a claim that was reworded, or nothing."""
    if ablation.first_claim is None:
        return ""
    return f"Reworded after some of its runs were seen; before them it read: {ablation.first_claim} "


def body(table: Table) -> tuple[list[list[str]], list[list[str]]]:
    """Rows and contrasts as text, each with its head first."""
    head = ["", table.metric, "95 % interval", "latents", *(named(c)[0] for c in table.ablation.costs)]
    rows = [head]
    for row in table.rows.values():
        costs = [amount(row, c) for c in table.ablation.costs]
        interval = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
        rows.append([row.label, f"{row.value:.3f}", interval, f"{row.mean('main.used'):.1f}", *costs])
    below = [["contrast", "difference", "95 % interval", "Holm p", ""]]
    for contrast, d, p in table.contrasts:
        metric = contrast.metric or table.ablation.metric
        small = "< 0.001" if p < 0.001 else f"{p:.3f}"
        mean, low, high = (points(x, metric) for x in (d.mean, d.low, d.high))
        what = contrast.name if metric == table.ablation.metric else f"{contrast.name}: {named(metric)[0]}"
        below.append([what, mean, f"{low} to {high}", small, "no effect shown" if none_shown(d, p) else ""])
    return rows, below


def markdown(table: Table) -> str:
    """The table in Markdown."""
    rows, below = body(table)
    controls = {row.label for row in table.rows.values() if row.control}
    lines = [f"{caption(table).replace('Controls are in italics', 'Controls are in *italics*')}\n"]
    for part in (rows, below):
        if len(part) == 1:
            continue
        lines += ["| " + " | ".join(part[0]) + " |", "|" + "---|" * len(part[0])]
        lines += ["| " + " | ".join([f"*{r[0]}*" if r[0] in controls else r[0], *r[1:]]) + " |" for r in part[1:]]
        lines.append("")
    return "\n".join(lines)


def latex(table: Table) -> str:
    """The table in LaTeX."""
    rows, below = body(table)
    controls = {row.label for row in table.rows.values() if row.control}
    out = [
        "\\begin{table}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{tex(caption(table))}}}",
    ]
    out.append(f"\\label{{tab:{table.name}}}")
    for part in (rows, below):
        if len(part) == 1:
            continue
        out += [f"\\sbox0{{\\begin{{tabular}}{{l{'r' * (len(part[0]) - 1)}}}", "\\toprule"]
        out += [" & ".join(map(tex, part[0])) + " \\\\", "\\midrule"]
        for r in part[1:]:
            first = f"\\emph{{{tex(r[0])}}}" if r[0] in controls else tex(r[0])
            out.append(" & ".join([first, *map(tex, r[1:])]) + " \\\\")
        out += ["\\bottomrule", "\\end{tabular}}%", FITTED, "\\medskip", ""]
    return "\n".join([*out, "\\end{table}", ""])


def tex(text: str) -> str:
    """Text as LaTeX: special characters are escaped, minus and less-than signs are set as mathematics."""
    text = re.sub(r"[%&_#$]", lambda match: "\\" + match[0], text.replace("\\", "\\textbackslash "))
    return re.sub(r"(?<![\w.])-(?=[\d ])", "$-$", text.replace("< ", "$<$ "))


def numbers(table: Table) -> dict[str, str]:
    """Every number that a text may quote from a table, by key."""
    values = {f"{table.name}: seeds": str(table.seeds), f"{table.name}: items": f"{table.items:,}"}
    for row in table.rows.values():
        low, high = row.interval
        key = f"{table.name}: {row.label}"
        values[key] = f"{row.value:.3f} ({low:.3f} to {high:.3f})"
        values[f"{key}: latents"] = f"{row.mean('main.used'):.1f}"
        for cost in dict.fromkeys((*NAMES, *table.ablation.costs)):
            values[f"{key}: {cost}"] = amount(row, cost)
        for steps in sorted(row.lines[0]["result"]["sweep"], key=int):
            values[f"{key}: at {steps}"] = f"{row.results(int(steps), ACCURACY).mean():.3f}"
    for contrast, d, p in table.contrasts:
        metric = contrast.metric or table.ablation.metric
        key = f"{table.name}: {contrast.name}" + (f": {contrast.metric}" if contrast.metric else "")
        values[key] = effect(d, p, metric)
    values |= used(table)
    return values


def used(table: Table) -> dict[str, str]:
    """The accuracy lost by each intervention on the latents, by row and kind, with corrected p-values."""
    lost = {}
    for row in table.rows.values():
        if row.diagnosed:
            same = row.lines[0]["config"]["method"]["class"] in ("Pause", "FixedEmbedding")
            causal = [line["diagnosis"]["causal"] for line in row.lines]
            intact = [records.unpack(c["intact"]) for c in causal]
            for kind in causal[0]["interventions"]:
                if same and kind in EXCHANGES:
                    continue
                after = [records.unpack(c["interventions"][kind]["correct"]) for c in causal]
                lost[f"{table.name}: {row.label}: {kind}"] = paired(intact, after, table.n_boot)
    if not lost:
        return {}
    corrected = holm([d.p for d in lost.values()])
    effects = {key: effect(d, p) for (key, d), p in zip(lost.items(), corrected)}
    return effects | {f"{table.name}: items diagnosed": f"{len(intact[0])}"}
