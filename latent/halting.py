"""Halting rules: after all latents (`Fixed`), by a learned stop (`LearnedStop`), or on convergence (`Converged`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from kernels.exit_criterion import second_difference
from latent.backbone import Backbone
from latent.config import Converged, Fixed, LearnedStop
from latent.thought import Chooser

if TYPE_CHECKING:
    from latent.methods.base import Method


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


def stop_loss(stop: StopHead, states_BKD: Tensor, used_B: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (nats) of the answers that a stop should give, and how many they are: to stop at state
    `used_B` of the trace, where there might have been one more of `most` latents, and at none before."""
    i_K = torch.arange(states_BKD.shape[1], device=used_B.device)
    asked_BK = (i_K <= used_B[:, None]) & (i_K < most)
    logits_N = stop.linear(states_BKD[asked_BK]).squeeze(-1)
    ends_N = (i_K == used_B[:, None])[asked_BK].to(logits_N.dtype)
    return F.binary_cross_entropy_with_logits(logits_N, ends_N, reduction="sum"), asked_BK.sum()


class Settled(nn.Module):
    """Whether the last states of a trace have converged, (P,) bool. It has no parameters.

    `lens`: state (P, D) -> what the LM head reads.
    """

    def __init__(self, config: Converged, backbone: Backbone, lens: Callable[[Tensor], Tensor]):
        super().__init__()
        # in a list, so that the backbone's parameters are not registered here as well
        self.config, self.backbone, self.lens = config, [backbone], lens

    @torch.no_grad()
    def forward(self, states: list[Tensor]) -> Tensor:
        h_PD, by = states[-1], self.config.by
        if len(states) < {"second_difference": 3, "kl": 2, "entropy": 1}[by]:
            return h_PD.new_zeros(len(h_PD), dtype=torch.bool)
        if by == "second_difference":
            # under autocast states have several dtypes
            wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in states[:-4:-1])
            last_PD, before_PD, earlier_PD = wide
            measured_P = second_difference(last_PD, before_PD, earlier_PD)[0] / h_PD.shape[-1] ** 0.5
        elif by == "kl":
            measured_P = self.backbone[0].step_kl(self.lens(h_PD), self.lens(states[-2]))
        else:
            nothing_P = torch.zeros(len(h_PD), dtype=torch.long, device=h_PD.device)
            measured_P = self.backbone[0].logprob(self.lens(h_PD), nothing_P)[1]
        return measured_P < self.config.below


def build(config: Fixed | LearnedStop | Converged, method: Method) -> StopHead | Settled | None:
    """The module of a halting rule; None for `Fixed`, which needs none."""
    match config:
        case Fixed():
            return None
        case LearnedStop(bias):
            return StopHead(method.backbone.width, bias)
        case Converged():
            return Settled(config, method.backbone, method.lens)


class HaltTracker:
    """Which of P * G rows are still thinking. `advance` is called before every latent step."""

    def __init__(
        self, stop: StopHead | Settled | None, choose: Chooser, prompts: int, group: int, device: torch.device
    ):
        self.stop, self.choose, self.group = stop, choose, group
        self.live_B = torch.ones(prompts * group, dtype=torch.bool, device=device)
        self.used_B = torch.zeros(prompts * group, dtype=torch.long, device=device)
        self.hits_P = torch.zeros(prompts, dtype=torch.long, device=device)
        self.last: list[Tensor] = []

    def advance(self, h_PD: Tensor) -> bool:
        """Decide for every row whether it takes another step from state `h_PD`. Returns whether any does."""
        if self.stop is not None:
            self.live_B = self.live_B & ~self.stops(h_PD)
            if not self.live_B.any():
                return False
        self.used_B = self.used_B + self.live_B
        return True

    def stops(self, h_PD: Tensor) -> Tensor:
        """Which rows stop at a state, (B,) bool."""
        if isinstance(self.stop, StopHead):
            return self.choose("halt", self.stop(h_PD, self.group), self.live_B, h_PD) == 1
        assert self.stop is not None  # `advance` asks only where there is a rule
        self.last = [*self.last[-2:], h_PD]
        self.hits_P = torch.where(self.stop(self.last), self.hits_P + 1, 0)
        return self.choose.settled((self.hits_P >= self.stop.config.hits).repeat_interleave(self.group))

    def rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The distinct outcomes: the prompt of each (U,), the steps it used (U,), and each rollout's outcome (B,).

        The last is None where every rollout is an outcome of its own.
        """
        prompts = len(self.used_B) // self.group
        prompt_B = torch.arange(prompts, device=self.used_B.device).repeat_interleave(self.group)
        if self.group == 1:
            return prompt_B, self.used_B, None
        if self.stop is None:
            return prompt_B[:: self.group], self.used_B[:: self.group], prompt_B
        most = int(self.used_B.max()) + 1
        key_U, row_B = torch.unique(prompt_B * most + self.used_B, return_inverse=True)
        return key_U // most, key_U % most, row_B
