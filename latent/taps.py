"""Taps: what a backbone computes layer by layer, recorded while a tap is open.

    with backbone.tap(layers=(0, 3, -1), kv=True) as tapped:
        thought = method.think(prompt, choose)
    h_LBTD = tapped.calls[0].h_LBTD  # the prompt's hidden states
    k_LBHTd = join(tapped.calls[1:]).k_LBHTd  # the keys of all latents

They serve distillation of hidden states (CODI, arXiv:2502.21074) or of K and V (KaVa, arXiv:2510.02312), lenses,
probes and attention maps.

Layers are numbered as `hidden_states` in `transformers`: 0 is the input of the first block (embeddings, with positions
added where the family adds them), n the output of the n-th block, and the last one comes after the final norm. K, V and
attention weights n are those of the n-th block; layer 0 has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.errors import UserError


@dataclass(eq=False)
class Call:
    """What one call of the backbone computed for its T new positions, by layer number, as far as the tap asked for it.

    `states` (B, T, D). `keys` and `values` (B, H_kv, T, d), as they are cached: normed and rotated where the family
    does that. `attentions` (B, H, T, S), over all cached positions and the new ones, before dropout. They are the
    model's own tensors: gradients flow through them and into them. `pos_BT`: position ids. `mask_BT`: False on padding,
    where the other tensors hold meaningless numbers; None where there is no padding. `skipped`: the number of new
    positions before these T that the tap did not keep.
    """

    pos_BT: Tensor
    mask_BT: Tensor | None
    skipped: int = 0
    states: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    attentions: dict[int, Tensor] = field(default_factory=dict)

    @property
    def h_LBTD(self) -> Tensor:
        """The hidden states of the chosen layers, stacked in their order."""
        return _stack(self.states, "states")

    @property
    def k_LBHTd(self) -> Tensor:
        """The keys of the chosen layers, stacked in their order."""
        return _stack(self.keys, "kv")

    @property
    def v_LBHTd(self) -> Tensor:
        """The values of the chosen layers, stacked in their order."""
        return _stack(self.values, "kv")

    @property
    def a_LBHTS(self) -> Tensor:
        """The attention weights of the chosen layers, stacked in their order."""
        return _stack(self.attentions, "attentions")

    @property
    def length(self) -> int:
        """The number of new positions of the call, including those that were not kept."""
        return self.skipped + self.pos_BT.shape[1]

    def at(self, i: int) -> "Call":
        """The call at one of its new positions (T = 1), counted from 0, or from the end if negative.

        Its attention weights are over positions up to itself. Raises UserError for a position that was not kept.
        """
        t = (i if i >= 0 else self.length + i) - self.skipped
        if not 0 <= t < self.pos_BT.shape[1]:
            raise UserError(f"position {i} of a call of {self.length} is not among the {self.pos_BT.shape[1]} kept")
        mask_BT = None if self.mask_BT is None else self.mask_BT[:, t : t + 1]
        one = Call(self.pos_BT[:, t : t + 1], mask_BT, self.skipped + t)
        one.states = {n: h[:, t : t + 1] for n, h in self.states.items()}
        one.keys = {n: k[:, :, t : t + 1] for n, k in self.keys.items()}
        one.values = {n: v[:, :, t : t + 1] for n, v in self.values.items()}
        later = self.pos_BT.shape[1] - 1 - t
        one.attentions = {n: a[:, :, t : t + 1, : a.shape[3] - later] for n, a in self.attentions.items()}
        return one


def _stack(found: dict[int, Tensor], option: str) -> Tensor:
    if not found:
        raise UserError(f"the tap has nothing to stack here: open it with {option}=True and layers that the call ran")
    return torch.stack(list(found.values()))


def join(calls: Sequence[Call]) -> Call:
    """Consecutive calls of one context as a single call over all their positions.

    Attention weights are left out, because S differs. Raises UserError without calls.
    """
    if not calls:
        raise UserError("there are no calls to join")
    mask_BT = None
    if any(c.mask_BT is not None for c in calls):
        masks = [torch.ones_like(c.pos_BT, dtype=torch.bool) if c.mask_BT is None else c.mask_BT for c in calls]
        mask_BT = torch.cat(masks, 1)
    joined = Call(torch.cat([c.pos_BT for c in calls], 1), mask_BT)
    joined.states = {n: torch.cat([c.states[n] for c in calls], 1) for n in calls[0].states}
    joined.keys = {n: torch.cat([c.keys[n] for c in calls], 2) for n in calls[0].keys}
    joined.values = {n: torch.cat([c.values[n] for c in calls], 2) for n in calls[0].values}
    return joined


class Tap:
    """What to record of a backbone, and `calls`, what was recorded of each of its calls, in order."""

    def __init__(
        self, depth: int, layers: Sequence[int] | None, states: bool, kv: bool, attentions: bool, keep: int | None
    ):
        self.layers = numbered(layers, depth)
        self.blocks = [n for n in self.layers if n > 0]
        if not (states or kv or attentions):
            raise UserError("a tap must ask for states, kv or attentions")
        if not self.blocks and not states:
            raise UserError("layer 0 has neither K and V nor attention weights: name a block, from 1")
        if keep is not None and keep < 1:
            raise UserError(f"keep must be at least 1, got {keep}")
        self.states = frozenset(self.layers if states else ())
        self.kv = frozenset(self.blocks if kv else ())
        self.attentions = frozenset(self.blocks if attentions else ())
        self.keep = keep
        self.calls: list[Call] = []

    def kept(self, x: Tensor, dim: int) -> Tensor:
        """The last `keep` positions along a dimension. Without gradient it is a copy, so that the rest can be freed."""
        if self.keep is None or x.shape[dim] <= self.keep:
            return x
        part = x.narrow(dim, x.shape[dim] - self.keep, self.keep)
        return part if x.requires_grad else part.clone()


def numbered(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Layer numbers from 0 to `depth`; negative ones count from the end, None means all.

    Raises UserError for a number out of range, and for a layer that is named twice.
    """
    if layers is None:
        return tuple(range(depth + 1))
    numbers = []
    for n in layers:
        if not -depth - 1 <= n <= depth:
            raise UserError(f"layers must be from {-depth - 1} to {depth} (0: the embeddings), got {n}")
        numbers.append(n % (depth + 1))
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"layers must name one layer or more, each once, got {tuple(layers)}")
    return tuple(numbers)


class Recording:
    """One call of the backbone while it runs. `complete` hands the open taps what they asked for.

    `weighed`: blocks whose attention weights are wanted. `inner`: whether states other than the last layer's are.
    `last`: how many of the t positions are wanted of the last block.
    """

    def __init__(self, taps: Sequence[Tap], depth: int, pos_BT: Tensor, mask_BT: Tensor | None):
        t = pos_BT.shape[1]
        self.parts = []
        for tap in taps:
            mask = None if mask_BT is None else tap.kept(mask_BT, 1)
            pos = tap.kept(pos_BT, 1)
            self.parts.append((tap, Call(pos, mask, t - pos.shape[1])))
        self.weighed = frozenset().union(*(tap.attentions for tap in taps))
        self.inner = any(tap.states - {depth} for tap in taps)
        self.last = max((min(t, tap.keep or t) for tap in taps if depth in tap.states | tap.attentions), default=0)

    def state(self, n: int, h_BTD: Tensor) -> None:
        """Record the state with number n: the output of block n, or the input of the first block."""
        for tap, call in self.parts:
            if n in tap.states:
                call.states[n] = tap.kept(h_BTD, 1)

    def block(self, n: int, k: Tensor, v: Tensor, weights: Tensor | None) -> None:
        """Record K and V of the new positions in block n, and its attention weights where they were computed."""
        for tap, call in self.parts:
            if n in tap.kv:
                call.keys[n], call.values[n] = tap.kept(k, 2), tap.kept(v, 2)
            if weights is not None and n in tap.attentions:
                call.attentions[n] = tap.kept(weights, 2)

    def complete(self) -> None:
        """Hand the call to the taps, with layers in the order in which each tap named them."""
        for tap, call in self.parts:
            for name in ("states", "keys", "values", "attentions"):
                recorded = getattr(call, name)
                setattr(call, name, {n: recorded[n] for n in tap.layers if n in recorded})
            tap.calls.append(call)
