"""Control: pause tokens (Goyal et al. 2024, arXiv:2310.02226; "pause as thought" in Coconut, arXiv:2412.06769).

A learned token stands wherever the controlled method has a thought, and is trained on the same loss: curriculum, step
decoder or the answer alone. It has a thought's width, place and training; what it lacks is the state before it, so all
are read in one pass. Deviates from Goyal et al., who repeat one token: here each place has its own, as thoughts do, and
places beyond those in training repeat the last.
"""

import torch
from torch import Tensor, nn

from latent.backbone import Backbone
from latent.methods.control import Control
from latent.methods.pause import Pause


class Paused(Control):
    """What is put before a method's class."""

    def __init__(self, config: Pause, backbone: Backbone):
        super().__init__(config, backbone)
        self.feedback = PauseTokens(max(1, self.steps), backbone)


class PauseTokens(nn.Module):
    """k learned embeddings, drawn at the scale of the vocabulary's."""

    waits = False

    def __init__(self, k: int, backbone: Backbone):
        super().__init__()
        self.table = nn.Parameter(backbone.random_embedding(k))

    def known(self, k: int) -> Tensor:
        """The inputs (K, D) of k latents."""
        return self.table[torch.arange(k, device=self.table.device).clamp(max=len(self.table) - 1)]
