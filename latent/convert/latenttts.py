"""LatentTTS's folders (github.com/ModalityDance/LatentTTS, arXiv:2510.07745): GPT-2's Coconut and CODI, Llama's CoLaR.

They are Hugging Face folders of classes of theirs: COCONUTGPT2; CODIGPT2, with its MLP under `projector.`; ColarLlama,
with its head under `lt_head.`. Their tokenizers have <|start-latent|>, <|end-latent|> and <|latent|>; CoLaR ends prompt
and thoughts with ###.
"""

from __future__ import annotations

from functools import partial

import torch

from kernels.errors import UserError
from latent import hub
from latent.codec import PAD, THINK
from latent.convert import Asked, Converted
from latent.convert.coconut import ANSWER_TOKENS, LINE_BREAK, assembled, coconut, title_of
from latent.convert.codi import MARK, project
from latent.convert.pretrained import Parts, filled, parts_of, put, retold
from latent.convert.source import Source
from latent.methods import Codi, Colar
from latent.methods.colar.method import ColarMethod
from latent.policies import Deterministic

AS_IT_IS = r"{{ messages[0]['content'].rstrip('\n') }}"
SPEED = 2  # tokens of a chain that a latent stands for, as their prompt tells the model
STEP_BY_STEP = rf"Question: {AS_IT_IS} Let's think step by step:(Thinking speed: {SPEED})"
PUBLISHED = [
    "the paper's figures are of many samples (arXiv:2510.07745); for one greedy answer expect those of the method: "
    "Coconut GPT-2 34.1 (arXiv:2412.06769), CODI GPT-2 43.7 (arXiv:2502.21074) on GSM8K"
]
TAKES = ("base", "n_latent", "latents_per_step", "answer_tokens")
_CLASSES = {"COCONUTGPT2": "coconut", "CODIGPT2": "codi", "ColarLlama": "colar"}
_PROJECTION, _HEAD = "projector.", "lt_head."


def matches(source: Source) -> bool:
    return kind_of(source) is not None


def kind_of(source: Source) -> str | None:
    """The method of a folder, told by its class, its weights, or its tokenizer; None for one that is not theirs."""
    said = source.about.get("architectures")
    named = [_CLASSES[name] for name in said if name in _CLASSES] if isinstance(said, list) else []
    if named or not source.about:
        return named[0] if named else None
    for prefix, kind in ((_HEAD, "colar"), (_PROJECTION, "codi")):
        if any(name.startswith(prefix) for name in source.names):
            return kind
    tokenizer = source.folder / "tokenizer.json"
    return "coconut" if tokenizer.exists() and b"<|start-latent|>" in tokenizer.read_bytes() else None


def read(source: Source, asked: Asked) -> Converted:
    parts, kind = parts_of(source, asked), kind_of(source)
    if kind == "colar":
        return _colar(source, asked, parts)
    weights = {n: x for n, x in source.tensors.items() if not n.startswith(_PROJECTION)}
    body = filled(parts, weights, source)
    start, end, latent = (_id_of(parts, f"<|{name}|>") for name in ("start-latent", "end-latent", "latent"))
    k = 6 if asked.n_latent is None else asked.n_latent
    longest = asked.answer_tokens or ANSWER_TOKENS
    projection = {n.removeprefix(_PROJECTION): x for n, x in source.tensors.items() if n not in weights}
    names = {start: THINK, end: "<|end-latent|>", latent: PAD}
    if kind == "codi":
        tokenizer = retold(parts.tokenizer, names, template=AS_IT_IS, mark=MARK)
        config = Codi(n_latent=k, feedback="project" if projection else "hidden", closing=True)
        reasoner = assembled(config, body, tokenizer, end, longest)
        project(reasoner, projection, source)
        notes = [f'"{MARK} 42" decodes to "### 42", which our verifiers read']
    else:
        if projection:
            raise UserError(f"{source.place} is of class COCONUTGPT2, which has no projector.")
        tokenizer = retold(parts.tokenizer, names, template=LINE_BREAK)
        reasoner, notes = assembled(coconut(k, asked), body, tokenizer, end, longest), []
    return Converted(title_of(reasoner), partial(hub.save, reasoner), notes, PUBLISHED)


def _id_of(parts: Parts, token: str) -> int:
    found = parts.tokenizer.get_vocab().get(token)
    if found is None:
        raise UserError(f"the tokenizer of {parts.name} has no {token}")
    return found


def _colar(source: Source, asked: Asked, parts: Parts) -> Converted:
    """CoLaR thinks until the LM head says ###; here it thinks as many latents as it is told."""
    if asked.n_latent is None:
        raise UserError(
            f"{source.place} is CoLaR's, which thinks until it says ###: say how many latents by --n-latent"
        )
    about, longest = source.about, asked.answer_tokens or ANSWER_TOKENS
    weights = {n: x for n, x in source.tensors.items() if not n.startswith(_HEAD)}
    body = filled(parts, weights, source)
    if about.get("latent_intermediate_size", 2048) != body.width:
        raise UserError(
            f"{source.place} has a latent head of width {about.get('latent_intermediate_size')}, ours has the model's, "
            f"{body.width}"
        )
    end = _id_of(parts, "###")
    ids = parts.tokenizer("speed: 2)###", add_special_tokens=False)["input_ids"]
    if ids[-1] != end or ids[:-1] != parts.tokenizer("speed: 2)", add_special_tokens=False)["input_ids"]:
        raise UserError(f"the tokenizer of {parts.name} does not keep ### apart at a prompt's end")
    names = {end: THINK, _id_of(parts, "<|latent|>"): PAD}
    tokenizer = retold(parts.tokenizer, names, template=STEP_BY_STEP, mark="Answer:")
    tokenizer.backend_tokenizer.post_processor = None  # they put no BOS before a prompt
    config = Colar(n_latent=asked.n_latent, r=SPEED, policy=Deterministic(), latent_loss="mse", closing=True)
    reasoner = assembled(config, body, tokenizer, end, longest)
    method = reasoner.method
    assert isinstance(method, ColarMethod)
    ours = {"fc.0": "0", "fc.2": "2", "fc.3": "3", "mean": "4"}
    theirs = {n.removeprefix(_HEAD): x for n, x in source.tensors.items() if n.startswith(_HEAD)}
    placed = {}
    for name, x in theirs.items():
        layer, _, what = name.rpartition(".")
        placed[f"{ours.get(layer, layer)}.{what}"] = x
    put(method.head.mlp, placed, source)
    with torch.no_grad():
        method.head.scale.fill_(about.get("latent_embedding_std", 0.018))
    notes = [
        f"thinks {asked.n_latent} latents, where theirs thinks until it says ###, at most 64",
        f'told "Thinking speed: {SPEED}" in the prompt, as their scripts do, whatever the number of latents',
        '"Answer:42" decodes to "###42", which our verifiers read',
    ]
    return Converted(title_of(reasoner), partial(hub.save, reasoner), notes, [])
