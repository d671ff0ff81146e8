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
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#555555", ":"), ("#009E73", "-."), ("#CC79A7", "-"), ("#E69F00", "--")]


def draw(home: Path) -> None:
    """Write curves.png beside metrics.jsonl, unless nothing was logged."""
    rows = read_lines(home / "metrics.jsonl")
    logged = {name for row in rows for name in row}
    panels = {title: [n for n in names if n in logged] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.8 * lines), squeeze=False, layout="constrained")
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
    plt.close(fig)
