"""math-verify behind `env.verifier`: equal expressions, structure that stays ours, a limit that holds."""

import json

import pytest

from eval.environments import Math500, Problem, build
from eval.environments.equivalence import same

pytest.importorskip("math_verify", reason="the math extra is not installed")

from eval.environments import algebra


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "math.jsonl"
    path.write_text(json.dumps({"problem": "?", "answer": "1"}) + "\n")
    return {v: build(Math500(test=str(path), verifier=v)) for v in ("spelling", "math-verify")}


def verdict(env, gold: str, said: str):
    return env.verify(Problem("?", (), f"### {gold}", 0, {"gold": gold}), f"\\boxed{{{said}}}")


EQUAL = [
    ("x^2+2x+1", "(x+1)^2"),
    ("\\frac{1}{2}", "2/4"),
    ("8", "2^3"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("(1, x^2-1)", "(1, (x-1)(x+1))"),
    ("\\begin{pmatrix} 4 \\\\ 6 \\end{pmatrix}", "\\begin{pmatrix} 2+2 \\\\ 6 \\end{pmatrix}"),
]
DIFFERENT = [
    (r"\frac{2}{3}4", r"\frac{2}{34}"),
    (r"\frac12 3", r"\frac{1}{23}"),
    (r"30^\circ 15", "3015"),
    (r"1\%2", "12"),
    (r"1\$2", "12"),
    (r"100\text{ cm per s}", r"100\text{ cm}"),
    (r"5\text{ squared}", "5"),
    (r"2\text{ thirds}", "2"),
    ("x^2+2x+1", "(x-1)^2"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "1,2"),
    ("1,2", "2,1"),
    ("12", "1,2"),
    ("50\\%", "0.5"),
    ("\\sqrt{2}", "1.414214"),
    ("\\frac{1}{3}", "0.333333"),
    ("5\\text{ cm}", "5\\text{ m}"),
    ("x=3", "y=3"),
    ("\\text{Evelyn}", "\\text{Evelyn and Bob}"),
    ("x+1", "x+"),
    ("x", "}{"),
]


@pytest.mark.parametrize("gold, said", EQUAL)
def test_the_library_adds_algebra(env, gold, said):
    assert verdict(env["math-verify"], gold, said).correct and not verdict(env["spelling"], gold, said).correct


@pytest.mark.parametrize("gold, said", DIFFERENT)
def test_structure_numbers_units_and_words_stay_ours(env, gold, said):
    assert not verdict(env["math-verify"], gold, said).correct and not verdict(env["spelling"], gold, said).correct


def test_an_answer_that_takes_too_long_is_wrong_and_the_next_one_is_judged(env, monkeypatch):
    monkeypatch.setattr(algebra, "LIMIT", 1)
    monkeypatch.setattr(algebra, "_worker", None)  # a new one, with the new limit
    late = verdict(env["math-verify"], "1", "10^{10^{10^{10}}}")
    assert not late.correct and "math-verify did not answer within 1 s of processor time" in late.reason
    assert verdict(env["math-verify"], "a+b", "b+a").correct


def test_a_worker_that_says_nothing_is_given_up_and_ended(env, monkeypatch):
    assert verdict(env["math-verify"], "e+b", "b+e").correct
    worker = algebra._worker
    monkeypatch.setattr(algebra, "PATIENCE", 0.001)
    late = verdict(env["math-verify"], "1", "10^{10^{10^{8}}}")
    assert not late.correct and "within 0.001 s" in late.reason and worker.process.poll() is not None


def test_a_worker_that_was_killed_is_started_again(env):
    assert verdict(env["math-verify"], "c+b", "b+c").correct
    algebra._worker.process.kill()
    algebra._worker.process.wait()
    assert verdict(env["math-verify"], "d+b", "b+d").correct


def test_another_verifier_is_refused_by_name():
    with pytest.raises(ValueError, match=r"env\.verifier must be spelling or math-verify, got 'sympy'"):
        Math500(verifier="sympy")


UNITS = [
    (r"5\text{ mph}", r"5\text{ miles per hour}"),
    ("12", r"12\text{ m squared}"),
    (r"12\text{ m}^2", r"12\text{ m squared}"),
    ("3", r"3\text{ third-graders}"),
    ("3", r"3\text{ half dollars}"),
]


@pytest.mark.parametrize("gold, said", UNITS)
def test_a_unit_says_the_same_in_other_words(gold, said):
    assert same(said, gold) and same(gold, said)
