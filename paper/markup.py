"""Tables as text: captions, Markdown, LaTeX, and every number that a text may quote."""

import re
import textwrap

from eval.stats import Difference, holm, interval, over_items, over_seeds, paired, unanimous
from paper import records
from paper.tables import ACCURACY, NAMES, SHARES, Row, Table, named, none_shown

FITTED = r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"  # scales wide tables down
SOONER = (
    " Updates to .9: until exact match in training is that high, in a curriculum's last stage; all of them where it "
    "never is."
)
UNANIMOUS = (
    " Where {0} of {0} seeds agree, the share of seeds that would is only known to be above {1:.2f} (Clopper-Pearson)."
)
EXCHANGES = ("mean", "shuffled", "other problem")  # interventions that change nothing where all inputs are equal
SAME_INPUTS = ("Pause", "FixedEmbedding")  # methods that feed all problems the same
COUNTS = ("sooner", "parameters")


def effect(d: Difference, p: float, metric: str = ACCURACY) -> str:
    """A difference in words: an effect only where both the interval and the corrected p-value show one."""
    unit = " points" if metric in SHARES else f" {named(metric)[0]}"
    numbers = f"{points(d.mean, metric)}{unit}, 95 % interval {points(d.low, metric)} to {points(d.high, metric)}"
    if none_shown(d, p):
        return f"no effect shown ({numbers}, Holm p = {p:.2g})"
    return f"{numbers}, Holm p {'<' if p < 0.001 else '='} {max(p, 0.001):.2g}"


def brief(d: Difference, p: float, metric: str = ACCURACY) -> str:
    """The same without its level and its p-value, for texts that say once what stands in brackets."""
    unit = " points" if metric in SHARES else f" {named(metric)[0]}"
    mean, low, high = (points(x, metric) for x in (d.mean, d.low, d.high))
    return ("no effect shown: " if none_shown(d, p) else "") + f"{mean}{unit} [{low}, {high}]"


def points(x: float, metric: str = ACCURACY) -> str:
    """A difference as text, of accuracies in percentage points; never a negative zero."""
    text = f"{100 * x:+.1f}" if metric in SHARES else f"{x:+.3g}" if abs(x) < 100 else f"{x:+.0f}"
    return text if float(text) else "0.0"


def amount(row: Row, name: str) -> str:
    """A mean over seeds as text: accuracies with three decimals, counts with none, others with one."""
    return f"{row.mean(name) * named(name)[1]:,.{3 if name in SHARES else 0 if name in COUNTS else 1}f}"


def caption(table: Table) -> str:
    """The caption: claim, verdict, metric, numbers of problems and seeds, what all tables share, and `particulars`."""
    what = table.metric[0].upper() + table.metric[1:]
    return (
        f"Claim: {table.ablation.claim} By these runs: {table.verdict}. {registered(table)} {what}, greedy, with "
        f"{over(table)}; contrasts on the same problems, p-values corrected for their number (Holm). Core-seconds "
        "include those of a run's start."
        + (SOONER if "sooner" in table.ablation.costs else "")
        + (" Controls are in italics." if any(row.control for row in table.rows.values()) else "")
        + particulars(table)
        + (UNANIMOUS.format(table.seeds, unanimous(table.seeds)) if any_agree(table) else "")
    )


def over(table: Table) -> str:
    """What the intervals of a table's rows are over, in words."""
    if table.seeds == 1:
        return f"a 95 % interval over {table.problems} of one training seed, which says nothing of others"
    return f"the 95 % interval of the two-level bootstrap over {table.seeds} seeds and {table.problems}"


def short_caption(table: Table) -> str:
    """The caption in the paper, whose appendix says once what all tables share."""
    what = table.metric[0].upper() + table.metric[1:]
    return (
        f"Claim: {table.ablation.claim} By these runs: {table.verdict}. {registered(table)} {what}; "
        f"{table.seeds} seed{'s' * (table.seeds > 1)}, {table.problems}.{particulars(table)}"
    )


def particulars(table: Table) -> str:
    """Sentences on this table alone: processors, ends of the scale, seeds that agree, curricula that did not end."""
    left = {row.label: row.mean("steps_written") for row in table.rows.values() if row.unfinished}
    still = "; ".join(f"{label} still writes {steps:.1f} steps of the chain" for label, steps in left.items())
    return processors(table) + end_of_scale(table) + agreement(table) + (f" Note: {still}." if still else "")


def processors(table: Table) -> str:
    """A sentence where core-seconds are of several processors, by row."""
    by_row = {row.label: frozenset(str(line["env"]["cpu"]) for line in row.lines) for row in table.rows.values()}
    if len(frozenset().union(*by_row.values())) == 1:
        return ""
    rows: dict[frozenset, list[str]] = {}
    for label, cpus in by_row.items():
        rows.setdefault(cpus, []).append(label)
    said = "; ".join(f"{' / '.join(labels)}: {', '.join(sorted(cpus))}" for cpus, labels in rows.items())
    return f" Core-seconds of different processors are not to be compared: {said}."


def end_of_scale(table: Table) -> str:
    """A sentence where all arms are at a floor or a ceiling, and the level that the last column shows instead."""
    if table.end is None:
        return ""
    level = table.telling_level
    shown = ""
    if level is not None:
        n = next(iter(table.rows.values())).at_level(level).shape[1]
        shown = (
            f"; the last column is accuracy at level {level}, where they differ most (a level chosen with the results "
            f"seen, {n} problems)"
        )
    return f" All arms are {table.end} at this metric, where they can hardly be told apart{shown}."


def agreement(table: Table) -> str:
    """A sentence on rows whose seeds agree: their intervals over seeds and over items, and what so few seeds show."""
    alike: dict[str, list[str]] = {}
    for row in table.rows.values():
        if row.seeds_agree:
            by_seed, by_item = over_seeds(row.results()), over_items(row.results(), row.clusters())
            both = f"{between(by_seed)} over seeds, {between(by_item)} over items"
            alike.setdefault(both, []).append(row.label)
    if not alike:
        return ""
    rows = "; ".join(f"{' / '.join(labels)}: {both}" for both, labels in alike.items())
    return (
        f" Seeds that agree to a point have 95 % intervals over seeds alone (Student) and over items alone (Wilson): "
        f"{rows}."
    )


def any_agree(table: Table) -> bool:
    """Whether the seeds of any row agree to a point."""
    return any(row.seeds_agree for row in table.rows.values())


def between(interval: tuple[float, float]) -> str:
    """An interval of accuracies as text."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def registered(table: Table) -> str:
    """The sentence that says where the claim was registered, before how many of the runs, and how it read then."""
    if table.registration is None:
        return "It was not registered before its runs."
    made_at = [line["env"]["git"] for row in table.rows.values() for line in row.lines]
    after = sum(commit in table.registration.after for commit in made_at)
    runs = f"all of its {len(made_at)} runs" if after == len(made_at) else f"{after} of its {len(made_at)} runs"
    where = f"in commit {table.registration.commit[:7]}, before {runs}"
    if table.reworded:
        return f"Reworded later, when runs may have been seen; registered {where}, as: {table.registration.claim}"
    return f"Registered {where}."


def body(table: Table) -> tuple[list[list[str]], list[list[str]]]:
    """Rows and contrasts as text, each with its head first."""
    level = table.telling_level
    head = ["", "told", table.metric, "95 % interval", "latents", *(named(c)[0] for c in table.ablation.costs)]
    head += [f"accuracy at level {level}, 95 % interval"] if level else []
    rows = [head]
    for row in table.rows.values():
        costs = [amount(row, c) for c in table.ablation.costs]
        if level:
            hits, together = row.at_level(level), row.clusters("pooled.accuracy")
            together = together and together[row.level_items(level)]
            costs.append(f"{hits.mean():.3f} ({between(interval(hits, table.n_boot, together))})")
        used = f"{row.mean('main.used'):.1f}"
        rows.append([row.label, row.told, f"{row.value:.3f}", between(row.interval), used, *costs])
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
        lines += markdown_rows(part[1:], controls)
        lines.append("")
    return "\n".join(lines)


def latex(table: Table) -> str:
    """The table in LaTeX."""
    rows, below = body(table)
    controls = {row.label for row in table.rows.values() if row.control}
    out: list[str] = []
    for part in (rows, below):
        if len(part) == 1:
            continue
        cells = [[r[0], stacked(r[1], 24) if part is rows else tex(r[1]), *map(tex, r[2:])] for r in part[1:]]
        out += tabular("l" + "r" * (len(part[0]) - 1), list(map(stacked, part[0])), cells, controls)
        out += ["\\medskip", ""]
    return floating(short_caption(table), table.name, out, "H", "footnotesize")


def floating(caption: str, label: str, body: list[str], place: str = "t", size: str = "small") -> str:
    """A table of LaTeX with its caption, in plain text, above it."""
    out = [f"\\begin{{table}}[{place}]", f"\\centering\\{size}\\setlength{{\\tabcolsep}}{{4pt}}"]
    out += [f"\\caption{{{tex(caption)}}}", f"\\label{{tab:{label}}}", *body]
    return "\n".join([*out, "\\end{table}", ""])


def markdown_rows(rows: list[list[str]], controls: set[str]) -> list[str]:
    """Rows of a table in Markdown, those of controls in italics."""
    return ["| " + " | ".join([f"*{r[0]}*" if r[0] in controls else r[0], *r[1:]]) + " |" for r in rows]


def tabular(columns: str, head: list[str], rows: list[list[str]], controls: set[str]) -> list[str]:
    """A table's body in LaTeX, no wider than a line; cells are LaTeX but for a row's first, its plain label."""
    out = [" & ".join(head) + " \\\\", "\\midrule"]
    for label, *cells in rows:
        first = f"\\emph{{{tex(label)}}}" if label in controls else tex(label)
        out.append(" & ".join([first, *cells]) + " \\\\")
    return fitted(columns, out)


def fitted(columns: str, lines: list[str]) -> list[str]:
    """Lines of a table between its rules, no wider than a line of text."""
    return [
        f"\\sbox0{{\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        *lines,
        "\\bottomrule",
        "\\end{tabular}}%",
        FITTED,
    ]


def tex(text: str) -> str:
    """Text as LaTeX: special characters are escaped, minus and less-than signs are set as mathematics."""
    text = re.sub(r"[%&_#$]", lambda match: "\\" + match[0], text.replace("\\", "\\textbackslash "))
    return re.sub(r"(?<![\w.])-(?=[\d ])", "$-$", text.replace("< ", "$<$ "))


def stacked(text: str, width: int = 14) -> str:
    """A cell as LaTeX, in lines of so many characters, so that no column is much wider than its numbers."""
    lines = textwrap.wrap(text, width, break_long_words=False)
    joined = " \\\\ ".join(map(tex, lines))
    return f"\\shortstack[r]{{{joined}}}" if len(lines) > 1 else joined


def numbers(table: Table) -> dict[str, str]:
    """Every number that a text may quote from a table, by key."""
    values = {f"{table.name}: seeds": str(table.seeds), f"{table.name}: items": f"{table.items:,}"}
    values[f"{table.name}: unanimous"] = f"{unanimous(table.seeds):.2f}"
    counts = [line["result"]["parameters"] for row in table.rows.values() for line in row.lines]
    values[f"{table.name}: parameters"] = f"{min(counts):,} to {max(counts):,}"
    for row in table.rows.values():
        low, high = row.interval
        key = f"{table.name}: {row.label}"
        values[key] = f"{row.value:.3f} ({low:.3f} to {high:.3f})"
        values[f"{key}: value"] = f"{row.value:.3f}"
        by_seed = sorted(row.results().mean(1))
        values[f"{key}: by seed"] = f"{by_seed[0]:.3f} to {by_seed[-1]:.3f}"
        values[f"{key}: latents"] = f"{row.mean('main.used'):.1f}"
        for cost in dict.fromkeys((*NAMES, *table.ablation.costs)):
            if cost != "exchanged" or all(cost in line["result"] for line in row.lines):  # some were diagnosed
                values[f"{key}: {cost}"] = amount(row, cost)
        for steps in sorted(row.lines[0]["result"]["sweep"], key=int):
            values[f"{key}: at {steps}"] = f"{row.results(int(steps), ACCURACY).mean():.3f}"
    for contrast, d, p in table.contrasts:
        metric = contrast.metric or table.ablation.metric
        key = f"{table.name}: {contrast.name}" + (f": {contrast.metric}" if contrast.metric else "")
        values[key], values[f"{key}: brief"] = effect(d, p, metric), brief(d, p, metric)
    values |= used(table)
    return values


def used(table: Table) -> dict[str, str]:
    """The accuracy lost by each intervention on the latents, by row and kind, with corrected p-values."""
    lost = {}
    for row in table.rows.values():
        if row.diagnosed:
            same = row.lines[0]["config"]["method"]["class"] in SAME_INPUTS
            causal = [line["diagnosis"]["causal"] for line in row.lines]
            intact = [records.unpack(c["intact"]) for c in causal]
            for kind in causal[0]["interventions"]:
                if same and kind in EXCHANGES:
                    continue
                after = [records.unpack(c["interventions"][kind]["correct"]) for c in causal]
                together = records.unpack_clusters(causal[0]["clusters"]) if "clusters" in causal[0] else None
                lost[f"{table.name}: {row.label}: {kind}"] = paired(intact, after, table.n_boot, clusters=together)
    if not lost:
        return {}
    corrected = holm([d.p for d in lost.values()])
    effects = {key: effect(d, p) for (key, d), p in zip(lost.items(), corrected)}
    effects |= {f"{key}: brief": brief(d, p) for (key, d), p in zip(lost.items(), corrected)}
    return effects | {f"{table.name}: items diagnosed": f"{len(intact[0])}"}
