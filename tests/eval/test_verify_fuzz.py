"""Random answers: every spelling of the right one is accepted, a near miss is not; no text makes a verifier raise."""

import json
import random
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.environments.equivalence import same
from eval.judge import verify
from tests.eval.test_verify import FILTERS, PIECES, envs, problem_of  # noqa: F401  a fixture of that file

several = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FULL_WIDTH = str.maketrans("0123456789-", "０１２３４５６７８９－")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
BOLD = str.maketrans({str(d): chr(0x1D7CE + d) for d in range(10)})

SPELLINGS = [  # of a whole number, for both published sets
    "### {n}", "#### {n}", "###{n}", "### {n}.", "### {n}.0", "### {n}.00", "### **{n}**", "### `{n}`", "### __{n}__",
    "### ${n}$", "### $${n}$$.", r"### \({n}\)", r"### \[{n}\]", r"\boxed{{{n}}}", r"So it is $\boxed{{{n}}}$.",
    r"\fbox{{{n}}}", r"\boxed {{ {n} }}", r"### \boxed{{{n}}}", r"### \text{{{n}}}", r"### \mathrm{{{n}}}",
    r"\boxed{{\boxed{{{n}}}}}", r"### \${n}", r"### {n} \text{{ pens}}", r"\boxed{{{n}\,\text{{cm}}}}", r"### {n}\%",
    r"\boxed{{{n}\text{{ cm}}^2}}", "### Answer: {n}", "### The final answer is {n}.", "### Final answer:\n\n{n}",
    "### x = {n}", r"### x={n}", "### {n:,}", "### {wide}", "### {arabic}", "### {bold}", "### {minus}", "### {n}e0",
    "### {thin}", r"### {latex}", r"### {braced}", "### {tenth}e1", r"### {tenth} \times 10^{{1}}", "### {tenth} × 10¹",
    "### Step 1\nWe add.\n### Step 2\nSo \\boxed{{{n}}}.", "### 1. Add\nso.\n### 2. Sum\nso.\n#### {n}",
    "### {n}\n", "### {other}\nWait.\n### {n}", r"\boxed{{{other}}} is wrong, it is \boxed{{{n}}}", "### {n} ###",
]  # fmt: skip


def spelled(form: str, n: int) -> str:
    """A form with a number in it."""
    tenth = f"{'-' if n < 0 else ''}{abs(n) // 10}.{abs(n) % 10}"
    return form.format(
        n=n, other=n + 1, tenth=tenth, wide=str(n).translate(FULL_WIDTH), arabic=str(n).translate(ARABIC),
        bold=str(n).translate(BOLD),
        minus=str(n).replace("-", "−"), thin=f"{n:,}".replace(",", "\u202f"), latex=f"{n:,}".replace(",", r",\!"),
        braced=f"{n:,}".replace(",", "{,}"),
    )  # fmt: skip


@several
@given(n=st.integers(-(10**9), 10**9))
def test_a_number_is_accepted_in_every_spelling(envs, n):  # noqa: F811
    assert len(SPELLINGS) > 40
    for task in ("gsm8k", "math_500"):
        for form in SPELLINGS:
            text = spelled(form, n)
            verdict = envs[task].verify(problem_of(task, str(n)), text)
            assert verdict.correct, (task, n, text, verdict)


@several
@given(n=st.integers(-(10**6), 10**6).filter(lambda n: abs(n) > 9))
def test_a_near_miss_is_not_accepted_in_any_spelling(envs, n):  # noqa: F811
    digits = str(abs(n))
    others = {n + 1, n - 1, -n, n * 10, n + 10, int(digits[::-1] + "1")} - {n}
    for task in ("gsm8k", "math_500"):
        problem = problem_of(task, str(n))
        for form in SPELLINGS:
            for other in others:
                if "{other}" in form and other == n - 1:
                    continue  # whose other is n: said, and taken back
                assert not envs[task].verify(problem, spelled(form, other)).correct, (task, n, spelled(form, other))
        odd = [" ".join(digits), ",".join(digits), ", ".join(digits), r"\ ".join(digits), r"\,".join(digits[-2:])]
        odd += [f"{n} or {n + 1}", f"{n} to {n + 1}", f"{n}, {n + 1}", f"({n}, {n})", f"{n}.{n}", f"{n} {n}", f"{n}+1"]
        odd += [
            f"{n}.5",
            f"{n}.000001",
            f"{n}/2",
            f"{n}^2",
            f"{n}x",
            f"{n}e1",
            f"{n}e-1",
            f"{n}²",
            f"{n} million",
            f"{n}!",
        ]
        odd += [rf"\frac{{{abs(n)}}}{{2}}", rf"\sqrt{{{abs(n)}}}", rf"{n}\pi", f"x{n}", f"{n}/0", "", "-", "#"]
        for said in odd:
            if task == "gsm8k" and said in (f"{n}x", f"{n}!", f"{n}/0"):
                continue  # "x" is a unit there, "!" ends a sentence
            verdict = envs[task].verify(problem, f"### {said}")
            assert not verdict.correct, (task, n, said)


@several
@given(over=st.integers(-200, 200), under=st.integers(1, 60))
def test_fractions_are_compared_by_value(envs, over, under):  # noqa: F811
    value = Fraction(over, under)
    a, b, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    forms = [
        f"{sign}{a}/{b}",
        rf"{sign}\frac{{{a}}}{{{b}}}",
        rf"{sign}\dfrac{{{a}}}{{{b}}}",
        rf"\frac{{{sign}{a}}}{{{b}}}",
    ]
    if a > b > 1:
        forms += [f"{sign}{a // b} {a % b}/{b}", rf"{sign}{a // b}\frac{{{a % b}}}{{{b}}}"]
    if a < 10 and b < 10:
        forms.append(rf"{sign}\frac{a}{b}")
    if 10**6 % b == 0:
        forms.append(f"{float(value):.6f}")
    near = [f"{sign}{a + 1}/{b}", f"{sign}{a}/{b + 1}" if a else "1/7", f"{sign}{b}/{a + b}" if a != b else "2"]
    for gold in forms if b > 1 else []:
        for said in forms:
            assert same(said, gold), (said, gold)
        for said in near:
            if Fraction(said) != value:
                assert not same(said, gold) and not same(gold, said), (said, gold)
        if b > 1:
            assert not same(rf"\frac{{{3 * a}}}{{{3 * b}}}", gold) or a == 0
    if 10**6 % b == 0:
        problem = problem_of("gsm8k", f"{float(value):.6f}")
        assert all(envs["gsm8k"].verify(problem, f"### {said}").correct for said in forms)
        assert not any(envs["gsm8k"].verify(problem, f"### {s}").correct for s in near if Fraction(s) != value)


# A LaTeX answer as a tree, (kind, *children) or a leaf, and two ways to write it down.

LEAVES = [
    "0",
    "1",
    "2",
    "-3",
    "17",
    "x",
    "y",
    "\\pi",
    "-\\infty",
    "2x",
    "x^{2}",
    "\\sqrt{2}",
    "\\frac{1}{2}",
    "\\frac{x}{3}",
    "n!",
]
leaves = st.sampled_from(LEAVES)
pairs = st.tuples(leaves, leaves)
trees = st.one_of(
    leaves.map(lambda leaf: ("leaf", leaf)),
    st.lists(leaves, min_size=2, max_size=4).map(lambda xs: ("list", *xs)),
    st.lists(leaves, min_size=2, max_size=4).map(lambda xs: ("()", *xs)),
    st.lists(leaves, min_size=2, max_size=4, unique=True).map(lambda xs: ("set", *xs)),
    st.tuples(st.sampled_from(["[]", "[)", "(]"]), leaves, leaves),
    st.tuples(pairs, pairs).map(lambda rows: ("matrix", *rows)),
    st.tuples(leaves, leaves, leaves).map(lambda column: ("column", *column)),
)


def written(tree, rng: random.Random | None) -> str:
    """A tree in LaTeX; with a generator, in any of the spellings that say the same."""
    pick = lambda *options: rng.choice(options) if rng else options[0]  # noqa: E731
    space = lambda: pick("", " ", "  ", "\\,", "\\;", "\\ ", "\\!", "~", "\n")  # noqa: E731

    def leaf(said: str) -> str:
        said = said.replace("\\frac", pick("\\frac", "\\dfrac", "\\tfrac"))
        said = said.replace("x^{2}", pick("x^{2}", "x^2", "x^ 2")).replace("\\sqrt{2}", pick("\\sqrt{2}", "\\sqrt2"))
        said = said.replace("frac{1}{2}", pick("frac{1}{2}", "frac12", "frac 1 2"))
        return said.replace("2x", pick("2x", "2 x", "2\\,x"))

    kind, *parts = tree
    if kind == "leaf":
        out = leaf(parts[0])
    elif kind in ("matrix", "column"):
        name = pick("pmatrix", "bmatrix")
        rows = [[row] if kind == "column" else row for row in parts]
        body = "\\\\".join(space() + "&".join(space() + leaf(c) + space() for c in row) for row in rows)
        out = f"\\begin{{{name}}}{body}{pick('', chr(92) * 2)}\\end{{{name}}}"
    else:
        if kind == "set" and rng:
            rng.shuffle(parts)
        opener, closer = {"list": ("", ""), "set": ("\\{", "\\}")}.get(kind) or tuple(kind)
        if opener and pick(False, True):
            opener, closer = "\\left" + opener, "\\right" + closer
        out = opener + space() + ", ".join(leaf(p) for p in parts) + space() + closer
    bold = "**{}**" if out[-1:] not in " \n~!" and out[:1] not in " \n~" else "{}"
    return pick("{}", "${}$", "{}.", "\\({}\\)", "\\boxed{{{}}}", " {} ", bold).format(out)


@settings(max_examples=300, deadline=None)
@given(tree=trees, seed=st.integers(0, 10**6))
def test_latex_is_the_same_in_every_spelling(tree, seed):
    said = written(tree, random.Random(seed))
    assert same(said, written(tree, None)), (said, written(tree, None))
    assert same(written(tree, None), said)


@settings(max_examples=300, deadline=None)
@given(one=trees, two=trees, seed=st.integers(0, 10**6))
def test_latex_that_says_another_thing_is_not_the_same(one, two, seed):
    """Two trees, and a tree with one part exchanged, dropped, doubled or moved to another structure."""
    kind, *parts = one
    others = [two]
    if kind != "leaf":
        others += [(kind, *parts[:-1]), (kind, *parts, parts[0]), (kind, *parts[:-1], "k")]
        others += [(k, *parts) for k in ("list", "()", "set", "column") if kind not in ("matrix", k)]
    if kind in ("list", "()", "[]", "column"):
        others.append((kind, *parts[::-1]))
    for other in others:
        if meaning(other) == meaning(one) or len(other) < 2:
            continue
        if other[0] in ("[]", "[)", "(]", "matrix") and len(other) != 3:
            continue
        said = written(other, random.Random(seed))
        assert not same(said, written(one, None)), (said, written(one, None))


def meaning(tree):
    """A tree up to what does not matter: the order in a set, a list or a column of one."""
    kind, *parts = tree
    if kind in ("list", "()", "leaf") and len(parts) == 1:
        return ("leaf", parts[0])
    if kind == "matrix" and all(len(row) == 1 for row in parts):
        return ("column", *(row[0] for row in parts))
    return (kind, *sorted(parts)) if kind == "set" else (kind, *parts)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_no_text_makes_a_verifier_raise(envs, text):  # noqa: F811
    for task, env in envs.items():
        problem = problem_of(task, "1 2 3 4" if task == "cups" else "12")
        flexible = FILTERS[task]([[text]], [{"answer": problem.answer}])[0][0]
        for said in (text, f"### {text}", f"\\boxed{{{text}}}", flexible):
            verdict = verify(env, problem, said)
            assert verdict.reward in (0.0, 1.0) and json.dumps(verdict.reason)
    assert same(text, text) and same(f" {text} ", text)


@pytest.mark.parametrize(
    "deep",
    ["(" * 300 + ")" * 300, "{" * 300 + "1" + "}" * 300, "\\frac{" * 200, "\\sqrt" * 300, "{" * 1900, "\\left(" * 200],
)
def test_what_is_nested_deeply_is_compared_by_its_characters(deep):
    assert same(deep, deep + " ") and not same(deep, deep + "1")
