"""The model card of a finished run, made from its record, and the upload to the hub."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from kernels.errors import UserError, first_line
from latent.files import read_json, write_text
from train.record import Record


def write(record: Record, result: dict) -> None:
    """Write README.md into the run's model folder."""
    write_text(record.home / "model" / "README.md", card(record, result, read_json(record.home / "env.json")))


def card(record: Record, result: dict, env: dict) -> str:
    """The card's text."""
    run = record.run
    method, base = type(run.method).__name__, run.model.pretrained
    on_hub = base is not None and not Path(base).is_dir()
    steps = result["latents"]
    model = f"From {base}" if base else f"A {run.model.family} made from scratch"
    head = ["library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"tags: [latent-reasoning, {method.lower()}]", *([f"base_model: {base}"] if on_hub else [])]
    data = {k: v for k, v in vars(run.env).items() if v is not None}
    start = f" It started from `{run.init}`." if run.init else ""
    machine = ", ".join([env["cpu"], *env["gpus"]])
    code = (env["git"] or "unknown")[:12] + (" with uncommitted changes" if env["diff"] else "")
    levels = "".join(
        f"| {level} | {s['accuracy']:.3f} | {s['low']:.3f} to {s['high']:.3f} | {s['n']} | {s['used']:.2f} |\n"
        for level, s in result["levels"].items()
    )
    floors = "".join(f"| *floor: {name}* | {value:.3f} | | | |\n" for name, value in result["floors"].items())
    chosen = result.get("selected")
    selected = f", with the weights of update {chosen['step']}, best on the validation split" if chosen else ""
    own = ", ".join(record.code.files)
    opens = "import latent  # or, without the package, trust_remote_code=True in the next line"
    if own:
        opens = f"import latent  # and LATENT_IMPORT naming the files of its classes: {own}"
    over = "clusters of items" if "clusters" in result else "items"
    held_out = "held-out problems" if run.judge.split == "test" else "problems of the validation split"
    return f"""---
{chr(10).join(head)}
---

# {method} on {type(run.env).__name__}

{inspect.getdoc(type(run.method))}

{model}, {result["parameters"]:,} parameters; latent steps: {steps}.

```python
{opens}
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (Auto.from_pretrained(FOLDER) for Auto in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer(["..."], return_tensors="pt", padding=True)
output = model.generate(**inputs, num_latents={steps})
```

## Results

Greedy, {held_out}, 95 % Wilson intervals over {over}, one training seed ({run.seed}).

| level | accuracy | 95 % interval | items | mean latents used |
|---|---|---|---|---|
{levels}{floors}
An answer at the hardest level: {result["steps"]:.1f} sequential steps, {result["flops"] / 1e6:.2f} forward MFLOP.

## Training

Data: {type(run.env).__name__} `{json.dumps(data)}`.{start} {result["updates"]} updates of {type(run.train).__name__},
{result["core_seconds"]:.0f} core-seconds{selected}, on {machine}. Run {run.id}, code {code}.

```
{env["command"] or "the command was not recorded"}
```
"""


def may_publish() -> None:
    """Raise UserError where there is no login to the hub. It is called before anything is trained."""
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as e:  # the hub's client raises errors of many types: no login, no network
        raise UserError(f"--push-to-hub: {first_line(e)}") from None


def publish(record: Record, name: str) -> str:
    """Upload the run's model folder to the hub as `name`, and return its address. Raises UserError where that fails."""
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=record.home / "model")
    except Exception as e:  # the hub's client raises errors of many types: no login, no network, a bad name
        raise UserError(f"cannot upload to {name!r}: {first_line(e)}") from None
    return str(address)
