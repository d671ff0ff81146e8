"""CUDA graphs: when one is worth its capture, capturing it, and how much of a GPU's memory they may take."""

import gc
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.errors import out_of_memory

OFTEN, RECENT = 2, 8  # a kind is captured that was met so often among so many: capturing costs as much as some calls
MEMORY = 1 / 8  # of a GPU's memory, for the caches that graphs write and for the graphs' own
Out = TypeVar("Out")
_streams: dict[torch.device, torch.cuda.Stream] = {}  # to capture on: a library keeps memory for each that it has seen
# from torch 2.12 on a graph that is let go frees cuBLAS's workspace of all that were captured on its stream
# (github.com/pytorch/pytorch/issues/193402); each then has one within its own pool
_OWN_WORKSPACE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 12)
_ROOMS = (*range(64, 512, 64), *(256 * n * 2**i for i in range(16) for n in (2, 3)))  # few sizes, so few graphs


def wanted(x: Tensor) -> bool:
    """Whether work on `x` is captured."""
    return x.is_cuda


class Met:
    """The kinds of work of late."""

    def __init__(self):
        self._kinds: deque[Hashable] = deque(maxlen=RECENT)

    def often(self, kind: Hashable) -> bool:
        """Whether this kind was met often before now; it is met now."""
        often = self._kinds.count(kind) >= OFTEN
        self._kinds.append(kind)
        return often

    def lately(self, kind: Hashable) -> bool:
        return kind in self._kinds

    def forget(self) -> None:
        self._kinds.clear()


def room_for(positions: int) -> int:
    """Positions of a cache that holds so many."""
    return next(n for n in _ROOMS if n >= positions)


def limit(device: torch.device) -> float:
    """Bytes that the caches of one kind may take together, with the memory of their graphs."""
    if device.type != "cuda":
        return 2.0**30
    return MEMORY * torch.cuda.get_device_properties(device).total_memory


def make_room(
    needed: int, sizes: Callable[[], list[int]], stale: list, drop: Callable[[Any], object], limit: float
) -> bool:
    """Drop what is stale, the first first, until another piece of work keeps within so many bytes. Returns whether it
    does: it is taken to become as large as the largest of `sizes`, and has the bytes `needed` at least."""
    while (kept := sizes()) and sum(kept) + max(needed, *kept) > limit:
        if not stale:
            return False
        drop(stale.pop(0))
    return True


def captured(run: Callable[[], Out], warm: int = 1, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Out, int]:
    """A function in a CUDA graph, what it returned, which every replay writes anew, and the bytes of the graph's pool.

    It runs `warm` times before, on the current GPU, which must be its tensors'. What autocast converts within is the
    graph's alone. Where it cannot be captured, torch's error is raised; the current stream and random numbers are as
    before then, but graphs that draw some, captured earlier, are to be captured again. `pool`: what
    `torch.cuda.graph_pool_handle` gave for a graph that is always replayed before this one, and whose outputs are
    kept; None = one of its own.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    stream, current = _streams.setdefault(device, torch.cuda.Stream()), torch.cuda.current_stream()
    with _converting_alone():
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # compiles, and lets libraries allocate, before the capture
            for _ in range(warm):
                run()
        current.wait_stream(stream)
        try:
            return _capture(run, stream, pool)
        except RuntimeError as e:
            if not (out_of_memory(e) or (e.__context__ and out_of_memory(e.__context__))):
                raise
        torch.cuda.empty_cache()  # while it captures, a GPU can free nothing
        return _capture(run, stream, None)  # torch 2.11 may take a pool that a capture failed in to be in use


def _capture(run: Callable[[], Out], stream: torch.cuda.Stream, pool: Any) -> tuple[torch.cuda.CUDAGraph, Out, int]:
    """`torch.cuda.graph` gives back all cached memory first, and costs a third of a second each time (H200)."""
    device, graph = torch.cuda.current_device(), torch.cuda.CUDAGraph()
    pool, generator, ended = pool or torch.cuda.graph_pool_handle(), torch.cuda.default_generators[device], False
    torch.cuda.synchronize()
    before, collects = generator.clone_state(), gc.isenabled()
    _forget_workspaces()
    gc.disable()  # another graph that it finds unreachable and destroys would end the capture
    try:
        with torch.cuda.stream(stream):
            # whatever other threads allocate meanwhile
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                reserved = torch.cuda.memory_reserved()
                out = run()
                held = torch.cuda.memory_reserved() - reserved
            finally:
                graph.capture_end()
                ended = True
    except BaseException:
        if not ended:  # torch 2.11 then draws random numbers in graphs alone, and frees no memory any more
            generator.graphsafe_set_state(before)
            with suppress(RuntimeError):  # later versions have done so
                torch._C._cuda_endAllocateToPool(device, pool)
                torch._C._cuda_releasePool(device, pool)  # as the graph does not, whose capture has not ended
        raise
    finally:
        if collects:
            gc.enable()
    _forget_workspaces()
    return graph, out, held


def _forget_workspaces() -> None:
    """Make cuBLAS ask for its workspaces anew, where a graph is to have its own."""
    if _OWN_WORKSPACE:
        torch._C._cuda_clearCublasWorkspaces()


def _converting_alone() -> torch.autocast:
    """Autocast as it is, but for the weights that it has converted: those of a graph are the graph's alone."""
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=on, cache_enabled=False)
