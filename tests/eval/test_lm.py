"""Checkpoints in lm-eval: the same numbers as our judge, as the plain model where nothing is thought, in any batch."""

import json

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from eval import harness
from eval.environments import Cups, build
from eval.judge import judge
from eval.lm import LatentLM
from latent import hub, load
from latent.config import Coconut, CoT, ModelConfig, NoCoT, Recurrent, Sim
from latent.methods.base import text_hidden
from latent.thought import Greedy
from tests.helpers import small_reasoner

PAIRS = [("01 23 12", " 4 2 1 3"), ("01", " 1"), ("13 02 . .", " 2 1"), ("01", " 2"), ("12 01 23 . 01", " 3 4 1 2")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained checkpoints by method."""
    torch.manual_seed(0)
    made = {}
    methods = {"no-cot": NoCoT(), "cot": CoT(), "sim": Sim(n_latent=3, stride=4), "recurrent": Recurrent()}
    for name, method in methods.items():
        made[name] = tmp_path_factory.mktemp(name)
        hub.save(small_reasoner(method), made[name])
    return made


def asked(kind: str, args: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(args)]


def likelihoods(lm) -> list[tuple[float, bool]]:
    return lm.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)


def texts(lm, limit=4) -> list[str]:
    how = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    return lm.generate_until(asked("generate_until", [(q, how) for q, _ in PAIRS]), disable_tqdm=True)


@pytest.mark.parametrize("name", ["no-cot", "cot"])
def test_without_latents_it_is_the_plain_model(name, folders):
    ours, plain = LatentLM(str(folders[name]), batch_size=2), HFLM(str(folders[name]), batch_size=2, device="cpu")
    assert texts(ours) == texts(plain)
    for (a, greedy_a), (b, greedy_b) in zip(likelihoods(ours), likelihoods(plain)):
        assert abs(a - b) < 1e-5 and greedy_a == greedy_b
    rolled = [lm.loglikelihood_rolling(asked("loglikelihood_rolling", [("01 23 12 01",)])) for lm in (ours, plain)]
    assert abs(rolled[0][0] - rolled[1][0]) < 1e-5


def test_a_plain_checkpoint_of_another_make_opens_too(tmp_path):
    reasoner = small_reasoner(NoCoT())
    reasoner.method.backbone.lm.save_pretrained(tmp_path)
    hub.save(reasoner, tmp_path / "ours")
    reasoner.codec.tokenizer.save_pretrained(tmp_path)
    ours, plain = LatentLM(str(tmp_path), num_latents=0), HFLM(str(tmp_path), device="cpu")
    assert texts(ours) == texts(plain) and likelihoods(ours) == likelihoods(plain)
    for (a, _), (b, _) in zip(likelihoods(ours), likelihoods(LatentLM(str(tmp_path / "ours"), num_latents=0))):
        assert abs(a - b) < 1e-5
    with pytest.raises(ValueError, match="is a plain causal LM: num_latents must be 0, got 2"):
        LatentLM(str(tmp_path), num_latents=2)


@pytest.mark.parametrize("name, steps", [("sim", None), ("sim", 1), ("sim", 5), ("recurrent", None), ("recurrent", 3)])
def test_likelihoods_are_those_of_the_text_after_the_thoughts(name, steps, folders):
    """Row by row: think about the context, then read the continuation."""
    got = likelihoods(LatentLM(str(folders[name]), num_latents=steps, batch_size=3))
    reasoner = load(folders[name])
    method = reasoner.method
    for (context, continuation), (logp, greedy) in zip(PAIRS, got):
        thought = method.think(reasoner.codec.prompt([context]), Greedy(), steps=steps)
        ids = torch.tensor([reasoner.codec.step(continuation)])
        h = text_hidden(method.backbone, thought, ids)
        each, _, top = method.backbone.logprob(h[0], ids[0])
        assert abs(float(each.sum()) - logp) < 1e-5
        assert bool((top == ids[0]).all()) == greedy


@pytest.mark.parametrize("name", ["cot", "sim", "recurrent"])
def test_batches_change_nothing(name, folders):
    one, many = (LatentLM(str(folders[name]), batch_size=b) for b in (1, 4))
    assert texts(one) == texts(many)
    for (a, greedy_a), (b, greedy_b) in zip(likelihoods(one), likelihoods(many)):
        assert abs(a - b) < 1e-5 and greedy_a == greedy_b


def test_long_and_short_contexts_share_a_batch(folders):
    """Padding is no text: one long prompt and one long continuation fit although they would not fit together."""
    pairs = [(" ".join(["01"] * 36), " 4 2"), ("02", " " + " ".join("1234" * 5)), ("01 02", " 3")]
    found = []
    for batch in (1, 3):
        lm = LatentLM(str(folders["sim"]), batch_size=batch)
        found.append(lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True))
    for (a, _), (b, _) in zip(*found):
        assert abs(a - b) < 1e-5


def test_without_latents_long_texts_are_the_plain_models_too(folders):
    text = " ".join(["01", "12", "3"] * 50)
    lms = (LatentLM(str(folders["no-cot"])), HFLM(str(folders["no-cot"]), device="cpu"))
    ours, plain = (lm.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]))[0] for lm in lms)
    assert abs(ours - plain) < 1e-4


def test_limits_of_a_request(folders):
    lm = LatentLM(str(folders["sim"]))
    assert texts(lm, limit=4) == texts(lm, limit=500)  # more than there are positions: what the checkpoint needs
    how = {"until": ["<"], "max_new_tokens": 3, "do_sample": False}
    (short,) = lm.generate_until(asked("generate_until", [(PAIRS[0][0], how)]), disable_tqdm=True)
    full = texts(lm)[0].split()
    assert short.split() == full[:3] or len(short.split()) <= 3 < len(full) + 1


def test_the_score_is_the_judges_and_the_results_say_how_it_thought(folders):
    env = build(Cups())
    lm = LatentLM(str(folders["sim"]), num_latents=2, batch_size=8)
    manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False)
    out = simple_evaluate(lm, tasks=["cups"], limit=40, task_manager=manager, bootstrap_iters=0)
    reasoner = load(folders["sim"])
    items = judge(reasoner, env, env.problems("test", 8, 40), steps=2)
    said = [s["resps"][0][0] for s in out["samples"]["cups"] if s["filter"] == "strict-match"]
    assert [t.split() for t in said] == [[w for w in i.text.split() if w[0] != "<"] for i in items]  # no special tokens
    assert out["results"]["cups"]["exact_match,strict-match"] == sum(i.correct for i in items) / 40
    assert out["config"]["num_latents"] == 2 and out["config"]["method"] == "Sim"


def test_a_cache_never_answers_for_other_settings(folders, tmp_path):
    manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False)

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
    manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False, metadata=given)
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


@pytest.mark.parametrize(
    "args, message",
    [
        ("--model_args pretrained=nowhere/to/be/found --tasks cups", "is neither a folder nor a name on the hub"),
        ("--model_args pretrained=tests --tasks cups", "tests is not a run or a saved reasoner"),
        ("--model_args pretrained={sim},num_latents=-3 --tasks cups", "at least 0, got -3"),
        ("--model_args pretrained={sim},num_latents=40 --tasks cups", "leaves no room for text"),
        ("--model_args pretrained={sim} --tasks nonsense", "nonsense"),
        ("--model_args pretrained={sim} --tasks svamp", "cannot load hub:ChilleD/SVAMP:test"),
        ("--model_args pretrained={sim} --tasks svamp --metadata file=nowhere.json", "no such data file: nowhere.json"),
        ("--model_args pretrained={sim} --tasks countdown --metadata file=x.json", "Countdown is generated"),
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


def test_coconut_halfway_through_its_curriculum_thinks_as_far_as_it_has_come(tmp_path):
    reasoner = small_reasoner(Coconut(n_latent=4), ModelConfig(n_embd=32, n_head=2, n_positions=64))
    reasoner.method.stage.fill_(2)
    hub.save(reasoner, tmp_path)
    assert LatentLM(str(tmp_path)).num_latents == 2
