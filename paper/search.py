"""Searches over settings: what was tried for each arm on the validation split, and what was chosen."""

from dataclasses import dataclass

from kernels.errors import UserError
from latent.plain import changed
from paper import records
from paper.design import Axis, Cell, Search, candidate
from paper.tables import seconds
from train.config import Experiment
from train.presets import PRESETS


@dataclass(frozen=True)
class Searched:
    """What the search of one arm found: validation accuracy by candidate, in the order of the axis.

    `edges`: the fields of the chosen candidate that are the least or the largest value tried. `in_preset`: whether the
    preset has the chosen values.
    """

    arm: str
    accuracies: dict[str, float]
    chosen: str
    edges: tuple[str, ...]
    in_preset: bool
    core_seconds: float


def gather(name: str, search: Search, cells: list[Cell], lines: dict[str, dict]) -> list[Searched]:
    """What was found for each arm; of equally good candidates the first is chosen. `lines`: the records of searches.

    Raises UserError naming a cell whose record is missing.
    """
    missing = [c for c in cells if c.run.id not in lines]
    if missing:
        raise UserError(
            f"search {name}: no record of {missing[0].row or 'a start'!r} (run {missing[0].run.id}) and "
            f"{len(missing) - 1} more; python -m paper.run --search {name}"
        )
    by_row = {c.row: lines[c.run.id] for c in cells if c.row}
    preset, found = PRESETS[search.base](), []
    assert isinstance(preset, Experiment)  # as the cells were made from it
    for arm, axis in search.axes.items():
        tried = {choice: by_row[candidate(arm, choice)] for choice in axis}
        accuracies = {choice: line["result"]["main"]["accuracy"] for choice, line in tried.items()}
        chosen = max(accuracies, key=accuracies.__getitem__)
        kept = preset.arms[arm]
        in_preset = changed(kept, axis[chosen]) == kept
        spent = sum(seconds(line, lines) for line in tried.values())
        found.append(Searched(arm, accuracies, chosen, edges(axis, chosen), in_preset, spent))
    return found


def edges(axis: Axis, chosen: str) -> tuple[str, ...]:
    """The numeric fields whose chosen value is the least or the largest of several that were tried."""
    at = []
    for path, value in axis[chosen].items():
        tried = [change[path] for change in axis.values() if path in change]
        numbers = [x for x in tried if isinstance(x, int | float) and not isinstance(x, bool)]
        if numbers == tried and len(set(numbers)) > 1 and value in (min(numbers), max(numbers)):
            at.append(path)
    return tuple(at)


def markdown(name: str, search: Search, cells: list[Cell], lines: dict[str, dict]) -> str:
    """The table of a search."""
    found = gather(name, search, cells, lines)
    first = lines[next(c.run.id for c in cells if c.row)]["result"]
    problems = f"{len(records.unpack(first['correct'])):,} problems of the validation split"
    if "clusters" in first:
        clusters = len(set(records.unpack_clusters(first["clusters"])))
        problems += f" in {clusters:,} clusters that stand or fall together"
    out = [
        f"Search for the settings of the preset `{search.base}`: {len(found[0].accuracies)} candidates an arm, seed "
        f"{search.seed}, of which no table has a run; accuracy at the hardest level on {problems}, greedy. No problem "
        "of a table was judged. The chosen candidate is in bold, of equally good ones the first. Core-seconds include "
        "those of a run's start.\n",
        "| arm | candidates: validation accuracy | chosen at an edge of its grid | in the preset | core-s |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        tried = [f"{choice}: {accuracy:.3f}" for choice, accuracy in each.accuracies.items()]
        at = list(each.accuracies).index(each.chosen)
        tried[at] = f"**{tried[at]}**"
        edge = ", ".join(each.edges) or "no"
        kept = "yes" if each.in_preset else "no"
        out.append(f"| {each.arm} | {'; '.join(tried)} | {edge} | {kept} | {each.core_seconds:,.0f} |")
    return "\n".join([*out, ""])
