"""The terms of a loss: means that are not taken yet, and the cross-entropy of a text after a thought."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent.backbone import Backbone
from latent.text import Text
from latent.thought import Thought


@dataclass
class Mean:
    """A mean that is not taken yet: the sum `total` over `count` things.

    Whoever has only a share of a batch sums its totals and its counts with those of the others before dividing: a mean
    of means is right only where all have equally many. `weight`: of a term in a loss.
    """

    total: Tensor
    count: int | Tensor
    weight: float = 1.0

    def joined(self, other: Mean) -> Mean:
        """The mean over both shares."""
        return Mean(self.total + other.total, self.count + other.count, self.weight)

    def taken(self) -> Tensor:
        """The mean over this share alone; 0 of nothing."""
        if isinstance(self.count, Tensor):  # which is not looked at: the host would wait for the device
            return self.total / self.count.clamp(min=1)
        return self.total / self.count if self.count else self.total


def text_hidden(
    backbone: Backbone, thought: Thought, ids_UT: Tensor, *, lengths_U: Tensor | None = None,
    row_U: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Final hidden states (U, T, D) that give each token of texts after a thought, the texts read in parallel.

    `lengths_U`: tokens of each text without padding, None = T. `row_U`: the thought's row that each text follows, where
    they are not one to one.
    """
    h_UTD, context, t = thought.h_UTD, thought.context, ids_UT.shape[1]
    if row_U is not None:
        h_UTD, context = h_UTD[row_U], context and context.rows(row_U)
    if t <= h_UTD.shape[1]:
        return h_UTD[:, :t]
    assert h_UTD.shape[1] == 1, f"a text of {t} tokens after a parallel answer of {h_UTD.shape[1]}"
    assert context is not None  # as it is after everything but a parallel answer, which is all of its text
    real_U = None if lengths_U is None else lengths_U - 1
    rest_UTD, _ = backbone.step(backbone.embed(ids_UT[:, :-1]), context, real_B=real_U)
    return torch.cat([h_UTD, rest_UTD], 1)


def text_loss(backbone: Backbone, thought: Thought, text: Text) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy (nats a token) of a text after a thought; logits only where there is a token.

    Logs `ce` and `exact`, the share of rows whose every token is the most likely one, teacher-forced.
    """
    h_BTD = text_hidden(backbone, thought, text.ids_BT, lengths_U=text.lengths_B)
    loss, hit_BT = token_loss(backbone, h_BTD, text)
    return loss, {"ce": loss, "exact": share(hit_BT.all(1))}


def share(yes_N: Tensor) -> Mean:
    """The share of N things for which something holds."""
    return Mean(yes_N.sum(), len(yes_N))


def token_loss(backbone: Backbone, h_BTD: Tensor, text: Text) -> tuple[Mean, Tensor]:
    """Cross-entropy of tokens given their hidden states, and where the most likely one is right (B, T)."""
    h_ND, ids_N, at_N = h_BTD.flatten(0, 1), text.ids_BT.flatten(), text.places()
    if at_N is not None:
        h_ND, ids_N = h_ND.index_select(0, at_N), ids_N.index_select(0, at_N)
    logp_N, _, top_N = backbone.logprob(h_ND, ids_N, entropy=False)
    hit_N = top_N == ids_N
    if at_N is not None:
        hit_N = hit_N.new_ones(text.ids_BT.numel()).index_copy(0, at_N, hit_N)
    return Mean(-logp_N.sum(), len(logp_N)), hit_N.view_as(text.ids_BT)
