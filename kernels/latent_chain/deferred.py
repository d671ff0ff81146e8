"""The chain with one autograd node a step, K and V in one buffer, and weight gradients made once, at the end.

A step's backward computes what the step before needs, the gradient of its input, and keeps the pairs (input, output
gradient) of each projection; when the last of them has run, one product a weight makes dW over all steps. The nodes
are ordered by a token, an empty tensor that each takes from the one before: so a step's backward runs after that of
everything that attends it, and finds the gradient of its K and V complete.

Under autocast the projections are converted once a chain. What is multiplied is in its dtype; the residual stream, the
norms and the sums over positions stay in fp32, and so do the weights' gradients, converted once.

On a GPU a step is a CUDA graph each way (`replay.py`): what is here is what they are captured from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.decoder import Affine, Decoder
from kernels.latent_chain.reference import ACTIVATIONS, linear

if TYPE_CHECKING:
    from kernels.latent_chain.replay import Graphs, Workspace

_SPARE = 16  # positions allocated ahead
aten = torch.ops.aten
Rope = tuple[Tensor, Tensor] | None  # cosines and sines (B, d)
Pairs = list[tuple[Tensor, ...]]  # of each projection and norm its input and its output's gradient


class Place(Protocol):
    """A position s of buffers (S, ...)."""

    def put(self, buffer: Tensor, value: Tensor) -> None: ...

    def attended(self, buffer: Tensor) -> Tensor:
        """The positions that it attends, itself included."""
        ...

    def own(self, buffer: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Known:
    """One that the host knows: what comes after it is not read at all."""

    s: int

    def put(self, buffer: Tensor, value: Tensor) -> None:
        buffer[self.s] = value

    def attended(self, buffer: Tensor) -> Tensor:
        return buffer[: self.s + 1]

    def own(self, buffer: Tensor) -> Tensor:
        return buffer[self.s]


@dataclass(eq=False)
class Chain:
    """What the nodes of one chain share: the weights, K and V as (L, S, B, H_kv, d), and what backward gathers.

    `decoder` is what is computed with: the model's, or under autocast the same with projections in `autocast`. With
    `work`, K and V and what steps keep lie there, and its graphs compute them.
    """

    model: Decoder
    autocast: torch.dtype | None
    recompute: bool
    graphs: Graphs | None = None
    work: Workspace | None = None
    decoder: Decoder = field(init=False)
    affines: list[Affine] = field(init=False)  # the model's
    params: list[Tensor] = field(init=False)  # their tensors: weights, and those biases that exist
    k: Tensor = field(init=False)
    v: Tensor = field(init=False)
    size: int = field(init=False)  # positions in K and V when it began
    filled: int = field(init=False)  # positions in them now
    versions: list[int] = field(init=False)
    wanted: list[bool] = field(init=False)  # which of the parameters need a gradient
    gathered: Gathered | None = None

    def __post_init__(self):
        if self.work is not None:
            self.decoder = self.work.decoder
        else:
            self.decoder = self.model if self.autocast is None else self.model.multiplied_in(self.autocast)
        self.affines = self.model.affines()
        self.params = [p for affine in self.affines for p in affine if p is not None]

    def exactly(self) -> AbstractContextManager:
        """Within, every product has the dtype of its factors: they have been converted already, or a graph is made."""
        off = self.autocast is not None or self.work is not None
        return torch.autocast(self.k.device.type, enabled=False) if off else nullcontext()

    def backward(self) -> Gathered:
        """What this pass backwards has gathered so far; an earlier pass may have left its own unfinished."""
        task = torch._C._current_graph_task_id()
        if self.gathered is None or self.gathered.task != task:
            if [p._version for p in self.params] != self.versions:
                raise RuntimeError("a weight of the latent chain was changed in place between forward and backward")
            if self.work is not None:
                dk, dv = self.work.dk.zero_(), self.work.dv.zero_()
            else:
                more = torch.promote_types(self.k.dtype, torch.float32)
                dk, dv = (torch.zeros_like(x[:, : self.filled], dtype=more) for x in (self.k, self.v))
            self.gathered = Gathered(task, dk, dv)
        return self.gathered


@dataclass
class Gathered:
    """Gradients of K and V, and each step's pairs."""

    task: int
    dk: Tensor
    dv: Tensor
    steps: list[Pairs] = field(default_factory=list)


class Open(Function):
    """K and V of every layer, (B, H_kv, S, d), and the weights -> the first token."""

    @staticmethod
    def forward(ctx, chain: Chain, *tensors: Tensor):
        kv, n = tensors[: -len(chain.params)], len(chain.decoder.layers)
        b, h, size, d = kv[0].shape
        if chain.work is not None:
            chain.k, chain.v = chain.work.k, chain.work.v
            for x in (chain.k, chain.v):
                x[:, size:].zero_()  # is multiplied by nothing, which must not be infinite
        else:
            chain.k, chain.v = (kv[0].new_empty(n, size + _SPARE, b, h, d) for _ in "kv")
        for i, (k, v) in enumerate(zip(kv[::2], kv[1::2])):
            chain.k[i, :size], chain.v[i, :size] = k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)
        chain.size = chain.filled = size
        chain.versions = [p._version for p in chain.params]
        chain.wanted = list(ctx.needs_input_grad[1 + len(kv) :])
        ctx.chain = chain
        return chain.k.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        chain, found = ctx.chain, ctx.chain.backward()
        kv = []
        for dk, dv in zip(found.dk, found.dv):
            kv += [g[: chain.size].permute(1, 2, 0, 3).to(chain.k.dtype, copy=chain.work is not None) for g in (dk, dv)]
        weights, wanted = [], iter(chain.wanted)
        steps_of = zip(*found.steps) if found.steps else [None] * len(chain.affines)
        for affine, steps in zip(chain.affines, steps_of, strict=True):
            need = [p is not None and next(wanted) for p in affine]
            grads = _weight_grads(affine, need, steps, chain.decoder) if steps else (None, None)
            weights += [g for g, p in zip(grads, affine) if p is not None]
        chain.gathered = None
        return None, *kv, *weights


def _weight_grads(affine: Affine, need: list[bool], steps: Iterable[tuple], decoder: Decoder) -> tuple:
    """dW and db of a projection or a norm over all steps."""
    if not any(need):
        return None, None
    x, dy, *stats = (torch.cat(parts) for parts in zip(*steps))
    weight, bias = affine
    if weight.dim() == 2:
        dw = (x.t() @ dy).to(weight.dtype) if need[0] else None
        return dw, None if bias is None or not need[1] else dy.sum(0, dtype=bias.dtype)
    if decoder.kind == "layer":
        mask = (False, need[0], need[1])
        return aten.native_layer_norm_backward(dy, x, weight.shape, *stats, weight, bias, mask)[1:]
    return (dy * x).sum(tuple(range(dy.dim() - 1))).to(weight.dtype), None  # x is normalised already


class Step(Function):
    """One position x (B, D) through the decoder -> its final hidden state (B, D), and the next token."""

    @staticmethod
    def forward(ctx, x_BD, token, chain: Chain, rope: Rope, visible_SB11):
        s = chain.filled
        if chain.work is None and s == chain.k.shape[1]:
            chain.k, chain.v = (torch.cat([x, torch.empty_like(x)], 1) for x in (chain.k, chain.v))
        chain.filled = s + 1
        ctx.chain, ctx.dtype, ctx.saved = chain, x_BD.dtype, None
        with chain.exactly():
            if chain.work is not None:
                ctx.slot = chain.work.slot(s - chain.size, x_BD, rope)
                h_BD = ctx.slot.forward(x_BD, s, rope, visible_SB11)
            else:
                ctx.slot = None
                h_BD, saved = forward(x_BD, chain.decoder, chain.k, chain.v, Known(s), rope, visible_SB11, write=True)
                ctx.s, ctx.rope, ctx.visible = s, rope, visible_SB11
                ctx.save_for_backward(x_BD)
                ctx.saved = None if chain.recompute else saved
        return h_BD, token.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dh_BD, _):
        """The gradient of the step's input; those of K and V are added up, the weights' pairs kept for `Open`."""
        chain, found = ctx.chain, ctx.chain.backward()
        if ctx.slot is not None:
            dx, pairs = ctx.slot.backward(dh_BD)
        else:
            at, saved = Known(ctx.s), ctx.saved
            if saved is None:
                (x_BD,) = ctx.saved_tensors
                _, saved = forward(x_BD, chain.decoder, chain.k, chain.v, at, ctx.rope, ctx.visible, write=False)
            dx, pairs = backward(dh_BD, saved, chain.decoder, chain.k, chain.v, found.dk, found.dv, at, ctx.rope)
        found.steps.append(pairs)
        return dx.to(ctx.dtype), None, None, None, None


class Read(Function):
    """A token -> K and V of the first `size` positions, (B, H_kv, S, d), layer after layer."""

    @staticmethod
    def forward(ctx, token, chain: Chain, size: int):
        ctx.chain, ctx.size = chain, size
        out = []
        for k, v in zip(chain.k, chain.v):
            out += [x[:size].permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format) for x in (k, v)]
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        found = ctx.chain.backward()
        for i, (dk, dv) in enumerate(zip(grads[::2], grads[1::2])):
            found.dk[i, : ctx.size] += dk.permute(2, 0, 1, 3)
            found.dv[i, : ctx.size] += dv.permute(2, 0, 1, 3)
        return None, None, None


def forward(
    x: Tensor,
    dec: Decoder,
    k_all: Tensor,
    v_all: Tensor,
    at: Place,
    rope: Rope,
    visible_SB11: Tensor | None,
    write: bool,
) -> tuple[Tensor, list]:
    """The step at a position of K and V (L, S, B, H_kv, d), and what its backward reads."""
    saved: list = []
    b, sizes = len(x), [h * dec.d for h in (dec.heads, dec.kv_heads, dec.kv_heads)]
    half, x = dec.layers[0].out[0].dtype, x.to(torch.promote_types(x.dtype, dec.norm[0].dtype))
    more = torch.promote_types(x.dtype, torch.float32)
    for i, layer in enumerate(dec.layers):
        n, n_stats = _norm(x, layer.norm_1, dec)
        n = n.to(half)
        parts = [linear(n, p) for p in layer.qkv]
        q, k, v = (p.view(b, -1, dec.d) for p in (parts[0].split(sizes, 1) if len(parts) == 1 else parts))
        qk_stats = None
        if layer.qk_norm:
            (q, q_stats), (k, k_stats) = (_norm(y, p, dec) for y, p in zip((q, k), layer.qk_norm))
            qk_stats = q_stats, k_stats
        if rope is not None:
            q, k = (_rotate(y.to(rope[0].dtype), *rope) for y in (q, k))
        if write:
            at.put(k_all[i], k)
            at.put(v_all[i], v)
        k_SBH1d, v_SBH1d = (at.attended(x[i]).unsqueeze(3) for x in (k_all, v_all))
        q_BHGd = q.unflatten(1, (dec.kv_heads, -1)).to(more) * dec.d**-0.5
        score_SBHG = (k_SBH1d * q_BHGd).sum(-1)
        if visible_SB11 is not None:
            score_SBHG.masked_fill_(~visible_SB11, float("-inf"))
        p_SBHG = score_SBHG.softmax(0)
        a = (p_SBHG.unsqueeze(-1) * v_SBH1d).sum(0).view(b, -1).to(half)
        y = _added(linear(a, layer.out), x)
        m, m_stats = _norm(y, layer.norm_2, dec)
        m = m.to(half)
        ups = [linear(m, p) for p in layer.up]
        u = ACTIVATIONS[dec.act](ups[0])
        inner = u * ups[1] if len(ups) == 2 else u
        saved.append((n_stats, n, qk_stats, q_BHGd, p_SBHG, a, m_stats, m, ups, u, inner))
        x = _added(linear(inner, layer.down), y)
    h, h_stats = _norm(x, dec.norm, dec)
    return h, [*saved, h_stats]


def backward(
    dh_BD: Tensor, saved: list, dec: Decoder, k_all: Tensor, v_all: Tensor, dk_all: Tensor, dv_all: Tensor, at: Place,
    rope: Rope,
) -> tuple[Tensor, Pairs]:  # fmt: skip
    """The gradient of a step's input, and its pairs; those of K and V are added up."""
    *layers, h_stats = saved
    half = dec.layers[0].out[0].dtype
    turned = half if rope is None else rope[0].dtype
    dx, pair = _norm_backward(dh_BD, dec.norm, h_stats, dec)
    pairs = [pair]  # the last first: `affines` backwards
    for i in reversed(range(len(layers))):
        layer = dec.layers[i]
        n_stats, n, qk_stats, q_BHGd, p_SBHG, a, m_stats, m, ups, u, inner = layers[i]
        dy = dx.to(half)
        pairs.append((inner, dy))
        dinner = dy @ layer.down[0].t()
        dups = [_ACTIVATION_BACKWARD[dec.act](dinner * ups[1] if len(ups) == 2 else dinner, ups[0], u)]
        if len(ups) == 2:
            dups.append(dinner * u)
        dm = None
        for dup, (weight, _bias) in zip(reversed(dups), reversed(layer.up)):
            pairs.append((m, dup))
            dm = dup @ weight.t() if dm is None else dm.addmm_(dup, weight.t())
        assert dm is not None  # every layer has such projections
        dm, pair = _norm_backward(dm, layer.norm_2, m_stats, dec)
        dx = dm.add_(dx)
        dy = dx.to(half)
        pairs += [pair, (a, dy)]
        da_BHGd = (dy @ layer.out[0].t()).view_as(q_BHGd).to(q_BHGd.dtype)
        k_SBH1d, v_SBH1d = (at.attended(x[i]).unsqueeze(3) for x in (k_all, v_all))
        dk_SBHd, dv_SBHd = (at.attended(x[i]) for x in (dk_all, dv_all))
        dp_SBHG = (v_SBH1d * da_BHGd).sum(-1).mul_(p_SBHG)
        ds_SBHG = dp_SBHG.sub_(p_SBHG * dp_SBHG.sum(0))
        for g in range(q_BHGd.shape[2]):
            dv_SBHd.addcmul_(p_SBHG[..., g, None], da_BHGd[:, :, g])
            dk_SBHd.addcmul_(ds_SBHG[..., g, None], q_BHGd[:, :, g])
        dq = (ds_SBHG.unsqueeze(-1) * k_SBH1d).sum(0).mul_(dec.d**-0.5).flatten(1, 2).to(turned)
        dk, dv = at.own(dk_all[i]).to(turned), at.own(dv_all[i]).to(half)
        if rope is not None:
            dq, dk = _rotate_backward(dq, *rope), _rotate_backward(dk, *rope)
        if layer.qk_norm:
            dk, k_pair = _norm_backward(dk, layer.qk_norm[1], qk_stats[1], dec)
            dq, q_pair = _norm_backward(dq, layer.qk_norm[0], qk_stats[0], dec)
            pairs += [k_pair, q_pair]
        grads = [g.flatten(1).to(half) for g in (dq, dk, dv)]
        if len(layer.qkv) == 1:
            grads = [torch.cat(grads, 1)]
        dn = None
        for grad, (weight, _bias) in zip(reversed(grads), reversed(layer.qkv)):
            pairs.append((n, grad))
            dn = grad @ weight.t() if dn is None else dn.addmm_(grad, weight.t())
        assert dn is not None
        dn, pair = _norm_backward(dn, layer.norm_1, n_stats, dec)
        dx = dn.add_(dx)
        pairs.append(pair)
    return dx, pairs[::-1]


def _added(y: Tensor, x: Tensor) -> Tensor:
    """x + y, which nobody else reads, in the dtype of the stream x."""
    return y.add_(x) if y.dtype == x.dtype else x + y


def _norm(x: Tensor, affine: Affine, dec: Decoder) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The normed x, and what the backward needs: for LayerNorm x, mean and 1/std; for RMSNorm x normed and 1/rms."""
    weight, bias = affine
    if dec.kind == "layer":
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, dec.eps)
        return y, (x, mean, rstd)
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(full.square().mean(-1, keepdim=True).add_(dec.eps))
    normed = (full * scale).to(x.dtype)
    return normed * weight, (normed, scale)


def _norm_backward(dy: Tensor, affine: Affine, stats: tuple[Tensor, ...], dec: Decoder) -> tuple[Tensor, tuple]:
    """The gradient of what was normed, and what `_weight_grads` needs of this step."""
    weight, bias = affine
    if dec.kind == "layer":
        x, mean, rstd = stats
        dy, mask = dy.to(x.dtype), (True, False, False)
        dx = aten.native_layer_norm_backward(dy, x, weight.shape, mean, rstd, weight, bias, mask)[0]
        return dx, (x, dy, mean, rstd)
    normed, scale = stats
    dy = dy.to(normed.dtype)
    dn = (dy * weight).to(scale.dtype)
    return ((dn - normed * (dn * normed).mean(-1, keepdim=True)) * scale).to(dy.dtype), (normed, dy)


_ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # of du, and what goes in and comes out
    "relu": lambda du, _, after: aten.threshold_backward(du, after, 0),
    "silu": lambda du, before, _: aten.silu_backward(du, before),
    "gelu": lambda du, before, _: aten.gelu_backward(du, before, approximate="none"),
    "gelu_tanh": lambda du, before, _: aten.gelu_backward(du, before, approximate="tanh"),
}


def _rotate(x_BHd: Tensor, cos_Bd: Tensor, sin_Bd: Tensor) -> Tensor:
    a, b = x_BHd.chunk(2, -1)
    return torch.cat([-b, a], -1).mul_(sin_Bd[:, None]).addcmul_(x_BHd, cos_Bd[:, None])


def _rotate_backward(dy_BHd: Tensor, cos_Bd: Tensor, sin_Bd: Tensor) -> Tensor:
    a, b = (dy_BHd * sin_Bd[:, None]).chunk(2, -1)
    return torch.cat([b, -a], -1).addcmul_(dy_BHd, cos_Bd[:, None])
