"""What `LatentDecoder.run` returns is a value, whatever is written into its workspace later."""

import gc
import weakref

import pytest
import torch

from kernels import graphs
from kernels.decode_step import LatentDecoder, StaticCache
from tests.kernels.check import DEVICE
from tests.kernels.decoders import make_decoder, make_past

pytestmark = pytest.mark.slow  # in Triton's interpreter


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return make_decoder("gpt2", layers=1, dtype=torch.float32, device=DEVICE)


def prompts(decoder, batch: int, size: int):
    past = [tuple(x.detach() for x in p) for p in make_past(decoder, batch, size, torch.float32, DEVICE)]
    return past, torch.randn(batch, 24, device=DEVICE)


def walk(latent, past, h, steps: tuple[int, ...]):
    """States of some calls, each going on from the one before, and the cache at the end."""
    states = []
    for k in steps:
        out, past = latent.run(past, h, None, k)
        states.append(out)
        h = out[:, -1]
    return torch.cat(states, 1), past


def same(a, b) -> None:
    for x, y in zip([t for pair in a for t in pair], [t for pair in b for t in pair], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_one_by_one_is_all_at_once(decoder):
    past, h = prompts(decoder, 2, 5)
    latent = LatentDecoder(decoder, "triton")
    want, kv = walk(LatentDecoder(decoder, "torch"), past, h, (4,))
    for steps in ((4,), (1, 1, 1, 1), (2, 1, 1)):
        got, cache = walk(latent, past, h, steps)
        assert isinstance(cache, StaticCache) and cache.size == 9 and len(latent._workspaces) == 1
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        same(cache, kv)


def test_a_cache_outgrows_its_workspace(decoder, monkeypatch):
    monkeypatch.setattr("kernels.decode_step._SPARE", 0)
    past, h = prompts(decoder, 1, 62)
    latent = LatentDecoder(decoder, "triton")
    got, cache = walk(latent, past, h, (1, 2, 1))
    want, kv = walk(LatentDecoder(decoder, "torch"), past, h, (1, 2, 1))
    assert cache.size == 66 and sorted(room for _, room in latent._workspaces) == [64, 128]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    same(cache, kv)


def test_two_ways_to_go_on_and_another_prompt_in_between(decoder):
    """Each continuation sees its own past only, though all share one workspace."""
    latent, plain = LatentDecoder(decoder, "triton"), LatentDecoder(decoder, "torch")
    (past, h), (other, g) = prompts(decoder, 2, 5), prompts(decoder, 2, 7)
    want_1, kv_1 = plain.run(past, h, None, 2)
    want_a, kv_a = plain.run(kv_1, 2 * h, None, 2)
    want_b, kv_b = plain.run(kv_1, 3 * h, None, 1)
    want_c, kv_c = plain.run(other, g, None, 2)
    got_1, cache_1 = latent.run(past, h, None, 2)
    got_a, cache_a = latent.run(cache_1, 2 * h, None, 2)  # in place
    got_b, cache_b = latent.run(cache_1, 3 * h, None, 1)  # from before what has been written since
    got_c, cache_c = latent.run(other, g, None, 2)
    for got, want in ((got_1, want_1), (got_a, want_a), (got_b, want_b), (got_c, want_c)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    for cache, kv in ((cache_1, kv_1), (cache_a, kv_a), (cache_b, kv_b), (cache_c, kv_c)):
        same(cache, kv)
    torch.testing.assert_close(latent.run(cache_a, h, None, 1)[0], plain.run(kv_a, h, None, 1)[0], rtol=0, atol=1e-5)


def test_what_is_hidden_later_is_not_attended(decoder):
    latent, plain = LatentDecoder(decoder, "triton"), LatentDecoder(decoder, "torch")
    past, h = prompts(decoder, 2, 5)
    visible = torch.rand(2, 5, device=DEVICE) < 0.6
    (_, cache), (_, kv) = (x.run(past, h, None, 2, visible_BS=visible) for x in (latent, plain))
    seen = cache.visible_BS
    assert torch.equal(seen, torch.cat([visible, torch.ones_like(visible[:, :2])], 1))
    less = seen.clone()
    less[:, 6] = False
    for mask in (seen, less, None):  # as it was, with the second latent hidden, and all
        got, want = (x.run(p, h, None, 1, visible_BS=mask)[0] for x, p in ((latent, cache), (plain, kv)))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_call_that_failed_leaves_no_mask_behind(decoder):
    latent, plain = LatentDecoder(decoder, "triton"), LatentDecoder(decoder, "torch")
    past, h = prompts(decoder, 2, 5)
    visible = torch.ones(2, 5, dtype=torch.bool, device=DEVICE)
    (_, cache), (_, kv) = (x.run(past, h, None, 1, visible_BS=visible) for x in (latent, plain))
    less = cache.visible_BS.clone()
    less[:, :4] = False

    def broken(h_BD):
        raise KeyError("a feed")

    with pytest.raises(KeyError):
        latent.run(cache, h, broken, 1, visible_BS=less)
    got, want = (x.run(p, h, None, 1, visible_BS=cache.visible_BS)[0] for x, p in ((latent, cache), (plain, kv)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_memory_is_bounded_and_nothing_is_kept_alive(decoder, monkeypatch):
    latent = LatentDecoder(decoder, "triton")
    one = latent.bytes(1, 64)  # of the smallest workspace
    monkeypatch.setattr(LatentDecoder, "limit", 2.5 * one)
    for size in (3, 30, 100, 3):
        past, h = prompts(decoder, 1, size)
        latent.run(past, h, None, 1)
    assert [room for _, room in latent._workspaces] == [64]  # 192 positions alone are more than the limit
    gone = weakref.ref(next(iter(latent._workspaces.values())))
    gc.disable()
    try:
        del latent
        assert gone() is None  # without the collector of cycles
    finally:
        gc.enable()


def test_the_memory_of_graphs_counts(decoder, monkeypatch):
    """Caches of 64 and 128 positions take three units together; with a graph of one unit each they take five."""

    class Replayed:
        def __init__(self, run):
            self.replay = run

    for pool, kept in ((0, [64, 128]), (1, [128])):
        latent = LatentDecoder(decoder, "triton")
        one = latent.bytes(1, 64)
        monkeypatch.setattr(LatentDecoder, "limit", 4 * one)
        monkeypatch.setattr(graphs, "wanted", lambda x: True)
        monkeypatch.setattr(graphs, "captured", lambda run, n=pool * one: (Replayed(run), run(), n))
        for size in (3, 40):
            past, h = prompts(decoder, 1, size)
            got, cache = latent.run(past, h, None, 1)
            want, _ = LatentDecoder(decoder, "torch").run(past, h, None, 1)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert [room for _, room in latent._workspaces] == kept
        assert sum(w.bytes for w in latent._workspaces.values()) == 3 * one
        assert torch.equal(latent.run(cache, h, None, 1)[0], latent.run(cache, h, None, 1)[0])  # the one kept serves


def test_a_captured_graph_is_what_runs(decoder, monkeypatch):
    """On a GPU a second call replays: a recording graph that is never replayed would leave the states as they were."""
    from kernels.decode_step.cache import Chain

    launched, replayed = [], []

    class Recorded:
        def __init__(self, run):
            self.run = run

        def replay(self):
            replayed.append(1)
            self.run()

    monkeypatch.setattr(graphs, "captured", lambda run: (Recorded(run), run(), 0))
    monkeypatch.setattr(graphs, "wanted", lambda x: True)
    chain = Chain.launch
    monkeypatch.setattr(Chain, "launch", lambda *a: (launched.append(1), chain(*a))[1])
    latent, plain = LatentDecoder(decoder, "triton"), LatentDecoder(decoder, "torch")
    for _ in range(3):
        past, h = prompts(decoder, 2, 5)
        got, want = (x.run(past, h, None, 2)[0] for x in (latent, plain))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert len(replayed) == 3 and len(launched) == 4  # captured once, which runs it, and replayed each time


def test_where_a_graph_cannot_be_captured_kernels_are_launched_one_by_one_and_it_is_said(decoder, monkeypatch, caplog):
    """They give what torch gives, and a kind of chain is tried once."""
    tried = []

    def captured(run, **how):
        tried.append(run())  # what has been written by then is written again
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more of it")

    monkeypatch.setattr(graphs, "wanted", lambda x: True)
    monkeypatch.setattr(graphs, "captured", captured)
    past, h = prompts(decoder, 2, 5)
    want, kv = walk(LatentDecoder(decoder, "torch"), past, h, (2, 2, 2))
    got, cache = walk(LatentDecoder(decoder, "triton"), past, h, (2, 2, 2))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    same(cache, kv)
    assert len(tried) == len(caplog.messages) == 1 and caplog.messages[0].endswith("when stream is capturing")
