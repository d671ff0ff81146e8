"""The chain against its definition under plain autograd: every output, every gradient."""

from dataclasses import fields, replace
from statistics import median

import pytest
import torch

from kernels.decoder import Layer
from kernels.latent_chain import LatentChain
from kernels.latent_chain.reference import step
from tests.kernels.decoders import FAMILIES, make_decoder, make_past, make_rope

B, S, K = 3, 5, 4


def plain(decoder, past, x0, masks):
    """K steps, each fed the state of the one before, by the definition."""
    states, x = [], x0
    for i in range(K):
        x, past = step(x, past, decoder, make_rope(decoder, B, i, x0.dtype), masks[i])
        states.append(x)
    return torch.stack(states), past


def chained(decoder, past, x0, masks, recompute=False):
    mixed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    chain, states, x = LatentChain.of(decoder, past, recompute, mixed), [], x0
    for i in range(K):
        x, chain = chain.step(x, make_rope(decoder, B, i, x0.dtype), masks[i])
        states.append(x)
    return torch.stack(states), chain.read()


def inputs(decoder, past, x0):
    return [x0, *(x for kv in past for x in kv), *(p for a in decoder.affines() for p in a if p is not None)]


def make_masks(hidden: bool):
    masks = [torch.rand(B, S + i + 1) < 0.6 for i in range(K)]
    for mask in masks:
        mask[:, -1] = True
    return masks if hidden else [None] * K


def loss_of(states, past, weights):
    """Something that reads every state, and K and V as a text after the thoughts would."""
    flat = torch.cat([states.flatten(), *(x.flatten() for kv in past for x in kv)])
    return (flat * weights[: len(flat)]).sin().sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_states_and_gradients_are_those_of_plain_autograd(family, hidden, recompute):
    decoder, masks, weights = make_decoder(family), make_masks(hidden), torch.randn(10_000).double()
    past, x0 = make_past(decoder, B, S), torch.randn(B, 24, dtype=torch.float64, requires_grad=True)
    want_states, want_past = plain(decoder, past, x0, masks)
    got_states, got_past = chained(decoder, past, x0, masks, recompute)
    torch.testing.assert_close(got_states, want_states, rtol=0, atol=1e-12)
    want = torch.autograd.grad(loss_of(want_states, want_past, weights), inputs(decoder, past, x0))
    got = torch.autograd.grad(loss_of(got_states, got_past, weights), inputs(decoder, past, x0))
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"])
def test_errors_are_at_most_twice_those_of_plain_autograd(family, dtype):
    """Of every state and every gradient, the median over 15 draws: in one, cancellation decides more than the code."""
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast")
    dtype, kept = (torch.float32, torch.bfloat16) if dtype == "autocast" else (dtype, dtype)  # K and V of the prompt
    found = {chained: [], plain: []}
    for seed in range(15):
        torch.manual_seed(seed)
        exact, masks = make_decoder(family), make_masks(hidden=True)
        past, x0 = make_past(exact, B, S), torch.randn(B, 24, dtype=torch.float64, requires_grad=True)
        low = in_dtype(exact, dtype)
        low_past = [tuple(x.detach().to(kept).requires_grad_() for x in kv) for kv in past]
        low_x0 = x0.detach().to(dtype).requires_grad_()

        def run(how, decoder, past, x0, masks=masks):
            with mixed:
                states, longer = how(decoder, past, x0, masks)
            out = sum(x.double().square().sum() for x in (states, *(x for kv in longer for x in kv)))
            grads = torch.autograd.grad(out, inputs(decoder, past, x0))
            assert all(g.dtype == x.dtype for g, x in zip(grads, inputs(decoder, past, x0)))
            return [states.detach(), *grads]

        want = run(plain, exact, past, x0)
        for how, errors in found.items():
            errors.append([float((g - w).norm() / w.norm()) for g, w in zip(run(how, low, low_past, low_x0), want)])
    ours, torchs = ([median(each) for each in zip(*errors)] for errors in found.values())
    for i, (o, t) in enumerate(zip(ours, torchs, strict=True)):
        assert o <= 2 * t, f"tensor {i}: {o:.2e}, plain autograd {t:.2e}"


def in_dtype(decoder, dtype):
    """A copy of a decoder, its weights rounded; the original takes the rounded values, so that both are one model."""

    def move(affine):
        with torch.no_grad():
            for p in affine:
                if p is not None:
                    p.copy_(p.to(dtype))
        return tuple(p if p is None else p.detach().to(dtype).requires_grad_() for p in affine)

    def layer(one):
        kinds = {f.name: getattr(one, f.name) for f in fields(one)}
        nested = ("qkv", "qk_norm", "up")
        return Layer(**{n: tuple(move(a) for a in v) if n in nested else move(v) for n, v in kinds.items()})

    return replace(decoder, layers=tuple(layer(one) for one in decoder.layers), norm=move(decoder.norm))


def test_the_same_every_time_bit_for_bit():
    decoder = make_decoder("qwen3", dtype=torch.float32)
    past, x0 = make_past(decoder, B, S, torch.float32), torch.randn(B, 24, requires_grad=True)
    weights = torch.randn(10_000)
    one, two = (
        torch.autograd.grad(loss_of(*chained(decoder, past, x0, [None] * K), weights), inputs(decoder, past, x0))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_two_continuations_do_not_see_each_other():
    decoder = make_decoder("llama")
    past, rope = make_past(decoder, B, S), make_rope(decoder, B, 0)
    x, y, z = torch.randn(3, B, 24, dtype=torch.float64, requires_grad=True)
    _, longer = step(x, past, decoder, rope, None)
    want = [step(v, longer, decoder, rope, None)[0] for v in (y, z)]
    _, chain = LatentChain.of(decoder, past).step(x, rope)
    got = [chain.step(v, rope)[0] for v in (y, z)]
    params = inputs(decoder, past, x)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)
    for g, w in zip(*(torch.autograd.grad((a.sin() + b.cos()).sum(), params) for a, b in (got, want))):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)


def test_a_partial_backward_leaves_nothing_behind():
    decoder = make_decoder("gpt2")
    past, x0, weights = make_past(decoder, B, S), torch.randn(B, 24, dtype=torch.float64), torch.randn(10_000).double()
    x0.requires_grad_()
    states, longer = chained(decoder, past, x0, [None] * K)
    loss = loss_of(states, longer, weights)
    torch.autograd.grad(loss, x0, retain_graph=True)  # does not go down to the weights
    got = torch.autograd.grad(loss, inputs(decoder, past, x0), retain_graph=True)
    again = torch.autograd.grad(loss, inputs(decoder, past, x0))
    want = torch.autograd.grad(loss_of(*plain(decoder, past, x0, [None] * K), weights), inputs(decoder, past, x0))
    for g, a, w in zip(got, again, want):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)
        assert torch.equal(g, a)


def test_frozen_weights_get_no_gradient_and_the_rest_is_unchanged():
    decoder = make_decoder("gpt2")
    past, x0 = make_past(decoder, B, S), torch.randn(B, 24, dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(chained(decoder, past, x0, [None] * K)[0].sum(), [x0, decoder.layers[1].down[0]])
    for affine in (decoder.layers[0].up[0], decoder.layers[1].qkv[0], decoder.norm):
        affine[0].requires_grad_(False)
    got = torch.autograd.grad(chained(decoder, past, x0, [None] * K)[0].sum(), [x0, decoder.layers[1].down[0]])
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=0, atol=0)


def test_a_weight_changed_before_backward_is_an_error():
    decoder = make_decoder("gpt2")
    states, _ = chained(decoder, make_past(decoder, B, S), torch.randn(B, 24, dtype=torch.float64), [None] * K)
    with torch.no_grad():
        decoder.norm[0].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        states.sum().backward()


def test_wrong_shapes_say_what_is_expected():
    decoder = make_decoder("gpt2")
    chain = LatentChain.of(decoder, make_past(decoder, B, S))
    with pytest.raises(ValueError, match=r"x must be \(3, 24\), got \(3, 23\)"):
        chain.step(torch.zeros(3, 23, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"visible must be \(3, 6\), got \(3, 5\)"):
        chain.step(torch.zeros(3, 24, dtype=torch.float64), None, torch.ones(3, 5, dtype=torch.bool))
