"""ProsQA: which of two concepts does an entity belong to, through a chain of "every a is a b"? (Coconut, appendix A.2)

Problems are generated like the official ones (Hao et al. 2024, algorithm 1, restated here: a growing DAG of two
families kept apart by labels), or read from the official JSON. Means over the 300 official validation problems: 22.8
nodes, 36.3 edges, hops 3 / 4 / 5 / 6 in 41 / 44 / 12 / 2 %; asked options are leaves, the wrong one unreachable from
the entity.

The official problems have shortcuts. Five of them are floors here. With `closed` none works: a graph and a pair of
options are kept only if each shortcut is right for one of the two entities that could be asked about exactly when it
is wrong for the other; then one of the two is asked about at random.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from eval.environments.answers import LONGEST, last_read
from eval.environments.base import EnvConfig, Environment, Finite, Generated, Problem, Verdict
from eval.environments.files import steps_field, text_field, whole_number
from kernels.errors import UserError

ENTITIES = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()
STEMS = """bom boom brim chor dum fel fom ger gor grim gwom hil im jel jom ker lem lor num quim rem rom ror scrom shum
ster stor ter tim tum vum wor wum yer yim yum zhor zum"""
CONCEPTS = [f"{stem}pus" for stem in STEMS.split()]
HOPS = range(3, 7)
SHARES = (41, 44, 12.5, 2.5)  # per cent of problems with so many hops
PARENTS = (49, 31, 14, 4.5, 1.5)  # per cent of concepts with 1, 2, ... parents


@dataclass(frozen=True)
class ProsQA(EnvConfig):
    """Walk a graph of concepts."""

    name: ClassVar[str] = "prosqa"
    train: str | None = None
    """Official JSON to train on instead of generated problems: a file, or hub:NAME[:SPLIT]."""
    test: str | None = None
    """Official JSON to test on: a file, or hub:NAME[:SPLIT]. Without it, a tenth of `train`."""
    closed: bool = False
    """Generate problems in which no shortcut works."""
    nodes: tuple[int, int] = (18, 27)
    """Fewest and most nodes of a generated graph."""
    graphs: int = 8192
    """Graphs to train on; each comes in new words every time."""

    def __post_init__(self):
        if len(self.nodes) != 2 or not 8 <= self.nodes[0] <= self.nodes[1] <= len(CONCEPTS):
            raise UserError(f"env.nodes must be two sizes in 8..{len(CONCEPTS)}, the smaller first, got {self.nodes}")
        if self.graphs < 1:
            raise UserError(f"env.graphs must be at least 1, got {self.graphs}")
        if self.closed and (self.train or self.test):
            raise UserError("env.closed generates problems, so it cannot go with env.train or env.test")

    def make(self):
        return OfficialProsQA(self) if self.train or self.test else GeneratedProsQA(self)


class _ProsQA(Environment):
    """What generated and official problems share."""

    tells = ("answer", "chain", "frontier")
    answer_tokens = 24
    chain_tokens = 128
    chain_steps = 6

    def verify(self, problem, text):
        right = problem.answer.removeprefix("### ").rstrip(". ")
        said = last_read(text, statement)
        if not said:
            return Verdict(0.0, False, False, 'not of the form "### X is a Y ."')
        correct = said == statement(right)
        return Verdict(float(correct), correct, True, "" if correct else f"expected {right}")

    def frontier(self, problem, step):
        out: dict[str, list[str]] = {}
        question = problem.question
        for said in question[: question.rindex(" Is ")].split(" ."):
            words = said.split()
            if words:
                out.setdefault(words[-4], []).append(words[-1])
        reached = {question[question.rindex(" Is ") :].split()[1]}
        seen = set(reached)
        for _ in range(step):
            reached = {b for a in reached for b in out.get(a, ())} - seen
            seen |= reached
        return tuple((word, 1 / len(reached)) for word in sorted(reached))

    def codec(self, model):
        from latent.codec import word_codec

        return word_codec(["###", ".", "?", "Every", "is", "a", "Is", "or", *ENTITIES, *CONCEPTS])

    def floors(self, problems):
        return shares([Graph(**p.data) for p in problems])


STATEMENT = re.compile(r"(\w+) is an? (\w+)\s*(?:[.,;:!]|$)")


def statement(line: str) -> tuple[str, ...] | None:
    """Entity and concept of "X is a Y", with which a line begins; empty where it says that in another way, or that X is
    another thing too; None where it says nothing of the kind, as a heading."""
    line = " ".join(line[: LONGEST + 1].split())
    said = STATEMENT.match(line)
    if len(line) > LONGEST or said is None:
        return () if len(line) > LONGEST or re.search(r"\bis an? \w", line) else None
    return (said[1], said[2]) if {said[2]} == set(re.findall(rf"\b{said[1]} is an? (\w+)", line)) else ()


class GeneratedProsQA(_ProsQA, Generated):
    def __init__(self, config: ProsQA):
        self.config = config
        self._graphs: dict[int, Graph] = {}

    def draw(self, rng: random.Random, level: int) -> Problem:
        return spell(rng, self.graph(rng))

    def draw_train(self, rng: random.Random) -> Problem:
        """A graph of the training pool, made when first needed, in new words: a graph costs far more than its words."""
        i = rng.randrange(self.config.graphs)
        if i not in self._graphs:
            self._graphs[i] = self.graph(random.Random(f"train graph {i}"))
        return spell(rng, self._graphs[i])

    def graph(self, rng: random.Random) -> Graph:
        """A random graph with its question."""
        hops = rng.choices(HOPS, SHARES)[0]
        while True:
            grown = grow(rng, rng.randint(*self.config.nodes))
            graph = balanced(rng, grown) if self.config.closed else asked(rng, grown, hops)
            if graph is not None:
                return graph


class OfficialProsQA(_ProsQA, Finite):
    def __init__(self, config: ProsQA):
        self.read(config.train, config.test, parse)


@dataclass
class Graph:
    """Directed edges over nodes 0..n-1; `root` is asked about, `target` reachable from it, `other` not."""

    n: int
    edges: list[tuple[int, int]]
    root: int = 0
    target: int = 0
    other: int = 0

    def __post_init__(self):
        self.out: list[list[int]] = [[] for _ in range(self.n)]
        self.into: list[list[int]] = [[] for _ in range(self.n)]
        for a, b in self.edges:
            self.out[a].append(b)
            self.into[b].append(a)
        self.both = [a + b for a, b in zip(self.out, self.into)]

    def ask(self, root: int, target: int, other: int) -> Graph:
        return Graph(self.n, self.edges, root, target, other)

    def sources(self) -> list[int]:
        return [i for i in range(self.n) if not self.into[i]]


def distances(near: list[list[int]], start: int) -> dict[int, int]:
    """Breadth-first distances from a node."""
    seen, queue = {start: 0}, deque([start])
    while queue:
        a = queue.popleft()
        for b in near[a]:
            if b not in seen:
                seen[b] = seen[a] + 1
                queue.append(b)
    return seen


def grow(rng: random.Random, n: int, most: int = len(PARENTS)) -> Graph:
    """A DAG from two roots, 0 and 1. A new node takes parents, deep ones preferred, mostly from one family.

    The number of parents, up to `most`, is Poisson(1.27) without 0, and one node in forty is a further entity: fitted
    to the official validation set.
    """
    edges, depth, label = [], [0, 0], [1, 2]
    for new in range(2, n):
        u = rng.random()
        barred = 2 if u < 0.41 else 1 if u < 0.82 else 0
        pool = [i for i in range(new) if not label[i] & barred]
        wanted = 0 if rng.random() < 0.025 else rng.choices(range(1, most + 1), PARENTS[:most])[0]
        parents: set[int] = set()
        while len(parents) < min(wanted, len(pool)):
            parents.add(rng.choices(pool, [1.5 * depth[i] + 1 for i in pool])[0])
        edges += [(p, new) for p in sorted(parents)]
        depth.append(min((depth[p] + 1 for p in parents), default=0))
        label.append(0)
        for p in parents:
            label[new] |= label[p]
    return Graph(n, edges)


def candidates(graph: Graph, root: int, away: int, hops: Collection[int]) -> list[int]:
    """Leaves so many hops from `root` that `away` does not reach."""
    from_away = distances(graph.out, away)
    from_root = distances(graph.out, root)
    return [i for i, d in from_root.items() if d in hops and not graph.out[i] and i not in from_away]


def asked(rng: random.Random, graph: Graph, hops: int) -> Graph | None:
    """Ask over `hops` hops as the official problems do; None where the graph has no such question."""
    root = rng.randrange(2)
    from_root, from_away = distances(graph.out, root), distances(graph.out, 1 - root)
    targets = candidates(graph, root, 1 - root, (hops,))
    others = [i for i in from_away if not graph.out[i] and i not in from_root]
    return graph.ask(root, rng.choice(targets), rng.choice(others)) if targets and others else None


def balanced(rng: random.Random, graph: Graph, hops: Collection[int] = HOPS) -> Graph | None:
    """Ask so that every shortcut is right for one root exactly when it is wrong for the other; None where that fails.

    Shortcuts that do not look at the root balance by themselves. For the two that do, one of the options is made the
    better known: entities are added above it, and a common child of its parent and the other root brings it near.
    """
    a, b = candidates(graph, 0, 1, hops), candidates(graph, 1, 0, hops)
    if not a or not b:
        return None
    options = (rng.choice(a), rng.choice(b))
    known = rng.randrange(2)
    parent = rng.choice([p for p in graph.into[options[known]] if p in distances(graph.out, known)])
    counts = [sum(o in distances(graph.out, s) for s in graph.sources()) for o in options]
    extra = max(0, counts[1 - known] + 2 - counts[known])
    edges = graph.edges + [(graph.n + i, parent) for i in range(extra)]
    bridge = graph.n + extra
    edges += [(parent, bridge), (1 - known, bridge)]
    wider = Graph(bridge + 1, edges)
    pair = (wider.ask(0, options[0], options[1]), wider.ask(1, options[1], options[0]))
    one, two = map(shortcuts, pair)
    return rng.choice(pair) if all(one[name] + two[name] == 1 for name in one) else None


def shortcuts(graph: Graph) -> dict[str, float]:
    """For each shortcut 1 where it picks the target, 0 where it picks the other option, 1/2 where it cannot tell."""
    t, o = graph.target, graph.other
    entities = [s for s in graph.sources() if s != graph.root]
    reach = [distances(graph.out, s) for s in entities]
    near = distances(graph.both, graph.root)
    far = graph.n + 1

    def smaller(of_target: float, of_other: float) -> float:
        return (of_target < of_other) + (of_target == of_other) / 2

    return {
        "fewer entities reach it": smaller(sum(t in r for r in reach), sum(o in r for r in reach)),
        "closer, undirected": smaller(near.get(t, far), near.get(o, far)),
        "more ancestors": smaller(-len(distances(graph.into, t)), -len(distances(graph.into, o))),
        "fewer in-edges": smaller(len(graph.into[t]), len(graph.into[o])),
        "fewer mentions": smaller(len(graph.both[t]), len(graph.both[o])),
    }


def shares(graphs: list[Graph]) -> dict[str, float]:
    """How often chance, and each shortcut, picks the target."""
    rights = list(map(shortcuts, graphs))
    return {"chance": 0.5} | {name: sum(r[name] for r in rights) / len(rights) for name in (rights or [{}])[0]}


def shortest_path(graph: Graph) -> list[int]:
    """The nodes of a shortest path from root to target, the first that a breadth-first search finds."""
    parent, queue = {graph.root: graph.root}, deque([graph.root])
    while queue:
        a = queue.popleft()
        for b in graph.out[a]:
            if b not in parent:
                parent[b] = a
                queue.append(b)
    path = [graph.target]
    while path[-1] != graph.root:
        path.append(parent[path[-1]])
    return path[::-1]


def spell(rng: random.Random, graph: Graph) -> Problem:
    """A graph in words: sources are entities, the rest concepts, sentences and options in random order."""
    sources = set(graph.sources())
    entities, concepts = rng.sample(ENTITIES, len(ENTITIES)), rng.sample(CONCEPTS, len(CONCEPTS))
    name = [entities.pop() if i in sources else concepts.pop() for i in range(graph.n)]
    said = [f"{_subject(name[a])} is a {name[b]} ." for a, b in rng.sample(graph.edges, len(graph.edges))]
    options = rng.sample([name[graph.target], name[graph.other]], 2)
    question = f"{' '.join(said)} Is {name[graph.root]} a {options[0]} or {options[1]} ?"
    steps = tuple(f"{_subject(name[a])} is a {name[b]} .\n" for a, b in pairwise(shortest_path(graph)))
    data = {"n": graph.n, "edges": graph.edges, "root": graph.root, "target": graph.target, "other": graph.other}
    return Problem(question, steps, f"### {name[graph.root]} is a {name[graph.target]} .", 0, data)


def _subject(name: str) -> str:
    return name if name[0].isupper() else f"Every {name}"


def parse(row: dict, place: str) -> Problem:
    """An official problem. Raises UserError naming place and field."""
    for key in ("edges", "idx_to_symbol"):
        if not isinstance(row.get(key), list):
            raise UserError(f"{place}: field {key!r} must be a list, got {row.get(key)!r:.40}")
    question, answer, steps = (
        text_field(row, "question", place),
        text_field(row, "answer", place),
        steps_field(row, place),
    )
    if statement(answer) is None:
        raise UserError(f"{place}: field 'answer' must be of the form \"X is a Y.\", got {answer!r:.40}")
    n = len(row["idx_to_symbol"])
    nodes = {key: whole_number(row, key, place, n) for key in ("root", "target", "neg_target")}
    for edge in row["edges"]:
        if not (isinstance(edge, list) and len(edge) == 2 and all(type(i) is int and 0 <= i < n for i in edge)):
            raise UserError(f"{place}: field 'edges' must hold pairs of nodes below {n}, got {edge!r:.40}")
    data = {"n": n, "edges": [tuple(e) for e in row["edges"]], "root": nodes["root"]}
    data |= {"target": nodes["target"], "other": nodes["neg_target"]}
    apart = lambda text: text.replace(".", " .").replace("?", " ?")  # noqa: E731
    return Problem(apart(question), tuple(apart(s) + "\n" for s in steps), f"### {apart(answer)}", 0, data)
