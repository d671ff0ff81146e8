"""The tables of eval/README.md, run through the verifiers; how long a verdict may take; wrong answers of all kinds."""

import json
import random
import re
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from time import process_time

import pytest

from eval.environments import (
    GSM8K,
    MNNS,
    Countdown,
    Cups,
    Environment,
    Math500,
    Modular,
    Problem,
    ProntoQA,
    ProsQA,
    Reach,
    Signs,
    build,
)
from eval.environments.countdown import evaluate
from eval.tasks import utils

README = Path(__file__).parents[2] / "eval" / "README.md"


def table(name: str) -> list[list[str]]:
    """Rows of a table between two comments, cells without their backticks."""
    block = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", README.read_text(encoding="utf-8"), re.DOTALL)[
        1
    ]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()[2:]]
    return [[c[1:-1].replace("⏎", "\n") if c.startswith("`") else c for c in row] for row in rows]


@pytest.fixture(scope="module")
def envs(tmp_path_factory) -> dict[str, Environment]:
    home = tmp_path_factory.mktemp("data")
    (home / "gsm.jsonl").write_text('{"question": "?", "answer": "#### 1"}\n')
    (home / "math.jsonl").write_text('{"problem": "?", "answer": "1"}\n')
    return {
        "gsm8k": build(GSM8K(train=None, test=str(home / "gsm.jsonl"))),
        "math_500": build(Math500(test=str(home / "math.jsonl"))),
        "cups": build(Cups()),
        "prosqa": build(ProsQA(graphs=1)),
        "prontoqa": build(ProntoQA()),
        "countdown": build(Countdown()),
        "mnns": build(MNNS()),
        "modular": build(Modular()),
        "signs": build(Signs()),
        "reach": build(Reach()),
    }


FILTERS = {
    "gsm8k": utils.last_number,
    "math_500": utils.last_latex,
    "cups": utils.last_arrangement,
    "prosqa": utils.last_membership,
    "prontoqa": utils.last_truth,
    "countdown": utils.last_expression,
    "mnns": utils.last_sum,
    "modular": utils.last_sum,
    "signs": utils.last_signs,
    "reach": utils.last_node,
}
QUESTIONS = {"signs": "4 4 5 =5", "reach": "3 17 ; 17 12 ; 5 4 ; ? 12 4 : 3"}


def problem_of(task: str, gold: str) -> Problem:
    answer = gold if task in ("cups", "mnns", "modular", "signs", "reach") else f"### {gold}"
    data = {"numbers": [3, 5, 7], "target": 8} if task == "countdown" else {"gold": gold}
    return Problem(QUESTIONS.get(task, "?"), (), answer, 0, data)


def judged(env: Environment, task: str, gold: str, text: str) -> tuple[bool, bool]:
    """Strict and flexible, as lm-eval's tasks score a completion."""
    problem = problem_of(task, gold)
    [[flexible]] = FILTERS[task]([[text]], [{"answer": problem.answer}])
    return env.verify(problem, text).correct, env.verify(problem, flexible).correct


FORMS = table("forms")


@pytest.mark.parametrize("task, gold, text, strict, flexible, reason", FORMS, ids=[f"{r[0]}: {r[2]}" for r in FORMS])
def test_the_table_of_forms_is_true(envs, task, gold, text, strict, flexible, reason):
    assert {strict, flexible} <= {"yes", "no"} and reason
    assert judged(envs[task], task, gold, text) == (strict == "yes", flexible == "yes")


def test_the_table_has_every_environment_and_both_verdicts():
    seen = {(row[0], row[3]) for row in FORMS}
    assert seen == {(task, verdict) for task in FILTERS for verdict in ("yes", "no")}


def test_verdicts_say_reward_parsed_and_reason(envs):
    for task, gold, text, *_ in FORMS:
        verdict = envs[task].verify(problem_of(task, gold), text)
        assert verdict.reward == float(verdict.correct)
        assert verdict.correct <= verdict.parsed and bool(verdict.reason) != verdict.correct, (task, text)


PIECES = [
    *(
        " ",
        "\t",
        "\n",
        "#",
        "###",
        "### ",
        "#### ",
        "\\boxed{",
        "\\fbox{",
        "\\boxed{1}",
        "\\boxed ",
        "{",
        "}",
        "$",
        "|",
    ),
    *("1", "1,", "1,111", "1 ", "1/", "1.", "-", "e", "1e", "10^", "10^{", "(", ")", "[", "^", "_", "&", "<<", "..."),
    *("\\frac", "\\frac{1}", "\\text{", "\\\\", "\\ ", "\\!", "\\,", "\\cup", "\\sqrt", "\\sqrt[", "\\left(", "\\("),
    *(
        "\\[",
        "\\begin{pmatrix}",
        "answer: ",
        "answer is ",
        "**",
        "__",
        "`",
        "a",
        "A",
        "Aa",
        "x=",
        "= ",
        "or 1 ",
        "and ",
    ),
    *(
        ", ",
        "Tom is a zumpus ",
        "Tom is a ",
        "True ",
        "true or false ",
        "1+1+",
        "1 2 3 4 ",
        "1* ",
        "((1",
        "٣",
        "½",
        "²",
    ),
    *(
        "⁰a",
        "＃",
        "４",
        "−",
        "\u2009",
        "\u200b",
        "é",
        "### 1. Add\n",
        "### 1-2\n",
        "### x\n",
        "### 1 or 2\n",
        "①",
        "一",
    ),
]


def test_no_verifier_takes_long_over_a_hundred_kilobytes(envs):
    """The limit is 50 ms; a pattern that grows with the square of the text would take seconds here."""
    heads = [("", ""), ("### ", ""), ("\\boxed{", "}")]
    slowest = {}
    for i, piece in enumerate(PIECES):
        cases = [(100_000, *heads[i % 3], tuple(envs))]
        cases += [(1_990, *head, ("gsm8k", "math_500")) for head in heads]  # short enough to be an answer
        for size, head, tail, tasks in cases:
            text = head + (piece * (size // len(piece)))[: size - len(head) - 1] + tail
            for task in tasks:
                problem = problem_of(task, {"math_500": "\\frac{1}{2}", "cups": "1 2 3 4"}.get(task, "12"))
                docs = [{"answer": problem.answer}]
                calls = {"verify": (envs[task].verify, problem, text), "filter": (FILTERS[task], [[text]], docs)}
                for what, call in calls.items():
                    seconds = timed(*call)
                    if seconds > 0.02:  # the machine may be busy
                        seconds = min(seconds, timed(*call), timed(*call))
                    slowest[task, what] = max(slowest.get((task, what), (0, "")), (seconds, head + piece))
    assert all(seconds < 0.05 for seconds, _ in slowest.values()), slowest


def timed(call, *args) -> float:
    """Seconds of this process."""
    begin = process_time()
    call(*args)
    return process_time() - begin


def test_countdown_reads_what_python_reads():
    """Against Python's own evaluation of the same text, over random expressions, right and broken."""
    rng = random.Random(0)
    agreed = 0
    for _ in range(4000):
        text = "".join(rng.choices(["1", "23", "+", "-", "*", "/", "(", ")", " "], k=rng.randint(1, 12)))
        try:
            value, used = evaluate(text)
        except (ValueError, ZeroDivisionError):
            continue
        exact = eval(re.sub(r"\d+", lambda m: f"F({m[0]})", text), {"F": Fraction})
        assert value == exact and used == [int(n) for n in re.findall(r"\d+", text)], text
        agreed += 1
    assert agreed > 100
    for bad in ("-3+5", "3 5", "3//5", "2**3", "3+", "(3", "3)", "()", "", "(" * 60 + "1" + ")" * 60, "1" * 201):
        with pytest.raises(ValueError):
            evaluate(bad)
    assert evaluate("(" * 49 + "1" + ")" * 49)[0] == 1


def test_countdown_takes_the_target_exactly_and_each_number_once(envs):
    """Every expression of three numbers with two operations, beside exact arithmetic."""
    problem = Problem("?", (), "### 1 + 2 - 1", 0, {"numbers": [1, 1, 2], "target": 2})
    right = set()
    for a, b, c in product((1, 2, 3), repeat=3):
        for one, two in product("+-*/", repeat=2):
            text = f"{a} {one} {b} {two} {c}"
            exact = eval(re.sub(r"\d", lambda m: f"F({m[0]})", text), {"F": Fraction})
            fits = exact == 2 and sorted((a, b, c)) == [1, 1, 2]
            assert envs["countdown"].verify(problem, f"### {text}").correct == fits, text
            right |= {text} if fits else set()
    assert len(right) == 12 and "1 * 2 / 1" in right


def test_cups_accepts_one_arrangement_of_all(envs):
    """Every arrangement, well-formed each, against every problem's own: one in 24 is correct."""
    env = envs["cups"]
    for problem in env.problems("test", 8, 5):
        said = [" ".join(p) for p in permutations("1234")]
        verdicts = [env.verify(problem, text) for text in said]
        assert all(v.parsed for v in verdicts)
        assert [text for text, v in zip(said, verdicts) if v.correct] == [problem.answer]
        for broken in ("1 1 2 3", "0 1 2 3", "1 2 3 5", "1 2 3", "12 3 4", "1,2,3,4"):
            assert not env.verify(problem, broken).parsed


def test_gsm8k_takes_its_number_and_no_neighbour(envs):
    env = envs["gsm8k"]
    for gold in ("42", "0.5", "-7", "1000000"):
        for away in ("0.5", "0.4", "0.001", "1e-9", "1"):
            for sign in (1, -1):
                near = Fraction(gold) + sign * Fraction(away)
                text = f"### {float(near):.12f}"
                assert env.verify(problem_of("gsm8k", gold), text).parsed
                assert not env.verify(problem_of("gsm8k", gold), text).correct
        assert not env.verify(problem_of("gsm8k", gold), f"### {-Fraction(gold)}").correct


def test_gsm_hard_takes_a_thousandth_and_no_more(envs):
    problem = Problem("?", (), "### 2.5", 0, {"gold": "2.5", "within": "0.001"})
    right = ["2.5", "2.501", "2.499", "2.5009"]
    wrong = ["2.5011", "2.4989", "2.51", "-2.5", "3"]
    assert [envs["gsm8k"].verify(problem, f"### {n}").correct for n in right + wrong] == [True] * 4 + [False] * 5


def test_prosqa_takes_the_target_alone(envs):
    env = envs["prosqa"]
    for problem in env.problems("test", 0, 5):
        who, target = problem.answer.split()[1], problem.answer.split()[4]
        *_, one, _, two, _ = problem.question.split()
        (other,) = {one, two} - {target}
        names = {w for w in problem.question.split() if w.endswith("pus")}
        for name in names:
            verdict = env.verify(problem, f"### {who} is a {name} .")
            assert verdict.parsed and verdict.correct == (name == target)
        for text in (f"{who} is a {target} or {other} .", f"{who} is not a {target} .", f"{who} is a {target} {other}"):
            assert not env.verify(problem, f"### {text}").correct
        assert not env.verify(problem, f"### No{who} is a {target} .").correct


def test_prontoqa_takes_one_of_two(envs):
    env = envs["prontoqa"]
    for problem in env.problems("test", 0, 20):
        assert env.verify(problem, problem.answer).correct
        other = {"### True": "### False", "### False": "### True"}[problem.answer]
        assert env.verify(problem, other).parsed and not env.verify(problem, other).correct
        for text in (
            "### True False",
            "### True. False",
            "### False, or true",
            "### Trueish",
            "### Not True",
            "### True/False",
            "### 1",
            "True",
            "### yes",
        ):
            assert not env.verify(problem, text).correct


def test_every_filter_hands_on_the_gold_answer(envs):
    for task, env in envs.items():
        if task in ("gsm8k", "math_500"):
            continue
        for problem in env.problems("test", env.main_level, 20):
            [[said]] = FILTERS[task]([[f"I think.\n{problem.answer}"]], [{"answer": problem.answer}])
            assert env.verify(problem, said).correct, (task, problem.answer, said)


def test_the_judge_of_lm_eval_is_the_verifier():
    rows = utils.cups(items=3)["test"]
    assert len(rows) == 3
    for row in rows:
        assert utils.judge(row, [row["answer"]]) == {"exact_match": 1.0}
        assert utils.judge(row, [row["answer"][::-1]]) == {"exact_match": float(row["answer"] == row["answer"][::-1])}
        assert json.loads(row["data"]) == {}
