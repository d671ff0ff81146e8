"""Save and load a reasoner as one folder that is also a Hugging Face checkpoint.

config.json, model.safetensors, generation_config.json, the tokenizer, and modeling_latent.py, which opens it without
this package.
"""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing

from kernels.errors import UserError
from latent.files import named, read_json
from latent.generate import Reasoner
from latent.plain import plain
from latent.text import LATENT, PAD, THINK, Codec


def face(reasoner: Reasoner):
    """A reasoner as a `LatentForCausalLM`, weights shared."""
    from transformers import GenerationConfig

    from latent.hf import LatentForCausalLM
    from latent.hf_config import LatentConfig

    method, codec = reasoner.method, reasoner.codec
    backbone = method.backbone.lm.config.to_dict()
    config = LatentConfig(
        backbone=backbone,
        method=plain(method.made_from),
        latent_id=codec.name_latent(),
        closing_id=codec.name_end(),
        think_id=codec.think,
        fixed_answer=codec.fixed_answer,
        chat=codec.chat,
        answer_tokens=reasoner.answer_tokens,
        chain_tokens=reasoner.chain_tokens,
        chain_steps=reasoner.chain_steps,
        vocabulary=vocabulary(codec.tokenizer),
        vocab_size=max(method.backbone.vocab, codec.name_latent() + 1),  # as wide as the logits
        pad_token_id=codec.pad,
        eos_token_id=codec.end,
        bos_token_id=codec.begin[0] if codec.begin else None,
    )
    model = LatentForCausalLM(config, method).eval()
    model.generation_config = GenerationConfig(
        max_new_tokens=reasoner.max_tokens, do_sample=False, pad_token_id=codec.pad, eos_token_id=codec.end
    )
    return model


def save(reasoner: Reasoner, folder: Path) -> None:
    """Write a reasoner into `folder`, which is made."""
    from safetensors import SafetensorError

    was_training = reasoner.method.training
    with quiet(), named(folder):
        try:
            face(reasoner).save_pretrained(folder)
        except SafetensorError as e:  # which does not name the folder of a full disk
            raise OSError(f"cannot write the weights into {folder}: {e}") from None
    ready_tokenizer(reasoner.codec).save_pretrained(folder)
    reasoner.method.train(was_training)


def ready_tokenizer(codec: Codec):
    """The codec's tokenizer as other tools need it, which then make the same ids of a text."""
    tokenizer = codec.tokenizer
    codec.name_latent()
    codec.name_end()
    as_the_codec(tokenizer, codec)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    if codec.end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(codec.end)
    else:  # tools ask for a first token too: here one that is never written
        tokenizer.bos_token = PAD
    return tokenizer


def as_the_codec(tokenizer, codec: Codec) -> None:
    """Let a tokenizer begin a prompt as the codec does, in a chat too, and end it with nothing of its own."""
    names = tokenizer.convert_ids_to_tokens(codec.begin)
    post = TemplateProcessing(single=[*names, "$A"], pair=[*names, "$A", *names, "$B"],
                              special_tokens=list(zip(names, codec.begin)))  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = post if names else None
    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs:
            tokenizer.init_kwargs[name] = name == "add_bos_token" and bool(names)
    if codec.chat and codec.begin:
        turn = [{"role": "user", "content": "a"}]
        said = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        if tuple(said[: len(codec.begin)]) != codec.begin:
            tokenizer.chat_template = "{{ " + repr("".join(names)) + " }}" + tokenizer.chat_template


def find(folder: str | Path) -> Path:
    """The checkpoint in a folder: the folder itself, or that of a run that has finished (`runs/<id>`).

    Raises UserError for anything else, saying what is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    config = folder / "config.json"
    about = read_json(config) if config.exists() else {}  # raises for what is not JSON
    if about.get("class") == "Run":
        if not (folder / "model" / "config.json").exists():
            raise UserError(f"{folder} has no finished model yet: run its command again to go on")
        folder = folder / "model"
        about = read_json(folder / "config.json")
    if about.get("model_type") != "latent" or not isinstance(about.get("backbone"), dict) or not about["backbone"]:
        raise UserError(f"{folder} is not a run or a saved reasoner: it has no config.json of one")
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"{folder} is not a run or a saved reasoner: it has no model.safetensors")
    return folder


def load(folder: str | Path, device: str = "cpu") -> Reasoner:
    """Open a saved reasoner in fp32: a folder written by `save`, or a run that has finished (`runs/<id>`).

    Raises UserError for anything else, saying what is missing.
    """
    from safetensors import SafetensorError

    from latent.hf import LatentForCausalLM

    folder = find(folder)
    with quiet():
        try:
            model = LatentForCausalLM.from_pretrained(folder, dtype=torch.float32)
        except SafetensorError as e:
            raise UserError(f"the weights in {folder} cannot be read: {e}") from None
        except UserError as e:
            raise UserError(f"{folder}: {e}") from None
        except Exception as e:  # a config of other widths than the weights, or spoilt in any of a hundred ways
            what = next(iter(str(e).strip().splitlines()), "")
            raise UserError(f"{folder} cannot be opened: {type(e).__name__}: {what}") from e
    c = model.config
    for name in ("answer_tokens", "chain_tokens", "chain_steps"):
        if type(getattr(c, name)) is not int or not 0 <= getattr(c, name) < 2**31:
            raise UserError(
                f"{folder}/config.json: field {name!r} must be a whole number, got {getattr(c, name)!r:.40}"
            )
    tokenizer = load_tokenizer(folder, c)
    try:
        codec = Codec(tokenizer, c.fixed_answer, c.chat)
    except UserError:
        raise
    except Exception as e:  # of settings that nothing has looked at before
        raise unreadable(folder, e) from e
    return Reasoner(model.method.to(device).eval(), codec, c.answer_tokens, c.chain_tokens, c.chain_steps)


def load_tokenizer(folder: Path, config):
    """The tokenizer of a checkpoint. Raises UserError for a foreign one, in which its special tokens are others."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # whatever transformers and tokenizers raise of files that are missing or spoilt
        raise unreadable(folder, e) from e
    check_tokenizer(folder, tokenizer, config)
    return tokenizer


def unreadable(folder: Path, error: Exception) -> UserError:
    """What to say where a tokenizer's files are spoilt."""
    what = next(iter(str(error).strip().splitlines()), "")
    return UserError(f"{folder} has no tokenizer that can be read: {type(error).__name__}: {what}")


def check_tokenizer(name, tokenizer, config) -> None:
    """Raise UserError for a tokenizer that gives the special tokens other ids than the model was trained with."""
    for token, want in ((THINK, config.think_id), (LATENT, config.latent_id)):
        got = tokenizer.get_vocab().get(token)
        if want is not None and got != want:
            raise UserError(f"{name} has a foreign tokenizer: {token} is {got}, the model was trained with {want}")
    if config.vocabulary is not None and vocabulary(tokenizer) != config.vocabulary:
        raise UserError(f"{name} has a foreign tokenizer: its vocabulary is not the one the model was trained with")


def vocabulary(tokenizer) -> str:
    """Hash of a tokenizer's vocabulary, added tokens included."""
    return blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()


@contextmanager
def quiet():
    """No bars from transformers: ours tell of progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
