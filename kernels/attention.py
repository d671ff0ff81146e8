"""Scaled dot-product attention by torch, for shapes that change from call to call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def unplanned(x: Tensor) -> Iterator[None]:
    """Within, torch does not take cuDNN's attention on a GPU, which may come first there and plans anew for each shape.

    On ragged text a call then costs the host some 16 ms (paper/LOG.md, 2026-11-27). The switch is the process's own:
    where threads cross, it may stay off.
    """
    if not x.is_cuda or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """`scaled_dot_product_attention`, unplanned."""
    with unplanned(q):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
