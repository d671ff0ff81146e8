"""What an answer costs: sequential steps, forward FLOPs, measured latency."""

import time
from statistics import median

from latent.config import Recurrent
from latent.generate import Reasoner
from latent.methods import Method


def sequential_steps(reasoner: Reasoner, used: float, tokens: float) -> float:
    """Forward passes that must follow one another in an answer."""
    return reasoner.method.passes(used, tokens)


def forward_flops(reasoner: Reasoner, prompt: int, used: float, tokens: float) -> float:
    """`method_flops` of a reasoner's method."""
    return method_flops(reasoner.method, prompt, used, tokens)


def method_flops(method: Method, prompt: int, used: float, tokens: float) -> float:
    """Forward FLOPs of one answer: 2 a weight and position, 4 d a pair of positions that attend, the head where read.

    Padding is not counted; the last layer is, in full, although only part of it is read.
    """
    backbone, config = method.backbone, method.config
    d = backbone.width
    layer = [2 * sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in backbone.blocks]
    head = 2 * d * backbone.vocab
    if isinstance(config, Recurrent):
        n = prompt + config.answer_tokens - 1
        pairs = 4 * d * n * (n + 1) / 2
        once = sum(layer[: config.prelude]) + sum(layer[config.prelude + config.core :]) + 2 * d * d
        loop = sum(layer[config.prelude : config.prelude + config.core]) + 2 * d * d
        attention = pairs * (config.prelude + config.coda + config.core * used)
        return n * (once + loop * used) + attention + head * config.answer_tokens
    n = prompt + used + tokens - 1
    return n * sum(layer) + len(layer) * 4 * d * n * (n + 1) / 2 + head * tokens


def latency(reasoner: Reasoner, questions: list[str], batch: int, repeats: int = 9) -> float:
    """Median wall seconds to answer one batch, each time of other questions, after a warm-up."""
    times = []
    for i in range(repeats + 1):
        part = [questions[(i * batch + j) % len(questions)] for j in range(batch)]
        start = time.perf_counter()
        reasoner.answer(part, batch=batch)
        times.append(time.perf_counter() - start)
    return median(times[1:])
