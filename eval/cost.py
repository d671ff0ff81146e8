"""How long an answer takes; its sequential steps and FLOPs are the method's to say (`passes`, `flops`)."""

import time
from statistics import median

import torch

from latent.generate import Reasoner


def latency(reasoner: Reasoner, questions: list[str], batch: int, repeats: int = 9, bf16: bool = False) -> float:
    """Median wall seconds to answer one batch, each time of other questions, after a warm-up.

    On the device where the method is, from idle to idle. `bf16`: under autocast, as a run in bfloat16 is judged.
    """
    device, times = reasoner.method.backbone.device, []
    for i in range(repeats + 1):
        part = [questions[(i * batch + j) % len(questions)] for j in range(batch)]
        wait_for(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            reasoner.answer(part, batch=batch)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def wait_for(device: torch.device) -> None:
    """Return once a device has done all that it was given; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
