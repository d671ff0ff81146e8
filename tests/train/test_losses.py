"""RL losses against closed forms and brute force."""

import pytest
import torch
from torch.distributions import Categorical

from latent.thought import Decision
from train.algorithms import GRPO, DrGRPO
from train.losses import kl_to_reference, policy_loss


def decisions(logp, mask=None, kind="token"):
    logp = torch.as_tensor(logp, dtype=torch.float64)
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    return Decision(kind, torch.zeros_like(logp), logp, torch.full_like(logp, 0.3), mask, torch.arange(logp.shape[1]))


def test_policy_loss_is_the_sum_written_out():
    torch.manual_seed(0)
    old = [
        decisions(-torch.rand(4, 3), torch.rand(4, 3) < 0.7, "halt"),
        decisions(-torch.rand(4, 5), torch.rand(4, 5) < 0.7),
    ]
    now = [decisions(o.logp_BT + 0.6 * torch.randn(o.logp_BT.shape), o.mask_BT, o.kind) for o in old]
    adv = [torch.randn(4, 1).double(), torch.randn(4, 5).double()]  # a rollout's, and each decision's own
    total = count = clipped = 0
    for n, o, a in zip(now, old, adv):
        a = a.expand_as(o.logp_BT)
        for b in range(4):
            for t in range(o.logp_BT.shape[1]):
                if o.mask_BT[b, t]:
                    rho = float((n.logp_BT[b, t] - o.logp_BT[b, t]).exp())
                    free, bounded = rho * a[b, t], min(max(rho, 0.8), 1.28) * a[b, t]
                    total, count, clipped = total + min(free, bounded), count + 1, clipped + int(free > bounded)
    loss, metrics = policy_loss(now, old, adv, (0.2, 0.28), entropy=0.01)
    assert int(loss.count) == count
    assert float(loss.taken()) == pytest.approx(float(-total / count - 0.01 * 0.3))
    assert float(metrics["clipped"].taken()) == pytest.approx(clipped / count)
    assert float(metrics["entropy_halt"].taken()) == pytest.approx(0.3)


@pytest.mark.parametrize("make", [DrGRPO, GRPO])
def test_what_a_mean_is_over(make):
    """Rollouts of 1, 5 and 0 decisions, of two kinds: each alike, a rollout's mean, and a rollout's sum, by hand."""
    torch.manual_seed(1)
    halts = decisions(-torch.rand(3, 2), [[False, False], [True, True], [False, False]], "halt")
    text = decisions(-torch.rand(3, 3), [[True, False, False], [True, True, True], [False, False, False]])
    old, adv_B = [halts, text], torch.tensor([0.5, -1.0, 2.0]).double()
    now = [decisions(d.logp_BT + 0.05 * torch.randn(d.logp_BT.shape), d.mask_BT, d.kind) for d in old]
    every = [((n.logp_BT - o.logp_BT).exp(), o.mask_BT) for n, o in zip(now, old)]
    ratios = [[float(x) for rho_BT, made_BT in every for x in rho_BT[b][made_BT[b]]] for b in range(3)]
    sums = [sum(float(adv_B[b]) * rho + 0.01 * 0.3 for rho in of) for b, of in enumerate(ratios)]
    want = {
        "decisions": (sum(sums) / 6, 6),
        "rollouts": ((sums[0] / 1 + sums[1] / 5) / 3, 3),
        "sums": (sum(sums) / 3, 3),
    }
    for over, (mean, count) in want.items():
        algorithm = make(over=over)
        (loss,), _ = algorithm.loss(now, old, adv_B, (0.9, 0.9), 0.01)
        assert float(loss.taken()) == pytest.approx(-mean) and int(loss.count) == count
        assert [int(n) for n in algorithm.counts(old)] == [count]


def test_policy_gradient_is_that_of_the_expected_reward():
    """All outcomes weighted by their probability: minus the gradient of E[reward] over a softmax policy."""
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(6, dtype=torch.float64)
    want = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)[0]
    policy = Categorical(logits=logits)
    got = torch.zeros(6, dtype=torch.float64)
    for action in range(6):
        logp = policy.log_prob(torch.tensor(action))[None, None]
        mask = torch.ones(1, 1, dtype=torch.bool)
        now = Decision(
            "token", torch.tensor([[action]]), logp, torch.zeros_like(logp), mask, torch.arange(logp.shape[1])
        )
        old = Decision(
            "token", torch.tensor([[action]]), logp.detach(), torch.zeros_like(logp), mask, torch.arange(logp.shape[1])
        )
        loss, metrics = policy_loss([now], [old], [reward[action].view(1, 1)], (0.2, 0.2), 0.0)
        assert float(metrics["ratio"].taken()) == 1.0
        got += logp.exp().detach()[0, 0] * torch.autograd.grad(-loss.taken(), logits, retain_graph=True)[0]
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_kl_estimate_is_unbiased():
    """The k3 estimate averaged over all outcomes is the KL of the two distributions."""
    p, q = (torch.randn(7, dtype=torch.float64).log_softmax(0) for _ in range(2))
    want = (p.exp() * (p - q)).sum()
    got = sum(
        p[i].exp() * kl_to_reference([decisions(p[i].view(1, 1))], [decisions(q[i].view(1, 1))]).taken()
        for i in range(7)
    )
    torch.testing.assert_close(got, want)
    assert kl_to_reference([decisions(p[None])], [decisions(p[None])]).taken() == 0
