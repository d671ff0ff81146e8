"""What a run needs of this machine's memory at the very least, before anything is built. No torch here.

Weights, their gradients and AdamW's two moments are exact for a model made from scratch. Activations are counted at
half of what `train.estimate` expects, on tokens that are words, so that nothing is refused that could have run.
"""

from __future__ import annotations

import os
from pathlib import Path

from eval.cli import launched
from kernels.errors import UserError
from train.config import Run

PROBLEM = 1000  # bytes of a problem as Python has it
VALUES = 12  # kept for backward a layer and position, in units of the width


def check(run: Run, sample: list) -> None:
    """Raise UserError, naming flag and figures, for a run that cannot fit. `sample`: problems of its environment."""
    has = machine()
    if has is None:
        return
    model, train = run.model, run.train
    wide = {"n_layer": model.n_layer, "n_embd": model.n_embd, "vocab_size": model.vocab_size}
    wide |= {"n_positions": model.n_positions}
    if model.pretrained is None:
        parameters = model.n_layer * 12 * model.n_embd**2 + model.n_positions * model.n_embd
        refuse(16 * parameters, has, f"{parameters:.3g} parameters", "model", model, tuple(wide))
    words = sum(len(f"{p.question} {p.answer}".split()) for p in sample) / max(1, len(sample))
    latents = getattr(getattr(run.method, "of", run.method), "n_latent", 0)
    rows = train.batch * getattr(train, "group", 1) // getattr(train, "minibatches", 1)
    at_once, flags = train.micro_batch * (launched() or (0, 1))[1], ("batch", "group")
    if 0 < at_once < rows:
        rows, flags = at_once, ("micro_batch",)
    width, layers = (model.n_embd, model.n_layer) if model.pretrained is None else (64, 1)
    kept = rows * (words + latents) * layers * VALUES * width * (2 if model.bf16 else 4)
    kept = kept / layers if model.recompute else kept
    refuse(kept, has, f"{rows:.3g} rows in an update", "train", train, flags)
    judged = run.judge.items + run.judge.level_items
    refuse(PROBLEM * judged, has, f"{judged:.3g} problems to judge", "judge", run.judge, ("items", "level_items"))


def refuse(needs: float, has: int, what: str, part: str, config, names: tuple[str, ...]) -> None:
    """Raise UserError where more is needed than there is, for the flag furthest above what it is unless said."""
    if needs <= has:
        return
    usual = {name: type(config).__dataclass_fields__[name].default for name in names if hasattr(config, name)}
    name = max(usual, key=lambda name: getattr(config, name) / max(1, usual[name]))
    raise UserError(
        f"{part}.{name} {getattr(config, name)} is more than this machine holds: {what} need at least "
        f"{needs / 2**30:.3g} GiB, it has {has / 2**30:.3g} GiB"
    )


def machine() -> int | None:
    """Bytes of memory that a process here may have, of the largest device; None where that cannot be known."""
    found = [_gpu()]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).is_file() and (text := Path(path).read_text().strip()).isdecimal():
            found.append(min(int(text), _host() or int(text)))
            break
    else:
        found.append(_host())
    known = [n for n in found if n]
    return max(known) if known else None


def _host() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on Windows
        return None


def _gpu() -> int:
    """All GPUs' memory, which a launcher shares a run out over; 0 without one, and torch is then not loaded."""
    if not any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/kfd")):
        return 0
    import torch

    count = torch.cuda.device_count()
    return sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
