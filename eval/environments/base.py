"""What an environment is: problems by split, a verifier that is the only judge, the floors a score is read beside."""

from __future__ import annotations

import logging
import random
import unicodedata
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import ClassVar

from eval.environments.files import json_rows
from kernels.errors import UserError, unwritten
from latent.config import TOLD, Frontier, Told

log = logging.getLogger(__name__)
MOST_TOKENS = 1_000_000  # of a text that a model may write: more than any reads
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Problem:
    """One problem as text. `answer` is all that the model should write after thinking; pieces join to the full text."""

    question: str
    steps: tuple[str, ...]
    answer: str
    level: int = 0
    data: dict = field(default_factory=dict, compare=False)
    more: tuple[str, ...] = ()
    """What is said in later turns, where that is known beforehand."""

    @property
    def key(self) -> str:
        """Content hash of all that is asked: what keeps train and test apart."""
        return blake2b("\n".join((self.question, *self.more)).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """`reward` shapes training; `correct` is strict and all that a table reports; `parsed`: an answer was found."""

    reward: float
    correct: bool
    parsed: bool
    reason: str = ""


@dataclass(frozen=True)
class EnvConfig:
    """Problems and their verifier. A subclass is an environment: its fields are the environment's choices.

    `name` is what the command line calls it.
    """

    name: ClassVar[str]

    def make(self) -> Environment:
        """The environment. Raises UserError for bad data, naming file, line and field."""
        raise unwritten(self, "make")


MOST_STEPS = 10_000  # of a search
IDLE = 2000  # draws in a row without a problem that is wanted, after which there are taken to be no more


class Session:
    """One problem, from its first question to its end. `done` says that there is nothing more to answer."""

    def step(self, text: str) -> tuple[str | None, float, bool]:
        """What follows a turn's text: what is said next (None at the end), the reward, and whether it is done."""
        raise unwritten(self, "step")


class Scripted(Session):
    """A session in which what is said does not depend on the answers: the reward is that of the last one."""

    def __init__(self, env: Environment, problem: Problem):
        self.env, self.turns, self.at = env, env.turns_of(problem), 0

    def step(self, text):
        self.at += 1
        if self.at < len(self.turns):
            return self.turns[self.at].question, 0.0, False
        return None, self.env.verify(self.turns[-1], text).reward, True


class Environment:
    """Problems and their judge. Subclasses write `problems`, `train_batch`, `verify`, `codec`, and say the sizes.

    `answer_tokens`, `chain_tokens`, `chain_steps`: the longest answer and chain to decode. `main_level`: the level that
    tables report. `turns`: how many a problem has at most; an environment of several says what happens in them by
    `turns_of`, or by `open` where that depends on the answers. `tells`: what a model can be taught here, of `Told`; one
    that tells more than answer and chain writes `told`, or `frontier`. One whose problems go through states that
    can be exchanged writes `state` and `answer_from`, by which `eval.interchange` judges patches.
    """

    turns: int = 1
    tells: tuple[Told, ...] = ("answer", "chain")

    answer_tokens: int
    chain_tokens: int
    chain_steps: int
    main_level: int = 0

    def levels(self) -> list[int]:
        """The levels problems come in."""
        return [self.main_level]

    def problems(self, split: str, level: int, n: int) -> list[Problem]:
        """The first n problems of "valid" or "test" at a level, the same every time; fewer where there are no more."""
        raise unwritten(self, "problems")

    def train_batch(self, seed: int | str, index: int, size: int) -> list[Problem]:
        """Batch `index` of the training split: a pure function of its arguments, so that a resume is exact."""
        raise unwritten(self, "train_batch")

    def turns_of(self, problem: Problem) -> list[Problem]:
        """The turns of a problem as the teacher would go through them, each a problem of its own."""
        return [problem]

    def open(self, problem: Problem) -> Session:
        """A session about a problem."""
        return Scripted(self, problem)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge a completion. An unparsed answer is a verdict; an exception stops the run."""
        raise unwritten(self, "verify")

    def cluster(self, problem: Problem) -> str:
        """What a problem shares with those that stand or fall with it: intervals count clusters, not problems."""
        return problem.key

    def parse_question(self, question: str) -> Problem | None:
        """The problem that a typed question asks; None where its answer is not known."""
        return None

    def check_tells(self, what: Told, title: str) -> None:
        """Raise UserError where a method is taught by what this environment does not tell."""
        if what not in self.tells:
            raise UserError(
                f"{title} is taught by {TOLD[what]} (method.told {what}), which this environment does not tell: "
                f"it has {', '.join(self.tells)}"
            )

    def told(self, problem: Problem, what: Told, seed: str) -> Problem:
        """A problem with the steps that a teacher tells of it. What is drawn at random is a function of `seed`."""
        return problem

    def longest_chain(self, what: Told) -> int:
        """Tokens of the longest chain that a teacher tells."""
        return self.chain_tokens

    def frontier(self, problem: Problem, step: int) -> Frontier:
        """Where a search may stand after a step, from 1: words, each one token, with probabilities that sum to 1.

        Empty after the last step, and where there is no search.
        """
        return ()

    def frontiers(self, problem: Problem) -> list[Frontier]:
        """Those of every step. Raises UserError where they never end."""
        found: list[Frontier] = []
        while after := self.frontier(problem, len(found) + 1):
            found.append(after)
            if len(found) > MOST_STEPS:
                raise UserError(
                    f"{type(self).__name__}.frontier must be empty after a problem's last step: that of problem "
                    f"{problem.key} has not ended after {MOST_STEPS} steps"
                )
        return found

    def state(self, problem: Problem, step: int, told: Told) -> Hashable | None:
        """What the task's own computation holds after so many of a problem's steps, 0 = before the first.

        `told`: what a model is taught, where that decides what its thoughts should hold. None: there is no such state.
        """
        return None

    def answer_from(self, problem: Problem, step: int, state: Hashable) -> str | None:
        """The answer that a problem's own steps after `step` lead to from a state, which may be another problem's.

        From its own state it is the right one; `verify` with it as the problem's answer judges texts. None where they
        lead to none.
        """
        return None

    def codec(self, model):
        """The codec for a scratch model of this environment."""
        raise unwritten(self, "codec")

    def fingerprint(self) -> str | None:
        """Hash of the data where it comes from files, None where the config alone says what it is."""
        return None

    def floors(self, problems: list[Problem]) -> dict[str, float]:
        """Scores that need no reasoning: chance, shortcuts. Of no problems, only those that are derived."""
        return {}


class Generated(Environment):
    """An environment that draws problems from a seed. Subclasses write `draw`.

    A problem belongs to the split its key's hash says, so no key is in two splits: of 16 parts, 2 test, 1 valid. One in
    which other problems give an answer away says so by a `split` of its own.
    """

    def split(self, problem: Problem) -> str:
        """The split that a problem belongs to."""
        return split_of(problem.key)

    def draw(self, rng: random.Random, level: int) -> Problem:
        """A random problem of a level."""
        raise unwritten(self, "draw")

    def draw_train(self, rng: random.Random) -> Problem:
        """A random training problem: levels uniform."""
        return self.draw(rng, rng.choice(self.levels()))

    def problems(self, split, level, n):
        check_split(split)
        if level not in self.levels():
            raise UserError(f"no level {level}: this environment has {self.levels()}")
        rng, idle = random.Random(f"{split} {level}"), 0
        found: dict[str, Problem] = {}
        while len(found) < n and idle < IDLE:
            problem = self.draw(rng, level)
            idle += 1
            if self.split(problem) == split and problem.key not in found:
                found[problem.key], idle = problem, 0
        return list(found.values())

    def train_batch(self, seed, index, size):
        rng = random.Random(f"train {seed} {index}")
        drawn: list[Problem] = []
        idle = 0
        while len(drawn) < size:
            problem = self.draw_train(rng)
            idle += 1
            if self.split(problem) == "train":
                drawn.append(problem)
                idle = 0
            elif idle == IDLE:
                raise UserError(f"of {IDLE} problems drawn in a row none is of the training split: there are too few")
        return drawn


def split_of(key: str) -> str:
    """The split of a key."""
    part = int(key[0], 16)
    return "test" if part < 2 else "valid" if part == 2 else "train"


@lru_cache(maxsize=1024)
def _say_once(message: str) -> None:
    """A warning, once: environments are built again wherever they are needed."""
    log.warning(message)


def check_lengths(config) -> None:
    """Raise UserError for longest texts that none can have."""
    for name in ("max_answer", "max_chain"):
        if not 1 <= getattr(config, name) <= MOST_TOKENS:
            raise UserError(f"env.{name} must be in 1..{MOST_TOKENS}, got {getattr(config, name)}")


def check_split(split: str) -> None:
    """Raise UserError for what is no split."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r}: there are {', '.join(SPLITS)}")


class Finite(Environment):
    """An environment over lists of problems, which subclasses `read`. Problems in both splits stay in test only.

    "valid" is cut from train: the sixteenth part of its problems with the smallest keys, one at least where there are
    two. A key is a hash, so the order of the file plays no part.
    """

    splits: dict[str, list[Problem]]

    def read(self, train: str | None, test: str | None, parse: Callable[[dict, str], Problem]) -> None:
        """Keep the problems of two sources; without one to test on the first tenth is held out.

        Without one to train on, there are problems to test on only. A question that comes again counts once, as it came
        first; one that comes again with another answer is said in a line of the log that names file and line. Raises
        ValueError for rows that `parse` refuses, and where nothing is left in a split.
        """
        if not train and not test:
            raise UserError("env.train or env.test must name a file, or hub:NAME[:SPLIT[:CONFIG]]")
        first: dict[str, tuple[Problem, str]] = {}
        again = []
        both: list[list[Problem] | None] = [None, None]
        for i, source in ((1, test), (0, train)):  # test first: of two answers the one in test counts
            if source is None or source == "":
                continue
            both[i] = rows = []
            for row, place in json_rows(source):
                problem = parse(row, place)
                rows.append(problem)
                earlier, where = first.setdefault(problem.key, (problem, place))
                if earlier.answer != problem.answer:
                    again.append((place, problem, where, earlier))
        if again:
            place, problem, where, earlier = again[0]
            more = f", and so do {len(again) - 1} more rows" if len(again) > 1 else ""
            _say_once(
                f"{place} answers {problem.answer!r:.60} to the question of {where}, which says "
                f"{earlier.answer!r:.60}; the latter counts{more}"
            )
        self.hold(*both)

    def hold(self, train: list[Problem] | None, test: list[Problem] | None) -> None:
        """Keep the splits."""
        test_only = train is None
        train, why = train or [], " (a problem in both files counts as one to test on)"
        if test is None:
            why = f": of {len(train)} one in ten, and one at least, is to test on"
            cut = max(1, len(train) // 10)
            train, test = train[cut:], train[:cut]
        tested: dict[str, Problem] = {}
        trained: dict[str, Problem] = {}
        for p in test:
            tested.setdefault(p.key, p)
        asked = {folded(p) for p in test}
        for p in train:
            if folded(p) not in asked:
                trained.setdefault(p.key, p)
        aside = max(1, len(trained) // 16) if len(trained) > 1 else 0
        valid = {key: trained.pop(key) for key in sorted(trained)[:aside]}
        self.splits = {"train": list(trained.values()), "valid": list(valid.values()), "test": list(tested.values())}
        for name in ("train", "test"):
            if not self.splits[name] and not (test_only and name == "train"):
                raise UserError(f"no problem is left to {name} on{why}")
        self._order: tuple = (None, [])

    def problems(self, split, level, n):
        check_split(split)
        return self.splits[split][:n]

    def train_batch(self, seed, index, size):
        train = self.splits["train"]
        if not train:
            raise UserError("there are problems to test on only: give env.train")
        return [self._shuffled(seed, i // len(train))[i % len(train)] for i in range(index * size, (index + 1) * size)]

    def codec(self, model):
        from latent.codec import bpe_codec

        train = self.splits["train"]
        return bpe_codec((p.question + "".join(p.steps) + p.answer for p in train), model.vocab_size)

    def parse_question(self, question):
        everything = (p for problems in self.splits.values() for p in problems)
        return next((p for p in everything if p.question.split() == question.split()), None)

    def fingerprint(self) -> str:
        found = blake2b(digest_size=8)
        for name in SPLITS:
            for p in self.splits[name]:
                found.update(f"{name}{p!r}{sorted(p.data.items())!r}".encode())
        return found.hexdigest()

    def _shuffled(self, seed: int | str, epoch: int) -> list[Problem]:
        if self._order[0] != (seed, epoch):
            order = list(self.splits["train"])
            random.Random(f"epoch {seed} {epoch}").shuffle(order)
            self._order = ((seed, epoch), order)
        return self._order[1]


def folded(problem: Problem) -> str:
    """What is asked, without what only typesets it: white space, compositions, the forms of quotation marks."""
    said = unicodedata.normalize("NFKC", "\n".join((problem.question, *problem.more)))
    return " ".join(said.translate(_QUOTES).split())


_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def is_whole(word: str, digits: int) -> bool:
    """Whether a word is a whole number, in at most so many ASCII digits."""
    return word.isdecimal() and word.isascii() and len(word) <= digits


def iterate(items: list, size: int) -> Iterator[list]:
    """Consecutive slices of at most `size`."""
    for i in range(0, len(items), size):
        yield items[i : i + size]
