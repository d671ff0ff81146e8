import pytest
import torch

from kernels.recurrent_block import inject
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """More rows than programs, without hundreds of interpreted ones."""
    import kernels.recurrent_block.triton as kernel

    monkeypatch.setattr(kernel, "PROGRAMS", 3)


def layer(s, c, w, b, impl):
    return inject(s, c, w, b, impl=impl)


def rms(s, c, w, impl):
    return inject(s, c, w, impl=impl)


@pytest.mark.parametrize("n, d", [(1, 3), (7, 40), (5, 1030)])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes(n, d, kind, dtype):
    tensors = [torch.randn(n, d), torch.randn(n, d), 1 + 0.3 * torch.randn(d), torch.randn(d)]
    floor = 1e-6 if dtype == torch.float32 or n * d > 100 else 4e-3
    if kind == "layer":
        assert_at_most_twice_torchs_error(layer, tensors, dtype, floor=floor)
    else:
        assert_at_most_twice_torchs_error(rms, tensors[:3], dtype, floor=floor)


def test_gradients_of_the_definition():
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (3, 5), (5,), (5,))]
    torch.autograd.gradcheck(lambda *x: layer(*x, impl="torch"), tensors)
    torch.autograd.gradcheck(lambda *x: rms(*x, impl="torch"), tensors[:3])


def test_the_hoisted_adapter_is_the_one_that_concatenates():
    s, e, w, b = torch.randn(4, 6), torch.randn(4, 6), torch.randn(12, 6), torch.randn(6)
    want = torch.cat([s, e], 1) @ w + b
    constant = torch.addmm(b, e, w[6:])
    x, _ = inject((s @ w[:6]).to(DEVICE), constant.to(DEVICE), torch.ones(6, device=DEVICE), impl="triton")
    torch.testing.assert_close(x.cpu(), want)


def test_no_rows_and_wrong_inputs():
    s, w = torch.zeros(0, 5, device=DEVICE, requires_grad=True), torch.ones(5, device=DEVICE)
    x, n = inject(s, s, w, impl="triton")
    (x.sum() + n.sum()).backward()
    assert x.shape == n.shape == s.grad.shape == (0, 5)
    with pytest.raises(ValueError, match=r"constant must have shape \(0, 5\), got \(5,\)"):
        inject(s, w, w)
