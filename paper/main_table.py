"""The README's first table in LaTeX, an arm a row, the tasks one below the other."""

import re

from paper.markup import tex
from paper.tables import Table

CAPTION = (
    "What latents are worth where a search branches and where it does not, at one token a step for everybody. Means of "
    "{seeds} training seeds on {items:,} held-out problems, greedy, with 95 % intervals of a two-level bootstrap over "
    "seeds and problems (those that stand or fall together count as one). Steps: forward passes in sequence that an "
    "answer takes; core-s: core-seconds of training, with those of a start. Controls are in italics."
)


def latex(lines: list[str], first: Table) -> str:
    """The table. `lines`: it in Markdown, from `paper.overview.lines`; `first`: the ablation of its first task."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    out = ["\\begin{table}[!htb]", "\\centering\\small"]
    out += [f"\\caption{{{tex(CAPTION.format(seeds=first.seeds, items=first.items))}}}", "\\label{tab:main}"]
    out += ["\\begin{tabular}{lrrrr}", "\\toprule", " & accuracy & 95\\,\\% interval & steps & core-s \\\\"]
    for accuracies, costs in zip(rows[::2], rows[1::2]):
        task, what = parts(r"\[`(.*)`\]\(.*?\): (.*)", accuracies[0])
        out += ["\\midrule", f"\\multicolumn{{5}}{{l}}{{\\textbf{{{tex(task)}}}: {tex(what)}}} \\\\"]
        value, _, rule = accuracies[1].partition(" ")
        out.append(f"{tex(rule.strip('()') or head[1])} & {value} & & & \\\\")
        for arm, accuracy, cost in zip(head[2:], accuracies[2:], costs[2:]):
            value, between = parts(r"(\S+) \((.*)\)", accuracy)
            called = re.sub(r"\*(.*?)\*", r"\\emph{\1}", arm)
            out.append(" & ".join([called, value, between, *cost.split(", ")]) + " \\\\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def parts(pattern: str, cell: str) -> tuple[str, ...]:
    """The groups of a pattern that a cell has."""
    found = re.fullmatch(pattern, cell)
    assert found, cell  # it is the form in which `lines` writes it
    return found.groups()
