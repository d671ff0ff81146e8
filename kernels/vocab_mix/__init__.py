"""Soft tokens: the mean of the output embeddings under the model's own next-token distribution.

    z = h E^T / temperature (+ noise),   p = softmax z,   mix = p O

O is the input embedding, the same table as E where they are tied. Soft Thinking (arXiv:2505.15778) and HRPO
(arXiv:2505.18454, eq. 2) feed the mix back; Gumbel noise makes it a sample of the concrete distribution.
"""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.vocab_mix import reference

__all__ = ["vocab_mix"]

FEW = 8  # states that one read of E mixes, where they take no more than
SMALL = 4096  # bytes together
ROWS = 64  # up to which the benchmark compares with torch


@torch.no_grad()
def vocab_mix(
    h_ND: Tensor,
    e_VD: Tensor,
    out_VD: Tensor | None = None,
    temperature: float = 1.0,
    noise_NV: Tensor | None = None,
    top_k: int | None = None,
    impl: dispatch.Impl | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mix (N, D), and logsumexp and entropy (nats) of the distribution mixed by, (N,) each in fp32.

    `e_VD` gives the logits, `out_VD` what is mixed (None = `e_VD`). `noise_NV`, fp32, is added to z. `top_k` keeps the
    k largest z. No gradient: use the torch definition to train through it. Raises ValueError for inputs that do not
    fit.
    """
    op, out_VD = "vocab_mix", e_VD if out_VD is None else out_VD
    dispatch.expect(op, "h", h_ND, (None, None))
    dispatch.expect(op, "e", e_VD, (None, h_ND.shape[1]), like=h_ND)
    dispatch.expect(op, "out", out_VD, tuple(e_VD.shape), like=h_ND)
    if noise_NV is not None:
        dispatch.expect(op, "noise", noise_NV, (len(h_ND), len(e_VD)))
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be > 0, got {temperature}")
    if top_k is not None and not 1 <= top_k <= len(e_VD):
        raise ValueError(f"{op}: top_k must be in 1..{len(e_VD)}, got {top_k}")
    unless = left_to_torch(h_ND, top_k, dispatch.asked(impl) == "auto")
    if dispatch.choose(op, impl, h_ND, unless) == "triton":
        from kernels.vocab_mix import triton

        with dispatch.launching(op, impl, h_ND):
            if top_k is None:
                noise = None if noise_NV is None else dispatch.rows(noise_NV.float())
                h_ND, e_VD, out_VD = (dispatch.rows(x) for x in (h_ND, e_VD, out_VD))
                return triton.vocab_mix(h_ND, e_VD, out_VD, temperature, noise)
            z_NV = (h_ND @ e_VD.t()).float() / temperature
            z_NK, ids_NK = (z_NV if noise_NV is None else z_NV + noise_NV).topk(top_k, 1)
            lse_N, logp_NK = z_NK.logsumexp(1), z_NK.log_softmax(1)
            mix_ND = triton.gather_mix(ids_NK, logp_NK.exp(), dispatch.rows(out_VD))
            return mix_ND, lse_N, -(logp_NK.exp() * logp_NK).sum(1)
    return reference.vocab_mix(h_ND, e_VD, out_VD, temperature, noise_NV, top_k)


def left_to_torch(h_ND: Tensor, top_k: int | None, auto: bool) -> str | None:
    """Why no kernel is to run for such states, or, with `auto`, why none is worth it; None if one is.

    Two products in fp32 have no tensor cores to gain from, and more rows than the benchmark has are better served by
    the larger tiles of matrix products: `auto` takes a kernel only where `kernels/bench.csv` can say that it wins.
    """
    n, few = len(h_ND), by_one_read(h_ND) or top_k is not None
    if torch.version.hip and not few:
        return "its products take more shared memory than AMD's GPUs have"
    if auto and h_ND.dtype == torch.float32 and not few:
        return "several states in fp32 are left to matrix products"
    return f"more than {ROWS} states are left to matrix products" if auto and n > ROWS else None


def by_one_read(h_ND: Tensor) -> bool:
    """Whether such states are mixed by one read of E, and not by two products.

    Of sixteen rows and more Triton's compiler makes a product on tensor cores of what is written as a sum of products,
    and its inner length, the two rows of E, is shorter than theirs: Triton 3.6 then adds each of them up four times.
    """
    return len(h_ND) <= FEW and h_ND.nbytes <= SMALL
