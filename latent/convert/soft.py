"""A plain Hugging Face folder that is to think in mixtures of tokens: Soft Thinking, which trains nothing
(arXiv:2505.15778), and Latent-SFT, whose trained models are saved as plain ones (arXiv:2510.15522).

The prompt ends in <think>, and </think> follows the latents, where the tokenizer has them as single tokens, as that of
Latent-SFT's models has. Elsewhere the think token is a new one with the embedding of a line break, and no token follows
the latents.
"""

from __future__ import annotations

from functools import partial

import torch

from kernels.errors import UserError
from latent import hub, methods
from latent.codec import THINK, Codec
from latent.convert import Asked, Converted
from latent.convert.coconut import assembled, check_room, title_of
from latent.convert.pretrained import filled, parts_of
from latent.convert.source import Source
from latent.generate import Reasoner
from latent.methods import Soft

ANSWER_TOKENS = 512  # unless that is more than half of the model's positions
END = "</think>"
TAKES = ("base", "n_latent", "top_k", "answer_tokens")


def matches(source: Source) -> bool:
    classes = source.about.get("architectures")
    return isinstance(classes, list) and all(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in classes)


def read(source: Source, asked: Asked) -> Converted:
    parts = parts_of(source, asked)
    body = filled(parts, source.tensors, source)
    tokenizer, vocab = parts.tokenizer, parts.tokenizer.get_vocab()
    k = 32 if asked.n_latent is None else asked.n_latent
    longest = asked.answer_tokens or min(ANSWER_TOKENS, body.positions // 2)
    chat = bool(tokenizer.chat_template)
    if chat:
        turn = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
        )
        if turn.rstrip().endswith(THINK):
            raise UserError(f"the chat template of {parts.name} ends in {THINK}, which we write: take it out of there")
    notes = [f"{k} latents, mixtures of {asked.top_k} tokens; their models think until they say {END}"]
    known = THINK in vocab and END in vocab
    config = Soft(n_latent=k, top_k=asked.top_k, closing=known)
    codec = Codec(tokenizer, chat=chat)
    body.make_room(codec.size)
    if known:
        reasoner = assembled(config, body, tokenizer, vocab[END], longest, chat)
    else:
        check_room(config, body)
        if THINK not in vocab:
            line_break = codec.step("\n")
            if not line_break:
                raise UserError(f"the tokenizer of {parts.name} has no token for a line break, which {THINK} begins as")
            with torch.no_grad():
                table = body.lm.get_input_embeddings().weight
                table[codec.think] = table[line_break[-1]]
        reasoner = Reasoner(methods.build(config, body).eval(), codec, longest, 0, 1)
        new = "" if THINK in vocab else f" and no {THINK}, so that the prompt ends in a new token like a line break"
        notes.append(f"the tokenizer has no {END}, so that nothing follows the latents{new}")
    return Converted(title_of(reasoner), partial(hub.save, reasoner), notes)
