"""Gaussian thoughts: x ~ N(m, s^2), m what the method would feed back and s a share of its scale, or learned.

With a fixed s this is the noise on continuous inputs of Soft Tokens, Hard Truths (arXiv:2509.19170, sec. 3), with a
learned one the Gaussian head of CoLaR (arXiv:2505.16552, sec. 3.2). Deviates from both: s is relative to the root mean
square of m, which carries no gradient, so that one setting fits every width and every way of feeding back.

The log-probability is a density: it has the volume's units and grows with the width, so that its entropy is no bonus
to be added to that of tokens, and a gap between sampler and trainer is small or large in proportion to it.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from latent.policies.base import Policy
from latent.policies.gaussian import Gaussian


class GaussianPolicy(Policy):
    """Independent coordinates; the mode is m."""

    def __init__(self, config: Gaussian, width: int):
        super().__init__()
        self.config = config
        self.log_std: nn.Linear | None = None
        if config.learned:
            self.log_std = nn.Linear(width, width)
            nn.init.zeros_(self.log_std.weight)
            nn.init.constant_(self.log_std.bias, math.log(config.std))

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Independent:
        # a density of hundreds of nats has no digit after the point in bfloat16, and ratios are of differences
        wide = torch.promote_types(x_BD.dtype, torch.float32)
        x_BD = x_BD.to(wide)
        scale_B1 = x_BD.detach().square().mean(-1, keepdim=True).sqrt()
        if self.log_std is None:
            std_BD = (self.config.std * scale_B1).expand_as(x_BD)
        else:
            std_BD = scale_B1 * self.log_std(h_BD).to(wide).exp()
        return Independent(Normal(x_BD, std_BD.clamp_min(torch.finfo(x_BD.dtype).tiny), validate_args=False), 1)
