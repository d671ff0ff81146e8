"""Published checkpoints become ours: prompts, logits and greedy texts are those of their authors' loop, in fp64."""

import json

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

import latent
from eval.environments import gsm8k
from latent.convert import Asked, convert
from latent.generate import decode
from latent.methods import Coconut, Codi, Colar, Sim, Soft
from latent.methods.terms import text_hidden
from latent.thought import Greedy
from tests.latent.published import QUESTIONS, D, answered, base_of, codi_state, grown, projection, saved, state_of


def compare(folder, prompts: list[list[int]], theirs) -> latent.Reasoner:
    """Assert that a converted folder reads these prompts of QUESTIONS, and gives the tokens and logits of `theirs`."""
    reasoner = latent.load(folder)
    method, codec = reasoner.method.double(), reasoner.codec
    for question, ids in zip(QUESTIONS, prompts, strict=True):
        prompt = codec.prompt([question])
        assert prompt.ids_BT.tolist() == [ids]
        tokens, want_TV = theirs(ids)
        with torch.no_grad():
            thought = method.think(prompt, Greedy())
            got_TV = method.backbone.head(text_hidden(method.backbone, thought, torch.tensor([tokens])))[0]
            written = decode(method, thought, Greedy(), len(tokens), None)[0].tolist()
        torch.testing.assert_close(got_TV[:, : want_TV.shape[1]], want_TV, rtol=0, atol=1e-5)
        assert written == tokens
    return reasoner


@pytest.mark.parametrize("family, sim, name", [("gpt2", False, "checkpoint_33"), ("llama", True, "model.safetensors")])
def test_coconut(family, sim, name, tmp_path):
    """A state dict without a config, given by its file or its folder; as safetensors it has lost one tied name."""
    lm, tokenizer = base_of(family, tmp_path / "base")
    start = len(tokenizer)
    state = state_of(grown(lm, 3), "base_causallm.")
    if sim:
        state |= {"expainable_llm.lm_head.weight": torch.zeros(3, D)}
        del state["base_causallm.model.embed_tokens.weight"]
    else:
        state["embedding.weight"] = state["base_causallm.lm_head.weight"]
    theirs = saved(state, tmp_path / "theirs", name)
    made = convert(str(theirs if sim else theirs / name), tmp_path / "ours", Asked(base=str(tmp_path / "base")))
    prompts = [[*tokenizer(q.rstrip("\n") + "\n")["input_ids"], start] for q in QUESTIONS]
    k = 10 if sim else 6
    reasoner = compare(
        tmp_path / "ours", prompts, lambda ids: answered(lm, ids, k, start + 1, lambda h_BD, logits_BV: h_BD)
    )
    assert type(reasoner.method.made_from) is (Sim if sim else Coconut) and reasoner.method.trained_steps == k
    card = (tmp_path / "ours" / "README.md").read_text()
    assert made.published and made.published[0] in card and ("42.2" if sim else "34.1") in card


def test_a_head_that_is_not_the_embeddings_stays_another(tmp_path):
    lm, tokenizer = base_of("gpt2", tmp_path / "base")
    start = len(tokenizer)
    lm = grown(lm, 3)
    lm.lm_head = torch.nn.Linear(D, start + 3, bias=False).double()
    theirs = saved(state_of(lm, "base_causallm."), tmp_path / "theirs")
    convert(str(theirs), tmp_path / "ours", Asked(base=str(tmp_path / "base"), n_latent=2))
    prompts = [[*tokenizer(q.rstrip("\n") + "\n")["input_ids"], start] for q in QUESTIONS]
    compare(tmp_path / "ours", prompts, lambda ids: answered(lm, ids, 2, start + 1, lambda h_BD, logits_BV: h_BD))


@pytest.mark.parametrize("family, sim, spare", [("gpt2", False, 0), ("llama", True, 4)])
def test_codi(family, sim, spare, tmp_path):
    """Adapters are merged; the projection is fed back; the answer's words become the verifier's mark."""
    lm, tokenizer = base_of(family, tmp_path / "base", spare)
    first, mlp = len(tokenizer) + spare, projection()
    state = codi_state(grown(lm, 3), mlp, sim)
    theirs = saved(state, tmp_path / "theirs")
    convert(str(theirs), tmp_path / "ours", Asked(base=str(tmp_path / "base")))
    clean = [q.strip().replace("  ", " ") for q in QUESTIONS]
    prompts = [[*tokenizer(q)["input_ids"], first + 1] for q in clean]
    mlp.double()
    reasoner = compare(
        tmp_path / "ours", prompts, lambda ids: answered(lm, ids, 6, first + 2, lambda h_BD, logits_BV: mlp(h_BD))
    )
    assert isinstance(reasoner.method.made_from, Codi)
    text = reasoner.codec.text(tokenizer("The answer is: 42", add_special_tokens=False)["input_ids"])
    assert text == "### 42" and gsm8k.answer(text) == 42


def test_a_converted_checkpoint_answers_alike_in_other_tools(tmp_path):
    lm, _ = base_of("gpt2", tmp_path / "base")
    theirs = saved(codi_state(grown(lm, 3), projection()), tmp_path / "theirs")
    asked = Asked(base=str(tmp_path / "base"), n_latent=3, answer_tokens=7)
    convert(str(theirs), tmp_path / "ours", asked)
    reasoner, folder = latent.load(tmp_path / "ours"), tmp_path / "ours"
    want = reasoner.answer(QUESTIONS)
    assert want == [reasoner.answer([q])[0] for q in QUESTIONS] and reasoner.method.trained_steps == 3
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False) for q in QUESTIONS]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    for more in ([{"role": "system", "content": "Be brief."}], [{"role": "user", "content": "a"}] * 2):
        with pytest.raises(TemplateError, match="reads one question"):  # what it would leave out is refused
            tokenizer.apply_chat_template([*more, {"role": "user", "content": QUESTIONS[0]}], tokenize=False)
    out_BT = model.generate(**inputs, max_new_tokens=7)
    assert reasoner.codec.texts(out_BT[:, inputs.input_ids.shape[1] :]) == want


def folder_of(kind: str, tmp_path):
    """A folder of LatentTTS, the model and its tokenizer, its MLP or head, and the ids of prompts."""
    family = "llama" if kind == "ColarLlama" else "gpt2"
    lm, tokenizer = base_of(family, tmp_path / "base")
    names = ["<|latent|>"] if family == "llama" else ["<|start-latent|>", "<|end-latent|>", "<|latent|>"]
    tokenizer.add_tokens(names)
    state, mlp = state_of(grown(lm, len(names))), projection()
    extra = {}
    if kind == "CODIGPT2":
        state |= {f"projector.{n}": x.clone() for n, x in mlp.state_dict().items()}
    if kind == "ColarLlama":
        mean = torch.nn.Linear(D, D)
        layers = {"fc.0": mlp[1], "fc.2": mlp[3], "fc.3": mlp[4], "mean": mean}
        state |= {f"lt_head.{n}.{what}": x.clone() for n, m in layers.items() for what, x in m.state_dict().items()}
        mlp.append(mean)
        extra = {"latent_intermediate_size": D, "latent_embedding_std": 0.25}
    theirs = saved(state, tmp_path / "theirs", "model.safetensors")
    about = json.loads((tmp_path / "base" / "config.json").read_text())
    about |= {"architectures": [kind], "vocab_size": len(tokenizer), **extra}
    (theirs / "config.json").write_text(json.dumps(about))
    tokenizer.save_pretrained(theirs)
    return theirs, lm, tokenizer, mlp.double()


@pytest.mark.parametrize(
    "kind, config", [("COCONUTGPT2", Coconut), ("CODIGPT2", Codi), ("ColarLlama", Colar), ("GPT2LMHeadModel", Coconut)]
)
def test_latenttts(kind, config, tmp_path):
    """By their classes; a plain class is told by the tokenizer."""
    theirs, lm, tokenizer, mlp = folder_of(kind, tmp_path)
    k, plain = 4, [q.rstrip("\n") for q in QUESTIONS]
    convert(str(theirs), tmp_path / "ours", Asked(n_latent=k))
    if config is Colar:
        texts = [f"Question: {q} Let's think step by step:(Thinking speed: 2)###" for q in plain]
        closing = tokenizer.convert_tokens_to_ids("###")
    else:
        texts = [q + ("\n" if config is Coconut else "") + "<|start-latent|>" for q in plain]
        closing = tokenizer.convert_tokens_to_ids("<|end-latent|>")
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def feed(h_BD, logits_BV):
        return h_BD if config is Coconut else mlp(h_BD) * (0.25 if config is Colar else 1)

    reasoner = compare(tmp_path / "ours", prompts, lambda ids: answered(lm, ids, k, closing, feed))
    assert isinstance(reasoner.method.made_from, config)


@pytest.mark.parametrize("known", [True, False])
def test_a_plain_model_thinks_in_mixtures(known, tmp_path):
    """With Latent-SFT's tokens, which it was trained with, or a new think token like a line break; in two shards."""
    lm, tokenizer = base_of("llama", tmp_path / "base")
    if known:
        tokenizer.add_tokens(["<think>", "</think>"])
        grown(lm, 2)
    theirs = tmp_path / "theirs"
    lm.float().save_pretrained(theirs, max_shard_size="10KB")
    tokenizer.save_pretrained(theirs)
    assert len([*theirs.glob("*.safetensors")]) > 1
    convert(str(theirs), tmp_path / "ours", Asked(n_latent=5, top_k=3))
    lm.double()
    reasoner = latent.load(tmp_path / "ours")
    assert reasoner.method.made_from == Soft(n_latent=5, top_k=3, closing=known)
    if not known:
        table, (line_break,) = reasoner.method.backbone.lm.get_input_embeddings().weight, reasoner.codec.step("\n")
        assert torch.equal(table[reasoner.codec.think], table[line_break])
        return

    def mixture(h_BD, logits_BV):
        top = sorted(range(logits_BV.shape[1]), key=lambda v: -logits_BV[0, v])[:3]
        p_3 = (logits_BV[0, top] - logits_BV[0].max()).exp()
        return (p_3 / p_3.sum()) @ lm.get_input_embeddings().weight[top][None]

    think, close = (tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    prompts = [[*tokenizer(q)["input_ids"], think] for q in QUESTIONS]
    compare(tmp_path / "ours", prompts, lambda ids: answered(lm, ids, 5, close, mixture))


def test_a_converted_coconut_stands_at_the_end_of_its_curriculum(tmp_path):
    """And is closed by the embedding of <|end-latent|>, to the bit."""
    lm, _ = base_of("gpt2", tmp_path / "base")
    theirs = saved(state_of(grown(lm, 3), "base_causallm."), tmp_path / "theirs")
    convert(str(theirs), tmp_path / "ours", Asked(base=str(tmp_path / "base"), n_latent=4, latents_per_step=1))
    reasoner = latent.load(tmp_path / "ours")
    assert reasoner.method.made_from == Coconut(n_latent=4, latents_per_step=1, first_stage=5, closing=True)
    closing = state_of(lm)["lm_head.weight"][-2]
    torch.testing.assert_close(reasoner.method.closing.detach(), closing, rtol=0, atol=0)
