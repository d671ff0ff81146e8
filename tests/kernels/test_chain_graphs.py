"""Steps of a chain in training as graphs: counted, and held to the steps that are launched one by one."""

import gc

import pytest
import torch

from kernels.latent_chain import Graphs, LatentChain, replay
from tests.kernels import graphs
from tests.kernels.check import DEVICE
from tests.kernels.decoders import FAMILIES, make_decoder, make_past, make_rope

B, K = 3, 4


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(replay, "OFTEN", 0)
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
    inputs = [x0, *(x for kv in past for x in kv), *(p for a in decoder.affines() for p in a if p is not None)]
    grads = torch.autograd.grad(sum(x.sin().sum() for x in both), inputs)
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
        assert counts == {"captured": 2 * K, "replayed": 2 * K * n}


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
    assert len(keep._free) == 3 and keep._lent == 0


def test_a_chain_longer_than_its_workspace_goes_on_in_another(counts, monkeypatch):
    monkeypatch.setattr("kernels.graphs._ROOMS", (8, 16, 32))
    monkeypatch.setattr(replay, "_SPARE", 1)
    decoder = make_decoder("gpt2", device=DEVICE)
    past, x0, _ = given(decoder, 6)
    want, got = (learned(decoder, past, x0, None, keep) for keep in (None, Graphs()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)


def test_only_kinds_that_come_often_are_captured_and_no_more_than_memory_allows(counts, monkeypatch):
    monkeypatch.setattr(replay, "OFTEN", 2)
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
    monkeypatch.setattr("kernels.graphs.limit", lambda device: 0)
    longer, x0, masks = given(decoder, 80)
    for _ in range(3):  # one free workspace is always kept: the last
        learned(decoder, longer, x0, masks, keep)
    gc.collect()
    assert [work.k.shape[1] for _, work in keep._free.values()] == [128]
    chain = LatentChain.of(decoder, longer, graphs=keep)
    monkeypatch.setattr(keep, "_lent", 1)
    assert chain.chain.work is not None and LatentChain.of(decoder, longer, graphs=keep).chain.work is None


def test_kernels_that_are_turned_off_and_recomputed_steps_are_not_captured(counts, monkeypatch):
    decoder, keep = make_decoder("gpt2", device=DEVICE), Graphs()
    past, _, _ = given(decoder, 5)
    assert LatentChain.of(decoder, past, graphs=keep).chain.work is not None
    assert LatentChain.of(decoder, past, recompute=True, graphs=keep).chain.work is None
    monkeypatch.setenv("LATENT_KERNELS", "torch")
    assert LatentChain.of(decoder, past, graphs=keep).chain.work is None
