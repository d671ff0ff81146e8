"""Checks of a run's problems before anything is trained or written: do they fit the model, and can answers be right?"""

import torch

from eval.environments.base import Environment, Finite, Problem, iterate
from eval.judge import verify
from kernels.errors import UserError
from latent.cli import launched
from latent.codec import Codec
from latent.config import Fixed
from latent.generate import Reasoner
from latent.text import Batch, pad_right
from train import distill
from train.config import RLVR, Run

Lengths = tuple[list[int], int]  # tokens of a problem's steps, and of its answer
GOLDS = 1000  # training problems whose gold answers are checked; all problems that are judged are checked


def check(reasoner: Reasoner, env: Environment, run: Run, test: list[Problem]) -> list[str]:
    """Raise UserError for problems that training or judging would fail on, silently or late. Returns notes to print."""
    codec = reasoner.codec
    train = env.splits["train"] if isinstance(env, Finite) else env.train_batch(run.seed, 0, run.train.batch)
    taught = not isinstance(run.train, RLVR)
    if taught:
        env.check_tells(run.method.told, reasoner.method.title)
    if env.turns > 1:
        check_turns(reasoner, run)
    check_splits(env, train, test)
    train, test = ([env.told(p, run.method.told, "checked") for p in some] for some in (train, test))
    turns = {part: [t for p in some for t in env.turns_of(p)] for part, some in (("train", train), ("test", test))}
    check_golds(reasoner, env, turns["train"][:GOLDS], turns["test"])
    judged = [lengths(codec, p) for p in turns["test"]]
    learned = [lengths(codec, p) for p in turns["train"]]
    # the longest first: whoever is told of a limit learns what would do
    for steps, answer in sorted(judged + learned, key=lambda chain: sum(chain[0]), reverse=True) if taught else ():
        reasoner.method.check_chain(steps, answer)
    if taught:
        reasoner.method.check_chains([steps for steps, _ in learned])
    notes = check_text_limit(reasoner, run, learned, judged)
    notes += check_curriculum(reasoner, run, max((sum(steps) for steps, _ in learned), default=0))
    notes += check_cost(run)
    check_positions(reasoner, run, env, test + train)
    if taught:
        check_loss(reasoner, env, run, train[:2])
    main = [p for p in test if p.level == env.main_level]
    check_scores(env, main, test)
    if len(main) < run.judge.items and not isinstance(env, Finite):
        notes.append(f"judged on {len(main)} problems: there are no {run.judge.items} (judge.items) of the main level")
    return notes


def check_splits(env: Environment, train: list[Problem], test: list[Problem]) -> None:
    """Raise UserError where a problem is both learned from and judged: of those at hand, which may not be all."""
    if shared := {p.key for p in train} & {p.key for p in test}:
        raise UserError(
            f"{len(shared)} of the problems that are judged are among the first that are learned from, e.g. "
            f"{min(shared)}: the splits of {type(env).__name__} must not share a problem"
        )


def check_loss(reasoner: Reasoner, env: Environment, run: Run, few: list[Problem]) -> None:
    """Raise UserError for what the method itself objects to in a loss, and where the counts of terms that it tells
    before they are computed are others: with micro-batches its loss would be wrong."""
    method = reasoner.method

    def batch() -> Batch:
        return distill.taught(env, run.method, few, reasoner.codec, generator=torch.Generator().manual_seed(0))

    with torch.no_grad(), torch.random.fork_rng():
        terms, _ = method.terms(batch())
        told, made = ([int(n) for n in each] for each in (method.counts(batch()), [m.count for m in terms]))
    if told != made:
        raise UserError(f"{method.title} says that the terms of its loss have the counts {told}, and they have {made}")


def check_scores(env: Environment, main: list[Problem], test: list[Problem]) -> None:
    """Raise UserError where what scores without thinking is not said by name, or a problem's cluster is no text.

    Judging would fail on it at the end. `main`: those of the main level.
    """
    floors = env.floors(main)
    if not isinstance(floors, dict) or not all(isinstance(x, int | float) for x in floors.values()):
        raise UserError(f"{type(env).__name__}.floors must give a dict of shares by name, got {floors!r:.40}")
    for problem in test:
        name = env.cluster(problem)
        if not isinstance(name, str) or not name:
            raise UserError(f"{type(env).__name__}.cluster must give a text, got {name!r:.40} of problem {problem.key}")


def lengths(codec: Codec, problem: Problem) -> Lengths:
    """The tokens of each of a problem's steps, and of its answer with the end token."""
    return [len(codec.step(s)) for s in problem.steps], len(codec.answer(problem.answer))


def check_turns(reasoner: Reasoner, run: Run) -> None:
    """Raise UserError for methods, codecs and settings that cannot handle several turns."""
    if reasoner.method.parallel_answer is not None:
        raise UserError("a loop along the depth reads one question: several turns need a loop along the sequence")
    reasoner.codec.observation("")  # raises in a chat template
    if isinstance(run.train, RLVR) and (run.train.micro_batch or (launched() or (0, 1))[1] > 1):
        raise UserError("RL of several turns runs on one process, with --train.micro-batch 0")


def check_positions(reasoner: Reasoner, run: Run, env: Environment, problems: list[Problem]) -> None:
    """Raise UserError for a problem that needs more positions, over all its turns, than the model has."""
    codec, method, has = reasoner.codec, reasoner.method, reasoner.method.backbone.positions
    extra = max([0, *(k - method.steps for k in run.sweep)]) * method.stride  # of the largest number in the sweep
    for p in problems:
        prompt, needs = 0, -1
        for i, turn in enumerate(env.turns_of(p)):
            steps, answer = lengths(codec, turn)
            read = len(codec.observation(turn.question) if i else codec.question(turn.question))
            needs += method.positions_needed(read, steps, max(answer, reasoner.answer_tokens)) + extra + 1
            prompt += read
        if needs > has:
            raise UserError(
                f"problem {p.key} needs {needs} positions ({prompt} to read, the rest to think and answer), "
                f"the model has {has} (--model.n-positions)"
            )


def check_curriculum(reasoner: Reasoner, run: Run, chain: int) -> list[str]:
    """A note where a curriculum cannot come to its last stage. `chain`: tokens of the longest one."""
    method, steps = reasoner.method, run.train.steps
    if isinstance(run.train, RLVR):
        if method.in_last_stage:
            return []
        return [
            f"{method.title} is not in its curriculum's last stage, and RL goes on in none: it thinks in "
            f"{method.trained_steps} of {method.steps} latents (--init RUN starts from one that has ended)"
        ]
    least = method.least_updates(chain)
    if method.in_last_stage or steps > least:
        return []
    return [f"{method.title}'s curriculum takes {least} updates to its last stage, of {steps} (--train.steps)"]


def check_cost(run: Run) -> list[str]:
    """A note where a cost on latents changes nothing, because every rollout has as many."""
    cost, halt = getattr(run.train, "latent_cost", 0.0), getattr(run.method.underlying, "halt", None)
    if not cost or not isinstance(halt, Fixed | None):
        return []
    return [f"train.latent_cost {cost:g} moves no choice: every rollout uses all latents (--method.halt learned)"]


def check_text_limit(reasoner: Reasoner, run: Run, train: list[Lengths], test: list[Lengths]) -> list[str]:
    """Notes on gold texts that are longer than what is decoded, so that no answer can be right, and the flags to set.

    A gold text has the chain's steps that the method still writes once it is trained, and the answer. Environments
    without such flags count tokens of their own vocabulary; there the reasoner's limits are raised to what the
    tokenizer needs, and a quarter more for problems not seen here. Raises UserError where none of the problems to
    judge, or none of those that RL learns from, can be right.
    """
    codec, method = reasoner.codec, reasoner.method
    in_steps = method.written([1] * reasoner.chain_steps)
    has = reasoner.answer_tokens + -(-reasoner.chain_tokens * in_steps // reasoner.chain_steps)
    has = has if method.parallel_answer is None else min(has, method.parallel_answer)
    ends = codec.end is not None  # a text that is cut before its end token is still right
    sizes = {
        name: [(answer - ends, method.written(steps)) for steps, answer in each]
        for name, each in (("train", train), ("judge", test))
    }
    cut = {name: sum(answer + chain > has for answer, chain in each) for name, each in sizes.items()}
    if not any(cut.values()):
        return []
    both = [size for each in sizes.values() for size in each]
    answer = max(reasoner.answer_tokens, *(a for a, _ in both))
    chain = max(a + c for a, c in both) - answer
    chain = -(-chain * reasoner.chain_steps // in_steps) if in_steps else 0
    flags = []
    if method.parallel_answer is not None and answer > method.parallel_answer:
        flags = [f"--method.answer-tokens {answer}"]
    elif not hasattr(run.env, "max_answer"):
        reasoner.answer_tokens = answer * 5 // 4
        reasoner.chain_tokens = max(reasoner.chain_tokens, chain * 5 // 4)
        more = f" and {reasoner.chain_tokens} of a chain" if in_steps else ""
        return [f"up to {reasoner.answer_tokens} tokens of an answer{more} are decoded, for this tokenizer needs them"]
    if hasattr(run.env, "max_answer"):
        flags += [f"--env.max-answer {answer}"] * (answer > reasoner.answer_tokens)
        flags += [f"--env.max-chain {chain}"] * (chain > reasoner.chain_tokens)
    note = (
        f"{cut['train']} of {len(train)} problems to train on and {cut['judge']} of {len(test)} to judge cannot be "
        f"right: their gold texts have up to {max(a + c for a, c in both)} tokens, {has} are decoded "
        f"({' '.join(flags)})"
    )
    if cut["judge"] == len(test) or (isinstance(run.train, RLVR) and cut["train"] == len(train)):
        raise UserError(note)
    return [note]


def check_golds(reasoner: Reasoner, env: Environment, *parts: list[Problem]) -> None:
    """Raise UserError where a gold text, written by a perfect model, would be judged wrong.

    Every gold is encoded, decoded and verified, with the chain before it where the method writes one. A tokenizer that
    lower-cases, normalises or lacks characters may lose what the verifier asks for, and every score would be 0.
    """
    codec, method = reasoner.codec, reasoner.method
    chain = method.written([1]) > 0
    problems = [p for part in parts for p in part]
    lost = []
    for part in iterate(problems, 256):
        for p, text in zip(part, read_back(codec, part, chain)):
            verdict = verify(env, p, text)
            if not verdict.correct:
                lost.append((p, text, verdict.reason))
    if not lost:
        return
    p, text, why = lost[0]
    alone = verify(env, p, p.answer)
    where = "comes back from the tokenizer as" if alone.correct else "is not accepted even as it stands:"
    raise UserError(
        f"the gold answers of {len(lost)} of {len(problems)} problems are judged wrong: that of problem {p.key}, "
        f"{p.answer!r:.60}, {where} {text[-60:]!r} ({why or alone.reason})"
    )


def read_back(codec: Codec, problems: list[Problem], chain: bool) -> list[str]:
    """The gold texts of problems, encoded and decoded as a model's completions are."""
    rows = [sum((codec.step(s) for s in p.steps), ()) * chain + codec.answer(p.answer) for p in problems]
    return codec.texts(pad_right(rows, codec.pad).ids_BT)
