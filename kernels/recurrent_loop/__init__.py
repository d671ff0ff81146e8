"""A loop along the depth without gradient: r recurrences of the same few layers over whole causal sequences.

    s_0 = 0,   s_i = norm(layers(s_{i-1} W_s + constant))

The constant half of the adapter, e W_e + b, is the same in every recurrence (`kernels.recurrent_block`). On a GPU all
recurrences are one launch as long as launches are what takes the time: the definition as a CUDA graph, or, where that
was measured to be slower, a Triton kernel in which the weights stay where they are used: as much of them as fits in the
shared memory of all multiprocessors together (some 17 MB of an H100's 30), the rest in the L2 cache (50 MB).

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
from kernels.recurrent_loop import reference

if TYPE_CHECKING:
    from kernels.recurrent_loop.triton import Loop, Weights

__all__ = ["RecurrentLoop"]

Inputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # constant, cosines, sines, visible

_SIZES = 16  # numbers of sequences and positions whose buffers or graphs are kept at a time
# what `auto` takes the kernel for (positions, and bytes of the loop's weights) and the graph (numbers in a state), as
# measured on an H200: kernels/README.md and paper/LOG.md
FEW, SMALL, LARGE = 16, 50 * 2**20, 2**20


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
        self._capturing = True  # until one has failed

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
        if self._by_kernel(constant_BTD):
            from kernels.recurrent_loop.triton import ROWS

            rope = ropes and tuple(r.float() for r in ropes)
            slices = [slice(i, i + ROWS // length) for i in range(0, batch, ROWS // length)]  # sequences at a time
            with dispatch.launching(op, self.impl, constant_BTD):
                parts = [self._some(constant_BTD, steps, rope, visible_BT, some) for some in slices]
                states = [part for part in parts if part is not None]
                if len(states) == len(parts):
                    return states[0] if len(states) == 1 else torch.cat(states)
        cos, sin = ropes or (None, None)
        inputs = constant_BTD, cos, sin, visible_BT
        states_BRTD = self._by_graph(steps, inputs) if self._as_graph(constant_BTD) else None
        return self._defined(steps, *inputs) if states_BRTD is None else states_BRTD

    def at_once(self, constant_BTD: Tensor) -> bool:
        """Whether all recurrences of such an input are one launch, or will be if more of its kind come."""
        return self._by_kernel(constant_BTD) or self._as_graph(constant_BTD)

    def _by_kernel(self, constant_BTD: Tensor) -> bool:
        return dispatch.choose("recurrent_loop", self.impl, constant_BTD, self.unless(constant_BTD)) == "triton"

    def _as_graph(self, constant_BTD: Tensor) -> bool:
        wanted = graphs.wanted(constant_BTD) and constant_BTD.numel() <= LARGE
        return self._capturing and wanted and dispatch.asked(self.impl) == "auto"

    def unless(self, constant_BTD: Tensor) -> str | None:
        """Why the Triton kernel is not to serve such an input; None if it is, or if there can be no kernel at all."""
        if dispatch.unavailable(constant_BTD.device):
            return None
        from kernels.recurrent_loop.triton import LAYERS, ROWS

        if reason := dispatch.not_floats(constant_BTD):
            return reason
        batch, length, _ = constant_BTD.shape
        if length > ROWS:
            return f"it takes up to {ROWS} positions, not {length}"
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

    def _defined(
        self, steps: int, constant_BTD: Tensor, cos: Tensor | None, sin: Tensor | None, visible_BT: Tensor | None
    ) -> Tensor:
        ropes = None if cos is None or sin is None else (cos, sin)
        return reference.run(self.decoder, self.carry, (self.norm, self.eps), constant_BTD, steps, ropes, visible_BT)

    def _by_graph(self, steps: int, inputs: Inputs) -> Tensor | None:
        """States; None for a kind of call that has not come often of late, or that cannot be captured."""
        place = self.carry.device.type
        mixed = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else None
        kind = steps, mixed, *(x if x is None else (x.shape, x.dtype) for x in inputs)
        if kind not in self._captured:
            if not self._met.often(kind):
                return None
            try:
                with torch.inference_mode(False), torch.no_grad():  # written again in whatever mode the next call has
                    made = Captured(partial(self._defined, steps), inputs)
            except RuntimeError as e:
                self._capturing = False
                self._captured.clear()
                why = str(e).strip().split("\n")[0]
                dispatch.log.warning(
                    "recurrent_loop: its recurrences are launched op by op, not as a CUDA graph: %s", why
                )
                return None
            self._captured[kind] = made
            kept, limit = self._captured, graphs.limit(self.carry.device)
            while len(kept) > 1 and (len(kept) > _SIZES or sum(each.bytes for each in kept.values()) > limit):
                kept.popitem(last=False)
        self._captured.move_to_end(kind)
        return self._captured[kind](inputs)

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

    def __init__(self, defined: Callable[..., Tensor], inputs: Inputs):
        self.inputs = [x if x is None else x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device) if inputs[0].is_cuda else nullcontext():
            self.graph, self.states, held = graphs.captured(lambda: defined(*self.inputs))
        self.bytes = held + sum(x.nbytes for x in self.inputs if x is not None)

    def __call__(self, inputs: Inputs) -> Tensor:
        for mine, theirs in zip(self.inputs, inputs):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self.graph.replay()
        return self.states.clone()
