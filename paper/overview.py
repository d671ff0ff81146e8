"""Tables over several ablations, for pages and the paper.

The first table and figure have the same five arms on three tasks, in which branches are many or one, and order matters
or not; another says what these arms are told and how they were trained; the last has every method beside the controls.
"""

import re

from paper.design import Contrast
from paper.figures import GREY, STYLES, pyplot
from paper.markup import between, fitted, floating, points, tex
from paper.tables import ACCURACY, Row, Table, none_shown

TASKS = {  # ablation -> its task, and what that is
    "order": ("`modular`", "many branches, order matters"),
    "search": ("`mnns`", "many branches, order does not matter"),
    "one-token": ("`cups`", "one branch, order matters"),
}
ARMS = {  # row -> its name here
    "no-cot": "answers at once",
    "cot": "a chain",
    "cot2": "mixtures, told the frontier",
    "pause": "*pause*, told the same",
    "fixed": "*fixed*, told the same",
}
INPUTS = {  # row -> what a latent's input is in training, and in answering
    "no-cot": ("-", "-"),
    "cot": ("-", "-"),
    "cot2": ("that it should be; on modular, then its own", "its own"),
    "pause": ("a learned vector a place", "the same"),
    "fixed": ("one untrained vector", "the same, a pass each"),
}
CAPTION = (
    "Latents where a search branches and where it does not, a token a state for every arm. Accuracies are means of "
    "{seeds} training seeds on {items:,} held-out problems, greedy. Mixtures less arm: the difference on the same "
    "problems, in points, with its p-value corrected within the ablation (Holm); none: no effect is shown. Best rule: "
    "what is right without a search. Steps: forward passes in sequence that an answer takes; MFLOP: of an answer; "
    "core-s: core-seconds of training, with those of a start. Controls are in italics."
)
SETUP = (
    "What each arm is told of a problem beside its question; which mixture, or vector, is the input of a latent; and "
    "the updates of its training at its peak rate (batches of {batch} problems)."
)
METHODS_ON = {"methods-one-token": "`cups`, one branch", "methods-modular": "`modular`, many branches"}
TEXT_ON = {"gsm8k": "GSM8K, SmolLM2-135M"}
TEXT_CAPTION = (
    "SmolLM2-135M on GSM8K, half an hour of one core for every arm, at one learning rate that was not searched. "
    "Accuracy on {items:,} held-out problems, greedy, one seed, with 95 % intervals over problems alone; steps: "
    "forward passes in sequence that an answer takes; core-s: core-seconds of training."
)
METHODS_CAPTION = (
    "Every method along the sequence beside the controls, each stage of training with the best of four learning rates "
    "on the validation split (Coconut, and mixtures on `modular`, have two). Accuracy: means of {seeds} training seeds "
    "on {items:,} held-out problems, greedy, with 95 % intervals over seeds and problems; steps: forward passes in "
    "sequence that an answer takes; core-s: core-seconds of training, with those of a start."
)


def lines(made: dict[str, Table]) -> list[str]:
    """The table in Markdown: accuracies with their intervals by task and arm, and what an answer and training take.

    Of each arm: sequential steps of an answer, and core-seconds of training with those of its start.
    """
    head = ["", "best rule", *ARMS.values()]
    out = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for name, (task, what) in TASKS.items():
        table = made[name]
        rule, right = floor(table)
        cells = [f"[{task}](paper/tables/{name}.md): {what}", f"{right:.2f} ({rule})"]
        for arm in ARMS:
            row = table.rows[arm]
            cells.append(with_interval(row))
        out.append(f"| {' | '.join(cells)} |")
        costs = (", ".join(spent(table.rows[arm])) for arm in ARMS)
        out.append(f"| steps, core-s | | {' | '.join(costs)} |")
    return out


def latex(made: dict[str, Table]) -> str:
    """The same in LaTeX, an arm a row, the tasks one below the other, with what mixtures are above each arm."""
    first = made[next(iter(TASKS))]
    out = [" & accuracy & 95\\,\\% interval & mixtures less arm & $p$ & steps & MFLOP & core-s \\\\"]
    for name, (task, what) in TASKS.items():
        table = made[name]
        rule, right = floor(table)
        out += ["\\midrule", f"\\multicolumn{{8}}{{l}}{{\\textbf{{{tex(task.strip('`'))}}}: {tex(what)}}} \\\\"]
        out.append(f"best rule: {tex(rule)} & {right:.2f} & & & & & & \\\\")
        for arm, called in ARMS.items():
            row = table.rows[arm]
            costs = [f"{row.mean('steps'):.0f}", f"{row.mean('flops') / 1e6:.1f}", f"{row.mean('core_seconds'):.0f}"]
            cells = [italics(called), f"{row.value:.3f}", between(row.interval), *less(table, arm), *costs]
            out.append(" & ".join(cells) + " \\\\")
    return floating(CAPTION.format(seeds=first.seeds, items=first.items), "main", fitted("lrrrrrrr", out))


def less(table: Table, arm: str) -> list[str]:
    """What mixtures solve more than an arm, and its p-value, as LaTeX; nothing without such a contrast."""
    for contrast, d, p in table.contrasts:
        if contrast == Contrast("cot2", arm, claim=contrast.claim):
            mean, low, high = (tex(points(x, ACCURACY)) for x in (d.mean, d.low, d.high))
            small = "none" if none_shown(d, p) else tex("< 0.001") if p < 0.001 else f"{p:.3f}"
            return [f"{mean} ({low} to {high})", small]
    return ["", ""]


def setup(made: dict[str, Table]) -> str:
    """What each arm is told, its latents' inputs, and how it was trained on each task, in LaTeX."""
    first = made[next(iter(TASKS))].rows["cot"].lines[0]
    out = [" & told & input in training & in answering & modular & mnns & cups \\\\", "\\midrule"]
    for arm, called in ARMS.items():
        told = made[next(iter(TASKS))].rows[arm].told
        cells = [
            italics(called.partition(",")[0]),
            told,
            *INPUTS[arm],
            *(training(made[name].rows[arm]) for name in TASKS),
        ]
        out.append(" & ".join(cells) + " \\\\")
    forced = made["order"].rows["forced"]
    cells = ["mixtures, forced", forced.told, "that it should be", "its own", training(forced), "", ""]
    out.append(" & ".join(cells) + " \\\\")
    columns = "l*{3}{>{\\raggedright\\arraybackslash}p{25mm}}rrr"
    return floating(SETUP.format(batch=first["config"]["train"]["batch"]), "setup", fitted(columns, out))


def training(row: Row) -> str:
    """Updates and peak rate of a row's training, after those of its start."""
    how = row.lines[0]["config"]["train"]
    after = "+ " if row.lines[0]["config"].get("init") else ""
    return f"{after}{how['steps']:,} at {how['lr']:g}"


def with_interval(row: Row) -> str:
    """A row's accuracy with its interval."""
    return f"{row.value:.3f} ({between(row.interval)})"


def spent(row: Row) -> list[str]:
    """Sequential steps of a row's answers, and core-seconds of its training with those of its start."""
    return [f"{row.mean(cost):.0f}" for cost in ("steps", "core_seconds")]


def italics(name: str) -> str:
    """An arm's name as LaTeX."""
    return re.sub(r"\*(.*?)\*", r"\\emph{\1}", name)


def floor(table: Table) -> tuple[str, float]:
    """The best of the rules that solve a problem without search, and what it gets."""
    floors = table.rows["cot2"].lines[0]["result"]["floors"]
    best = max(floors, key=floors.__getitem__)
    return best, floors[best]


def figure(made: dict[str, Table]):
    """A panel a task: a dot and an interval for each arm, a tick for each seed, and the best rule as a line."""
    fig, axes = pyplot().subplots(1, len(TASKS), figsize=(6.6, 2.2), layout="constrained", sharey=True, sharex=True)
    for ax, (name, (task, what)) in zip(axes, TASKS.items()):
        table = made[name]
        for y, arm in enumerate(reversed(ARMS)):
            row = table.rows[arm]
            low, high = row.interval
            colour = STYLES[0][0] if arm == "cot2" else GREY
            ax.plot([low, high], [y, y], color=colour, lw=2)
            ax.plot(row.results().mean(1), [y] * len(row.lines), "|", color=colour, ms=9, alpha=0.7)
            ax.plot(row.value, y, "o", color=colour, mfc="white" if "*" in ARMS[arm] else colour, ms=6)
        ax.axvline(floor(table)[1], color=GREY, lw=0.8, ls=(0, (1, 2)))
        title = "\n".join([task.strip("`"), *what.replace(", ", ",|").split("|")])
        ax.set(title=title, xlabel="accuracy", xlim=(-0.03, 1.05))
        ax.title.set_fontsize(8)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(ARMS)), [name.replace("*", "") for name in reversed(ARMS.values())])
    return fig


def methods(made: dict[str, Table]) -> list[str]:
    """The table of all methods in Markdown, as lines, on those of its tasks that are made."""
    tasks = methods_on(made)
    columns = ["", "told", *(f"{METHODS_ON[name]}: accuracy | steps | core-s" for name in tasks)]
    out = [f"| {' | '.join(columns)} |", "|---|---|" + "---|---|---|" * len(tasks)]
    out += [f"| {' | '.join([f'`{label}`', *cells])} |" for label, *cells in _methods(tasks)]
    return [methods_caption(tasks), "", *out]


def of_method(made: dict[str, Table], method: str) -> list[str]:
    """What a method solves beside the chain, pause tokens and answering at once, in Markdown: a row a task, and one for
    each thing that it is told there."""
    beside = {"cot": "chain", "pause": "pause", "no-cot": "no-CoT"}
    head = ["ours, side by side", "told", "accuracy", *beside.values(), "steps", "core-s"]
    out = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for name, task in (METHODS_ON | TEXT_ON).items():
        if (table := made.get(name)) is None:
            continue
        others = [f"{table.rows[arm].value:.3f}" for arm in beside]
        for label, row in table.rows.items():
            if label == method or label.startswith(f"{method}-"):
                cells = [f"[{task}](../../../paper/tables/{name}.md)", row.told]
                cells += [with_interval(row), *others, *spent(row)]
                out.append(f"| {' | '.join(cells)} |")
    return out


def text(table: Table) -> list[str]:
    """The table of methods on text in Markdown, as lines."""
    out = ["|  | told | accuracy | steps | core-s |", "|---|---|---|---|---|"]
    for label, row in table.rows.items():
        out.append(f"| {' | '.join([f'`{label}`', row.told, with_interval(row), *spent(row)])} |")
    return [TEXT_CAPTION.format(items=table.items), "", *out]


def methods_latex(made: dict[str, Table]) -> str:
    """The same in LaTeX."""
    tasks = methods_on(made)
    heads = (f"\\multicolumn{{3}}{{c}}{{{tex(METHODS_ON[name].replace('`', ''))}}}" for name in tasks)
    out = [" & & " + " & ".join(heads) + " \\\\"]
    out += [" & told" + " & accuracy & steps & core-s" * len(tasks) + " \\\\", "\\midrule"]
    out += [" & ".join(map(tex, row)) + " \\\\" for row in _methods(tasks)]
    return floating(methods_caption(tasks), "methods", fitted("ll" + "rrr" * len(tasks), out), "!htb")


def methods_on(made: dict[str, Table]) -> dict[str, Table]:
    """The tables of all methods, of the tasks that are made."""
    return {name: made[name] for name in METHODS_ON if name in made}


def methods_caption(tasks: dict[str, Table]) -> str:
    """What the table of all methods is of."""
    first = next(iter(tasks.values()))
    return METHODS_CAPTION.format(seeds=first.seeds, items=first.items)


def _methods(tasks: dict[str, Table]) -> list[list[str]]:
    """Name and what it is told, then of each task: accuracy with its interval, steps, and core-seconds of training."""
    found = []
    for label, told in {label: row.told for table in tasks.values() for label, row in table.rows.items()}.items():
        cells = [label, told]
        for table in tasks.values():
            row = table.rows.get(label)
            if row is None:
                cells += ["", "", ""]
            else:
                cells += [with_interval(row), *spent(row)]
        found.append(cells)
    return found
