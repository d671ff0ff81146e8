"""Recurrences by one launch against the definition; several programs are interpreted in lockstep."""

from dataclasses import replace

import pytest
import torch

import kernels.recurrent_loop.triton as kernel
from kernels import graphs as real_graphs
from kernels.recurrent_loop import RecurrentLoop
from tests.kernels import graphs
from tests.kernels.check import DEVICE
from tests.kernels.decoders import make_decoder
from tests.kernels.lockstep import ORDERS, lockstep

pytestmark = pytest.mark.slow  # in Triton's interpreter

R = 2


def make(family, layers, dtype, width=40, d=10, inner=70):
    """Looped layers, their carry and their norm, in a dtype and the same ones in fp64."""
    torch.manual_seed(1)
    exact = make_decoder(family, layers=layers, width=width, d=d, inner=inner)
    carry, norm = torch.randn(width, width) / width**0.5, (1 + 0.3 * torch.randn(width), 0.3 * torch.randn(width))
    low = make_decoder(family, layers=layers, width=width, d=d, inner=inner, dtype=dtype, device=DEVICE)
    for mine, theirs in zip(exact.affines(), low.affines()):
        for a, b in zip(mine, theirs):
            if a is not None:
                b.data.copy_(a.data)
                a.data.copy_(b.detach().cpu().double())
    carry, *norm = (x.to(dtype) for x in (carry.t().contiguous().t(), *norm))
    return (low, carry.to(DEVICE), tuple(x.to(DEVICE) for x in norm)), (
        exact,
        carry.double(),
        [x.double() for x in norm],
    )


def run(made, constant, ropes, visible, impl, chip=None):
    decoder, carry, norm = made
    constant = constant.to(carry.device, carry.dtype)
    ropes = ropes and tuple(r.to(carry.device, torch.float64 if impl is None else torch.float32) for r in ropes)
    visible = None if visible is None else visible.to(carry.device)
    loop = RecurrentLoop(decoder, carry, norm, impl=impl or "torch", chip=chip)
    return loop.run(constant, R, ropes, visible).cpu().double()


def inputs(family, batch, length, dtype, d=10):
    constant = torch.randn(batch, length, 40).to(dtype).double()
    angle = torch.rand(batch, length, d // 2).repeat(1, 1, 2) * 6
    visible = torch.rand(batch, length) < 0.7 if batch > 1 else None
    return constant, None if family == "gpt2" else (angle.cos().double(), angle.sin().double()), visible


@pytest.mark.parametrize(  # every pair of family, dtype and shape
    "family, dtype, batch, length, layers",
    [
        ("gpt2", torch.float32, 1, 1, 2),
        ("gpt2", torch.bfloat16, 3, 7, 1),
        ("gpt2", torch.float32, 1, 35, 1),
        ("llama", torch.bfloat16, 1, 1, 2),
        ("llama", torch.float32, 3, 7, 1),
        ("llama", torch.bfloat16, 1, 35, 1),
        ("qwen3", torch.float32, 1, 1, 2),
        ("qwen3", torch.bfloat16, 3, 7, 1),
        ("qwen3", torch.float32, 1, 35, 1),
    ],
)
def test_errors_are_at_most_twice_torchs(family, dtype, batch, length, layers):
    low, exact = make(family, layers, dtype)
    given = inputs(family, batch, length, dtype)
    want, torchs, ours = run(exact, *given, None), run(low, *given, "torch"), run(low, *given, "triton")
    assert ours.shape == (batch, R, length, 40)
    for i in range(R):  # each recurrence
        limit = max(2 * (torchs - want)[:, i].norm(), 1e-6 * want[:, i].norm())
        assert (ours - want)[:, i].norm() <= limit


@pytest.mark.parametrize("family, keeps", [("qwen3", 0), ("gpt2", 9_000), ("qwen3", 10**6)])
def test_dealt_out_to_several_programs_with_weights_kept_or_not(family, keeps, monkeypatch):
    if DEVICE == "cpu":
        lockstep(monkeypatch, kernel, ORDERS["first to last"])
    chip = kernel.Chip(7, keeps and kernel.RESERVE + keeps)
    low, _ = make(family, 2, torch.float32, inner=150)
    given = inputs(family, 2, 11, torch.float32)
    tiles = kernel.Loop(low[0], kernel.Weights(low[0]), *low[1:], 1e-5, 2, 11, chip).tiles
    assert {t.splits for t in tiles.values()} == {1, 2} and tiles["DOWN"].chunks == 2
    kept = {name: t.kept for name, t in tiles.items()}
    assert sum(kept.values()) == {0: 0, 9_000: 1}.get(keeps, sum(t.chunks for t in tiles.values()))
    torch.testing.assert_close(run(low, *given, "triton", chip), run(low, *given, "torch"), rtol=0, atol=2e-5)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the programs choose their order themselves")
def test_every_barrier_is_needed_and_none_is_missing(monkeypatch):
    low, _ = make("qwen3", 1, torch.float32)
    given, chip = inputs("qwen3", 1, 3, torch.float32), kernel.Chip(5, 0)
    want = run(low, *given, "torch")

    def right(order, deleted=lambda i: False) -> bool:
        with monkeypatch.context() as patch:
            lockstep(patch, kernel, order, deleted)
            return torch.allclose(run(low, *given, "triton", chip), want, rtol=0, atol=2e-5)

    assert all(right(order) for order in ORDERS.values())
    for barrier in range(6):  # of a recurrence of one layer
        deleted = lambda i, barrier=barrier: i % 6 == barrier  # noqa: E731
        assert not all(right(order, deleted) for order in ORDERS.values()), barrier


def test_every_weight_is_dealt_out_once():
    for k, c, programs in ((40, 40, 7), (1024, 4096, 132), (3072, 1024, 132), (768, 2304, 108)):
        for split in (False, True):
            t = kernel.tiling(k, c, programs, 256, split)
            assert t.one_each(programs) and t.tiles >= t.splits * -(-c // t.block_c)
            assert t.splits * t.chunks * 256 >= k > (t.splits * t.chunks - t.splits) * 256


def test_the_same_every_time_bit_for_bit_and_changed_weights_are_seen():
    (decoder, carry, norm), _ = make("llama", 1, torch.float32)
    constant, ropes, _ = inputs("llama", 1, 5, torch.float32)
    constant, ropes = constant.to(DEVICE, torch.float32), tuple(r.to(DEVICE, torch.float32) for r in ropes)
    loop = RecurrentLoop(decoder, carry, norm, impl="triton")
    one, two = loop.run(constant, 2, ropes), loop.run(constant, 2, ropes)
    assert torch.equal(one, two)
    with torch.no_grad():
        decoder.layers[0].qkv[2][0].data.mul_(2)  # without a new version, as by a fused optimizer
    want = RecurrentLoop(decoder, carry, norm, impl="torch").run(constant, 2, ropes)
    assert (one - want).abs().max() > 0.01
    torch.testing.assert_close(loop.run(constant, 2, ropes), want, rtol=0, atol=2e-5)


def test_nothing_to_do_and_wrong_inputs():
    (decoder, carry, norm), _ = make("gpt2", 1, torch.float32)
    loop, x = RecurrentLoop(decoder, carry, norm, impl="triton"), torch.zeros(2, 3, 40, device=DEVICE)
    assert loop.run(x, 0).shape == (2, 0, 3, 40) and loop.run(x[:0], 2).shape == (0, 2, 3, 40)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        loop.run(x, -1)
    with pytest.raises(ValueError, match=r"constant must have shape \(any, any, any\), got \(3, 40\)"):
        loop.run(x[0], 1)
    with pytest.raises(ValueError, match=r"carry must have shape \(39, 39\), got \(40, 40\)"):
        loop.run(x[..., :39], 1)
    with pytest.raises(ValueError, match=r"norm bias must be torch\.float32 on .*, got torch\.float64"):
        RecurrentLoop(decoder, carry, (norm[0], norm[1].double()), impl="triton").run(x, 1)
    with pytest.raises(ValueError, match=r"visible must have shape \(2, 3\), got \(2, 4\)"):
        loop.run(x, 1, visible_BT=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="Triton asked for, but it takes up to 64 positions"):
        loop.run(torch.zeros(1, 65, 40, device=DEVICE), 1)
    deep, _ = make("gpt2", 5, torch.float32)
    with pytest.raises(ValueError, match="it unrolls up to 4 layers, not 5"):
        RecurrentLoop(*deep, impl="triton").run(x, 1)
    layer = replace(decoder.layers[0], up=((decoder.layers[0].up[0][0], None),))
    with pytest.raises(ValueError, match="some of its projections have a bias and others have none"):
        RecurrentLoop(replace(decoder, layers=(layer,)), carry, norm, impl="triton").run(x, 1)


def test_auto_takes_the_kernel_where_it_was_measured_to_be_faster(monkeypatch):
    x = torch.zeros(1, 65, 40, device=DEVICE)
    for family, layers, rows, told in (
        ("qwen3", 1, 16, None),
        ("qwen3", 1, 17, "more than 16 positions"),
        ("qwen3", 1, 65, "up to 64 positions"),
        ("qwen3", 2, 1, "several layers"),
        ("gpt2", 1, 1, "LayerNorm"),
    ):
        loop = RecurrentLoop(*make(family, layers, torch.float32)[0], impl="auto")
        reason = loop.unless(x[:, :rows])
        assert (reason is None) == (told is None) and (told or "None") in str(reason)
        if rows <= 64:
            assert RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="triton").unless(x[:, :rows]) is None
    loop = RecurrentLoop(*make("qwen3", 1, torch.float32)[0], impl="auto")
    weights = [weight for weight, _ in loop.decoder.affines() if weight.dim() == 2]
    monkeypatch.setattr("kernels.recurrent_loop.SMALL", 4 * (40 * 40 + sum(w.numel() for w in weights)))
    assert loop.unless(x[:, :1]) is None
    monkeypatch.setattr("kernels.recurrent_loop.SMALL", 4 * (40 * 40 + sum(w.numel() for w in weights)) - 1)
    assert "L2 cache" in loop.unless(x[:, :1])


@pytest.fixture
def counts(monkeypatch):
    """Graphs captured and replayed where kernels are not available."""
    monkeypatch.setattr("kernels.dispatch.unavailable", lambda device: "there is none")
    return graphs.counted(monkeypatch)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_calls_of_a_kind_that_comes_often_are_a_graph(family, counts, monkeypatch):
    """Other inputs and changed weights go through the same one; each gives what the definition does."""
    (decoder, carry, norm), _ = make(family, 2, torch.float32)
    loop, plain = (RecurrentLoop(decoder, carry, norm, impl=impl) for impl in ("auto", "torch"))
    seen, kept = [], []
    for i in range(5):
        constant, ropes, visible = inputs(family, 2, 11, torch.float32)
        constant, visible = constant.to(DEVICE, torch.float32), visible.to(DEVICE)
        ropes = ropes and tuple(r.to(DEVICE, torch.float32) for r in ropes)
        kept.append((loop.run(constant, R, ropes, visible), plain.run(constant, R, ropes, visible)))
        loop.run(constant, R + 1 + i)  # of another kind each time
        seen.append((counts["captured"], counts["replayed"]))
        with torch.no_grad():
            decoder.layers[1].down[0].data.mul_(1.5)
    assert seen == [(0, 0), (0, 0), (1, 1), (1, 2), (1, 3)]
    kept.append((loop.run(constant, R, ropes), plain.run(constant, R, ropes)))  # without a mask
    assert loop.at_once(constant, R, ropes, visible) is not None
    assert loop.at_once(constant, 50, ropes, visible) is None  # of a kind that did not come before
    assert loop.at_once(constant.bfloat16(), R, ropes, visible) is None  # as autocast makes it
    monkeypatch.setattr("kernels.recurrent_loop.LARGE", constant.numel() * 40 * 2 - 1)
    assert loop.at_once(constant, R, ropes, visible) is None  # launches are not what takes the time
    for got, want in kept:  # later calls write elsewhere
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


def test_graphs_keep_within_a_bound(counts, monkeypatch):
    """More kinds than there is room for are not captured in turn; those that come no more make room for others."""
    monkeypatch.setattr("kernels.graphs.OFTEN", 0)
    x = torch.randn(1, 4, 40, device=DEVICE)
    kinds = [x[:, :n] for n in (1, 2, 3, 4)]

    def captured(limit: float, times: int, some: list) -> int:
        monkeypatch.setattr("kernels.graphs.limit", lambda device: limit)
        for constant in some * times:
            loop.run(constant, 1)
        return counts["captured"]

    loop = RecurrentLoop(*make("gpt2", 1, torch.float32)[0], impl="auto")
    assert captured(2.0**40, 2, kinds[:3]) == 3
    sizes = [made.bytes for made in loop._captured.values()]
    loop, before = RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="auto"), counts["captured"]
    assert captured(2.5 * max(sizes), 4, kinds[:3]) == before + 2
    assert captured(2.5 * max(sizes), real_graphs.RECENT + 1, kinds[3:]) == before + 3
    assert captured(0, 2, kinds[:1]) == before + 3


def test_where_no_graph_can_be_made_the_definition_serves_and_it_is_said_once(counts, monkeypatch, caplog):
    def fails(run, **how):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("kernels.graphs.OFTEN", 0)
    monkeypatch.setattr("kernels.graphs.captured", fails)
    loop = RecurrentLoop(*make("gpt2", 1, torch.float32)[0], impl="auto")
    x = torch.randn(1, 3, 40, device=DEVICE)
    want = RecurrentLoop(loop.decoder, loop.carry, loop.norm, impl="torch").run(x, 2)
    caplog.clear()
    assert all(torch.equal(loop.run(x, 2), want) for _ in range(3)) and loop.at_once(x, 2, None, None) is None
    assert [m for m in caplog.messages if "op by op" in m] == [caplog.messages[-1]]


def test_more_sequences_than_one_launch_takes():
    low, _ = make("qwen3", 1, torch.float32)
    given = inputs("qwen3", 5, 22, torch.float32)
    torch.testing.assert_close(run(low, *given, "triton"), run(low, *given, "torch"), rtol=0, atol=2e-5)
