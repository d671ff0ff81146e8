from functools import partial

import pytest
import torch

from kernels.vocab_mix import vocab_mix
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error


@pytest.mark.parametrize(
    "n, v, d, dtype",
    [  # bf16 on enough numbers that the comparison of two roundings is not luck
        (1, 7, 5, torch.float32),
        (5, 131, 33, torch.float32),
        (17, 70, 130, torch.float32),
        (9, 131, 33, torch.bfloat16),
        (17, 70, 130, torch.bfloat16),
    ],
)
def test_tied(n, v, d, dtype):
    assert_at_most_twice_torchs_error(vocab_mix, [torch.randn(n, d), torch.randn(v, d) / d**0.5], dtype, grad=False)


@pytest.mark.parametrize("temperature", [0.05, 3.0])
def test_untied_with_temperature_and_noise(temperature):
    n, v, d = 4, 90, 24

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


def test_the_coldest_mix_is_the_embedding_of_the_most_likely_token():
    h, e = torch.randn(3, 16), torch.randn(50, 16)
    mix, _, entropy = vocab_mix(h.to(DEVICE), e.to(DEVICE), temperature=1e-3, impl="triton")
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
