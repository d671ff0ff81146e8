import pytest
import torch

from kernels.thought_feedback import thought_feedback
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error

N, D, WIDE = 5, 37, 50


def scale(d):
    return 1 + 0.3 * torch.randn(d)


def coconut(h, w, b, impl):
    return thought_feedback(h, (w, b), impl=impl)


def llama(h, w, impl):
    return thought_feedback(h, (w, None), impl=impl)


def projected(h, w, m, b, impl):
    return thought_feedback(h, (w, None), projection=(m, b), impl=impl)


def hrpo(h, w, m, e, r, i, decay, impl):
    return thought_feedback(h, (w, None), projection=(m, None), gate=(e, r, i, decay), impl=impl)


def gated(h, e, r, i, decay, impl):
    return thought_feedback(h, gate=(e, r, i, decay), impl=impl)


FORMS = [
    (coconut, [(N, D), (D,), (D,)]),
    (llama, [(1, 1100), (1100,)]),
    (projected, [(N, D), (D,), (D, WIDE), (WIDE,)]),
    (hrpo, [(N, D), (D,), (D, WIDE), (N, WIDE), (N, WIDE), (N, WIDE), (WIDE,)]),
    (gated, [(N, D), (N, D), (N, D), (N, D), (D,)]),
]


@pytest.mark.parametrize("op, shapes", FORMS, ids=[f[0].__name__ for f in FORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form(op, shapes, dtype):
    tensors = [scale(*s) if len(s) == 1 else torch.randn(s) for s in shapes]
    floor = 1e-6 if dtype == torch.float32 else 4e-3
    assert_at_most_twice_torchs_error(op, tensors, dtype, floor=floor)


def by_hand(h, w, m, e, r, i, decay):
    """HRPO's feedback as its paper has it (arXiv:2505.18454, eq. 3-4), a = exp(-8 softplus(-decay) sigmoid(r))."""
    y = w * h / (h.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() @ m
    opening, gate = 1 / (1 + torch.exp(-r)), 1 / (1 + torch.exp(-i))
    a = torch.exp(-8 * torch.log(1 + torch.exp(-decay)) * opening)
    return a * e + torch.sqrt(1 - a**2) * gate * y


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_gradients_are_those_of_the_papers_formula(impl):
    tensors = [scale(*s) if len(s) == 1 else torch.randn(s) for s in FORMS[3][1]]
    weights = torch.randn(N, WIDE, dtype=torch.float64)
    exact = [x.double().requires_grad_() for x in tensors]
    ours = [x.to(DEVICE).requires_grad_() for x in tensors]
    want = torch.autograd.grad((by_hand(*exact) * weights).sum(), exact)
    got = torch.autograd.grad((hrpo(*ours, impl=impl) * weights.to(DEVICE)).sum(), ours)
    for name, a, b in zip(("h", "weight", "projection", "e", "r", "i", "decay"), got, want, strict=True):
        assert (a.cpu() - b).norm() <= 2e-6 * b.norm(), name


def test_gradients_of_the_definition():
    shapes = FORMS[3][1]
    tensors = [torch.randn(tuple(min(n, 4) for n in s), dtype=torch.float64, requires_grad=True) for s in shapes]
    torch.autograd.gradcheck(lambda *x: hrpo(*x, impl="torch"), tensors)


def test_a_closed_gate_is_the_text():
    h, e, i = torch.randn(3, N, D, device=DEVICE)
    shut, decay = torch.full((N, D), -100.0, device=DEVICE), torch.zeros(D, device=DEVICE)
    for impl in ("torch", "triton"):
        got = thought_feedback(h, gate=(e, shut, i, decay), impl=impl)
        torch.testing.assert_close(got, e, rtol=0, atol=1e-5)


def test_no_rows_and_wrong_inputs():
    h, w = torch.zeros(0, D, device=DEVICE), torch.ones(D, device=DEVICE)
    assert thought_feedback(h, (w, None), impl="triton").shape == (0, D)
    with pytest.raises(ValueError, match=r"norm weight must have shape \(37\), got \(36,\)"):
        thought_feedback(h, (w[1:], None))
    with pytest.raises(ValueError, match=r"decay must have shape \(37\), got \(0, 37\)"):
        thought_feedback(h, gate=(h, h, h, h))
