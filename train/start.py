"""What a run starts from: a model from scratch, a pretrained one, or the weights of another run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from eval.environments.base import Environment, Finite
from kernels.errors import UserError
from latent import backbone, hub, lora, methods
from latent.files import read_json
from latent.generate import Reasoner
from latent.methods.base import Method
from latent.plain import plain
from latent.text import Codec
from train.config import Run


def begin(run: Run, env: Environment, root: Path) -> Reasoner:
    """The untrained reasoner of a run: from scratch, from a pretrained model, or from another run's weights."""
    if isinstance(env, Finite) and not env.splits["train"]:
        raise UserError("there are problems to test on only: give --env.train")
    if run.init is not None:
        place = found(run.init, root)
        started = hub.load(place)
        same_model(run, place)
        prepare(run, started.method.backbone)
        method = methods.build(run.method, started.method.backbone)
        inherit(method, started.method, run.init)
        return reasoner_of(run, env, method, started.codec)
    if run.model.pretrained is not None:
        body, tokenizer = backbone.from_pretrained(run.model.pretrained)
        codec = Codec(tokenizer, chat=run.model.chat_template)
        body.make_room(codec.size)
    else:
        codec = env.codec(run.model)
        body = backbone.from_scratch(run.model, codec.size, codec.pad, codec.end)
    prepare(run, body)
    return reasoner_of(run, env, methods.build(run.method, body), codec)


def reasoner_of(run: Run, env: Environment, method: Method, codec: Codec) -> Reasoner:
    """A method with the limits of what it has to write in an environment."""
    return Reasoner(method, codec, env.answer_tokens, env.longest_chain(run.method.told), env.chain_steps)


def found(init: str, root: Path) -> Path:
    """The folder that a run starts from: a run's in `root`, or any."""
    return root / init if (root / init).is_dir() else Path(init)


def prepare(run: Run, body: backbone.Backbone) -> None:
    """What the config says of training the backbone: adapters, gradient checkpointing, precision."""
    if run.model.lora_rank:
        lora.add(body.lm, run.model.lora_rank, run.model.lora_alpha)
    body.recompute = run.model.recompute


def same_model(run: Run, place: Path) -> None:
    """Raise UserError where a run asks for another model than that of the run it starts from."""
    written = place / "config.json"
    old = read_json(written).get("model") if written.exists() else None
    if not isinstance(old, dict | None):
        raise UserError(f"{written}: field 'model' must be an object, got {old!r:.40}")
    new = plain(run.model)
    how = ("bf16", "recompute", "lora_rank", "lora_alpha")  # it is trained, not what it is
    if old is None:
        return
    odd = [k for k in new if k not in how and old.get(k) != new[k]]
    if odd:
        k = odd[0]
        raise UserError(f"{run.init} has model.{k} {old.get(k)}, asked is {new[k]}: a run has the model it starts from")


def inherit(method: Method, started: Method, name: str) -> None:
    """Take over the weights of a finished method, but for what its class says may start afresh or stay behind."""
    old, new = started.state_dict(), method.state_dict()
    same = {k: v for k, v in old.items() if k in new and v.shape == new[k].shape}
    check_fit(method, started, name)
    method.load_state_dict(same, strict=False)


def check_fit(method: Method, started: Method, name: str) -> None:
    """Raise UserError where a method cannot start from the weights of another. Shapes alone are looked at."""
    old, new = started.state_dict(), method.state_dict()
    free = (*method.fresh, *started.fresh, *(n for m in (started, method) for n, _ in m.named_buffers()))
    odd = [k for k in old.keys() | new.keys() if k not in old or k not in new or old[k].shape != new[k].shape]
    odd = sorted(k for k in odd if not k.startswith(free))
    if odd:
        raise UserError(f"the weights of {name} do not fit {method.title}: {', '.join(odd[:3])}")


def check_starts(runs: Iterable[Run], root: Path) -> None:
    """Raise UserError for a run that cannot begin with the weights it is to start from, before anything is trained."""
    from latent.hf_config import LatentConfig
    from train.estimate import config_of

    by_id = {run.id: run for run in runs}
    for run in by_id.values():
        if run.init is None:
            continue
        before = by_id.get(run.init)
        if before is None:
            place = found(run.init, root)
            if not (place / "model").is_dir() and not (place / "model.safetensors").is_file():
                continue  # it says itself, when it is opened, what it is not
            same_model(run, place)
            config = LatentConfig.from_pretrained(hub.find(place))
            body, method = config.backbone_config(), methods.unpack(config.method)
        elif run.method != before.method:
            body, method = config_of(before), before.method
        else:
            continue
        check_fit(_on_meta(body, run.method), _on_meta(body, method), run.init)


def _on_meta(body, method: methods.MethodConfig) -> Method:
    """A method on a backbone of that config, without memory for its weights."""
    with torch.device("meta"):
        return methods.build(method, backbone.from_config(body))
