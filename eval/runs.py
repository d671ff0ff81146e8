"""The runs in a folder, one on each line, or two runs compared: `python -m eval.runs`."""

from __future__ import annotations

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from kernels.errors import UserError
from latent import methods
from latent.cli import guarded, parse, program
from latent.files import field, read_json, read_lines
from latent.methods import MethodConfig


@dataclass(frozen=True)
class Options:
    """Which runs to show, and how."""

    out: Path = Path("runs")
    """Folder of the run records."""
    sort: Literal["begun", "when", "accuracy", "latents", "used", "core-s", "core_seconds", "method"] = "begun"
    """Order of the lines; the largest or latest is last."""
    where: tuple[str, ...] = ()
    """Only runs whose config has these values, e.g. method=Sim method.n_latent=8 env=Cups seed=0."""
    compare: tuple[str, str] | None = None
    """Two runs, by the beginnings of their ids: show what differs in config and result."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        options = parse(Options, args, program("eval.runs", "latent-runs"), __doc__)
        if not options.out.is_dir():
            raise UserError(f"no folder {options.out}: runs are written there, or where --out says")
        next(options.out.iterdir(), None)  # raises where it may not be read, which a pattern passes over
        runs, damaged = [], {}
        for path in sorted(options.out.glob("*/config.json")):
            try:
                if (run := read(path.parent)) is not None:
                    check(run)
                    runs.append(run)
            except UserError as e:
                damaged[path.parent.name] = str(e)
        for name in options.compare or ():
            if why := next((why for id, why in damaged.items() if id.startswith(Path(name).name)), None):
                raise UserError(f"{name} is damaged: {why}")
        print(*(comparison(options.compare, runs) if options.compare else listing(options, runs)), sep="\n")
        for name, why in damaged.items():
            print(f"{name} is damaged and left out: {why}", file=sys.stderr)

    return guarded(body)


@dataclass(frozen=True)
class Recorded:
    """One run's record. `when`: the time of its first start, in seconds since 1970."""

    home: Path
    config: dict
    result: dict | None
    updates: int
    when: float

    @property
    def id(self) -> str:
        """The name of the run's folder."""
        return self.home.name

    @property
    def data(self) -> str | None:
        """The fingerprint of the data that its problems come from; None where its config alone says what they are."""
        path = self.home / "env.json"
        return read_json(path).get("data") if path.exists() else None

    @property
    def flat(self) -> dict[str, object]:
        """Config fields by dotted name. The value of a part is its class name."""
        return _flat(self.config)


def read(home: Path) -> Recorded | None:
    """A run's record; None for a folder of something else. Raises UserError naming a damaged file."""
    path = home / "config.json"
    config = read_json(path)
    if config.get("class") != "Run":
        return None
    for part in ("env", "method"):
        field(config, f"{part}.class", str, path)
    result = read_json(home / "result.json") if (home / "result.json").exists() else None
    log = read_lines(home / "metrics.jsonl")
    updates = field(log[-1], "step", int, home / "metrics.jsonl") if log else 0
    return Recorded(home, config, result, updates, begun(home))


def begun(home: Path) -> float:
    """The time of a run's first start, from env.json; of older records, the time of config.json."""
    path = home / "env.json"
    starts = read_json(path).get("starts") if path.exists() else None
    if starts is None:
        return (home / "config.json").stat().st_mtime
    try:
        return datetime.fromisoformat(starts[0]["time"]).timestamp()
    except (TypeError, KeyError, IndexError, ValueError):
        raise UserError(f"{path} does not say when the run was begun: starts[0].time") from None


NUMBER = (int, float)


def check(run: Recorded) -> None:
    """Raise UserError, naming file and field, where a field that is listed or compared is missing."""
    field(run.config, "train.class", str, run.home / "config.json")
    field(run.config, "train.steps", int, run.home / "config.json")
    field(run.config, "seed", int, run.home / "config.json")
    if run.result is not None:
        path = run.home / "result.json"
        for name in ("main.accuracy", "main.low", "main.high", "main.used", "steps", "flops", "core_seconds"):
            field(run.result, name, NUMBER, path)
        if any(hit not in (0, 1) for hit in field(run.result, "correct", list, path)):
            raise UserError(f"{path}: field 'correct' must hold 0 and 1")
        if "clusters" in run.result:
            together = field(run.result, "clusters", list, path)
            if len(together) != len(run.result["correct"]) or not all(type(c) is int and c >= 0 for c in together):
                raise UserError(f"{path}: field 'clusters' must hold a number from 0 for each of 'correct'")


def judged_alike(a: Recorded, b: Recorded) -> bool:
    """Whether two finished runs were judged on the same problems. Older records do not have them, but the config that
    they come from, and the fingerprint of its data."""
    assert a.result is not None and b.result is not None  # they have finished
    if len(a.result["correct"]) != len(b.result["correct"]) or a.flat.get("env") != b.flat.get("env"):
        return False
    if "problems" in a.result and "problems" in b.result:
        return a.result["problems"] == b.result["problems"]
    split_a, split_b = (run.flat.get("judge.split", "test") for run in (a, b))
    return split_a == split_b and _flat(a.config["env"]) == _flat(b.config["env"]) and a.data == b.data


def finished_beside(run: Path, same: tuple[str, ...]) -> Iterator[tuple[Path, MethodConfig]]:
    """The finished runs beside a run that share the parts `same` of its config, each with its method's config."""
    own = read(run)
    if own is None:
        return
    for path in sorted(run.resolve().parent.glob("*/config.json")):
        try:
            other = read(path.parent)
            if other is None or other.result is None or any(other.config.get(n) != own.config.get(n) for n in same):
                continue
            if other.data != own.data:
                continue
            method = methods.unpack(other.config["method"])
        except UserError as e:
            print(f"{path.parent.name} is left out: {e}", file=sys.stderr)
            continue
        yield path.parent, method


def _flat(config, name: str = "") -> dict[str, object]:
    if not isinstance(config, dict):
        return {name: config}
    values: dict[str, object] = {name: str(config["class"])} if name and "class" in config else {}
    for key, value in config.items():
        if key != "class":
            values |= _flat(value, f"{name}.{key}".lstrip("."))
    return values


def listing(options: Options, runs: list[Recorded]) -> list[str]:
    """The table."""
    names = sorted({name for run in runs for name in run.flat})
    for wish in options.where:
        key, sep, value = wish.partition("=")
        if not sep:
            raise UserError(f"--where takes NAME=VALUE, got {wish!r}")
        if key not in names:
            raise UserError(f"no run has a field {key!r}; there are {', '.join(names)}")
        runs = [run for run in runs if str(run.flat.get(key)).lower() == value.lower()]
    if not runs:
        return [f"no runs in {options.out}" + (" that match" if options.where else "")]

    def main(run: Recorded, name: str) -> float:
        return run.result["main"][name] if run.result else -1.0

    keys: dict[str, Callable[[Recorded], Any]] = {
        "begun": lambda run: run.when,
        "accuracy": lambda run: main(run, "accuracy"),
        "latents": lambda run: main(run, "used"),
        "core-s": lambda run: run.result["core_seconds"] if run.result else -1.0,
        "method": lambda run: str(run.flat["method"]),
    }
    keys |= {"when": keys["begun"], "used": keys["latents"], "core_seconds": keys["core-s"]}  # their first names
    table = [["run", "begun", "env", "method", "train", "seed", "accuracy", "95 % interval", "latents", "core-s"]]
    for run in sorted(runs, key=keys[options.sort]):
        when = datetime.fromtimestamp(run.when).strftime("%Y-%m-%d %H:%M")
        what = [str(run.flat[name]) for name in ("env", "method", "train", "seed")]
        if run.result:
            m = run.result["main"]
            results = [f"{m['accuracy']:.3f}", f"{m['low']:.3f}-{m['high']:.3f}", f"{m['used']:.2f}"]
            results.append(f"{run.result['core_seconds']:.0f}")
        else:
            results = [f"at {run.updates} of {run.flat['train.steps']}", "-", "-", "-"]
        table.append([run.id, when, *what, *results])
    widths = [max(map(len, column)) for column in zip(*table)]
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
    return [rows[0], "-" * len(rows[0]), *rows[1:]]


def comparison(names: tuple[str, str], runs: list[Recorded]) -> list[str]:
    """What differs between two runs, and the paired difference of their accuracies."""
    import numpy as np

    from eval.stats import mcnemar, paired

    a, b = (pick(runs, name) for name in names)
    fields = [name for name in a.flat | b.flat if a.flat.get(name) != b.flat.get(name)]
    out = [f"{name}: {a.flat.get(name, '-')} | {b.flat.get(name, '-')}" for name in fields] or ["the same config"]
    if not a.result or not b.result:
        return [*out, "one of them has not finished: nothing to compare yet"]
    for name in ("accuracy", "used"):
        out.append(f"{name}: {a.result['main'][name]:.3f} | {b.result['main'][name]:.3f}")
    for name in ("steps", "flops", "core_seconds"):
        out.append(f"{name}: {a.result[name]:.4g} | {b.result[name]:.4g}")
    if not judged_alike(a, b):
        return [*out, "judged on different problems: no paired difference"]
    x, y = np.array(a.result["correct"]), np.array(b.result["correct"])
    together = a.result.get("clusters") or b.result.get("clusters")  # records were made before clusters were kept
    d = paired(x, y, n_boot=2000, clusters=together)
    over = "items" if together is None else f"items in {len(set(together))} clusters"
    return [
        *out,
        f"{a.id} - {b.id}: {100 * d.mean:+.1f} points, paired 95 % interval {100 * d.low:+.1f} to "
        f"{100 * d.high:+.1f} over {len(x)} {over}, McNemar p = {mcnemar(x.tolist(), y.tolist(), together):.2g}",
    ]


def pick(runs: list[Recorded], name: str) -> Recorded:
    """The run whose id, or the name of whose folder, begins with `name`. Raises UserError for none or several."""
    matching = [run for run in runs if run.id.startswith(Path(name).name)]
    if len(matching) != 1:
        raise UserError(f"{len(matching)} runs begin with {name!r}" + "".join(f" {run.id}" for run in matching))
    return matching[0]


if __name__ == "__main__":
    sys.exit(main())
