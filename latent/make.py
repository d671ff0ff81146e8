"""How a backbone is made: from scratch, of a Hugging Face config, or pretrained."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels.errors import UserError, mendable, said
from latent.backbone import Backbone
from latent.files import is_ours


def config_from_scratch(config, vocab: int, pad: int, eos: int | None):
    """The Hugging Face config of a `ModelConfig` with `vocab` tokens: untied, ReLU in GPT-2, unless it is `stock`."""
    shared = {
        "vocab_size": vocab,
        "initializer_range": 0.02 if config.stock else config.n_embd**-0.5,  # made for widths of about 1,000
        "tie_word_embeddings": config.stock,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if config.family == "gpt2":
        from transformers import GPT2Config

        return GPT2Config(
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu_new" if config.stock else "relu",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            **shared,
        )
    if config.family not in ("llama", "qwen3"):
        raise UserError(f"model.family must be gpt2, llama or qwen3, got {config.family!r}")
    from transformers import LlamaConfig, Qwen3Config

    return (LlamaConfig if config.family == "llama" else Qwen3Config)(
        hidden_size=config.n_embd,
        intermediate_size=config.n_embd * 8 // 3,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        max_position_embeddings=config.n_positions,
        **shared,
    )


def from_config(config) -> Backbone:
    """An untrained backbone of a Hugging Face config, initialised as its family is."""
    from transformers import AutoModelForCausalLM

    return Backbone(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def from_scratch(config, vocab: int, pad: int, eos: int | None) -> Backbone:
    """A randomly initialised backbone of `config` (a `ModelConfig`) with `vocab` tokens, seeded by torch's generator.

    Its settings are what small models on fresh data train fastest with on a CPU.
    """
    body = from_config(config_from_scratch(config, vocab, pad, eos))
    for module in () if config.stock else body.lm.modules():
        if isinstance(module, nn.Embedding):  # at the scale of the normed states that thoughts feed back among them:
            nn.init.normal_(module.weight)  # with 0.1 instead of 1 cups takes more than twice the updates
    return body


def check_finite(model: nn.Module, name: str) -> None:
    """Raise UserError, naming the tensor, for weights that are not finite: every answer would be noise."""
    for key, p in model.named_parameters():
        if p.is_floating_point() and not p.is_meta and not bool(p.isfinite().all()):
            raise UserError(f"{name} has weights that are not finite: {key}")


def from_pretrained(name: str) -> tuple[Backbone, object]:
    """A pretrained causal LM in fp32 and its tokenizer, by hub name or directory.

    Raises UserError for what is neither, for weights that are missing or not finite, and for a tokenizer of more ids
    than the model has.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise UserError(f"{name!r} has no config.json: it is no folder of a causal LM")
    if is_ours(Path(name)):
        raise UserError(f"{name!r} is a run or a saved reasoner of ours, no plain causal LM: --init goes on from one")
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of a page: what it says is in `info`
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        lm, info = loaded
    except Exception as e:  # transformers, tokenizers and safetensors raise errors of many types
        if mendable(e) is not None:
            raise
        raise UserError(f"cannot load a causal LM from {name!r}: {said(e)}") from e
    finally:
        logging.set_verbosity(loud)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"{name!r} lacks weights of a {type(lm).__name__}: {', '.join(missing[:3])} ...")
    check_finite(lm, repr(name))
    rows = lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up where there are no files of one
        raise UserError(f"{name!r} has no tokenizer")
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {name!r} has {len(tokenizer)} ids, the model {rows}: not of one make")
    return Backbone(lm), tokenizer
