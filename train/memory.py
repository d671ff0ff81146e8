"""A lower bound on the memory of a run, checked before anything is built, and what to do where it runs out.

It imports no torch.

Weights, gradients and AdamW's two moments are exact for a model from scratch. Activations are counted at half of what
`train.estimate` expects, with one token for each word, so that no run is refused that could have fitted.
"""

from __future__ import annotations

import os
from pathlib import Path

from kernels.errors import UserError
from latent.cli import launched
from train.config import SFT, Run

PROBLEM = 1000  # bytes of a problem as a Python object, at least
JUDGING = "judging", "a smaller --judge.batch needs less"
CGROUPS = (  # where a container's limit stands, and what is used of it: of version 2, and of version 1
    ("/sys/fs/cgroup", ("memory.max", "memory.current")),
    ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
)
VALUES = 12  # values kept for backward for each layer and position, in units of the width


def check(run: Run, sample: list, levels: int) -> None:
    """Raise UserError, naming flag and sizes, for a run that cannot fit. `sample`: problems of its environment;
    `levels`: the number of its levels."""
    model, train, judge = run.model, run.train, run.judge
    method = run.method.underlying
    sized = ("method" if method is run.method else "method.of", method, method.sizes)
    words = [len(p.question.split()) for p in sample]
    if model.pretrained is None and min(words, default=0) > model.n_positions:
        raise UserError(
            f"a problem has {min(words)} words or more, the model has {model.n_positions} positions "
            f"(--model.n-positions)"
        )
    has = machine()
    if has is None:
        return
    width, layers = (model.n_embd, model.n_layer) if model.pretrained is None else (64, 1)
    if model.pretrained is None:
        wide = ("n_layer", "n_embd", "vocab_size", "n_positions")
        parameters = model.n_layer * 12 * model.n_embd**2 + model.n_positions * model.n_embd
        refuse(16 * parameters, has, f"{parameters:.3g} parameters", ("model", model, wide))
    decoder = 16 * run.method.decoder_parameters(width)
    refuse(decoder, has, "the method's own parameters", sized, ("model", model, ("n_embd",)))
    length = sum(words) / max(1, len(words)) + sum(len(p.answer.split()) for p in sample) / max(1, len(sample))
    rows = train.batch * getattr(train, "group", 1) // getattr(train, "minibatches", 1)
    at_once = train.micro_batch * (launched() or (0, 1))[1]
    flags: tuple[str, ...] = ("batch", "group")
    if 0 < at_once < rows:
        rows, flags = at_once, ("micro_batch",)
    kept = rows * (length + run.method.latents) * VALUES * width * (2 if model.bf16 else 4)
    kept *= 1 if model.recompute else method.trained_layers(layers)
    refuse(kept, has, f"{rows:.3g} rows in an update", ("train", train, flags), sized)
    loops = max(method.loops(steps) for steps in (0, *judge.sweep))
    states = min(judge.items, judge.batch) * loops * width * 4
    refuse(states, has, f"{loops:.3g} states of a problem that is judged", sized)
    many = judge.items + judge.level_items * (levels - 1) + (train.valid_items if train.valid_every else 0)
    each = sum(len(p.question) + len(p.answer) + sum(map(len, p.steps)) for p in sample) / max(1, len(sample))
    causes = ("judge", judge, ("items", "level_items")), ("train", train, ("valid_items",))
    refuse(max(PROBLEM, each) * many, has, f"{many:.3g} problems to judge", *causes)


def refuse(needs: float, has: int, what: str, *parts: tuple[str, object, tuple[str, ...]]) -> None:
    """Raise UserError where `needs` exceeds `has`, naming the flag that is furthest above its default.

    `parts`: the flags that may be the cause, as the group's name, the config, and the names of its fields.
    """
    if needs <= has:
        return
    values = [  # of each flag its value and its default, which is an attribute of the class
        (f"{part}.{name}", getattr(config, name), getattr(type(config), name))
        for part, config, names in parts
        for name in names
        if hasattr(config, name)
    ]
    name, value, _ = max(values, key=lambda each: each[1] / max(1, each[2]))
    raise UserError(
        f"{name} {value} is more than this machine holds: {what} need at least {needs / 2**30:.3g} GiB, "
        f"it has {has / 2**30:.3g} GiB"
    )


def remedy(train: SFT, recompute: bool) -> str:
    """The flags of training that need less memory, those that change no result first."""
    least = ["--train.micro-batch (changes no result)"] if train.micro_batch != 1 else []
    others = ["--train.batch", *(["--train.group"] if hasattr(train, "group") else [])]
    also = "" if recompute else ", or --model.recompute True"
    return f"give a smaller {', '.join([*least, *others])}{also}"


def machine() -> int | None:
    """Bytes of memory that a process may use here, or of the GPUs if that is more; None where it cannot be known."""
    sizes: list[int | None] = [_gpu()]
    for place, (limit, _) in CGROUPS:
        if (text := _text(f"{place}/{limit}").strip()).isdecimal():
            sizes.append(min(int(text), _host() or int(text)))
            break
    else:
        sizes.append(_host())
    known = [n for n in sizes if n]
    return max(known) if known else None


def available() -> int | None:
    """Bytes of the host's memory that a process may still take; None where it cannot be known."""
    found = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for place, names in CGROUPS:
        limit, used = (_text(f"{place}/{name}").strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            found.append(int(limit) - int(used))
    return min(found, default=None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _host() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _gpu() -> int:
    """The memory of all GPUs, over which a launcher may share a run; 0 without one, and torch is then not loaded."""
    if not any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/kfd")):
        return 0
    import torch

    count = torch.cuda.device_count()
    return sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
