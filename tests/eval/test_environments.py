"""Every environment: the gold answer verifies, a corrupted one does not, splits do not touch, bad data says where."""

import json
import random
from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest

from eval.environments import GSM8K, MNNS, Countdown, Cups, Math500, Modular, ProntoQA, ProsQA, Reach, Signs, build
from eval.environments.base import Problem, Verdict
from eval.environments.prosqa import Graph, shortcuts
from eval.judge import verify
from kernels.errors import UserError


def gsm_file(tmp_path, n=40):
    rows = [
        {"question": f"What is {i} + {i}?", "steps": [f"<<{i}+{i}={2 * i}>>"], "answer": str(2 * i)} for i in range(n)
    ]
    path = tmp_path / "gsm.json"
    path.write_text(json.dumps(rows))
    return str(path)


def math_file(tmp_path):
    rows = [
        {"problem": f"Half of ${i}$?", "solution": f"It is half. So {i}/2.", "answer": f"\\frac{{{i}}}{{2}}"}
        for i in range(1, 40)
    ]
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(
    params=[
        *("cups", "prosqa", "prosqa-closed", "gsm8k", "prontoqa", "countdown", "math500", "mnns", "cups-named"),
        *("modular", "signs", "cups-pairs", "reach"),
    ]
)
def env(request, tmp_path):
    match request.param:
        case "cups":
            return build(Cups())
        case "prosqa":
            return build(ProsQA(graphs=4))
        case "prosqa-closed":
            return build(ProsQA(closed=True, graphs=4))
        case "prontoqa":
            return build(ProntoQA())
        case "countdown":
            return build(Countdown())
        case "math500":
            return build(Math500(train=math_file(tmp_path), test=None))
        case "mnns":
            return build(MNNS(largest=12))
        case "modular":
            return build(Modular())
        case "cups-named":
            return build(Cups(state_tokens=1))
        case "cups-pairs":
            return build(Cups(state_tokens=2))
        case "reach":
            return build(Reach(graphs=4))
        case "signs":
            return build(Signs())
    return build(GSM8K(train=gsm_file(tmp_path)))


def corrupted(problem: Problem, rng: random.Random) -> str:
    """Another last word: another number, cup, concept or sign."""
    if problem.answer[-1] in "+-":
        return problem.answer[:-1] + {"+": "-", "-": "+"}[problem.answer[-1]]
    if problem.answer.startswith("=") and " " not in problem.answer:
        return f"={int(problem.answer[1:]) + rng.choice((-1, 1, 2))}"
    *head, last = problem.answer.rstrip(" .").split()
    if last.startswith("="):
        return " ".join([*head, f"={last[:0:-1]}"])
    options = {"1", "2", "3", "4", "17", "lempus", "zumpus", "999"} - {last}
    return " ".join([*head, rng.choice(sorted(options))])


def test_gold_is_correct_and_a_corrupted_answer_is_not(env):
    rng = random.Random(0)
    for problem in env.problems("test", env.main_level, 30) + env.train_batch(0, 0, 30):
        for text in (problem.answer, "".join(problem.steps) + " " + problem.answer):
            verdict = env.verify(problem, text)
            assert verdict.correct and verdict.parsed and verdict.reward == 1.0
        wrong = env.verify(problem, corrupted(problem, rng))
        assert not wrong.correct and wrong.reward == 0.0 and wrong.reason
        for text in ("", "gibberish", "###", problem.question):
            assert not env.verify(problem, text).correct and not env.verify(problem, text).parsed


def test_splits_share_no_key_and_repeat_exactly(env):
    test = env.problems("test", env.main_level, 50)
    assert test == env.problems("test", env.main_level, 50)
    assert len({p.key for p in test}) == len(test)
    train = [p for i in range(20) for p in env.train_batch(1, i, 16)]
    assert not {p.key for p in train} & {p.key for p in test}
    valid = env.problems("valid", env.main_level, 50)
    assert not {p.key for p in valid} & ({p.key for p in train} | {p.key for p in test})
    assert env.train_batch(1, 7, 16) == train[7 * 16 : 8 * 16] != env.train_batch(2, 7, 16)


@pytest.mark.parametrize("config", [Cups(), Countdown(), None])
def test_batches_depend_on_seed_and_epoch(config, tmp_path):
    """Every seed has an order of its own; an epoch of a finite set holds each problem once, in another order."""
    env = build(config or GSM8K(train=gsm_file(tmp_path)))
    batches = [tuple(p.key for p in env.train_batch(seed, i, 17)) for seed in (0, 1) for i in range(4)]
    assert len(set(batches)) == 8 and all(set(a) != set(b) for a, b in pairwise(batches))
    if config is None:
        n = len(env.splits["train"])
        epochs = [tuple(p.key for p in env.train_batch(3, i, n)) for i in range(3)]
        assert len(set(epochs)) == 3 and all(len(set(e)) == n for e in epochs)
        assert env.train_batch(3, 1, 2 * n)[-n:] == env.train_batch(3, 3, n)


def test_options_come_in_either_order():
    """The target of ProsQA is named first in about half of the questions, 4 standard errors of 200."""
    first = [p.question.split()[-4] == p.answer.split()[-2] for p in build(ProsQA(graphs=8)).train_batch(0, 0, 200)]
    assert abs(sum(first) / 200 - 0.5) < 4 * 0.5 / 200**0.5


def test_cups_oracle_composes_swaps():
    env = build(Cups(cups=5, swaps=6))
    for problem in env.problems("test", 6, 40):
        place = list(range(5))
        for move, step in zip(problem.question.split(), problem.steps):
            i, j = map(int, move)
            swap = {i: j, j: i}
            place = [swap.get(p, p) for p in place]  # where each cup is, against the oracle's which cup is where
            assert [place.index(s) for s in range(5)] == [int(c) - 1 for c in step.split()]


def test_cups_parity_floor_is_the_best_guess_that_knows_the_parity():
    floors = build(Cups(cups=4)).floors([])
    even = [p for p in permutations(range(4)) if sum(p[i] > p[j] for i in range(4) for j in range(i, 4)) % 2 == 0]
    assert floors == {"chance": 1 / 24, "parity": 1 / len(even)}


@pytest.mark.parametrize(
    "config, derived",
    [
        (Cups(), {"chance": 1 / 24, "parity": 1 / 12}),
        *((graphs, {"chance": 0.5}) for graphs in (ProsQA(graphs=4), Reach(graphs=4), ProntoQA())),
        *((search, {}) for search in (MNNS(), Modular(), Signs())),
    ],
)
def test_of_no_problems_only_floors_that_are_derived_are_left(config, derived):
    assert build(config).floors([]) == derived


def test_cups_levels_have_so_many_live_swaps():
    env = build(Cups())
    for level in env.levels():
        for p in env.problems("test", level, 5):
            assert sum(m != "." for m in p.question.split()) == level == p.level
    with pytest.raises(ValueError, match="no level 9"):
        env.problems("test", 9, 1)


@pytest.mark.parametrize("config", [Cups(rest="pairs"), Cups(rest="identity"), Cups(cups=3, swaps=6, rest="identity")])
def test_swaps_that_come_to_nothing_show_neither_by_number_nor_by_dots_how_many_are_needed(config):
    """Level n: the arrangement after n swaps is the last one, and none before is, that before any swap included."""
    env = build(config)
    assert env.levels() == list(range(2, config.swaps + 1, 2))
    for level in env.levels():
        for p in env.problems("test", level, 12):
            moves = p.question.split()
            assert len(moves) == config.swaps and "." not in moves
            cups, trace = list(range(config.cups)), []
            for move in ["00", *moves]:
                i, j = map(int, move)
                cups[i], cups[j] = cups[j], cups[i]
                trace.append(tuple(cups))
            assert trace.index(trace[-1]) == level == p.level and env.parse_question(p.question) == p
            if config.rest == "pairs":
                assert moves[level::2] == moves[level + 1 :: 2]
    with pytest.raises(UserError, match="no level 3"):
        env.problems("test", 3, 1)


def test_words_that_come_to_nothing_are_drawn_each_as_often():
    """Four swaps of four cups after two, by how many cups their first two swaps share: 5 standard errors of the shares
    of such words among all that come to nothing."""
    env = build(Cups(cups=4, swaps=6, rest="identity"))

    def ends(word):
        cups = [0, 1, 2, 3]
        for i, j in (map(int, move) for move in word):
            cups[i], cups[j] = cups[j], cups[i]
        return cups

    words = [word for word in product(("01", "02", "03", "12", "13", "23"), repeat=4) if ends(word) == [0, 1, 2, 3]]
    rng, n = random.Random(0), 2000
    drawn = [tuple(env.draw(rng, 2).question.split()[2:]) for _ in range(n)]
    assert set(drawn) == set(words) and len(words) == 120
    shared = lambda each: Counter(len(set(word[0]) & set(word[1])) for word in each)  # noqa: E731
    for kind, count in shared(words).items():
        p = count / len(words)
        assert abs(shared(drawn)[kind] / n - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_rules_for_stopping_by_hand():
    """Of 01 12 | 02 02: two are needed. Of 01 12 | 02 01 02 12, as well, but only neighbours that are alike cancel."""
    pairs, whole = build(Cups(cups=3, swaps=4, rest="pairs")), build(Cups(cups=3, swaps=6, rest="identity"))
    problem = pairs.parse_question("01 12 02 02")
    assert pairs.halting([problem]) == {"all": (1, 4), "dots": (1, 4), "neighbours": (1, 2), "needed": (1, 2)}
    problem = whole.parse_question("01 12 02 01 02 12")
    assert problem.level == 2 and whole.halting([problem])["neighbours"] == (1, 6)
    nested = whole.parse_question("01 12 02 01 01 02")
    assert whole.halting([nested])["neighbours"] == (1, 2)
    dots = build(Cups(cups=3, swaps=4))
    problem = dots.parse_question("01 12 . .")
    assert dots.halting([problem]) == {"all": (1, 4), "dots": (1, 2), "neighbours": (1, 2), "needed": (1, 2)}
    there_and_back = dots.parse_question("01 01 . .")
    assert dots.halting([there_and_back])["needed"] == (1, 0)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"rest": "none"}, "rest must be one of dots, pairs, identity, got 'none'"),
        ({"rest": "pairs", "cups": 2}, r"env\.rest pairs takes 3 to 6 cups"),
        ({"rest": "identity", "cups": 7}, r"env\.rest identity takes 3 to 6 cups"),
        ({"rest": "identity", "swaps": 34}, "up to 32 swaps"),
        ({"rest": "identity", "turns": 2}, "one turn, got 4, 8 and 2"),
    ],
)
def test_what_cannot_come_to_nothing_is_said(fields, said):
    with pytest.raises(UserError, match=said):
        Cups(**fields)


def test_every_place_has_every_swap_as_often():
    """Six swaps of four cups, uniform and independent of where they stand: 5 standard errors of 1,200 draws."""
    problems = build(Cups()).problems("test", 8, 1200)
    for place in range(8):
        said = Counter(p.question.split()[place] for p in problems)
        assert len(said) == 6 and all(abs(n / 1200 - 1 / 6) < 5 * (5 / 36 / 1200) ** 0.5 for n in said.values())


@pytest.mark.parametrize("closed", [False, True])
def test_prosqa_problems_are_what_they_say(closed):
    env = build(ProsQA(closed=closed))
    for p in env.problems("test", 0, 40):
        *facts, question = p.question.rstrip(" ?").split(" . ")
        known = {tuple(f.removeprefix("Every ").split(" is a ")) for f in facts}
        name, options = question.removeprefix("Is ").split(" a ")
        reached, frontier = set(), {name}
        while frontier:
            reached |= frontier
            frontier = {b for a, b in known if a in frontier} - reached
        good = [o for o in options.split(" or ") if o in reached]
        assert len(good) == 1 and p.answer == f"### {name} is a {good[0]} ."
        chain = [tuple(s.strip().rstrip(" .").removeprefix("Every ").split(" is a ")) for s in p.steps]
        assert set(chain) <= known and chain[0][0] == name and chain[-1][1] == good[0] and 3 <= len(chain) <= 6
        assert all(a[1] == b[0] for a, b in pairwise(chain))


def test_prosqa_statistics_are_the_official_ones():
    """Against the means of the 300 official validation problems, and the shortcuts' scores on the official 800."""
    env = build(ProsQA())
    problems = env.problems("test", 0, 400)
    mean = lambda f: sum(map(f, problems)) / len(problems)  # noqa: E731
    assert abs(mean(lambda p: p.data["n"]) - 22.8) < 1
    assert abs(mean(lambda p: len(p.data["edges"])) - 36.3) < 2.5
    assert abs(mean(lambda p: len(p.steps) == 3) - 0.41) < 0.08 and abs(mean(lambda p: len(p.steps) == 4) - 0.44) < 0.08
    floors = env.floors(problems)
    official = {"fewer entities reach it": 0.946, "closer, undirected": 0.871, "more ancestors": 0.707}
    official |= {"fewer in-edges": 0.664, "fewer mentions": 0.649}
    assert all(abs(floors[name] - official[name]) < 0.08 for name in official)


def test_closed_prosqa_has_no_shortcut_left():
    env = build(ProsQA(closed=True))
    assert max(env.floors(env.problems("test", 0, 400)).values()) < 0.6


def test_shortcuts_by_hand():
    """0 -> 2 -> 4, 1 -> 3 -> 5 and 1 -> 2: asked about 0, target 4, other 5."""
    graph = Graph(6, [(0, 2), (2, 4), (1, 3), (3, 5), (1, 2)], root=0, target=4, other=5)
    assert shortcuts(graph) == {
        "fewer entities reach it": 0.5,  # entity 1 reaches both
        "closer, undirected": 1.0,  # 2 against 4
        "more ancestors": 1.0,  # {2, 0, 1} against {3, 1}
        "fewer in-edges": 0.5,
        "fewer mentions": 0.5,
    }


def test_official_prosqa_is_read(tmp_path):
    row = {"question": "Tom is a bompus. Every bompus is a zumpus. Sam is a lempus. Is Tom a zumpus or lempus?",
           "answer": "Tom is a zumpus.", "steps": ["Tom is a bompus.", "Every bompus is a zumpus."],
           "idx_to_symbol": ["Tom", "bompus", "zumpus", "Sam", "lempus"], "edges": [[0, 1], [1, 2], [3, 4]],
           "root": 0, "target": 2, "neg_target": 4}  # fmt: skip
    other = dict(row, question="Another. " + row["question"])
    path = tmp_path / "prosqa.json"
    path.write_text(json.dumps([row, other]))
    env = build(ProsQA(train=str(path)))
    (problem,) = env.splits["test"]
    assert env.verify(problem, "### Tom is a zumpus .").correct
    assert env.floors([problem])["closer, undirected"] == 1.0
    codec = env.codec(None)
    assert codec.question(problem.question) and None not in codec.question(problem.question)


BAD = {
    "no such data file": None,
    "line 2: not JSON": '{"question": "a", "answer": "#### 1"}\n{"question"',
    "line 1: field 'question' must be a string, got None": '{"answer": "#### 1"}',
    "line 1: field 'answer' must end in ####": '{"question": "a", "answer": "1"}',
    "line 1: field 'answer' must give a number, got 'many'": '{"question": "a", "answer": "#### many"}',
    "item 1: field 'steps' must be a list of strings": '[{"question": "a", "steps": "x", "answer": "1"}]',
    "item 2: expected an object, got int": '[{"question": "a", "answer": "#### 1"}, 3]',
    "is gzip: unpack it": b"\x1f\x8b\x08\x00",
    "is UTF-16: save it as UTF-8": '{"question": "a"}'.encode("utf-16"),
    "is not text": b"\x80",
    "holds no problems": "",
    "line 3": '[\n{"question": "a"},\n{]',
}


@pytest.mark.parametrize("message", BAD)
def test_bad_data_names_file_line_and_field(message, tmp_path):
    path = tmp_path / "bad.json"
    if BAD[message] is not None:
        path.write_bytes(BAD[message] if isinstance(BAD[message], bytes) else BAD[message].encode())
    with pytest.raises(ValueError) as e:
        build(GSM8K(train=str(path)))
    assert message in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_folder_a_name_left_out_and_a_single_problem(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"question": "a", "answer": "#### 1"}')
    for source, said in (
        (tmp_path, "is a folder, not a data file"),
        ("hub:", "hub: names no data set"),
        (tmp_path / "one.jsonl", "no problem is left to train on: of 1 one in ten, and one at least, is to test on"),
    ):
        with pytest.raises(ValueError, match=said):
            build(GSM8K(train=str(source)))


def test_numbers_are_compared_as_numbers(tmp_path):
    env = build(GSM8K(train=gsm_file(tmp_path)))
    problem = Problem("q", (), "### 1200", 0, {"gold": "1200"})
    right = {"### 1200", "### 1,200", "### 1200.0", "<<a>>\n### 1200 ", "### 1200 apples"}
    wrong = {"### 120", "1200", "### 1200 or 1300 apples", "### ", "### 1200 ### 3", "### 1.200"}
    assert all(env.verify(problem, t).correct for t in right) and not any(env.verify(problem, t).correct for t in wrong)


def test_a_verifier_that_raises_stops_with_the_key():
    class Broken(type(build(Cups()))):
        def verify(self, problem, text):
            raise KeyError("oops")

    env = Broken(Cups())
    problem = env.problems("test", 8, 1)[0]
    with pytest.raises(RuntimeError, match=f"problem {problem.key}: KeyError"):
        verify(env, problem, "1 2 3 4")


def test_prontoqa_answers_follow_from_its_sentences():
    """Forward chaining over the sentences of the question, by another program, proves or refutes what is asked."""
    for problem in build(ProntoQA()).problems("test", 0, 100):
        facts, asked = problem.question.split(" True or false : ")
        rules = [f.split() for f in facts.strip(" .").split(" . ")]
        who, _, *claim = asked.strip(" .").split()
        held, before = {("a", rules[[r[0] == who for r in rules].index(True)][-1])}, set()
        while held != before:
            before = set(held)
            for first, second, _, *rest in rules:
                if first == "Every" and ("a", second) in held:
                    held.add(tuple(rest) if len(rest) == 2 else ("is", rest[0]))
        claim = tuple(claim) if len(claim) == 2 else ("is", claim[0])
        opposite = ("not" if claim[0] == "is" else "is", claim[1])
        assert (claim in held) != (opposite in held)
        assert problem.answer == f"### {claim in held}"
        # the two concepts with the asked property or its opposite look alike: both are the kind of one other, at least
        about = [r[1] for r in rules if r[0] == "Every" and r[-1] == claim[1]]
        assert {r[-2] for r in rules if r[0] == "Every" and r[-1] == claim[1]} == {"is", "not"}  # one has it
        assert len(about) == 2 and all(any(r[-2:] == ["a", c] for r in rules) for c in about)


def test_countdown_takes_any_right_expression_and_nothing_else():
    env = build(Countdown())
    problem = Problem("Numbers 3 5 7 .", (), "### 3 * 5 - 7", 3, {"numbers": [3, 5, 7], "target": 8})
    for right in ("### 3 * 5 - 7", "chain\n### (5*3)-7", "### 5 * 3 - 7"):
        assert env.verify(problem, right).correct
    for wrong in ("### 8", "### 3 * 5 - 7 - 7 + 7", "### 3 + 5", "### 7 + 5 - 3", "### 15 - 7"):
        assert env.verify(problem, wrong).parsed and not env.verify(problem, wrong).correct
    for none in (
        "### 3 ** 5",
        "### f(3)",
        "### 3 / (5 - 5)",
        "### __import__('os')",
        "### " + "(" * 150,
        "### 3.0",
        "3*5-7",
    ):
        assert not env.verify(problem, none).parsed
    for p in env.problems("test", 4, 50):
        for step in p.steps:
            left, right = step.split(" = ")
            assert eval(left.replace("/", "//")) == int(right)


@pytest.mark.parametrize(
    "said, gold, right",
    [
        (r"\dfrac{1}{2}", r"\frac12", True),
        ("1/2", r"\frac{1}{2}", True),
        ("0.50", "1/2", True),
        ("0.5", r"\frac{1}{2}", True),
        ("1,234", "1234", True),
        (r"5\text{ cm}^2", "5", True),
        (r"x = 3", "3", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"30^\circ", "30", True),
        (r"\sqrt2", r"\sqrt{2}", True),
        ("2/4", r"\frac{1}{2}", False),
        ("12", "21", False),
        ("2516_8", "25168", False),
        (r"6\text{ PM}", r"6\text{ AM}", False),
        (r"11\text{ and }\text{12}", r"11\text{ and }\text{13}", False),
        ("1" + "0" * 30, "1" + "0" * 29 + "1", False),
        ("1e50000000", "1", False),
        (r"3\,x", "3x", True),
        (r"5\ \text{cm}", "5", True),
        (r"\frac{11}2", r"\frac{11}{2}", True),
        ("007.50", "7.5", True),
        ("x", "y", False),
        ("(1,2)", "1,2", False),
    ],
)
def test_math_answers_are_compared_in_one_spelling(said, gold, right):
    env = build_math()
    problem = Problem("?", (), f"### {gold}", 0, {"gold": gold})
    assert env.verify(problem, f"### {said}").correct is right
    assert env.verify(problem, f"so it is \\boxed{{{said}}}.").correct is right


def build_math():
    from eval.environments.math500 import Math500Environment

    return Math500Environment.__new__(Math500Environment)  # its verifier alone


@pytest.mark.parametrize(
    "row, gold, text, right",
    [
        ({"input": "How many?", "target": 22.5, "code": ""}, "22.5", "### 22.5004", True),
        ({"input": "How many?", "target": -9867630.0}, "-9867630", "### -9,867,630", True),
        ({"input": "How many?", "target": 3.0}, "3", "### 3.01", False),
        ({"Body": "Ann has 3.", "Question": "And Bob?", "Answer": 7.0, "Equation": ""}, "7", "### 7.0", True),
        ({"question": "How many?", "final_ans": "1,018"}, "1018", "### 1018", True),
    ],
)
def test_sets_to_test_on_are_read_in_their_own_formats(row, gold, text, right, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    env = build(GSM8K(train=None, test=str(path)))
    (problem,) = env.problems("test", 0, 9)
    assert problem.data["gold"] == gold and env.verify(problem, text).correct is right
    with pytest.raises(ValueError, match="problems to test on only"):
        env.train_batch(0, 0, 4)


def test_an_environment_whose_problems_are_all_held_out_says_so():
    """One problem, drawn again and again, is of one split."""
    env = build(Cups())
    held_out = next(p for p in env.problems("test", env.main_level, 1))
    env.draw_train = lambda rng: held_out
    with pytest.raises(UserError, match="none is of the training split"):
        env.train_batch(0, 0, 2)


def test_a_question_in_other_white_space_or_quotes_is_not_trained_on(tmp_path):
    asked = "Tom's dog is 3. How old is it?"
    others = [
        "Tom\u2019s dog is 3. How old is it?",
        "Tom's  dog is 3.\nHow old is it?",
        "Tom's dog is\u00a03. How old is it?",
    ]
    rows = [{"question": q, "steps": [], "answer": "3"} for q in (*others, "And the cat?", "And the cow?")]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps({"question": asked, "steps": [], "answer": "3"}) + "\n")
    env = build(GSM8K(train=str(train), test=str(test)))
    left = {p.question for split in ("train", "valid") for p in env.splits[split]}
    assert left == {"And the cat?\n", "And the cow?\n"}


def test_other_answers_to_the_same_questions_are_other_data(tmp_path):
    path = tmp_path / "rows.jsonl"

    def fingerprint(add: int, step: str = "<<1+1=2>>") -> str:
        rows = [{"question": f"{i}?", "steps": [step], "answer": str(i + add)} for i in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build(GSM8K(train=str(path))).fingerprint()

    first = fingerprint(0)
    assert fingerprint(0) == first != fingerprint(1)
    assert fingerprint(0, "<<1+2=3>>") != first


def test_a_verdict_is_one_with_numbers_of_python():
    class Own(type(build(Cups()))):
        def verify(self, problem, text):
            return given

    env = Own(Cups())
    problem = env.problems("test", env.main_level, 1)[0]
    given = Verdict(np.float32(1), np.bool_(True), np.bool_(True))
    said = verify(env, problem, "")
    assert (type(said.reward), type(said.correct), type(said.parsed)) == (float, bool, bool) and said.correct
    for other in (True, None, 1.0):
        given = other
        with pytest.raises(UserError, match="verify must give a Verdict"):
            verify(env, problem, "")
