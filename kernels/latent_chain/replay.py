"""Steps of a chain as CUDA graphs: a launch each way, where a host would launch some forty a layer.

A graph reads and writes where it did when it was captured, so a chain lies in a `Workspace` while it lives: K and V
with room for more than it began with, their gradients, and for each step a `Slot` with all that it keeps. Which
position a step has the device knows; those after it are hidden. Weights are read where they lie, under autocast from
copies that every chain writes anew. A workspace serves one chain at a time, and is free when that chain's autograd
graph is gone.
"""

import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import dispatch, graphs
from kernels.decoder import Decoder
from kernels.errors import first_line, out_of_memory
from kernels.latent_chain.deferred import Chain, Pairs, Rope, backward, forward

CLOSE = 2e-2  # relative: what a graph gives and what the same calls give
MOVES = 4  # of the weights, after which they are taken to move with every update, as sharded ones do
_SPARE, _STEP = 16, 64  # positions beyond those that a chain begins with, at least; rooms are multiples of this


logger = logging.getLogger("kernels")


class NotCaptured(RuntimeError):
    """A step's graphs cannot be made, or do not give what its calls give."""


@dataclass(frozen=True)
class Held:
    """A position (1,) that the device knows: all are read, and those after it are hidden."""

    s_1: Tensor

    def put(self, buffer: Tensor, value: Tensor) -> None:
        buffer.index_copy_(0, self.s_1, value[None].to(buffer.dtype))

    def attended(self, buffer: Tensor) -> Tensor:
        return buffer

    def own(self, buffer: Tensor) -> Tensor:
        return buffer.index_select(0, self.s_1)[0]


class Slot:
    """One step of the chains of a workspace: its inputs and outputs at addresses that stay."""

    def __init__(self, work: "Workspace", x_BD: Tensor, rope: Rope):
        self.memory, self.grads = (work.decoder, work.k, work.v), (work.dk, work.dv)
        self.x, self.at = torch.empty_like(x_BD), Held(torch.zeros(1, dtype=torch.long, device=x_BD.device))
        self.rope = None if rope is None else (torch.empty_like(rope[0]), torch.empty_like(rope[1]))
        self.visible = x_BD.new_zeros(work.k.shape[1], len(x_BD), 1, 1, dtype=torch.bool)
        self.bytes = 0  # of the graphs
        self.pool = torch.cuda.graph_pool_handle() if x_BD.is_cuda else None

    def forward(self, x_BD: Tensor, s: int, rope: Rope, visible_SB11: Tensor | None) -> Tensor:
        """The final hidden state of an input at position s."""
        self.x.copy_(x_BD)
        self.at.s_1.fill_(s)
        for mine, theirs in zip(self.rope or (), rope or ()):
            mine.copy_(theirs)
        self.visible[: s + 1] = True if visible_SB11 is None else visible_SB11
        self.visible[s + 1 :] = False
        if not self.bytes:
            self._capture()
        self._ahead.replay()
        return self.h.clone()

    def _capture(self) -> None:
        """Both ways, now that the inputs are there. What runs before the captures writes to K and V what the replay
        will, and to their gradients what is cleared before a pass backwards. Raises NotCaptured."""

        def ahead() -> tuple[Tensor, list]:
            return forward(self.x, *self.memory, self.at, self.rope, self.visible, write=True)

        def back(saved: list) -> tuple[Tensor, Pairs]:
            return backward(self.dh, saved, *self.memory, *self.grads, self.at, self.rope)

        def given(h_BD: Tensor, go_back: Callable[[], tuple[Tensor, Pairs]]) -> list[Tensor]:
            for x in self.grads:
                x.zero_()
            dx, _ = go_back()
            return [h_BD, dx, *(x.norm() for x in self.grads)]

        try:
            with torch.cuda.device(self.x.device) if self.x.is_cuda else nullcontext():
                self._ahead, (self.h, self.saved), held = graphs.captured(ahead, pool=self.pool)
                self.dh = torch.zeros_like(self.h)
                self._back, (self.dx, self.pairs), more = graphs.captured(lambda: back(self.saved), pool=self.pool)
            self._ahead.replay()
            got = given(self.h.clone(), lambda: self.backward(self.h))
            h_BD, saved = ahead()
            want = given(h_BD, lambda: back(saved))
        except RuntimeError as e:  # no memory may be left for either
            raise NotCaptured(first_line(e)) from e
        if not all(bool((g - w).norm() <= CLOSE * w.norm()) for g, w in zip(got, want, strict=True)):
            raise NotCaptured("their graphs do not give what the same calls give")
        self.bytes = max(1, held + more)

    def backward(self, dh_BD: Tensor) -> tuple[Tensor, Pairs]:
        """The gradient of the input of the last `forward`, and its pairs, which the next one writes over."""
        self.dh.copy_(dh_BD)
        self._back.replay()
        return self.dx.clone(), self.pairs


class Workspace:
    """Where chains of a kind lie, which begin with K and V like `k_BHSd`, with room for `room` positions."""

    def __init__(self, kind: tuple, decoder: Decoder, k_BHSd: Tensor, room: int):
        self.kind = kind
        b, h, _, d = k_BHSd.shape
        shape, more = (len(decoder.layers), room, b, h, d), torch.promote_types(k_BHSd.dtype, torch.float32)
        self.decoder = decoder
        self.k, self.v = (k_BHSd.new_zeros(shape) for _ in "kv")
        self.dk, self.dv = (k_BHSd.new_zeros(shape, dtype=more) for _ in "kv")
        self._slots: dict[tuple, Slot] = {}

    @property
    def bytes(self) -> int:
        return 2 * (self.k.nbytes + self.dk.nbytes) + sum(slot.bytes for slot in self._slots.values())

    def slot(self, i: int, x_BD: Tensor, rope: Rope) -> Slot:
        """That of a chain's i-th step."""
        key = i, x_BD.dtype, rope and rope[0].dtype
        if key not in self._slots:
            self._slots[key] = Slot(self, x_BD, rope)
        return self._slots[key]


class Graphs:
    """The workspaces of one backbone, kept between chains within a share of the GPU's memory, one in any case."""

    def __init__(self):
        self._met = graphs.Met()  # the kinds of the last chains
        self._free: list[Workspace] = []  # the one free for longest first
        self._lent: list[Workspace] = []
        self._reads: tuple = ()  # where the weights lie
        self._moves = 0
        self._off = False
        self._copies: dict[torch.dtype, Decoder] = {}  # with projections as autocast has them

    def sizes(self) -> list[int]:
        """Bytes of every workspace, the largest last."""
        return sorted(work.bytes for work in (*self._lent, *self._free))

    def workspace(self, model: Decoder, k_BHSd: Tensor, autocast: torch.dtype | None) -> Workspace | None:
        """A free one for a chain; None where steps are launched one by one: without a GPU, with kernels turned
        off, for a kind of chain that has not come often of late, where no memory is left, where weights move, and once
        a capture has failed."""
        if self._off or not graphs.wanted(k_BHSd) or dispatch.asked(None) == "torch" or not self._stay(model):
            return None
        b, _, size, _ = k_BHSd.shape
        room = -(-(size + _SPARE) // _STEP) * _STEP
        kind = b, room, k_BHSd.dtype, autocast
        known = [work for work in self._free if work.kind == kind]
        often = self._met.often(kind)
        if known:
            self._refresh(model, autocast)
            self._free.remove(known[-1])
            return known[-1]
        if not often or not self._make_room(len(model.layers), k_BHSd, room):
            return None
        try:
            return Workspace(kind, self._refresh(model, autocast), k_BHSd, room)
        except RuntimeError as e:
            if not out_of_memory(e):
                raise
            why = first_line(e)
        self.give_up(why)  # the run had room enough without
        return None

    def give_up(self, why: str) -> None:
        """From now on steps are launched one by one; said in one line."""
        self._off = True
        self._free.clear()
        self._copies.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        logger.warning("latent_chain: steps in training are launched one by one, not as CUDA graphs: %s", why)

    def _stay(self, model: Decoder) -> bool:
        """Whether the weights may be read by address. What was captured of others is let go."""
        reads = tuple((x.data_ptr(), x.dtype) for pair in model.affines() for x in pair if x is not None)
        if reads != self._reads:
            self._moves += bool(self._reads)
            self._reads = reads
            self._met.forget()
            self._free.clear()
            self._copies.clear()
        return self._moves <= MOVES

    def _make_room(self, layers: int, k_BHSd: Tensor, room: int) -> bool:
        """Let go of what no chain of late was like. Returns whether another workspace keeps within the limit.

        It is taken to become as large as the largest that there is, and has K and V at least.
        """
        more = torch.promote_types(k_BHSd.dtype, torch.float32).itemsize
        b, h, _, d = k_BHSd.shape
        needed = 2 * layers * b * h * room * d * (k_BHSd.itemsize + more)
        stale = [work for work in self._free if not self._met.lately(work.kind)]
        return graphs.make_room(needed, self.sizes, stale, self._free.remove, graphs.limit(k_BHSd.device))

    def lend(self, chain: Chain, work: Workspace) -> None:
        """The workspace is the chain's until nothing refers to that any more."""
        self._lent.append(work)
        end = weakref.finalize(chain, self._back, work, self._reads)
        end.atexit = False

    def _back(self, work: Workspace, reads: tuple) -> None:
        self._lent.remove(work)
        if reads == self._reads and not self._off:
            self._free.append(work)

    def _refresh(self, model: Decoder, dtype: torch.dtype | None) -> Decoder:
        """The decoder that graphs read: the model's weights where they lie, and copies of projections in a dtype."""
        if dtype is None:
            return model
        if dtype not in self._copies:
            self._copies[dtype] = model.multiplied_in(dtype)
            return self._copies[dtype]
        copies = self._copies[dtype]
        pairs = [both for ours in zip(copies.affines(), model.affines()) for both in zip(*ours)]
        changed = [(m, t) for m, t in pairs if m is not None and t is not None and m.data_ptr() != t.data_ptr()]
        if changed:
            mine, theirs = zip(*changed)
            with torch.no_grad():
                torch._foreach_copy_(mine, theirs)
        return copies
