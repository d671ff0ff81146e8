"""Figures from tables, as PDF and PNG, with the colours of Okabe and Ito, and marks that are told apart in grey."""

from functools import cache
from pathlib import Path

from eval.stats import interval
from paper import records
from paper.tables import ACCURACY, ITEMS, Row, Table, named

STYLES = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "D", "-."),
    ("#CC79A7", "v", ":"),
    ("#56B4E9", "P", "-"),
]
BLANK = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "png": {"Software": None},
}  # same bytes each time
GREY = "#777777"
INTERVENTIONS = ("removed", "zeroed", "mean", "noise", "shuffled", "other problem")


def draw(table: Table, folder: Path) -> list[Path]:
    """Draw an ablation's figure, and that of its diagnoses where it has any. Returns the paths of the PDFs."""
    made = [{"rows": rows, "costs": costs, "sweep": sweep}[table.ablation.figure](table)]
    names = [table.name]
    if any(row.diagnosed for row in table.rows.values()):
        made.append(diagnosis(table))
        names.append(f"{table.name}-use")
    return [save(fig, folder, name) for fig, name in zip(made, names)]


def save(fig, folder: Path, name: str) -> Path:
    """Write a figure as PDF and PNG, and close it. Returns the path of the PDF."""
    for kind, blank in BLANK.items():
        fig.savefig(folder / f"{name}.{kind}", dpi=160, metadata=blank)
    pyplot().close(fig)
    return folder / f"{name}.pdf"


@cache
def pyplot():
    """Matplotlib's pyplot, set up so that the same figure is the same file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager

    # only matplotlib's own fonts: a system's versions of them may differ, and so would the files
    fontManager.ttflist = []
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        fontManager.addfont(path)
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})
    return plt


def rows(table: Table):
    """A dot and an interval for each row, a tick for each seed; controls are hollow."""
    shown = list(table.rows.values())[::-1]
    fig, ax = pyplot().subplots(figsize=(5.2, 0.9 + 0.27 * len(shown)), layout="constrained")
    for y, row in enumerate(shown):
        low, high = row.interval
        colour = GREY if row.control else STYLES[0][0]
        ax.plot([low, high], [y, y], color=colour, lw=2)
        ax.plot(row.results().mean(1), [y] * len(row.lines), "|", color=colour, ms=9, alpha=0.7)
        ax.plot(row.value, y, "o", color=colour, mfc="white" if row.control else colour, ms=6)
    ax.set_yticks(range(len(shown)), [row.label for row in shown])
    ax.set_xlabel(table.metric)
    if table.ablation.metric in ITEMS:
        ax.set_xlim(-0.02, 1.02)
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    return fig


def costs(table: Table):
    """Accuracy against the first two costs: a named mark for each row."""
    names = table.ablation.costs[:2]
    size = (0.4 + 3.5 * len(names), 3.4)
    fig, axes = pyplot().subplots(1, len(names), figsize=size, layout="constrained", sharey=True, squeeze=False)
    places = [{row.label: (row.mean(c) * named(c)[1], row.value) for row in table.rows.values()} for c in names]
    for ax, name, at in zip(axes[0], names, places):
        wide = max(x for x, _ in at.values())
        for i, row in enumerate(table.rows.values()):
            n = len(STYLES)
            colour, mark = (GREY, "x") if row.control else (STYLES[i % n][0], STYLES[(i + i // n) % n][1])
            (low, high), (x, y) = row.interval, at[row.label]
            ends = [[max(0, y - low)], [max(0, high - y)]]
            ax.errorbar(x, y, ends, color=colour, marker=mark, ms=6, capsize=2, ls="")
        ax.set(xlabel=named(name)[0], xlim=(-0.04 * wide, 1.25 * wide))
        if table.ablation.metric in ITEMS:
            ax.set_ylim(-0.03, 1.1)
        ax.grid(color="#eeeeee", lw=0.6)
    axes[0][0].set_ylabel(table.metric)
    fig.canvas.draw()  # computes the layout, on which `write_names` relies
    fig.set_layout_engine("none")
    for ax, at in zip(axes[0], places):
        write_names(ax, at)
    return fig


def write_names(ax, points: dict[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, at the nearest place that overlaps nothing."""
    from matplotlib.transforms import Bbox

    scale = ax.figure.dpi / 72
    marks = [ax.transData.transform(at) for at in points.values()]
    taken = [Bbox.from_extents(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in marks]
    tries = [(dx, dy, ha) for dy in (3, -7, 11, -15, 19, -23, 27) for dx, ha in ((6, "left"), (-6, "right"))]
    for label, at in points.items():
        text, best = ax.annotate(label, at, (0, 0), textcoords="offset points", fontsize=6), None
        for dx, dy, ha in tries:
            text.set(position=(dx, dy), ha=ha)
            box = text.get_window_extent()
            outside = not (
                ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            )
            hidden = sum(box.overlaps(other) for other in taken) + outside
            if best is None or hidden < best[0]:
                best = hidden, (dx, dy), ha, box
        assert best is not None  # one of the tries
        text.set(position=best[1], ha=best[2])
        taken.append(best[3])


def sweep(table: Table):
    """Accuracy by latent steps when answering: a curve for each row, a horizontal line for rows without a sweep."""
    fig, ax = pyplot().subplots(figsize=(5.2, 3.2), layout="constrained")
    i = 0
    for row in table.rows.values():
        swept = row.lines[0]["result"]["sweep"]
        if not swept:
            ax.axhline(row.value, color=GREY, lw=0.8, ls=(0, (1, 2)))
            ax.annotate(row.label, (1, row.value), (2, -2), xycoords=("axes fraction", "data"), fontsize=6,
                        textcoords="offset points")  # fmt: skip
            continue
        xs = sorted({*map(int, swept), row.lines[0]["result"]["latents"]})
        hits = [row.results(x) for x in xs]
        ys, ends = [h.mean() for h in hits], [interval(h, table.n_boot, row.clusters(ACCURACY)) for h in hits]
        colour, mark, dash = STYLES[i % len(STYLES)]
        i += 1
        errors = [[max(0, y - lo) for y, (lo, _) in zip(ys, ends)], [max(0, hi - y) for y, (_, hi) in zip(ys, ends)]]
        ax.errorbar(xs, ys, errors, color=colour, marker=mark, ls=dash, ms=4, capsize=2, label=row.label)
    ax.set(xlabel="latent steps when answering", ylabel="accuracy at the hardest level", ylim=(-0.03, 1.05))
    if i:
        ax.legend(frameon=False)
    ax.grid(color="#eeeeee", lw=0.6)
    return fig


def diagnosis(table: Table):
    """Accuracy after each intervention on the latents, rows side by side."""
    shown: list[Row] = [row for row in table.rows.values() if row.diagnosed]
    fig, ax = pyplot().subplots(figsize=(7.4, 3.0), layout="constrained")
    kinds, wide = ("as trained", *INTERVENTIONS), 0.8 / len(shown)
    hatches = ("", "//", "..", "xx", "\\\\", "++", "oo")
    for i, row in enumerate(shown):
        causal = [line["diagnosis"]["causal"] for line in row.lines]
        hits = [[records.unpack(c["intact"]) for c in causal]]
        hits += [[records.unpack(c["interventions"][kind]["correct"]) for c in causal] for kind in INTERVENTIONS]
        together = records.unpack_clusters(causal[0]["clusters"]) if "clusters" in causal[0] else None
        ends = [interval(h, table.n_boot, together) for h in hits]
        ys = [sum(map(sum, h)) / sum(map(len, h)) for h in hits]
        errors = [[max(0, y - lo) for y, (lo, _) in zip(ys, ends)], [max(0, hi - y) for y, (_, hi) in zip(ys, ends)]]
        at = [k + (i - (len(shown) - 1) / 2) * wide for k in range(len(kinds))]
        colour = GREY if row.control else STYLES[i % len(STYLES)][0]
        ax.bar(at, ys, wide, yerr=errors, color=colour, alpha=0.55 if row.control else 0.9, hatch=hatches[i % 7],
               edgecolor="white", lw=0.4, error_kw={"lw": 0.7}, label=row.label)  # fmt: skip
    ax.set_xticks(range(len(kinds)), [k if k == "as trained" else f"latents\n{k}" for k in kinds])
    ax.set(ylabel="accuracy at the hardest level", ylim=(0, 1.05))
    ax.legend(frameon=False, ncols=2, fontsize=7)
    return fig
