"""RL losses as pure functions: the clipped policy gradient over decisions of all kinds, and the KL to a reference."""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from latent.methods.terms import Mean
from latent.thought import Decision


@dataclass
class Extreme:
    """A logged maximum (`sign` 1) or minimum (-1) over micro-batches and processes."""

    value: Tensor
    sign: int

    def joined(self, other: "Extreme") -> "Extreme":
        """The extreme of both."""
        return Extreme((torch.maximum if self.sign > 0 else torch.minimum)(self.value, other.value), self.sign)


Logged = Mean | Extreme
Over = Literal["decisions", "rollouts", "sums"]  # what the mean of a loss is over, see `counted`


def flat(reward_PG: Tensor) -> Tensor:
    """Which groups (P,) have equal rewards. Such groups give no gradient."""
    return reward_PG.max(1).values == reward_PG.min(1).values


def counted(decisions: list[Decision], over: Over) -> Tensor:
    """What the mean of a loss is divided by: the decisions made, or for "rollouts" and "sums" the rollouts."""
    made = sum((d.mask_BT.sum() for d in decisions[1:]), decisions[0].mask_BT.sum())
    return made if over == "decisions" else torch.full_like(made, len(decisions[0].mask_BT))


def policy_loss(
    now: list[Decision], old: list[Decision], adv: list[Tensor], clip: tuple[float, float], entropy: float,
    over: Over = "decisions",
) -> tuple[Mean, dict[str, Logged]]:  # fmt: skip
    """PPO's clipped objective over the decisions of all kinds, and an entropy bonus.

        L = - sum_{b,t} w_b (min(rho A_bt, clip(rho, 1 - low, 1 + high) A_bt) + entropy * H_bt) / n

    `over` decisions: w = 1 and n counts the decisions of the whole minibatch, of all kinds and on all processes, so
    that every decision has the same weight, whatever its kind and however long its rollout (DAPO, arXiv:2503.14476,
    eq. 8, for tokens). Over rollouts: w is one by a rollout's decisions, n the rollouts (GRPO, arXiv:2402.03300, eq.
    3). Over sums: w = 1, n the rollouts (Dr. GRPO, arXiv:2503.20783, with 1 for its constant).

    rho = exp(logp - logp_old) (Schulman et al. 2017, arXiv:1707.06347, eq. 7; asymmetric clip: DAPO). `now` carries
    gradient, `old` holds the log-probabilities of the sampling policy, `adv` the advantages for each entry of `now`,
    (B, T) or (B, 1). Continuous decisions, whose log-probability is that of a density, have no part in the bonus. Logs
    the ratio, the share that is clipped, and the entropy of each kind.
    """
    weight_B1: Tensor | float = 1.0
    if over == "rollouts":
        made_B = sum((d.mask_BT.sum(1) for d in old[1:]), old[0].mask_BT.sum(1))
        weight_B1 = 1 / made_B.clamp(min=1)[:, None]
    gain: Tensor | float = 0.0
    bonus: Tensor | float = 0.0
    entropies: dict[str, Mean] = {}
    ratios: list[Mean] = []
    clipped: list[Mean] = []
    most, least = [], []
    for new, was, adv_BT in zip(now, old, adv, strict=True):
        assert new.kind == was.kind, f"decisions out of order: {new.kind} against {was.kind}"
        rho_BT = (new.logp_BT - was.logp_BT.detach()).exp()
        bounded_BT = rho_BT.clamp(1 - clip[0], 1 + clip[1]) * adv_BT
        mask_BT = was.mask_BT
        gain = gain + (weight_B1 * torch.where(mask_BT, torch.minimum(rho_BT * adv_BT, bounded_BT), 0)).sum()
        if not new.density:  # the entropy of a density may be negative, and does not compare with the others'
            bonus = bonus + (weight_B1 * torch.where(mask_BT, new.entropy_BT, 0)).sum()
        made = mask_BT.sum()
        was_BT = rho_BT.detach()  # masked and not indexed: how many were made the host would have to wait for
        ratios.append(Mean(torch.where(mask_BT, was_BT, 0).sum(), made))
        clipped.append(Mean(((was_BT * adv_BT > bounded_BT.detach()) & mask_BT).sum(), made))
        most.append(was_BT.masked_fill(~mask_BT, -torch.inf).max())
        least.append(was_BT.masked_fill(~mask_BT, torch.inf).min())
        entropy_of = Mean(torch.where(mask_BT, new.entropy_BT.detach(), 0).sum(), made)
        before = entropies.get(new.kind)
        entropies[new.kind] = entropy_of if before is None else before.joined(entropy_of)  # over all turns
    logged: dict[str, Logged] = {f"entropy_{kind}": mean for kind, mean in entropies.items()}
    logged |= {
        "ratio": reduce(Mean.joined, ratios),
        "ratio_max": Extreme(torch.stack(most).max(), 1),
        "ratio_min": Extreme(torch.stack(least).min(), -1),
        "clipped": reduce(Mean.joined, clipped),
    }
    assert isinstance(gain, Tensor)  # there is at least one kind of decision
    return Mean(-(gain + entropy * bonus), counted(old, over)), logged


def kl_to_reference(now: list[Decision], reference: list[Decision]) -> Mean:
    """The k3 estimate of KL(policy || reference) over the same decisions: >= 0, and unbiased on the policy's samples.

    Continuous decisions are left out: the ratio of two densities in many dimensions is either huge or zero.

    k3 = exp(q - p) - 1 - (q - p) with p, q the log-probabilities under policy and reference (Schulman 2020,
    *Approximating KL divergence*; GRPO eq. 4).
    """
    total: Tensor | float = 0.0
    count: Tensor | int = 0
    for new, ref in zip(now, reference, strict=True):
        if new.density:
            continue
        gap_BT = ref.logp_BT.detach() - new.logp_BT
        total = total + torch.where(ref.mask_BT, gap_BT.exp() - 1 - gap_BT, 0).sum()
        count = count + ref.mask_BT.sum()
    assert isinstance(total, Tensor)  # there is at least one kind of discrete decision
    return Mean(total, count)
