"""Training through a chain of latent steps: each position feeds the next, and autograd goes back through all of them.

`LatentChain.of` starts one from a prompt's K and V, `step` goes on by one position, `read` hands out K and V for the
text that follows. Numbers and gradients are those of `reference.step` under plain autograd; the saving is in copies of
K and V, in weight gradients made once instead of at every step, and in one node a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.decoder import Decoder
from kernels.latent_chain.deferred import Chain, Open, Read, Step
from kernels.latent_chain.replay import Graphs, NotCaptured

__all__ = ["Graphs", "LatentChain"]


@dataclass(frozen=True)
class LatentChain:
    """A chain up to some position: a value; stepping returns the longer one.

    A second continuation of the same chain starts from `read`, so that none sees another's positions.
    """

    chain: Chain
    token: Tensor
    size: int

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        kv: list[tuple[Tensor, Tensor]],
        recompute: bool = False,
        autocast: torch.dtype | None = None,
        graphs: Graphs | None = None,
    ) -> "LatentChain":
        """Start from K and V of each layer, (B, H_kv, S, d).

        `recompute` keeps only each step's input until backward, and computes the step twice. `autocast`: what the
        projections are multiplied in, None = the dtype that they have. `graphs`: where a GPU's graphs are kept between
        chains, which a chain that recomputes does without.
        """
        work = None if graphs is None or recompute else graphs.workspace(decoder, kv[0][0], autocast)
        chain = Chain(decoder, autocast, recompute, graphs, work)
        if graphs is not None and work is not None:
            graphs.lend(chain, work)
        token = Open.apply(chain, *(x for pair in kv for x in pair), *chain.params)
        return cls(chain, token, chain.filled)

    def step(
        self, x_BD: Tensor, rope: tuple[Tensor, Tensor] | None = None, visible_BS: Tensor | None = None
    ) -> tuple[Tensor, "LatentChain"]:
        """One position x (B, D) -> its final hidden state (B, D) and the longer chain.

        `rope`: cosines and sines (B, d). `visible_BS`: which positions may be attended, the new one included; None =
        all. Raises ValueError for a shape that does not fit.
        """
        batch, width = self.chain.k.shape[2], self.chain.decoder.norm[0].shape[0]
        if x_BD.shape != (batch, width):
            raise ValueError(f"x must be {(batch, width)}, got {tuple(x_BD.shape)}")
        if visible_BS is not None and visible_BS.shape != (batch, self.size + 1):
            raise ValueError(f"visible must be {(batch, self.size + 1)}, got {tuple(visible_BS.shape)}")
        c = self.chain
        if c.filled != self.size or (c.work is not None and self.size == c.k.shape[1]):
            again = LatentChain.of(c.model, self.read(), c.recompute, c.autocast, c.graphs)
            return again.step(x_BD, rope, visible_BS)
        visible = None if visible_BS is None else visible_BS.t()[:, :, None, None]
        try:
            h_BD, token = Step.apply(x_BD, self.token, self.chain, rope, visible)
            return h_BD, LatentChain(self.chain, token, self.size + 1)
        except NotCaptured as e:
            why = str(e)
        assert c.graphs is not None  # which lent the workspace
        c.graphs.give_up(why)  # outside of the handler, which holds all that the attempt had made
        return LatentChain.of(c.model, self.read(), c.recompute, c.autocast).step(x_BD, rope, visible_BS)

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """K and V of each layer, (B, H_kv, S, d), with gradient."""
        flat = Read.apply(self.token, self.chain, self.size)
        return list(zip(flat[::2], flat[1::2]))
