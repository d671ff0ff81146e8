"""Decoded against used, latent by latent: what a probe reads off each state, and what hangs on its being fed back.

State 0 is the hidden state before any latent, state i that of latent i. A probe reads states 1 to k. A patch of state i
puts another problem's in its place where it is fed back, which is the input of latent i + 1: states 0 to k - 1. State k
is fed back to nothing: the answer begins from it. In a record `diagnosis.probe` so begins with state 1, and
`diagnosis.causal.patches` with state 0. Newer records also say how many patches are answered as the donor's state
(`eval.interchange`).
"""

import json
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

import numpy as np

from eval.diagnose import Options
from eval.environments.base import iterate
from eval.environments.cups import Cups
from eval.stats import Difference, half_width, holm, paired
from latent.plain import unpack
from paper import records
from paper.figures import GREY, STYLES, pyplot, save
from paper.markup import SAME_INPUTS, brief, effect, floating, markdown_rows, tabular, tex
from paper.tables import Row, Table

MARKS = "osDvP^X<"
KINDS = {  # of lines of the table
    "decoded": "decoded",
    "at_random": "control task",
    "flipped": "flipped",
    "exchanged": "as the donor's",
    "by_chance": "by chance",
}
PATCHED = {"flipped": "flipped", "exchanged": "iia", "by_chance": "chance"}  # of a patch, by its name in a record


@dataclass(frozen=True)
class Latents:
    """What is known of a row's states, by seed; k latents, `items` problems.

    `decoded_SK`: accuracy of the probe for the step that states 1 to k stand for, over its tokens; `commonest_SK`, of
    always the commonest token; `at_random_SK`, of a probe for tokens given to steps at random, nan where too few steps
    were known. `flipped_SK`: share of answers that change where states 0 to k - 1 are patched; `exchanged_SK`, of the
    answers that these patches should change, those that are what the donor's state leads to, and `by_chance_SK`, what
    another donor's does, nan where that was not measured. None where what is fed back is the same for all problems.
    """

    row: Row
    items: int
    decoded_SK: np.ndarray
    commonest_SK: np.ndarray
    at_random_SK: np.ndarray
    flipped_SK: np.ndarray | None
    exchanged_SK: np.ndarray | None
    by_chance_SK: np.ndarray | None

    @property
    def k(self) -> int:
        return self.decoded_SK.shape[1]

    def places(self, longest: int) -> list[int]:
        """Where states 0 to k stand among those of a row with `longest` latents: with as much of the chain behind."""
        return [-(-i * longest // self.k) for i in range(self.k + 1)]

    def by_state(self, kind: str) -> dict[int, np.ndarray]:
        """The shares (S,) of a kind by state; none of what was not measured."""
        shares_SK = getattr(self, f"{kind}_SK")
        if shares_SK is None:
            return {}
        first = 0 if kind in PATCHED else 1
        return {i: x_S for i, x_S in enumerate(shares_SK.T, first) if np.isfinite(x_S).all()}


def gather(table: Table) -> list[Latents]:
    """The states of every row that was diagnosed and whose problems have steps."""
    found = []
    for row in table.rows.values():
        diagnoses = [line["diagnosis"] for line in row.lines] if row.diagnosed else []
        patches = [each["causal"]["patches"] for each in diagnoses]
        k = min((min(len(each["probe"]), len(patch)) for each, patch in zip(diagnoses, patches)), default=0)
        if not k:
            continue

        def by_state(seeds: list[list[dict]], name: str) -> np.ndarray:
            return np.array([[at.get(name, np.nan) for at in states[:k]] for states in seeds])  # noqa: B023

        probed = [by_state([each["probe"] for each in diagnoses], name) for name in ("accuracy", "majority", "control")]
        same = row.lines[0]["config"]["method"]["class"] in SAME_INPUTS
        patched = [None if same else by_state(patches, name) for name in PATCHED.values()]
        items = len(records.unpack(diagnoses[0]["causal"]["intact"]))
        found.append(Latents(row, items, *probed, *patched))
    return found


def interval(x_S: np.ndarray, items: int) -> tuple[float, float]:
    """A 95 % interval of a share over S seeds: Student's, whose spread counts as at least half an item.

    That of a single seed says nothing: from 0 to 1.
    """
    if len(x_S) < 2:
        return 0.0, 1.0
    half = half_width([(max(float(x_S.std(ddof=1)), 0.5 / items) / sqrt(len(x_S)), len(x_S) - 1)], 0.05)
    return max(0.0, float(x_S.mean()) - half), min(1.0, float(x_S.mean()) + half)


def other_step(found: list[Latents]) -> list[float] | None:
    """The share of problems whose donor is at another step, after 0, 1, ... steps; None but for `cups`.

    A swap is one to one: from another arrangement the same swaps lead to another answer. So many answers change if a
    model has all that was before from the state that is fed back, and nothing else. It is no bound: a state that says
    nothing may change more. Donors are those of `eval.interventions` where all answers are right.
    """
    env = found[0].row.lines[0]["config"]["env"]
    return _other_step(json.dumps(env), found[0].items) if env["class"] == "Cups" and env.get("turns", 1) == 1 else None


@cache
def _other_step(env: str, items: int) -> list[float]:
    from eval.interventions import donors_of  # it loads torch

    made = unpack(json.loads(env), [Cups], "env").make()
    differs = []
    for part in iterate(made.problems("test", made.main_level, items), Options.batch):
        for problem, d in zip(part, donors_of([p.answer for p in part], [1] * len(part))):
            differs.append([0, *(a != b for a, b in zip(problem.steps, part[d].steps))])
    return np.mean(differs, 0).tolist()


def says_its_step(each: Latents) -> bool:
    """Whether state i is taught to say the step of latent i: by a step decoder, and not by the head."""
    method = each.row.lines[0]["config"]["method"]
    return method["class"] == "Sim" and method.get("told", "chain") == "chain" and not method.get("head")


def expected(each: Latents, steps: list[float]) -> np.ndarray:
    """That share at states 0 to k - 1, whose steps are dealt evenly over the latents."""
    return np.array([steps[place] for place in each.places(len(steps) - 1)[:-1]])


def contrasts(table: Table) -> dict[str, tuple[Difference, float]]:
    """Differences by key, with p-values corrected for their number (Holm); paired over seeds, which alone are drawn.

    Means over states: of the ablation's contrasts whose rows have as many latents, what decodes (states 1 to k) and
    what flips (1 to k - 1); of each row that feeds states back, what flips less where state 0 is patched, and, where
    each is taught its step, less what would from the state alone (`other_step`); of each row whose patches should lead
    somewhere, how many do, less by chance.
    """
    found = {each.row.label: each for each in gather(table)}
    pairs = {}
    for contrast in table.ablation.contrasts:
        a, b = found.get(contrast.a), found.get(contrast.b)
        if a is None or b is None or a is b or a.k != b.k:
            continue
        key, items = f"{table.name}: {a.row.label} - {b.row.label}", min(a.items, b.items)
        pairs[f"{key}: decoded"] = a.decoded_SK.mean(1), b.decoded_SK.mean(1), items
        if a.flipped_SK is not None and b.flipped_SK is not None and a.k > 1:
            pairs[f"{key}: flipped"] = a.flipped_SK[:, 1:].mean(1), b.flipped_SK[:, 1:].mean(1), items
    steps = other_step(list(found.values())) if found else None
    for label, each in found.items():
        hits, by_chance = each.by_state("exchanged"), each.by_state("by_chance")
        if states := sorted(hits.keys() & by_chance.keys()):
            both = (np.mean([of[i] for i in states], 0) for of in (hits, by_chance))
            pairs[f"{table.name}: {label}: as the donor's - by chance"] = *both, each.items
        if each.flipped_SK is None or each.k == 1:
            continue
        flipped_S = each.flipped_SK[:, 1:].mean(1)
        pairs[f"{table.name}: {label}: flipped - before"] = flipped_S, each.flipped_SK[:, 0], each.items
        if steps is not None and says_its_step(each):
            all_S = np.full_like(flipped_S, expected(each, steps)[1:].mean())
            pairs[f"{table.name}: {label}: flipped - other step"] = flipped_S, all_S, each.items
    made = {key: paired(a[:, None], b[:, None], table.n_boot, unit=1 / n) for key, (a, b, n) in pairs.items()}
    return {key: (d, p) for (key, d), p in zip(made.items(), holm([d.p for d in made.values()]))}


def numbers(table: Table) -> dict[str, str]:
    """Every number of the states that a text may quote, by key: shares with intervals over seeds, and contrasts."""
    found, values = gather(table), {}
    for each in found:
        for kind in (*KINDS, "commonest"):
            for i, x_S in each.by_state(kind).items():
                low, high = interval(x_S, each.items)
                key = f"{table.name}: {each.row.label}: state {i}: {kind.replace('_', ' ')}"
                values[key] = f"{x_S.mean():.3f} ({low:.3f} to {high:.3f})"
                values[f"{key}: value"] = f"{x_S.mean():.3f}"
    steps = other_step(found) if found else None
    values |= {f"{table.name}: other step: after {i}": f"{x:.3f}" for i, x in enumerate(steps or ())}
    for key, (d, p) in contrasts(table).items():
        values[key], values[f"{key}: brief"] = effect(d, p), brief(d, p)
    return values


def caption(table: Table, found: list[Latents]) -> str:
    """What the numbers of a table are, and what they leave open."""
    reference = (
        " Donor at another step: the share of problems whose donor's arrangement differs there. Swaps are one to one: "
        "so many answers change if a model has all that was before from the state that is fed back, and nothing else. "
        "It is no bound (a broken state changes answers, too), and of states that are taught to say their own step; "
        "after a curriculum a state may be a step ahead."
        if other_step(found) is not None
        else ""
    )
    exchanged = (
        " As the donor's: of the patches that should change the right answer, the share whose answer is what the "
        "donor's state leads to under the problem's own remaining steps (interchange intervention accuracy, Geiger et "
        "al. 2021); by chance: what the state of another donor, which is not fed back, leads to."
        if any(each.by_state("exchanged") for each in found)
        else ""
    )
    return (
        f"{short_caption(table, found)} Decoded: accuracy of a linear probe, fitted on training problems, for the "
        "tokens of the step that a state stands for; control task: of a probe for tokens given to steps at random, "
        "which is high where few different steps occur; commonest token: without a state. "
        "Flipped: the share of answers that change where another problem's state is fed back in a state's place. The "
        "last state is fed back to nothing, and controls (in italics) feed back nothing of a problem. A patch leaves "
        "the prompt and earlier positions to attention, so that a state may be used and not flip an answer."
        + exchanged
        + reference
    )


def short_caption(table: Table, found: list[Latents]) -> str:
    """What a table is of, without what its numbers are: the paper's text says that once."""
    fewer = " A state of fewer latents stands where as much of the chain is behind it."
    return (
        f"Decoded against used, state by state (0: before any latent; i: of latent i); means over {table.seeds} seeds, "
        f"{found[0].items} problems each at the hardest level.{fewer if len({each.k for each in found}) > 1 else ''}"
    )


def body(table: Table, found: list[Latents]) -> list[list[str]]:
    """The table as text, its head first: for each row what decodes, the control task and what flips, by state."""
    longest = max(each.k for each in found)
    rows = [["", "", *map(str, range(longest + 1))]]

    def line(label: str, kind: str, shares: dict[int, float]) -> list[str]:
        return [label, kind, *(f"{shares[i]:.3f}" if i in shares else "" for i in range(longest + 1))]

    for each in found:
        at = each.places(longest)
        for kind, name in KINDS.items():
            if shares := {at[i]: float(x_S.mean()) for i, x_S in each.by_state(kind).items()}:
                rows.append(line(each.row.label if kind == "decoded" else "", name, shares))
    rows.append(line("commonest token", "", commonest(found)))
    if (steps := other_step(found)) is not None:
        rows.append(line("donor at another step", "", placed(steps, longest)))
    return rows


def placed(steps: list[float], longest: int) -> dict[int, float]:
    """Shares after 0, 1, ... of a chain's steps, but for the last, by the place of the state that stands for them."""
    every = len(steps) - 1
    return {i * longest // every: steps[i] for i in range(every) if i * longest % every == 0}


def commonest(found: list[Latents]) -> dict[int, float]:
    """Accuracy of the commonest token by place, of the row with the most latents."""
    most = max(found, key=lambda each: each.k)
    return {i: float(x_S.mean()) for i, x_S in most.by_state("commonest").items()}


def markdown(table: Table, found: list[Latents]) -> str:
    """The table in Markdown."""
    controls = {each.row.label for each in found if each.row.control}
    head, *rows = body(table, found)
    lines = [f"{caption(table, found).replace('in italics', 'in *italics*')}\n"]
    lines += ["| " + " | ".join(head) + " |", "|---" * 2 + "|" + "---|" * (len(head) - 2)]
    lines += markdown_rows(rows, controls)
    differences = contrasts(table)
    if differences:
        lines += ["", "Differences, means over states, paired over seeds (p-values corrected by Holm):", ""]
        lines += [f"* {key.removeprefix(f'{table.name}: ')}: {effect(d, p)}" for key, (d, p) in differences.items()]
    return "\n".join([*lines, ""])


def latex(table: Table, found: list[Latents]) -> str:
    """The table in LaTeX."""
    controls = {each.row.label for each in found if each.row.control}
    head, *rows = body(table, found)
    out = tabular("ll" + "r" * (len(head) - 2), head, [[r[0], *map(tex, r[1:])] for r in rows], controls)
    return floating(short_caption(table, found), f"{table.name}-latents", out, "H", "footnotesize")


def texts(table: Table) -> dict[str, str]:
    """The text files by name; none of a table without diagnosed states."""
    found = gather(table)
    name = f"tables/{table.name}-latents"
    return {f"{name}.md": markdown(table, found), f"{name}.tex": latex(table, found)} if found else {}


def draw(table: Table, folder: Path) -> None:
    """Draw what decodes beside what flips, by state; controls are grey."""
    found = gather(table)
    if not found:
        return
    longest = max(each.k for each in found)
    rows = -(-len(found) // 4)
    fig, axes = pyplot().subplots(1, 2, figsize=(7.4, 2.5 + 0.17 * rows), layout="constrained", sharex=True)
    plain = [each.row.label for each in found if not each.row.control]
    for n, each in enumerate(found):
        at, control = each.places(longest), each.row.control
        colour, _, dash = STYLES[plain.index(each.row.label) % len(STYLES)] if not control else (GREY, "", ":")
        shift = 0.07 * (n - (len(found) - 1) / 2)  # intervals stand side by side
        for ax, kind in zip(axes, ("decoded", "flipped")):
            shares = each.by_state(kind)
            if not shares:
                continue
            means = np.array([x_S.mean() for x_S in shares.values()])
            ends = np.array([interval(x_S, each.items) for x_S in shares.values()])
            ax.errorbar([at[i] + shift for i in shares], means, np.abs(ends.T - means), color=colour, ls=dash, lw=1,
                        marker=MARKS[n % len(MARKS)], mfc="white" if control else colour, ms=4, elinewidth=0.7,
                        label=each.row.label if kind == "decoded" else None)  # fmt: skip
    references = [(axes[0], commonest(found), "-", "commonest token")]
    if (steps := other_step(found)) is not None:
        references.append((axes[1], placed(steps, longest), "--", "donor at another step"))
    for ax, line, dash, name in references:
        ax.plot(list(line), list(line.values()), color="black", lw=0.8, ls=dash, zorder=0, label=name)
    for ax, name in zip(axes, ("decoded: accuracy of the probe", "flipped: share of answers changed")):
        ax.set(ylabel=name, xlabel="state (0: before any latent)", ylim=(-0.03, 1.05))
        ax.set_xticks(range(longest + 1))
        ax.grid(color="#eeeeee", lw=0.6)
    shown = [dict(zip(*ax.get_legend_handles_labels()[::-1])) for ax in axes]
    order = [each.row.label for each in found] + [name for *_, name in references]
    handles = [(shown[0] | shown[1])[name] for name in order]
    fig.legend(handles, order, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    save(fig, folder, f"{table.name}-latents")
