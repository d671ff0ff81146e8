"""Log-probability and entropy of tokens from hidden states, without logits in memory.

    z = h E^T / temperature,   logp = z[id] - logsumexp z,   entropy = -sum_v p_v log p_v

Losses of RL and distillation need nothing else of the logits, and N x V of them are what runs out of memory first.
After cut cross-entropy (Wijmans et al. 2024, arXiv:2411.09009), with entropy and its gradient added.
"""

from torch import Tensor

from kernels import dispatch
from kernels.linear_logprob import reference

__all__ = ["linear_logprob"]


def linear_logprob(
    h_ND: Tensor,
    e_VD: Tensor,
    ids_N: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    impl: dispatch.Impl | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-prob of each id, entropy (nats), both fp32 (fp64 from fp64), and the most likely id: (N,) each.

    Without `entropy` the second is None; Triton has it for nothing, torch does not. `h_ND` and `e_VD` have one dtype.
    Raises ValueError for shapes, dtypes, devices or a temperature that do not fit.
    """
    op = "linear_logprob"
    dispatch.expect(op, "h", h_ND, (None, None))
    dispatch.expect(op, "e", e_VD, (None, h_ND.shape[1]), like=h_ND)
    dispatch.expect(op, "ids", ids_N, (len(h_ND),))
    if ids_N.dtype.is_floating_point or ids_N.device != h_ND.device:
        raise ValueError(f"{op}: ids must be integers on {h_ND.device}, got {ids_N.dtype} on {ids_N.device}")
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be > 0, got {temperature}")
    if dispatch.choose(op, impl, h_ND) == "triton":
        from kernels.linear_logprob.triton import LinearLogprob

        with dispatch.launching(op, impl, h_ND):
            logp_N, entropy_N, top_N = LinearLogprob.apply(
                dispatch.rows(h_ND), dispatch.rows(e_VD), ids_N.contiguous(), temperature
            )
            return logp_N, entropy_N if entropy else None, top_N
    return reference.linear_logprob(h_ND, e_VD, ids_N, temperature, entropy)
