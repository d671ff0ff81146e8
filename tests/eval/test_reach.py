"""Graphs in symbols: answers, chains and frontiers against a search by hand; floors; bad settings."""

import random
from itertools import pairwise

import pytest

from eval.environments import Reach, build
from eval.environments.prosqa import Graph, distances, shortcuts
from kernels.errors import UserError


def read(question):
    """Edges, options and root of a question."""
    *edges, asks = question.split(" ; ")
    _, a, b, _, root = asks.split()
    return {tuple(edge.split()) for edge in edges}, (a, b), root


def within(edges, root, steps):
    reached = {root}
    for _ in range(steps):
        reached |= {b for a, b in edges if a in reached}
    return reached


@pytest.mark.parametrize(
    "config", [Reach(graphs=8), Reach(nodes=(9, 10), parents=1, hops=(2, 2)), Reach(closed=True, hops=(3, 3), graphs=4)]
)
def test_answer_chain_and_frontier_are_those_of_a_search(config):
    env = build(config)
    for p in [p for level in env.levels() for p in env.problems("test", level, 5)] + env.train_batch(0, 0, 5):
        edges, options, root = read(p.question)
        assert len({b for _, b in edges}) == len(edges) or config.parents > 1
        (right,) = [node for node in options if node in within(edges, root, 200)]
        assert p.answer == right and {env.verify(p, node).correct for node in options} == {True, False}
        path = [root, *map(str.strip, p.steps)]
        assert set(pairwise(path)) <= edges and path[-1] == right
        assert right in within(edges, root, p.level) and right not in within(edges, root, p.level - 1)
        assert len(p.steps) == p.level and config.hops[0] <= p.level <= config.hops[1]
        found = env.frontiers(p)
        assert len(found) == p.level
        for step, after in enumerate(found, 1):
            near = within(edges, root, step)
            assert dict(after) == {node: pytest.approx(1 / len(near)) for node in near}
        assert env.parse_question(p.question) == p
        assert not any(a in options for a, _ in edges)  # both are leaves


def test_names_edges_and_options_come_in_random_order():
    """The root is any name, the target is named first as often as not, 4 standard errors of 200."""
    env = build(Reach(graphs=2))
    problems = env.train_batch(0, 0, 200)
    asked = [read(p.question) for p in problems]
    first = sum(p.answer == options[0] for p, (_, options, _) in zip(problems, asked))
    assert abs(first / 200 - 0.5) < 4 * 0.5 / 200**0.5
    assert len({root for *_, root in asked}) == 18 and len({p.key for p in problems}) == 200
    places = {[edge.split()[1] for edge in p.question.split(" ; ")[:-1]].index(p.answer) for p in problems}
    assert len(places) > 8  # of the edge into the target; as it was grown, one place for each of the two graphs


def test_floors_are_the_shortcuts_of_prosqa_and_closed_problems_have_none():
    env = build(Reach(graphs=4))
    problems = env.problems("test", 3, 20)
    rights = []
    for p in problems:
        edges, options, root = read(p.question)
        other = options[1 - options.index(p.answer)]
        pairs = [(int(a), int(b)) for a, b in edges]
        rights.append(shortcuts(Graph(18, pairs, int(root), int(p.answer), int(other))))
    for name, share in env.floors(problems).items():
        assert share == pytest.approx(0.5 if name == "chance" else sum(r[name] for r in rights) / 20)
    closed = build(Reach(closed=True, hops=(3, 3), graphs=4))
    rng = random.Random(0)
    for _ in range(6):  # right for one root exactly when it is wrong for the other, both options as far away
        graph = closed.graph(rng, 3)
        one = shortcuts(graph)
        two = shortcuts(graph.ask(1 - graph.root, graph.other, graph.target))
        assert all(one[name] + two[name] == 1 for name in one)
        assert distances(graph.out, 1 - graph.root)[graph.other] == 3 == distances(graph.out, graph.root)[graph.target]


@pytest.mark.parametrize(
    "text, parsed, correct",
    [
        ("2", True, True),
        ("1 2", True, True),
        ("4", True, False),
        ("2 4", True, False),
        ("3", False, False),
        ("2 .", False, False),
        ("02", False, False),
        ("", False, False),
    ],
)
def test_the_last_node_is_the_answer_where_it_is_an_option(text, parsed, correct):
    env = build(Reach())
    problem = env.parse_question("0 1 ; 3 4 ; 1 2 ; ? 4 2 : 0")
    assert problem.steps == ("1 ", "2 ") and problem.level == 2
    verdict = env.verify(problem, text)
    assert (verdict.parsed, verdict.correct, verdict.reward) == (parsed, correct, float(correct))


@pytest.mark.parametrize(
    "question",
    [
        "",
        "? 4 2 : 0",
        "0 1 ; 1 2 ; ? 4 5 : 0",
        "0 1 ; 1 2 ; ? 1 2 : 0",
        "0 1 ; 1 99 ; ? 99 2 : 0",
        "0 1 ; 1 2 ; ? 0 4 : 0",
        "0 1 ; 1 x ; ? 1 2 : 0",
        "0 1 ; 1 2 ? 4 2 : 0",
        "0 1 ; 1 2 ; ? 4 2 :",
        "0 1 ; 1 2 ; ? 4 2",
        "0 1 2 ; ? 4 2 : 0",
    ],
)
def test_what_has_no_one_answer_is_no_problem(question):
    assert build(Reach()).parse_question(question) is None


def test_a_node_is_a_token():
    env = build(Reach(graphs=1))
    codec, p = env.codec(None), env.problems("test", 4, 1)[0]
    assert codec.size == 2 + 18 + 3 and len(codec.answer(p.answer)) == 1
    assert len(codec.question(p.question)) == len(p.question.split()) + 1 == 3 * len(p.data["edges"]) + 6
    assert all(float(codec.weights(step).sum()) == pytest.approx(1) for step in env.frontiers(p))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"nodes": (7, 9)}, r"env\.nodes must be two sizes in 8\.\.200"),
        ({"parents": 6}, r"env\.parents must be in 1\.\.5, got 6"),
        ({"hops": (0, 3)}, r"env\.hops must be two numbers in 1\.\.9 \(env\.nodes\)"),
        ({"hops": (4, 3)}, r"the smaller first: \(4, 3\)"),
        ({"graphs": 0}, r"env\.graphs must be at least 1"),
    ],
)
def test_what_cannot_be_is_said(fields, said):
    with pytest.raises(UserError, match=said):
        Reach(**fields)


def test_hops_that_no_graph_has_are_said(monkeypatch):
    monkeypatch.setattr("eval.environments.reach.TRIES", 20)
    with pytest.raises(UserError, match=r"env\.hops \(3, 9\): no graph of 12 to 12 nodes .* asks over 9 hops"):
        build(Reach(nodes=(12, 12), hops=(3, 9))).problems("test", 9, 1)
