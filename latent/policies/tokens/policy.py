"""Multi-token sampling (MTS, CoT2, arXiv:2505.23648, sec. 4; Multiplex Thinking, arXiv:2601.08808): K tokens a thought.

    x_1 ... x_K ~ softmax(W h / temperature) i.i.d.,   z = (e(x_1) + ... + e(x_K)) / K,   log p = sum_i log p(x_i)

The decision is the K tokens in the order drawn, and its log-probability is exact: a probability, no density. Many of
them merge into the same thought, which changes nothing for a policy gradient. CoT2's text takes logits as they are and
the K-th root of the ratio of two policies; its code, which this follows, takes logits / K and the whole ratio.

CoT2's code judges a model after RL by drawn thoughts (temperature K, the answer greedy), and one after supervised
training by mixtures: `judged`. Deviates: it draws from torch's global generator, so that an answer depends on those
before it; here a prompt's draws are a function of its ids.
"""

from hashlib import blake2b

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent

from latent.backbone import Backbone
from latent.policies.base import Policy
from latent.policies.tokens import Tokens
from latent.thought import Prompt


class TokensPolicy(Policy):
    """Independent draws (B, K) from the head's distribution."""

    around = False

    def __init__(self, config: Tokens, backbone: Backbone):
        super().__init__()
        self.config = config
        self.backbone = [backbone]  # in a list: its parameters are the method's

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Independent:
        logits_BV = self.backbone[0].head(h_BD) / self.config.temperature
        logits_BKV = logits_BV[:, None].expand(-1, self.config.k, -1)
        return Independent(Categorical(logits=logits_BKV, validate_args=False), 1, validate_args=False)

    def noise(self, prompt: Prompt, k: int) -> Tensor | None:
        """Uniform numbers (B, k, K), from a generator that each row's ids seed; None unless `judged` is drawn."""
        if self.config.judged == "method":
            return None
        rows = prompt.ids_BT.tolist()
        masks = [[True] * len(row) for row in rows] if prompt.mask_BT is None else prompt.mask_BT.tolist()
        read = [[i for i, real in zip(row, mask) if real] for row, mask in zip(rows, masks)]
        noise = [torch.rand(k, self.config.k, generator=torch.Generator().manual_seed(seed_of(ids))) for ids in read]
        return torch.stack(noise).to(prompt.ids_BT.device)

    def drawn(self, dist: Distribution, noise_B: Tensor) -> Tensor:
        """K tokens (B, K): the first of the vocabulary up to which more than so much of the probability lies."""
        assert isinstance(dist, Independent)  # as `forward` makes it
        upto_BV = dist.base_dist.probs[:, 0].cumsum(-1)
        ids_BK = torch.searchsorted(upto_BV, noise_B.to(upto_BV.dtype) * upto_BV[:, -1:], right=True)
        return ids_BK.clamp(max=upto_BV.shape[-1] - 1)

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        return self.backbone[0].embed(value_B).mean(1)


def seed_of(ids: list[int]) -> int:
    """A seed of 63 bits that a prompt's ids say."""
    return int.from_bytes(blake2b(repr(ids).encode(), digest_size=8).digest(), "big") >> 1
