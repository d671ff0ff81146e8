"""Curves of a run: its logged metrics over its updates."""

from pathlib import Path

from latent.files import PART, named, read_lines

PANELS = {
    "loss": ("loss", "ce", "step_ce"),
    "share": ("exact", "step_exact", "valid", "correct", "parsed", "flat_groups", "clipped"),
    "reward": ("reward",),
    "latents": ("used", "stage"),
    "entropy (nats)": ("entropy_halt", "entropy_token", "kl"),
    "gradient norm": ("grad_norm",),
}
WIDE, HIGH = 4, 2.8  # inches of a panel
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#555555", ":"), ("#009E73", "-."), ("#CC79A7", "-"), ("#E69F00", "--")]


def draw(home: Path) -> None:
    """Write curves.png beside metrics.jsonl, unless nothing was logged."""
    rows = read_lines(home / "metrics.jsonl")
    logged = {name for row in rows for name in row}
    panels = {title: [n for n in names if n in logged] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    fig = Figure(figsize=(WIDE * columns, HIGH * lines))
    axes = fig.subplots(lines, columns, squeeze=False)
    fig.subplots_adjust(  # by hand: to have the margins found takes longer than a small run
        left=0.6 / fig.get_figwidth(), right=1 - 0.15 / fig.get_figwidth(), bottom=0.5 / fig.get_figheight(),
        top=1 - 0.3 / fig.get_figheight(), wspace=0.6 / (WIDE - 0.6), hspace=0.8 / (HIGH - 0.8),
    )  # fmt: skip
    for ax, (title, names) in zip(axes.flat, panels.items()):
        for name, (colour, dash) in zip(names, STYLES):
            points = [(row["step"], row[name]) for row in rows if name in row]
            ax.plot(*zip(*points), color=colour, ls=dash, marker="." if len(points) < 3 else "", label=name)
        ax.set(title=title, xlabel="updates")
        if title == "share":
            ax.set_ylim(-0.03, 1.05)
        ax.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            ax.legend(fontsize=8, frameon=False)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    part = home / f"curves.png{PART}"
    with named(part):
        fig.savefig(part, dpi=120, format="png")
    part.replace(home / "curves.png")
