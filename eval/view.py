"""Look into thoughts: `python -m eval.view RUN` writes RUN/view.html, a page that needs no network.

The page walks through the latent steps of a problem. It shows, for each: the likeliest tokens; what a linear probe
reads off it, beside the chain's step; the probability of stopping; how far the state moved; where it attends; the
answer if the loop stops there, and the answer if the latent's input is the mean over problems. Beside them stands the
same problem in CoT.
"""

from __future__ import annotations

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eval.diagnose import opened
from eval.runs import finished_beside
from latent.cli import at_least, at_most, guarded, parse, program
from latent.files import check_writable, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from eval.environments.base import Environment, Problem
    from latent.generate import Reasoner
    from latent.thought import Thought

TEMPLATE = Path(__file__).parent / "view.html"


@dataclass(frozen=True)
class Options:
    """What to show."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run (runs/ID)."""
    cot: Path | None = None
    """A CoT run to show the same problems of; by default one with the same problems, model and seed in RUN's folder."""
    problems: int = 12
    """Held-out problems, over all levels."""
    top: int = 6
    """Tokens shown of each thought."""
    probe_items: int = 2000
    """Training problems that the probes are fitted on, and that mean inputs are taken over."""
    out: Path | None = None
    """The page; RUN/view.html by default."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to run; auto is a GPU if there is one."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        options = parse(Options, args, program("eval.view", "latent-view"), __doc__)
        at_least(options, problems=1, top=1, probe_items=10)
        at_most(options, "problems", "probe_items")
        from latent import hub

        hub.find_checkpoint(options.run)  # raises now rather than after minutes of work
        out = options.out or options.run / "view.html"
        check_writable(out, "--out")
        write_text(out, page(look(options)))
        print(out)

    return guarded(body)


def page(data: dict) -> str:
    """The page that shows `data`.

    Characters that are special in HTML or in a script are written as JSON escapes, so that no text of a problem can end
    the script.
    """
    special = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
    before, after = TEMPLATE.read_text(encoding="utf-8").split("/*DATA*/ null")
    return before + json.dumps(data).translate(special) + after


def cot_of(run: Path) -> Path | None:
    """A finished run beside `run` that writes whole chains, with the same problems, model and seed."""
    for folder, method in finished_beside(run, ("env", "model", "seed")):
        if method.chain_share == 1:
            return folder
    return None


def look(options: Options) -> dict:
    """Everything that the page shows. Raises ValueError where it cannot be had."""
    import torch

    from eval import readings
    from latent import load

    torch.set_num_threads(1)
    reasoner, env = opened(options.run, options.device, "look into")
    each = -(-options.problems // len(env.levels()))
    problems = [p for level in env.levels()[::-1] for p in env.problems("test", level, each)][: options.problems]
    known = env.train_batch("probe", 0, options.probe_items)
    states = readings.trace(reasoner, known)
    probes = {}  # of each latent, one for each token of its step
    for i in range(1, states.states_NKD.shape[1]):
        h_ND, steps = readings.targets(reasoner, states, i)
        probes[i] = [
            readings.linear_probe(a_ND, [step[place] for step in kept])
            for place in range(max(map(len, steps), default=0))
            for a_ND, kept in [readings.with_place(h_ND, steps, place)]
        ]
    cot = options.cot or cot_of(options.run)
    chains = None if cot is None else load(cot, reasoner.method.backbone.device)
    mean_inputs = means(reasoner, known)
    return {
        "run": options.run.resolve().name,
        "places": [f"answer {i + 2}" for i in range((reasoner.method.parallel_answer or 1) - 1)],
        "method": type(reasoner.method.made_from).__name__,
        "env": type(env).__name__.removesuffix("Environment"),
        "levels": len(env.levels()),
        "problems": [one(reasoner, env, p, mean_inputs, probes, chains, options.top) for p in problems],
    }


def means(reasoner: Reasoner, known: list) -> tuple[list, int]:
    """The mean input of each latent step over problems of one length, and that length in tokens."""
    import torch

    from eval.interventions import recording, think_and_answer
    from latent.thought import Greedy

    by_length: dict[int, list] = {}
    for p in known:
        by_length.setdefault(len(reasoner.codec.question(p.question)), []).append(p)
    length, alike = max(by_length.items(), key=lambda pair: len(pair[1]))
    inputs: dict = {}
    with torch.inference_mode():
        _, thought = think_and_answer(reasoner, alike[:256], Greedy(), edit=recording(inputs))
    return [x[thought.used_U > i].mean(0, keepdim=True) for i, x in sorted(inputs.items())], length


def one(
    reasoner: Reasoner, env: Environment, problem: Problem, mean_inputs: tuple[list, int], probes: dict,
    chains: Reasoner | None, top: int,
) -> dict:  # fmt: skip
    """A problem with its thoughts."""
    import torch

    from eval import readings
    from eval.interventions import think_and_answer
    from eval.judge import verify
    from latent.halting import StopHead
    from latent.thought import Greedy

    method, codec = reasoner.method, reasoner.codec
    decode = codec.text

    def judged(text: str) -> dict:
        return {"text": text, "correct": verify(env, problem, text).correct}

    with torch.inference_mode():
        with method.backbone.tap(states=False, attentions=True) as tapped:
            method.think(codec.prompt([problem.question], method.backbone.device), Greedy())
        (text,), thought = think_and_answer(reasoner, [problem], Greedy())
        used, states_KD = int(thought.used_U[0]), thought.states_UKD[0]
        p_KV = method.backbone.head(method.lens(states_KD[: used + 1])).softmax(-1)
        halts = None if not isinstance(method.stop, StopHead) else method.stop(states_KD[: used + 1], 1).probs.tolist()
        thoughts = []
        for i in range(used + 1):
            h_D = states_KD[i]
            best = p_KV[i].topk(min(top, p_KV.shape[-1]))
            layers = method.of_latent(tapped.calls, i).attentions.values()
            shown: dict[str, Any] = {
                "top": [[decode([t]), p] for p, t in zip(best.values.tolist(), best.indices.tolist())],
                "halt": None if halts is None else halts[i],
                "attention": [a[0, :, 0].mean(0).tolist() for a in layers],  # the mean over heads
                "stopped": judged(think_and_answer(reasoner, [problem], Greedy(), steps=i)[0][0]),
            }
            if i:
                shown["moved"] = ((h_D - states_KD[i - 1]).norm() / h_D.norm()).item()
                if (text_without := ablated(reasoner, problem, thought, i - 1, mean_inputs)) is not None:
                    shown["ablated"] = judged(text_without)
                if probes.get(i) and (step := readings.step_of(reasoner, problem, i)):
                    shown["oracle"] = decode(list(step))
                    shown["probe"] = decode([probe(h_D[None])[0] for probe in probes[i][: len(step)]])
            thoughts.append(shown)
    return {
        "question": problem.question,
        "answer": problem.answer,
        "level": problem.level,
        "tokens": [decode([t]) for t in codec.question(problem.question)],
        "used": used,
        **judged(text),
        "thoughts": thoughts,
        "chain": None if chains is None else judged(chains.codec.texts(chains.tokens([problem.question])[0])[0]),
    }


def ablated(
    reasoner: Reasoner, problem: Problem, thought: Thought, latent: int, mean_inputs: tuple[list, int]
) -> str | None:
    """The text with the input of a latent, counted from 0, replaced by its mean.

    None where the mean was not taken: at a latent that no problem of it thought, and in a loop along the depth for a
    prompt of another length.
    """
    from eval.interventions import StopAfter, think_and_answer

    inputs, length = mean_inputs
    other_length = len(reasoner.codec.question(problem.question)) != length
    if latent >= len(inputs) or (reasoner.method.parallel_answer is not None and other_length):
        return None

    def edit(i: int, x: Tensor) -> Tensor:
        return inputs[latent].expand_as(x) if i == latent else x

    return think_and_answer(reasoner, [problem], StopAfter(thought.used_U), edit=edit)[0][0]


if __name__ == "__main__":
    sys.exit(main())
