"""A cache of fixed size, and the graphs that go on from what lies in it."""

import inspect
import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kernels import graphs
from kernels.decoder import Decoder
from kernels.errors import first_line

if TYPE_CHECKING:
    from kernels.decode_step import LatentDecoder

log = logging.getLogger(__name__)

Feed = Callable[[Tensor], Tensor] | None  # hidden state (B, D) -> the next input; None = as it is
Past = Sequence[tuple[Tensor, Tensor]]
Tensors = tuple[Tensor, ...]


class Scan(Protocol):
    """A feed that carries something from position to position and makes something at each, as `jax.lax.scan` has it.

    Called with the last state (B, D), what is carried, (B, ...) each, and what is given for this position, (B, ...)
    each. Returns the next input (B, D), what is carried on, and what is made. It computes on tensors alone, for it is
    captured: `key` tells it apart from every scan that computes something else.
    """

    @property
    def key(self) -> Hashable: ...

    def __call__(self, h_BD: Tensor, carry: Tensors, given: Tensors) -> tuple[Tensor, Tensors, Tensors]: ...


class Fed:
    """A feed as a scan that carries and makes nothing."""

    def __init__(self, feed: Feed):
        self.feed = feed

    @property
    def key(self) -> weakref.ref | None:
        """What tells a function apart from all others while it lives, without keeping it alive."""
        if self.feed is None:
            return None
        return weakref.WeakMethod(self.feed) if inspect.ismethod(self.feed) else weakref.ref(self.feed)

    def __call__(self, h_BD: Tensor, carry: Tensors, given: Tensors) -> tuple[Tensor, Tensors, Tensors]:
        return (h_BD if self.feed is None else self.feed(h_BD)), (), ()


class StaticCache(Sequence):
    """K and V of each layer, (B, H_kv, S, d), in a cache of fixed size: what `LatentDecoder.run` returns.

    A value, as any other past: it can be gone on from more than once, and what is written into its workspace later
    does not change it. Copies are made where they are needed: when a pair is read, and when the workspace is wanted
    for something else while this lives.
    """

    def __init__(self, decoder: "LatentDecoder", workspace: "Workspace", batch: int, visible_BS: Tensor | None):
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


class Workspace:
    """Tensors of fixed size for `batch` rows of up to `room` positions, and the graphs that work in them."""

    def __init__(self, decoder: Decoder, step, batch: int, room: int, dtype: torch.dtype, device: torch.device):
        self.step, self.room, self.filled = step, room, 0
        self.shown: Tensor | None = None  # the mask that `hidden` was made of
        shape = (batch, decoder.kv_heads, room, decoder.d)
        self.kv = [tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv") for _ in decoder.layers]
        self.hidden = torch.zeros(batch, room, dtype=torch.uint8, device=device)
        self.caches: weakref.WeakSet[StaticCache] = weakref.WeakSet()
        self._chains: dict[tuple, Chain] = {}

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

    def run(self, scan: Scan, steps: int, inputs: "Inputs", reads: tuple[int, ...]) -> tuple[Tensor, Tensors, Tensors]:
        """States (B, K, D) of `steps` positions, whose K and V are there then; what is carried on; what was made."""
        h_BD = inputs.h_BD
        mixed = h_BD.is_cuda and torch.is_autocast_enabled("cuda")  # is part of what a graph does
        key = (steps, scan.key, mixed, inputs.shapes, reads)
        chain = self._chains.get(key)
        if chain is None:
            self._chains = {k: c for k, c in self._chains.items() if not _gone(k[1])}
            chain = self._chains[key] = Chain(steps, inputs)
        chain.load(self.filled, inputs)
        if not graphs.wanted(h_BD):
            carry, made = chain.launch(self, scan)
        else:
            if chain.graph is None and not chain.refused:
                try:
                    chain.graph, chain.out, chain.pool = graphs.captured(lambda: chain.launch(self, scan))
                except RuntimeError as e:
                    chain.refused = True
                    log.warning("decode_step: kernels are launched one by one, not as a CUDA graph: %s", first_line(e))
                chain.load(self.filled, inputs)
            if chain.graph is None:
                carry, made = chain.launch(self, scan)
            else:
                chain.graph.replay()
                carry, made = chain.out
        self.filled += steps
        states_BKD = chain.states.transpose(0, 1).clone()
        return states_BKD, tuple(x.clone() for x in carry), tuple(torch.stack(each, 1) for each in zip(*made))


@dataclass
class Inputs:
    """What k steps read beside the cache: the last state, what a scan is given and carries, and the positions' own."""

    h_BD: Tensor
    given: Tensors
    carry: Tensors
    add_KBD: Tensor | None
    ropes: tuple[Tensor, Tensor] | None

    def all(self) -> list[Tensor]:
        add = () if self.add_KBD is None else (self.add_KBD,)
        return [self.h_BD, *self.given, *self.carry, *add, *(self.ropes or ())]

    @property
    def shapes(self) -> Hashable:
        shapes = tuple((x.shape, x.dtype) for x in (self.h_BD, *self.given, *self.carry))
        return shapes, self.add_KBD is None, self.ropes is None

    def room(self) -> "Inputs":
        """Tensors of the same shapes; what positions add, and their rotations, in fp32."""
        given, carry = (tuple(torch.empty_like(x) for x in each) for each in (self.given, self.carry))
        full = self.h_BD.new_empty(0, dtype=torch.float32)
        add_KBD = None if self.add_KBD is None else full.new_zeros(self.add_KBD.shape)
        ropes = self.ropes and (full.new_zeros(self.ropes[0].shape), full.new_zeros(self.ropes[1].shape))
        return Inputs(torch.empty_like(self.h_BD), given, carry, add_KBD, ropes)


class Chain:
    """The inputs and outputs of k steps, at addresses that stay; `launch` runs them."""

    def __init__(self, steps: int, inputs: Inputs):
        self.steps, self.inputs, h_BD = steps, inputs.room(), inputs.h_BD
        self.states = torch.empty(steps, *h_BD.shape, dtype=h_BD.dtype, device=h_BD.device)
        self.first = torch.arange(steps, dtype=torch.int32, device=h_BD.device)
        self.sizes = torch.zeros_like(self.first)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = False  # that it be captured
        self.out: tuple[Tensors, list[Tensors]] = (), []  # what every replay of the graph writes anew
        self.pool = 0  # bytes of the graph's own memory

    @property
    def bytes(self) -> int:
        return self.pool + sum(x.nbytes for x in self.inputs.given)

    def load(self, size: int, inputs: Inputs) -> None:
        torch.add(self.first, size, out=self.sizes)
        for mine, theirs in zip(self.inputs.all(), inputs.all(), strict=True):
            mine.copy_(theirs)

    def launch(self, workspace: Workspace, scan: Scan) -> tuple[Tensors, list[Tensors]]:
        """What is carried on, and what was made at each step."""
        here, made = self.inputs, []
        h, carry = here.h_BD, here.carry
        for i in range(self.steps):
            rope = here.ropes and tuple(r[i] for r in here.ropes)
            x, carry, new = scan(h, carry, tuple(g[i] for g in here.given))
            made.append(new)
            add = None if here.add_KBD is None else here.add_KBD[i]
            workspace.step(x, add, workspace.kv, self.sizes, i, rope, workspace.hidden, self.states[i])
            h = self.states[i]
        return carry, made


def _gone(key: Hashable) -> bool:
    """Whether it names a function that lives no more."""
    return isinstance(key, weakref.ref) and key() is None
