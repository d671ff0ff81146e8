"""When to stop thinking: always at the end (`Fixed`), or by a learned stop (`LearnedStop`)."""

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from latent.config import Fixed, LearnedStop


class StopHead(nn.Module):
    """p(stop | h) = sigmoid(w h + b), w = 0 and b = `bias` before training. h (B, D) -> Bernoulli over B."""

    def __init__(self, width: int, bias: float):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, h_BD: Tensor, group: int) -> Bernoulli:
        logits_B = self.linear(h_BD).squeeze(-1).repeat_interleave(group, 0)
        return Bernoulli(logits=logits_B, validate_args=False)


def build(config: Fixed | LearnedStop, width: int) -> StopHead | None:
    """The stop head of a halting rule; None where none is needed."""
    match config:
        case Fixed():
            return None
        case LearnedStop(bias):
            return StopHead(width, bias)


class Pace:
    """Which of P * G rows are still thinking, asked before every latent step."""

    def __init__(self, stop: StopHead | None, choose, prompts: int, group: int, device):
        self.stop, self.choose, self.group = stop, choose, group
        self.live_B = torch.ones(prompts * group, dtype=torch.bool, device=device)
        self.used_B = torch.zeros(prompts * group, dtype=torch.long, device=device)

    def go_on(self, h_PD: Tensor) -> bool:
        """Decide for every row whether it takes one more step from state `h_PD`. False when none does."""
        if self.stop is not None:
            self.live_B = self.live_B & (self.choose("halt", self.stop(h_PD, self.group), self.live_B) == 0)
            if not self.live_B.any():
                return False
        self.used_B = self.used_B + self.live_B
        return True

    def rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The distinct outcomes: prompt and steps used of each (U), and which is each rollout's (None = its own)."""
        prompts = len(self.used_B) // self.group
        prompt_B = torch.arange(prompts, device=self.used_B.device).repeat_interleave(self.group)
        if self.group == 1:
            return prompt_B, self.used_B, None
        if self.stop is None:
            return prompt_B[:: self.group], self.used_B[:: self.group], prompt_B
        most = int(self.used_B.max()) + 1
        key_U, row_B = torch.unique(prompt_B * most + self.used_B, return_inverse=True)
        return key_U // most, key_U % most, row_B
