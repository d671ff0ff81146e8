"""What has been read so far: the keys and values of every layer, and how a new position attends them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention
from kernels.decode_step import StaticCache
from kernels.dispatch import autocast_dtype
from kernels.latent_chain import LatentChain
from kernels.shared_prefix_attention import shared_prefix_attention

_SPARE = 32  # cached positions allocated ahead


def visible(t: int, size: int, mask_BS: Tensor | None, device: torch.device) -> Tensor | str | None:
    """Which of `size` cached positions each of the last `t` may attend: None = all, "causal", or bool (B, 1, T, S).

    A GPU gets no mask where no row is padded: flash attention takes none.
    """
    if mask_BS is None and (t == 1 or t == size or device.type == "cuda"):
        return None if t == 1 else "causal"
    causal_TS = torch.ones(t, size, dtype=torch.bool, device=device).tril(size - t)
    if mask_BS is None:
        return causal_TS
    own_TS = torch.eye(t, size, dtype=torch.bool, device=device).roll(size - t, 1)  # a padded query sees itself: no NaN
    return ((causal_TS & mask_BS[:, None]) | own_TS)[:, None]


def _last_of(t: int, size: int, device: torch.device) -> Tensor:
    """What the last t of `size` positions attend to, (t, size), where each sees itself and all before it."""
    return torch.ones(t, size, dtype=torch.bool, device=device).tril(size - t)


def _lower_right(t: int, size: int) -> Tensor:
    """The same as a mask that flash attention takes."""
    from torch.nn.attention.bias import causal_lower_right  # here, because it loads the compiler: two seconds

    return causal_lower_right(t, size)


def _a_head_each(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of grouped queries (Ainslie et al. 2023), repeated for each head of `q`."""
    groups = q.shape[1] // k.shape[1]
    return k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)


@dataclass(eq=False, slots=True)
class LayerCache:
    """K and V of one layer, (B, H_kv, S, d each). `append` returns a new handle and leaves this one as it was.

    Under autograd the tensors are concatenated. Without it they are written into spare room behind the last position;
    a second continuation of the same handle copies first, so that no continuation sees another's tokens.
    """

    k: Tensor
    v: Tensor
    room: dict | None = None

    def append(self, k: Tensor, v: Tensor) -> "LayerCache":
        if torch.is_grad_enabled():
            return LayerCache(torch.cat([self.k, k], 2), torch.cat([self.v, v], 2))
        start, stop, room = self.k.shape[2], self.k.shape[2] + k.shape[2], self.room
        if room is None or room["filled"] != start or room["k"].shape[2] < stop:
            b, h, _, d = self.k.shape
            room = {"k": self.k.new_empty(b, h, stop + _SPARE, d), "v": self.v.new_empty(b, h, stop + _SPARE, d)}
            room["k"][:, :, :start], room["v"][:, :, :start] = self.k, self.v
        room["k"][:, :, start:stop], room["v"][:, :, start:stop] = k, v
        room["filled"] = stop
        return LayerCache(room["k"][:, :, :stop], room["v"][:, :, :stop], room)

    @property
    def size(self) -> int:
        return self.k.shape[2]

    def attend(self, q: Tensor, visible_BTS: Tensor | str | None, dropout: float) -> Tensor:
        """Scaled dot-product attention of queries (B, H, T, d), the last positions where T < S -> (B, T, H d)."""
        t, k, v = q.shape[2], self.k, self.v
        causal = isinstance(visible_BTS, str) and t == self.size
        mask: Tensor | None = None
        if isinstance(visible_BTS, Tensor):
            mask = visible_BTS[..., -t:, :]
        elif isinstance(visible_BTS, str) and 1 < t < self.size:
            # beyond CUDA no kernel takes a mask that is not written out
            mask = _lower_right(t, self.size) if q.is_cuda else _last_of(t, self.size, q.device)
            mixed = autocast_dtype(q.device) if q.is_cuda and v.dtype != torch.float64 else None
            dtype = mixed or v.dtype
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)  # on CUDA autocast casts none for this mask
        if k.shape[1] == q.shape[1]:
            a = attention(q, k, v, mask, dropout, causal)
        elif t == 1:  # the heads of a group are as many queries of one head: nothing that is cached is copied
            a = attention(q.reshape(len(q), k.shape[1], -1, q.shape[3]), k, v, mask, dropout).reshape(q.shape)
        else:
            k, v = _a_head_each(q, k, v)
            a = attention(q, k, v, mask, dropout, causal)
        return a.transpose(1, 2).flatten(2)

    def weigh(self, q: Tensor, visible_BTS: Tensor | str | None, dropout: float) -> tuple[Tensor, Tensor]:
        """The same by way of the attention weights (B, H, T, S), which come back too, as they are before dropout."""
        t = q.shape[2]
        seen = visible_BTS[..., -t:, :] if isinstance(visible_BTS, Tensor) else _last_of(t, self.size, q.device)
        k, v = _a_head_each(q, self.k, self.v)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        a = F.dropout(weights, dropout) @ v
        return a.transpose(1, 2).flatten(2), weights

    def whole(self) -> tuple[Tensor, Tensor]:
        """K and V with the spare room behind them."""
        return (self.k, self.v) if self.room is None else (self.room["k"], self.room["v"])

    def rows(self, index_U: Tensor) -> "LayerCache":
        return LayerCache(self.k[index_U], self.v[index_U])


@dataclass(frozen=True)
class BranchedCache:
    """One layer where G rollouts of each prompt go on, position by position: the prompt's K and V once for all of them.

    `k` and `v` (P, H_kv, S, d), `visible_PS` None = all; `own`: what the P * G rollouts added. Without gradient.
    """

    k: Tensor
    v: Tensor
    visible_PS: Tensor | None
    own: LayerCache

    @property
    def size(self) -> int:
        return self.k.shape[2] + self.own.size

    def append(self, k: Tensor, v: Tensor) -> "BranchedCache":
        return replace(self, own=self.own.append(k.to(self.k.dtype), v.to(self.k.dtype)))

    def attend(self, q: Tensor, visible_BTS: None, dropout: float) -> Tensor:
        """Queries (P * G, H, 1, d) of the last position -> (P * G, 1, H d)."""
        prompts = len(self.k)
        own = tuple(x.unflatten(0, (prompts, -1)) for x in self.own.whole())
        q_PGHd = q[:, :, 0].to(self.k.dtype).unflatten(0, (prompts, -1))  # autocast leaves q and k in fp32
        lengths_PG = torch.full(q_PGHd.shape[:2], self.own.size, dtype=torch.int32, device=q.device)
        a_PGHd = shared_prefix_attention(q_PGHd, (self.k, self.v), own, self.visible_PS, lengths_PG)
        return a_PGHd.flatten(0, 1).flatten(1)[:, None]

    def weigh(self, q: Tensor, visible_BTS: None, dropout: float) -> tuple[Tensor, Tensor]:
        """The same without a kernel, the prompt's K and V copied for each rollout, and the weights (P * G, H, 1, S)."""
        group = len(q) // len(self.k)
        pairs = (self.k, self.own.k), (self.v, self.own.v)
        k, v = (torch.cat([prompt.repeat_interleave(group, 0), own], 2) for prompt, own in pairs)
        seen_B11S = None
        if self.visible_PS is not None:
            seen_BS = self.visible_PS.repeat_interleave(group, 0)
            seen_B11S = F.pad(seen_BS, (0, self.own.size), value=True)[:, None, None]
        return LayerCache(k, v).weigh(q, seen_B11S, dropout)


Caches = Sequence[LayerCache | BranchedCache]  # one a layer, all of one kind


@dataclass
class Context:
    """All that has been read so far: a value, never changed in place.

    `past`: one cache a layer, or what holds them all: the latent chain in training, the fused kernels' cache without
    gradient. `mask_BS`: which cached positions may be attended, None = all. `next_B`: the position id of the next
    token; `reach`: the largest of them, known without asking the device.
    """

    past: Caches | LatentChain | StaticCache
    mask_BS: Tensor | None
    next_B: Tensor
    reach: int

    @property
    def layers(self) -> Caches:
        """One cache a layer, copied out of what holds them all."""
        if isinstance(self.past, LatentChain):
            return [LayerCache(k, v) for k, v in self.past.read()]
        return [LayerCache(k, v) for k, v in self.past] if isinstance(self.past, StaticCache) else self.past

    @property
    def size(self) -> int:
        """Cached positions, hidden ones included."""
        return self.past.size if isinstance(self.past, (LatentChain, StaticCache)) else self.past[0].size

    def rows(self, index_U: Tensor) -> "Context":
        """Some rows, any of them as often as named."""
        mask = None if self.mask_BS is None else self.mask_BS[index_U]
        past = []
        for c in self.layers:
            assert isinstance(c, LayerCache)  # rollouts that have branched go on as they are
            past.append(c.rows(index_U))
        return Context(past, mask, self.next_B[index_U], self.reach)

    def branch(self, group: int) -> "Context":
        """For `group` rollouts of each row, row p * G + g, that go on position by position."""
        past = []
        for c in self.layers:
            b, heads, _, d = c.k.shape
            none = c.v.new_empty(b * group, heads, 0, d)
            k = c.k.to(c.v.dtype).contiguous()
            past.append(BranchedCache(k, c.v.contiguous(), self.mask_BS, LayerCache(none, none)))
        return Context(past, None, self.next_B.repeat_interleave(group), self.reach)

    def hide(self, hidden_BT: Tensor) -> "Context":
        """Make some of the last T positions invisible: True = hidden."""
        mask_BS = torch.ones(len(hidden_BT), self.size, dtype=torch.bool, device=hidden_BT.device)
        if self.mask_BS is not None:
            mask_BS = self.mask_BS.clone()
        mask_BS[:, self.size - hidden_BT.shape[1] :] &= ~hidden_BT
        return replace(self, mask_BS=mask_BS)

    def without_last(self, n: int) -> "Context":
        """As it was before the last n positions were read, whose ids were one apart; no layer may have branched."""
        past = []
        for c in self.layers:
            assert isinstance(c, LayerCache)  # as said above
            past.append(LayerCache(c.k[:, :, : c.size - n], c.v[:, :, : c.size - n]))
        mask_BS = None if self.mask_BS is None else self.mask_BS[:, : self.size - n]
        return Context(past, mask_BS, self.next_B - n, self.reach - n)

    def skip(self, n: int) -> "Context":
        """Leave `n` position ids empty."""
        return replace(self, next_B=self.next_B + n, reach=self.reach + n) if n else self
