"""Chains of latent steps by fused launches against the definition."""

import pytest
import torch

from kernels.decode_step import LatentDecoder
from tests.kernels.check import DEVICE
from tests.kernels.decoders import make_decoder, make_past, make_rope

pytestmark = pytest.mark.slow  # in Triton's interpreter

K = 2


def run(decoder, past, h, visible, impl, dtype):
    """States and caches of K steps of a decoder in a dtype, on whatever device runs kernels."""
    where = decoder.norm[0].device
    move = lambda x: x.detach().to(where, dtype)  # noqa: E731
    ropes = None
    if decoder.kind == "rms":
        steps = [make_rope(decoder, len(h), i, torch.float64) for i in range(K)]
        ropes = tuple(torch.stack(r).to(where, torch.float64 if dtype == torch.float64 else torch.float32)
                      for r in zip(*steps))  # fmt: skip
    visible = None if visible is None else visible.to(where)
    add = torch.arange(K)[:, None, None] - torch.ones(K, *h.shape)
    states, kv = LatentDecoder(decoder, impl).run(
        [tuple(move(x) for x in pair) for pair in past], move(h), lambda h: 0.5 * h, K, move(add), ropes, visible
    )
    return [states.cpu().double(), *(x.cpu().double() for pair in kv for x in pair)]


@pytest.mark.parametrize(  # every pair of family, dtype and shape
    "family, dtype, batch, size",
    [
        ("gpt2", torch.float32, 1, 1),
        ("gpt2", torch.bfloat16, 3, 70),
        ("llama", torch.bfloat16, 1, 1),
        ("llama", torch.float32, 3, 70),
        ("qwen3", torch.float32, 3, 70),
        ("qwen3", torch.bfloat16, 1, 1),
    ],
)
def test_errors_are_at_most_twice_torchs(family, batch, size, dtype):
    torch.manual_seed(1)
    low = make_decoder(family, width=40, d=10, inner=70, dtype=dtype, device=DEVICE)
    torch.manual_seed(1)
    exact = make_decoder(family, width=40, d=10, inner=70)
    for mine, theirs in zip(exact.affines(), low.affines()):
        for a, b in zip(mine, theirs):
            if a is not None:
                a.data.copy_(b.detach().cpu().double())
    past = [tuple(x.detach().to(dtype).double() for x in pair) for pair in make_past(exact, batch, size)]
    h, visible = torch.randn(batch, 40).to(dtype).double(), None
    if batch == 3:
        visible = torch.rand(batch, size) < 0.7
    want = run(exact, past, h, visible, "torch", torch.float64)
    torchs = run(low, past, h, visible, "torch", dtype)
    ours = run(low, past, h, visible, "triton", dtype)
    for w, t, o in zip(want, torchs, ours):
        assert o.shape == w.shape
        limit = max(2 * (t - w).norm(), 1e-6 * w.norm())
        assert (o - w).norm() <= limit


@pytest.mark.parametrize("family, batch", [("qwen3", 17), ("gpt2", 5)])  # more than a tile, more than a few
def test_many_rows(family, batch):
    decoder = make_decoder(family, layers=1, width=40, d=10, inner=150, dtype=torch.float32, device=DEVICE)
    past, h = make_past(decoder, batch, 3), torch.randn(batch, 40)
    got, want = (run(decoder, past, h, None, impl, torch.float32) for impl in ("triton", "torch"))
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-5)


def test_the_same_every_time_bit_for_bit():
    decoder = make_decoder("qwen3", dtype=torch.float32, device=DEVICE)
    past, h = make_past(decoder, 2, 5), torch.randn(2, 24)
    one, two = (run(decoder, past, h, None, "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_changed_weights_are_seen():
    decoder = make_decoder("llama", dtype=torch.float32, device=DEVICE)
    past = [tuple(x.detach() for x in p) for p in make_past(decoder, 2, 5, torch.float32, DEVICE)]
    h, ropes = torch.randn(2, 24, device=DEVICE), tuple(torch.ones(1, 2, 6, device=DEVICE) for _ in "cs")
    latent = LatentDecoder(decoder, "triton")
    before = latent.run(past, h, lambda h: h, 1, ropes=ropes)[0]
    with torch.no_grad():
        decoder.layers[0].qkv[2][0].data.mul_(2)  # without a new version, as fused optimizers do
    after = latent.run(past, h, lambda h: h, 1, ropes=ropes)[0]
    want = LatentDecoder(decoder, "torch").run(past, h, lambda h: h, 1, ropes=ropes)[0]
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, want, rtol=0, atol=1e-5)


def test_buffers_made_in_inference_mode_serve_outside_it():
    decoder = make_decoder("gpt2", layers=1, dtype=torch.float32, device=DEVICE)
    past = [tuple(x.detach() for x in p) for p in make_past(decoder, 1, 5, torch.float32, DEVICE)]
    h, latent = torch.randn(1, 24, device=DEVICE), LatentDecoder(decoder, "triton")
    with torch.inference_mode():
        first = latent.run(past, h.clone(), None, 1)[0]
    again = latent.run(past, h, None, 1)[0]
    assert torch.equal(again, first) and not again.requires_grad


def test_nothing_to_do_and_wrong_inputs():
    decoder = make_decoder("gpt2", dtype=torch.float32, device=DEVICE)
    latent = LatentDecoder(decoder, "triton")
    past, h = make_past(decoder, 2, 5, torch.float32, DEVICE), torch.zeros(2, 24, device=DEVICE)
    assert latent.run(past, h, lambda h: h, 0)[0].shape == (2, 0, 24)
    none = make_past(decoder, 0, 5, torch.float32, DEVICE)
    assert latent.run(none, h[:0], lambda h: h, 2)[0].shape == (0, 2, 24)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        latent.run(past, h, lambda h: h, -1)
    with pytest.raises(ValueError, match=r"h must have shape \(2, 24\), got \(1, 24\)"):
        latent.run(past, h[:1], lambda h: h, 1)
    with pytest.raises(ValueError, match=r"fp32, bf16 or fp16, not torch.float64"):
        LatentDecoder(make_decoder("gpt2", device=DEVICE), "triton")


def test_an_empty_cache():
    decoder = make_decoder("gpt2", dtype=torch.float32, device=DEVICE)
    past = [tuple(x.detach() for x in p) for p in make_past(decoder, 2, 0, torch.float32, DEVICE)]
    h = torch.randn(2, 24, device=DEVICE)
    got, want = (LatentDecoder(decoder, impl).run(past, h, lambda h: h, 2)[0] for impl in ("triton", "torch"))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
