"""Coconut's state dict (github.com/facebookresearch/coconut): the causal LM under `base_causallm.`.

SIM-CoT's of the same kind (github.com/InternLM/SIM-CoT, Coconut/) has its decoder beside it, under `expainable_llm.`.
A prompt is the question, a line break and <|start-latent|>; <|end-latent|> follows the latents. Both tokens, and
<|latent|>, are the last three rows of the embedding.
"""

from __future__ import annotations

from functools import partial

import torch

from kernels.errors import UserError
from latent import hub, methods
from latent.backbone import Backbone
from latent.codec import PAD, THINK, Codec
from latent.convert import Asked, Converted
from latent.convert.pretrained import check_names, check_no_think_token, filled, parts_of, retold
from latent.convert.source import Source
from latent.generate import Reasoner
from latent.methods import Coconut, SequenceConfig, Sim
from latent.methods.sequence import AlongSequence

LINE_BREAK = r"{{ messages[0]['content'].rstrip('\n') + '\n' }}"
"""The prompt of a question: our problems may end in a line break, theirs get one."""
ANSWER_TOKENS = 64  # max_new_tokens of their GSM8K evaluation; the text ends by itself long before
TAKES = ("base", "n_latent", "latents_per_step", "answer_tokens")
_LM, _DECODER = "base_causallm.", "expainable_llm."  # spelt so

PUBLISHED = [
    "Coconut, GPT-2: GSM8K 34.1, ProntoQA 99.8, ProsQA 97.0 (arXiv:2412.06769)",
]
PUBLISHED_SIM = {
    "gpt2": ["SIM-CoT on Coconut, GPT-2: GSM8K-Aug 44.8, GSM-Hard 9.3, MultiArith 90.8, SVAMP 40.7 (arXiv:2509.20317)"],
    "llama": [
        "SIM-CoT on Coconut, Llama 3.2 1B: GSM8K-Aug 42.2, GSM-Hard 9.3, MultiArith 87.7, SVAMP 43.9 (arXiv:2509.20317)"
    ],
}


def matches(source: Source) -> bool:
    return any(name.startswith(_LM) for name in source.names)


def read(source: Source, asked: Asked) -> Converted:
    parts = parts_of(source, asked)
    check_no_think_token(parts)
    sim = any(name.startswith(_DECODER) for name in source.names)
    weights = {n.removeprefix(_LM): x for n, x in source.tensors.items() if n.startswith(_LM)}
    check_names(source, "Coconut", (_LM, _DECODER), ("embedding.weight",))
    body = filled(parts, weights, source)
    vocab = parts.tokenizer.get_vocab()
    start = vocab.get("<|start-latent|>", len(parts.tokenizer))
    if body.vocab != start + 3:
        raise UserError(
            f"{source.place} has {body.vocab} rows of embeddings, where the tokenizer of {parts.name} and Coconut's "
            f"three tokens make {start + 3}"
        )
    tokenizer = retold(
        parts.tokenizer, {start: THINK, start + 1: "<|end-latent|>", start + 2: PAD}, template=LINE_BREAK
    )
    config: SequenceConfig
    if sim:
        k = 10 if asked.n_latent is None else asked.n_latent
        config = Sim(n_latent=k, told="answer", closing=True)
    else:
        k = 6 if asked.n_latent is None else asked.n_latent
        config = coconut(k, asked)
    reasoner = assembled(config, body, tokenizer, start + 1, asked.answer_tokens or ANSWER_TOKENS)
    notes = [f"{k} latents: the state dict does not say how many it was trained with (--n-latent)"]
    if sim:
        notes.append("SIM-CoT's decoder is for training only, and is left out: `told answer`")
    published = PUBLISHED_SIM.get(parts.config.model_type, []) if sim else PUBLISHED
    return Converted(title_of(reasoner), partial(hub.save, reasoner), notes, published)


def coconut(k: int, asked: Asked) -> Coconut:
    """Coconut after its curriculum, k latents."""
    c = asked.latents_per_step or (1 if k % 2 else 2)
    if k % c:
        raise UserError(f"--latents-per-step {c} does not divide the {k} latents")
    return Coconut(n_latent=k, latents_per_step=c, first_stage=k // c + 1, closing=True)


def assembled(
    config: SequenceConfig, body: Backbone, tokenizer, closing: int, answer_tokens: int, chat: bool = True
) -> Reasoner:
    """A reasoner of a method whose thoughts are closed by a token's embedding."""
    check_room(config, body)
    method = methods.build(config, body)
    assert isinstance(method, AlongSequence) and method.closing is not None
    with torch.no_grad():
        method.closing.copy_(body.embed(torch.tensor(closing)))
    codec = Codec(tokenizer, chat=chat)
    assert codec.size <= body.vocab, "a token has no embedding"
    return Reasoner(method.eval(), codec, answer_tokens, 0, 1)


def check_room(config: SequenceConfig, body: Backbone) -> None:
    """Raise UserError where latents leave no position for a prompt and a text."""
    if config.stride * config.n_latent + config.closing + 2 > body.positions:
        raise UserError(
            f"--n-latent {config.n_latent} leaves no room for text: the backbone has {body.positions} positions"
        )


def title_of(reasoner: Reasoner) -> str:
    """One line on what was made."""
    n = sum(p.numel() for p in reasoner.method.parameters())
    return f"{reasoner.method.title}, {reasoner.method.trained_steps} latents, {n / 1e6:.4g} M parameters"
