"""A checkpoint in the hands of `transformers`: stock generation, log-likelihoods, and no package of ours."""

import copy
import json
import math
import pickle
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    pipeline,
)

import latent
from eval.environments import Cups, build
from latent import hub
from latent.config import LearnedStop, ModelConfig
from latent.hf_cache import CACHE
from latent.methods import Coconut, CoT, CoT2, NoCoT, Recurrent, Sim
from latent.policies import Tokens
from latent.thought import Greedy, Prompt
from tests.helpers import python, small_reasoner

QUESTIONS = ["01 23 12 01 02 13 03 .", "01 23", "13 . 02 23 01"]
METHODS = {
    "no-cot": NoCoT(),
    "cot": CoT(),
    "sim": Sim(n_latent=4, stride=4, halt=LearnedStop(bias=0.0)),
    "coconut": Coconut(n_latent=4, feedback="norm"),
    "cot2": CoT2(n_latent=4, policy=Tokens(k=2)),
    "recurrent": Recurrent(),
}


def saved(folder, method, family="gpt2", dtype=torch.float32):
    """An untrained reasoner, its folder, and what the Auto classes make of it."""
    reasoner = small_reasoner(method, ModelConfig(family=family, n_layer=2, n_embd=32, n_head=2, n_positions=64))
    if isinstance(method, Coconut):
        reasoner.method.stage.fill_(reasoner.method.last)
    hub.save(reasoner, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return reasoner, model.eval(), AutoTokenizer.from_pretrained(folder)


def said(model, decoder, questions=QUESTIONS, **how) -> list[str]:
    inputs = decoder(questions, return_tensors="pt", padding=True)
    out = model.generate(**inputs, **how)
    assert torch.equal(out[:: len(out) // len(questions), : inputs.input_ids.shape[1]], inputs.input_ids)
    texts = decoder.batch_decode(out[:, inputs.input_ids.shape[1] :])
    assert all(text.startswith(" ") for text in texts)  # so that it can follow the prompt's text
    return [text[1:] for text in texts]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("name", METHODS)
def test_generate_answers_as_the_reasoner(name, family, tmp_path):
    reasoner, model, tokenizer = saved(tmp_path, METHODS[name], family)
    want = reasoner.answer(QUESTIONS)
    assert said(model, tokenizer) == want
    assert latent.load(tmp_path).answer(QUESTIONS) == want
    if name not in ("no-cot", "cot"):
        assert said(model, tokenizer, num_latents=2) == reasoner.answer(QUESTIONS, steps=2)
        assert said(model, tokenizer, num_recurrences=3) == reasoner.answer(QUESTIONS, steps=3)
    assert said(model, tokenizer, use_cache=False) == want
    names = {p.suffix for p in tmp_path.iterdir()}
    assert names == {".json", ".safetensors", ".py"}


def unrolled(model, prompt, k, text):
    """Logits of every column by the family's own forward on the whole sequence of embeddings, once a latent.

    A text after a thought has the position that it has after all the latents that the model was trained with.
    """
    lm = model.method.backbone.lm
    x = lm.get_input_embeddings()(torch.tensor([prompt]))
    for _ in range(k):
        h = lm.get_decoder()(inputs_embeds=x).last_hidden_state
        x = torch.cat([x, h[:, -1:]], 1)
    if text:
        x = torch.cat([x, lm.get_input_embeddings()(torch.tensor([text]))], 1)
    place = torch.arange(x.shape[1])
    if k:
        place[len(prompt) + k :] += max(k, model.num_latents) - k
    return lm(inputs_embeds=x, position_ids=place[None]).logits[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["right without a mask", "right", "left"])
def test_logits_of_ragged_rows_are_those_of_the_network_unrolled(family, side, tmp_path):
    _, model, _ = saved(tmp_path, Coconut(n_latent=3), family, torch.float64)
    c = model.config
    cases = [([3, 4, 5, c.think_id], 3, [7, 8]), ([4, c.think_id], 1, [6]), ([5, 6, 7], 0, [8, 9]), ([9], 2, [])]
    rows = [prompt + [c.latent_id] * k + text for prompt, k, text in cases]
    longest = max(map(len, rows))
    pad = lambda row, fill: (  # noqa: E731
        [fill] * (longest - len(row)) + row if side == "left" else row + [fill] * (longest - len(row))
    )
    ids = torch.tensor([pad(row, 0) for row in rows])
    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    logits = model(ids, attention_mask=None if side.endswith("mask") else mask).logits
    assert logits.shape[-1] == c.latent_id + 1 and bool((logits[..., model.method.backbone.vocab :] == -math.inf).all())
    for b, case in enumerate(cases):
        got = logits[b][mask[b].bool()][:, : model.method.backbone.vocab]
        torch.testing.assert_close(got, unrolled(model, *case), rtol=0, atol=1e-6 if family == "llama" else 1e-10)


def test_labels_give_the_mean_loss_and_its_gradient(tmp_path):
    _, model, _ = saved(tmp_path, Coconut(n_latent=2), dtype=torch.float64)
    c = model.config
    ids = torch.tensor([[3, 4, c.think_id, c.latent_id, c.latent_id, 7, 8]])
    labels = ids.masked_fill(torch.arange(7) < 5, -100)
    loss = model(ids, labels=labels).loss
    logp = unrolled(model, [3, 4, c.think_id], 2, [7, 8]).log_softmax(-1)
    torch.testing.assert_close(loss, -(logp[4, 7] + logp[5, 8]) / 2)
    weight = model.get_input_embeddings().weight
    (got,) = torch.autograd.grad(loss, weight)
    (want,) = torch.autograd.grad(-(logp[4, 7] + logp[5, 8]) / 2, weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_a_beam_as_wide_as_all_texts_finds_the_likeliest(tmp_path):
    _, model, tokenizer = saved(tmp_path, METHODS["sim"])
    inputs = tokenizer(QUESTIONS[:2], return_tensors="pt", padding=True)
    vocab = model.method.backbone.vocab
    out = model.generate(**inputs, max_new_tokens=2, num_beams=vocab, num_return_sequences=3, length_penalty=0.0)
    for b in range(2):
        row = inputs.input_ids[b][inputs.attention_mask[b].bool()].tolist()
        prompt = row + model.thinking_ids(None)
        texts = list(product(range(vocab), repeat=2))
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(t) for t in texts])).logits
        logp = logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        score = [float(logp[i, 0, t[0]] + logp[i, 1, t[1]]) for i, t in enumerate(texts)]
        best = sorted(range(len(texts)), key=score.__getitem__, reverse=True)[:3]
        assert out[3 * b : 3 * b + 3, -2:].tolist() == [list(texts[i]) for i in best]


def test_samples_follow_the_policy(tmp_path):
    """Frequencies of 4,000 first tokens against the softmax at a temperature: within five standard errors."""
    _, model, tokenizer = saved(tmp_path, METHODS["sim"])
    inputs = tokenizer(QUESTIONS[:1], return_tensors="pt")
    out = model.generate(
        **inputs, do_sample=True, temperature=0.7, top_k=0, num_return_sequences=4000, max_new_tokens=1
    )
    drawn = torch.bincount(out[:, -1], minlength=13) / 4000
    prompt = inputs.input_ids[0].tolist() + model.thinking_ids(None)
    p = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)[:13]
    assert bool(((drawn - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all())


def test_stock_arguments(tmp_path):
    reasoner, model, tokenizer = saved(tmp_path, METHODS["sim"])
    (want,) = reasoner.answer(QUESTIONS[:1])
    first_two = " ".join(want.split()[:2])
    assert said(model, tokenizer, QUESTIONS[:1], stop_strings=first_two, tokenizer=tokenizer) == [first_two]
    assert said(model, tokenizer, QUESTIONS[:1], max_length=8 + 3) == [" ".join(want.split()[:3])]
    assert said(model, tokenizer, QUESTIONS[:1], repetition_penalty=1.0001, no_repeat_ngram_size=30) == [want]
    streamer = TextIteratorStreamer(tokenizer)
    model.generate(**tokenizer(QUESTIONS[:1], return_tensors="pt"), streamer=streamer)
    assert "".join(streamer).strip() == f"{QUESTIONS[0]} {want}"
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    answers = pipe(QUESTIONS, batch_size=2, return_full_text=False)
    want = [[w for w in answer.split() if w[0] != "<"] for answer in reasoner.answer(QUESTIONS)]  # no special tokens
    assert [a[0]["generated_text"].split() for a in answers] == want


def test_what_a_caller_gives_sees_the_ids_that_the_caller_knows(tmp_path):
    """Placeholders that were appended are not among them, so that a rule about the first token meets it."""
    _, model, tokenizer = saved(tmp_path, METHODS["sim"])
    inputs, lengths = tokenizer(QUESTIONS, return_tensors="pt", padding=True), []

    class FirstIs(LogitsProcessor):
        def __call__(self, input_ids, scores):
            lengths.append(input_ids.shape[1])
            if input_ids.shape[1] == inputs.input_ids.shape[1]:
                scores = torch.full_like(scores, -torch.inf)
                scores[:, 4] = 0
            return scores

    t = inputs.input_ids.shape[1]
    out = model.generate(**inputs, logits_processor=LogitsProcessorList([FirstIs()]))
    assert out[:, t].tolist() == [4] * len(QUESTIONS) and lengths == list(range(t, t + len(lengths)))

    def allowed(row, ids_T):
        assert ids_T[:t].tolist() == inputs.input_ids[row].tolist()
        return [3 + row, 5 + row] if len(ids_T) == t else list(range(12))

    out = model.generate(**inputs, prefix_allowed_tokens_fn=allowed, num_beams=2)
    assert all(int(out[row, t]) in (3 + row, 5 + row) for row in range(len(QUESTIONS)))


def test_logits_are_kept_at_the_columns_that_are_named(tmp_path):
    _, model, tokenizer = saved(tmp_path, METHODS["sim"])
    inputs = tokenizer(QUESTIONS, return_tensors="pt", padding=True)
    whole = model(**inputs).logits
    for kept in (torch.tensor([2]), torch.tensor([0, 3])):
        torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, whole[:, kept])
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, whole[:, -2:])


def test_a_reasoner_goes_through_pickle(tmp_path):
    """To other processes; its caches stay behind, and a copy's are its own."""
    reasoner, _, _ = saved(tmp_path, METHODS["sim"])
    for other in (pickle.loads(pickle.dumps(reasoner)), copy.deepcopy(reasoner)):
        assert other.answer(QUESTIONS) == reasoner.answer(QUESTIONS)
        assert other.codec.question.__wrapped__.__self__ is other.codec


def test_without_our_package_one_file_opens_it(tmp_path):
    reasoner, _, _ = saved(tmp_path / "model", METHODS["sim"])
    script = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, again, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(questions, return_tensors="pt", padding=True)
texts = tokenizer.batch_decode(model.generate(**inputs)[:, inputs.input_ids.shape[1]:])
print([text.strip() for text in texts])
model.save_pretrained(again)
assert "latent" not in sys.modules and "kernels.dispatch" not in sys.modules
"""
    done = python("-c", script, tmp_path / "model", tmp_path / "again", *QUESTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(reasoner.answer(QUESTIONS))
    code = (tmp_path / "again" / "modeling_latent.py").read_text()
    assert code == (tmp_path / "model" / "modeling_latent.py").read_text()


def test_tied_embeddings_and_extra_projections_come_back(tmp_path):
    reasoner = small_reasoner(Coconut(n_latent=2, feedback="project"))
    lm = reasoner.method.backbone.lm
    lm.config.tie_word_embeddings = True
    lm.tie_weights()
    hub.save(reasoner, tmp_path)
    again = latent.load(tmp_path)
    for (name, a), (_, b) in zip(reasoner.method.state_dict().items(), again.method.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert again.method.backbone.lm.lm_head.weight is again.method.backbone.lm.transformer.wte.weight


def test_what_a_generation_config_says_counts_like_an_argument(tmp_path):
    from transformers import GenerationConfig

    reasoner, model, tokenizer = saved(tmp_path, METHODS["sim"])
    (want,) = reasoner.answer(QUESTIONS[:1])
    first_two = " ".join(want.split()[:2])
    ask = lambda config, **how: said(model, tokenizer, QUESTIONS[:1], generation_config=config, **how)[0]  # noqa: E731
    assert ask(GenerationConfig(use_cache=False, max_new_tokens=4)) == want
    assert ask(GenerationConfig(stop_strings=first_two, max_new_tokens=4), tokenizer=tokenizer) == first_two
    assert ask(GenerationConfig(max_length=8 + 3)) == " ".join(want.split()[:3])
    with pytest.raises(ValueError, match="stop_strings needs the tokenizer"):
        ask(GenerationConfig(stop_strings=first_two))
    with pytest.raises(ValueError, match="prefill_chunk_size is not supported"):
        said(model, tokenizer, prefill_chunk_size=2)


def test_a_text_ends_at_the_last_position(tmp_path):
    reasoner = small_reasoner(CoT())
    reasoner.codec.fixed_answer = None  # no length ends it
    hub.save(reasoner, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    (text,) = said(model, tokenizer, QUESTIONS[1:2], max_new_tokens=500, eos_token_id=None)
    assert len(text.split()) == 64 - 3 + 1  # the last token is written and not read
    assert text.split() == reasoner_text(reasoner, QUESTIONS[1], 500)


def reasoner_text(reasoner, question: str, limit: int) -> list[str]:
    from latent.generate import decode
    from latent.thought import Greedy

    with torch.no_grad():
        thought = reasoner.method.think(reasoner.codec.prompt([question]), Greedy())
        ids = decode(reasoner.method, thought, Greedy(), limit, None)
    return reasoner.codec.tokenizer.decode(ids[0]).split()


def test_an_answer_read_off_in_parallel_can_be_learned_from_labels(tmp_path):
    _, model, _ = saved(tmp_path, Recurrent(), dtype=torch.float64)
    c = model.config
    ids = torch.tensor([[3, 4, c.think_id, c.latent_id, c.latent_id, 7, 8, 9, 10]])
    out = model(ids, labels=ids.masked_fill(torch.arange(9) < 5, -100))
    assert bool(out.logits[0, -1, :13].isnan().all()) and not bool(out.logits[0, :-1].isnan().any())
    thought = model.method.think(Prompt(ids[:, :3]), Greedy(), steps=2)
    logp = model.method.backbone.head(thought.h_UTD)[0].log_softmax(-1)
    want = -logp[range(4), [7, 8, 9, 10]].mean()
    torch.testing.assert_close(out.loss, want)
    weight = model.get_output_embeddings().weight
    (got,), (expected,) = (torch.autograd.grad(x, weight) for x in (out.loss, want))
    torch.testing.assert_close(got, expected)


def test_a_saved_tokenizer_begins_a_prompt_as_the_codec_did(tmp_path):
    """Whatever was done to it since: what the codec puts before a text was settled when it was made."""
    from tokenizers.processors import TemplateProcessing

    reasoner = small_reasoner(Sim(n_latent=2))
    raw = reasoner.codec.tokenizer.backend_tokenizer
    raw.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    hub.save(reasoner, tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(QUESTIONS[0]).input_ids
    assert (*ids, reasoner.codec.think) == reasoner.codec.question(QUESTIONS[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    hub.save(small_reasoner(Sim(n_latent=2)), folder)
    return folder


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: d.rename(d.with_name("other")), "is not a folder"),
        (lambda d: (d / "config.json").unlink(), "is not a run or a saved reasoner: it has no config.json of one"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda d: (d / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 20), "cannot be read"),
        (lambda d: (d / "config.json").write_text("[1]"), "must hold an object, got a list"),
        (lambda d: edit(d, backbone={}), "it has no config.json of one"),
        (lambda d: edit(d, format=99, method={"class": "Telepathy"}), "has format 99, this version reads up to 2"),
        (lambda d: edit(d, vocabulary="abc"), "its vocabulary is not the one the model was trained with"),
        (lambda d: edit(d, method={"class": "Sim", "step_tokens": 9}), "cannot be opened"),
        (lambda d: edit(d, format=99), "has format 99, this version reads up to 2"),
        (lambda d: edit(d, method={"class": "Telepathy"}), "method: this version has no 'Telepathy'"),
        (lambda d: edit(d, method={"class": "Sim", "dreams": 3}), "Sim has no field 'dreams' in this version"),
        (lambda d: edit(d, method={"class": "Coconut", "feedback": "project"}), "lacks weights: method."),
        (lambda d: edit(d, think_id=5), "has a foreign tokenizer: <think> is 1, the model was trained with 5"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_one_clear_line(spoil, message, folder, tmp_path):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    spoil(spoilt)
    with pytest.raises(ValueError) as e:
        latent.load(spoilt)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_run_without_a_model_is_one_line_that_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text('{"class": "Run"}')
    with pytest.raises(ValueError, match=r"has no finished model yet: run its command again to go on$"):
        latent.load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    said = f"{tmp_path} has a result and no model: delete {tmp_path}/result.json, and run its command again$"
    with pytest.raises(ValueError, match=said):
        latent.load(tmp_path)


def test_wrong_calls(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    latent_id, ids = model.config.latent_id, torch.tensor([[3, 4, 1]])
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(ValueError, match=f"num_latents must be a whole number of at least 0, got {wrong!r}"):
            model.generate(ids, num_latents=wrong)
    for rows in (ids, torch.tensor([[3, 4, 1], [4, 3, 1]])):
        with pytest.raises(ValueError, match="need 103 positions, the model has 64"):
            model.generate(rows, num_latents=100)
    for wrong in ([[3, 4, 1]], ids[0], ids[:0]):
        with pytest.raises(ValueError, match="generate needs input_ids"):
            model.generate(wrong)
    with pytest.raises(ValueError, match="max_length 3 counts the prompt, which has 3 tokens"):
        model.generate(ids, max_length=3)
    for mask in (torch.ones(1, 2), torch.ones(2, 3), torch.ones(1, 1, 3, 3)):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=r"attention_mask has shape .*, input_ids have \(1, 3\)"):
                call(input_ids=ids, attention_mask=mask)
    before = model.generate(ids, return_dict_in_generate=True)
    for name in ("past_key_values", "cache"):
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            model.generate(torch.tensor([[3, 4, 1, 3]]), **{name: before[CACHE]})
    for name in ("num_latents", "num_recurrences", "output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match=f"{name} is not taken"):
            model(ids, **{name: 1})
        model(ids, **{name: None})
    with pytest.raises(ValueError, match="row 0: <latent> placeholders must follow a prompt, and each other"):
        model(torch.tensor([[3, latent_id, 4, latent_id]]))
    for outside in (99, -1):
        with pytest.raises(ValueError, match=f"token {outside} is not in the model's vocabulary of 13"):
            model(torch.tensor([[3, outside]]))
    with pytest.raises(ValueError, match=r"past_key_values must be a LatentCache, .* got DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    assert torch.equal(model.generate(ids, num_latents=np.int64(2)), model.generate(ids, num_latents=2))
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(torch.tensor([[3, 4, 0]]))
    with pytest.raises(ValueError, match="num_latents and num_recurrences are one setting"):
        model.generate(ids, num_latents=1, num_recurrences=1)
    with pytest.raises(ValueError, match="num_latents is an argument of generate"):
        model.generate(ids, generation_config=GenerationConfig(num_latents=1))
    with pytest.raises(ValueError, match="1 rows leave none for the think token, whose id is 1"):
        model.resize_token_embeddings(1)
    with pytest.raises(ValueError, match="either all prompts of a batch end in <think>, or none"):
        model.generate(torch.tensor([[3, 1], [4, 5]]))
    with pytest.raises(ValueError, match="NoCoT has no latents"):
        small_reasoner(NoCoT()).answer(["01"], steps=2)


def test_a_word_outside_a_closed_vocabulary_is_an_error():
    codec = build(Cups()).codec(ModelConfig())
    with pytest.raises(ValueError, match="a word outside the vocabulary"):
        codec.question("01 99")
    assert codec.size == 13


@pytest.mark.parametrize("name", ["sim", "cot2", "coconut"])
def test_forward_reads_a_prompt_once_whatever_logits_are_asked_for(name, tmp_path):
    """Its own states, the latents' and the text's: as many calls as positions that wait, and the logits of all."""
    reasoner, model, tokenizer = saved(tmp_path, METHODS[name], dtype=torch.float64)
    k, latent = model.num_latents, model.config.latent_id
    ids = tokenizer(QUESTIONS[:1], return_tensors="pt").input_ids
    ids_1T = torch.cat([ids, torch.full((1, k), latent), torch.tensor([[3, 4, 5]])], 1)
    with model.method.backbone.tap(layers=(-1,), keep=None) as tapped, torch.no_grad():
        logits = model(ids_1T).logits
    assert [call.length for call in tapped.calls] == [ids.shape[1], *[1] * k, 3]
    alone = reasoner.method.to(torch.float64).backbone
    h_1TD, _ = alone.hidden(ids)
    torch.testing.assert_close(logits[:, : ids.shape[1], : alone.vocab], alone.head(h_1TD), rtol=0, atol=1e-9)


def test_rows_that_fit_alone_are_read_together_to_the_last_position(tmp_path):
    """A long question with a token of text beside a short one with several, or with two."""
    shape = ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=10)
    hub.save(small_reasoner(Sim(n_latent=2), shape), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    think, latent, pad = model.config.think_id, model.config.latent_id, model.config.pad_token_id
    long, short = [3] * 7 + [think, latent, latent], [4, think, latent, latent]
    for text in ([5], [5, 6, 7]):
        alone = [model(torch.tensor([row])).logits[0] for row in (long, short + text)]
        rows = [long, [pad] * (6 - len(text)) + short + text]
        mask = [[1] * 10, [0] * (6 - len(text)) + [1] * (4 + len(text))]
        together = model(torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
        for got, want in zip(together, alone):
            torch.testing.assert_close(got[-len(want) :], want, rtol=0, atol=1e-9)
