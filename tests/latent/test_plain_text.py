"""What a prompt begins with, that text is never a control token, and that padding is never text."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import latent
from eval.environments import Cups, ProsQA, build
from latent import hub, make, methods
from latent.codec import Codec
from latent.config import ModelConfig
from latent.generate import Reasoner
from latent.methods import Coconut, NoCoT, Recurrent, Sim
from tests.helpers import SMALL, small_reasoner

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}[bot]"
WITH_BOS = "{{ bos_token }}" + PLAIN
NASTY = ["<latent>", "<think>", "<end>", "<pad>", "<unknown>", "</s>", "<s>", "###", "####", "<|im_end|>", "[PAD]"]


def tokenizer_of(bos=False, template=None, own_think=False, **special):
    """A byte-level BPE as pretrained models have them, with the special tokens asked for."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ["<s>", "</s>", "<|im_end|>", "[PAD]"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    raw.train_from_iterator(["How many is 2 and 3?", "[user] Hi[bot]"], trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", **({"eos_token": "</s>"} | special))
    if own_think:
        tokenizer.add_tokens([AddedToken("<think>", special=False)])  # as Qwen3 has it
    tokenizer.chat_template = template
    return tokenizer


def reasoner_of(tokenizer, method=None, chat=False) -> Reasoner:
    codec = Codec(tokenizer, chat=chat)
    body = make.from_scratch(ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=96), codec.size, codec.pad, 1)
    return Reasoner(methods.build(method or Sim(n_latent=2), body), codec, 8, 8, 1)


def test_a_prompt_begins_as_the_tokenizer_begins_a_text():
    tokenizer = tokenizer_of(bos=True)
    text = "How many?"
    alone = tokenizer(text, add_special_tokens=False).input_ids
    codec = Codec(tokenizer)
    assert codec.question(text) == (0, *alone, codec.think)  # no end token, though this tokenizer adds one
    assert codec.step(text) == tuple(alone) and codec.answer(text) == (*alone, 1)
    without = Codec(tokenizer_of())
    assert without.question(text) == (*alone, without.think)


@pytest.mark.parametrize("template", [PLAIN, WITH_BOS])
@pytest.mark.parametrize("bos", [True, False])
def test_bos_stands_once_before_a_chat(template, bos, tmp_path):
    codec = Codec(tokenizer_of(bos, template), chat=True)
    ids = codec.question("Hi")
    assert ids.count(0) == (bos or template == WITH_BOS) and (ids[0] == 0) == bool(ids.count(0))
    assert codec.tokenizer.decode(ids).removeprefix("<s>") == "[user] Hi</s>[bot]<think>" and ids.count(1) == 1


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("template", [PLAIN, WITH_BOS])
def test_the_exported_tokenizer_makes_the_codecs_prompts(template, chat, tmp_path):
    reasoner = reasoner_of(tokenizer_of(True, template), chat=chat)
    want = reasoner.codec.question("How many is 2?")
    hub.save(reasoner, tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    if chat:
        turn = [{"role": "user", "content": "How many is 2?"}]
        ids = stock.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    else:
        ids = stock("How many is 2?").input_ids
    think = reasoner.codec.think
    assert (*ids, think) == want == latent.load(tmp_path).codec.question("How many is 2?")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    texts = stock.batch_decode(out[:, len(ids) :])
    assert [t.split("</s>")[0] for t in texts] == latent.load(tmp_path).answer(["How many is 2?"])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("own_think", [False, True])
@pytest.mark.parametrize("word", NASTY)
def test_what_looks_like_a_control_token_is_read_as_letters(word, own_think, chat):
    codec = Codec(tokenizer_of(True, PLAIN, own_think), chat=chat)
    codec.ensure_latent_token()
    control = {codec.think, codec.pad, codec.end, codec.ensure_latent_token(), *range(4)}
    for text in (word, f"a {word} b{word}", f"{word}{word}\n", f"<{word}>"):
        ids = codec.question(text)
        bare = codec.question("")
        assert sorted(i for i in ids if i in control) == sorted(i for i in bare if i in control)
        said = codec.tokenizer.decode(ids)
        assert (
            said == codec.tokenizer.decode(bare).replace("</s>[bot]", f"{text}</s>[bot]", 1)
            if chat
            else (said == f"<s>{text}<think>")
        )
        assert not control.intersection(codec.step(text)) and codec.texts(torch.tensor([codec.answer(text)])) == [text]


@pytest.mark.parametrize("word", ["<latent>", "<think>", "<end>", "<pad>", "<unknown>"])
@pytest.mark.parametrize("env", [Cups(), ProsQA()])
def test_a_closed_vocabulary_refuses_them_by_name(word, env):
    codec = build(env).codec(SMALL)
    codec.ensure_latent_token()
    some = "01" if isinstance(env, Cups) else "Tom"
    with pytest.raises(ValueError, match=f"cannot encode .*{word}|outside the vocabulary"):
        codec.question(f"{some} {word}")


def test_a_template_that_cuts_the_question_is_an_error():
    codec = Codec(tokenizer_of(template="{{ messages[0].content[:4] }}"), chat=True)
    with pytest.raises(ValueError, match="the chat template cuts a control token"):
        codec.question("</s> Hi")


QUESTIONS = ["How many is 2 and 3?", "Hi", "2?"]


@pytest.mark.parametrize(
    "bos, special, method",
    [
        (True, {}, Sim(n_latent=2)),
        (False, {}, NoCoT()),
        (True, {"pad_token": "</s>"}, Sim(n_latent=2)),
        (False, {"pad_token": "<s>"}, Sim(n_latent=2)),
        (False, {"pad_token": "[PAD]"}, NoCoT()),
        (True, {"unk_token": "</s>"}, Coconut(n_latent=2)),
    ],
)
def test_the_tokenizers_own_padding_changes_no_text(bos, special, method, tmp_path):
    """Backbones without a pad token, or with one that is also another's, with a mask and without."""
    reasoner = reasoner_of(tokenizer_of(bos, **special), method)
    want = [reasoner.answer([q])[0] for q in QUESTIONS]
    hub.save(reasoner, tmp_path)
    stock, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = stock(QUESTIONS, return_tensors="pt", padding=True)
    assert stock.padding_side == "left" and stock.pad_token_id == model.config.pad_token_id
    assert stock.pad_token_id not in (stock.eos_token_id, stock.bos_token_id)
    for how in (dict(inputs), {"input_ids": inputs.input_ids}):
        out = model.generate(**how)[:, inputs.input_ids.shape[1] :]
        assert [t.split("</s>")[0] for t in stock.batch_decode(out, skip_special_tokens=False)] == want
    masked, bare = (model(inputs.input_ids, attention_mask=m).logits for m in (inputs.attention_mask, None))
    torch.testing.assert_close(masked[:, -1], bare[:, -1], rtol=0, atol=0)


def test_padding_that_may_be_text_needs_a_mask(tmp_path):
    hub.save(reasoner_of(tokenizer_of()), tmp_path)
    stock, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    stock.pad_token = stock.eos_token  # a habit
    inputs = stock(QUESTIONS, return_tensors="pt", padding=True)
    want = [latent.load(tmp_path).answer([q])[0] for q in QUESTIONS]
    out = model.generate(**inputs)[:, inputs.input_ids.shape[1] :]
    assert [t.split("</s>")[0] for t in stock.batch_decode(out)] == want
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="which may be padding or text: give attention_mask"):
            call(inputs.input_ids)
    right = stock(QUESTIONS, return_tensors="pt", padding=True, padding_side="right")
    with pytest.raises(ValueError, match="a row ends with the end or padding token"):
        model.generate(right.input_ids)
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(**right)


def test_a_prompt_with_a_placeholder_in_it_is_refused(tmp_path):
    hub.save(reasoner_of(tokenizer_of()), tmp_path)
    stock, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a prompt holds <latent>.*split_special_tokens=True"):
        model.generate(stock("5 <latent> 3", return_tensors="pt").input_ids)
    ids = stock("5 <latent> 3", return_tensors="pt", split_special_tokens=True).input_ids
    (want,) = latent.load(tmp_path).answer(["5 <latent> 3"])
    assert stock.decode(model.generate(ids)[0, ids.shape[1] :]).split("</s>")[0] == want


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    reasoner = small_reasoner(Sim(n_latent=2))
    with torch.no_grad():
        reasoner.method.decoder.places.weight[3, 1] = value
    hub.save(reasoner, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"has weights that are not finite: method\.decoder\.places\.weight"):
        latent.load(tmp_path / "ours")
    lm = reasoner.method.backbone.lm
    with torch.no_grad():
        lm.get_input_embeddings().weight[5, 1] = value
    lm.save_pretrained(tmp_path / "theirs")
    tokenizer_of().save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"not finite: transformer\.wte\.weight"):
        make.from_pretrained(str(tmp_path / "theirs"))


def test_one_text_is_no_list_of_texts():
    reasoner = small_reasoner(NoCoT())
    for call in (reasoner.answer, reasoner.tokens, reasoner.codec.prompt):
        with pytest.raises(ValueError, match=r"must be a list of texts, got one text: give \['01 23'\]"):
            call("01 23")
    assert reasoner.answer([]) == []


@pytest.mark.parametrize("method", [Coconut(n_latent=2), Recurrent(prelude=0, r_min=1, r_max=2)])
def test_trainers_count_divides_the_sum(method, tmp_path):
    """A batch in two parts, each divided by the whole count, adds up to the mean over all labels."""
    hub.save(small_reasoner(method, ModelConfig(n_layer=1, n_embd=32, n_head=2)), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    prompt = [3, 4, model.config.think_id, model.config.latent_id, model.config.latent_id]
    rows = [[*prompt, 7, 8], [*prompt, 9], [*prompt, 5, 6, 7]]
    ids = torch.tensor([r + [0] * (8 - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (8 - len(r)) for r in rows])
    labels = ids.masked_fill((mask == 0) | (torch.arange(8) < 5), -100)
    whole = model(ids, mask, labels=labels).loss
    for count in (6, torch.tensor(6)):
        parts = [model(ids[i], mask[i], labels=labels[i], num_items_in_batch=count).loss for i in ([0, 1], [2])]
        torch.testing.assert_close(sum(parts), whole)
    assert model.accepts_loss_kwargs and json.loads((tmp_path / "config.json").read_text())["model_type"] == "latent"
