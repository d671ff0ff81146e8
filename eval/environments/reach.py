"""Reach: a graph in symbols, a node a token; which of two nodes can be reached from the root? (reasoning by
superposition, Zhu et al. 2025, arXiv:2505.12514, on the graphs of ProsQA)

    3 17 ; 5 9 ; 17 12 ; 5 4 ; ? 12 4 : 3      the answer is 12, through 17

An edge is two nodes and a mark; edges, the names of nodes and the two options come in random order. The chain is the
nodes of a shortest path after the root, the last of which is the target. The frontier after step t are the nodes that
at most t edges reach, the root among them, each as likely: the superposition that the paper constructs.

Graphs are grown as those of `prosqa`, with its shortcuts, which are floors here too: of 400 default problems "fewer
entities reach it" is right on .98, "closer, undirected" on .92, the others on .64 to .73. With `closed` each shortcut
is right for one root exactly when it is wrong for the other, and both options are as many hops away.

Deviates: problems are generated, of 12 to 18 nodes and some 21 edges unless told so, where the paper reads those of
ProsQA (23 nodes, 36 edges).
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from eval.environments.base import EnvConfig, Generated, Problem, Verdict, is_whole
from eval.environments.prosqa import PARENTS, Graph, asked, balanced, distances, grow, shares, shortest_path
from kernels.errors import UserError

MOST_NODES = 200
ADDED = 8  # nodes, at most, that closing a graph adds
TRIES = 5_000  # graphs that are grown for one problem, before there is said to be none


@dataclass(frozen=True)
class Reach(EnvConfig):
    """Which of two nodes can be reached: a graph in symbols, a node a token."""

    name: ClassVar[str] = "reach"
    nodes: tuple[int, int] = (12, 18)
    """Fewest and most nodes of a graph; to close it takes up to 8 more."""
    parents: int = len(PARENTS)
    """Most edges into a node: with fewer a graph has fewer edges, and 1 makes trees."""
    hops: tuple[int, int] = (3, 4)
    """Fewest and most edges from the root to the target: the levels."""
    closed: bool = False
    """Only problems in which no shortcut works."""
    graphs: int = 8192
    """Graphs to train on; each comes in new names every time."""

    def __post_init__(self):
        if len(self.nodes) != 2 or not 8 <= self.nodes[0] <= self.nodes[1] <= MOST_NODES:
            raise UserError(f"env.nodes must be two sizes in 8..{MOST_NODES}, the smaller first, got {self.nodes}")
        if not 1 <= self.parents <= len(PARENTS):
            raise UserError(f"env.parents must be in 1..{len(PARENTS)}, got {self.parents}")
        most = self.nodes[0] - 3
        if len(self.hops) != 2 or not 1 <= self.hops[0] <= self.hops[1] <= most:
            raise UserError(f"env.hops must be two numbers in 1..{most} (env.nodes), the smaller first: {self.hops}")
        if self.graphs < 1:
            raise UserError(f"env.graphs must be at least 1, got {self.graphs}")

    def make(self):
        return ReachEnvironment(self)


class ReachEnvironment(Generated):
    tells = ("answer", "chain", "frontier")
    answer_tokens = 1

    def __init__(self, config: Reach):
        self.config = config
        self.chain_tokens = self.chain_steps = self.main_level = config.hops[1]
        self.names = config.nodes[1] + ADDED * config.closed
        self._graphs: dict[int, Graph] = {}

    def levels(self):
        return list(range(self.config.hops[0], self.config.hops[1] + 1))

    def draw(self, rng: random.Random, level: int) -> Problem:
        return self.spell(rng, self.graph(rng, level))

    def draw_train(self, rng: random.Random) -> Problem:
        """A graph of the training pool, made when first needed, in new names; levels uniform."""
        i = rng.randrange(self.config.graphs)
        if i not in self._graphs:
            own, levels = random.Random(f"train graph {i}"), self.levels()
            self._graphs[i] = self.graph(own, levels[i % len(levels)])
        return self.spell(rng, self._graphs[i])

    def graph(self, rng: random.Random, hops: int) -> Graph:
        """A random graph with its question. Raises UserError where none is found."""
        c = self.config
        for _ in range(TRIES):
            grown = grow(rng, rng.randint(*c.nodes), c.parents)
            graph = balanced(rng, grown, (hops,)) if c.closed else asked(rng, grown, hops)
            if graph is not None and graph.n <= self.names:
                return graph
        raise UserError(
            f"env.hops {c.hops}: no graph of {c.nodes[0]} to {c.nodes[1]} nodes (env.nodes) with up to {c.parents} "
            f"parents asks over {hops} hops, of {TRIES} that were grown"
        )

    def spell(self, rng: random.Random, graph: Graph) -> Problem:
        """A graph in random names, its edges and options in random order."""
        name = rng.sample(range(self.names), graph.n)
        edges = [(name[a], name[b]) for a, b in rng.sample(graph.edges, len(graph.edges))]
        named = Graph(self.names, edges, *(name[i] for i in (graph.root, graph.target, graph.other)))
        return self.problem_of(named, rng.sample([named.target, named.other], 2))

    def problem_of(self, graph: Graph, options: list[int]) -> Problem:
        """The problem of a graph whose nodes are names."""
        edges = " ".join(f"{a} {b} ;" for a, b in graph.edges)
        steps = tuple(f"{node} " for node in shortest_path(graph)[1:])
        data = {"n": graph.n, "edges": graph.edges, "root": graph.root, "target": graph.target, "other": graph.other}
        question = f"{edges} ? {options[0]} {options[1]} : {graph.root}"
        return Problem(question, steps, str(graph.target), len(steps), data)

    def parse_question(self, question):
        facts, _, asks = question.partition("?")
        *edges, rest = [edge.split() for edge in facts.split(";")]
        options, root = (part.split() for part in asks.partition(":")[::2])
        said = [*edges, options, [*root, *root]]
        whole = all(len(pair) == 2 and all(is_whole(w, 3) for w in pair) for pair in said)
        if not edges or rest or not whole:
            return None
        *pairs, choice, (start, _) = [(int(a), int(b)) for a, b in said]
        if max(map(max, [*pairs, choice])) >= self.names or start >= self.names:
            return None
        graph = Graph(self.names, pairs)
        reached = [node for node in choice if node in distances(graph.out, start)]
        if len(reached) != 1 or start in choice:
            return None
        other = choice[1 - choice.index(reached[0])]
        return self.problem_of(graph.ask(start, reached[0], other), list(choice))

    def frontier(self, problem, step):
        if step > len(problem.steps):
            return ()
        graph = Graph(**problem.data)
        near = sorted(node for node, hops in distances(graph.out, graph.root).items() if hops <= step)
        return tuple((str(node), 1 / len(near)) for node in near)

    def verify(self, problem, text):
        *_, last = text.split() or [""]
        options = problem.question.rpartition("?")[2].split()[:2]
        if last not in options:
            return Verdict(0.0, False, False, f"does not end in {' or '.join(options)}")
        correct = last == problem.answer
        return Verdict(float(correct), correct, True, "" if correct else f"expected {problem.answer}")

    def codec(self, model):
        from latent.codec import word_codec

        return word_codec([*map(str, range(self.names)), ";", "?", ":"], fixed_answer=1)

    def floors(self, problems):
        return shares([Graph(**p.data) for p in problems])
