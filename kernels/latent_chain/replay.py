"""Steps of a chain as CUDA graphs: a launch each way, where a host would launch some forty a layer.

A graph reads and writes where it did when it was captured, so a chain lies in a `Workspace` while it lives: K and V
with room for more than it began with, their gradients, and for each step a `Slot` with all that it keeps. Which
position a step has the device knows; those after it are hidden. Weights are read where they lie, under autocast from
copies that every chain writes anew. A workspace serves one chain at a time, and is free when that chain's autograd
graph is gone.
"""

import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import dispatch, graphs
from kernels.decoder import Decoder
from kernels.latent_chain.deferred import Chain, Pairs, Rope, backward, forward

OFTEN, RECENT = 2, 8  # a kind is captured that was met so often among so many: capturing takes seconds
_SPARE = 16  # positions beyond those that a chain begins with, at least


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
        self.work = work
        self.x, self.at = torch.empty_like(x_BD), Held(torch.zeros(1, dtype=torch.long, device=x_BD.device))
        self.rope = None if rope is None else (torch.empty_like(rope[0]), torch.empty_like(rope[1]))
        self.visible = x_BD.new_zeros(work.k.shape[1], len(x_BD), 1, 1, dtype=torch.bool)
        self.bytes = 0  # of the graphs

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
        """Both ways, now that the inputs are there: what runs before a capture writes what the replay will, and adds
        the gradients of a zero."""
        work = self.work

        def ahead() -> tuple[Tensor, list]:
            return forward(self.x, work.decoder, work.k, work.v, self.at, self.rope, self.visible, write=True)

        self._ahead, (self.h, saved), held = graphs.captured(ahead)
        self.dh = torch.zeros_like(self.h)

        def back() -> tuple[Tensor, Pairs]:
            return backward(self.dh, saved, work.decoder, work.k, work.v, work.dk, work.dv, self.at, self.rope)

        self._back, (self.dx, self.pairs), more = graphs.captured(back)
        self.bytes = max(1, held + more)

    def backward(self, dh_BD: Tensor) -> tuple[Tensor, Pairs]:
        """The gradient of the input of the last `forward`, and its pairs, which the next one writes over."""
        self.dh.copy_(dh_BD)
        self._back.replay()
        return self.dx.clone(), self.pairs


class Workspace:
    """Where a chain of `batch` rows lies that began with K and V like `k_BHSd`, with room for `room` positions."""

    def __init__(self, decoder: Decoder, k_BHSd: Tensor, room: int):
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
    """The workspaces of one backbone, kept between chains: those last used, within a share of the GPU's memory. One may
    be lent whatever it takes."""

    def __init__(self):
        self._met: deque[tuple] = deque(maxlen=RECENT)  # the kinds of the last chains
        self._free: OrderedDict[int, tuple[tuple, Workspace]] = OrderedDict()  # the one free for longest first
        self._lent = 0  # bytes of the others, when they were lent
        self._copies: tuple[tuple, Decoder] | None = None  # of projections under autocast, and of which

    def workspace(self, model: Decoder, k_BHSd: Tensor, autocast: torch.dtype | None) -> tuple[tuple, Workspace] | None:
        """A free one and what it is for; None where steps are launched one by one: without a GPU, with kernels turned
        off, for a kind of chain that has not come often of late, and where no memory is left for one."""
        if not graphs.wanted(k_BHSd) or dispatch.asked(None) == "torch":
            return None
        b, _, size, _ = k_BHSd.shape
        room = graphs.room_for(size + _SPARE)
        reads = tuple((x.data_ptr(), x.dtype) for pair in model.affines() for x in pair if x is not None)
        kind = b, room, k_BHSd.dtype, autocast, reads
        often = self._met.count(kind) >= OFTEN or any(other == kind for other, _ in self._free.values())
        self._met.append(kind)
        if not often:
            return None
        decoder = model if autocast is None else self._converted(model, (reads, autocast), autocast)
        for name, (other, work) in reversed(self._free.items()):
            if other == kind and work.decoder.layers[0].out[0].data_ptr() == decoder.layers[0].out[0].data_ptr():
                del self._free[name]
                break
        else:
            if self._lent and self._lent >= graphs.limit(k_BHSd.device):
                return None
            work = Workspace(decoder, k_BHSd, room)
        self._lent += work.bytes
        return kind, work

    def lend(self, chain: Chain, kind: tuple, work: Workspace) -> None:
        """The workspace is the chain's until nothing refers to that any more."""
        end = weakref.finalize(chain, self._back, kind, work, work.bytes)
        end.atexit = False

    def _back(self, kind: tuple, work: Workspace, lent: int) -> None:
        self._lent -= lent
        self._free[id(work)] = kind, work
        limit = graphs.limit(work.k.device)
        while len(self._free) > 1 and self._lent + sum(w.bytes for _, w in self._free.values()) > limit:
            self._free.popitem(last=False)

    def _converted(self, model: Decoder, which: tuple, dtype: torch.dtype) -> Decoder:
        """The model with projections in another dtype, at addresses that stay while the model's do."""
        if self._copies is None or self._copies[0] != which:
            self._copies = which, model.multiplied_in(dtype)
            return self._copies[1]
        copies = self._copies[1]
        pairs = [both for ours in zip(copies.affines(), model.affines()) for both in zip(*ours)]
        mine, theirs = zip(*((m, t) for m, t in pairs if m is not None and m is not t))
        with torch.no_grad():
            torch._foreach_copy_(mine, theirs)
        return copies
