"""Save and load a reasoner as one folder: weights (safetensors), backbone config, tokenizer, `reasoner.json`."""

import json
from pathlib import Path

import torch

from latent import config as configs
from latent import methods
from latent.backbone import Backbone
from latent.generate import Reasoner
from latent.text import Codec

FORMAT = 1


def save(reasoner: Reasoner, folder: Path) -> None:
    """Write a reasoner into `folder`, which is made."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    method, codec = reasoner.method, reasoner.codec
    method.backbone.lm.config.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    save_model(method, str(folder / "model.safetensors"))
    about = {
        "format": FORMAT,
        "method": pack(method.config),
        "fixed_answer": codec.fixed_answer,
        "answer_tokens": reasoner.answer_tokens,
        "chain_tokens": reasoner.chain_tokens,
        "chain_steps": reasoner.chain_steps,
    }
    (folder / "reasoner.json").write_text(json.dumps(about, indent=2) + "\n")


def load(folder: str | Path, device: str = "cpu") -> Reasoner:
    """Open a saved reasoner: a folder written by `save`, or a run that has finished (`runs/<id>`).

    Raises ValueError for anything else, saying what is missing.
    """
    from safetensors.torch import load_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if not (folder / "reasoner.json").exists() and (folder / "config.json").exists():
        if not (folder / "model" / "reasoner.json").exists():
            raise ValueError(f"{folder} has no finished model yet: run its command again to go on")
        folder = folder / "model"
    for name in ("reasoner.json", "config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} is not a run or a saved reasoner: it has no {name}")
    about = json.loads((folder / "reasoner.json").read_text())
    if about["format"] > FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, this version reads up to {FORMAT}")
    codec = Codec(AutoTokenizer.from_pretrained(folder), about["fixed_answer"])
    lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    method = methods.build(unpack(about["method"]), Backbone(lm))
    load_model(method, str(folder / "model.safetensors"))
    limits = (about[name] for name in ("answer_tokens", "chain_tokens", "chain_steps"))
    return Reasoner(method.to(device).eval(), codec, *limits)


def pack(config) -> dict:
    """A method's config as JSON, class names included."""
    fields = {k: pack(v) if hasattr(v, "__dataclass_fields__") else v for k, v in vars(config).items()}
    return {"class": type(config).__name__, **fields}


def unpack(data: dict):
    """The inverse of `pack`. Raises ValueError for a class this version does not have."""
    cls = getattr(configs, data["class"], None)
    if cls is None:
        raise ValueError(f"this version has no method {data['class']!r}")
    return cls(**{k: unpack(v) if isinstance(v, dict) else v for k, v in data.items() if k != "class"})
