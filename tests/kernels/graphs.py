"""CUDA graphs that are counted; on a CPU what was captured is run again at every replay."""

from collections import Counter

import torch

from kernels import graphs
from tests.kernels.check import DEVICE


class Graph:
    """What the function returned when it was captured is what every replay writes into."""

    def __init__(self, run):
        self.run, self.out = run, run()

    def replay(self) -> None:
        leaves = torch.utils._pytree.tree_leaves
        for kept, new in zip(leaves(self.out), leaves(self.run()), strict=True):
            if isinstance(kept, torch.Tensor):
                kept.copy_(new)


class Counted:
    def __init__(self, graph, counts: Counter):
        self.graph, self.counts = graph, counts

    def replay(self) -> None:
        self.counts["replayed"] += 1
        self.graph.replay()


def counted(monkeypatch) -> Counter:
    """How often graphs are captured and replayed from now on, on whatever device runs kernels."""
    counts: Counter = Counter()
    real = graphs.captured

    def captured(run, **how):
        counts["captured"] += 1
        if DEVICE == "cuda":
            graph, out, held = real(run, **how)
        else:
            graph, held = Graph(run), 2**20
            out = graph.out
        return Counted(graph, counts), out, held

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "wanted", lambda x: True)
    return counts
