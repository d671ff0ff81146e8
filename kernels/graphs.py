"""CUDA graphs: capturing one, and how much of a GPU's memory what they write to may take."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

MEMORY = 1 / 8  # of a GPU's memory, for the caches that graphs write and for the graphs' own
Out = TypeVar("Out")
_streams: dict[torch.device, torch.cuda.Stream] = {}  # to capture on: a library keeps memory for each that it has seen
_ROOMS = (*range(64, 512, 64), *(256 * n * 2**i for i in range(16) for n in (2, 3)))  # few sizes, so few graphs


def wanted(x: Tensor) -> bool:
    """Whether work on `x` is captured."""
    return x.is_cuda


def room_for(positions: int) -> int:
    """Positions of a cache that holds so many."""
    return next(n for n in _ROOMS if n >= positions)


def limit(device: torch.device) -> float:
    """Bytes that the caches of one kind may take together, with the memory of their graphs."""
    if device.type != "cuda":
        return 2.0**30
    return MEMORY * torch.cuda.get_device_properties(device).total_memory


def captured(run: Callable[[], Out], warm: int = 1, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Out, int]:
    """A function in a CUDA graph, what it returned, which every replay writes anew, and the bytes of the graph's pool.

    It runs `warm` times before, on the current GPU, which must be its tensors'. `pool`: what
    `torch.cuda.graph_pool_handle` gave for a graph that is always replayed before this one, and whose outputs are
    kept; None = one of its own.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    stream = _streams.setdefault(device, torch.cuda.Stream())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and lets libraries allocate, before the capture
        for _ in range(warm):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # whatever other threads allocate meanwhile
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        before = torch.cuda.memory_reserved()
        out = run()
        held = torch.cuda.memory_reserved() - before
    return graph, out, held
