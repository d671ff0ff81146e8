"""CODI's state dict (github.com/zhenyi4/codi): the causal LM under `codi.`, with LoRA adapters, and the MLP `prj.`.

SIM-CoT's of the same kind (github.com/InternLM/SIM-CoT, CODI/) has its decoder beside it, under `decoder.` and `pj_`.
Three tokens follow the backbone's vocabulary: padding, the begin of thought that ends a prompt, and the end of thought
that follows the latents. The answer is written as "The answer is: 42".
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kernels.errors import UserError
from latent import hub
from latent.codec import PAD, THINK
from latent.convert import Asked, Converted
from latent.convert.coconut import ANSWER_TOKENS, assembled, title_of
from latent.convert.pretrained import (
    check_names,
    check_no_think_token,
    filled,
    merged,
    parts_of,
    put,
    retold,
)
from latent.convert.source import Source
from latent.generate import Reasoner
from latent.methods import Codi
from latent.methods.feedback import Feedback
from latent.methods.sequence import AlongSequence

PROMPT = "{{ messages[0]['content'] | trim | replace('  ', ' ') }}"  # as their evaluation cleans a question
MARK = "The answer is:"
TAKES = ("base", "n_latent", "lora_alpha", "answer_tokens")
_LM, _PROJECTION, _DECODER = "codi.", "prj.", ("decoder.", "pj_in.", "pj_out.")
_PEFT = "base_model.model."

PUBLISHED = {
    "gpt2": ["CODI, GPT-2: GSM8K 43.7 (arXiv:2502.21074)"],
    "llama": ["CODI, Llama 3.2 1B: GSM8K-Aug 52.7, as SIM-CoT's authors ran it (arXiv:2509.20317)"],
}
PUBLISHED_SIM = {
    "gpt2": ["SIM-CoT on CODI, GPT-2: GSM8K-Aug 42.6, GSM-Hard 9.4, MultiArith 92.8, SVAMP 42.6 (arXiv:2509.20317)"],
    "llama": [
        "SIM-CoT on CODI, Llama 3.2 1B: GSM8K-Aug 56.1, GSM-Hard 12.7, MultiArith 96.2, SVAMP 61.5 (arXiv:2509.20317)"
    ],
}


def matches(source: Source) -> bool:
    return any(name.startswith(_LM) for name in source.names)


def read(source: Source, asked: Asked) -> Converted:
    parts = parts_of(source, asked)
    check_no_think_token(parts)
    check_names(source, "CODI", (_LM, _PROJECTION, *_DECODER))
    first = parts.config.vocab_size
    weights = {n.removeprefix(_LM).removeprefix(_PEFT): x for n, x in source.tensors.items() if n.startswith(_LM)}
    adapted = any(".lora_" in n for n in weights)
    weights = merged(weights, asked.lora_alpha, parts.config.model_type == "gpt2", source)
    body = filled(parts, weights, source)
    if body.vocab != first + 3:
        raise UserError(
            f"{source.place} has {body.vocab} rows of embeddings, where the backbone {parts.name} and CODI's three "
            f"tokens make {first + 3}"
        )
    tokenizer = retold(parts.tokenizer, {first: PAD, first + 1: THINK, first + 2: "<eot>"}, template=PROMPT, mark=MARK)
    k = 6 if asked.n_latent is None else asked.n_latent
    projection = {n.removeprefix(_PROJECTION): x for n, x in source.tensors.items() if n.startswith(_PROJECTION)}
    config = Codi(n_latent=k, feedback="project" if projection else "hidden", closing=True)
    reasoner = assembled(config, body, tokenizer, first + 2, asked.answer_tokens or ANSWER_TOKENS)
    project(reasoner, projection, source)
    notes = [f"{k} latents: the state dict does not say how many it was trained with (--n-latent)"]
    if adapted:
        notes.append(f"adapters are merged, at alpha {asked.lora_alpha:g}, which their scripts have (--lora-alpha)")
    sim = any(n.startswith(_DECODER) for n in source.names)
    if sim:
        notes.append("SIM-CoT's decoder is for training only, and is left out")
    notes.append(f'"{MARK} 42" decodes to "### 42", which our verifiers read')
    notes.append("their evaluation is in bfloat16, and lets batched rows see padding; ours is in fp32, and does not")
    published = (PUBLISHED_SIM if sim else PUBLISHED).get(parts.config.model_type, [])
    return Converted(title_of(reasoner), partial(hub.save, reasoner), notes, published)


def project(reasoner: Reasoner, weights: dict[str, Tensor], source: Source) -> None:
    """Copy a projection, Dropout, Linear, GELU, Linear and LayerNorm, into that of a method.

    Raises UserError for one of another width, or without the LayerNorm.
    """
    if not weights:
        return
    method = reasoner.method
    assert isinstance(method, AlongSequence) and isinstance(method.feedback, Feedback)
    places = {"1": "0", "3": "2", "ln": "3", "4": "3"}  # of the same layers in ours, which has no dropout
    named = {}
    for name, x in weights.items():
        layer, _, kind = name.partition(".")
        named[f"{places.get(layer, layer)}.{kind}"] = x
    put(method.feedback.mlp, named, source)
