"""A chain of latent steps without gradient: k positions, each fed from the hidden state of the one before.

The definition is `kernels.latent_chain.reference.step`, repeated. The Triton version runs a layer in five launches
(`triton.py`) and, on a GPU, replays the whole chain, feedback included, as one CUDA graph: static caches, no host
synchronisation between the prompt and the last latent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import dispatch
from kernels.decoder import Decoder
from kernels.latent_chain.reference import step

__all__ = ["LatentDecoder"]

Feed = Callable[[Tensor], Tensor] | None  # hidden state (B, D) -> the next input; None = as it is
Past = list[tuple[Tensor, Tensor]]
_GRAPHS = 16  # kept at a time, each with its caches
_GRAIN = 64  # prompts are padded at the front to a multiple of it, so that one graph serves many lengths


class LatentDecoder:
    """A decoder made ready for chains of latent steps. Keeps buffers and graphs between calls.

    Raises ValueError, as every op does, where `impl` is "triton" and it cannot be met.
    """

    def __init__(self, decoder: Decoder, impl: dispatch.Impl | None = None):
        weight = decoder.norm[0]
        self.decoder = decoder
        amd = "it is made for NVIDIA's GPUs" if torch.version.hip else None
        self.impl = dispatch.choose("decode_step", impl, weight, dispatch.not_floats(weight) or amd or decoder.mixed())
        self._steps: dict[int, object] = {}
        self._graphs: dict[tuple, _Graph] = {}

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
    ) -> tuple[Tensor, Past]:
        """States (B, K, D) of `steps` latents, and K and V of each layer, (B, H_kv, S + K, d).

        `past`: K and V (B, H_kv, S, d) of what was read; `h_BD` its last hidden state. `add_KBD` is added to each
        step's input (learned positions), `ropes` are cosines and sines (K, B, d) of the latents' positions.
        `visible_BS`: which read positions may be attended, None = all. Raises ValueError for a negative number of steps
        or a shape that does not fit.
        """
        batch, _, size, _ = past[0][0].shape
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
        if self.impl == "torch":
            return self._torch(past, h_BD, feed, steps, add_KBD, ropes, visible_BS)
        # buffers made here are written again in whatever mode the next call has; leaving it allows gradients
        with torch.inference_mode(False), torch.no_grad():
            if not h_BD.is_cuda:
                chain = _Chain(self, batch, size, steps, h_BD, ropes is not None)
                chain.load(past, h_BD, add_KBD, ropes, visible_BS)
                chain.launch(feed)
                return chain.result(size)
            padded = -(-size // _GRAIN) * _GRAIN
            key = (batch, padded, steps, ropes is not None, feed)
            if key not in self._graphs:
                if len(self._graphs) == _GRAPHS:
                    self._graphs.pop(next(iter(self._graphs)))
                self._graphs[key] = _Graph(_Chain(self, batch, padded, steps, h_BD, ropes is not None), feed)
            return self._graphs[key].replay(past, h_BD, add_KBD, ropes, visible_BS)

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

    def step_for(self, batch: int):
        """Buffers and tiles for a batch size."""
        from kernels.decode_step.triton import Step

        if batch not in self._steps:
            self._steps[batch] = Step(self.decoder, batch)
        return self._steps[batch]


class _Chain:
    """Static tensors of k steps after a prompt of `size` positions, padded at the front; `launch` runs them."""

    def __init__(self, owner: LatentDecoder, batch: int, size: int, steps: int, like: Tensor, rotary: bool):
        dec = owner.decoder
        self.owner, self.batch, self.size, self.steps = owner, batch, size, steps
        shape = (batch, dec.kv_heads, size + steps, dec.d)
        self.kv = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in dec.layers]
        self.h, self.add = torch.empty_like(like), like.new_zeros(steps, *like.shape)
        self.hidden = like.new_zeros(batch, size + steps, dtype=torch.uint8)
        self.ropes = [like.new_zeros(steps, batch, dec.d, dtype=torch.float32) for _ in range(2)] if rotary else None
        self.states = like.new_empty(steps, batch, like.shape[1])

    def load(self, past: Past, h_BD: Tensor, add_KBD: Tensor | None, ropes, visible_BS: Tensor | None) -> None:
        start = self.size - past[0][0].shape[2]
        for mine, theirs in zip(self.kv, past):
            for m, t in zip(mine, theirs):
                m[:, :, start : self.size].copy_(t)
        self.h.copy_(h_BD)
        self.add.zero_() if add_KBD is None else self.add.copy_(add_KBD)
        for x in (x for pair in self.kv for x in pair):
            x[:, :, :start].zero_()  # hidden, but what a masked weight of 0 multiplies must be a number
        self.hidden.zero_()
        self.hidden[:, :start] = 1
        if visible_BS is not None:
            self.hidden[:, start : self.size] = ~visible_BS
        for m, t in zip(self.ropes or (), ropes or ()):
            m.copy_(t)

    def launch(self, feed: Feed) -> None:
        run, h = self.owner.step_for(self.batch), self.h
        for i in range(self.steps):
            rope = self.ropes and tuple(r[i] for r in self.ropes)
            x = h if feed is None else feed(h)
            run(x, self.add[i], self.kv, self.size + i, rope, self.hidden, self.states[i])
            h = self.states[i]

    def result(self, size: int) -> tuple[Tensor, Past]:
        """Copies, so that the next run does not write into them."""
        kept = slice(self.size - size, None)
        longer = [(k[:, :, kept].clone(), v[:, :, kept].clone()) for k, v in self.kv]
        return self.states.transpose(0, 1).clone(), longer


def captured(run: Callable, warm: int = 1) -> tuple[torch.cuda.CUDAGraph, object]:
    """A function in a CUDA graph, and what it returned, which every replay writes anew; run `warm` times before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and lets libraries allocate, before the capture
        for _ in range(warm):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


class _Graph:
    """A chain captured once and replayed."""

    def __init__(self, chain: _Chain, feed: Feed):
        self.chain = chain
        self.graph, _ = captured(lambda: chain.launch(feed))

    def replay(self, past: Past, h_BD: Tensor, add_KBD, ropes, visible_BS) -> tuple[Tensor, Past]:
        self.chain.load(past, h_BD, add_KBD, ropes, visible_BS)
        self.graph.replay()
        return self.chain.result(past[0][0].shape[2])
