"""HRPO's gate, loss and log-probabilities, written out by hand; a closed gate is chain of thought in tokens."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from eval.environments import Cups
from kernels.errors import UserError
from latent import hub
from latent.config import LearnedStop, ModelConfig
from latent.generate import decode, rollout, score
from latent.methods import CoT, FixedEmbedding, Hrpo, NoCoT, Pause
from latent.policies import Gaussian
from latent.text import Batch
from latent.thought import Greedy
from tests.helpers import SMALL, cups_batch, small_reasoner
from tests.latent.by_hand import ce_of, ragged_batch, states_of
from tests.train.by_hand import AdamW, assert_same_weights, trainer_of
from train import distill
from train.config import SFT, Judge, Run
from train.run import execute


def opened(config, model=SMALL):
    """A reasoner in fp64 whose gate lets much of the mixture in."""
    reasoner = small_reasoner(config, model, dtype=torch.float64)
    gate = reasoner.method.feedback
    torch.nn.init.normal_(gate.decay, std=2.0)
    torch.nn.init.normal_(gate.r.weight, std=0.5)
    return reasoner


def closed(method) -> None:
    """Shut a method's gate."""
    torch.nn.init.constant_(method.feedback.r.bias, -1000.0)
    torch.nn.init.zeros_(method.feedback.r.weight)


def gated(method, h_D, token):
    """The paper's equations 2 to 4 for one token, from the module's parameters."""
    gate, table = method.feedback, method.backbone.lm.get_input_embeddings().weight
    p_V = (method.backbone.lm.get_output_embeddings().weight @ h_D / method.config.temperature).exp()
    p_V = p_V / p_V.sum()
    y_D = sum(p * e for p, e in zip(p_V, table)) / p_V.square().sum().sqrt()
    e_D = table[token]
    r_D = 1 / (1 + (-(gate.r.weight @ e_D + gate.r.bias)).exp())
    i_D = 1 / (1 + (-(gate.i.weight @ e_D + gate.i.bias)).exp())
    a_D = (-8 * (1 + (-gate.decay).exp()).log() * r_D).exp()
    return a_D * e_D + (1 - a_D**2).sqrt() * i_D * y_D


def thought_of(method, ids, tokens):
    """Inputs (1, T, D) and positions after thinking in some tokens, and the states before each and after the last."""
    backbone, n = method.backbone, len(ids)
    x, pos, states = backbone.embed(ids[None]), list(range(n)), []
    for i, token in enumerate(tokens):
        states.append(states_of(backbone, x, pos)[-1][-1])
        x = torch.cat([x, gated(method, states[-1], token)[None, None]], 1)
        pos.append(n + method.stride * (i + 1) - 1)
    return x, pos, [*states, states_of(backbone, x, pos)[-1][-1]]


@pytest.mark.parametrize(
    "config", [Hrpo(n_latent=12), Hrpo(n_latent=14, stride=2, temperature=0.5, halt=LearnedStop(bias=-1.0))]
)
def test_the_loss_and_its_gradient_are_those_written_out(config):
    """Chains of 12, 4 and 8 tokens: the answer follows each at once, at the position after all latents."""
    torch.manual_seed(0)
    reasoner = opened(config)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    want, count, stop, asked = 0.0, 0, 0.0, 0
    for ids, real, steps, answer in zip(
        batch.prompt.ids_BT, batch.prompt.mask_BT, batch.steps, batch.answers, strict=True
    ):
        chain = sum(steps, ())
        x, pos, before = thought_of(method, ids[real], chain)
        want = want + ce_of(method.backbone, torch.stack(before[:-1]), chain)
        x = torch.cat([x, method.backbone.embed(torch.tensor([answer[:-1]]))], 1)
        after = len(ids[real]) + method.stride * config.n_latent
        states = states_of(method.backbone, x, [*pos, *range(after, after + len(answer) - 1)])[-1]
        want = want + ce_of(method.backbone, states[-len(answer) :], answer)
        count += len(chain) + len(answer)
        for i in range(min(len(chain) + 1, config.n_latent)) if method.stop else ():
            logit = method.stop.linear(before[i])[0]
            stop, asked = stop + F.softplus(-logit if i == len(chain) else logit), asked + 1
    loss, _ = method.loss(batch)
    want = want / count + (stop / asked if asked else 0)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-10)
    weights = list(method.parameters())
    for got, hand in zip(*(torch.autograd.grad(x, weights) for x in (loss, want)), strict=True):
        torch.testing.assert_close(got, hand, rtol=0, atol=1e-9)


def test_log_probs_of_rollouts_and_their_gradients_are_those_written_out():
    torch.manual_seed(1)
    reasoner = opened(Hrpo(n_latent=3, temperature=0.7))
    method, prompt = reasoner.method, cups_batch(reasoner.codec, 2).prompt
    rolled = rollout(method, prompt, 3, 2, None, 1.0)
    thought, text = score(method, rolled, 1.0)
    assert [thought.kind, text.kind] == ["thought", "token"] and not thought.density
    assert thought.value_BT.shape == (6, 3) and len(thought.value_BT.unique(dim=0)) > 1
    wants = []
    for b in range(6):
        tokens = thought.value_BT[b].tolist()
        x, pos, before = thought_of(method, prompt.ids_BT[b // 3], tokens)
        head = method.backbone.lm.get_output_embeddings()
        logp = [(head(h) / 0.7).log_softmax(-1)[token] for h, token in zip(before, tokens)]
        x = torch.cat([x, method.backbone.embed(rolled.tokens_BT[b : b + 1, :1])], 1)
        last = states_of(method.backbone, x, [*pos, pos[-1] + 1])[-1][-2:]
        logp += [head(h).log_softmax(-1)[token] for h, token in zip(last, rolled.tokens_BT[b])]
        wants.append(torch.stack(logp))
    want_BT = torch.stack(wants)
    got_BT = torch.cat([thought.logp_BT, text.logp_BT], 1)
    torch.testing.assert_close(got_BT, want_BT, rtol=0, atol=1e-10)
    sampled_BT = torch.cat([d.logp_BT for d in rolled.decisions], 1)
    torch.testing.assert_close(sampled_BT, want_BT.detach(), rtol=0, atol=1e-10)
    weight_BT = torch.randn_like(want_BT)
    weights = list(method.parameters())
    for got, hand in zip(*(torch.autograd.grad((x * weight_BT).sum(), weights) for x in (got_BT, want_BT))):
        torch.testing.assert_close(got, hand, rtol=0, atol=1e-9)


def test_a_closed_gate_is_text():
    """Loss, gradient and greedy answers of chain of thought, but for the 1e-6 of the mixture that the op leaves."""
    hybrid, plain = (small_reasoner(config, SMALL, dtype=torch.float64) for config in (Hrpo(n_latent=32), CoT()))
    closed(hybrid.method)
    plain.method.backbone.load_state_dict(hybrid.method.backbone.state_dict())
    batch = cups_batch(plain.codec, 4)
    losses = [r.method.loss(batch)[0] for r in (hybrid, plain)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad(x, list(r.method.backbone.parameters())) for x, r in zip(losses, (hybrid, plain))]
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    with torch.no_grad():
        tokens = [decode(r.method, r.method.think(batch.prompt, Greedy()), Greedy(), n, None)
                  for r, n in ((hybrid, 4), (plain, 36))]  # fmt: skip
    assert torch.equal(tokens[0], tokens[1][:, 32:])


def test_the_gate_begins_between_its_bounds():
    method = small_reasoner(Hrpo(r_min=0.9, r_max=0.95), ModelConfig(n_embd=512, n_head=2), dtype=torch.float64).method
    a_D = (-8 * F.softplus(-method.feedback.decay)).exp()  # at r = 1
    assert 0.9 <= a_D.min() < 0.901 and 0.949 < a_D.max() <= 0.95 and abs(a_D.mean() - 0.925) < 0.003


def test_it_starts_from_chain_of_thought(tmp_path):
    """A gate that is fresh; with it closed, the answers of the run that it starts from."""
    start = Run(Cups(), ModelConfig(n_layer=1, n_embd=32, n_head=2), CoT(), SFT(steps=5, batch=8), Judge(20, 0))
    execute(start, tmp_path, device="cpu")
    run = replace(start, method=Hrpo(n_latent=32), train=SFT(steps=0), init=start.id)
    execute(run, tmp_path, device="cpu")
    cot, hybrid = (hub.load(tmp_path / r.id) for r in (start, run))
    closed(hybrid.method)
    questions = ["01 23 12 . . . . .", "03 12 01 01 13 . 23 02"]
    assert [" ".join(text.split()[-4:]) for text in cot.answer(questions)] == hybrid.answer(questions)


def test_gates_learn_at_rates_of_their_own(tmp_path):
    """Three updates by AdamW written out, whose rates are those of the config."""
    run = Run(Cups(), ModelConfig(n_layer=1, n_embd=16, n_head=2), Hrpo(n_latent=32, gate_lr=3.0, decay_lr=7.0),
              SFT(steps=3, batch=4, lr=0.01, warmup=0, decay=0.0, log_every=1))  # fmt: skip
    trainer, env, mine = trainer_of(run, tmp_path)
    distill.fit(trainer, env)
    by_hand = AdamW(mine, run.train)
    by_hand.scale |= {f"feedback.{name}": 3.0 for name in ("r.weight", "r.bias", "i.weight", "i.bias")}
    by_hand.scale["feedback.decay"] = 7.0
    for step in range(3):
        problems = env.train_batch(run.seed, step, 4)
        by_hand.step(mine.loss(Batch.of(problems, trainer.reasoner.codec))[0], 1.0)
    assert_same_weights(trainer.method, mine)


def test_a_control_learns_what_it_feeds_back_at_the_rate_of_all_else():
    for control in (Pause(Hrpo(n_latent=4)), FixedEmbedding(Hrpo(n_latent=4))):
        assert dict(small_reasoner(control).method.lr_scales) == {}


def test_a_control_draws_no_tokens():
    method = small_reasoner(Pause(Hrpo(n_latent=4)), SMALL).method
    assert method.policy is None
    rolled = rollout(method, cups_batch(small_reasoner(CoT()).codec, 2).prompt, 3, 4, None, 1.0)
    assert [d.kind for d in rolled.decisions] == ["token"]


def test_without_latents_it_is_trained_on_the_answer_alone():
    hybrid, plain = (small_reasoner(config, SMALL, dtype=torch.float64) for config in (Hrpo(n_latent=0), NoCoT()))
    plain.method.backbone.load_state_dict(hybrid.method.backbone.state_dict())
    got, want = (r.method.loss(ragged_batch(r.codec))[0] for r in (hybrid, plain))
    assert torch.equal(got, want)


def test_chains_that_are_longer_than_a_thought_are_refused():
    reasoner = small_reasoner(Hrpo(n_latent=8), SMALL)
    with pytest.raises(UserError, match=r"a chain has 12 tokens, method\.n_latent is 8"):
        reasoner.method.loss(ragged_batch(reasoner.codec))


def test_what_is_out_of_range_is_refused():
    for change, said in (
        ({"r_min": 0.0}, "0 < r_min <= r_max < 1, got 0.0 and 0.999"),
        ({"r_max": 1.0}, "0 < r_min <= r_max < 1, got 0.99 and 1.0"),
        ({"r_min": 0.9, "r_max": 0.8}, "0 < r_min <= r_max < 1, got 0.9 and 0.8"),
        ({"temperature": -1.0}, r"method\.temperature must be > 0"),
        ({"gate_lr": -1.0}, r"method\.gate_lr must be at least 0"),
        ({"policy": Gaussian()}, r"method\.policy of hrpo must be none, .* got gaussian"),
        ({"feedback": "norm"}, r"method\.feedback of hrpo must be soft, got 'norm'"),
    ):
        with pytest.raises(UserError, match=said):
            Hrpo(**change)
