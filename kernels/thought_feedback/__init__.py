"""Last hidden state -> next input embedding, in the forms that latent reasoners use.

    y = norm(h) W + b
    out = a * e + sqrt(1 - a^2) * sigmoid(i) * y,   a = exp(-8 softplus(-decay) sigmoid(r))

Each part is optional. Coconut (arXiv:2412.06769): the norm alone. CODI (arXiv:2502.21074): its MLP's last layer, then a
call with the norm alone. HRPO (arXiv:2505.18454, eq. 3-4): all of them, e the embedding of the sampled token, r and i
linear in it. With the gate closed, r -> -inf, what is left is the text's own embedding (and 1e-6 of y).
"""

from torch import Tensor

from kernels import dispatch
from kernels.decoder import Affine
from kernels.thought_feedback import reference

__all__ = ["thought_feedback"]


def thought_feedback(
    h_ND: Tensor,
    norm: Affine | None = None,
    eps: float = 1e-5,
    projection: Affine | None = None,
    gate: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    impl: dispatch.Impl | None = None,
) -> Tensor:
    """The next input embedding, (N, D) in the dtype of `h_ND`, with gradient to every input.

    `norm`: weight and bias (D,), a bias of None makes it RMSNorm. `projection`: weight (D, D') and bias. `gate`: e, r,
    i (N, D') and decay (D',). Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    op = "thought_feedback"
    dispatch.expect(op, "h", h_ND, (None, None))
    n, d = h_ND.shape
    for name, affine, shape in (("norm", norm, (d,)), ("projection", projection, (d, None))):
        if affine is not None:
            dispatch.expect(op, f"{name} weight", affine[0], shape, like=h_ND)
            if affine[1] is not None:
                dispatch.expect(op, f"{name} bias", affine[1], (affine[0].shape[-1],), like=h_ND)
    if projection is not None:
        d = projection[0].shape[1]
    if gate is not None:
        for name, x in zip("eri", gate):
            dispatch.expect(op, name, x, (n, d), like=h_ND)
        dispatch.expect(op, "decay", gate[3], (d,), like=h_ND)
    if dispatch.choose(op, impl, h_ND) == "triton":
        from kernels.thought_feedback.triton import ThoughtFeedback

        gates = gate and tuple(x.contiguous() for x in gate)
        affine = (*(norm or (None, None)), (projection or (None, None))[1])
        vectors = [x if x is None else x.contiguous() for x in affine]
        weight = projection and (projection[0] if 1 in projection[0].stride() else projection[0].contiguous())
        tensors = (*vectors[:2], weight, vectors[2], *(gates or (None,) * 4))
        with dispatch.launching(op, impl, h_ND):
            return ThoughtFeedback.apply(dispatch.rows(h_ND), eps, *tensors)
    return reference.thought_feedback(h_ND, norm, eps, projection, gate)
