"""A kernel that does not compile: one line and torch under `auto`, an error where Triton was asked for."""

import logging

import pytest
import torch
from triton.runtime.errors import OutOfResources

from kernels import dispatch
from kernels.decode_step import LatentDecoder
from kernels.errors import UserError
from kernels.exit_criterion import second_difference
from kernels.exit_criterion import triton as exit_criterion
from tests.kernels.check import DEVICE
from tests.kernels.decoders import make_decoder, make_past


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(dispatch, "on_gpu", lambda x: True)
    monkeypatch.setattr(dispatch, "_failed", {})
    monkeypatch.setattr(dispatch, "_told", set())


def too_large(*args, **kwargs):
    raise OutOfResources(300_000, 232_448, "shared memory")


def test_a_kernel_that_does_not_fit_goes_to_torch_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr("kernels.exit_criterion.triton.second_difference", too_large)
    states = torch.randn(3, 2, 8, device=DEVICE)
    with caplog.at_level(logging.WARNING, logger="kernels"):
        got = [second_difference(*states) for _ in range(2)]
    for found in got:
        assert all(torch.equal(a, b) for a, b in zip(found, second_difference(*states, impl="torch")))
    assert len(caplog.messages) == 1
    said = "its kernel for float32 of width 8, up to 2 rows does not compile here"
    assert f"second_difference: {said}" in caplog.text and "shared memory" in caplog.text
    with pytest.raises(UserError, match=f"second_difference: Triton asked for, but {said}"):
        second_difference(*states, impl="triton")


def test_inputs_of_another_kind_keep_their_kernels(monkeypatch, caplog):
    """What does not fit at one size says nothing of others: those run, and are not logged."""
    fits = exit_criterion.second_difference

    def wide_is_too_large(h, *others):
        return too_large() if h.shape[-1] > 8 or len(h) > 64 or h.dtype == torch.bfloat16 else fits(h, *others)

    monkeypatch.setattr(exit_criterion, "second_difference", wide_is_too_large)
    launched = []
    monkeypatch.setattr(dispatch, "choose", counted(dispatch.choose, launched))
    shapes = [(2, 16), (2, 8), (65, 8), (300, 8), (64, 8), (2, 16)]
    with caplog.at_level(logging.WARNING, logger="kernels"):
        for shape in shapes:
            states = torch.randn(3, *shape, device=DEVICE)
            got, want = second_difference(*states), second_difference(*states, impl="torch")
            torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    served = [chosen for chosen, impl in launched if impl is None]
    # the second of a kind is not tried again
    assert served == ["triton", "triton", "triton", "torch", "triton", "torch"]
    assert [message.split(" does")[0] for message in caplog.messages] == [
        "second_difference: its kernel for float32 of width 16, up to 2 rows",
        "second_difference: its kernel for float32 of width 8, more than 64 rows",
    ]


def counted(choose, launched: list):
    def chosen(op, impl, *args):
        launched.append((choose(op, impl, *args), impl))
        return launched[-1][0]

    return chosen


def test_an_error_of_another_kind_is_not_swallowed(monkeypatch):
    def wrong(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("kernels.exit_criterion.triton.second_difference", wrong)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        second_difference(*torch.randn(3, 2, 8, device=DEVICE))


def test_a_chain_whose_kernels_do_not_fit(monkeypatch, caplog):
    monkeypatch.setattr("kernels.decode_step.triton.Step.__call__", too_large)
    decoder = make_decoder("gpt2", layers=1, dtype=torch.float32, device=DEVICE)
    past = [tuple(x.detach() for x in p) for p in make_past(decoder, 2, 3, torch.float32, DEVICE)]
    h = torch.randn(2, 24, device=DEVICE)
    with caplog.at_level(logging.WARNING, logger="kernels"):
        latent = LatentDecoder(decoder)
        got, cache = latent.run(past, h, None, 2)
    want, kv = LatentDecoder(decoder, "torch").run(past, h, None, 2)
    assert torch.equal(got, want) and torch.equal(cache[0][1], kv[0][1])
    assert not latent.serves(h) and not LatentDecoder(decoder).serves(h) and len(caplog.messages) == 1
    assert latent.serves(torch.randn(3, 24, device=DEVICE))  # of another tile
