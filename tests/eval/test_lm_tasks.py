"""Our tasks in lm-eval: their data and scores, caches, other models, and errors of one line."""

import json
from itertools import permutations

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from eval import harness
from eval.lm import LatentLM
from tests.eval.lm_helpers import ours


def test_each_task_has_its_own_file_and_examples_are_given(tmp_path, caplog):
    """--metadata for several tasks at once, and --num_fewshot."""
    for name in ("svamp", "multiarith"):
        (tmp_path / name).write_text(json.dumps(ROWS[name]) + "\n" + json.dumps({**ROWS[name], **OTHER[name]}) + "\n")
    own = {name: {"file": str(tmp_path / name)} for name in ("svamp", "multiarith")}
    manager = ours({**own, "items": 2})
    tasks = manager.load([*own, "cups"])["tasks"]
    assert [d["answer"] for d in tasks["svamp"].test_docs()] == ["### 7", "### 2"]
    assert [d["answer"] for d in tasks["multiarith"].test_docs()] == ["### 4", "### 6"]
    assert len(tasks["cups"].test_docs()) == 2
    with pytest.raises(ValueError, match="--metadata svamp: there is no setting 'fil'"):
        ours({"svamp": {"fil": "x"}}).load(["svamp"])
    with pytest.raises(ValueError, match="--metadata svamp must be an object"):
        ours({"svamp": "x"}).load(["svamp"])
    # the task cups has a setting of its own name
    for said in ({"cups": 4, "items": 1}, {"cups": {"cups": 4, "items": 1}}, {"cups": {"swaps": 3, "items": 1}}):
        (row,) = ours(said).load(["cups"])["tasks"]["cups"].test_docs()
        own = said["cups"] if isinstance(said["cups"], dict) else said
        assert len(row["answer"].split()) == own.get("cups", 4) and row["level"] == own.get("swaps", 8)
    (row,) = (
        ours({"digits": 5, "other_digits": [7], "level": 7, "items": 1}).load(["mnns"])["tasks"]["mnns"].test_docs()
    )
    assert len(row["question"].split()) == 7 == row["level"]  # as eval/README.md has it
    echo = Echo()
    simple_evaluate(echo, tasks=["svamp"], task_manager=manager, num_fewshot=1, bootstrap_iters=0)
    assert echo.seen[0].endswith("Ann has 3 and gets 4. How many?\n") and "Bo has 2. How many?\n ### 2" in echo.seen[0]


OTHER = {
    "svamp": {"Body": "Bo has 2.", "Answer": 2.0},
    "multiarith": {"question": "Three and three?", "final_ans": "6"},
}


class Echo(LM):
    """Keeps what it is asked."""

    def generate_until(self, requests, disable_tqdm=False):
        self.seen = [r.args[0] for r in requests]
        self.how = [r.args[1] for r in requests]
        return ["" for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def test_models_of_other_makes_get_the_usual_limits():
    manager = ours({"items": 1})
    for name, limit in (("cups", 36), ("prontoqa", 160)):
        simple_evaluate(echo := Echo(), tasks=[name], task_manager=manager, bootstrap_iters=0)
        assert echo.how == [{"until": ["\n\n"], "do_sample": False, "max_gen_toks": limit}]
        assert normalize_gen_kwargs(echo.how[0])["max_gen_toks"] == limit


def test_a_cache_never_answers_for_other_settings(folders, tmp_path):
    manager = ours()

    def run(path, **settings):
        lm = LatentLM(str(folders["sim"]), batch_size=8, **settings)
        out = simple_evaluate(
            lm, tasks=["cups"], limit=8, task_manager=manager, bootstrap_iters=0, use_cache=str(tmp_path / path)
        )
        return [s["resps"] for s in out["samples"]["cups"]]

    first = run("a", num_latents=3)
    assert run("a", num_latents=3) == first
    with pytest.raises(ValueError, match="holds answers of another checkpoint or of other settings"):
        run("a", num_latents=1)
    assert run("b", num_latents=1) != first
    prints = {
        LatentLM(str(folders["sim"]), **s).fingerprint()
        for s in ({}, {"softmax_dtype": "float64"}, {"dtype": "float32"})
    }
    assert len(prints) == 3


ROWS = {
    "cups": None,
    "prosqa_closed": None,
    "prontoqa": None,
    "countdown": None,
    "mnns": None,
    "modular": None,
    "signs": None,
    "reach": None,
    "latent_gsm8k": {"question": "Two and two?", "answer": "It is <<2+2=4>>4.\n#### 4"},
    "gsm8k_aug": {"question": "Two and two?", "steps": ["<<2+2=4>>"], "answer": "4"},
    "gsm_hard": {"input": "Half of nine?", "target": 4.5},
    "svamp": {"Body": "Ann has 3 and gets 4.", "Question": "How many?", "Answer": 7.0},
    "multiarith": {"question": "Two and two?", "final_ans": "4"},
    "math_500": {"problem": "Half of one?", "solution": "It is half.", "answer": "\\frac{1}{2}"},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_task_scores_its_gold_answers_and_no_others(name, tmp_path):
    given = {"items": 5}
    if ROWS[name]:
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]) + "\n")
        given["file"] = str(tmp_path / "rows.jsonl")
    manager = ours(given)
    task = manager.load([name])["tasks"][name]
    for doc in task.test_docs():
        bare = doc["answer"].removeprefix("### ")
        problem_text = {
            "strict-match": " ".join([*doc["steps"], doc["answer"]]),
            "flexible-extract": f"So: \\boxed{{{bare}}}." if name == "math_500" else f"So: {bare}",
        }
        for kind, text in problem_text.items():
            (flt,) = [f for f in task._filters if f.name == kind]
            scores = []
            for said in (text, "nothing of the kind"):
                instance = Instance("generate_until", doc, ("", {}), 0, resps=[said])
                flt.apply([instance])
                scores.append(task.process_results(doc, [instance.filtered_resps[kind]])["exact_match"])
            assert scores == [1.0, 0.0], (kind, doc)


@pytest.mark.parametrize(
    "cups, tokens, cuts", [(4, 0, ()), (4, 1, (4,)), (4, 2, (2, 4)), (4, 3, (2, 3, 4)), (5, 2, (3, 5))]
)
def test_cups_of_several_a_word_are_found_in_a_sentence(cups, tokens, cuts):
    """Every arrangement, its words cut by hand: the right one alone counts, as the model writes it or with commas."""
    task = ours({"items": 1, "cups": {"cups": cups, "state_tokens": tokens}}).load(["cups"])["tasks"]["cups"]
    (doc,) = task.test_docs()
    (flexible,) = [f for f in task._filters if f.name == "flexible-extract"]
    right = "".join(c for c in doc["answer"] if c.isdigit())
    for digits in map("".join, permutations("12345"[:cups])):
        words = [digits[a:b] for a, b in zip((0, *cuts), cuts)] if cuts else list(digits)
        marked = [f"={word}" for word in words] if len(cuts) > 1 else words
        for said in (f"After 8 moves: {' '.join(marked)} .", f"They end as **{', '.join(words)}**."):
            instance = Instance("generate_until", doc, ("", {}), 0, resps=[said])
            flexible.apply([instance])
            scores = task.process_results(doc, [instance.filtered_resps["flexible-extract"]])
            assert scores["exact_match"] == float(digits == right), said


@pytest.mark.parametrize(
    "name, said, found",
    [
        ("last_number", "The answer is $18.", "### 18"),
        ("last_number", "about -1,234.50 in all", "### -1,234.50"),
        ("last_expression", "so (3*5)-7 = 8 (done)", "### (3*5)-7"),
        ("last_truth", "it is true.", "### True"),
        ("last_membership", "So Max is a lempus, I think", "### Max is a lempus"),
        ("last_latex", "hence \\boxed{\\frac{1}{2}}.", "### \\frac{1}{2}"),
        ("last_latex", "about 12", "### 12"),
    ],
)
def test_flexible_extract_finds_the_last_answer(name, said, found):
    import eval.tasks.utils as utils

    assert getattr(utils, name)([[said, "nothing"]], [{}]) == [[found, ""]]


def test_prosqa_and_the_names_of_our_tasks():
    assert harness.own_tasks() == {*ROWS, "prosqa"}


def test_a_slip_in_a_runs_name_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "abc").mkdir(parents=True)
    (tmp_path / "runs" / "abc" / "metrics.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs/abd is neither a folder nor a name on the hub"):
        LatentLM("runs/abd")


@pytest.mark.parametrize(
    "args, message",
    [
        ("--model_args pretrained=nowhere/to/be/found --tasks cups", "is neither a folder nor a name on the hub"),
        ("--model_args pretrained=tests --tasks cups", "tests is not a run or a saved reasoner"),
        ("--model_args num_latents=1 --tasks cups", "--model_args pretrained=RUN_OR_FOLDER_OR_NAME is needed"),
        ("--model_args pretrained={sim},num_latents=-3 --tasks cups", "at least 0, got -3"),
        ("--model_args pretrained={sim},num_latents=40 --tasks cups", "leaves no room for text"),
        ("--model_args pretrained={sim} --tasks nonsense", "nonsense"),
        ("--model_args pretrained={sim} --tasks cupz", "Tasks not found: cupz; did you mean cups?"),
        ("--model_args pretrained={sim} --tasks svamp", "cannot load hub:ChilleD/SVAMP:test"),
        ("--model_args pretrained={sim} --tasks svamp --metadata file=nowhere.json", "no such data file: nowhere.json"),
        ("--model_args pretrained={sim} --tasks countdown --metadata file=x.json", "Countdown is generated"),
        ("--model_args pretrained={sim} --tasks cups --metadata swapps=4", "no setting 'swapps'; did you mean swaps?"),
        ("--model_args pretrained={sim} --tasks cups --metadata swaps=four", "swaps: 'four' is no value of it"),
        ("--model_args pretrained={sim} --tasks cups --limit 0", "--limit must be above 0, got 0"),
        ("--model_args pretrained={sim} --tasks cups --limit -1", "--limit must be above 0, got -1"),
        ("--model_args pretrained={sim},nlatents=2 --tasks cups", "no 'nlatents'; did you mean num_latents?"),
        ("--model_args pretrained={sim} --tasks cups --apply_chat_template", "tokenizer has no chat template"),
        ("--model_args pretrained={sim} --tasks cups --batch_size 0", "batch_size must be at least 1, or auto, got 0"),
        ("--model_args pretrained={sim},max_length=abc --tasks cups", "max_length must be a whole number, got 'abc'"),
        ("--model_args pretrained={sim} --tasks cups --metadata items=0", "items must be a whole number of at least 1"),
        (
            "--model_args pretrained={sim} --tasks cups --metadata items=2.7",
            "must be a whole number of at least 1, got 2.7",
        ),
        ("--model_args pretrained={sim} --tasks svamp --metadata file=2024", "file must be a path in quotes, got 2024"),
        (
            "--model_args pretrained={sim} --tasks cups --metadata turns=2",
            "lm-eval asks once, this environment in 2 turns",
        ),
        *(
            (f"--model_args pretrained={{sim}} --tasks cups --metadata items=1 --gen_kwargs {given}", said)
            for given, said in (
                ("max_gen_toks=abc", "max_gen_toks must be a whole number, got 'abc'"),
                ("num_return_sequences=2", "--gen_kwargs num_return_sequences is not taken: one text"),
                ("attention_mask=1", "--gen_kwargs attention_mask is not taken"),
            )
        ),
        (
            "--model_args pretrained={sim} --tasks cups --cache_requests true",
            "does not see --metadata",
        ),
        ("--model_args pretrained={recurrent},num_recurrences=0 --tasks cups", "at least one recurrence"),
    ],
)
def test_bad_input_is_one_line(args, message, folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    assert harness.main(["run", "--model", "latent", *args.format(**folders).split()]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    if "cannot load" in message:
        assert "--metadata file=PATH" in last
