"""The persistent chain against the definition; interpreted by one program, for barriers need all of them at once."""

import pytest
import torch

from kernels.decode_step import LatentDecoder
from tests.kernels.check import DEVICE
from tests.kernels.decoders import FAMILIES, make_decoder, make_past
from tests.kernels.test_decode_step import run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch, size, layers", [(1, 4, 3), (3, 66, 1)])
def test_it_is_the_definition(family, batch, size, layers):
    decoder = make_decoder(family, layers=layers, width=40, d=10, inner=70, dtype=torch.float32, device=DEVICE)
    past, h = make_past(decoder, batch, size), torch.randn(batch, 40)
    visible = torch.rand(batch, size) < 0.7 if batch == 3 else None
    got = run(decoder, past, h, visible, "triton", torch.float32, persistent=True)
    want = run(decoder, past, h, visible, "torch", torch.float32, persistent=False)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=0, atol=2e-5)


def test_wrong_inputs():
    decoder = make_decoder("gpt2", dtype=torch.float32, device=DEVICE)
    past, h = make_past(decoder, 2, 5, torch.float32, DEVICE), torch.zeros(2, 24, device=DEVICE)
    with pytest.raises(ValueError, match="feed must be None"):
        LatentDecoder(decoder, "triton", persistent=True).run(past, h, lambda h: h, 1)
    many, h = make_past(decoder, 17, 5, torch.float32, DEVICE), torch.zeros(17, 24, device=DEVICE)
    with pytest.raises(ValueError, match="up to 16 rows at a time, got 17"):
        LatentDecoder(decoder, "triton", persistent=True).run(many, h, None, 1)
