"""What a run starts from: a model from scratch, a pretrained model, or the weights of another run."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from eval.environments.base import Environment, Finite
from kernels.errors import UserError
from latent import hub, lora, make, methods
from latent.backbone import Backbone
from latent.codec import Codec
from latent.config import ModelConfig
from latent.files import digest, read_json
from latent.generate import Reasoner
from latent.methods.base import Method
from latent.plain import hints, plain
from train.config import RLVR, Run


def begin(run: Run, env: Environment, root: Path = Path("runs")) -> Reasoner:
    """The untrained reasoner of a run: from scratch, from a pretrained model, or from another run's weights."""
    if isinstance(env, Finite) and not env.splits["train"]:
        raise UserError("there are problems to test on only: give --env.train")
    if run.init is not None:
        folder = folder_of(run.init, root)
        start = hub.load(hub.find_checkpoint(folder))
        check_same_model(run, folder)
        prepare(run, start.method.backbone)
        method = methods.build(run.method, start.method.backbone)
        weights = inherited(method, start.method, run.init)
        if run.train.steps and not isinstance(run.train, RLVR):  # a curriculum begins where its config says
            weights = {name: value for name, value in weights.items() if name not in method.on_host}
        method.load_state_dict(weights, strict=False)
        return reasoner_of(run, env, method, start.codec)
    if run.model.pretrained is not None:
        body, tokenizer = make.from_pretrained(run.model.pretrained)
        codec = Codec(tokenizer, chat=run.model.chat_template)
        body.make_room(codec.size)
    else:
        codec = env.codec(run.model)
        if not isinstance(codec, Codec):
            raise UserError(f"{type(env).__name__}.codec must give a Codec, got {type(codec).__name__}")
        body = make.from_scratch(run.model, codec.size, codec.pad, codec.end)
    prepare(run, body)
    return reasoner_of(run, env, methods.build(run.method, body), codec)


def reasoner_of(run: Run, env: Environment, method: Method, codec: Codec) -> Reasoner:
    """A method with the limits of what it has to write in an environment."""
    return Reasoner(method, codec, env.answer_tokens, env.longest_chain(run.method.told), env.chain_steps)


def folder_of(init: str, root: Path) -> Path:
    """The folder that a run starts from: that of a run in `root`, or any other."""
    return root / init if (root / init).is_dir() else Path(init)


def fingerprint(run: Run, root: Path) -> str | None:
    """Hash of the weights in the folder that a run starts from; None where it starts from none, or it is gone."""
    name = run.init or run.model.pretrained
    if name is None:
        return None
    folder = folder_of(name, root) if run.init else Path(name)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".bin") and p.is_file())
    whole = " ".join(f"{path.name} {digest(path)}" for path in paths)
    return blake2b(whole.encode(), digest_size=8).hexdigest() if paths else None


def prepare(run: Run, body: Backbone) -> None:
    """Give the backbone what the config asks for in training: adapters and gradient checkpointing."""
    if run.model.lora_rank:
        lora.add(body.lm, run.model.lora_rank, run.model.lora_alpha, run.model.lora_dropout)
    body.recompute = run.model.recompute


def check_same_model(run: Run, folder: Path) -> None:
    """Raise UserError where a run asks for another model than that of the run it starts from."""
    written = folder / "config.json"
    old = read_json(written).get("model") if written.exists() else None
    if not isinstance(old, dict | None):
        raise UserError(f"{written}: field 'model' must be an object, got {old!r:.40}")
    new = plain(run.model)
    # these may differ from the checkpoint's
    of_training = ("bf16", "recompute", "lora_rank", "lora_alpha", "lora_dropout")
    if old is None:
        old = {} if run.model.pretrained else sizes(folder)
        new = {k: new[k] for k in old}
    odd = [k for k in new if k not in of_training and old.get(k) != new[k]]
    if odd:
        has = ", ".join(f"model.{k} {old.get(k)} where {new[k]} is asked" for k in odd)
        flags = " ".join(f"--model.{k.replace('_', '-')} {old.get(k)}" for k in odd)
        raise UserError(f"{run.init} has {has}: a run has the model that it starts from ({flags})")


def sizes(folder: Path) -> dict[str, object]:
    """What a checkpoint's own config says of its backbone, by the model's flags."""
    from latent.hf_config import LatentConfig

    body = LatentConfig.from_pretrained(hub.find_checkpoint(folder)).backbone_config()
    named = {
        "family": "model_type",
        "n_layer": "num_hidden_layers",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    if body.model_type not in get_args(hints(ModelConfig)["family"]):  # of no family that flags can ask for
        return {}
    return {ours: getattr(body, theirs) for ours, theirs in named.items() if hasattr(body, theirs)}


def inherited(method: Method, start: Method, name: str) -> dict[str, Tensor]:
    """The weights that a method takes over from the finished method `start`: those of equal name and shape.

    Raises UserError where others are missing or differ than those that either class lets start afresh; what feeds
    latents back may after a start whose method has none. Only names and shapes are compared, so that both may be on
    the meta device.
    """
    old, new = start.state_dict(), method.state_dict()
    same = {k: v for k, v in old.items() if k in new and v.shape == new[k].shape}
    fresh = (*method.fresh, *start.fresh, *(n for m in (start, method) for n, _ in m.named_buffers()))
    if not start.config.thinks:
        fresh += ("feedback.",)
    odd = sorted(k for k in old.keys() | new.keys() if k not in same and not k.startswith(fresh))
    if odd:
        raise UserError(f"the weights of {name} do not fit {method.title}: {', '.join(odd[:3])}")
    return same


def check_starts(runs: Iterable[Run], root: Path) -> None:
    """Raise UserError for a run that does not fit the weights that it starts from, or where there are none, before
    anything is trained."""
    from latent.hf_config import LatentConfig
    from train.estimate import config_of

    by_id = {run.id: run for run in runs}
    for run in by_id.values():
        if run.init is None:
            continue
        before = by_id.get(run.init)
        if before is None:
            folder = folder_of(run.init, root)
            checkpoint = hub.find_checkpoint(folder)
            check_same_model(run, folder)
            config = LatentConfig.from_pretrained(checkpoint)
            body, method = config.backbone_config(), methods.unpack(config.method)
        elif run.method != before.method:
            body, method = config_of(before), before.method
        else:
            continue
        inherited(_on_meta(body, run.method), _on_meta(body, method), run.init)


def _on_meta(body, method: methods.MethodConfig) -> Method:
    """A method on a backbone of a config, whose weights take no memory."""
    with torch.device("meta"):
        return methods.build(method, make.from_config(body))
