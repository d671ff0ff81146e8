import pytest
import torch

from kernels.exit_criterion import second_difference, step_kl
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error


@pytest.mark.parametrize("n, d", [(1, 3), (5, 70), (33, 1030)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_difference(n, d, dtype):
    assert_at_most_twice_torchs_error(second_difference, list(torch.randn(3, n, d)), dtype, grad=False)


def test_a_straight_line_has_no_second_difference():
    start, along = torch.randn(2, 4, 16)
    line = [(start + i * along).to(DEVICE) for i in range(3)]
    bend, now, then = second_difference(*reversed(line), impl="triton")
    assert bend.max() < 1e-5
    torch.testing.assert_close(now.cpu(), along.norm(dim=1))
    torch.testing.assert_close(then.cpu(), along.norm(dim=1))


@pytest.mark.parametrize("n, v, d", [(1, 5, 4), (7, 333, 30), (20, 130, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl(n, v, d, dtype):
    h, before = torch.randn(2, n, d)
    assert_at_most_twice_torchs_error(step_kl, [h, before, torch.randn(v, d) / d**0.5], dtype, grad=False)


def test_kl_of_peaked_distributions_and_of_equal_ones():
    h, e = 20 * torch.randn(6, 16), torch.randn(300, 16)
    assert_at_most_twice_torchs_error(step_kl, [h, h + torch.randn(6, 16), e], torch.float32, grad=False)
    assert step_kl(h.to(DEVICE), h.to(DEVICE), e.to(DEVICE), impl="triton").abs().max() < 1e-5


def test_no_rows_and_wrong_shapes():
    x, e = torch.zeros(0, 4, device=DEVICE), torch.zeros(9, 4, device=DEVICE)
    assert step_kl(x, x, e, impl="triton").shape == second_difference(x, x, x, impl="triton")[0].shape == (0,)
    with pytest.raises(ValueError, match=r"before must have shape \(0, 4\), got \(9, 4\)"):
        step_kl(x, e, e)
    with pytest.raises(ValueError, match=r"earlier must be torch.float32 on .*, got torch.float64"):
        second_difference(x, x, x.double())
