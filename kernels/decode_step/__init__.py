"""Latent steps and text tokens without gradient: positions of one token each, every one fed from what came before.

The definition is `kernels.latent_chain.reference.step`, repeated. The Triton version runs a layer in five launches
(`triton.py`) and, on a GPU, replays k steps, feedback included, as one CUDA graph over a cache of fixed size: nothing
waits for the host between the prompt and the last latent, and a token of text is one replay too.
"""

import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import dispatch
from kernels.decoder import Decoder
from kernels.latent_chain.reference import step

__all__ = ["LatentDecoder", "StaticCache"]

Feed = Callable[[Tensor], Tensor] | None  # hidden state (B, D) -> the next input; None = as it is
Past = Sequence[tuple[Tensor, Tensor]]
MEMORY = 1 / 8  # of a GPU's memory, for the caches that graphs write and for the graphs' own
MOST = 32  # of these caches
_SPARE = 32  # positions of a cache beyond those asked for, for the text that follows
_ROOMS = (*range(64, 512, 64), *(256 * n * 2**i for i in range(16) for n in (2, 3)))  # few sizes, so few graphs


class LatentDecoder:
    """A decoder made ready for steps of one position. Keeps buffers and graphs between calls, the last used ones.

    Raises ValueError, as every op does, where `impl` is "triton" and it cannot be met.
    """

    def __init__(self, decoder: Decoder, impl: dispatch.Impl | None = None):
        weight = decoder.layers[0].out[0]
        self.decoder, self.dtype, self.device = decoder, weight.dtype, weight.device
        amd = "it is made for NVIDIA's GPUs" if torch.version.hip else None
        self.asked = impl
        unless = amd or decoder.mixed()
        self.impl = dispatch.choose("decode_step", impl, weight, unless, called=False)
        self._workspaces: OrderedDict[tuple[int, int], _Workspace] = OrderedDict()  # by batch and room
        self._steps: dict[int, object] = {}  # what lies between launches, by batch

    @torch.no_grad()
    def run(
        self,
        past: Past,
        h_BD: Tensor,
        feed: Feed,
        steps: int,
        add_KBD: Tensor | None = None,
        ropes: tuple[Tensor, Tensor] | None = None,
        visible_BS: Tensor | None = None,
        reads: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Past]:
        """States (B, K, D) of `steps` positions, and K and V of each layer, (B, H_kv, S + K, d).

        `past`: K and V (B, H_kv, S, d) of what was read, or what an earlier call returned; `h_BD` its last hidden
        state. `add_KBD` is added to each step's input (learned positions), `ropes` are cosines and sines (K, B, d) of
        the positions. `visible_BS`: which positions before may be attended, None = all. `reads`: every tensor that
        `feed` reads beside its input, as they are asked for by address. Raises ValueError for a negative number of
        steps or a shape that does not fit.
        """
        batch, _, size, _ = past.shape if isinstance(past, StaticCache) else past[0][0].shape
        if steps < 0:
            raise ValueError(f"decode_step: the number of steps must be at least 0, got {steps}")
        dispatch.expect("decode_step", "h", h_BD, (batch, self.decoder.norm[0].shape[0]))
        if visible_BS is not None:
            dispatch.expect("decode_step", "visible", visible_BS, (batch, size))
        if ropes is not None:
            for name, x in zip(("cosines", "sines"), ropes):
                dispatch.expect("decode_step", name, x, (steps, batch, self.decoder.d))
        if add_KBD is not None:
            dispatch.expect("decode_step", "add", add_KBD, (steps, *h_BD.shape))
        if steps == 0 or batch == 0:
            return h_BD.new_empty(batch, steps, h_BD.shape[1]), past
        if self.serves(h_BD):
            # buffers made here are written again in whatever mode the next call has; leaving it allows gradients
            mode = torch.inference_mode(False), torch.no_grad()
            with dispatch.launching("decode_step", self.asked, h_BD), mode[0], mode[1]:
                workspace = self._workspace(past, batch, size, steps, visible_BS)
                before = workspace.bytes
                states_BKD = workspace.run(h_BD, feed, steps, add_KBD, ropes, tuple(x.data_ptr() for x in reads))
                if workspace.bytes > before:  # a graph has been captured
                    self._make_room()
                return states_BKD, StaticCache(self, workspace, batch, visible_BS)
        return self._torch(past, h_BD, feed, steps, add_KBD, ropes, visible_BS)

    def serves(self, h_BD: Tensor) -> bool:
        """Whether kernels run for such states: not where theirs did not compile."""
        return self.impl == "triton" and dispatch.choose("decode_step", self.asked, h_BD) == "triton"

    def _torch(self, past, h_BD, feed, steps, add_KBD, ropes, visible_BS) -> tuple[Tensor, Past]:
        states = []
        for i in range(steps):
            rope = None if ropes is None else tuple(r[i].to(h_BD.dtype) for r in ropes)
            mask = None
            if visible_BS is not None:
                mask = torch.cat([visible_BS, visible_BS.new_ones(len(h_BD), i + 1)], 1)
            x_BD = h_BD if feed is None else feed(h_BD)
            x_BD = x_BD if add_KBD is None else x_BD + add_KBD[i]
            h_BD, past = step(x_BD, past, self.decoder, rope, mask)
            states.append(h_BD)
        return torch.stack(states, 1), past

    def _workspace(self, past: Past, batch: int, size: int, steps: int, visible_BS: Tensor | None) -> "_Workspace":
        """One that holds `past` and has room for `steps` more positions."""
        if isinstance(past, StaticCache) and past.at_end and size + steps <= past.workspace.room:
            found = past.workspace
            if visible_BS is not found.shown:
                found.show(visible_BS)
            return found
        room = next(n for n in _ROOMS if n >= size + steps + _SPARE)
        key = batch, room
        if key not in self._workspaces:
            made = _Workspace(self.decoder, self._step(batch), batch, room, self.dtype, self.device)
            self._workspaces[key] = made
            self._make_room()
        self._workspaces.move_to_end(key)
        self._workspaces[key].load(past, size, visible_BS)
        return self._workspaces[key]

    def _make_room(self) -> None:
        """Let go of the caches not used for longest, with their graphs, until the rest keeps within MEMORY."""
        limit = self.limit
        while len(kept := self._workspaces) > 1 and (len(kept) > MOST or sum(w.bytes for w in kept.values()) > limit):
            (batch, _), _ = kept.popitem(last=False)
            if all(other != batch for other, _ in kept):
                self._steps.pop(batch)

    @property
    def limit(self) -> float:
        """Bytes that caches may take together, with the memory of their graphs; one is always kept."""
        if self.device.type != "cuda":
            return 2.0**30
        return MEMORY * torch.cuda.get_device_properties(self.device).total_memory

    def bytes(self, batch: int, size: int) -> int:
        """Bytes of K and V of so many rows and positions."""
        dec = self.decoder
        return 2 * len(dec.layers) * batch * size * dec.kv_heads * dec.d * self.dtype.itemsize

    def _step(self, batch: int):
        from kernels.decode_step.triton import Step

        if batch not in self._steps:
            self._steps[batch] = Step(self.decoder, batch)
        return self._steps[batch]


class StaticCache(Sequence):
    """K and V of each layer, (B, H_kv, S, d), in a cache of fixed size: what `LatentDecoder.run` returns.

    A value, as any other past: it can be gone on from more than once, and what is written into its workspace later
    does not change it. Copies are made where they are needed: when a pair is read, and when the workspace is wanted
    for something else while this lives.
    """

    def __init__(self, decoder: LatentDecoder, workspace: "_Workspace", batch: int, visible_BS: Tensor | None):
        self.decoder, self.workspace = decoder, workspace
        self.size = workspace.filled
        self.shape = (batch, decoder.decoder.kv_heads, self.size, decoder.decoder.d)
        more = self.size - (0 if visible_BS is None else visible_BS.shape[1])
        self.visible_BS = None if visible_BS is None else torch.cat([visible_BS, visible_BS.new_ones(batch, more)], 1)
        workspace.shown = self.visible_BS
        self.tag: object = None  # a caller's own, to know it by
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        workspace.caches.add(self)

    @property
    def at_end(self) -> bool:
        """Whether it can be gone on from in place: nothing has been written behind it, or over it."""
        return self._kept is None and self.workspace.filled == self.size

    def keep(self) -> None:
        """Copy what the workspace holds of it, which is about to be written over."""
        self._kept = [self[i] for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.workspace.kv)

    def __getitem__(self, i):
        if self._kept is not None:
            return self._kept[i]
        return tuple(x[:, :, : self.size].clone() for x in self.workspace.kv[i])

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class _Workspace:
    """Tensors of fixed size for `batch` rows of up to `room` positions, and the graphs that work in them."""

    def __init__(self, decoder: Decoder, step, batch: int, room: int, dtype: torch.dtype, device: torch.device):
        self.step, self.room, self.filled = step, room, 0
        self.shown: Tensor | None = None  # the mask that `hidden` was made of
        shape = (batch, decoder.kv_heads, room, decoder.d)
        self.kv = [tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv") for _ in decoder.layers]
        self.hidden = torch.zeros(batch, room, dtype=torch.uint8, device=device)
        self.caches: weakref.WeakSet[StaticCache] = weakref.WeakSet()
        self._chains: dict[tuple, _Chain] = {}

    @property
    def bytes(self) -> int:
        """Of K and V, and of what the graphs' launches hand to each other."""
        return 2 * len(self.kv) * self.kv[0][0].nbytes + sum(chain.bytes for chain in self._chains.values())

    def load(self, past: Past, size: int, visible_BS: Tensor | None) -> None:
        """Make it hold K and V of `size` positions."""
        pairs = [past[i] for i in range(len(self.kv))]  # before what they may lie in is written over
        for cache in list(self.caches):
            if cache.size > 0 and cache._kept is None:
                cache.keep()
        self.caches.clear()
        mine = [x[:, :, :size] for pair in self.kv for x in pair]
        torch._foreach_copy_(mine, [x for pair in pairs for x in pair])
        self.filled = size
        self.show(visible_BS)

    def show(self, visible_BS: Tensor | None) -> None:
        """Which of the positions may be attended, None = all."""
        self.shown = visible_BS
        self.hidden.zero_()
        if visible_BS is not None:
            self.hidden[:, : self.filled] = ~visible_BS

    def run(self, h_BD: Tensor, feed: Feed, steps: int, add_KBD, ropes, reads: tuple[int, ...]) -> Tensor:
        """States (B, K, D) of `steps` positions, whose K and V are then there too."""
        mixed = h_BD.is_cuda and torch.is_autocast_enabled("cuda")  # is part of what a graph does
        key = (steps, _reference(feed), add_KBD is None, ropes is None, h_BD.dtype, mixed, reads)
        chain = self._chains.get(key)
        if chain is None:
            self._chains = {k: c for k, c in self._chains.items() if k[1] is None or k[1]() is not None}
            chain = self._chains[key] = _Chain(steps, h_BD, self.kv[0][0], add_KBD is not None, ropes is not None)
        chain.load(self.filled, h_BD, add_KBD, ropes)
        if not _graphs_on(h_BD):
            chain.launch(self, feed)
        else:
            if chain.graph is None:
                with _uncached(h_BD.device):
                    chain.graph, _, chain.bytes = captured(lambda: chain.launch(self, feed))
                chain.load(self.filled, h_BD, add_KBD, ropes)
            chain.graph.replay()
        self.filled += steps
        return chain.states.transpose(0, 1).clone()


class _Chain:
    """The inputs and outputs of k steps, at addresses that stay; `launch` runs them."""

    def __init__(self, steps: int, h_BD: Tensor, like: Tensor, learned: bool, rotary: bool):
        batch, width = h_BD.shape
        full = torch.empty(0, dtype=torch.float32, device=h_BD.device)
        self.steps = steps
        self.h = torch.empty_like(h_BD)
        self.add = full.new_zeros(steps, batch, width) if learned else None
        self.ropes = [full.new_zeros(steps, batch, like.shape[3]) for _ in "cs"] if rotary else None
        self.states = torch.empty(steps, batch, width, dtype=h_BD.dtype, device=h_BD.device)
        self.first = torch.arange(steps, dtype=torch.int32, device=h_BD.device)
        self.sizes = torch.zeros_like(self.first)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.bytes = 0  # of the graph's own memory

    def load(self, size: int, h_BD: Tensor, add_KBD: Tensor | None, ropes) -> None:
        torch.add(self.first, size, out=self.sizes)
        self.h.copy_(h_BD)
        if self.add is not None and add_KBD is not None:
            self.add.copy_(add_KBD)
        for mine, theirs in zip(self.ropes or (), ropes or ()):
            mine.copy_(theirs)

    def launch(self, workspace: _Workspace, feed: Feed) -> None:
        h = self.h
        for i in range(self.steps):
            rope = self.ropes and tuple(r[i] for r in self.ropes)
            x, add = h if feed is None else feed(h), None if self.add is None else self.add[i]
            workspace.step(x, add, workspace.kv, self.sizes, i, rope, workspace.hidden, self.states[i])
            h = self.states[i]


def _graphs_on(x: Tensor) -> bool:
    """Whether work on `x` is captured."""
    return x.is_cuda


def _reference(feed: Feed):
    """What tells a function apart from all others while it lives, without keeping it alive."""
    if feed is None:
        return None
    return weakref.WeakMethod(feed) if inspect.ismethod(feed) else weakref.ref(feed)


@contextmanager
def _uncached(device: torch.device):
    """Autocast as it is, but for the weights that it has converted: those of a graph are the graph's alone."""
    kind = device.type
    on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype=dtype, enabled=on, cache_enabled=False):
        yield


def captured(run: Callable, warm: int = 1) -> tuple[torch.cuda.CUDAGraph, object, int]:
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
