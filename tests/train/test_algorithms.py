"""What each decision is credited with: closed forms, and generalised advantages written out row by row."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels.errors import UserError
from latent.thought import Decision
from train.algorithms import GRPO, PPO, DrGRPO, ExpertIteration


def test_group_advantages():
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    assert DrGRPO().outcome(reward).tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [-0.75, -0.75, -0.75, 2.25]]
    grpo = GRPO().outcome(reward)
    torch.testing.assert_close(grpo[0], torch.tensor([1.0, -1, -1, 1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(grpo[2], torch.tensor([-1.0, -1, -1, 3]) / 3**0.5, atol=1e-5, rtol=0)
    assert grpo[1].abs().max() == 0
    floored = GRPO(std_floor=0.1).outcome(torch.tensor([[1.0, 0.98, 0.98, 1.0], [1.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(floored, torch.tensor([[0.1, -0.1, -0.1, 0.1], [1.0, -1, -1, 1]]))
    for equal in (0.88, 0.985, -0.3):  # whose mean over 16 is off by rounding
        assert GRPO().outcome(torch.full((2, 16), equal)).abs().max() == 0


def test_what_can_be_learned_from():
    spread, flat, apart = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    for algorithm in (GRPO(), DrGRPO()):
        assert [algorithm.signal(r) for r in (spread, flat, apart)] == [True, False, False]
    assert [PPO().signal(r) for r in (spread, flat, apart)] == [True, False, True]
    assert [ExpertIteration().signal(r) for r in (flat, flat - 1)] == [True, False]


def test_expert_iteration_is_cross_entropy_of_what_was_right():
    """The gradient of an update on fresh rollouts is that of - log p of the right ones, over all decisions made."""
    torch.manual_seed(1)
    expert = ExpertIteration()
    reward = torch.tensor([[1.0, 0.0, 0.6], [0.0, 0.0, -0.2]])
    outcome = expert.outcome(reward)
    assert outcome.tolist() == [[1, 0, 1], [0, 0, 0]]
    old = [made_of("thought", [0, 1], rows=6), made_of("token", [2, 3, 4], rows=6)]
    now = [replace(d, logp_BT=torch.zeros_like(d.logp_BT).requires_grad_()) for d in old]
    (policy,), _ = expert.loss(now, old, outcome.flatten(), (0.2, 0.2), 0.0)
    count = sum(int(d.mask_BT.sum()) for d in old)
    assert int(policy.count) == count
    for d, g in zip(old, torch.autograd.grad(policy.taken(), [d.logp_BT for d in now])):
        right = torch.tensor([1.0, 0, 1, 0, 0, 0]).double()[:, None]
        torch.testing.assert_close(g, -right * d.mask_BT / count)


def test_expert_iteration_clips_nothing():
    """In later updates on the same rollouts too its gradient is that of - log p, however far the policy has gone."""
    torch.manual_seed(4)
    (old,) = [made_of("token", [0, 1, 2], rows=4)]
    now = replace(old, logp_BT=torch.randn(4, 3).double().requires_grad_())
    outcome_B = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    (policy,), _ = ExpertIteration().loss([now], [old], outcome_B, (0.2, 0.2), 0.0)
    (g,) = torch.autograd.grad(policy.taken(), [now.logp_BT])
    torch.testing.assert_close(g, -outcome_B[:, None] * old.mask_BT / old.mask_BT.sum())


def made_of(kind: str, times: list[int], turn: int = 0, rows: int = 5) -> Decision:
    shape = rows, len(times)
    mask = torch.rand(shape) < 0.7
    zeros = torch.zeros(shape, dtype=torch.float64)
    return Decision(kind, zeros, zeros, zeros, mask, torch.tensor(times), turn, expected_BT=torch.randn(shape).double())


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_generalised_advantages_are_those_of_each_row_in_order(gamma, lam):
    """Stops and thoughts between each other, texts after them, a second turn after the first; some not made."""
    torch.manual_seed(3)
    decisions = [made_of("halt", [0, 2, 4]), made_of("thought", [1, 3, 5]), made_of("token", [6, 7, 8, 9])]
    decisions += [made_of("halt", [10, 11], 1), made_of("token", [12, 13], 1)]
    decisions[2].mask_BT[0], decisions[4].mask_BT[0] = False, False  # the last that row 0 did was to stop
    reward = torch.randn(5, dtype=torch.float64)
    got = PPO(gamma=gamma, lam=lam).estimates(reward, decisions)
    for b in range(5):
        order = sorted(
            (d.turn, int(d.time_T[t]), i, t)
            for i, d in enumerate(decisions)
            for t in range(len(d.time_T))
            if d.mask_BT[b, t]
        )
        values = [float(decisions[i].expected_BT[b, t]) for *_, i, t in order]
        for n, (*_, i, t) in enumerate(order):
            want = 0.0
            for m in range(n, len(order)):
                after = float(reward[b]) if m == len(order) - 1 else gamma * values[m + 1]
                want += (gamma * lam) ** (m - n) * (after - values[m])
            adv, back = got[i]
            assert float(adv[b, t]) == pytest.approx(want, abs=1e-12)
            assert float(back[b, t]) == pytest.approx(want + values[n], abs=1e-12)
            if lam == gamma == 1:
                assert float(back[b, t]) == pytest.approx(float(reward[b]), abs=1e-12)
    for d, (adv, back) in zip(decisions, got):
        assert not adv[~d.mask_BT].any() and not back[~d.mask_BT].any()


def test_the_critic_learns_the_returns_and_nothing_else_does():
    torch.manual_seed(4)
    old = [made_of("halt", [0, 1]), made_of("token", [2, 3, 4])]
    reward = torch.randn(5, dtype=torch.float64)
    ppo = PPO(critic_weight=0.25, lam=0.9)
    now = [
        SimpleNamespace(**{**vars(d), "expected_BT": (d.expected_BT + 0.3 * torch.randn_like(d.expected_BT))})
        for d in old
    ]
    for d in now:
        d.logp_BT, d.expected_BT = d.logp_BT.clone().requires_grad_(), d.expected_BT.requires_grad_()
    (policy, value), logged = ppo.loss(now, old, reward, (0.2, 0.2), 0.0)
    count = sum(int(d.mask_BT.sum()) for d in old)
    assert int(policy.count) == int(value.count) == count and value.weight == 0.25
    want = 0.0
    for new, was, (_, back) in zip(now, old, ppo.estimates(reward, old)):
        want += float(((new.expected_BT - back) ** 2 * was.mask_BT).sum())
    assert float(value.total) == pytest.approx(want / 2)
    assert float(logged["critic_error"].taken()) == pytest.approx(want / count)
    assert torch.autograd.grad(value.total, [d.logp_BT for d in now], allow_unused=True) == (None, None)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: GRPO(std_floor=0.0), r"train\.algorithm\.std_floor must be > 0"),
        (lambda: PPO(lam=1.5), r"train\.algorithm\.lam must be in \[0, 1\], got 1\.5"),
        (lambda: PPO(critic_weight=0.0), r"train\.algorithm\.critic_weight must be > 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
