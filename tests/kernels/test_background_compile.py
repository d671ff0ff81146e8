"""A kernel that compiles long keeps no caller waiting: torch serves until it is there, and `auto` then takes it."""

import logging
import threading

import pytest
import torch
from triton.runtime.errors import OutOfResources

import kernels.recurrent_loop.triton as kernel
from kernels import dispatch
from kernels.recurrent_loop import RecurrentLoop
from tests.kernels.check import DEVICE
from tests.kernels.decoders import make_decoder

pytestmark = pytest.mark.slow  # in Triton's interpreter


class Compiler:
    """In place of Triton's, which the interpreter does without: it works until it is told to end."""

    def __init__(self):
        self.go_on, self.called, self.error = threading.Event(), [], None

    def __call__(self, loop, *inputs) -> None:
        self.called.append(loop.options(inputs[2] is not None, inputs[3] is not None))
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error


@pytest.fixture
def compiler(monkeypatch):
    made = Compiler()
    monkeypatch.setattr(kernel.Loop, "compile", lambda loop, *inputs: made(loop, *inputs))
    monkeypatch.setattr(dispatch, "on_gpu", lambda x: True)
    monkeypatch.setattr(dispatch, "PATIENCE", 0.01)
    for name, empty in (("_failed", {}), ("_told", set()), ("_jobs", {})):
        monkeypatch.setattr(dispatch, name, empty)
    yield made
    made.go_on.set()


def make(impl=None):
    decoder = make_decoder("llama", layers=1, dtype=torch.float32, device=DEVICE)
    norm = torch.ones(24, device=DEVICE), torch.zeros(24, device=DEVICE)
    chip = kernel.Chip(programs=1, shared=200_000)
    return RecurrentLoop(decoder, torch.eye(24, device=DEVICE), norm, impl=impl, chip=chip)


def ended() -> None:
    for job in dispatch._jobs.values():
        job.join(60)


def test_torch_serves_until_the_kernel_is_there(compiler, caplog, monkeypatch):
    loop, constant, launched = make(), torch.randn(2, 3, 24, device=DEVICE), []
    call = kernel.Loop.__call__
    monkeypatch.setattr(kernel.Loop, "__call__", lambda *a: (launched.append(1), call(*a))[1])
    with caplog.at_level(logging.WARNING, logger="kernels"):
        first = [loop.run(constant, 2) for _ in range(3)]
    assert not launched and len(compiler.called) == 1  # one compilation for all of them
    plain = RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="torch").run(constant, 2)
    assert all(torch.equal(got, plain) for got in first)
    (message,) = caplog.messages
    assert message.startswith("recurrent_loop: its kernel for float32 of width 24, up to 8 rows is being compiled")
    compiler.go_on.set()
    ended()
    torch.testing.assert_close(loop.run(constant, 2), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(loop.run(constant[:1], 2), plain[:1], rtol=0, atol=1e-4)  # the same variant
    assert len(launched) == 2 and len(compiler.called) == 1 and len(caplog.messages) == 1


def test_each_variant_is_compiled_by_itself(compiler):
    loop, constant = make(), torch.randn(2, 3, 24, device=DEVICE)
    visible = torch.tensor([[False, True, True], [True, True, True]], device=DEVICE)
    loop.run(constant, 2)
    loop.run(constant, 2, visible_BT=visible)
    loop.run(constant, 3)
    assert [options["MASK"] for options in compiler.called] == [False, True]


def test_a_kernel_that_cannot_be_compiled_is_left_to_torch_with_one_line(compiler, caplog):
    compiler.error = OutOfResources(300_000, 232_448, "shared memory")
    compiler.go_on.set()
    loop, constant = make(), torch.randn(1, 4, 24, device=DEVICE)
    plain = RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="torch").run(constant, 2)
    with caplog.at_level(logging.WARNING, logger="kernels"):
        loop.run(constant, 2)
        ended()
        got = [loop.run(constant, 2) for _ in range(3)]
    assert all(torch.equal(x, plain) for x in got) and len(compiler.called) == 1
    said = [m for m in caplog.messages if "does not compile here" in m]
    assert len(said) == 1 and "shared memory" in said[0]


def test_a_bug_in_the_compiler_is_raised(compiler):
    compiler.error = ZeroDivisionError("a bug")
    compiler.go_on.set()
    loop, constant = make(), torch.randn(1, 4, 24, device=DEVICE)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        loop.run(constant, 2)
        ended()
        loop.run(constant, 2)


def test_where_triton_is_asked_for_the_caller_waits(compiler):
    loop, constant = make("triton"), torch.randn(1, 4, 24, device=DEVICE)
    plain = RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="torch").run(constant, 2)
    torch.testing.assert_close(loop.run(constant, 2), plain, rtol=0, atol=1e-4)
    assert not compiler.called
