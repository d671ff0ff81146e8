"""The backbone of a foreign checkpoint: its config and tokenizer, and a model filled with its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from kernels.errors import UserError, first_line, mendable, said
from latent import make
from latent.backbone import Backbone
from latent.codec import PAD, THINK
from latent.convert import Asked
from latent.convert.source import Source
from latent.make import check_finite

_CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # in state dicts of older releases
_EMBEDDINGS, _HEAD = ("wte.weight", "embed_tokens.weight"), "lm_head.weight"  # of GPT-2, and of Llama and its kin
ONE_QUESTION = (
    "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
    "{{ raise_exception('this checkpoint reads one question: no system text, no earlier turns') }}{% endif %}"
)
"""How every chat template of `retold` begins: what else a chat has would be left out of the prompt."""
ANSWER_MARK = "###"  # what the verifiers look for before an answer


@dataclass
class Parts:
    """The backbone that a checkpoint was made from: its config, its tokenizer, and what to call it."""

    config: Any
    tokenizer: Any
    name: str


def parts_of(source: Source, asked: Asked) -> Parts:
    """Config and tokenizer: those of --base where it is given, else the checkpoint's own. Raises UserError for none."""
    if asked.base is not None:
        name = asked.base
    elif "model_type" not in source.about:
        lacks = "a config.json that names no model_type" if source.about else "no config.json"
        raise UserError(f"{source.place} has {lacks}: name the backbone that was trained by --base (such as gpt2)")
    else:
        name = str(source.folder)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as e:  # transformers raises anything for missing or damaged files
        raise UserError(f"no config and tokenizer of a backbone can be read from {name!r}: {first_line(e)}") from None
    return Parts(config, tokenizer, name)


def filled(parts: Parts, weights: dict[str, Tensor], source: Source) -> Backbone:
    """The backbone with these weights, by the names of its family, in fp32.

    The vocabulary is as large as the embeddings. Where embeddings and head are tied one of them may be missing, as
    safetensors leaves one out; a head that differs from the embeddings is a head of its own. Raises UserError for
    weights that are missing, without a place, of another shape, or not finite.
    """
    weights = {name: x for name, x in weights.items() if not name.endswith(_CONSTANTS)}
    table = next((x for name, x in weights.items() if name.endswith(_EMBEDDINGS)), None)
    head = weights.get(_HEAD)
    rows = head if table is None else table
    if rows is None:
        raise UserError(f"{source.place} has no embeddings among its weights: {some(weights)}")
    config = parts.config
    config.vocab_size, config.dtype = len(rows), torch.float32
    if table is not None and head is not None and not torch.equal(head, table):
        config.tie_word_embeddings = False
    try:
        body = make.from_config(config)
    except Exception as e:  # transformers raises errors of many types
        if mendable(e) is not None:
            raise
        raise UserError(f"{source.place}: no model can be made of its config: {said(e)}") from e
    if body.lm.get_output_embeddings().weight is body.lm.get_input_embeddings().weight:
        place = next(name for name in body.lm.state_dict() if name.endswith(_EMBEDDINGS))
        weights = {**weights, place: rows, _HEAD: rows}
    put(body.lm, weights, source)
    check_finite(body.lm, str(source.place))
    return body


def put(module: nn.Module, weights: dict[str, Tensor], source: Source) -> None:
    """Copy weights into a module by name. Raises UserError for missing ones, strange ones, and other shapes."""
    there = module.state_dict()
    missing = [name for name in there if name not in weights]
    if missing:
        raise UserError(f"{source.place} lacks weights: {some(missing)}")
    strange = [name for name in weights if name not in there]
    if strange:
        raise UserError(f"{source.place} has weights without a place in a {type(module).__name__}: {some(strange)}")
    for name, x in weights.items():
        if x.shape != there[name].shape:
            raise UserError(
                f"{source.place}: {name} has shape {tuple(x.shape)}, the config asks for {tuple(there[name].shape)}"
            )
        there[name].copy_(x)


def merged(weights: dict[str, Tensor], alpha: float, transposed: bool, source: Source) -> dict[str, Tensor]:
    """Weights with LoRA adapters, as peft names them, merged: W + alpha / rank B A (arXiv:2106.09685, eq. 3).

    `transposed`: W is (in, out), as GPT-2's are. Raises UserError for half of an adapter, or one without a weight.
    """
    out = {n.replace(".base_layer.", "."): x for n, x in weights.items() if ".lora_" not in n}
    for name, a_RI in weights.items():
        stem, lora, rest = name.partition(".lora_A.")
        if not lora:
            continue
        b_OR = weights.get(f"{stem}.lora_B.{rest}")
        if b_OR is None or f"{stem}.weight" not in out or b_OR.shape[1] != len(a_RI):
            raise UserError(f"{source.place} has an adapter without its counterpart or its weight: {name}")
        change = alpha / len(a_RI) * (b_OR.float() @ a_RI.float())
        base = out[f"{stem}.weight"]
        if base.shape != (change.T if transposed else change).shape:
            raise UserError(f"{source.place}: the adapter {name} does not fit {tuple(base.shape)}, its weight's shape")
        out[f"{stem}.weight"] = base.float() + (change.T if transposed else change)
    strange = [n for n in weights if ".lora_" in n and ".lora_A." not in n and ".lora_B." not in n]
    if strange:
        raise UserError(f"{source.place} has adapters of another kind: {some(strange)}")
    return out


def retold(tokenizer, names: dict[int, str], template: str | None = None, mark: str | None = None):
    """A tokenizer whose ids have other names, as control tokens: a fast one with the same ids for all other text.

    `names`: by id; ids beyond the vocabulary are added. `template`: a chat template, which makes a prompt of a
    question. `mark`: words that the model marks its answer with; they decode to ###, which the verifiers know.
    """
    from tokenizers import Tokenizer

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {each["id"]: each for each in raw["added_tokens"]}
    size = len(tokenizer)
    for i in range(size, max(names) + 1):
        names = {i: f"<unused{i}>", **names}
    kind = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for i, name in sorted(names.items()):
        if i < size and i not in added:  # a word of the vocabulary
            _rename(raw["model"], tokenizer.convert_ids_to_tokens(i), name)
        added[i] = {"id": i, "content": name, **kind}
    raw["added_tokens"] = [added[i] for i in sorted(added)]
    if mark is not None:
        words = {"type": "Replace", "pattern": {"String": mark}, "content": ANSWER_MARK}
        raw["decoder"] = {"type": "Sequence", "decoders": [raw["decoder"], words]}
    specials = {n: getattr(tokenizer, n) for n in ("bos_token", "eos_token", "unk_token") if getattr(tokenizer, n)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), **specials)
    if PAD in names.values():
        fast.pad_token = PAD
    fast.chat_template = None if template is None else ONE_QUESTION + template
    for i, name in names.items():
        assert fast.convert_tokens_to_ids(name) == i, f"{name} got another id than {i}"
    return fast


def _rename(model: dict, old: str, new: str) -> None:
    """Rename a word of a BPE vocabulary, and forget the merges that make it or go on from it."""
    model["vocab"][new] = model["vocab"].pop(old)

    def touches(merge: str | list[str]) -> bool:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        return old in (*pair, "".join(pair))

    model["merges"] = [merge for merge in model["merges"] if not touches(merge)]


def check_no_think_token(parts: Parts) -> None:
    """Raise UserError for a tokenizer that has our think token already, where another one becomes it."""
    if THINK in parts.tokenizer.get_vocab():
        raise UserError(f"the tokenizer of {parts.name} has {THINK} already: it is no backbone of this layout")


def check_names(source: Source, whose: str, begin: tuple[str, ...], whole: tuple[str, ...] = ()) -> None:
    """Raise UserError for weights that a checkpoint of `whose` has not: its names are `whole`, or begin as `begin`."""
    strange = [name for name in source.names if name not in whole and not name.startswith(begin)]
    if strange:
        raise UserError(f"{source.place} has weights that {whose} has not: {some(sorted(strange))}")


def some(names) -> str:
    """The first names of many."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
