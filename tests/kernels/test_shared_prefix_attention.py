import pytest
import torch

from kernels.shared_prefix_attention import shared_prefix_attention
from tests.kernels.check import DEVICE, assert_at_most_twice_torchs_error

pytestmark = pytest.mark.slow  # in Triton's interpreter


def inputs(p, g, h, kv_heads, size, late, d):
    shapes = [(p, g, h, d), *[(p, kv_heads, size, d)] * 2, *[(p, g, kv_heads, late, d)] * 2]
    return [torch.randn(shape) for shape in shapes]


def op(q, a, b, c, e, impl, visible=None, lengths=None):
    return shared_prefix_attention(q, (a, b), (c, e), visible, lengths, impl=impl)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1, 4), (2, 5, 4, 2, 70, 3, 10), (1, 40, 2, 1, 9, 66, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes(sizes, dtype):
    floor = 1e-6 if dtype == torch.float32 else 6e-3  # bf16: weights are rounded before they multiply v, as in SDPA
    tensors = inputs(*sizes)
    assert_at_most_twice_torchs_error(op, tensors, dtype, grad=False, floor=floor)


def test_it_is_plain_attention_on_the_prompt_copied_to_each_rollout():
    q, a, b, c, e = inputs(2, 3, 4, 4, 7, 5, 8)
    k, v = (torch.cat([x[:, None].expand(-1, 3, -1, -1, -1), y], 3).flatten(0, 1) for x, y in ((a, c), (b, e)))
    want = torch.nn.functional.scaled_dot_product_attention(q.flatten(0, 1)[:, :, None], k, v)
    for impl in ("torch", "triton"):
        got = op(*(x.to(DEVICE) for x in (q, a, b, c, e)), impl=impl).cpu()
        torch.testing.assert_close(got.flatten(0, 1)[:, :, None], want, rtol=0, atol=1e-6)


def test_padding_and_lengths():
    visible = torch.tensor([[False] * 4 + [True] * 5, [True] * 9]).to(DEVICE)
    lengths = torch.tensor([[1, 3, 2], [3, 1, 1]]).to(DEVICE)

    def masked(*tensors, impl):
        return op(*tensors, impl=impl, visible=visible, lengths=lengths)

    assert_at_most_twice_torchs_error(masked, inputs(2, 3, 4, 2, 9, 3, 8), torch.float32, grad=False)


def test_nothing_added_yet_no_rollouts_and_wrong_inputs():
    def tensors(*sizes):
        return [x.to(DEVICE) for x in inputs(*sizes)]

    got, want = (op(*tensors(0, 3, 2, 2, 4, 1, 8), impl=impl) for impl in ("triton", "torch"))
    assert got.shape == want.shape == (0, 3, 2, 8)
    assert_at_most_twice_torchs_error(op, inputs(2, 3, 2, 2, 4, 0, 8), torch.float32, grad=False)
    q, a, b, c, e = tensors(2, 3, 4, 2, 5, 1, 8)
    with pytest.raises(ValueError, match=r"prefix v must have shape \(2, 2, 5, 8\), got \(2, 2, 4, 8\)"):
        op(q, a, b[:, :, 1:], c, e, impl="torch")
    with pytest.raises(ValueError, match="3 heads cannot share 2 K/V heads"):
        op(q[:, :, :3], a, b, c, e, impl="torch")
