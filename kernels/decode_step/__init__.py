"""Latent steps and text tokens without gradient: positions of one token each, every one fed from what came before.

The definition is `kernels.latent_chain.reference.step`, repeated. The Triton version runs a layer in five launches
(`triton.py`) and, on a GPU, replays k steps as one CUDA graph over a cache of fixed size, with all that lies between a
state and the next input: a feedback, or the choice of a token. Nothing waits for the host.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import dispatch, graphs
from kernels.decode_step.cache import Fed, Feed, Inputs, Past, Scan, StaticCache, Tensors, Workspace
from kernels.decoder import Decoder
from kernels.latent_chain.reference import step

__all__ = ["Fed", "Feed", "LatentDecoder", "Scan", "StaticCache", "Tensors"]

MOST = 32  # of these caches
_SPARE = 32  # positions of a cache beyond those asked for, for the text that follows


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
        self._workspaces: OrderedDict[tuple[int, int], Workspace] = OrderedDict()  # by batch and room
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
        if steps < 0:
            raise ValueError(f"decode_step: the number of steps must be at least 0, got {steps}")
        if steps == 0:
            return h_BD.new_empty(len(h_BD), 0, h_BD.shape[1]), past
        return self.scan(past, h_BD, Fed(feed), steps, (), (), add_KBD, ropes, visible_BS, reads)[:2]

    @torch.no_grad()
    def scan(
        self,
        past: Past,
        h_BD: Tensor,
        scan: Scan,
        steps: int,
        given: Tensors,
        carry: Tensors,
        add_KBD: Tensor | None = None,
        ropes: tuple[Tensor, Tensor] | None = None,
        visible_BS: Tensor | None = None,
        reads: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Past, Tensors, Tensors]:
        """The same by a scan, with what it carries on, (B, ...) each, and all that it made, (B, K, ...) each.

        `given` (K, B, ...) and `carry` (B, ...) are what it takes. Raises ValueError where there is no step, too.
        """
        batch, _, size, _ = past.shape if isinstance(past, StaticCache) else past[0][0].shape
        if steps < 1:
            raise ValueError(f"decode_step: the number of steps of a scan must be at least 1, got {steps}")
        dispatch.expect("decode_step", "h", h_BD, (batch, self.decoder.norm[0].shape[0]))
        if visible_BS is not None:
            dispatch.expect("decode_step", "visible", visible_BS, (batch, size))
        if ropes is not None:
            for name, x in zip(("cosines", "sines"), ropes):
                dispatch.expect("decode_step", name, x, (steps, batch, self.decoder.d))
        if add_KBD is not None:
            dispatch.expect("decode_step", "add", add_KBD, (steps, *h_BD.shape))
        inputs = Inputs(h_BD, given, carry, add_KBD, ropes)
        if batch and self.serves(h_BD):
            # buffers made here are written again in whatever mode the next call has; leaving it allows gradients
            mode = torch.inference_mode(False), torch.no_grad()
            with dispatch.launching("decode_step", self.asked, h_BD), mode[0], mode[1]:
                workspace = self._workspace(past, batch, size, steps, visible_BS)
                before = workspace.bytes
                states_BKD, carry, made = workspace.run(scan, steps, inputs, tuple(x.data_ptr() for x in reads))
                if workspace.bytes > before:  # a graph has been captured
                    self._make_room()
                return states_BKD, StaticCache(self, workspace, batch, visible_BS), carry, made
        return self._torch(past, scan, steps, inputs, visible_BS)

    def serves(self, h_BD: Tensor) -> bool:
        """Whether kernels run for such states: not where theirs did not compile."""
        return self.impl == "triton" and dispatch.choose("decode_step", self.asked, h_BD) == "triton"

    def _torch(
        self, past: Past, scan: Scan, steps: int, inputs: Inputs, visible_BS: Tensor | None
    ) -> tuple[Tensor, Past, Tensors, Tensors]:
        h_BD, carry, longer, states, made = inputs.h_BD, inputs.carry, list(past), [], []
        for i in range(steps):
            rope = inputs.ropes and tuple(r[i].to(h_BD.dtype) for r in inputs.ropes)
            mask = None
            if visible_BS is not None:
                mask = torch.cat([visible_BS, visible_BS.new_ones(len(h_BD), i + 1)], 1)
            x_BD, carry, new = scan(h_BD, carry, tuple(g[i] for g in inputs.given))
            x_BD = x_BD if inputs.add_KBD is None else x_BD + inputs.add_KBD[i]
            h_BD, longer = step(x_BD, longer, self.decoder, rope, mask)
            states.append(h_BD)
            made.append(new)
        return torch.stack(states, 1), longer, carry, tuple(torch.stack(each, 1) for each in zip(*made))

    def _workspace(self, past: Past, batch: int, size: int, steps: int, visible_BS: Tensor | None) -> Workspace:
        """One that holds `past` and has room for `steps` more positions."""
        if isinstance(past, StaticCache) and past.at_end and size + steps <= past.workspace.room:
            found = past.workspace
            if visible_BS is not found.shown:
                found.show(visible_BS)
            return found
        room = graphs.room_for(size + steps + _SPARE)
        key = batch, room
        if key not in self._workspaces:
            made = Workspace(self.decoder, self._step(batch), batch, room, self.dtype, self.device)
            self._workspaces[key] = made
            self._make_room()
        self._workspaces.move_to_end(key)
        self._workspaces[key].load(past, size, visible_BS)
        return self._workspaces[key]

    def _make_room(self) -> None:
        """Let go of the caches not used for longest, with their graphs, until the rest keeps within `limit`."""
        limit = self.limit
        while len(kept := self._workspaces) > 1 and (len(kept) > MOST or sum(w.bytes for w in kept.values()) > limit):
            (batch, _), _ = kept.popitem(last=False)
            if all(other != batch for other, _ in kept):
                self._steps.pop(batch)

    @property
    def limit(self) -> float:
        """Bytes that caches may take together, with the memory of their graphs; one is always kept."""
        return graphs.limit(self.device)

    def bytes(self, batch: int, size: int) -> int:
        """Bytes of K and V of so many rows and positions."""
        dec = self.decoder
        return 2 * len(dec.layers) * batch * size * dec.kv_heads * dec.d * self.dtype.itemsize

    def _step(self, batch: int):
        from kernels.decode_step.triton import Step

        if batch not in self._steps:
            self._steps[batch] = Step(self.decoder, batch)
        return self._steps[batch]
