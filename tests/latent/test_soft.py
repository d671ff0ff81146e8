"""Soft tokens: free of training they are what greedy decoding writes; the loss of trained ones written out by hand."""

from dataclasses import replace

import pytest
import torch

from eval.environments import Cups
from kernels.errors import UserError
from latent import hub
from latent.config import Converged, ModelConfig
from latent.methods import CoT, FixedEmbedding, NoCoT, Soft
from latent.text import pad_right
from latent.thought import Greedy
from tests.helpers import SMALL, cups_batch, small_reasoner
from tests.latent.by_hand import ce_of, ragged_batch, states_of
from train.config import SFT, Judge, Run
from train.run import execute


def by_hand(method, batch):
    """Each row alone: the chain's tokens dealt by counting, mixtures as sums over the vocabulary, KL by its formula."""
    backbone, k, stride = method.backbone, method.config.n_latent, method.stride
    table = backbone.lm.get_input_embeddings().weight
    ce = apart = 0.0
    for ids, real, steps, answer in zip(
        batch.prompt.ids_BT, batch.prompt.mask_BT, batch.steps, batch.answers, strict=True
    ):
        chain, ids = [t for step in steps for t in step], ids[real]
        q_KV = torch.zeros(k, len(table), dtype=torch.float64)
        for i in range(k):
            first, last = i * len(chain) // k, (i + 1) * len(chain) // k
            part = chain[first:last] or [chain[first]]
            for token in part:
                q_KV[i, token] += 1 / len(part)
        x = torch.cat([backbone.embed(ids[None]), (q_KV @ table)[None]], 1)
        x = torch.cat([x, backbone.embed(torch.tensor([answer[:-1]]))], 1)
        n = len(ids)
        pos = [*range(n), *(n + stride * (i + 1) - 1 for i in range(k))]
        states = states_of(backbone, x, [*pos, *(n + stride * k + t for t in range(len(answer) - 1))])[-1]
        ce = ce + ce_of(backbone, states[n + k - 1 :], answer)
        for i in range(k):
            logp_V = backbone.lm.get_output_embeddings()(states[n - 1 + i]).log_softmax(-1)
            apart = apart + sum(q * (q.log() - logp_V[v]) for v, q in enumerate(q_KV[i]) if q > 0)
    rows = len(batch.answers)
    return ce / sum(map(len, batch.answers)) + method.config.label_weight * apart / (rows * k)


@pytest.mark.parametrize(
    "config", [Soft(n_latent=4), Soft(n_latent=5, stride=2, label_weight=0.3), Soft(n_latent=9), Soft(n_latent=1)]
)
def test_the_loss_and_its_gradient_are_those_written_out(config):
    """Chains of 12, 4 and 8 tokens over the latents: evenly, unevenly, and over more latents than there are tokens."""
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    loss, logged = method.loss(batch)
    want = by_hand(method, batch)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-10)
    weights = list(method.parameters())
    for got, hand in zip(*(torch.autograd.grad(x, weights) for x in (loss, want)), strict=True):
        torch.testing.assert_close(got, hand, rtol=0, atol=1e-10)
    torch.testing.assert_close(logged["ce"] + config.label_weight * logged["label_kl"], loss.detach())


def test_a_chain_of_nothing_stands_for_the_prompts_last_token():
    reasoner = small_reasoner(Soft(n_latent=2), SMALL)
    batch = cups_batch(reasoner.codec, 2)
    batch.steps = [[], batch.steps[1]]
    think = (reasoner.codec.think,)
    chain = sum(batch.steps[1], ())
    assert reasoner.method.dealt(batch) == [[think, think], [chain[:16], chain[16:]]]


def test_a_thought_that_is_led_by_tokens_of_its_own_is_that_thought():
    """Fed in one pass what it would feed back itself, top 1, it goes through the same states."""
    reasoner = small_reasoner(Soft(n_latent=8, top_k=1), SMALL, dtype=torch.float64)
    method, batch = reasoner.method, cups_batch(reasoner.codec, 4)
    with torch.no_grad():
        free = method.think(batch.prompt, Greedy())
        ids_BK = method.backbone.head(free.states_UKD[:, :-1]).argmax(-1)
        batch.steps = [[tuple(row)] for row in ids_BK.tolist()]
        parts = pad_right([p for row in method.dealt(batch) for p in row], batch.pad)
        led = method.led(batch.prompt, parts)
    torch.testing.assert_close(led.states_UKD, free.states_UKD, rtol=0, atol=1e-10)


def test_the_likeliest_token_alone_is_greedy_chain_of_thought(tmp_path):
    """A run trained on chains answers the same in 32 latents of one token each, by a second run that trains nothing."""
    start = Run(Cups(), ModelConfig(n_layer=1, n_embd=32, n_head=2), CoT(), SFT(steps=12, batch=8), Judge(20, 0))
    execute(start, tmp_path, device="cpu")
    soft = replace(start, method=Soft(n_latent=32, top_k=1), train=SFT(steps=0), init=start.id)
    execute(soft, tmp_path, device="cpu")
    cot, free = (hub.load(tmp_path / run.id) for run in (start, soft))
    questions = ["01 23 12 . . . . .", "03 12 01 01 13 . 23 02"]
    chains = cot.answer(questions)
    assert [" ".join(text.split()[-4:]) for text in chains] == free.answer(questions)
    assert free.method.passes(32, 4) == cot.method.passes(0, 36)


def test_cold_stop_ends_it_where_the_distribution_is_sharp():
    method = small_reasoner(Soft(n_latent=6, halt=Converged(by="entropy", below=50.0, hits=3)), SMALL).method
    prompt = cups_batch(small_reasoner(Soft(), SMALL).codec, 2).prompt
    with torch.no_grad():
        assert method.think(prompt, Greedy()).used_B.tolist() == [2, 2]  # asked before each latent


def test_controls_are_led_by_their_own_inputs():
    config = FixedEmbedding(Soft(n_latent=3, stride=2))
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    x_KD = method.feedback.embedding.expand(3, -1)
    ce = 0.0
    for ids, real, answer in zip(batch.prompt.ids_BT, batch.prompt.mask_BT, batch.answers):
        n, embed = int(real.sum()), method.backbone.embed
        x = torch.cat([embed(ids[real][None]), x_KD[None], embed(torch.tensor([answer[:-1]]))], 1)
        states = states_of(method.backbone, x, [*range(n), n + 1, n + 3, n + 5, n + 6, n + 7, n + 8])[-1]
        ce = ce + ce_of(method.backbone, states[n + 2 :], answer)
    _, logged = method.loss(batch)
    torch.testing.assert_close(logged["ce"], (ce / 12).detach(), rtol=0, atol=1e-10)


def test_without_latents_it_is_trained_on_the_answer_alone():
    soft, plain = (small_reasoner(config, SMALL, dtype=torch.float64) for config in (Soft(n_latent=0), NoCoT()))
    plain.method.backbone.load_state_dict(soft.method.backbone.state_dict())
    got, want = (r.method.loss(ragged_batch(r.codec))[0] for r in (soft, plain))
    assert torch.equal(got, want)


def test_what_is_out_of_range_is_refused():
    for change, said in (
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"temperature": 0.0}, r"method\.temperature must be > 0, got 0"),
        ({"label_weight": -1.0}, r"method\.label_weight must be at least 0"),
        ({"feedback": "norm"}, "feedback of soft must be soft, got 'norm'"),
    ):
        with pytest.raises(UserError, match=said):
            Soft(**change)
    with pytest.raises(UserError, match=r"method\.top_k must be at most the vocabulary's \d+, got 99"):
        small_reasoner(Soft(top_k=99), SMALL)
