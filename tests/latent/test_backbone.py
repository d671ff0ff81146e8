"""The backbone against the family's own uncached forward, in fp64 so that nothing hides in rounding.

The RMSNorm of Llama and Qwen3 rounds to fp32 in `transformers` whatever the model's dtype, ours does not: there the
tolerance is fp32's.
"""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from latent import families, layers
from latent.backbone import Backbone
from latent.cache import LayerCache, visible
from latent.config import ModelConfig
from latent.make import from_scratch
from tests.helpers import ragged_prompt, row_of

SHAPE = {"vocab_size": 17, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": None,
         "eos_token_id": None, "pad_token_id": None}  # fmt: skip
ROTARY = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2}


EXACT = {"gpt2": 1e-10, "gpt_neox": 1e-10, "opt": 1e-10, "llama": 1e-6, "qwen3": 1e-6, "mistral": 1e-6, "gemma3": 1e-5}


def make(family: str) -> Backbone:
    match family:
        case "gpt2":
            ids = {"bos_token_id": None, "eos_token_id": None}
            lm = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=32, n_layer=3, n_head=4, n_positions=64, **ids))
        case "llama":
            lm = LlamaForCausalLM(LlamaConfig(**ROTARY))
        case "qwen3":
            lm = Qwen3ForCausalLM(Qwen3Config(**ROTARY, head_dim=16))
        case "gpt_neox":
            lm = GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=48, max_position_embeddings=64))
        case "mistral":
            lm = MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=5))
        case "gemma3":
            kinds = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
            lm = Gemma3ForCausalLM(Gemma3TextConfig(**ROTARY, head_dim=16, **kinds))
        case "opt":
            lm = OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
    for p in lm.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return Backbone(lm.double().eval())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox", "opt"])
@pytest.mark.parametrize("grad", [False, True])
def test_padded_cached_batch_is_each_row_alone_recomputed(family, grad):
    backbone = make(family)
    prompt, later = ragged_prompt(vocab=17), torch.randn(3, 4, 32, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        h_BD, context = backbone.read(prompt.ids_BT, prompt.mask_BT)
        first_B1D, context = backbone.step(later[:, :1], context)
        rest_B3D, context = backbone.step(later[:, 1:], context)
    got = torch.cat([h_BD[:, None], first_B1D, rest_B3D], 1)
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        x = torch.cat([backbone.embed(ids), later[b : b + 1]], 1)
        want = backbone.decoder[0](inputs_embeds=x, use_cache=False).last_hidden_state[0, ids.shape[1] - 1 :]
        torch.testing.assert_close(got[b], want, rtol=0, atol=EXACT[family])
        logits = backbone.lm(inputs_embeds=x, use_cache=False).logits[0, -1]
        torch.testing.assert_close(backbone.head(got[b, -1:]), logits[None], rtol=0, atol=10 * EXACT[family])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_gradients_are_those_of_the_familys_forward(family):
    backbone = make(family)
    ids, later = torch.randint(17, (2, 5)), torch.randn(2, 3, 32, dtype=torch.float64)
    weight = torch.randn(2, 4, 32, dtype=torch.float64)

    def grads(h_B4D):
        backbone.zero_grad()
        (h_B4D * weight).sum().backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    h_BD, context = backbone.read(ids)
    got = grads(torch.cat([h_BD[:, None], backbone.step(later, context)[0]], 1))
    x = torch.cat([backbone.embed(ids), later], 1)
    want = grads(backbone.decoder[0](inputs_embeds=x, use_cache=False).last_hidden_state[:, 4:])
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-9)


def test_dropout_is_the_familys():
    ids = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0, **ids)
    assert config.resid_pdrop == config.embd_pdrop == 0.1
    backbone = Backbone(GPT2LMHeadModel(config).double().train())
    ids = torch.randint(17, (2, 5))
    _, context = backbone.read(ids[:, :1])
    torch.manual_seed(3)
    got, _ = backbone.step(backbone.embed(ids), context)
    torch.manual_seed(3)
    want, _ = families.forward(backbone.lm, backbone.embed(ids), 1 + torch.arange(5).expand(2, 5), context.layers, None)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_a_context_can_be_continued_twice():
    backbone = make("gpt2")
    one, two = torch.randn(2, 3, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        _, context = backbone.read(torch.randint(17, (3, 5)))
        _, longer = backbone.step(one, context)
        backbone.step(two, context)  # must not write into what `longer` holds
        got, _ = backbone.step(two, longer)
        again, _ = backbone.step(two, backbone.step(one, context)[1])
    torch.testing.assert_close(got, again, rtol=0, atol=0)


def test_hidden_positions_are_as_if_never_read():
    backbone = make("qwen3")
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        _, context = backbone.read(torch.randint(17, (2, 5)))
        _, longer = backbone.step(x[:, :2], context)
        got, _ = backbone.step(x[:, 2:], longer.hide(torch.tensor([[False, True], [True, True]])))
        _, short = backbone.step(x[:, :1], context)
        first, _ = backbone.step(x[:, 2:], short.skip(1))
        second, _ = backbone.step(x[:, 2:], context.skip(2))
    torch.testing.assert_close(got[0], first[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], second[1], rtol=0, atol=1e-12)


def test_too_many_positions_say_so():
    backbone = make("gpt2")
    with pytest.raises(ValueError, match="need 65 positions, the model has 64"):
        backbone.read(torch.zeros(1, 65, dtype=torch.long))
    _, context = backbone.read(torch.zeros(1, 60, dtype=torch.long))
    with pytest.raises(ValueError, match="need 66 positions"):
        backbone.step(torch.zeros(1, 1, 32, dtype=torch.float64), context.skip(5))


def test_a_stock_model_is_the_one_that_transformers_makes():
    """Of the same seed, weight for weight; with its dropout in training, and tied."""
    config = ModelConfig(n_layer=2, n_embd=24, n_head=2, n_positions=11, stock=True, dropout=0.1)
    torch.manual_seed(4)
    made = from_scratch(config, 89, 0, None).lm
    torch.manual_seed(4)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=89, n_positions=11, n_embd=24, n_layer=2, n_head=2))
    assert made.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), theirs.state_dict().values()))
    assert made.lm_head.weight is made.transformer.wte.weight
    ids = torch.randint(0, 89, (3, 7))
    for mode in (True, False):
        found = []
        for lm in (made, theirs):
            lm.train(mode)
            torch.manual_seed(9)
            found.append(lm(ids).logits)
        assert torch.equal(*found)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_last_states_of_a_pass_are_those_of_the_whole_and_of_embeddings_read_after_it(family, padded, grad):
    """However few states are kept, and whether embeddings follow the prompt in its pass or in one of their own."""
    backbone, later = make(family), torch.randn(3, 2, 32, dtype=torch.float64)
    prompt = ragged_prompt(vocab=17)
    ids, mask = (prompt.ids_BT, prompt.mask_BT) if padded else (prompt.ids_BT.clamp(max=16), None)
    with torch.set_grad_enabled(grad):
        want_BTD, context = backbone.hidden(ids, mask)
        for keep in (1, 2, 3):
            got_BTD, _ = backbone.hidden(ids, mask, keep)
            torch.testing.assert_close(got_BTD[:, -keep:], want_BTD[:, -keep:], atol=EXACT[family], rtol=0)
        after_B2D, ended = backbone.step(later, context.skip(2), 3)
        both_BTD, at_once = backbone.hidden(ids, mask, 3, then_BKD=later, stride=3)
        want_B3D = torch.cat([want_BTD[:, -1:], after_B2D], 1)
        torch.testing.assert_close(both_BTD[:, -3:], want_B3D, atol=EXACT[family], rtol=0)
        assert torch.equal(at_once.next_B, ended.next_B) and at_once.reach == ended.reach
        more = torch.randn(3, 1, 32, dtype=torch.float64)
        a, b = (backbone.step(more, each)[0] for each in (ended, at_once))
        torch.testing.assert_close(a, b, atol=EXACT[family], rtol=0)


@pytest.mark.parametrize("t, size", [(1, 6), (3, 6), (6, 6)])
def test_attention_without_a_mask_is_causal_from_the_last_position(t, size):
    """Against each query alone with the positions up to its own; a GPU gets no mask where no row is padded."""
    q = torch.randn(2, 4, t, 8).double()
    k, v = torch.randn(2, 2, 2, size, 8).double()
    seen = visible(t, size, None, torch.device("cuda"))
    assert seen == (None if t == 1 else "causal")
    got = LayerCache(k, v).attend(q, seen, 0.0).unflatten(-1, (4, 8))
    for i in range(t):
        n = size - t + 1 + i
        for head in range(4):
            k_h, v_h = k[:, head // 2, :n], v[:, head // 2, :n]
            weights = ((q[:, head, i, None] * k_h).sum(-1) / 8**0.5).softmax(-1)
            torch.testing.assert_close(got[:, i, head], (weights[..., None] * v_h).sum(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(LayerCache(k, v).weigh(q, seen, 0.0)[0], got.flatten(2), rtol=0, atol=1e-12)


def test_attention_without_a_mask_takes_what_autocast_leaves_in_fp32():
    """Rotated queries and keys are in fp32 there, values in bfloat16; the last queries get what all of them get."""
    q, k = torch.randn(2, 2, 4, 6, 8)
    cache = LayerCache(k, torch.randn(2, 4, 6, 8).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        whole = cache.attend(q, "causal", 0.0)
        torch.testing.assert_close(cache.attend(q[:, :, -3:], "causal", 0.0), whole[:, -3:], rtol=0, atol=2e-2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("grad", [False, True])
def test_text_after_a_prompt_without_padding_needs_no_mask(family, grad, monkeypatch):
    """Prompt, one position, five at once: as on a GPU, where each is attended without a mask."""
    backbone, given, attended = make(family), [], LayerCache.attend
    monkeypatch.setattr(layers, "visible", lambda t, size, mask, device: visible(t, size, mask, torch.device("cuda")))
    monkeypatch.setattr(LayerCache, "attend", lambda *a: (given.append(a[2]), attended(*a))[1])
    ids = torch.randint(17, (2, 12))
    with torch.set_grad_enabled(grad):
        whole = backbone.lm(ids, output_hidden_states=True).hidden_states[-1]
        h_BD, context = backbone.read(ids[:, :6])
        one_B1D, context = backbone.step(backbone.embed(ids[:, 6:7]), context)
        rest_BTD, _ = backbone.step(backbone.embed(ids[:, 7:]), context)
    parts = torch.cat([h_BD[:, None], one_B1D, rest_BTD], 1)
    torch.testing.assert_close(parts, whole[:, 5:], rtol=0, atol=EXACT[family])
    assert given and not any(isinstance(seen, torch.Tensor) for seen in given)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_forward_hook_on_a_block_or_in_it_counts(family, grad):
    """What it changes is changed, in reading and in a latent step, as in the family's own forward; no longer after."""
    backbone = make(family).to(torch.float32).eval()
    prompt, x_BTD = ragged_prompt(), torch.randn(3, 1, 32)
    inner = [m for m in backbone.blocks[1].modules() if type(m).__name__ in ("Linear", "Conv1D")][-1]

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(grad):
            h_BTD, context = backbone.hidden(prompt.ids_BT, prompt.mask_BT)
            return h_BTD[:, -1], backbone.step(x_BTD, context)[0][:, 0]

    def own() -> tuple[torch.Tensor, torch.Tensor]:
        e_BTD = torch.cat([backbone.embed(prompt.ids_BT), x_BTD], 1)
        mask_BT = torch.cat([prompt.mask_BT, prompt.mask_BT.new_ones(3, 1)], 1).long()
        at_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        out = backbone.decoder[0](inputs_embeds=e_BTD, attention_mask=mask_BT, position_ids=at_BT, use_cache=False)
        return out.last_hidden_state[:, -2], out.last_hidden_state[:, -1]

    before = both()
    for module in (backbone.blocks[0], inner):
        for hook in (module.register_forward_hook(lambda m, args, out: half(out)),
                     module.register_forward_pre_hook(lambda m, args: half(args))):  # fmt: skip
            for got, want, was in zip(both(), own(), before):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
                assert (got - was).abs().max() > 1e-3
            assert backbone.chain(x_BTD[:, 0], backbone.hidden(prompt.ids_BT)[1], None, 1, 1) is None
            hook.remove()
    for got, was in zip(both(), before):
        torch.testing.assert_close(got, was, rtol=0, atol=0)


def half(value):
    """A tensor, or the first of a tuple, by two."""
    return (value[0] / 2, *value[1:]) if isinstance(value, tuple) else value / 2
