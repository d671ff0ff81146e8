"""The README's first table and its figure: the same five arms on two searches, with and without order."""

from paper.figures import GREY, STYLES, pyplot
from paper.tables import Table

TASKS = {  # ablation -> what its task is
    "order": ("`modular`", "many branches, order matters"),
    "search": ("`mnns`", "many branches, order does not matter"),
}
ARMS = {  # row -> its name here
    "no-cot": "answers at once",
    "cot": "a chain",
    "cot2": "mixtures, told the frontier",
    "pause": "*pause*, told the same",
    "fixed": "*fixed*, told the same",
}


def lines(made: dict[str, Table]) -> list[str]:
    """The table in Markdown: accuracies with their intervals by task and arm, and what an answer and training take.

    Of each arm: sequential steps of an answer, and core-seconds of training with those of its start.
    """
    head = ["", "commonest answer", *ARMS.values()]
    out = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for name, (task, what) in TASKS.items():
        table = made[name]
        cells = [f"[{task}](paper/tables/{name}.md): {what}", f"{floor(table):.2f}"]
        for arm in ARMS:
            row = table.rows[arm]
            low, high = row.interval
            cells.append(f"{row.value:.3f} ({low:.3f} to {high:.3f})")
        out.append(f"| {' | '.join(cells)} |")
        costs = (f"{table.rows[arm].mean('steps'):.0f}, {table.rows[arm].mean('core_seconds'):.0f}" for arm in ARMS)
        out.append(f"| steps, core-s | | {' | '.join(costs)} |")
    return out


def floor(table: Table) -> float:
    """What always the same answer gets."""
    return table.rows["cot2"].lines[0]["result"]["floors"]["commonest answer"]


def figure(made: dict[str, Table]):
    """A panel a task: a dot and an interval for each arm, a tick for each seed, and the floor as a line."""
    fig, axes = pyplot().subplots(1, len(TASKS), figsize=(7.4, 2.3), layout="constrained", sharey=True, sharex=True)
    for ax, (name, (task, what)) in zip(axes, TASKS.items()):
        table = made[name]
        for y, arm in enumerate(reversed(ARMS)):
            row = table.rows[arm]
            low, high = row.interval
            colour = STYLES[0][0] if arm == "cot2" else GREY
            ax.plot([low, high], [y, y], color=colour, lw=2)
            ax.plot(row.results().mean(1), [y] * len(row.lines), "|", color=colour, ms=9, alpha=0.7)
            ax.plot(row.value, y, "o", color=colour, mfc="white" if "*" in ARMS[arm] else colour, ms=6)
        ax.axvline(floor(table), color=GREY, lw=0.8, ls=(0, (1, 2)))
        ax.set(title=f"{task.strip('`')}: {what}", xlabel="accuracy", xlim=(-0.02, 1.02))
        ax.title.set_fontsize(8)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(ARMS)), [name.replace("*", "") for name in reversed(ARMS.values())])
    return fig
