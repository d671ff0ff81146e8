"""Checkpoints in lm-eval: the same numbers as our judge, as the plain model where nothing is thought, in any batch."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from eval import harness
from eval.cost import forward_flops
from eval.environments import GSM8K, Cups, build
from eval.judge import judge
from eval.lm import LatentLM
from eval.usual import Number, Words
from latent import backbone, hub, load, methods
from latent.config import Converged, ModelConfig
from latent.generate import Reasoner
from latent.hf import LatentForCausalLM
from latent.methods import Coconut, CoT, NoCoT, Recurrent, Sim
from latent.methods.base import text_hidden
from latent.text import Batch
from latent.thought import Greedy
from tests.helpers import small_reasoner

ROOT = Path(harness.__file__).parent.parent
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


def ours(metadata: dict | None = None) -> TaskManager:
    """Our tasks alone: reading lm-eval's own takes seconds."""
    return TaskManager(include_path=str(harness.TASKS), include_defaults=False, metadata=metadata)


def likelihoods(lm) -> list[tuple[float, bool]]:
    return lm.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)


def texts(lm, limit=4) -> list[str]:
    how = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    return lm.generate_until(asked("generate_until", [(q, how) for q, _ in PAIRS]), disable_tqdm=True)


def whole(lm, limit=4) -> list[str]:
    """Texts that nothing but the limit and the end ends, special tokens and all."""
    how = {"until": [], "max_gen_toks": limit, "do_sample": False}
    return lm.generate_until(asked("generate_until", [(q, how) for q, _ in PAIRS]), disable_tqdm=True)


@pytest.mark.parametrize("name", ["no-cot", "cot", "sim"])
def test_without_latents_it_is_the_plain_model_after_the_think_token(name, folders):
    """One rule for what is written and what is scored: both stand after the token that they stood after in training."""
    ours = LatentLM(str(folders[name]), batch_size=2, num_latents=0)
    reasoner = load(folders[name])
    method, codec = reasoner.method, reasoner.codec
    for (context, continuation), (logp, greedy), text in zip(PAIRS, likelihoods(ours), whole(ours)):
        asked_ids, said = list(codec.question(context)), list(codec.step(continuation))
        slots = method.reserved(0)  # positions that a trained model keeps free even where it thinks nothing
        ids = torch.tensor([asked_ids + said])
        at = torch.arange(len(ids[0])) + slots * (torch.arange(len(ids[0])) >= len(asked_ids))
        logits = method.backbone.lm(ids, position_ids=at[None]).logits[0].log_softmax(-1)
        each = logits[range(len(asked_ids) - 1, len(ids[0]) - 1), said]
        assert abs(float(each.sum()) - logp) < 1e-5
        assert greedy == (logits[len(asked_ids) - 1 : -1].argmax(-1).tolist() == said)
        first = codec.text([int(logits[len(asked_ids) - 1].argmax())])
        assert text.startswith(first)


def test_a_context_is_scored_as_it_is_written_after(tmp_path):
    """White space at a context's end stays before the thoughts, where generation reads it; lm-eval would move it."""
    (tmp_path / "rows.jsonl").write_text(pens(30))
    env = build(GSM8K(train=str(tmp_path / "rows.jsonl")))
    reasoner = small_reasoner(Sim(n_latent=2), ModelConfig(n_embd=32, n_head=2, n_positions=64, vocab_size=300), env)
    hub.save(reasoner, tmp_path / "model")
    lm = LatentLM(str(tmp_path / "model"))
    context_ids, continuation_ids = lm._encode_pair("Two pens?\n", "### 4")
    codec = reasoner.codec
    assert context_ids == [*codec.question("Two pens?\n"), *[codec.name_latent()] * 2]
    assert continuation_ids == list(codec.step("### 4"))


def test_rolling_log_likelihoods_are_the_plain_models(folders):
    ours, plain = LatentLM(str(folders["cot"])), HFLM(str(folders["cot"]), device="cpu")
    rolled = [lm.loglikelihood_rolling(asked("loglikelihood_rolling", [("01 23 12 01",)])) for lm in (ours, plain)]
    assert abs(rolled[0][0] - rolled[1][0]) < 1e-5


def test_a_choice_is_scored_as_it_would_be_written(folders):
    """Of all first words the likeliest is the one that generation writes, with latents or without."""
    words = ["1", "2", "3", "4", "01", "12", "23"]
    for name, steps in (("no-cot", 0), ("sim", 0), ("sim", 3), ("recurrent", 2)):
        lm = LatentLM(str(folders[name]), num_latents=steps, batch_size=4)
        vocab = lm.tokenizer.get_vocab()
        lm.model.method.backbone.lm.lm_head.weight.data[[i for w, i in vocab.items() if w not in words and i < 13]] *= 0
        for context, _ in PAIRS:
            pairs = [(context, " " + w) for w in words]
            scored = lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
            best = words[max(range(len(words)), key=lambda i: scored[i][0])]
            how = {"until": [], "max_gen_toks": 1}
            (text,) = lm.generate_until(asked("generate_until", [(context, how)]), disable_tqdm=True)
            if text in words:  # else a special token, which is no choice
                assert text == best and scored[words.index(best)][1]


def test_opened_as_a_plain_model_it_warns(folders, caplog):
    logging.getLogger("transformers").propagate = True
    HFLM(str(folders["sim"]), device="cpu")
    assert "in lm-eval open it with --model latent" in caplog.text
    caplog.clear()
    LatentLM(str(folders["sim"]))
    load(folders["sim"])
    assert "--model latent" not in caplog.text


def test_a_plain_checkpoint_of_another_make_opens_too(tmp_path):
    reasoner = small_reasoner(NoCoT())
    reasoner.method.backbone.lm.save_pretrained(tmp_path)
    hub.save(reasoner, tmp_path / "ours")
    reasoner.codec.tokenizer.save_pretrained(tmp_path)
    ours, plain = LatentLM(str(tmp_path), num_latents=0), HFLM(str(tmp_path), device="cpu")
    assert texts(ours) == texts(plain) and likelihoods(ours) == likelihoods(plain)
    (r,) = asked("generate_until", [("01 23", {"until": [], "max_gen_toks": 2, "num_latents": 2})])
    with pytest.raises(ValueError, match="this is a plain causal LM: num_latents must be 0, got 2"):
        ours.generate_until([r], disable_tqdm=True)
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


def test_what_just_fits_is_read_whole(folders):
    """64 positions, 12 of them for thoughts: 49 tokens, the think token, and all but the last of 3 to score."""
    context, continuation = " ".join(["01", "23", "12", "13", "02", "03", "01"] * 7), " 4 2 1"
    lm, reasoner = LatentLM(str(folders["sim"])), load(folders["sim"])
    ((got, _),) = lm.loglikelihood(asked("loglikelihood", [(context, continuation)]), disable_tqdm=True)
    thought = reasoner.method.think(reasoner.codec.prompt([context]), Greedy())
    ids = torch.tensor([reasoner.codec.step(continuation)])
    with torch.no_grad():
        h = text_hidden(reasoner.method.backbone, thought, ids)
        each, _, _ = reasoner.method.backbone.logprob(h[0], ids[0])
    assert abs(float(each.sum()) - got) < 1e-5


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
    manager = ours()
    out = simple_evaluate(lm, tasks=["cups"], limit=40, task_manager=manager, bootstrap_iters=0)
    reasoner = load(folders["sim"])
    items = judge(reasoner, env, env.problems("test", 8, 40), steps=2)
    said = [s["resps"][0][0] for s in out["samples"]["cups"] if s["filter"] == "strict-match"]
    assert said == [i.text for i in items]
    found = out["results"]["cups"]
    assert found["exact_match,strict-match"] == sum(i.correct for i in items) / 40
    assert out["config"]["num_latents"] == 2 and out["config"]["method"] == "Sim"
    prompts = [len(reasoner.codec.question(p.question)) for p in env.problems("test", 8, 40)]
    flops = [forward_flops(reasoner, n, i.used, i.tokens) for n, i in zip(prompts, items)]
    assert found["latents,strict-match"] == 2 == out["config"]["cost"]["cups"]["latents"]
    assert found["tokens,strict-match"] == 4 and found["mflop,strict-match"] == pytest.approx(sum(flops) / 40 / 1e6)
    assert out["config"]["cost"]["cups"]["mflop"] == pytest.approx(sum(flops) / 40 / 1e6)


def pens(n: int) -> str:
    """Rows of word problems with chains, the longest answer and chain far below any task's usual limit."""
    rows = [{"question": f"Ann has {i} pens and buys {i + 1}.", "steps": [f"<<{i}+{i + 1}={2 * i + 1}>>"],
             "answer": str(2 * i + 1)} for i in range(n)]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "method", [NoCoT(), CoT(), Sim(n_latent=3, step_tokens=16, halt=Converged(below=10.0, hits=1))]
)
def test_texts_and_costs_are_the_judges_in_word_problems_too(method, tmp_path):
    """An untrained model rambles to its budget: it is the checkpoint's, not the task's, and latents stop as they do."""
    (tmp_path / "rows.jsonl").write_text(pens(30))
    env = build(GSM8K(train=None, test=str(tmp_path / "rows.jsonl"), max_answer=5, max_chain=9))
    torch.manual_seed(1)
    model = ModelConfig(n_embd=32, n_head=2, n_positions=64, vocab_size=300)
    codec = build(GSM8K(train=str(tmp_path / "rows.jsonl"))).codec(model)
    body = backbone.from_scratch(model, codec.size, codec.pad, codec.end)
    reasoner = Reasoner(methods.build(method, body), codec, env.answer_tokens, env.chain_tokens, env.chain_steps)
    problems = env.problems("test", 0, 30)
    batch, adam = Batch.of(problems[:12], codec), torch.optim.AdamW(reasoner.method.parameters(), 1e-2)
    for _ in range(30):  # until some texts end by themselves, and some do not
        adam.zero_grad()
        reasoner.method.loss(batch)[0].backward()
        adam.step()
    hub.save(reasoner, tmp_path / "model")
    items = judge(reasoner, env, problems)
    manager = TaskManager(
        include_path=str(harness.TASKS), include_defaults=False, metadata={"file": str(tmp_path / "rows.jsonl")}
    )
    for lm in (LatentLM(str(tmp_path / "model"), batch_size=7), LatentLM(reasoner, batch_size=30)):
        out = simple_evaluate(lm, tasks=["gsm8k_aug"], task_manager=manager, bootstrap_iters=0)
        samples = [s for s in out["samples"]["gsm8k_aug"] if s["filter"] == "strict-match"]
        assert [s["resps"][0][0] for s in samples] == [i.text for i in items]
        assert [s["latents"] for s in samples] == [i.used for i in items]
        assert [s["tokens"] for s in samples] == [i.tokens for i in items]
    assert max(i.tokens for i in items) == reasoner.max_tokens < 160 and len({i.tokens for i in items}) > 1
    out = simple_evaluate(
        lm, tasks=["gsm8k_aug"], task_manager=manager, bootstrap_iters=0, gen_kwargs={"max_gen_toks": 3}
    )
    assert out["results"]["gsm8k_aug"]["tokens,strict-match"] <= 3  # who asks for less gets less


def test_what_generation_is_asked_for_counts_for_its_own_requests(folders):
    """--gen_kwargs num_latents: as a model that was opened with so many, beside requests for others."""
    lm = LatentLM(str(folders["sim"]), batch_size=3)
    how = {"until": [], "max_gen_toks": 4}
    mixed = [(q, {**how, **more}) for q, _ in PAIRS for more in ({}, {"num_latents": 1}, {"num_latents": 5})]
    got = lm.generate_until(asked("generate_until", mixed), disable_tqdm=True)
    for i, steps in enumerate((3, 1, 5)):
        assert got[i::3] == whole(LatentLM(str(folders["sim"]), num_latents=steps))
        assert {text.used for text in got[i::3]} == {steps}
    loop = LatentLM(str(folders["recurrent"]))
    args = [("01 23", {**how, "num_recurrences": 2})]
    (text,) = loop.generate_until(asked("generate_until", args), disable_tqdm=True)
    assert (
        text
        == LatentLM(str(folders["recurrent"]), num_recurrences=2).generate_until(
            asked("generate_until", [("01 23", how)]), disable_tqdm=True
        )[0]
        and text.used == 2
    )
    for bad, message in (
        ({"num_latents": -1}, "at least 0, got -1"),
        ({"num_latents": 1.5}, "at least 0, got 1.5"),
        ({"num_latents": "two"}, "at least 0, got two"),
        ({"num_latents": 40}, "leaves no room for text"),
        ({"num_latents": 1, "num_recurrences": 1}, "are one setting"),
        ({"max_length": 30}, "give max_gen_toks"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.generate_until(asked("generate_until", [("01", {**how, **bad})]), disable_tqdm=True)
    with pytest.raises(ValueError, match="leave no room for text"):
        lm.generate_until(asked("generate_until", [("01 " * 80, {"until": []})]), disable_tqdm=True)


def test_what_nobody_asked_for_ends_no_text_and_long_contexts_are_cut_where_a_limit_was_asked_for(folders):
    lm = LatentLM(str(folders["cot"]))
    usual, said = (
        lm.generate_until(asked("generate_until", [("01 23 12", {"until": u, "max_gen_toks": n})]), disable_tqdm=True)[
            0
        ]
        for u, n in ((Words(["1", "2", "3", "0"]), Number(2)), (["1", "2", "3", "0"], 36))
    )
    assert usual == load(folders["cot"]).answer(["01 23 12"])[0] and usual.tokens == 36
    assert len(said) < len(usual) and not set(said) & set("0123")
    long = "01 23 " * 20 + "12"  # 41 tokens and the think token; 64 positions, the last of 30 tokens takes none
    (cut,) = lm.generate_until(asked("generate_until", [(long, {"until": [], "max_gen_toks": 30})]), disable_tqdm=True)
    rest = " ".join(long.split()[-(64 + 1 - 30 - 1) :])
    (want,) = lm.generate_until(asked("generate_until", [(rest, {"until": [], "max_gen_toks": 30})]), disable_tqdm=True)
    assert cut == want and cut.tokens == 30


def test_a_model_in_memory_is_the_one_on_disk(folders):
    reasoner = load(folders["sim"])
    disk, memory = LatentLM(str(folders["sim"]), batch_size=2), LatentLM(reasoner, batch_size=2)
    face = LatentForCausalLM.from_pretrained(folders["sim"])
    third = LatentLM(face, tokenizer=disk.tokenizer, batch_size=2)
    for lm in (memory, third):
        assert likelihoods(lm) == likelihoods(disk) and whole(lm) == whole(disk)
    prints = {lm.fingerprint() for lm in (disk, memory, LatentLM(reasoner, num_latents=1))}
    reasoner.method.backbone.lm.lm_head.weight.data[0] += 1
    assert len(prints | {memory.fingerprint()}) == 4
    with pytest.raises(ValueError, match="foreign tokenizer"):
        other = AutoTokenizer.from_pretrained(folders["sim"])
        other.add_tokens(["another"])
        LatentLM(face, tokenizer=other)


STOCK = """
import sys
import latent
import lm_eval
from eval import harness
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False)
args = {"pretrained": sys.argv[1], "num_latents": 2}
out = lm_eval.simple_evaluate("latent", args, ["cups"], task_manager=manager, limit=4, bootstrap_iters=0, device="cpu")
print(out["results"]["cups"]["latents,strict-match"])
"""
LATER = "import lm_eval.models, latent, lm_eval.api.registry as r; print(r.get_model('latent').__name__)"


@pytest.mark.parametrize("code, said", [(STOCK, "2.0"), (LATER, "LatentLM")])
def test_stock_lm_eval_knows_the_model_once_we_are_imported(code, said, folders):
    args = [sys.executable, "-c", code, str(folders["sim"])]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == said


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
