"""A GGUF file becomes the model that it was made from; the rows of Q and K stand in another order in it."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent.convert import Asked, convert
from latent.convert.__main__ import main
from tests.latent.published import QUESTIONS, base_of

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which llama.cpp rotates them: pairs side by side."""
    return x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


def written(lm, tokenizer, file, pre=None):
    """A tiny Llama as llama.cpp's converter writes it, in fp32."""
    c, state = lm.config, {n: x.float().numpy() for n, x in lm.state_dict().items()}
    out = gguf.GGUFWriter(file, "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(c.vocab_size)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = [" ".join(pair) for pair in merges_of(tokenizer)]
    out.add_tokenizer_model("gpt2")
    if pre is not None:
        out.add_tokenizer_pre(pre)
    out.add_token_list(words)
    out.add_token_types([3, 3] + [1] * (len(words) - 2))
    out.add_token_merges(merges)
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_unk_token_id(0)
    out.add_add_bos_token(False)
    out.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    out.add_tensor("output_norm.weight", state["model.norm.weight"])
    for i in range(c.num_hidden_layers):
        for theirs, named in NAMES.items():
            x = state[f"model.layers.{i}.{theirs}.weight"]
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(named)
            out.add_tensor(f"blk.{i}.{named}.weight", x if heads is None else interleaved(x, heads))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def merges_of(tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


def test_it_becomes_the_model_that_it_was_made_from(tmp_path):
    lm, tokenizer = base_of("llama", tmp_path / "base")
    written(lm, tokenizer, tmp_path / "tiny.gguf")
    convert(str(tmp_path / "tiny.gguf"), tmp_path / "ours", Asked())
    ours, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
        AutoTokenizer.from_pretrained(tmp_path / "ours"),
    )
    for question in QUESTIONS:
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        assert again(question)["input_ids"] == ids and again.decode(ids) == question
        with torch.no_grad():
            got, want = ours.double()(torch.tensor([ids])).logits, lm(torch.tensor([ids])).logits
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_digits_of_smollm_stand_alone(tmp_path):
    """As llama.cpp splits for it: white space before a digit stays whole."""
    lm, tokenizer = base_of("llama", tmp_path / "base")
    written(lm, tokenizer, tmp_path / "tiny.gguf", pre="smollm")
    convert(str(tmp_path / "tiny.gguf"), tmp_path / "ours", Asked())
    again = AutoTokenizer.from_pretrained(tmp_path / "ours").backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in again.pre_tokenize_str("it is  34, no")] == ["it", "Ġis", "ĠĠ", "3", "4", ",", "Ġno"]


def test_a_file_that_is_cut_short_is_one_line(tmp_path, capsys):
    lm, tokenizer = base_of("llama", tmp_path / "base")
    written(lm, tokenizer, tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert main([str(tmp_path / "cut.gguf"), "--out", str(tmp_path / "ours")]) == 2
    err = capsys.readouterr().err
    assert "cut.gguf cannot be read as a causal LM in GGUF" in err and err.count("\n") == 1
    assert not (tmp_path / "ours").exists()
