"""Open taps: what they leave unchanged, what methods compute under them, and what they can be asked for."""

from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache

from kernels.latent_chain import LatentChain
from latent.config import LearnedStop, ModelConfig
from latent.generate import decode, rollout
from latent.methods import Coconut, Pause, Recurrent, Sim
from latent.methods.terms import text_loss
from latent.taps import join
from latent.text import Text
from latent.thought import Greedy, Sample
from tests.helpers import SMALL, ragged_prompt, row_of, small_reasoner
from tests.latent.test_backbone import EXACT, make
from tests.latent.test_taps import ALL, theirs

DEEP = ModelConfig(n_layer=4, n_embd=32, n_head=2, n_positions=64)
ALONG = Sim(n_latent=3, stride=2, halt=LearnedStop(bias=-0.5))
DEPTH = Recurrent(prelude=1, core=2, coda=1, n_recurrence=3, halt=LearnedStop(bias=-0.5))


@pytest.mark.parametrize(
    "config, model",
    [
        (ALONG, SMALL),
        (Pause(ALONG), SMALL),
        (Coconut(n_latent=2, latents_per_step=1, first_stage=2), SMALL),
        (DEPTH, DEEP),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_tap_changes_no_thought_no_answer_and_no_gradient(config, model, recompute):
    method, prompt = small_reasoner(config, model, dtype=torch.float64).method, ragged_prompt()
    method.backbone.recompute = recompute
    text = Text(torch.randint(1, 13, (3, 4)), None)

    def seen():
        torch.manual_seed(4)
        rolled = rollout(method, prompt, 4, 4, None, 1.0)
        with torch.no_grad():
            tokens = decode(method, method.think(prompt, Greedy(), group=2), Greedy(), 4, None)
        thought = method.think(prompt, Sample(), group=1)
        loss = text_loss(method.backbone, thought, text)[0].taken() + thought.states_UKD.square().mean()
        method.zero_grad()
        loss.backward()
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        chosen = [x for d in rolled.decisions for x in (d.value_BT, d.logp_BT)]
        return [rolled.tokens_BT, rolled.used_B, tokens, loss, *chosen, thought.states_UKD, thought.h_UTD, *grads]

    want = seen()
    with method.backbone.tap(**ALL) as tapped:
        got = seen()
    assert len(tapped.calls) > 10 and len(got) == len(want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_latents_whose_inputs_are_known_are_found_in_one_call():
    method, prompt = small_reasoner(Pause(Sim(n_latent=3, stride=2)), dtype=torch.float64).method, ragged_prompt()
    with torch.no_grad(), method.backbone.tap(**ALL) as at_once:
        method.think(prompt, Greedy())
    with torch.no_grad(), method.backbone.tap(**ALL) as one_by_one:
        method.think(prompt, Greedy(), edit=lambda i, x: x)
    assert [c.length for c in at_once.calls] == [7, 3] and [c.length for c in one_by_one.calls] == [7, 1, 1, 1]
    for i in range(4):
        a, b = (method.of_latent(t.calls, i) for t in (at_once, one_by_one))
        for name in ("h_LBTD", "k_LBHTd", "v_LBHTd", "a_LBHTS"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="ends 1 latent steps before"):
        method.of_latent(at_once.calls, 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("grad", [False, True])
def test_recurrences_are_those_of_the_unrolled_network(family, grad):
    model = ModelConfig(family=family, n_layer=4, n_embd=32, n_head=2, n_positions=64)
    method = small_reasoner(Recurrent(prelude=1, core=2, coda=1, n_recurrence=3), model, dtype=torch.float64).method
    backbone, prompt = method.backbone, ragged_prompt()
    with torch.set_grad_enabled(grad), backbone.tap(**ALL) as tapped:
        thought = method.think(prompt, Greedy())
    assert [(*c.states,) for c in tapped.calls] == [(0, 1), *[(1, 2, 3)] * 3, (3, 4)]
    assert [(*c.keys,) for c in tapped.calls] == [(*c.attentions,) for c in tapped.calls] == [(1,), *[(2, 3)] * 3, (4,)]
    close = {"rtol": 0, "atol": 10 * EXACT[family]}
    blocks, body = list(backbone.blocks), backbone.decoder[0]
    backbone.lm.set_attn_implementation("eager")
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        ids = torch.cat([ids, ids[:, -1:].expand(1, 3)], 1)
        n = ids.shape[1]
        pos, mask = torch.arange(n)[None], torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)[None, None]
        h, more = backbone.embed(ids), {"attention_mask": mask}
        if family == "gpt2":
            h = h + body.wpe(pos)
        else:
            more["position_embeddings"] = body.rotary_emb(h, pos)

        def run(h, call, numbers, more=more, b=b, n=n):
            """The family's blocks one after the other, each compared with what the tap saw of it."""
            torch.testing.assert_close(call.states[numbers[0] - 1][b, -n:], h[0], **close)
            for i in numbers:
                cache, layer = DynamicCache(), blocks[i - 1].attn if family == "gpt2" else blocks[i - 1].self_attn
                weights = []
                hook = layer.register_forward_hook(lambda m, args, out, weights=weights: weights.append(out[1]))
                h = blocks[i - 1](h, past_key_values=cache, use_cache=True, **more)
                hook.remove()
                torch.testing.assert_close(call.states[i][b, -n:], h[0], **close)
                torch.testing.assert_close(call.keys[i][b, :, -n:], cache.layers[i - 1].keys[0], **close)
                torch.testing.assert_close(call.values[i][b, :, -n:], cache.layers[i - 1].values[0], **close)
                torch.testing.assert_close(call.attentions[i][b, :, -n:, -n:], weights[0][0], **close)
            return h

        e = method.inject(run(h, tapped.calls[0], [1]))
        s = torch.zeros_like(e)
        for r in range(3):
            s = method.norm(run(method.carry(s) + e, tapped.calls[1 + r], [2, 3]))
            at = method.of_latent(tapped.calls, r + 1)
            torch.testing.assert_close(method.norm(at.states[3])[b, 0], thought.states_UKD[b, r + 1], **close)
        torch.testing.assert_close(backbone.norm(run(s, tapped.calls[4], [4]))[0, -4:], thought.h_UTD[b], **close)
    with pytest.raises(ValueError, match="saw 3 recurrences, not 4"):
        method.of_latent(tapped.calls, 4)


def test_chosen_layers_and_positions():
    backbone, ids = make("llama"), torch.randint(17, (2, 5))
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    taps = []
    for options in ({}, {"layers": (-1, 0, 2), "keep": 2}):
        with torch.no_grad(), backbone.tap(**options, **ALL) as tapped:
            backbone.read(ids)
            backbone.read(ids, mask)
            backbone.hidden(ids)
        taps.append(tapped)
    every, some = taps
    for whole, part in zip(every.calls, some.calls):
        assert (*part.states,) == (3, 0, 2) and (*part.keys,) == (*part.attentions,) == (3, 2)
        assert part.length == whole.length == 5 and part.skipped == 3 and torch.equal(part.pos_BT, whole.pos_BT[:, 3:])
        for n in (3, 0, 2):
            torch.testing.assert_close(part.states[n], whole.states[n][:, 3:])
        for n in (3, 2):
            torch.testing.assert_close(part.keys[n], whole.keys[n][:, :, 3:])
            torch.testing.assert_close(part.values[n], whole.values[n][:, :, 3:])
            torch.testing.assert_close(part.attentions[n], whole.attentions[n][:, :, 3:])
        for i in (3, -2):
            one = part.at(i)
            assert torch.equal(one.pos_BT, whole.pos_BT[:, 3:4]) and torch.equal(one.h_LBTD, part.h_LBTD[:, :, :1])
            assert torch.equal(one.k_LBHTd, part.k_LBHTd[:, :, :, :1])
            assert torch.equal(one.a_LBHTS, part.a_LBHTS[..., :1, :4])
        assert torch.equal(part.at(4).at(-1).h_LBTD, part.h_LBTD[:, :, 1:])
        with pytest.raises(ValueError, match="position 2 of a call of 5 is not among the 2 kept"):
            part.at(2)
    assert some.calls[0].states[2].untyped_storage().nbytes() == 2 * 2 * 32 * 8  # the other positions can be freed


def test_a_tap_of_inner_layers_leaves_the_last_one_as_it_is():
    """The last layer is computed at the wanted positions alone unless a tap wants more of it."""
    backbone, ids = make("gpt2"), torch.randint(17, (2, 5))
    for options, length in (({"layers": (1, 2)}, 1), ({"layers": (3,), "states": False, "kv": True}, 1),
                            ({"layers": (3,), "keep": 2}, 2), ({"layers": (3,)}, 5)):  # fmt: skip
        with torch.no_grad(), backbone.tap(**options) as tapped:
            assert backbone.hidden(ids, keep=1)[0].shape[1] == length
        assert tapped.calls[0].length == 5


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_taps_within_taps_and_what_ends_them(family):
    backbone, ids = make(family), torch.randint(17, (2, 5))
    kind = backbone.lm.config._attn_implementation
    with torch.no_grad(), backbone.tap(layers=(1,)) as outer:
        _, context = backbone.read(ids)
        with pytest.raises(RuntimeError, match="inside"), backbone.tap(layers=(2,), states=False, **ALL) as inner:
            backbone.step(torch.randn(2, 1, 32, dtype=torch.float64), context)
            with pytest.raises(ValueError, match="need 65 positions"):
                backbone.read(torch.zeros(1, 65, dtype=torch.long))  # what fails leaves nothing behind
            with pytest.raises(Exception, match=""):
                backbone.step(torch.randn(2, 1, 31, dtype=torch.float64), context)
            copy = deepcopy(backbone)
            raise RuntimeError("inside")
        backbone.read(ids)
    backbone.read(ids)
    for model in (backbone, copy):  # no tap is open: training goes on in its chain again
        _, longer = model.step(torch.randn(2, 1, 32, dtype=torch.float64), context)
        assert isinstance(longer.past, LatentChain) == (family == "gpt2")
    assert [c.length for c in outer.calls] == [5, 1, 5] and [c.length for c in inner.calls] == [1]
    assert (*outer.calls[1].states,) == (1,) and not outer.calls[1].keys and not outer.calls[1].attentions
    assert not inner.calls[0].states and (*inner.calls[0].keys,) == (*inner.calls[0].attentions,) == (2,)
    assert backbone.lm.config._attn_implementation == kind


def test_rollouts_that_share_a_prompts_cache_are_tapped_too():
    backbone, prompt = make("qwen3"), ragged_prompt(vocab=17)
    x = torch.randn(2, 6, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        _, context = backbone.read(prompt.ids_BT, prompt.mask_BT)
        seen = []
        for longer in (context.branch(2), context.rows(torch.arange(3).repeat_interleave(2))):
            with backbone.tap(**ALL) as tapped:
                for x_B1D in x:
                    _, longer = backbone.step(x_B1D, longer)
            seen.append(tapped.calls)
    for a, b in zip(*seen):
        for name in ("h_LBTD", "k_LBHTd", "v_LBHTd", "a_LBHTS"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-10)


def test_kernels_that_were_asked_for_wait_until_the_tap_is_closed(monkeypatch):
    method, prompt = small_reasoner(Sim(n_latent=2)).method, ragged_prompt()
    with torch.no_grad():
        want = method.think(prompt, Greedy())
        monkeypatch.setenv("LATENT_KERNELS", "triton")
        with method.backbone.tap() as tapped:
            got = method.think(prompt, Greedy())
    assert len(tapped.calls) == 3
    torch.testing.assert_close(got.states_UKD, want.states_UKD, rtol=0, atol=1e-5)


def test_weights_are_before_dropout_and_dropout_is_the_familys():
    backbone = make("gpt2")
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    backbone.train()
    ids = torch.randint(17, (2, 5))
    torch.manual_seed(3)
    with backbone.tap(**ALL) as tapped:
        h_BTD, _ = backbone.hidden(ids)
    torch.manual_seed(3)
    out = theirs(backbone, backbone.embed(ids))
    torch.testing.assert_close(h_BTD, out.last_hidden_state, rtol=0, atol=1e-10)
    torch.testing.assert_close(tapped.calls[0].h_LBTD, torch.stack(out.hidden_states), rtol=0, atol=1e-10)
    got, left = tapped.calls[0].a_LBHTS, torch.stack(out.attentions)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]))
    torch.testing.assert_close(left, torch.where(left == 0, 0, got / 0.7), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": (4,)}, r"layers must be from -4 to 3 \(0: the embeddings\), got 4"),
        ({"layers": (-5,)}, r"got -5"),
        ({"layers": (3, -1)}, r"each once, got \(3, -1\)"),
        ({"layers": ()}, r"one layer or more"),
        ({"states": False}, "must ask for states, kv or attentions"),
        ({"layers": (0,), "states": False, "kv": True}, "layer 0 has neither"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
    ],
)
def test_a_tap_says_what_it_cannot_give(options, message):
    with pytest.raises(ValueError, match=message), make("gpt2").tap(**options):
        pass


def test_what_was_not_asked_for_says_so():
    backbone = make("gpt2")
    with backbone.tap(layers=(0,), kv=True) as tapped:
        backbone.read(torch.randint(17, (2, 5)))
    with pytest.raises(ValueError, match="open it with attentions=True"):
        _ = tapped.calls[0].a_LBHTS
    with pytest.raises(ValueError, match="open it with kv=True"):
        _ = tapped.calls[0].k_LBHTd
    with pytest.raises(ValueError, match="no calls"):
        join([])
