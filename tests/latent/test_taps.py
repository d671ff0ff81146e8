"""Taps against the family's own `output_hidden_states`, cache and `output_attentions`, one row at a time and whole.

In fp64, as in `test_backbone`; Llama's and Qwen3's RMSNorm rounds to fp32 in `transformers`.
"""

import pytest
import torch
from transformers import DynamicCache

from latent import methods
from latent.methods import Sim
from latent.taps import join
from latent.thought import Greedy
from tests.helpers import ragged_prompt, row_of
from tests.latent.test_backbone import EXACT, make

FAMILIES = ["gpt2", "llama", "qwen3", "gpt_neox", "opt"]
ALL = {"kv": True, "attentions": True}


def theirs(backbone, x_1TD, pos=None):
    """All that the family gives of a whole sequence: its states, cache and attention weights by layer."""
    backbone.lm.set_attn_implementation("eager")  # the only kind that gives its weights
    mask = torch.ones(x_1TD.shape[:2], dtype=torch.long)
    out = backbone.decoder[0](
        inputs_embeds=x_1TD, attention_mask=mask, past_key_values=DynamicCache(), use_cache=True,
        output_hidden_states=True, output_attentions=True, **({} if pos is None else {"position_ids": pos}),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grad", [False, True])
def test_padded_cached_batch_gives_what_the_family_gives_of_each_row(family, grad):
    backbone = make(family)
    kind = backbone.lm.config._attn_implementation
    prompt, later = ragged_prompt(vocab=17), torch.randn(3, 4, 32, dtype=torch.float64)
    with torch.set_grad_enabled(grad), backbone.tap(**ALL) as tapped:
        _, context = backbone.read(prompt.ids_BT, prompt.mask_BT)
        _, context = backbone.step(later[:, :1], context)
        backbone.step(later[:, 1:], context)
    assert backbone.lm.config._attn_implementation == backbone.decoder[0].config._attn_implementation == kind
    read, whole = tapped.calls[0], join(tapped.calls)
    assert [c.length for c in tapped.calls] == [7, 1, 3] and whole.h_LBTD.requires_grad == grad
    assert torch.equal(read.mask_BT, prompt.mask_BT) and torch.equal(whole.mask_BT[:, :7], prompt.mask_BT)
    assert whole.mask_BT[:, 7:].all()
    close = {"rtol": 0, "atol": EXACT[family]}
    for b in range(3):
        ids, real = row_of(prompt, b).ids_BT, whole.mask_BT[b]
        out = theirs(backbone, torch.cat([backbone.embed(ids), later[b : b + 1]], 1))
        assert whole.pos_BT[b, real].tolist() == list(range(ids.shape[1] + 4))
        torch.testing.assert_close(whole.h_LBTD[:, b][:, real], torch.stack(out.hidden_states)[:, 0], **close)
        for got, name in ((whole.k_LBHTd, "keys"), (whole.v_LBHTd, "values")):
            want_LHTd = torch.stack([getattr(c, name)[0] for c in out.past_key_values.layers])
            torch.testing.assert_close(got[:, b][:, :, real], want_LHTd, **close)
        want_LHTT = torch.stack(out.attentions)[:, 0]
        start = 0
        for call in tapped.calls:
            t = call.pos_BT.shape[1]
            seen_S, rows_T = real[: call.a_LBHTS.shape[-1]], real[start : start + t]
            got_LHTS = call.a_LBHTS[:, b][:, :, rows_T]
            n, s = int(real[:start].sum()), int(seen_S.sum())
            torch.testing.assert_close(got_LHTS[..., seen_S], want_LHTT[:, :, n : n + got_LHTS.shape[2], :s], **close)
            assert (got_LHTS[..., ~seen_S] == 0).all()
            start += t


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_second_turn_is_that_of_each_row_alone(family):
    """However long its rows' texts: what is padded or was hidden takes no place in a window of five positions."""
    backbone = make(family)
    first, second = ragged_prompt((3, 7, 5), 17), ragged_prompt((4, 1, 2), 17)
    x_B3D, last_B2D = torch.randn(3, 3, 32, dtype=torch.float64), torch.randn(3, 2, 32, dtype=torch.float64)
    hidden_B3 = torch.tensor([[False, False, False], [False, True, True], [False, False, True]])
    with backbone.tap(**ALL) as tapped:
        _, context = backbone.read(first.ids_BT, first.mask_BT)
        _, context = backbone.step(x_B3D, context)
        _, context = backbone.read(second.ids_BT, second.mask_BT, after=context.hide(hidden_B3))
        backbone.step(last_B2D, context)
    whole, close = join(tapped.calls), {"rtol": 0, "atol": EXACT[family]}
    for b in range(3):
        before, after = (backbone.embed(row_of(prompt, b).ids_BT)[0] for prompt in (first, second))
        x_TD = torch.cat([before, x_B3D[b, ~hidden_B3[b]], after, last_B2D[b]])
        seen_S = torch.cat([first.mask_BT[b], ~hidden_B3[b], second.mask_BT[b], torch.ones(2, dtype=torch.bool)])
        out = theirs(backbone, x_TD[None], whole.pos_BT[b : b + 1, seen_S])
        torch.testing.assert_close(whole.h_LBTD[:, b, seen_S], torch.stack(out.hidden_states)[:, 0], **close)
        for got, name in ((whole.k_LBHTd, "keys"), (whole.v_LBHTd, "values")):
            want_LHTd = torch.stack([getattr(c, name)[0] for c in out.past_key_values.layers])
            torch.testing.assert_close(got[:, b][:, :, seen_S], want_LHTd, **close)
        got_LHTS, until = tapped.calls[2].a_LBHTS[:, b][:, :, second.mask_BT[b]], seen_S[:-2]
        want_LHTS = torch.stack(out.attentions)[:, 0, :, -len(after) - 2 : -2, :-2]
        torch.testing.assert_close(got_LHTS[..., until], want_LHTS, **close)
        assert (got_LHTS[..., ~until] == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_gradients_of_what_is_tapped_are_the_familys(family):
    backbone = make(family)
    ids, later = torch.randint(17, (2, 5)), torch.randn(2, 3, 32, dtype=torch.float64)
    weights = {}

    def loss_of(**tensors):
        """A weighted sum of everything, with the same weights each time."""
        for name, x in tensors.items():
            if name not in weights:
                weights[name] = torch.randn(x.shape, dtype=x.dtype)
        return sum((x * weights[name]).sum() for name, x in tensors.items())

    def grads(loss):
        backbone.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    def ours():
        with backbone.tap(**ALL) as tapped:
            _, context = backbone.read(ids)
            _, context = backbone.step(later[:, :1], context)
            backbone.step(later[:, 1:], context)
        whole, last = join(tapped.calls), tapped.calls[-1]
        return grads(loss_of(h=whole.h_LBTD, k=whole.k_LBHTd, v=whole.v_LBHTd, a=last.a_LBHTS))

    found = [ours()]
    if family != "gpt_neox":
        backbone.recompute = True
        found.append(ours())
    out = theirs(backbone, torch.cat([backbone.embed(ids), later], 1))
    cached = out.past_key_values.layers
    k, v = (torch.stack([getattr(c, name) for c in cached]) for name in ("keys", "values"))
    a = torch.stack(out.attentions)[:, :, :, -2:]
    want = grads(loss_of(h=torch.stack(out.hidden_states), k=k, v=v, a=a))
    for got in found:
        assert got.keys() == want.keys()
        for name in want:
            atol = EXACT[family] * max(1.0, float(want[name].abs().max()))
            torch.testing.assert_close(got[name], want[name], rtol=0, atol=10 * atol)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt_neox"])
def test_gradients_flow_to_what_is_tapped(family):
    backbone = make(family)
    ids, weight = torch.randint(17, (2, 5)), torch.randn(2, 32, dtype=torch.float64)
    with backbone.tap(layers=(1, 2), **ALL) as tapped:
        h_BD, _ = backbone.read(ids)
    (call,) = tapped.calls
    ours = [call.states[1], call.keys[2], call.values[2], call.attentions[2]]
    got = torch.autograd.grad((h_BD * weight).sum(), ours)
    out = theirs(backbone, backbone.embed(ids))
    cached = out.past_key_values.layers[1]
    want = torch.autograd.grad(
        (out.last_hidden_state[:, -1] * weight).sum(),
        [out.hidden_states[1], cached.keys, cached.values, out.attentions[1]],
    )
    for a, b in zip(got, want):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=100 * EXACT[family])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("grad", [False, True])
def test_latents_are_those_of_one_row_recomputed_without_cache(family, grad):
    backbone = make(family)
    method = methods.build(Sim(n_latent=3, stride=2, feedback="norm"), backbone).double()
    prompt = ragged_prompt(vocab=17)
    with torch.set_grad_enabled(grad), backbone.tap(**ALL) as tapped:
        thought = method.think(prompt, Greedy())
    latents = join(tapped.calls[1:])
    close = {"rtol": 0, "atol": 100 * EXACT[family]}
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        n = ids.shape[1]
        fed = method.feedback(thought.states_UKD[b, :-1])[None]
        out = theirs(
            backbone, torch.cat([backbone.embed(ids), fed], 1), torch.tensor([[*range(n), n + 1, n + 3, n + 5]])
        )
        assert latents.pos_BT[b].tolist() == [n + 1, n + 3, n + 5]
        h_LTD = torch.stack(out.hidden_states)[:, 0]
        for name, got_LHTd in (("keys", latents.k_LBHTd[:, b]), ("values", latents.v_LBHTd[:, b])):
            want_LHTd = torch.stack([getattr(c, name)[0, :, n:] for c in out.past_key_values.layers])
            torch.testing.assert_close(got_LHTd, want_LHTd, **close)
        for i in range(4):
            at = method.of_latent(tapped.calls, i)
            torch.testing.assert_close(at.h_LBTD[:, b, 0], h_LTD[:, n - 1 + i], **close)
            want_LHS = torch.stack(out.attentions)[:, 0, :, n - 1 + i, : n + i]
            torch.testing.assert_close(at.a_LBHTS[:, b, :, 0, 7 - n :], want_LHS, **close)
        torch.testing.assert_close(at.states[backbone.depth][b, 0], thought.states_UKD[b, 3], rtol=0, atol=0)
