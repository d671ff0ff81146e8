"""Talk to a checkpoint: `python -m eval.chat RUN_OR_DIR`. Type a problem; it prints the answer and the thoughts.

A thought is shown as the likeliest tokens under its state (logit lens, nostalgebraist 2020). The verifier's verdict
follows where the environment and the problem's answer are known.
"""

from __future__ import annotations

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from kernels.errors import UserError
from latent.cli import at_least, guarded, parse, program

if TYPE_CHECKING:
    from eval.environments.base import Environment, Problem
    from latent.generate import Reasoner
    from latent.thought import Thought

HELP = "A problem, or: /sample (a held-out problem), /latents K (or /latents, as trained), /help, /quit"


@dataclass(frozen=True)
class Options:
    """What to talk to, and how."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A finished run (runs/ID), or a folder with a checkpoint."""
    latents: int | None = None
    """Latent steps, or recurrences; by default as trained."""
    top: int = 5
    """Tokens to show of each thought."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        options = parse(Options, args, program("eval.chat", "latent-chat"), __doc__)
        if options.latents is not None and options.latents < 0:
            raise UserError(f"--latents must be at least 0, got {options.latents}")
        at_least(options, top=1)
        talk(options)

    return guarded(body)


def talk(options: Options) -> None:
    """Read problems until the end of the input."""
    from eval import environments
    from eval.environments.base import is_whole
    from latent import load

    reasoner = load(options.checkpoint)
    try:
        env = environments.of_run(options.checkpoint)
    except UserError as e:
        print(f"there will be no verdicts, because the run's data cannot be read: {e}")
        env = None
    steps, drawn = options.latents, 0
    print(f"{reasoner.method.title}, {reasoner.method.trained_steps} latents as trained. {HELP}")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        except UnicodeDecodeError as e:
            print(f"cannot read this line: {e}")
            continue
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        if word == "/latents":
            if rest and not is_whole(rest, 9):
                print("/latents takes a whole number")
                continue
            steps = int(rest) if rest else None
        elif word == "/sample":
            if env is None:
                print("the environment is not known: this is not a run's folder")
                continue
            drawn += 1
            sampled = env.problems("test", env.main_level, drawn)[-1]
            print(sampled.question.strip())
            reply(reasoner, env, sampled.question, sampled, steps, options.top)
        elif word.startswith("/"):
            print(HELP)
        elif line:
            problem = env.parse_question(line) if env else None
            reply(reasoner, env, problem.question if problem else line, problem, steps, options.top)


def reply(
    reasoner: Reasoner, env: Environment | None, question: str, problem: Problem | None, steps: int | None, top: int
) -> None:
    """Print thoughts, answer and verdict, or one line where the question cannot be read."""
    from eval.judge import verify

    try:
        tokens_BT, thought = reasoner.tokens([question], steps)
    except UserError as e:
        print(f"cannot answer: {e}")
        return
    (text,) = reasoner.codec.texts(tokens_BT)
    used = int(thought.used_B[0])
    for i, likeliest in enumerate(lens(reasoner, thought, used, top)):
        print(f"  {'prompt' if i == 0 else f'thought {i}':>10}: {likeliest}")
    print(text)
    print(f"{used} latents")
    if env is not None and problem is not None:
        verdict = verify(env, problem, text)
        print("correct" if verdict.correct else f"wrong: {verdict.reason}")


def lens(reasoner: Reasoner, thought: Thought, used: int, top: int) -> list[str]:
    """The likeliest next tokens, with probabilities, after the prompt's state and after each thought's."""
    import torch

    method = reasoner.method
    with torch.inference_mode():
        p_KV = method.backbone.head(method.lens(thought.states_UKD[:1, : used + 1]))[0].softmax(-1)
    best = p_KV.topk(min(top, p_KV.shape[-1]))
    decode = reasoner.codec.text
    return ["  ".join(f"{decode([i])!r} {p:.2f}" for p, i in zip(ps, ids)) for ps, ids in
            zip(best.values.tolist(), best.indices.tolist())]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
