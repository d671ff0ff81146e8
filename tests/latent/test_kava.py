"""KaVa's loss, and R-KV's eviction in it, written out row by row on the family's own forward, without cache or tap."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel

from kernels.errors import UserError
from latent import methods
from latent.backbone import Backbone
from latent.config import ModelConfig
from latent.methods import Codi, FixedEmbedding, Kava, NoCoT, Pause, Pccot
from latent.methods.kava.eviction import importance, kept, unlikeness
from tests.helpers import SMALL, small_reasoner
from tests.latent.by_hand import codi_loss, one_by_one, places, ragged_batch
from tests.latent.test_pccot import together


def cache_of(backbone, x_1TD, pos):
    """K, V and attention weights of every block by the family's own forward, each (H, T, .)."""
    lm, mask = backbone.lm, torch.ones(x_1TD.shape[:2], dtype=torch.long)
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    out = lm(inputs_embeds=x_1TD, position_ids=torch.tensor([pos]), attention_mask=mask, use_cache=True,
             output_attentions=True)  # fmt: skip
    lm.set_attn_implementation(before)
    return [(layer.keys[0], layer.values[0], a[0]) for layer, a in zip(out.past_key_values.layers, out.attentions)]


def cosine(a, b):
    a, b = a.detach(), b.detach()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def evicted_to(keys_Cd, attention_ATC, size, weight):
    """R-KV in loops: the places in a chain of the `size` best scores, in order.

    `attention_ATC`: of the A query heads that share these keys, from the T positions that give the answer.
    """
    n = len(keys_Cd)
    alike = [-sum(cosine(keys_Cd[i], keys_Cd[j]) for j in range(n) if j != i) / n for i in range(n)]
    unlike = [math.exp(x) / sum(map(math.exp, alike)) for x in alike]
    heads, asking = len(attention_ATC), attention_ATC.shape[1]
    important = []
    for i in range(n):
        shares = [max(float(attention_ATC[h, t, i] / attention_ATC[h, t].sum()) for h in range(heads))
                  for t in range(asking)]  # fmt: skip
        important.append(sum(shares) / asking)
    score = [weight * a + (1 - weight) * b for a, b in zip(important, unlike)]
    return sorted(sorted(range(n), key=lambda i: -score[i])[:size])


def distance(x, target, kind):
    apart = (x - target).abs()
    if kind == "l1":
        return apart
    return apart**2 if kind == "mse" else torch.where(apart < 1, apart**2 / 2, apart - 0.5)


def kv_loss(method, batch, fed):
    """The distance between K and V alone: the mean over all latents that have a target."""
    config, backbone, prompt = method.config, method.backbone, batch.prompt
    mask = torch.ones_like(prompt.ids_BT, dtype=torch.bool) if prompt.mask_BT is None else prompt.mask_BT
    total, pairs = 0.0, 0
    for ids, real, steps, answer in zip(prompt.ids_BT, mask, batch.steps, batch.answers):
        ids, chain = ids[real], sum(steps if config.keep_last else steps[:-1], ())
        p, c, m = len(ids), len(chain), min(len(chain), config.n_latent)
        if not m:
            continue
        whole = torch.cat([ids, torch.tensor([*chain, *answer])])[None, :-1]
        teacher = cache_of(backbone, backbone.embed(whole), list(range(whole.shape[1])))
        student = cache_of(backbone, torch.cat([backbone.embed(ids[None]), fed(method, ids)], 1), places(method, p))
        for (ks, vs, _), (kt, vt, a) in zip(student, teacher, strict=True):
            heads = kt.shape[0]
            where = [
                evicted_to(kt[h, p : p + c], a.unflatten(0, (heads, -1))[h][:, p + c - 1 :, p : p + c], m,
                           config.importance)
                for h in range(heads)
            ]  # fmt: skip
            for mine, theirs in ((ks, kt), (vs, vt)):
                target = torch.stack([theirs[h, p:][where[h]] for h in range(heads)]).detach()
                unit = target.std() if config.kv_std else 1.0
                apart = distance(mine[:, p : p + m], target, config.kv_distance) / unit
                total = total + apart.sum() / apart[:, 0].numel() / len(student) / 2
        pairs += m
    return total / pairs


GROUPED = ModelConfig(family="llama", n_layer=2, n_embd=32, n_head=4, n_positions=64)


def grouped(config, dtype=torch.float64):
    """A reasoner whose four query heads share two heads of keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    reasoner = small_reasoner(NoCoT(), GROUPED)
    old = reasoner.method.backbone.lm.config.to_dict()
    lm = LlamaForCausalLM(LlamaConfig(**old | {"num_key_value_heads": 2, "initializer_range": 0.25}))
    return replace(reasoner, method=methods.build(config, Backbone(lm)).to(dtype))


@pytest.mark.parametrize(
    "config, fed",
    [
        (Kava(n_latent=4, iterations=2), together),
        (Kava(n_latent=3, stride=2, iterations=1, kv_weight=3.0, kv_distance="mse", kv_std=False), together),
        (Kava(n_latent=3, keep_last=True, kv_distance="l1", importance=0.9, distill_weight=5.0), together),
        (Kava(n_latent=16, iterations=2, importance=0.0), together),
        (Pause(Kava(n_latent=3, importance=1.0)), one_by_one),
        (FixedEmbedding(Kava(n_latent=3, stride=2)), one_by_one),
    ],
    ids=["plain", "mse", "importance", "more latents than chain", "pause", "fixed"],
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_loss_and_its_gradient_are_those_written_out(config, fed, family):
    torch.manual_seed(0)
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64) if family == "gpt2" else grouped(config)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    loss, logged = method.loss(batch)
    kv = kv_loss(method, batch, fed)
    want = codi_loss(method, batch, fed) + method.config.kv_weight * kv
    close = 1e-9 if family == "gpt2" else 1e-5  # Llama's RMSNorm and softmax round to fp32 in transformers
    torch.testing.assert_close(logged["kv"], kv.detach(), rtol=0, atol=close)
    torch.testing.assert_close(loss, want, rtol=0, atol=close)
    weights = [p for p in method.parameters() if p.requires_grad]
    for got, hand in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, want)), strict=True):
        assert (got is None) == (hand is None)
        if got is not None:
            torch.testing.assert_close(got, hand, rtol=0, atol=20 * close)


def scored(attention_C, keys_Cd, weight):
    """The score of one row, head and layer, asked by one position."""
    real = torch.ones(1, len(keys_Cd), dtype=torch.bool)
    asked = importance(attention_C[None, None, None, None], torch.ones(1, 1, dtype=torch.bool), real, 1)
    return (weight * asked + (1 - weight) * unlikeness(keys_Cd[None, None, None], real)), real


def test_what_the_answer_attends_to_is_kept():
    keys, attention = torch.eye(6), torch.tensor([0.0, 0.5, 0.0, 0.0, 0.2, 0.3])
    for size, want in ((1, [1]), (2, [1, 5]), (3, [1, 4, 5])):
        index, real = kept(*scored(attention, keys, 0.1), size)
        assert index.flatten().tolist() == want and real.all()


def test_a_repeated_key_is_dropped():
    """Three of six keys are the same; with equal attention to all, the three that stand alone are kept."""
    keys = torch.eye(6)
    keys[2] = keys[5] = keys[0]
    even = torch.full((6,), 1 / 6)
    assert kept(*scored(even, keys, 0.1), 3)[0].flatten().tolist() == [1, 3, 4]
    assert kept(*scored(even, keys, 1.0), 3)[0].flatten().tolist() == [0, 1, 2]  # equal scores: the earlier ones


def test_scores_in_closed_form():
    """Two equal keys of three: mean cosines 1/3, 1/3 and 0; attention counts within the chain alone."""
    keys = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    real = torch.ones(1, 3, dtype=torch.bool)
    e = math.exp(-1 / 3)
    want = torch.tensor([e, e, 1.0]) / (2 * e + 1)
    torch.testing.assert_close(unlikeness(keys[None, None, None], real).flatten(), want)
    a_LBHTC = torch.tensor([[[[[0.1, 0.1, 0.0], [0.0, 0.0, 0.5]], [[0.3, 0.1, 0.0], [0.1, 0.1, 0.0]]]]])
    asked = importance(a_LBHTC, torch.ones(1, 2, dtype=torch.bool), real, 1)  # the larger share of two heads, by query
    torch.testing.assert_close(asked.flatten(), torch.tensor([(0.75 + 0.5) / 2, (0.5 + 0.5) / 2, (0.0 + 1.0) / 2]))
    own = importance(a_LBHTC, torch.tensor([[True, False]]), real, 2)
    torch.testing.assert_close(own[0, 0], torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]]))


def test_padding_is_neither_counted_nor_kept():
    """A row in a longer batch scores as it does alone, and a row without a chain has no target and no NaN."""
    torch.manual_seed(0)
    k, a = torch.randn(2, 3, 2, 7, 4), torch.rand(2, 3, 4, 5, 7)
    real = torch.arange(7) < torch.tensor([[7], [4], [0]])
    asking = (torch.arange(5) >= 1).expand(3, 5)
    both = importance(a, asking, real, 2), unlikeness(k, real)
    for n, b in ((7, 0), (4, 1)):
        ones = torch.ones(1, n, dtype=torch.bool)
        alone = importance(a[:, b : b + 1, :, :, :n], asking[:1], ones, 2), unlikeness(k[:, b : b + 1, :, :n], ones)
        for x, y in zip(both, alone, strict=True):
            torch.testing.assert_close(x[:, b, :, :n], y[:, 0])
    assert not any(x[:, 1, :, 4:].any() for x in both) and all(x.isfinite().all() for x in both)
    for score in (sum(both), -sum(both)):
        index, is_real = kept(score, real, 6)
        assert is_real.sum(1).tolist() == [6, 4, 0]
        assert index[:, 1, :, :4].flatten().tolist() == 4 * [0, 1, 2, 3]


def test_nothing_is_evicted_of_a_chain_that_is_no_longer_than_the_latents():
    """Whatever the scores: the chain's own K and V, in order, are the targets."""
    for weight in (0.0, 0.5, 1.0):
        reasoner = small_reasoner(Kava(n_latent=16, importance=weight), SMALL, dtype=torch.float64)
        method, batch = reasoner.method, ragged_batch(reasoner.codec)
        _, calls = method.teach(batch)
        k, v, real = method.compressed(batch, calls[-1])
        lengths = method.chain_lengths(batch)
        assert real.sum(1).tolist() == lengths and 3 < max(lengths) <= 16
        for b, n in enumerate(lengths):
            assert torch.equal(k[:, b, :, :n], calls[-1].k_LBHTd[:, b, :, :n])
            assert torch.equal(v[:, b, :, :n], calls[-1].v_LBHTd[:, b, :, :n])


def test_only_the_latents_move_towards_the_chain():
    """The distance alone: it changes with the embeddings of the chain's tokens, and they get no gradient from it."""
    reasoner = small_reasoner(Kava(n_latent=2, keep_last=True), SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    kv = method.terms(batch)[0][3].taken()
    table = method.backbone.lm.get_input_embeddings().weight
    (grad,) = torch.autograd.grad(kv, table)
    prompts = {i for row in batch.prompt.ids_BT.tolist() for i in row}
    in_chain = sorted({i for steps in batch.steps for step in steps for i in step} - prompts)
    assert in_chain and not grad[in_chain].any() and grad.any()
    table.data[in_chain] *= 1.5 * torch.rand(len(in_chain), table.shape[1])
    assert (method.terms(batch)[0][3].taken() - kv).abs() > 1e-6


def test_without_chains_or_weight_it_is_pccot():
    """Problems of one step, which the teacher leaves out, have no target; and a term of weight 0 teaches nothing."""
    config = Kava(n_latent=3, iterations=2)
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    pccot = methods.build(Pccot(n_latent=3, iterations=2), method.backbone).double()
    pccot.load_state_dict(method.state_dict())
    short = replace(batch, steps=[steps[-1:] for steps in batch.steps])
    (*_, kv), logged = method.terms(short)
    assert int(kv.count) == method.counts(short)[3] == 0 and logged["kv"].taken() == 0
    torch.testing.assert_close(method.loss(short)[0], pccot.loss(short)[0], rtol=0, atol=0)
    unweighted = methods.build(replace(config, kv_weight=0.0), method.backbone).double()
    unweighted.load_state_dict(method.state_dict())
    torch.testing.assert_close(unweighted.loss(batch)[0], pccot.loss(batch)[0], rtol=0, atol=1e-12)
    assert method.loss(batch)[0] - pccot.loss(batch)[0] > 1e-3
    none = [small_reasoner(c, SMALL, dtype=torch.float64) for c in (Kava(n_latent=0), Codi(n_latent=0))]
    none[1].method.backbone.load_state_dict(none[0].method.backbone.state_dict())
    assert torch.equal(*(r.method.loss(batch)[0] for r in none))


class Silent(GPTNeoXModel):
    """A family that does not give its attention weights."""

    def forward(self, *args, output_attentions=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_what_it_cannot_do_is_said():
    for wrong, said in (
        ({"kv_weight": -1.0}, "method.kv_weight must be at least 0, got -1"),
        ({"kv_weight": float("nan")}, "method.kv_weight must be at least 0, got nan"),
        ({"importance": 1.5}, r"method.importance must be in 0\.\.1, got 1.5"),
        ({"importance": -0.1}, r"method.importance must be in 0\.\.1, got -0.1"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"n_latent": -1}, "n_latent must be at least 0, got -1"),
    ):
        with pytest.raises(UserError, match=said):
            Kava(**wrong)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    reasoner = small_reasoner(NoCoT(), SMALL)
    config = GPTNeoXConfig(vocab_size=reasoner.codec.size, max_position_embeddings=64, **shape, **ids)
    lm = GPTNeoXForCausalLM(config)
    assert methods.build(Kava(), Backbone(lm)).loss(ragged_batch(reasoner.codec))[0] > 0
    lm.gpt_neox = Silent(config)
    with pytest.raises(UserError, match="does not give its attentions, which this needs: GPT-2, Llama, Qwen3 and"):
        methods.build(Kava(), Backbone(lm)).loss(ragged_batch(reasoner.codec))
