"""ProntoQA: is a statement about an entity true, given an ontology of made-up concepts? (Saparov & He 2022,
arXiv:2210.01240; Coconut, arXiv:2412.06769, uses its 5-hop problems)

Generated in its manner: a chain of concepts from the entity's own up to one that has the property asked about, a
distracting concept and property at every link, and a concept that the entity does not belong to with the opposite
property. True and false are equally
frequent, and so are questions with and without "not", so no word of the question tells the answer. Or read from
Coconut's JSON, {question, steps, answer}.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from eval.environments.answers import LONGEST, last_read
from eval.environments.base import EnvConfig, Environment, Finite, Generated, Problem, Verdict
from eval.environments.files import steps_field, text_field
from eval.environments.prosqa import CONCEPTS, ENTITIES
from kernels.errors import UserError

PROPERTIES = """aggressive amenable angry bitter blue bright brown cold discordant dull earthy feisty floral fruity
happy hot kind large liquid luminous mean melodic metallic muffled nervous opaque orange red shy slow small sour spicy
sunny sweet temperate transparent wooden""".split()


@dataclass(frozen=True)
class ProntoQA(EnvConfig):
    """Climb an ontology of made-up concepts."""

    name: ClassVar[str] = "prontoqa"
    hops: int = 5
    """Steps of the proof."""
    train: str | None = None
    """Coconut's JSON to train on instead of generated problems: a file, or hub:NAME[:SPLIT]."""
    test: str | None = None
    """Coconut's JSON to test on. Without it, a tenth of `train`."""

    def __post_init__(self):
        if not 1 <= self.hops <= 8:
            raise UserError(f"env.hops must be in 1..8, got {self.hops}")

    def make(self):
        return OfficialProntoQA(self) if self.train or self.test else GeneratedProntoQA(self)


class _ProntoQA(Environment):
    """What generated and official problems share."""

    answer_tokens = 8

    def verify(self, problem, text):
        said = last_read(text, truth)
        if not isinstance(said, bool):
            return Verdict(0.0, False, False, "neither ### True nor ### False")
        correct = f"### {said}" == problem.answer
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.answer[4:]}")

    def floors(self, problems):
        if not problems:
            return {"chance": 0.5}
        yes = sum(p.answer == "### True" for p in problems) / len(problems)
        return {"chance": 0.5, "always the same": max(yes, 1 - yes)}


def truth(line: str) -> bool | str | None:
    """The truth value with which a line begins; empty where it names a value in another way, or both; None where it
    names none, as a heading."""
    named = {word.lower() for word in re.findall(r"\b(?:true|false)\b", line[: LONGEST + 1], re.IGNORECASE)}
    first = re.match(r"(true|false)\s*(?:[.,;:!]|$)", line, re.IGNORECASE)
    if len(line) > LONGEST or len(named) != 1 or first is None:
        return "" if named or len(line) > LONGEST else None
    return first[1].lower() == "true"


class GeneratedProntoQA(_ProntoQA, Generated):
    def __init__(self, config: ProntoQA):
        self.config = config
        self.chain_steps, self.chain_tokens = config.hops + 1, 8 * (config.hops + 1)

    def draw(self, rng: random.Random, level: int) -> Problem:
        hops = self.config.hops
        stranger, other, *names = rng.sample(CONCEPTS, 2 * (hops + 1) + 2)
        chain, aside = names[: hops + 1], names[hops + 1 :]
        asked, *others = rng.sample(PROPERTIES, hops + 2)
        has = rng.random() < 0.5
        facts = [f"Every {a} is a {b} ." for a, b in pairwise(chain)]
        facts += [f"Every {a} is a {b} ." for a, b in zip(chain, aside)]
        facts += [f"Every {c} is {'' if rng.random() < 0.5 else 'not '}{p} ." for c, p in zip(chain[:-1], others)]
        facts.append(f"Every {chain[-1]} is {'' if has else 'not '}{asked} .")
        facts += [
            f"Every {other} is a {stranger} .",  # or the stranger would be known by being nobody's kind
            f"Every {stranger} is a {rng.choice(chain)} .",
            f"Every {stranger} is {'not ' if has else ''}{asked} .",
        ]
        who = rng.choice(ENTITIES)
        facts.append(f"{who} is a {chain[0]} .")
        rng.shuffle(facts)
        negated = rng.random() < 0.5
        question = f"{' '.join(facts)} True or false : {who} is {'not ' if negated else ''}{asked} ."
        steps = [f"{who} is a {c} .\n" for c in chain[1:]] + [f"{who} is {'' if has else 'not '}{asked} .\n"]
        return Problem(question, tuple(steps), f"### {has != negated}", 0, {"hops": hops})

    def codec(self, model):
        from latent.codec import word_codec

        words = "### . : Every is a not or True False false".split()
        return word_codec([*words, *ENTITIES, *CONCEPTS, *PROPERTIES])


class OfficialProntoQA(_ProntoQA, Finite):
    chain_steps, chain_tokens = 12, 160

    def __init__(self, config: ProntoQA):
        self.read(config.train, config.test, parse)


def parse(row: dict, place: str) -> Problem:
    """A row of Coconut's JSON. Raises UserError naming place and field."""
    question, answer, steps = (
        text_field(row, "question", place),
        text_field(row, "answer", place),
        steps_field(row, place),
    )
    if answer not in ("True", "False"):
        raise UserError(f"{place}: field 'answer' must be True or False, got {answer!r:.40}")
    return Problem(question + "\n", tuple(step + "\n" for step in steps), f"### {answer}", 0)
