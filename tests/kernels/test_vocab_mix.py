from functools import partial

import pytest
import torch

from kernels.vocab_mix import left_to_torch, vocab_mix
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error


@pytest.mark.parametrize(
    "n, v, d, dtype",
    [  # bf16 on enough numbers that the comparison of two roundings is not luck
        (1, 7, 5, torch.float32),
        (3, 131, 333, torch.float32),
        (9, 131, 33, torch.bfloat16),
        (6, 70, 340, torch.bfloat16),
        (17, 300, 130, torch.float32),
        (3, 70, 1030, torch.bfloat16),
        (70, 140, 40, torch.bfloat16),
    ],
)
def test_tied(n, v, d, dtype):
    assert_at_most_twice_torchs_error(vocab_mix, [torch.randn(n, d), torch.randn(v, d) / d**0.5], dtype, grad=False)


@pytest.mark.parametrize("n, d", [(4, 24), (35, 60)])  # by one read of E, and by two products
@pytest.mark.parametrize("temperature", [0.05, 3.0])
def test_untied_with_temperature_and_noise(temperature, n, d):
    v = 90

    def op(h, e, out, noise, impl):
        return vocab_mix(h, e, out, temperature, noise.float() if h.dtype != torch.float64 else noise, impl=impl)

    gumbel = -torch.empty(n, v).exponential_().log()
    tensors = [torch.randn(n, d), torch.randn(v, d), torch.randn(v, d), gumbel]
    assert_at_most_twice_torchs_error(op, tensors, torch.float32, grad=False, floor=3e-6)


@pytest.mark.parametrize("top_k", [1, 5, 60])
def test_top_k(top_k):
    op = partial(vocab_mix, top_k=top_k)
    tensors = [torch.randn(4, 24), torch.randn(60, 24)]
    assert_at_most_twice_torchs_error(op, tensors, torch.float32, grad=False)


@pytest.mark.parametrize("n", [3, 130])
def test_the_coldest_mix_is_the_embedding_of_the_most_likely_token(n):
    h, e = torch.randn(n, 16), torch.randn(50, 16)
    mix, _, entropy = vocab_mix(h.to(DEVICE), e.to(DEVICE), temperature=1e-6, impl="triton")
    torch.testing.assert_close(mix.cpu(), e[(h @ e.t()).argmax(1)])
    assert entropy.abs().max() < 1e-5


def test_no_rows_and_wrong_inputs():
    h, e = torch.zeros(0, 4, device=DEVICE), torch.zeros(9, 4, device=DEVICE)
    assert vocab_mix(h, e, impl="triton")[0].shape == (0, 4)
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.9, got 10"):
        vocab_mix(h, e, top_k=10)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        vocab_mix(h, e, temperature=0)
    with pytest.raises(ValueError, match=r"noise must have shape \(0, 9\), got \(9, 4\)"):
        vocab_mix(h, e, noise_NV=e)


@pytest.mark.parametrize(
    "n, dtype, top_k, told",
    [
        (64, torch.bfloat16, None, None),
        (65, torch.bfloat16, None, "more than 64 states"),
        (1, torch.float32, None, None),
        (2, torch.float32, None, "several states in fp32"),
        (3, torch.float32, 5, None),
    ],
)
def test_auto_leaves_to_torch_what_the_benchmark_does_not_cover(n, dtype, top_k, told):
    h = torch.zeros(n, 1024, dtype=dtype)
    assert (told or "None") in str(left_to_torch(h, top_k, auto=True))
    assert left_to_torch(h, top_k, auto=False) is None
