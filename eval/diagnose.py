"""Are a run's latents used? `python -m eval.diagnose RUN` answers with numbers, beside the run's controls.

Controls are runs in the same folder whose method is a control of the run's method (pause tokens, a fixed embedding),
with the same config otherwise but for the feedback. Other runs can be named. All numbers are kept in
RUN/diagnostics.json.
"""

from __future__ import annotations

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import json
import sys
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from eval.runs import finished_beside
from kernels.errors import UserError, memory_for
from latent.cli import aligned, at_least, at_most, guarded, parse, program
from latent.files import check_writable, field, read_json, write_text
from latent.methods import ControlConfig, SequenceConfig, unpack


@dataclass(frozen=True)
class Options:
    """What to look at."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run (runs/ID)."""
    beside: tuple[Path, ...] = ()
    """Runs to show beside it; by default the controls in its folder."""
    items: int = 500
    """Held-out problems of the main level."""
    batch: int = 250
    """Problems in a batch. Thoughts are exchanged within a batch."""
    probe_items: int = 2000
    """Training problems that the linear probes are fitted on."""
    group: int = 16
    """Samples of each of 64 problems, to see what RL would learn from."""
    layer: int | None = None
    """Layer whose states the lens, the probes and the distances read at each latent step: 0 is the embeddings, -1 the
    last block. By default they read the thoughts themselves."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to run; auto is a GPU if there is one."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        options = parse(Options, args, program("eval.diagnose", "latent-diagnose"), __doc__)
        at_least(options, items=2, batch=2, probe_items=10, group=2)
        at_most(options, "items", "probe_items")
        from latent import hub

        for run in (options.run, *options.beside):
            hub.find_checkpoint(run)  # raises now rather than after minutes of work
        check_writable(options.run / "diagnostics.json", "the file")
        diagnoses = {"run": diagnose(options.run, options)}
        for path in options.beside:
            diagnoses[path.name] = diagnose(path, options)
        for name, path in {} if options.beside else controls_of(options.run).items():
            try:
                diagnoses[name] = diagnose(path, options)
            except UserError as e:
                print(f"control left out: {name}: {e}")
        write_text(options.run / "diagnostics.json", json.dumps(diagnoses) + "\n")
        print(*lines(diagnoses), "", f"{options.run}/diagnostics.json", sep="\n")

    return guarded(body)


def controls_of(run: Path) -> dict[str, Path]:
    """The runs beside a run that are controls of its method, by the control's name.

    Raises UserError where there are two of one kind.
    """
    mine = unpack(field(read_json(run / "config.json"), "method", dict, run / "config.json"))
    controls: dict[str, Path] = {}
    for folder, method in finished_beside(run, ("env", "model", "train", "seed")):
        if not isinstance(method, ControlConfig) or not isinstance(mine, SequenceConfig):
            continue
        if replace(method.of, feedback=mine.feedback) != mine:
            continue
        kind = method.name
        if kind in controls:
            raise UserError(f"{controls[kind].name} and {folder.name} are both {kind} controls: say --beside")
        controls[kind] = folder
    return controls


@memory_for("diagnosing", "a smaller --batch needs less")
def diagnose(run: Path, options: Options) -> dict:
    """All numbers for one run. Raises UserError where the run does not think or its problems are not known."""
    import torch

    from eval import interventions, readings

    torch.set_num_threads(1)
    reasoner, env = opened(run, options.device, "diagnose")
    problems = env.problems("test", env.main_level, options.items)
    if len(problems) % options.batch == 1:
        problems = problems[:-1]  # a batch of one has nothing to exchange
    depth = reasoner.method.backbone.depth
    if options.layer is not None and not -depth - 1 <= options.layer <= depth:
        raise UserError(f"--layer must be from {-depth - 1} to {depth}, got {options.layer}")
    states = readings.trace(reasoner, problems, options.batch, options.layer)
    known = env.train_batch("probe", 0, options.probe_items)
    probe = []
    if any(p.steps for p in problems) and any(p.steps for p in known):
        probe = readings.probe(reasoner, readings.trace(reasoner, known, options.batch, options.layer), states)
    return {
        "method": type(reasoner.method.made_from).__name__,
        "env": type(env).__name__.removesuffix("Environment"),
        **({} if states.layer is None else {"layer": states.layer}),
        "latents": reasoner.method.trained_steps,
        "steps_written": reasoner.method.steps_written(env.chain_steps),
        "causal": interventions.causal(reasoner, env, problems, options.batch),
        "lens": readings.lens(reasoner, env, states),
        "probe": probe,
        "collapse": readings.collapse(states),
        "diversity": readings.diversity(reasoner, env, problems[:64], options.group),
    }


def opened(run: Path, device: str, purpose: str):
    """A run's reasoner and its environment. Raises UserError for a run without latents or without an environment.

    `purpose` completes the error's sentence "nothing to ...".
    """
    import torch

    from eval import environments
    from latent import load

    reasoner = load(run, "cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    if not reasoner.method.trained_steps:
        raise UserError(f"{run} thinks in no latents ({reasoner.method.title}): nothing to {purpose}")
    env = environments.of_run(run)
    if env is None:
        raise UserError(f"{run} is not a run's folder: its problems are not known")
    return reasoner, env


def cost(diagnosis: dict, kind: str) -> tuple[float, float, float]:
    """Accuracy lost by an intervention, with the 95 % interval of the paired difference over clusters of items."""
    from eval.stats import paired

    causal = diagnosis["causal"]
    after = causal["interventions"][kind]["correct"]
    lost = paired(causal["intact"], after, n_boot=2000, clusters=causal["clusters"])
    return lost.mean, lost.low, lost.high


def summary(diagnosis: dict) -> str:
    """One line that says whether the answer is computed through the latents."""
    lost, low, high = cost(diagnosis, "other problem")
    n = len(diagnosis["causal"]["intact"])
    verdict = "causally used" if low > 0 else "not shown to be used"
    return (
        f"The latents are {verdict} on this task ({diagnosis['env']}): thoughts of another problem cost "
        f"{100 * lost:.1f} points of accuracy (95 % interval {100 * low:.1f} to {100 * high:.1f}, {n} problems)."
    )


def exchanged(diagnosis: dict) -> str:
    """One line that says whether latents are the state of the task's computation; empty where that is not defined."""
    found = diagnosis["causal"].get("interchange", {"pairs": 0})
    if not found["pairs"]:
        return ""
    low, high = found["iia_interval"]
    by_chance = f"; by the state of yet another one {found['chance']:.3f}" if "chance" in found else ""
    return (
        "With one latent of another problem the answer is what that problem's state leads to under this one's "
        f"remaining steps in {found['iia']:.3f} of {found['pairs']} patches that should change it (interchange "
        f"intervention accuracy, 95 % interval {low:.3f} to {high:.3f}{by_chance})."
    )


def lines(diagnoses: dict[str, dict]) -> list[str]:
    """What to print: the summary, then tables with a column for each run."""
    out = [summary(diagnoses["run"]), *filter(None, [exchanged(diagnoses["run"])]), ""]
    if len(diagnoses) == 1:
        out += [
            "There is no control to compare with: train's command with --method pause, and with --method fixed, makes",
            "them (--method.of.FLAG is there what --method.FLAG is here).",
            "",
        ]
    rows = [["accuracy (95 % Wilson interval)", *diagnoses]]
    rows.append(["latents, as trained", *(str(f["latents"]) for f in diagnoses.values())])
    rows.append(["steps of the chain still written", *(str(f["steps_written"]) for f in diagnoses.values())])
    if "layer" in diagnoses["run"]:
        rows.append(["layer whose states are read", *(str(f["layer"]) for f in diagnoses.values())])
    causal = [f["causal"] for f in diagnoses.values()]
    rows.append(["as trained", *(share(c["intact"], c["clusters"]) for c in causal)])
    for kind in diagnoses["run"]["causal"]["interventions"]:
        name = "latents of another problem" if kind == "other problem" else f"latents {kind}"
        rows.append([name, *(share(c["interventions"][kind]["correct"], c["clusters"]) for c in causal)])
    for k in diagnoses["run"]["causal"]["sweep"]:
        rows.append([f"{k} latents", *(share(c["sweep"].get(k), c["clusters"]) for c in causal)])
    out += [*aligned(rows), ""]
    parts = {name: (f["causal"]["patches"], f["collapse"], f["probe"]) for name, f in diagnoses.items()}
    names = ("flipped", "donor", "moved", "cosine", "dimensions", "accuracy", "selectivity")
    heads = ("fed back: flipped", "to donor", "state: moved", "cosine", "dims", "probe", "selective")
    nothing: dict[str, Any] = {}
    for name, (patches, *read) in parts.items():  # the state before any latent is fed back, and is not read
        at_states = zip_longest(patches, *([nothing, *rows] for rows in read), fillvalue=nothing)
        merged = [{k: v for d in at for k, v in d.items()} for at in at_states]
        out += [*aligned([[f"state, {name}", *heads], *rows_of(merged, names, first=0)]), ""]
    for name, f in diagnoses.items():
        if "interchange" in f["causal"]:
            out += [*aligned(interchanges(name, f["causal"]["patches"])), ""]
    names = ("top", "entropy", "support", "oracle", "elsewhere", "frontier", "frontier_share")
    for name, f in diagnoses.items():
        out += [*aligned([[f"lens, {name}", *names], *rows_of(f["lens"], names, first=0)]), ""]
    for name, f in diagnoses.items():
        d = f["diversity"]
        entropy = ", ".join(f"{kind} {value:.3f}" for kind, value in d["entropy"].items())
        out.append(
            f"{name}: in {d['n']} groups of {d['group']} samples {d['texts']:.2f} distinct texts, {d['lengths']:.2f} "
            f"distinct lengths, pass@1 {d['pass_1']:.3f}, pass@{d['group']} {d['pass_group']:.3f}, flat groups "
            f"{d['flat']:.2f}, nats a decision {entropy}, sampler and trainer differ by at most {d['gap']:.1e}"
        )
    return out


def interchanges(name: str, patches: list[dict]) -> list[list[str]]:
    """A table of what patches of single states lead to, a row for each state that is fed back."""
    heads = ("step", "pairs", "IIA (95 % Wilson interval)", "chance", "unpatched", "a step before", "a step after")
    rows = [[f"exchanged, {name}", *heads]]
    for i, patch in enumerate(patches):
        low, high = patch.get("iia_interval", (0, 0))
        iia = f"{patch['iia']:.3f} ({low:.3f}-{high:.3f})" if patch["pairs"] else "-"
        number, *others = rows_of([patch], ("chance", "unpatched", "before", "after"), first=i)[0]
        rows.append([number, f"{patch['step']:g}", str(patch["pairs"]), iia, *others])
    return rows


def rows_of(rows: list[dict], names: tuple[str, ...], first: int) -> list[list[str]]:
    """A row for each latent; a dash where a number is missing."""
    return [
        [str(i), *("-" if row.get(name) is None else f"{row[name]:.2f}" for name in names)]
        for i, row in enumerate(rows, first)
    ]


def share(hits: list[int] | None, clusters: list[str]) -> str:
    """Accuracy with its 95 % Wilson interval; a dash where it was not measured."""
    from eval.stats import over_items

    if hits is None:
        return "-"
    low, high = over_items(hits, clusters)
    return f"{sum(hits) / len(hits):.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
