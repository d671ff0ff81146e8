"""The output of the main job: progress while arms run, then the table and the figure, from records and latencies."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eval.stats import mcnemar, paired
from latent.cli import aligned
from latent.config import TOLD
from latent.files import write_json, write_text
from train.config import RLVR, Run
from train.record import Record, cpu

SHOWN = ("loss", "exact", "stage", "reward", "correct", "flat_groups", "used", "step_exact")


class Screen:
    """Shows a bar with an ETA for each stage and a line for each logging step; without a terminal only the lines."""

    def __init__(self):
        self.console = Console(soft_wrap=True)
        columns = (TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), console=self.console
        )
        self.bars: dict[tuple, TaskID] = {}
        self.began: dict[tuple, tuple[float, int]] = {}

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def show(self, arm: str, event: dict) -> None:
        if "finished" in event:
            for bar in (bar for (owner, _), bar in self.bars.items() if owner == arm):
                self.progress.update(bar, visible=False)
            verb = "finished" if event["new"] else "was finished before"
            self.console.print(f"[{arm}] {verb}: run {event['finished']}", markup=False, highlight=False)
            return
        if event["stage"] == "note":
            self.console.print(f"[{arm}] note: {event['said']}", markup=False, highlight=False)
            return
        key, done, total = (arm, event["stage"]), event["done"], event["total"]
        if key not in self.bars:
            self.bars[key] = self.progress.add_task(f"{arm} · {event['stage']}", total=total)
            self.began[key] = (time.monotonic(), done)
        self.progress.update(self.bars[key], completed=done, visible=done < total)
        if "metrics" in event:
            began, first = self.began[key]
            left = (time.monotonic() - began) / max(1, done - first) * (total - done)
            named = " ".join(f"{k} {event['metrics'][k]:.3g}" for k in SHOWN if k in event["metrics"])
            line = f"[{arm}] {event['stage']} {done}/{total} {named} eta {int(left) // 60}:{int(left) % 60:02d}"
            self.console.print(line, markup=False, highlight=False)


@dataclass
class Row:
    """One arm's line of the table."""

    arm: str
    run: Run
    result: dict
    latency: dict[int, float] = field(default_factory=dict)


def publish(
    name: str, runs: dict[str, Run], out: Path, latency_on: str | None, seconds: float, papers: list[str]
) -> None:
    """Print the table and its notes, and write them with the figure into OUT/NAME-ID/.

    `latency_on`: the device to measure an answer's latency on, None = not at all. `papers`: published numbers.
    """
    rows = []
    for arm, run in runs.items():
        result = Record(out, run).result
        assert result is not None, f"{arm} has not finished"
        rows.append(Row(arm, run, result))
    timed_on = None if latency_on is None else measure(rows, out, latency_on)
    folder = out / f"{name}-{blake2b(' '.join(r.run.id for r in rows).encode(), digest_size=4).hexdigest()}"
    folder.mkdir(parents=True, exist_ok=True)
    table, remarks = lines(rows), [*notes(rows, seconds, timed_on), *papers]
    saved = [{"arm": r.arm, "run": r.run.id, "latency": r.latency} for r in rows]
    write_json(folder / "table.json", {"rows": saved, "cpu": cpu(), "latency_on": timed_on, "seconds": seconds})
    write_text(folder / "table.md", markdown(table) + "\n" + "".join(f"* {r}\n" for r in remarks))
    figure(rows, folder / "figure.png")
    print("", *printed(rows), "", *remarks, f"{folder}/table.md, {folder}/figure.png", sep="\n")


def ruled(table: list[list[str]]) -> list[str]:
    """A table as lines of text, with a rule under its head."""
    head, *rows = aligned(table)
    return [head, "-" * len(head), *rows]


WIDTH = 100  # columns of a terminal that the table must fit into
NAME_WIDTH = 30  # of them for the name of an arm


def printed(rows: list[Row]) -> list[str]:
    """The table for a terminal, no wider than `WIDTH` columns: results, what each arm was told, then costs."""
    head, *body = lines(rows)
    short = [line[0] if len(line[0]) <= NAME_WIDTH else line[0][: NAME_WIDTH - 3] + "..." for line in body]
    where = {name: i for i, name in enumerate(head)}
    results = [name for name in RESULTS if name in where]
    costs = [name for name in COSTS if name in where]
    out = ruled([["arm", *results], *([name, *(line[where[k]] for k in results)] for name, line in zip(short, body))])
    arms = list(zip(short, body))[: len(rows)]
    told = ruled([["arm", "told"], *([name, line[where["told"]]] for name, line in arms)])
    return [
        *out,
        "",
        *told,
        "",
        *ruled([["arm", *costs], *([name, *(line[where[k]] for k in costs)] for name, line in arms)]),
    ]


def measure(rows: list[Row], out: Path, device: str) -> str:
    """Measure the latency of every arm in turn, while none of our processes runs. Returns what it was measured on."""
    import torch

    from eval import environments
    from eval.cost import latency
    from latent import load

    torch.set_num_threads(1)
    env = environments.build(rows[0].run.env)
    questions = [p.question for p in env.problems("test", env.main_level, 64)]
    for row in rows:
        reasoner, bf16 = load(out / row.run.id, device), row.run.model.bf16
        row.latency = {batch: latency(reasoner, questions, batch, bf16=bf16) for batch in (1, 64)}
    if device == "cpu":
        return "one thread"
    return f"one {torch.cuda.get_device_name() if device == 'cuda' else device}, from idle to idle"


OVER_LEVELS = ("accuracy, levels", "latents, levels")
RESULTS = ("accuracy", "95 % interval", OVER_LEVELS[0], "latents", OVER_LEVELS[1])
COSTS = ("steps", "MFLOP", "ms, batch 1", "ms, batch 64", "core-s", "run")


def lines(rows: list[Row]) -> list[list[str]]:
    """The table: its head, a line for each arm, then the floors."""
    several = len(rows[0].result["levels"]) > 1
    over = [name for name in OVER_LEVELS if several]
    head = ["arm", "told", *RESULTS[:2], "items", *over[:1], "latents", *over[1:], *COSTS]
    table, by_id = [head], {row.run.id: row.run for row in rows}
    for row in rows:
        r, main = row.result, row.result["main"]
        levels = [level["accuracy"] for level in r["levels"].values()]
        used = [*([f"{sum(levels) / len(levels):.3f}"] if several else []), f"{main['used']:.2f}"]
        used += [f"{r['used_mean']:.2f}"] if several else []
        ms = [f"{1000 * row.latency[b]:.1f}" if row.latency else "-" for b in (1, 64)]
        share = [f"{main['accuracy']:.3f}", f"{main['low']:.3f}-{main['high']:.3f}", str(main["n"])]
        cost = [f"{r['steps']:.1f}", f"{r['flops'] / 1e6:.2f}", *ms, f"{r['core_seconds']:.0f}", row.run.id]
        table.append([row.arm, told(row.run, by_id), *share, *used, *cost])
    for name, value in rows[0].result["floors"].items():
        table.append([f"floor: {name}", "", f"{value:.3f}", *[""] * (len(head) - 3)])
    return table


def told(run: Run, by_id: Mapping[str, Run]) -> str:
    """What training told of a problem beside its question, first in the run that it starts from; the same once."""
    return ", then ".join(tellings(run, by_id))


def tellings(run: Run, by_id: Mapping[str, Run]) -> list[str]:
    """The same, one by one."""
    own = "a verifier" if isinstance(run.train, RLVR) else TOLD[run.method.learns_from]
    own += f" of {run.train.problems}" if run.train.problems else ""
    start = by_id.get(run.init or "")
    before = tellings(start, by_id) if start else []
    return before if before[-1:] == [own] else [*before, own]


HELD_OUT = {"test": "held-out", "valid": "validation"}


def notes(rows: list[Row], seconds: float, timed_on: str | None) -> list[str]:
    """Notes under the table: differences between arms that share a start, sweeps, conditions of measurement."""
    by_id: dict[str | None, Row] = {row.run.id: row for row in rows}
    remarks = []
    for row in rows:
        start = by_id.get(row.run.init)
        if start:
            remarks.append(compared(row, start))
            others = [r for r in rows if r.run.init == row.run.init and r is not row]
            remarks += [compared(row, other) for other in others if row.arm < other.arm]
        if not row.run.method.chain_share and row.result["steps_written"]:
            remarks.append(f"{row.arm} still writes {row.result['steps_written']} steps: its curriculum did not end")
        if chosen := row.result.get("selected"):
            remarks.append(
                f"{row.arm}: weights of update {chosen['step']}, best on the validation split, {chosen['valid']:.3f}"
            )
        if row.result["sweep"]:
            swept = by_steps(row.result)
            by_k = ", ".join(f"{k}: {swept[k]['accuracy']:.3f}" for k in sorted(swept, key=int))
            remarks.append(f"{row.arm}, accuracy by latent steps when answering: {by_k}")
    first = rows[0].run
    together = next((row.result["clusters"] for row in rows if row.result.get("clusters")), None)
    timed = f"ms: wall time of a whole batch, {timed_on}; " if timed_on else ""
    over = "items"
    if together is not None:
        over = f"{max(together) + 1} clusters of items that stand or fall together (Wilson's, with the design effect)"
    remarks.append(
        f"Greedy, {HELD_OUT[first.judge.split]} problems of the hardest level, Wilson intervals over {over}, one "
        f"training seed ({first.seed}). accuracy and latents: at the hardest level, and the mean over levels; steps: "
        f"forward passes in sequence an answer; {timed}core-s: CPU seconds of training, its start's not included. "
        f"{cpu()}; this command took {seconds / 60:.1f} min."
    )
    return remarks


def by_steps(result: dict) -> dict[str, dict]:
    """The sweep's summaries by the latent steps that were allowed, with that of as many as in training."""
    return {str(result["latents"]): result["main"], **result["sweep"]}


def compared(row: Row, other: Row) -> str:
    """The paired difference between two arms on the same problems."""
    a, b = row.result["correct"], other.result["correct"]
    together = row.result.get("clusters") or other.result.get("clusters")
    d, p = paired(a, b, n_boot=2000, clusters=together), mcnemar(a, b, together)
    over = "items" if together is None else "clusters of items"
    return (
        f"{row.arm} - {other.arm}: {100 * d.mean:+.1f} points, paired 95 % interval "
        f"{100 * d.low:+.1f} to {100 * d.high:+.1f} over {over}, McNemar p = {p:.2g}; core-seconds of training "
        f"{row.result['core_seconds']:.0f} and {other.result['core_seconds']:.0f}"
    )


def markdown(table: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |\n" for line in table]
    return head + "|" + "---|" * len(table[0]) + "\n" + "".join(body)


STYLES = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#555555", "^", ":"),
    ("#CC79A7", "v", (0, (5, 1))),
    ("#56B4E9", "P", (0, (1, 1))),
    ("#009E73", "D", "-."),
]


def figure(rows: list[Row], path: Path) -> None:
    """Accuracy by level, or by latent steps where they were swept; latents used by level, where they vary; and accuracy
    against sequential steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    swept = any(row.result["sweep"] for row in rows)
    curves = [row.result["levels"] for row in rows]
    if swept:
        curves = [by_steps(row.result) for row in rows]
    wide = max(map(len, curves)) > 1
    thrifty = wide and not swept and any(len({round(y["used"], 1) for y in curve.values()}) > 1 for curve in curves)
    panels = 1 + wide + thrifty
    fig, axes = plt.subplots(1, panels, figsize=(1 + 4.2 * panels, 3.6), squeeze=False, layout="constrained")
    *by_level, cost = axes[0]
    for i, row in enumerate(rows):
        colour, mark, dash = STYLES[i % len(STYLES)]
        look = {"color": colour, "marker": mark, "ms": 4, "label": row.arm}
        xs = sorted(map(int, curves[i]))
        shifted = [x + 0.06 * (i - (len(rows) - 1) / 2) for x in xs]  # side by side, so that no interval hides another
        ys = [curves[i][str(x)] for x in xs]
        if wide:
            by_level[0].errorbar(shifted, [y["accuracy"] for y in ys], _errors(ys), ls=dash, capsize=2, **look)
        if thrifty:
            by_level[1].plot(shifted, [y["used"] for y in ys], ls=dash, **look)
        main = row.result["main"]
        cost.errorbar([row.result["steps"]], [main["accuracy"]], _errors([main]), ls="", capsize=3, **look)
    for ax in [*by_level[:1], cost]:
        ax.set_ylim(-0.03, 1.05)
        for value in rows[0].result["floors"].values():
            ax.axhline(value, color="#999999", lw=0.8, ls=(0, (1, 2)))
    for name, value in rows[0].result["floors"].items():
        cost.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    for ax, what in zip(by_level, ("accuracy", "mean latents used")):
        ax.set(xlabel="latent steps when answering" if swept else "level", ylabel=what)
    cost.set(xlabel="sequential steps an answer", ylabel="accuracy, hardest level")
    cost.set_xlim(0, 1.15 * max(row.result["steps"] for row in rows))
    for ax in axes[0]:
        ax.legend(fontsize=8, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def _errors(points: list[dict]) -> list[list[float]]:
    """Distances from the accuracies to the ends of their intervals."""
    return [[p["accuracy"] - p["low"] for p in points], [p["high"] - p["accuracy"] for p in points]]
