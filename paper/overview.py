"""Tables over several ablations: the README's first, with its figure, and every method beside the controls.

The first has the same five arms where branches are many or one, and order matters or not.
"""

import re

from paper.figures import GREY, STYLES, pyplot
from paper.markup import between, tex
from paper.tables import Table

TASKS = {  # ablation -> its task, what that is, and what is right on some problems without solving any
    "order": ("`modular`", "many branches, order matters", "commonest answer"),
    "search": ("`mnns`", "many branches, order does not matter", "commonest answer"),
    "one-token": ("`cups`", "one branch, order matters", "parity"),
}
ARMS = {  # row -> its name here
    "no-cot": "answers at once",
    "cot": "a chain",
    "cot2": "mixtures, told the frontier",
    "pause": "*pause*, told the same",
    "fixed": "*fixed*, told the same",
}
CAPTION = (
    "What latents are worth where a search branches and where it does not, at one token a step for everybody. Means of "
    "{seeds} training seeds on {items:,} held-out problems, greedy, with 95 % intervals of a two-level bootstrap over "
    "seeds and problems (those that stand or fall together count as one). Steps: forward passes in sequence that an "
    "answer takes; core-s: core-seconds of training, with those of a start. Controls are in italics."
)
METHODS_ON = {"methods-one-token": "`cups`, one branch", "methods-modular": "`modular`, many branches"}
METHODS_CAPTION = (
    "Every method along the sequence where there is one branch (cups, one token a state, eight swaps) and where there "
    "are many (modular), at equal compute: {least:.0f} to {most:.0f} core-seconds of training in the mean of "
    "{seeds} seeds, those of a start included, and the best of the same number of learning rates on the validation "
    "split. Accuracy on {items:,} held-out problems, greedy, with 95 % intervals over seeds and problems; steps: "
    "forward passes in sequence that an answer takes; updates: of training, without those of a start."
)


def lines(made: dict[str, Table]) -> list[str]:
    """The table in Markdown: accuracies with their intervals by task and arm, and what an answer and training take.

    Of each arm: sequential steps of an answer, and core-seconds of training with those of its start.
    """
    head = ["", "a floor", *ARMS.values()]
    out = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for name, (task, what, rule) in TASKS.items():
        table = made[name]
        cells = [f"[{task}](paper/tables/{name}.md): {what}", f"{floor(table, rule):.2f} ({rule})"]
        for arm in ARMS:
            row = table.rows[arm]
            cells.append(f"{row.value:.3f} ({between(row.interval)})")
        out.append(f"| {' | '.join(cells)} |")
        costs = (f"{table.rows[arm].mean('steps'):.0f}, {table.rows[arm].mean('core_seconds'):.0f}" for arm in ARMS)
        out.append(f"| steps, core-s | | {' | '.join(costs)} |")
    return out


def latex(made: dict[str, Table]) -> str:
    """The same in LaTeX, an arm a row, the tasks one below the other."""
    first = made[next(iter(TASKS))]
    out = ["\\begin{table}[!htb]", "\\centering\\small"]
    out += [f"\\caption{{{tex(CAPTION.format(seeds=first.seeds, items=first.items))}}}", "\\label{tab:main}"]
    out += ["\\begin{tabular}{lrrrr}", "\\toprule", " & accuracy & 95\\,\\% interval & steps & core-s \\\\"]
    for name, (task, what, rule) in TASKS.items():
        table = made[name]
        title = f"\\textbf{{{tex(task.strip('`'))}}}: {tex(what)}"
        out += ["\\midrule", f"\\multicolumn{{5}}{{l}}{{{title}}} \\\\"]
        out.append(f"{tex(rule)} & {floor(table, rule):.2f} & & & \\\\")
        for arm, called in ARMS.items():
            row = table.rows[arm]
            costs = (f"{row.mean(cost):.0f}" for cost in ("steps", "core_seconds"))
            cells = [re.sub(r"\*(.*?)\*", r"\\emph{\1}", called), f"{row.value:.3f}", between(row.interval), *costs]
            out.append(" & ".join(cells) + " \\\\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def floor(table: Table, rule: str) -> float:
    """What a rule that solves nothing gets."""
    return table.rows["cot2"].lines[0]["result"]["floors"][rule]


def figure(made: dict[str, Table]):
    """A panel a task: a dot and an interval for each arm, a tick for each seed, and the floor as a line."""
    fig, axes = pyplot().subplots(1, len(TASKS), figsize=(8.6, 2.4), layout="constrained", sharey=True, sharex=True)
    for ax, (name, (task, what, rule)) in zip(axes, TASKS.items()):
        table = made[name]
        for y, arm in enumerate(reversed(ARMS)):
            row = table.rows[arm]
            low, high = row.interval
            colour = STYLES[0][0] if arm == "cot2" else GREY
            ax.plot([low, high], [y, y], color=colour, lw=2)
            ax.plot(row.results().mean(1), [y] * len(row.lines), "|", color=colour, ms=9, alpha=0.7)
            ax.plot(row.value, y, "o", color=colour, mfc="white" if "*" in ARMS[arm] else colour, ms=6)
        ax.axvline(floor(table, rule), color=GREY, lw=0.8, ls=(0, (1, 2)))
        ax.set(title=f"{task.strip('`')}\n{what}", xlabel="accuracy", xlim=(-0.02, 1.02))
        ax.title.set_fontsize(8)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(ARMS)), [name.replace("*", "") for name in reversed(ARMS.values())])
    return fig


def methods(made: dict[str, Table]) -> list[str]:
    """The table of all methods in Markdown, as lines."""
    columns = ["", "told", *(f"{task}: accuracy | steps | updates" for task in METHODS_ON.values())]
    out = [f"| {' | '.join(columns)} |", "|---|---|" + "---|---|---|" * len(METHODS_ON)]
    out += [f"| {' | '.join([f'`{label}`', *cells])} |" for label, *cells in _methods(made)]
    return [methods_caption(made), "", *out]


def methods_latex(made: dict[str, Table]) -> str:
    """The same in LaTeX."""
    out = ["\\begin{table}[!htb]", "\\centering\\small\\setlength{\\tabcolsep}{4pt}"]
    out += [f"\\caption{{{tex(methods_caption(made))}}}", "\\label{tab:methods}"]
    out += ["\\begin{tabular}{ll" + "rrr" * len(METHODS_ON) + "}", "\\toprule"]
    heads = (f"\\multicolumn{{3}}{{c}}{{{tex(task.replace('`', ''))}}}" for task in METHODS_ON.values())
    out.append(" & & " + " & ".join(heads) + " \\\\")
    out += [" & told" + " & accuracy & steps & updates" * len(METHODS_ON) + " \\\\", "\\midrule"]
    out += [" & ".join(map(tex, row)) + " \\\\" for row in _methods(made)]
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def methods_caption(made: dict[str, Table]) -> str:
    """What the table of all methods is of."""
    first = made[next(iter(METHODS_ON))]
    spent = [row.mean("core_seconds") for name in METHODS_ON for row in made[name].rows.values()]
    return METHODS_CAPTION.format(least=min(spent), most=max(spent), seeds=first.seeds, items=first.items)


def _methods(made: dict[str, Table]) -> list[list[str]]:
    """Name and what it is told, then of each task: accuracy with its interval, steps, and updates of training."""
    told = {label: row.told for name in METHODS_ON for label, row in made[name].rows.items()}
    found = []
    for label in told:
        cells = [label, told[label]]
        for name in METHODS_ON:
            row = made[name].rows.get(label)
            cells += ["", "", ""] if row is None else [
                f"{row.value:.3f} ({between(row.interval)})", f"{row.mean('steps'):.0f}", f"{row.mean('updates'):,.0f}"
            ]  # fmt: skip
        found.append(cells)
    return found
