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
from latent.thought import Chooser, Greedy, Prompt


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

    def greedy(self, choose: Chooser, prompt: Prompt, k: int) -> Chooser:
        """Where thoughts are `judged` drawn, by uniform numbers from a generator that each row's ids seed."""
        if self.config.judged == "method":
            return choose
        rows = prompt.ids_BT.tolist()
        masks = [[True] * len(row) for row in rows] if prompt.mask_BT is None else prompt.mask_BT.tolist()
        read = [[i for i, real in zip(row, mask) if real] for row, mask in zip(rows, masks)]
        noise = [torch.rand(k, self.config.k, generator=torch.Generator().manual_seed(seed_of(ids))) for ids in read]
        return DrawnThoughts(choose, torch.stack(noise, 1).to(prompt.ids_BT.device))

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        return self.backbone[0].embed(value_B).mean(1)


class DrawnThoughts(Greedy):
    """Draws thoughts by numbers that are given, and leaves all else to a greedy chooser. Records nothing.

    `noise_kBK`: for each of k thoughts K uniform numbers a row.
    """

    random = True

    def __init__(self, greedy: Chooser, noise_kBK: Tensor):
        super().__init__()
        self._greedy, self._noise = greedy, iter(noise_kBK)

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        """Of a thought K tokens (B, K): the first of the vocabulary up to which more than so much probability lies."""
        if kind != "thought":
            return self._greedy(kind, dist, live_B, h_UD)
        assert isinstance(dist, Independent)  # as the policy makes it
        upto_BV = dist.base_dist.probs[:, 0].cumsum(-1)
        noise_BK = next(self._noise).to(upto_BV.dtype) * upto_BV[:, -1:]
        return torch.searchsorted(upto_BV, noise_BK, right=True).clamp(max=upto_BV.shape[-1] - 1)

    def settled(self, stop_B: Tensor) -> Tensor:
        return self._greedy.settled(stop_B)


def seed_of(ids: list[int]) -> int:
    """A seed of 63 bits that a prompt's ids say."""
    return int.from_bytes(blake2b(repr(ids).encode(), digest_size=8).digest(), "big") >> 1
