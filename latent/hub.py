"""Save and load a reasoner as a folder that is also a Hugging Face checkpoint.

It holds config.json, model.safetensors, generation_config.json, the tokenizer's files, and modeling_latent.py, which
opens the checkpoint without this package.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing

from kernels.errors import UserError, first_line
from latent.codec import LATENT, PAD, THINK, Codec
from latent.files import has_weights, named, read_json
from latent.generate import Reasoner
from latent.plain import plain

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name


def as_hf_model(reasoner: Reasoner):
    """A reasoner as a `LatentForCausalLM`, which shares its weights."""
    from transformers import GenerationConfig

    from latent.hf import LatentForCausalLM
    from latent.hf_config import LatentConfig

    method, codec = reasoner.method, reasoner.codec
    backbone = method.backbone.lm.config.to_dict()
    config = LatentConfig(
        backbone=backbone,
        method=plain(method.made_from),
        latent_id=codec.ensure_latent_token(),
        closing_id=codec.ensure_end_token(),
        think_id=codec.think,
        fixed_answer=codec.fixed_answer,
        chat=codec.chat,
        answer_tokens=reasoner.answer_tokens,
        chain_tokens=reasoner.chain_tokens,
        chain_steps=reasoner.chain_steps,
        num_latents=reasoner.steps,
        vocabulary=vocabulary_hash(codec.tokenizer),
        vocab_size=max(method.backbone.vocab, codec.ensure_latent_token() + 1),  # as wide as the logits
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
    """Write a reasoner into `folder`, which is created."""
    from safetensors import SafetensorError

    was_training = reasoner.method.training
    with without_progress_bars(), named(folder):
        try:
            as_hf_model(reasoner).save_pretrained(folder)
        except SafetensorError as e:  # on a full disk; it does not say where
            raise OSError(f"cannot write the weights into {folder}: {e}") from None
    ready_tokenizer(reasoner.codec).save_pretrained(folder)
    reasoner.method.train(was_training)


def ready_tokenizer(codec: Codec):
    """The codec's tokenizer, changed so that other tools get from it the ids that the codec makes of a text."""
    tokenizer = codec.tokenizer
    codec.ensure_latent_token()
    codec.ensure_end_token()
    match_codec(tokenizer, codec)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    if codec.end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(codec.end)
    else:  # tools also ask for a token that begins a text: give them one that no text has
        tokenizer.bos_token = PAD
    return tokenizer


def match_codec(tokenizer, codec: Codec) -> None:
    """Make a tokenizer begin a prompt as the codec does, in a chat too, and add nothing at its end."""
    names = tokenizer.convert_ids_to_tokens(codec.begin)
    post = TemplateProcessing(single=[*names, "$A"], pair=[*names, "$A", *names, "$B"],
                              special_tokens=list(zip(names, codec.begin)))  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = post if names else None
    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs:
            tokenizer.init_kwargs[name] = name == "add_bos_token" and bool(names)
    if codec.chat and codec.begin:
        turn = [{"role": "user", "content": "a"}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        if tuple(ids[: len(codec.begin)]) != codec.begin:  # most templates write BOS themselves
            tokenizer.chat_template = "{{ " + repr("".join(names)) + " }}" + tokenizer.chat_template


def fetched(name: str | Path, revision: str | None = None) -> Path:
    """The folder of this name, or that of a checkpoint on the hub, which is downloaded. Raises UserError where there is
    neither; a name that lies under a folder of ours is none of the hub."""
    folder = Path(name).expanduser()
    if folder.exists() or not HUB_NAME.fullmatch(str(name)) or (folder.parent.exists() and len(folder.parts) > 1):
        return folder
    return downloaded(str(name), "is not a folder, and was not downloaded from the hub", revision=revision)


def downloaded(name: str, otherwise: str, **how) -> Path:
    """The folder of a repository on the hub; `how` as `snapshot_download` takes it. Raises UserError, which says what
    the name is `otherwise`, where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **how))
    except Exception as e:  # the hub's client raises errors of many types: no network, no such name, no access
        why = "the hub cannot be reached" if os.environ.get("HF_HUB_OFFLINE") else first_line(e)
        raise UserError(f"{name} {otherwise}: {why}") from None


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint's folder: the one given, or `model` in that of a finished run (`runs/<id>`).

    Raises UserError for any other folder, saying what it lacks.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    config = folder / "config.json"
    about = read_json(config) if config.exists() else {}
    if about.get("class") == "Run":
        if not (folder / "model" / "config.json").exists():
            if (result := folder / "result.json").exists():
                raise UserError(f"{folder} has a result and no model: delete {result}, and run its command again")
            raise UserError(f"{folder} has no finished model yet: run its command again to go on")
        folder = folder / "model"
        about = read_json(folder / "config.json")
    if about.get("model_type") != "latent" or not isinstance(about.get("backbone"), dict) or not about["backbone"]:
        raise UserError(f"{folder} is not a run or a saved reasoner: it has no config.json of one")
    if not has_weights(folder):
        raise UserError(f"{folder} is not a run or a saved reasoner: it has no model.safetensors")
    return folder


def load(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None
) -> Reasoner:
    """Open a saved reasoner: a folder written by `save`, that of a finished run (`runs/<id>`), or a name on the hub.

    `dtype`: of the weights. `revision`: of a name on the hub. Raises UserError for anything else, saying what it lacks.
    """
    from safetensors import SafetensorError

    from latent.hf import LatentForCausalLM

    folder = find_checkpoint(fetched(folder, revision))
    with without_progress_bars():
        try:
            model = LatentForCausalLM.from_pretrained(folder, dtype=dtype)
        except SafetensorError as e:
            raise UserError(f"the weights in {folder} cannot be read: {e}") from None
        except UserError as e:
            raise UserError(f"{folder}: {e}") from None
        except Exception as e:  # transformers raises anything where config and weights do not fit
            raise UserError(f"{folder} cannot be opened: {type(e).__name__}: {first_line(e)}") from e
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
    except Exception as e:  # settings of the tokenizer that nothing has used before
        raise tokenizer_error(folder, e) from e
    method = model.method.to(device).eval()
    return Reasoner(method, codec, c.answer_tokens, c.chain_tokens, c.chain_steps, c.num_latents)


def load_tokenizer(folder: Path, config):
    """The tokenizer of a checkpoint. Raises UserError for one that the model was not trained with."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # transformers and tokenizers raise anything for missing or damaged files
        raise tokenizer_error(folder, e) from e
    check_tokenizer(folder, tokenizer, config)
    return tokenizer


def tokenizer_error(folder: Path, error: Exception) -> UserError:
    """The error to raise where a tokenizer's files cannot be read."""
    return UserError(f"{folder} has no tokenizer that can be read: {type(error).__name__}: {first_line(error)}")


def check_tokenizer(name, tokenizer, config) -> None:
    """Raise UserError for a tokenizer that gives tokens other ids than those the model was trained with."""
    for token, want in ((THINK, config.think_id), (LATENT, config.latent_id)):
        got = tokenizer.get_vocab().get(token)
        if want is not None and got != want:
            raise UserError(f"{name} has a foreign tokenizer: {token} is {got}, the model was trained with {want}")
    if config.vocabulary is not None and vocabulary_hash(tokenizer) != config.vocabulary:
        raise UserError(f"{name} has a foreign tokenizer: its vocabulary is not the one the model was trained with")


def vocabulary_hash(tokenizer) -> str:
    """Hash of a tokenizer's vocabulary, added tokens included."""
    return blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()


@contextmanager
def without_progress_bars():
    """Silence transformers' progress bars; we show our own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
