"""Multi-token sampling (MTS, CoT2, arXiv:2505.23648, sec. 4; Multiplex Thinking, arXiv:2601.08808): K tokens a thought.

    x_1 ... x_K ~ softmax(W h / temperature) i.i.d.,   z = (e(x_1) + ... + e(x_K)) / K,   log p = sum_i log p(x_i)

The decision is the K tokens in the order drawn, and its log-probability is exact: a probability, no density. Many of
them merge into the same thought, which changes nothing for a policy gradient.
"""

from torch import Tensor
from torch.distributions import Categorical, Independent

from latent.backbone import Backbone
from latent.policies.base import Policy
from latent.policies.tokens import Tokens


class TokensPolicy(Policy):
    """Independent draws (B, K) from the head's distribution; the mode is its likeliest token K times."""

    around = False

    def __init__(self, config: Tokens, backbone: Backbone):
        super().__init__()
        self.config = config
        self.backbone = [backbone]  # in a list: its parameters are the method's

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Independent:
        logits_BV = self.backbone[0].head(h_BD) / self.config.temperature
        logits_BKV = logits_BV[:, None].expand(-1, self.config.k, -1)
        return Independent(Categorical(logits=logits_BKV, validate_args=False), 1, validate_args=False)

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        return self.backbone[0].embed(value_B).mean(1)
