"""GSM8K's verifier beside lm-eval's own filters and comparison, read from the installed package's `gsm8k` task."""

import re
from fractions import Fraction
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from eval.environments.gsm8k import answer
from tests.eval.test_verify import envs, judged, table  # noqa: F401  a fixture of that file

TASK = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())


def lm_eval_judged(gold: str, text: str) -> tuple[bool, bool]:
    """strict-match and flexible-extract of lm-eval's `gsm8k`, by its own filters, on a reference solution."""
    metric = TASK["metric_list"][0]
    options = {k: metric[k] for k in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    verdicts = {}
    for pipeline in TASK["filter_list"]:
        how = {k: v for k, v in pipeline["filter"][0].items() if k != "function"}
        [[said]] = RegexFilter(**how).apply([[text]], [{}])
        score = exact_match_hf_evaluate(predictions=[said], references=[f"40 + 2 = {gold}\n#### {gold}"], **options)
        verdicts[pipeline["name"]] = bool(score["exact_match"])
    return verdicts["strict-match"], verdicts["flexible-extract"]


ALIKE = [
    ("42", "#### 42"),
    ("42", "He has 40 pens and gets 2 more.\n40 + 2 = <<40+2=42>>42\n#### 42"),
    ("41", "He has 40 pens and gets 2 more.\n40 + 2 = <<40+2=42>>42\n#### 42"),
    ("42", "2+40=42\n#### 42\nSo of 50 pens, 42 are left for 8 boys."),
    ("8", "2+40=42\n#### 42\nSo of 50 pens, 42 are left for 8 boys."),
    ("42", "#### 42 pens"),
    ("42", "#### 42.\n"),
    ("42", "#### 42. So he has 42 pens."),
    ("42", "#### 42, which is the total."),
    ("1234", "#### 1,234"),
    ("1234", "#### 1,234 dollars"),
    ("1234567", "They raise $1,234,567 in all.\n#### 1,234,567"),
    ("-7", "It falls to -7 degrees.\n#### -7"),
    ("7", "It falls to -7 degrees.\n#### -7"),
    ("0.5", "Each gets 0.5.\n#### 0.5"),
    ("42", "#### 42%"),
    ("42", "#### 42<|im_end|>"),
    ("42", "#### 42</s>"),
    ("42", "The total is $42."),
    ("42", "The total is $42, so each pays 21."),
    ("21", "The total is $42, so each pays 21."),
    ("42", "The answer is **42**."),
    ("42", "Answer: 42 pens"),
    ("42", "First, 20 + 20 = 40.\nThen 40 + 2 = 42.\nTherefore, he has 42 pens."),
    ("42", "I do not know."),
    ("42", ""),
    ("42", "####"),
    ("42", "#### forty-two"),
    ("42", "#### x\nIt is 42"),
    ("42", "1. He has 40.\n2. He gets 2.\n\nSo the answer is 42"),
    ("42", "#### 420"),
    ("42", "#### 4 2"),
    ("42", "#### 42\n\n"),
    ("5", "#### 42\n#### 42\n#### 42"),
    ("42", "#### 42\n#### 42\n#### 42"),
]


@pytest.mark.parametrize("gold, text", ALIKE)
def test_one_answer_gets_the_verdicts_of_lm_eval(envs, gold, text):  # noqa: F811
    assert judged(envs["gsm8k"], "gsm8k", gold, text) == lm_eval_judged(gold, text)


@pytest.mark.parametrize("gold, text, ours, theirs, why", table("lm-eval"))
def test_where_they_differ_is_in_the_readme(envs, gold, text, ours, theirs, why):  # noqa: F811
    said = [tuple(word == "yes" for word in re.split(r",\s*", cell)) for cell in (ours, theirs)]
    assert said == [judged(envs["gsm8k"], "gsm8k", gold, text), lm_eval_judged(gold, text)]
    assert said[0] != said[1] and why


EQUATIONS = [
    ("3.5", "### x = 7/2"),
    ("0.5", r"\boxed{x = \frac{1}{2}}"),
    ("7.5", "### 15/2 = 7 1/2"),
    ("7.5", "### Total = 7 1/2 hours"),
    ("42", "### Total = $42 ($20 + $22)"),
    ("42", "### 20 + 22 = 42 (20 + 22)"),
    ("42", r"\boxed{\text{Total} = 42 \text{ (6 x 7)}}"),
    ("42", "### Total cost = $42, i.e. 3 x $14"),
    ("30", "### Speed = 30 miles per 1/2 hour"),
    ("42", "### 42 = 6*7"),
    ("15", "#### 3 x $5 = $15."),
    ("42", "### 84 pens / 2 = 42 pens"),
    ("42", "### 42 = 40 pens + 2 pens"),
    ("-3", "### 5 - 8 = -3"),
    ("5", "### 5l/100 km"),
    ("42", "### 42; 3 boxes of 14"),
    ("42", "### 42 people and one half of them girls"),
]


@pytest.mark.parametrize("gold, text", EQUATIONS)
def test_a_side_that_works_the_number_out_does_not_contradict_it(gold, text):
    assert answer(text) == Fraction(gold)


@pytest.mark.parametrize(
    "text", ["### 3x + 2", "### 6 x 7", "### 41 = 42 pens", "### 40 pens + 2 = 41 = 42", "### 42; 43."]
)
def test_a_line_without_one_number_has_none(text):
    assert answer(text) is None
