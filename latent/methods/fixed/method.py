"""Control: as many passes in sequence as there are thoughts, one constant embedding fed back in each.

It separates what recycled states bring from what further passes bring. The embedding is drawn once and never trained.
In a causal transformer the passes could be one, as in `pause`, and give the same answers: passes that carry no state
over add nothing but their positions. In supervised training they are one. In answering they are run one after another
all the same, so that latency and sequential steps are those of the thoughts they stand beside.
"""

from torch import Tensor, nn

from latent.backbone import Backbone
from latent.methods.control import Control
from latent.methods.fixed import FixedEmbedding


class Fixed(Control):
    """What is put before a method's class."""

    def __init__(self, config: FixedEmbedding, backbone: Backbone):
        super().__init__(config, backbone)
        self.feedback = Constant(backbone)


class Constant(nn.Module):
    """Any state -> the same embedding, (B, D) -> (B, D), drawn at the scale of the vocabulary's."""

    waits = True
    embedding: Tensor

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.register_buffer("embedding", backbone.random_embedding())

    def known(self, k: int) -> Tensor:
        """The inputs (K, D) of k latents."""
        return self.embedding.expand(k, -1)

    def forward(self, h_BD: Tensor) -> Tensor:
        return self.embedding.expand_as(h_BD)
