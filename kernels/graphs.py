"""CUDA graphs: capturing one, and how much of a GPU's memory what they write to may take."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

MEMORY = 1 / 8  # of a GPU's memory, for the caches that graphs write and for the graphs' own
Out = TypeVar("Out")
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


def captured(run: Callable[[], Out], warm: int = 1) -> tuple[torch.cuda.CUDAGraph, Out, int]:
    """A function in a CUDA graph, what it returned, which every replay writes anew, and the bytes of the graph's pool.

    The function runs `warm` times before.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and lets libraries allocate, before the capture
        for _ in range(warm):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # whatever other threads allocate meanwhile
        before = torch.cuda.memory_reserved()
        out = run()
        pool = torch.cuda.memory_reserved() - before
    return graph, out, pool
