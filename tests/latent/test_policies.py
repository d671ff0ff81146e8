"""Random thoughts: drawn from a density that is written out by hand, replayed, and learned from."""

import math
from dataclasses import replace

import pytest
import torch

from kernels.errors import UserError
from latent.config import Converged, LearnedStop, ModelConfig
from latent.generate import rollout, score
from latent.methods import Coconut, Pause, Sim
from latent.policies import Gaussian
from latent.policies.gaussian.policy import GaussianPolicy
from latent.thought import Greedy, Replay, Sample
from tests.helpers import cups_batch, small_reasoner

TINY = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=64)
FAMILIES = {"gpt2": 1e-9, "llama": 1e-5}  # and how close; transformers turns positions in fp32


def reasoner_of(method, family="gpt2"):
    return small_reasoner(method, replace(TINY, family=family), dtype=torch.float64)


def by_hand(method, prompt_ids, thoughts_KD, text_ids):
    """Log-densities (K,) of thoughts and log-probabilities (T,) of a text, one row, the whole read anew each time."""
    lm, backbone, config = method.backbone.lm, method.backbone, method.config
    x = backbone.embed(prompt_ids[None])
    place = list(range(len(prompt_ids)))

    def last():
        at = {"position_ids": torch.tensor([place]), "attention_mask": torch.ones(1, len(place))}
        out = lm(inputs_embeds=x, use_cache=False, output_hidden_states=True, **at)
        return out.hidden_states[-1][0, -1], out.logits[0, -1]

    density = []
    for thought_D in thoughts_KD:
        h_D, _ = last()
        mean_D = h_D if config.feedback == "hidden" else method.feedback(h_D[None])[0]
        std = config.policy.std * mean_D.detach().square().mean().sqrt()
        if config.policy.learned:
            std = std / config.policy.std * method.policy.log_std(h_D).exp()
        each = -((thought_D - mean_D) ** 2) / (2 * std**2) - torch.log(std) - math.log(2 * math.pi) / 2
        density.append(each.sum())
        x = torch.cat([x, thought_D[None, None]], 1)
        place.append(place[-1] + config.stride)
    logp = []
    for token in text_ids:
        _, logits_V = last()
        logp.append(logits_V.log_softmax(-1)[token])
        x = torch.cat([x, backbone.embed(token[None, None])], 1)
        place.append(place[-1] + 1)
    return torch.stack(density), torch.stack(logp)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "method",
    [
        Sim(n_latent=3, stride=2, policy=Gaussian(std=0.5)),
        Sim(n_latent=2, feedback="project", policy=Gaussian(std=0.3, learned=True)),
    ],
    ids=["fixed", "learned"],
)
def test_log_probs_and_their_gradients_are_those_written_out(method, family):
    torch.manual_seed(1)
    close = FAMILIES[family]
    reasoner = reasoner_of(method, family)
    made = reasoner.method
    if method.policy.learned:
        torch.nn.init.normal_(made.policy.log_std.weight, std=0.1)
    prompt = cups_batch(reasoner.codec, 2).prompt
    rolled = rollout(made, prompt, 3, 4, None, 1.0)
    assert [d.kind for d in rolled.decisions] == ["thought", "token"]
    now = score(made, rolled, 1.0)
    mask = torch.ones_like(prompt.ids_BT, dtype=torch.bool) if prompt.mask_BT is None else prompt.mask_BT
    wants = [
        by_hand(made, prompt.ids_BT[b // 3][mask[b // 3]], rolled.decisions[0].value_BT[b], rolled.tokens_BT[b])
        for b in range(6)
    ]
    for decision, sampled, want in zip(now, rolled.decisions, zip(*wants)):
        want = torch.stack(want)
        torch.testing.assert_close(decision.logp_BT, want, atol=close, rtol=close)
        torch.testing.assert_close(sampled.logp_BT, want.detach(), atol=close, rtol=close)
        weight = torch.randn_like(want)
        params = [p for n, p in made.named_parameters() if not n.startswith(("decoder", "stop"))]
        got, hand = (
            torch.autograd.grad((x * weight).sum(), params, retain_graph=True, allow_unused=True)
            for x in (decision.logp_BT, want)
        )
        for a, b in zip(got, hand):
            assert (a is None) == (b is None) or not bool((a if b is None else b).any())
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, atol=10 * close, rtol=10 * close)
    assert now[0].density and not now[1].density


def test_rollouts_of_one_prompt_think_differently_and_the_draws_are_gaussian():
    made = reasoner_of(Sim(n_latent=1, policy=Gaussian(std=0.25))).method
    prompt = cups_batch(small_reasoner(Sim()).codec, 1).prompt
    choose = Sample()
    thought = made.think(prompt, choose, 4000)
    (drawn,) = thought.decisions
    h_D = thought.states_UKD[0, 0]
    z_BD = (drawn.value_BT[:, 0] - h_D) / (0.25 * h_D.square().mean().sqrt())
    assert abs(float(z_BD.mean())) < 0.02 and abs(float(z_BD.std()) - 1) < 0.02  # 64,000 draws: five standard errors
    assert len(thought.used_U) == 4000 and thought.row_B is None
    assert float((z_BD.T.corrcoef() - torch.eye(16)).abs().max()) < 0.09
    assert drawn.entropy_BT[0, 0] == pytest.approx(
        16 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.25 * float(h_D.square().mean().sqrt())))
    )


@pytest.mark.parametrize("method", [Sim(n_latent=3), Coconut(n_latent=3, first_stage=3), Pause(Sim(n_latent=3))])
def test_greedy_thoughts_are_those_of_no_policy(method):
    torch.manual_seed(2)
    plain = reasoner_of(method)
    torch.manual_seed(2)
    inner = getattr(method, "of", method)
    random = replace(inner, policy=Gaussian(std=5.0))
    noisy = reasoner_of(replace(method, of=random) if inner is not method else random)
    prompt = cups_batch(plain.codec, 4).prompt
    want, got = (r.method.think(prompt, Greedy()).states_UKD for r in (plain, noisy))
    assert torch.equal(want, got)
    sampled = noisy.method.think(prompt, Sample()).states_UKD
    assert not torch.allclose(sampled, want, atol=0.1)


def test_choices_are_in_the_order_in_which_they_were_made():
    """Asked before each latent whether to stop, then for what to feed back; the text after all of them."""
    reasoner = reasoner_of(Sim(n_latent=3, halt=LearnedStop(bias=-2.0), policy=Gaussian()))
    prompt = cups_batch(reasoner.codec, 3).prompt
    rolled = rollout(reasoner.method, prompt, 4, 4, None, 1.0)
    halt, thought, token = rolled.decisions
    assert [d.kind for d in rolled.decisions] == ["halt", "thought", "token"]
    assert halt.time_T.tolist() == [0, 2, 4] and thought.time_T.tolist() == [1, 3, 5]
    assert token.time_T.tolist() == [6, 7, 8, 9] and {d.turn for d in rolled.decisions} == {0}
    assert torch.equal(thought.mask_BT, halt.mask_BT & (halt.value_BT == 0))  # one that stopped feeds nothing back
    assert torch.equal(thought.mask_BT.sum(1), rolled.used_B)
    for now, was in zip(score(reasoner.method, rolled, 1.0), rolled.decisions):
        assert now.time_T.tolist() == was.time_T.tolist()
        torch.testing.assert_close(
            torch.where(was.mask_BT, now.logp_BT, 0), torch.where(was.mask_BT, was.logp_BT, 0), atol=1e-9, rtol=1e-9
        )


def test_a_rule_that_stops_sees_the_random_states_of_each_rollout():
    method = Sim(n_latent=6, halt=Converged(below=1.2, hits=1), policy=Gaussian(std=1.0))
    made = reasoner_of(method).method
    prompt = cups_batch(small_reasoner(method).codec, 2).prompt
    thought = made.think(prompt, Sample(), 16)
    assert len(set(thought.used_B[:16].tolist())) > 1
    again = made.think(prompt, Replay(thought.decisions, used_B=thought.used_B), 16)
    assert torch.equal(again.used_B, thought.used_B)
    torch.testing.assert_close(again.h_UTD, thought.h_UTD, atol=1e-10, rtol=0)


def test_a_width_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"method\.policy\.std must be > 0"):
        Gaussian(std=0.0)


@pytest.mark.parametrize("learned", [False, True])
def test_a_density_in_bfloat16_is_as_fine_as_in_fp32(learned):
    """Ratios are of differences of densities of hundreds of nats: in bfloat16 these have no digit after the point."""
    torch.manual_seed(0)
    policy = GaussianPolicy(Gaussian(std=0.1, learned=learned), 256)
    x_BD, h_BD = (torch.randn(5, 256, dtype=torch.bfloat16) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        dist = policy(x_BD, h_BD)
        value_BD = dist.sample()
        logp_B = dist.log_prob(value_BD)
    assert logp_B.dtype == torch.float32
    std_BD = dist.base_dist.scale.double()
    apart_BD = (value_BD.double() - x_BD.double()) / std_BD
    want_B = (-0.5 * apart_BD**2 - std_BD.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    assert want_B.abs().min() > 50 and (logp_B.double() - want_B).abs().max() < 1e-3
    scale_B1 = x_BD.double().square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(std_BD, (0.1 * scale_B1).expand_as(std_BD), rtol=1e-2 if learned else 1e-6, atol=0)
