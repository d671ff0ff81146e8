"""Answers in other LaTeX, and headings after an answer: forms in which models were found to write what is right."""

import pytest

from eval.environments.equivalence import same
from eval.environments.gsm8k import answer
from eval.environments.math500 import final
from tests.eval.test_verify import envs, problem_of  # noqa: F401

V = r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"
SAME = [
    # thousands, in brackets and arguments too
    *[("(1000,5)", said) for said in (r"(1{,}000, 5)", r"(1,\!000, 5)", r"(1\,000, 5)")],
    ("[0,10000]", "[0, 10{,}000]"),
    (r"\{1000, 2000\}", r"\{1{,}000, 2{,}000\}"),
    (r"\sqrt{1234}", r"\sqrt{1,\!234}"),
    (r"\frac{1}{1024}", r"\frac{1}{1{,}024}"),
    (r"2^{1000}", r"2^{1{,}000}"),
    (r"\binom{1234}{2}", r"\binom{1{,}234}{2}"),
    *[("12345", said) for said in (r"12{,}\!345", r"12,\,345", r"12\thinspace 345", "12{,} 345", "12 {,} 345")],
    # rows of a matrix
    *[(V, V.replace(r"\\", rf"\\{more}")) for more in ("[4pt]", "[1ex]", "[-0.5em]", "*", r" \hline")],
    *[(V, V.replace(r"\\", br)) for br in (r"\cr", r"\newline")],
    *[(V, V.replace("pmatrix", name)) for name in ("pmatrix*", "smallmatrix", "bmatrix", "matrix")],
    (V, r"\left(\begin{array}{c} 1 \\ 2 \end{array}\right)"),
    (V, r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]"),
    (V, rf"\mathbf{{v}} = {V}"),
    (V, rf"\vec{{v}} = {V}"),
    # what only typesets
    *[("42", rf"\{font}{{42}}") for font in ("boldsymbol", "pmb", "textsf", "underline", "bf")],
    *[("42", rf"\{color}{{red}}{{42}}") for color in ("textcolor", "color")],
    *[("42", said) for said in (r"\large 42", r"\rm 42", r"{\rm 42}", r"\color{red} 42", r"42\\", "+42")],
    (r"10\text{ cm}^2", "10 cm^2"),
    ("10", r"10\,{\rm cm}"),
    ("50", r"50\text{\%}"),
    ("5", r"\text{\$}5"),
    (r"\frac{3}{56}", r"{3 \over 56}"),
    (r"x \le 5", r"x \leqslant 5"),
    ("11:30", "11{:}30"),
    (r"0.\overline{3}", r"0.\bar{3}"),
    ("2^{1/3}", r"2^{\frac{1}{3}}"),
    (r"[0,\infty)", r"[0, +\infty)"),
]  # fmt: skip
APART = [
    ("(1,234,5)", "(1{,}234,5)"),
    ("(1,234)", "(1{,}234)"),
    (r"\{1,234\}", r"\{1{,}234\}"),
    (V, r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (V, r"\begin{vmatrix} 1 \\ 2 \end{vmatrix}"),
    (r"\begin{pmatrix} 1 \\ [2] \end{pmatrix}", r"\begin{pmatrix} 1 \\ \end{pmatrix}"),
    (r"10\text{ cm}^2", "10 cm^3"),
    (r"\frac{3}{56}", r"{56 \over 3}"),
    (r"[0,\infty)", r"[0,-\infty)"),
]


@pytest.mark.parametrize("gold, said", SAME)
def test_other_latex_of_an_answer_says_the_same(gold, said):
    assert same(said, gold) and same(gold, said)


@pytest.mark.parametrize("gold, said", APART)
def test_what_says_another_thing_stays_apart(gold, said):
    assert not same(said, gold) and not same(gold, said)


HEADINGS = ["### Step 2", "### Verification", "### Conclusion", "### (b) Check\nfine", "### A. Check\nfine", "### ---"]
HEADINGS += ["### $x$ check\nfine", "### 🎉 Done\nfine", "## Check"]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_after_an_answer_leaves_it(heading):
    assert final(f"### Step 1\nfirst\n\\boxed{{42}}\n{heading}") == "42"
    assert final(f"so\n### 42\n{heading}") == "42"


def test_a_closing_line_of_words_is_an_answer():
    assert final("\\boxed{Bob}\n### Evelyn") == "Evelyn"


MARKS = ["#### *42*", "#### _42_", '#### "42"', "#### '42'", "#### [42]", "### Answer ###\n42"]
MARKS += ["#### 42\n### 3. Verify\nok", r"\boxed{\underline{42}}", r"\boxed{\large 42}", r"\boxed{\textcolor{red}{42}}"]


@pytest.mark.parametrize("text", MARKS)
def test_the_dress_of_a_number_does_not_count(text):
    assert answer(text) == 42


def test_a_slash_of_typesetting_parts_a_fraction():
    assert answer("#### 1⁄2") == answer("#### 1∕2") == answer("#### 1/2")


@pytest.mark.parametrize(
    "task, gold, text, correct",
    [
        ("prontoqa", "True", "### True\n### Explanation\nfoo", True),
        ("prontoqa", "True", "### True\n### Step 2", True),
        ("prontoqa", "True", "### True\n### False", False),
        ("prontoqa", "True", "### True\n### True or false", False),
        ("prosqa", "Tom is a zumpus .", "### Tom is a zumpus.\n### Explanation\nfoo", True),
        ("prosqa", "Tom is a zumpus .", "### Tom  is  a  zumpus", True),
        ("prosqa", "Tom is a zumpus .", "### Tom is a zumpus.\n### So Tom is a wumpus", False),
        ("countdown", "3 * 5 - 7", "### 3 * 5 - 7\n### Check\n15-7=8", True),
        ("countdown", "3 * 5 - 7", "### 3 * 5 - 7\n### 3 * 5 + 7", False),
        ("countdown", "3 * 5 - 7", "### \\boxed{3 \\times 5 - 7}.", True),
        ("countdown", "3 * 5 - 7", "### \\fbox{3 * 5 - 7}", True),
        ("countdown", "3 * 5 - 7", "### \\frac{3}{5} - 7", False),
    ],
)
def test_the_last_line_that_says_an_answer_counts(envs, task, gold, text, correct):  # noqa: F811
    assert envs[task].verify(problem_of(task, gold), text).correct == correct
