"""Checkpoints in lm-eval: the likelihoods of texts after their thoughts, in any batch, and how a checkpoint opens."""

import logging

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from eval.environments import GSM8K, build
from eval.lm import LatentLM
from kernels.errors import UserError
from latent import hub, load
from latent.config import ModelConfig
from latent.hf import LatentForCausalLM
from latent.methods import Coconut, NoCoT, Sim
from latent.methods.terms import text_hidden
from latent.thought import Greedy
from tests.eval.lm_helpers import PAIRS, asked, likelihoods, pens, texts, whole
from tests.helpers import python, small_reasoner


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
    assert context_ids == [*codec.question("Two pens?\n"), *[codec.ensure_latent_token()] * 2]
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
    done = python("-c", code, folders["sim"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == said


def test_coconut_halfway_through_its_curriculum_thinks_as_far_as_it_has_come(tmp_path):
    reasoner = small_reasoner(Coconut(n_latent=4), ModelConfig(n_embd=32, n_head=2, n_positions=64))
    reasoner.method.stage.fill_(2)
    hub.save(reasoner, tmp_path)
    assert LatentLM(str(tmp_path)).num_latents == 2


def test_out_of_memory_names_the_flag(folders, monkeypatch):
    lm = LatentLM(str(folders["sim"]))

    def full(*args, **how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(torch.nn.functional, "embedding", full)
    for asks, what in ((likelihoods, "reading likelihoods"), (texts, "writing texts")):
        said = rf"^out of memory in {what}: a smaller --batch_size needs less \(CUDA .*\)$"
        with pytest.raises(UserError, match=said):
            asks(lm)
