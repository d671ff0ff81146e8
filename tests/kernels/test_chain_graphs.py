"""Steps of a chain in training as graphs: counted, and held to the steps that are launched one by one."""

import contextlib
import gc
import weakref

import pytest
import torch

from kernels import graphs as real_graphs
from kernels.latent_chain import Graphs, LatentChain, replay
from tests.kernels import graphs
from tests.kernels.check import DEVICE
from tests.kernels.decoders import FAMILIES, make_decoder, make_past, make_rope
from tests.kernels.test_latent_chain import inputs

B, K = 3, 4


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(replay.graphs, "OFTEN", 0)
    return graphs.counted(monkeypatch)


def given(decoder, size: int, dtype=torch.float64):
    """K and V of a prompt, a first input and what may be attended at each step."""
    past = [tuple(x.detach().requires_grad_() for x in pair) for pair in make_past(decoder, B, size, dtype, DEVICE)]
    x0 = torch.randn(B, decoder.norm[0].shape[0]).to(DEVICE, dtype).requires_grad_()
    masks = [torch.rand(B, size + i + 1, device=DEVICE) < 0.6 for i in range(K)]
    for mask in masks:
        mask[:, -1] = True
    return past, x0, masks


def learned(decoder, past, x0, masks, keep: Graphs | None, autocast=None, steps: int = K):
    """States, K and V, and every gradient of K steps, each fed the state of the one before."""
    chain, states, x = LatentChain.of(decoder, past, autocast=autocast, graphs=keep), [], x0
    for i in range(steps):
        rope = make_rope(decoder, B, i + past[0][0].shape[2], x0.dtype, DEVICE)
        x, chain = chain.step(x, rope, masks[i] if masks else None)
        states.append(x)
    longer, states = chain.read(), torch.stack(states)
    both = [x.double() for x in (states, *(x for kv in longer for x in kv))]
    grads = torch.autograd.grad(sum(x.sin().sum() for x in both), inputs(decoder, past, x0))
    return [x.detach() for x in both] + list(grads)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden", [False, True])
def test_every_number_is_that_of_the_steps_themselves(family, hidden, counts):
    """Prompts of other lengths go through the same graphs; what an earlier chain left behind is not seen."""
    decoder, keep = make_decoder(family, device=DEVICE), Graphs()
    for n, size in enumerate((9, 5, 7), 1):
        past, x0, masks = given(decoder, size)
        want = learned(decoder, past, x0, masks if hidden else None, None)
        got = learned(decoder, past, x0, masks if hidden else None, keep)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-10)
        assert counts == {"captured": 2 * K, "replayed": 2 * K * (n + 1)}  # once to see that they are right


def test_changed_weights_are_seen_and_their_copies_under_autocast(counts):
    decoder, keep = make_decoder("qwen3", dtype=torch.float32, device=DEVICE), Graphs()
    past, x0, masks = given(decoder, 6, torch.float32)
    for _ in range(3):
        want = learned(decoder, past, x0, masks, None, torch.bfloat16)
        got = learned(decoder, past, x0, masks, keep, torch.bfloat16)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype and (g - w).norm() <= 2e-2 * w.norm()
        with torch.no_grad():
            for pair in decoder.affines():
                pair[0].mul_(1.3)
    assert counts["captured"] == 2 * K


def test_chains_that_live_at_once_do_not_share_a_workspace(counts):
    """Two continuations, and a chain that is begun before the last one's gradients are taken."""
    decoder, keep = make_decoder("llama", device=DEVICE), Graphs()
    (past, x0, _), (other_past, y0, _) = given(decoder, 5), given(decoder, 5)

    def thought(past, x, keep):
        chain = LatentChain.of(decoder, past, graphs=keep)
        for i in range(2):
            x, chain = chain.step(x, make_rope(decoder, B, i, x.dtype, DEVICE))
        return x, chain

    def both(keep):
        x, chain = thought(past, x0, keep)
        y, _ = thought(other_past, y0, keep)
        rope = make_rope(decoder, B, 2, x0.dtype, DEVICE)
        ends = [chain.step(scale * x, rope)[0] for scale in (1.0, 2.0)]
        return torch.autograd.grad(sum(e.sin().sum() for e in (y, *ends)), (x0, y0, past[0][0]))

    for _ in range(2):  # the second time all of them are free
        for got, want in zip(both(keep), both(None), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        gc.collect()
    assert len(keep._free) == 3 and not keep._lent


def test_a_chain_longer_than_its_workspace_goes_on_in_another(counts, monkeypatch):
    monkeypatch.setattr(replay, "_STEP", 8)
    monkeypatch.setattr(replay, "_SPARE", 1)
    decoder = make_decoder("gpt2", device=DEVICE)
    past, x0, _ = given(decoder, 6)
    want, got = (learned(decoder, past, x0, None, keep) for keep in (None, Graphs()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)


def test_a_second_pass_backwards_over_one_chain_gives_the_same_again(counts):
    decoder, keep = make_decoder("qwen3", device=DEVICE), Graphs()
    past, x0, masks = given(decoder, 5)
    found = []
    for kept in (None, keep, keep):  # in the last round what an earlier one left behind is there
        chain = LatentChain.of(decoder, past, graphs=kept)
        h, chain = chain.step(x0, make_rope(decoder, B, 5, x0.dtype, DEVICE), masks[0])
        early = torch.autograd.grad(h.sin().sum(), (x0, past[0][0]), retain_graph=True)
        end, chain = chain.step(h, make_rope(decoder, B, 6, x0.dtype, DEVICE), masks[1])
        loss = end.sin().sum() + sum(x.cos().sum() for pair in chain.read() for x in pair)
        one, two = (torch.autograd.grad(loss, (x0, past[0][0]), retain_graph=True) for _ in "12")
        assert all(map(torch.equal, one, two))
        found.append([*early, *one])
        del chain, h, end, loss
    for got in found[1:]:
        for g, w in zip(got, found[0], strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-10)
    assert counts["captured"] == 4


def test_only_kinds_that_come_often_of_late_are_captured(counts, monkeypatch):
    monkeypatch.setattr(replay.graphs, "OFTEN", 2)
    decoder, keep = make_decoder("gpt2", device=DEVICE), Graphs()
    past, x0, masks = given(decoder, 5)
    seen = []
    for _ in range(4):
        learned(decoder, past, x0, masks, keep)
        seen.append(counts["captured"])
    assert seen == [0, 0, 2 * K, 2 * K]
    for rows in range(2, 12):  # rollouts of which some are alike: another number of rows each time
        given_rows = [tuple(x[:1].detach().repeat(rows, 1, 1, 1).requires_grad_() for x in pair) for pair in past]
        assert LatentChain.of(decoder, given_rows, graphs=keep).chain.work is None or rows == B
    learned(decoder, past, x0, masks, keep)
    assert counts["captured"] == 2 * K  # what was captured serves on


def test_more_kinds_than_memory_allows_are_not_captured_in_turn(counts, monkeypatch):
    """Those that came first keep their graphs while they come; when they no longer do, others have their place."""
    decoder, keep = make_decoder("gpt2", device=DEVICE), Graphs()
    kinds = [given(decoder, size) for size in (5, 60, 120)]
    monkeypatch.setattr("kernels.graphs.limit", lambda device: 2.5 * 2 * K * 2**20)  # graphs take a MiB here
    for _ in range(3):
        for past, x0, _ in kinds:
            learned(decoder, past, x0, None, keep)
    assert counts["captured"] == 3 * 2 * K - 2 * K and sum(keep.sizes()) < 2.5 * 2 * K * 2**20
    alive = [LatentChain.of(decoder, kinds[0][0], graphs=keep) for _ in range(3)]
    assert [chain.chain.work is None for chain in alive] == [False, True, True]
    for _ in range(replay.graphs.RECENT + 1):
        learned(decoder, *kinds[2], keep)
    assert counts["captured"] == 3 * 2 * K


def test_weights_that_move_are_let_go_and_those_that_move_always_are_not_captured(counts):
    keep = Graphs()
    for i in range(replay.MOVES + 3):
        decoder = make_decoder("gpt2", dtype=torch.float32, device=DEVICE)
        past, x0, _ = given(decoder, 5, torch.float32)
        learned(decoder, past, x0, None, keep, torch.bfloat16)
        if i == 0:
            first = weakref.ref(keep._free[0])
    gc.collect()  # the graphs of these tests hold what they run again
    assert first() is None and len(keep._free) <= 1
    assert counts["captured"] == 2 * K * (replay.MOVES + 1)


def test_projections_that_are_in_autocasts_dtype_already_are_read_where_they_lie(counts):
    decoder, keep = make_decoder("llama", dtype=torch.bfloat16, device=DEVICE), Graphs()
    past, x0, masks = given(decoder, 5, torch.bfloat16)
    versions = [p._version for pair in decoder.affines() for p in pair if p is not None]
    for _ in range(2):
        got = learned(decoder, past, x0, masks, keep, torch.bfloat16)
        want = learned(decoder, past, x0, masks, None)
        for g, w in zip(got, want, strict=True):
            assert (g.double() - w.double()).norm() <= 2e-2 * w.double().norm()
    assert versions == [p._version for pair in decoder.affines() for p in pair if p is not None]


@pytest.mark.parametrize(
    "fault, said",
    [
        ("raises", "operation not permitted when stream is capturing"),
        ("at the second", "out of memory"),
        ("idle", "do not give what the same calls"),
        ("no workspace", "out of memory"),
        ("no comparison", "out of memory"),
    ],
)
def test_where_graphs_fail_steps_are_launched_one_by_one_and_it_is_said_once(fault, said, counts, monkeypatch, caplog):
    real, tried = replay.graphs.captured, []

    class Idle:
        def __init__(self, graph):
            self.graph = graph  # whose memory the next one goes on in

        def replay(self):
            pass

    def captured(run, **how):
        tried.append(1)
        if fault == "raises" or (fault == "at the second" and len(tried) == 4):  # backwards, of the second step
            raise RuntimeError(f"CUDA error: {said}\nCUDA kernel errors might be reported at some other call")
        graph, out, held = real(run, **how)
        return (Idle(graph) if fault == "idle" else graph), out, held

    def full(*args):
        raise RuntimeError(f"CUDA error: {said}\nCUDA kernel errors might be reported at some other call")

    monkeypatch.setattr(replay.graphs, "captured", captured)
    if fault == "no workspace":
        monkeypatch.setattr(replay, "Workspace", full)
    if fault == "no comparison":
        monkeypatch.setattr(replay.Slot, "backward", full)
    decoder, keep = make_decoder("llama", device=DEVICE), Graphs()
    past, x0, masks = given(decoder, 5)
    want = learned(decoder, past, x0, masks, None)
    for _ in range(2):
        for g, w in zip(learned(decoder, past, x0, masks, keep), want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-10)
    assert len(caplog.messages) == 1 and said in caplog.text and "\n" not in caplog.messages[0]
    gc.collect()
    assert not keep._lent and not keep._free


@pytest.mark.skipif(DEVICE == "cpu", reason="no graph of a GPU fails here")
@pytest.mark.parametrize("within", ["a host that waits", "a second capture"])
def test_a_capture_that_fails_leaves_the_gpu_as_it_was(within):
    """Streams, random numbers, memory, and graphs that are captured afterwards."""
    x, stream = torch.randn(1000, device=DEVICE), torch.cuda.current_stream()

    def waits():
        y = x * 2
        return y.sum().item() if within == "a host that waits" else real_graphs.captured(lambda: y + 1)

    torch.manual_seed(1)
    want = torch.randn(5, device=DEVICE), torch.randn(5, device=DEVICE)
    torch.manual_seed(1)
    first = torch.randn(5, device=DEVICE)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            real_graphs.captured(waits, warm=0)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(first, want[0]) and torch.equal(torch.randn(5, device=DEVICE), want[1])
    before = torch.cuda.memory_reserved()
    torch.empty(2**28, device=DEVICE, dtype=torch.uint8)  # is cached now, and given back where memory can be freed
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    graph, out, _ = real_graphs.captured(lambda: x + 1)
    x.fill_(4)
    graph.replay()
    assert out.eq(5).all()


def test_kernels_that_are_turned_off_and_recomputed_steps_are_not_captured(counts, monkeypatch):
    decoder, keep = make_decoder("gpt2", device=DEVICE), Graphs()
    past, _, _ = given(decoder, 5)
    assert LatentChain.of(decoder, past, graphs=keep).chain.work is not None
    assert LatentChain.of(decoder, past, recompute=True, graphs=keep).chain.work is None
    monkeypatch.setenv("LATENT_KERNELS", "torch")
    assert LatentChain.of(decoder, past, graphs=keep).chain.work is None


def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch):
    """Another graph, in a cycle that no one refers to, would be destroyed then, which ends the capture."""
    for name in ("synchronize", "graph_pool_handle", "current_device"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator()], raising=False)
    monkeypatch.setattr(real_graphs, "_forget_workspaces", lambda: None)

    class Recorded:
        def capture_begin(self, *args, **how):
            pass

        capture_end = capture_begin

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    seen = []

    def fails():
        seen.append(gc.isenabled())
        raise ValueError("of the caller's")

    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            _, out, _ = real_graphs._capture(gc.isenabled, None, None)
            with pytest.raises(ValueError):
                real_graphs._capture(fails, None, None)
            assert out is False and gc.isenabled() is before
        finally:
            gc.enable()
    assert seen == [False, False]
