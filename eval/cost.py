"""What an answer costs: sequential steps, forward FLOPs, measured latency."""

import time
from statistics import median

from latent.generate import Reasoner


def sequential_steps(reasoner: Reasoner, used: float, tokens: float) -> float:
    """Forward passes that must follow one another in an answer."""
    return reasoner.method.passes(used, tokens)


def forward_flops(reasoner: Reasoner, prompt: float, used: float, tokens: float) -> float:
    """Forward FLOPs of one answer."""
    return reasoner.method.flops(prompt, used, tokens)


def latency(reasoner: Reasoner, questions: list[str], batch: int, repeats: int = 9) -> float:
    """Median wall seconds to answer one batch, each time of other questions, after a warm-up."""
    times = []
    for i in range(repeats + 1):
        part = [questions[(i * batch + j) % len(questions)] for j in range(batch)]
        start = time.perf_counter()
        reasoner.answer(part, batch=batch)
        times.append(time.perf_counter() - start)
    return median(times[1:])
