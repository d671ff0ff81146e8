"""What a loop along the sequence feeds back: last hidden state -> next input embedding."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from latent.backbone import Backbone


class Feeding(Protocol):
    """What a loop along the sequence feeds back: last hidden state -> next input embedding, (B, D) -> (B, D).

    `waits`: whether, in answering, each latent is a pass of its own after the one before it. In training all latents
    whose inputs are known are read in one pass.
    """

    waits: bool

    def known(self, k: int) -> Tensor | None:
        """The inputs (K, D) of k latents where they do not depend on any state."""

    def __call__(self, h_BD: Tensor) -> Tensor: ...


class Feedback(nn.Module):
    """Last hidden state -> next input embedding, (B, D) -> (B, D).

    `hidden`: as it is (Coconut). `norm`: RMS-normed to the embeddings' scale. `project`: GELU MLP and LayerNorm (CODI,
    arXiv:2502.21074, sec. 3.2). `soft`: the mean input embedding under the next-token distribution (Soft Thinking,
    arXiv:2505.15778, sec. 3), of its `top_k` likeliest tokens at a `temperature`; None = of all.
    """

    waits = True

    def __init__(self, kind: str, backbone: Backbone, top_k: int | None = None, temperature: float = 1.0):
        super().__init__()
        self.kind, d = kind, backbone.width
        self.top_k, self.temperature = top_k, temperature
        self.backbone = [backbone]  # in a list: its parameters are the method's
        if kind == "norm":
            self.scale = nn.Parameter(backbone.embedding_rms.expand(d).clone())
        if kind == "project":
            self.mlp = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d))

    def known(self, k: int) -> Tensor | None:
        """The inputs (K, D) of k latents where they do not depend on any state: none here."""
        return None

    @property
    def flops(self) -> int:
        """Of one input, 2 a weight: the MLP's, or those of the head and of the embeddings that are mixed."""
        backbone = self.backbone[0]
        if self.kind == "soft":
            return 2 * backbone.width * (backbone.vocab + (self.top_k or backbone.vocab))
        return 2 * sum(p.numel() for p in self.parameters() if p.ndim == 2)

    def forward(self, h_BD: Tensor) -> Tensor:
        match self.kind:
            case "norm":
                return F.rms_norm(h_BD, h_BD.shape[-1:], self.scale)
            case "project":
                return self.mlp(h_BD)
            case "soft":
                return self.backbone[0].mix(h_BD, self.top_k, self.temperature)
        return h_BD


def flops_of(feedback: Feeding) -> int:
    """FLOPs of making one input from a state: what the feedback says, 2 a weight of one that does not say."""
    own = getattr(feedback, "flops", None)
    if own is not None or not isinstance(feedback, nn.Module):
        return own or 0
    return 2 * sum(p.numel() for p in feedback.parameters() if p.ndim == 2)
