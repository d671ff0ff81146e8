"""Splits that share nothing, and data files that say where they are wrong."""

import json
import logging
import random

import pytest

from eval.environments import GSM8K, Countdown, Cups, Math500, ProntoQA, ProsQA, build


def lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(numbers) -> list[dict]:
    return [{"question": f"What is {i} + {i}?", "answer": f"<<{i}+{i}={2 * i}>>\n#### {2 * i}"} for i in numbers]


PROSQA = {"question": "Tom is a bompus. Every bompus is a zumpus. Sam is a lempus. Is Tom a zumpus or lempus?",
          "answer": "Tom is a zumpus.", "steps": ["Tom is a bompus.", "Every bompus is a zumpus."],
          "idx_to_symbol": ["Tom", "bompus", "zumpus", "Sam", "lempus"], "edges": [[0, 1], [1, 2], [3, 4]],
          "root": 0, "target": 2, "neg_target": 4}  # fmt: skip
PRONTO = {"question": "Max is a lum. True or false: Max is a lum.", "answer": "True", "steps": ["Max is a lum."]}
MATH = {"problem": "Half of $3$?", "solution": "It is half. So 3/2.", "answer": "\\frac{3}{2}"}
GSM = {"question": "What is 1 + 1?", "answer": "<<1+1=2>>\n#### 2"}
PUBLISHED = {"gsm8k": (GSM8K, GSM), "math": (Math500, MATH), "prosqa": (ProsQA, PROSQA), "prontoqa": (ProntoQA, PRONTO)}
ASKED = {"gsm8k": "question", "math": "problem", "prosqa": "question", "prontoqa": "question"}


def asked_anew(kind: str, i: int) -> dict:
    """A row with another question and the same answer."""
    row = dict(PUBLISHED[kind][1])
    row[ASKED[kind]] = f"Number {i} . {row[ASKED[kind]]}"
    return row


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_sets_are_cut_into_three_that_share_nothing(kind, tmp_path):
    config, _ = PUBLISHED[kind]
    rows = [asked_anew(kind, i) for i in range(200)]
    train, test = lines(tmp_path / "train.jsonl", rows[:170]), lines(tmp_path / "test.jsonl", rows[160:])
    env = build(config(train=train, test=test))
    keys = {split: [p.key for p in env.problems(split, env.main_level, 1000)] for split in ("train", "valid", "test")}
    assert {split: len(k) for split, k in keys.items()} == {"train": 150, "valid": 10, "test": 40}
    assert sum(map(len, keys.values())) == len({key for k in keys.values() for key in k}) == 200
    assert max(keys["valid"]) < min(keys["train"])  # by hash
    seen = {p.key for i in range(20) for p in env.train_batch(0, i, 16)}
    assert seen == set(keys["train"])
    random.Random(0).shuffle(rows := rows[:160])
    again = build(config(train=lines(tmp_path / "shuffled.jsonl", rows), test=test))
    assert {p.key for p in again.problems("valid", 0, 1000)} == set(keys["valid"])  # whatever the order of the file


def test_without_a_test_file_the_first_tenth_is_held_out(tmp_path):
    env = build(GSM8K(train=lines(tmp_path / "train.jsonl", sums(range(100)))))
    assert [p.question for p in env.problems("test", 0, 99)] == [f"What is {i} + {i}?\n" for i in range(10)]
    assert len(env.problems("valid", 0, 99)) == 5 and len(env.splits["train"]) == 85
    assert env.problems("test", 0, 3) == env.problems("test", 0, 99)[:3]


def test_small_sets_keep_something_to_train_on(tmp_path):
    sizes = []
    for n in (2, 3, 4, 17, 40):
        env = build(GSM8K(train=lines(tmp_path / f"{n}.jsonl", sums(range(n)))))
        sizes.append([len(env.splits[s]) for s in ("train", "valid", "test")])
    assert sizes == [[1, 0, 1], [1, 1, 1], [2, 1, 1], [15, 1, 1], [34, 2, 4]]
    with pytest.raises(ValueError, match="no problem is left to train on"):
        build(GSM8K(train=lines(tmp_path / "one.jsonl", sums([1]))))
    only = build(GSM8K(train=None, test=lines(tmp_path / "test.jsonl", sums(range(3)))))
    assert [len(only.problems(s, 0, 9)) for s in ("train", "valid", "test")] == [0, 0, 3]


@pytest.mark.parametrize(
    "config", [Cups(cups=3, swaps=3, min_swaps=1), ProsQA(graphs=8), ProntoQA(), Countdown(numbers=3)]
)
def test_generated_splits_share_nothing(config):
    env = build(config)
    keys = {s: {p.key for lv in env.levels() for p in env.problems(s, lv, 40)} for s in ("train", "valid", "test")}
    keys["train"] |= {p.key for seed in range(3) for i in range(20) for p in env.train_batch(seed, i, 16)}
    assert all(keys.values())
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["valid"] and not keys["valid"] & keys["test"]
    parts = {split: {int(key[0], 16) for key in k} for split, k in keys.items()}  # the hash says the split
    assert parts["test"] <= {0, 1} and parts["valid"] == {2} and parts["train"] <= set(range(3, 16))


@pytest.mark.parametrize("kind", ["cups", "gsm8k"])
def test_a_split_of_another_name_is_refused(kind, tmp_path):
    env = build(Cups() if kind == "cups" else GSM8K(train=lines(tmp_path / "train.jsonl", sums(range(9)))))
    with pytest.raises(ValueError, match="no split 'validation': there are train, valid, test"):
        env.problems("validation", env.main_level, 1)


def test_test_problems_are_those_of_the_committed_records():
    """Generated test sets never change: records are compared item by item. Keys of the first problems, by hand."""
    from hashlib import blake2b

    seen = {}
    for name, env in (("cups", build(Cups())), ("prosqa", build(ProsQA())), ("closed", build(ProsQA(closed=True))),
                      ("prontoqa", build(ProntoQA())), ("countdown", build(Countdown()))):  # fmt: skip
        problems = env.problems("test", env.main_level, 10) + env.train_batch(0, 3, 2)
        text = "\n".join(p.question + "".join(p.steps) + p.answer for p in problems)
        seen[name] = blake2b(text.encode(), digest_size=6).hexdigest()
    assert seen == FROZEN


FROZEN = {
    "cups": "024b9fdb5d7a",
    "prosqa": "5850d65e3b78",
    "closed": "172955937ff1",
    "prontoqa": "6be6d964dc1b",
    "countdown": "2974d7809756",
}

BAD_ROWS = [
    ("gsm8k", {"question": "", "answer": "#### 1"}, "field 'question' is empty"),
    ("gsm8k", {"question": " \n", "answer": "#### 1"}, "field 'question' is empty"),
    ("gsm8k", {"question": "a", "answer": ""}, "field 'answer' is empty"),
    ("gsm8k", {"question": "a", "answer": "#### "}, "must give a number"),
    ("gsm8k", {"question": "a", "answer": 5}, "field 'answer' must be a string"),
    ("gsm8k", {"question": ["a"], "answer": "#### 1"}, "field 'question' must be a string"),
    ("gsm8k", {"question": "a", "answer": "1", "steps": [1]}, "field 'steps' must be a list of strings"),
    ("gsm8k", {"question": "a", "answer": "1", "steps": None}, "field 'steps' must be a list of strings"),
    ("gsm8k", {"question": "bad \ud83d here", "answer": "#### 1"}, "field 'question' is not Unicode text"),
    ("gsm8k", {"question": "a", "answer": "1", "steps": ["\udc00"]}, "field 'steps' is not Unicode text"),
    ("gsm8k", {"question": "a", "answer": "#### 1,2"}, "must give a number"),
    ("gsm8k", {"question": "a", "answer": "#### " + "1" * 5000}, "must give a number"),
    ("gsm8k", {"input": "a", "target": "many"}, "field 'target' must give a number"),
    ("gsm8k", {"input": "a", "target": "1e999999"}, "field 'target' must give a number"),
    ("gsm8k", {"input": "", "target": 1}, "field 'question' is empty"),
    ("gsm8k", {"Body": "a", "Answer": 1}, "field 'Body' must be a string"),
    ("math", MATH | {"problem": ""}, "field 'problem' is empty"),
    ("math", MATH | {"answer": " "}, "field 'answer' is empty"),
    ("math", MATH | {"answer": 2}, "field 'answer' must be a string"),
    ("math", MATH | {"answer": "1" * 3000}, "field 'answer' is longer than"),
    ("math", MATH | {"solution": ["a"]}, "field 'solution' must be a string"),
    ("math", MATH | {"solution": "\ud800"}, "field 'solution' is not Unicode text"),
    ("prosqa", PROSQA | {"question": ""}, "field 'question' is empty"),
    ("prosqa", PROSQA | {"answer": "zumpus"}, "field 'answer' must be of the form"),
    ("prosqa", PROSQA | {"steps": "Tom"}, "field 'steps' must be a list of strings"),
    ("prosqa", PROSQA | {"edges": [[0, 9]]}, "field 'edges' must hold pairs of nodes below 5"),
    ("prosqa", PROSQA | {"edges": [[0, True]]}, "field 'edges' must hold pairs"),
    ("prosqa", PROSQA | {"edges": {"0": 1}}, "field 'edges' must be a list"),
    ("prosqa", PROSQA | {"root": 7}, "field 'root' must be a whole number below 5"),
    ("prosqa", PROSQA | {"root": True}, "field 'root' must be a whole number below 5"),
    ("prontoqa", PRONTO | {"answer": "Maybe"}, "field 'answer' must be True or False"),
    ("prontoqa", PRONTO | {"steps": [1]}, "field 'steps' must be a list of strings"),
    ("prontoqa", PRONTO | {"question": ""}, "field 'question' is empty"),
    *(
        (kind, row, f"expected an object, got {type(row).__name__}")
        for kind in PUBLISHED
        for row in (3, None, "a", [1])
    ),
]


@pytest.mark.parametrize("kind, row, message", BAD_ROWS)
@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_bad_row_is_refused_with_its_place(kind, row, message, form, tmp_path):
    config, good = PUBLISHED[kind]
    path = tmp_path / "data.json"
    rows = [good, asked_anew(kind, 1), row]
    path.write_text(json.dumps(rows) if form == "list" else "".join(json.dumps(r) + "\n" for r in rows))
    place = f"{path}, item 3" if form == "list" else f"{path}, line 3"
    with pytest.raises(ValueError) as e:
        build(config(train=None, test=str(path)))
    assert str(e.value).startswith(place) and message in str(e.value) and "\n" not in str(e.value)
    str(e.value).encode()  # what is shown can be shown


@pytest.mark.parametrize("text, message", [
    ("[" * 100_000, "line 1: not JSON"),
    ('{"question": "a", "answer": "#### 1"}\n' + '{"a": ' * 50_000, "line 2: not JSON"),
    ('{"question": "a", "answer": "#### 1"}\n{"input": "a", "target": ' + "1" * 5000 + "}", "line 2: not JSON"),
    ('{"question": "a",\n "answer": "#### 1"}', "is one JSON object (question, answer): expected a list of objects"),
    ('\n{"data":\n [{"question": "a", "answer": "#### 1"}]}\n', "is one JSON object (data): expected a list"),
    ('{"data": [{"question": "a", "answer": "#### 1"}]}', "line 1: field 'question' must be a string"),
    ("null", "line 1: expected an object"),
    ("[]", "holds no problems"),
    ("\n\n", "holds no problems"),
])  # fmt: skip
def test_a_file_of_another_shape_is_refused(text, message, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError) as e:
        build(GSM8K(train=None, test=str(path)))
    assert message in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_byte_order_mark_and_blank_lines_are_read_over(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b'\n{"question": "a", "answer": "#### 1"}\r\n\r\n{"question": "b", "answer": "#### 2"}\r\n'
    )
    assert [p.answer for p in build(GSM8K(train=None, test=str(path))).problems("test", 0, 9)] == ["### 1", "### 2"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        build(GSM8K(train=None, test=str(path)))


def test_thousands_in_a_reference_are_read(tmp_path):
    env = build(GSM8K(train=None, test=lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "#### 1,080"}])))
    (problem,) = env.problems("test", 0, 9)
    assert problem.answer == "### 1080" and env.verify(problem, "### 1,080").correct
    assert not env.verify(problem, "### 1").correct and not env.verify(problem, "### 80").correct


def test_empty_steps_are_no_steps(tmp_path):
    path = lines(tmp_path / "aug.jsonl", [{"question": "a", "steps": ["<<1+1=2>>", " ", ""], "answer": "2"}])
    assert build(GSM8K(train=None, test=path)).problems("test", 0, 1)[0].steps == ("<<1+1=2>>\n",)


def test_a_question_with_another_answer_is_said_once_and_counts_as_it_came_first(tmp_path, caplog):
    rows = sums(range(20))
    train = lines(
        tmp_path / "train.jsonl", [*rows, {**rows[15], "answer": "#### 7"}, rows[16], {**rows[3], "answer": "#### 8"}]
    )
    test = lines(tmp_path / "test.jsonl", [*sums(range(50, 53)), {**rows[4], "answer": "#### 9"}])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            env = build(GSM8K(train=train, test=test))
    (said,) = [r.getMessage() for r in caplog.records]
    assert f"{train}, line 5" in said and f"{test}, line 4" in said and "2 more rows" in said and "\n" not in said
    answers = {p.question: p.answer for split in ("train", "valid", "test") for p in env.problems(split, 0, 99)}
    assert answers["What is 15 + 15?\n"] == "### 30" and answers["What is 4 + 4?\n"] == "### 9"
    assert answers["What is 3 + 3?\n"] == "### 6" and len(answers) == 23


def test_a_question_that_comes_again_with_the_same_answer_counts_once_in_silence(tmp_path, caplog):
    env = build(GSM8K(train=lines(tmp_path / "train.jsonl", sums([*range(20), *range(20)]))))
    assert sum(len(env.splits[s]) for s in env.splits) == 20 and not caplog.records
    tested = {p.key for p in env.splits["test"]}
    assert len(tested) == 4 and not tested & {p.key for p in env.splits["train"]}
