import pytest
import torch

from kernels.linear_logprob import linear_logprob
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error


def inputs(n, v, d, sharp=1.0):
    return [sharp * torch.randn(n, d), torch.randn(v, d) / d**0.5, torch.randint(v, (n,))]


@pytest.mark.parametrize("n, v, d", [(1, 7, 5), (17, 131, 33), (70, 300, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes(n, v, d, dtype):
    assert_at_most_twice_torchs_error(linear_logprob, inputs(n, v, d), dtype)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_temperature(temperature):
    def op(*x, impl):
        return linear_logprob(*x, temperature=temperature, impl=impl)

    assert_at_most_twice_torchs_error(op, inputs(5, 50, 16), torch.float32)


@pytest.mark.parametrize("sharp", [30.0, 300.0])
def test_a_peaked_softmax(sharp):
    assert_at_most_twice_torchs_error(linear_logprob, inputs(9, 200, 16, sharp), torch.float32, floor=3e-6)


def test_more_chunks_than_one(monkeypatch):
    import kernels.linear_logprob.triton as kernel

    monkeypatch.setattr(kernel, "CHUNK", 64)
    assert_at_most_twice_torchs_error(linear_logprob, inputs(6, 150, 8), torch.float32)


def test_the_most_likely_id():
    h, e, ids = inputs(20, 333, 16)
    top = linear_logprob(h.to(DEVICE), e.to(DEVICE), ids.to(DEVICE), impl="triton")[2]
    assert torch.equal(top.cpu(), (h @ e.t()).argmax(1))


def test_no_rows():
    h, e, ids = (t.to(DEVICE) for t in inputs(0, 9, 4))
    for impl in ("torch", "triton"):
        assert all(o.shape == (0,) for o in linear_logprob(h, e, ids, impl=impl))


def test_gradients_of_the_definition():
    h, e, ids = (t.double() if t.is_floating_point() else t for t in inputs(3, 6, 4))
    torch.autograd.gradcheck(
        lambda h, e: linear_logprob(h, e, ids, 0.7, impl="torch")[:2], (h.requires_grad_(), e.requires_grad_())
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h, e, i: (h[0], e, i), r"h must have shape \(any, any\), got \(4,\)"),
        (lambda h, e, i: (h, e[:, 1:], i), r"e must have shape \(any, 4\), got \(9, 3\)"),
        (lambda h, e, i: (h, e.double(), i), "e must be torch.float32 on .*, got torch.float64"),
        (lambda h, e, i: (h, e, i[1:]), r"ids must have shape \(5\), got \(4,\)"),
        (lambda h, e, i: (h, e, i.float()), "ids must be integers"),
    ],
)
def test_wrong_inputs(change, message):
    with pytest.raises(ValueError, match=message):
        linear_logprob(*change(*inputs(5, 9, 4)))


def test_fp64_is_refused_when_triton_is_asked_for():
    h, e, ids = (t.double() if t.is_floating_point() else t for t in inputs(5, 9, 4))
    with pytest.raises(ValueError, match=r"fp32, bf16 or fp16, not torch.float64"):
        linear_logprob(h, e, ids, impl="triton")
