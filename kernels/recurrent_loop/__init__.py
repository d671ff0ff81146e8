"""A loop along the depth without gradient: r recurrences of the same few layers over whole causal sequences.

    s_0 = 0,   s_i = norm(layers(s_{i-1} W_s + constant))

The constant half of the adapter, e W_e + b, is the same in every recurrence (`kernels.recurrent_block`). On a GPU all
recurrences are one launch where launches are what takes the time: the definition as a CUDA graph, for inputs of a kind
that comes often, or, where that was measured to be slower, a Triton kernel in which the weights stay where they are
used: as much of them as fits in the shared memory of all multiprocessors together (some 17 MB of an H100's 30), the
rest in the L2 cache (50 MB).

One layer at the sizes of GPT-2 or Qwen3-0.6B compiles for 15 to 22 s of a CPU, once; two of GPT-2 for 37 s (Triton 3.9,
sm_90). Two thirds of that are a pass that orders memory accesses, and more of them with every chunk that is kept. No
answer waits for it: the definition serves meanwhile.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels import dispatch, graphs
from kernels.decoder import Affine, Decoder
from kernels.errors import first_line
from kernels.recurrent_loop import reference

if TYPE_CHECKING:
    from kernels.recurrent_loop.triton import Loop, Weights

__all__ = ["RecurrentLoop"]

Ropes = tuple[Tensor, Tensor] | None  # cosines and sines (B, T, d)

_SIZES = 16  # numbers of sequences and positions whose buffers or graphs are kept at a time
# what `auto` takes the kernel for (positions, and bytes of the loop's weights), and the graph (positions x width^2 x
# layers of a recurrence), as measured on an H200: kernels/README.md and paper/LOG.md, 2026-11-27
FEW, SMALL, LARGE = 16, 50 * 2**20, 2**27


class RecurrentLoop:
    """Looped layers made ready to run. Keeps packed weights, buffers and graphs between calls.

    `decoder`: the layers of the loop; its final norm is not used. `carry_DD`: W_s, (in, out). `norm`: of a state, with
    a bias LayerNorm, without one RMSNorm. `chip`: what the GPU has, None = asked. Raises ValueError where `impl` is
    "triton" and it cannot be met.
    """

    def __init__(
        self,
        decoder: Decoder,
        carry_DD: Tensor,
        norm: Affine,
        eps: float = 1e-5,
        impl: dispatch.Impl | None = None,
        chip=None,
    ):
        self.decoder, self.carry, self.norm, self.eps = decoder, carry_DD, norm, eps
        self.impl, self.chip = impl, chip
        self._weights: Weights | None = None
        self._loops: dict[tuple[int, int], Loop] = {}
        self._met = graphs.Met()
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()  # by kind of call, the last used ones
        self._off = False  # once a capture has failed

    @torch.no_grad()
    def run(
        self,
        constant_BTD: Tensor,
        steps: int,
        ropes: tuple[Tensor, Tensor] | None = None,
        visible_BT: Tensor | None = None,
    ) -> Tensor:
        """States (B, R, T, D) after each of `steps` recurrences.

        `constant_BTD` is injected into each; `ropes`: cosines and sines (B, T, d) of the positions; `visible_BT`: which
        may be attended, besides by themselves, None = all. Raises ValueError for a negative number of steps or a shape,
        dtype or device that does not fit.
        """
        op = "recurrent_loop"
        dispatch.expect(op, "constant", constant_BTD, (None, None, None))
        batch, length, width = constant_BTD.shape
        if steps < 0:
            raise ValueError(f"{op}: the number of steps must be at least 0, got {steps}")
        dispatch.expect(op, "carry", self.carry, (width, width), like=constant_BTD)
        for name, x in zip(("norm weight", "norm bias"), self.norm):
            if x is not None:
                dispatch.expect(op, name, x, (width,), like=constant_BTD)
        if ropes is not None:
            for name, x in zip(("cosines", "sines"), ropes):
                dispatch.expect(op, name, x, (batch, length, self.decoder.d))
        if visible_BT is not None:
            dispatch.expect(op, "visible", visible_BT, (batch, length))
        if steps == 0 or constant_BTD.numel() == 0:
            return constant_BTD.new_empty(batch, steps, length, width)
        states_BRTD = self._one_launch(steps, constant_BTD, ropes, visible_BT)
        return self._defined(steps, constant_BTD, ropes, visible_BT) if states_BRTD is None else states_BRTD

    @torch.no_grad()
    def at_once(self, constant_BTD: Tensor, steps: int, ropes: Ropes, visible_BT: Tensor | None) -> Tensor | None:
        """What `run` returns where all recurrences are one launch, else None: for those who can make them one by one,
        and stop early. Also None for a constant of another dtype than the carry's, as autocast makes it."""
        if self.carry.dtype != constant_BTD.dtype or steps == 0 or constant_BTD.numel() == 0:
            return None
        return self._one_launch(steps, constant_BTD, ropes, visible_BT)

    def _one_launch(self, *inputs) -> Tensor | None:
        states_BRTD = self._by_kernel(*inputs)
        return self._by_graph(*inputs) if states_BRTD is None else states_BRTD

    def _by_kernel(self, steps: int, constant_BTD: Tensor, ropes: Ropes, visible_BT: Tensor | None) -> Tensor | None:
        """States; None where the kernel is not to serve, or is being compiled."""
        op = "recurrent_loop"
        if dispatch.choose(op, self.impl, constant_BTD, self.unless(constant_BTD)) == "torch":
            return None
        from kernels.recurrent_loop.triton import ROWS

        batch, length, _ = constant_BTD.shape
        rope = ropes and tuple(r.float() for r in ropes)
        slices = [slice(i, i + ROWS // length) for i in range(0, batch, ROWS // length)]  # sequences at a time
        with dispatch.launching(op, self.impl, constant_BTD):
            parts = [self._some(constant_BTD, steps, rope, visible_BT, some) for some in slices]
            states = [part for part in parts if part is not None]
            if len(states) == len(parts):
                return states[0] if len(states) == 1 else torch.cat(states)
        return None

    def unless(self, constant_BTD: Tensor) -> str | None:
        """Why the Triton kernel is not to serve such an input; None if it is, or if there can be no kernel at all."""
        if dispatch.unavailable(constant_BTD.device):
            return None
        from kernels.recurrent_loop.triton import LAYERS, ROWS

        if reason := dispatch.not_floats(constant_BTD):
            return reason
        batch, length, _ = constant_BTD.shape
        if length > ROWS:
            return f"it takes up to {ROWS} positions"  # whatever these are: it is said once
        if len(self.decoder.layers) > LAYERS:
            return f"it unrolls up to {LAYERS} layers, not {len(self.decoder.layers)}"
        if dispatch.asked(self.impl) == "auto":
            if len(self.decoder.layers) > 1:
                return "several layers compile long, and no benchmark has them"
            if batch * length > FEW:
                return f"with more than {FEW} positions, all sequences together, plain torch is faster"
            if self.decoder.kind == "layer":
                return "with LayerNorm a graph of plain torch is as fast"
            if self._bytes() > SMALL:
                return "the L2 cache does not hold its weights"
        return self.decoder.mixed()

    def _bytes(self) -> int:
        """Of what a recurrence multiplies."""
        weights = [
            weight for layer in self.decoder.layers for weight, _ in (*layer.qkv, layer.out, *layer.up, layer.down)
        ]
        return sum(weight.nbytes for weight in (self.carry, *weights))

    def _defined(self, steps: int, constant_BTD: Tensor, ropes: Ropes, visible_BT: Tensor | None) -> Tensor:
        norm = self.norm, self.eps
        return reference.run(self.decoder, self.carry, norm, constant_BTD, steps, ropes, visible_BT)

    def _by_graph(self, steps: int, constant_BTD: Tensor, ropes: Ropes, visible_BT: Tensor | None) -> Tensor | None:
        """States; None where it is not to serve: for kinds of call that do not come often, for large ones, for more
        kinds than memory allows, and once a capture has failed."""
        products = constant_BTD.numel() * constant_BTD.shape[-1] * len(self.decoder.layers)
        if self._off or dispatch.asked(self.impl) != "auto" or not graphs.wanted(constant_BTD) or products > LARGE:
            return None
        inputs = (constant_BTD, *(ropes or (None, None)), visible_BT)
        kind = (
            steps,
            dispatch.autocast_dtype(constant_BTD.device),
            *(None if x is None else (x.shape, x.dtype) for x in inputs),
        )
        often = self._met.often(kind)
        if kind not in self._captured and often and self._make_room(steps * constant_BTD.nbytes):
            self._capture(kind, steps, inputs)
        if kind not in self._captured:
            return None
        self._captured.move_to_end(kind)
        return self._captured[kind](inputs)

    def _capture(self, kind: tuple, steps: int, inputs: tuple[Tensor | None, ...]) -> None:
        def run(constant_BTD: Tensor, cos: Tensor | None, sin: Tensor | None, visible_BT: Tensor | None) -> Tensor:
            return self._defined(steps, constant_BTD, None if cos is None or sin is None else (cos, sin), visible_BT)

        try:
            with torch.inference_mode(False), torch.no_grad():  # written again in whatever mode the next call has
                made = Captured(run, inputs)
        except RuntimeError as e:
            self._off = True
            self._captured.clear()
            told = "recurrent_loop: recurrences are launched op by op, not as a CUDA graph: %s"
            dispatch.log.warning(told, first_line(e))
            return
        self._captured[kind] = made

    def _make_room(self, needed: int) -> bool:
        """Let go of graphs of kinds that did not come lately. Returns whether there is room for another one, with so
        many bytes of states."""
        kept = self._captured
        stale = [kind for kind in kept if not self._met.lately(kind)]
        if len(kept) == _SIZES:
            if not stale:
                return False
            kept.pop(stale.pop(0))
        limit = graphs.limit(self.carry.device)
        return graphs.make_room(needed, lambda: [each.bytes for each in kept.values()], stale, kept.pop, limit)

    def _some(self, constant_BTD, steps: int, ropes, visible_BT, rows: slice) -> Tensor | None:
        """States of some of the sequences; None while the kernel is compiled."""
        from kernels.recurrent_loop.triton import Loop, Weights, chip

        constant_BTD = constant_BTD[rows].contiguous()
        batch, length, _ = constant_BTD.shape
        key = batch, length
        # buffers made here are written again in whatever mode the next call has
        with torch.inference_mode(False), torch.no_grad():
            if self._weights is None:
                self._weights = Weights(self.decoder)
            if key not in self._loops:
                if len(self._loops) == _SIZES:
                    self._loops.pop(next(iter(self._loops)))
                found = self.chip or chip(self.carry.device)
                self._loops[key] = Loop(
                    self.decoder, self._weights, self.carry, self.norm, self.eps, batch, length, found
                )
            if rows.start == 0:
                self._weights.refresh()
            ropes = ropes and tuple(r[rows].contiguous() for r in ropes)
            visible_BT = None if visible_BT is None else visible_BT[rows]
            loop, given = self._loops[key], (constant_BTD, steps, ropes, visible_BT)
            variant = tuple(loop.options(ropes is not None, visible_BT is not None).items())
            if not dispatch.compiled("recurrent_loop", self.impl, constant_BTD, variant, partial(loop.compile, *given)):
                return None
            states_RND = loop(*given)
        return states_RND.unflatten(1, key).transpose(0, 1)


class Captured:
    """The definition as a CUDA graph, for inputs of one kind. Weights are read where they lie."""

    def __init__(self, run: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]):
        self.inputs = [x if x is None else x.clone() for x in inputs]
        given = [x for x in self.inputs if x is not None]
        with torch.cuda.device(given[0].device) if given[0].is_cuda else nullcontext():
            self.graph, self.states, held = graphs.captured(lambda: run(*self.inputs))
        self.bytes = held + sum(x.nbytes for x in given)

    def __call__(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        for mine, theirs in zip(self.inputs, inputs):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self.graph.replay()
        return self.states.clone()
