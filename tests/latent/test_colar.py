"""CoLaR's pooled groups, its losses, its stop and the density that RL samples from, written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels.errors import UserError
from latent.config import LearnedStop
from latent.generate import rollout, score
from latent.methods import Colar, NoCoT
from latent.policies import Deterministic, Gaussian
from latent.thought import Greedy
from tests.helpers import SMALL, cups_batch, ragged_prompt, row_of, small_reasoner
from tests.latent.by_hand import ce_of, ragged_batch, states_of

HEADS = {
    "nll": Colar(n_latent=4, r=3),
    "nll, fixed width": Colar(n_latent=4, r=3, policy=Gaussian(std=0.7), latent_weight=0.5),
    "mse": Colar(n_latent=6, r=2, latent_loss="mse", stride=2),
    "mse of the prediction alone": Colar(n_latent=3, r=4, latent_loss="mse", policy=Deterministic()),
    "stop": Colar(n_latent=4, r=3, halt=LearnedStop(bias=-1.0)),
}


def opened(config):
    """A reasoner in fp64 whose head hears r, and whose widths differ."""
    torch.manual_seed(0)
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    torch.nn.init.normal_(reasoner.method.head.told.weight)
    if getattr(config.policy, "learned", False):
        torch.nn.init.normal_(reasoner.method.policy.log_std.weight, std=0.1)
    return reasoner


def head_of(method, h_D, r):
    """Mean and width of a latent from the state before it: the MLP by its formula, at the embeddings' scale."""
    first, _, second, norm, last = method.head.mlp
    x = first.weight @ (h_D + method.head.told.weight[r - 1]) + first.bias
    x = second.weight @ (x * (1 + torch.erf(x / math.sqrt(2))) / 2) + second.bias
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    mean_D = (last.weight @ x + last.bias) * method.head.scale
    if method.policy is None:
        return mean_D, torch.zeros_like(mean_D)
    rms = mean_D.detach().square().mean().sqrt()
    if not method.config.policy.learned:
        return mean_D, method.config.policy.std * rms.expand_as(mean_D)
    return mean_D, rms * (method.policy.log_std.weight @ h_D + method.policy.log_std.bias).exp()


def by_hand(method, batch, r, u_BK):
    """The loss of a batch at a compression, with the numbers that choose each group's word."""
    config, backbone = method.config, method.backbone
    table, head = backbone.lm.get_input_embeddings().weight, backbone.lm.get_output_embeddings()
    most = math.ceil(config.n_latent * config.r / r)
    ce, latent, stop, words, groups, asked = 0.0, 0.0, 0.0, 0, 0, 0
    for b, (ids, real, steps, answer) in enumerate(
        zip(batch.prompt.ids_BT, batch.prompt.mask_BT, batch.steps, batch.answers, strict=True)
    ):
        ids, chain = ids[real], [t for step in steps for t in step]
        cut = [chain[i : i + r] for i in range(0, len(chain), r)]
        x_KD = torch.stack([sum(table[t] for t in group) / math.sqrt(len(group)) for group in cut])
        x = torch.cat([backbone.embed(ids[None]), x_KD[None], backbone.embed(torch.tensor([answer[:-1]]))], 1)
        n, stride = len(ids), config.stride
        after = n + stride * max(most, config.n_latent)
        pos = [*range(n), *(n + stride * (i + 1) - 1 for i in range(len(cut))), *range(after, after + len(answer) - 1)]
        states = states_of(backbone, x, pos)[-1]
        ce = ce + ce_of(backbone, states[n + len(cut) - 1 :], answer)
        for i, group in enumerate(cut):
            h_D, word = states[n - 1 + i], group[int(u_BK[b, i] * len(group))]
            ce = ce - head(h_D).log_softmax(-1)[word]
            mean_D, std_D = head_of(method, h_D, r)
            target_D = x_KD[i].detach()
            if config.latent_loss == "nll":
                each = ((target_D - mean_D) / std_D) ** 2 / 2 + std_D.log() + math.log(2 * math.pi) / 2
            else:
                each = ((mean_D - target_D) ** 2 + std_D**2) / method.head.scale**2
            latent = latent + each.mean()
        if method.stop is not None:
            for i in range(min(len(cut) + 1, most)):
                logit = method.stop.linear(states[n - 1 + i])[0]
                stop = stop + F.softplus(-logit if i == len(cut) else logit)
                asked += 1
        words, groups = words + len(cut) + len(answer), groups + len(cut)
    total = ce / words + config.latent_weight * latent / groups
    return total + stop / asked if method.stop is not None else total


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("seed", range(6))
def test_the_loss_and_its_gradient_are_those_written_out(name, seed):
    """Chains of 12, 4 and 8 tokens at the compression that the seed draws."""
    reasoner = opened(HEADS[name])
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    batch.generator = torch.Generator().manual_seed(seed)
    again = torch.Generator().manual_seed(seed)
    r = 1 + int(torch.randint(5, (), generator=again))
    u_BK = torch.stack([torch.rand(3, generator=again) for _ in range(-(-12 // r))], 1)
    want = by_hand(method, batch, r, u_BK)
    loss, logged = method.loss(batch)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-9)
    rms = method.backbone.lm.get_input_embeddings().weight.detach().square().mean().sqrt()
    torch.testing.assert_close(method.head.scale, rms, rtol=1e-6, atol=0)
    weights = list(method.parameters())
    for got, hand in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, want)), strict=True):
        assert (got is None) == (hand is None)
        if got is not None:
            torch.testing.assert_close(got, hand, rtol=0, atol=1e-8)
    assert ("stop_ce" in logged) == (name == "stop")


def test_every_compression_is_drawn_and_chosen_again_by_the_number_of_latents():
    method = small_reasoner(Colar(n_latent=8, r=4), SMALL).method
    batch = cups_batch(small_reasoner(NoCoT(), SMALL).codec)
    assert {method.draw(batch)[0] for _ in range(100)} == {1, 2, 3, 4, 5}
    told = {}
    for steps in (None, 0, 1, 7, 8, 11, 16, 17, 32, 33):
        with torch.no_grad():
            method.think(ragged_prompt(), Greedy(), steps=steps)
        told[steps] = int(method.head.now)
    assert told == {None: 4, 0: 4, 1: 5, 7: 5, 8: 4, 11: 3, 16: 2, 17: 2, 32: 1, 33: 1}


@pytest.mark.parametrize("steps, r", [(None, 3), (6, 2), (12, 1)])
def test_greedy_thoughts_feed_the_heads_mean(steps, r):
    method = opened(Colar(n_latent=4, r=3)).method
    prompt = ragged_prompt()
    with torch.no_grad():
        thought = method.think(prompt, Greedy(), steps=steps)
        for b in range(3):
            ids = row_of(prompt, b).ids_BT
            x, pos = method.backbone.embed(ids), list(range(ids.shape[1]))
            for i in range(steps or 4):
                h_D = states_of(method.backbone, x, pos)[-1][-1]
                torch.testing.assert_close(thought.states_UKD[b, i], h_D, rtol=0, atol=1e-10)
                x = torch.cat([x, head_of(method, h_D, r)[0][None, None]], 1)
                pos.append(len(pos))


def test_rollouts_sample_the_heads_density():
    reasoner = opened(Colar(n_latent=3, r=4))
    method, prompt = reasoner.method, cups_batch(reasoner.codec, 1).prompt
    rolled = rollout(method, prompt, 5, 2, None, 1.0)
    thought, _ = score(method, rolled, 1.0)
    assert thought.density
    for b in range(5):
        x, pos, want = method.backbone.embed(prompt.ids_BT), list(range(prompt.ids_BT.shape[1])), []
        for value_D in thought.value_BT[b]:
            mean_D, std_D = head_of(method, states_of(method.backbone, x, pos)[-1][-1], 4)
            want.append((-(((value_D - mean_D) / std_D) ** 2) / 2 - std_D.log() - math.log(2 * math.pi) / 2).sum())
            x, pos = torch.cat([x, value_D[None, None]], 1), [*pos, len(pos)]
        torch.testing.assert_close(thought.logp_BT[b], torch.stack(want), rtol=0, atol=1e-9)
        torch.testing.assert_close(rolled.decisions[0].logp_BT[b], torch.stack(want).detach(), rtol=0, atol=1e-9)


def test_problems_without_any_chain_are_answered_at_once():
    colar, plain = (small_reasoner(config, SMALL, dtype=torch.float64) for config in (Colar(n_latent=2), NoCoT()))
    plain.method.backbone.load_state_dict(colar.method.backbone.state_dict())
    batch = cups_batch(plain.codec, 3)
    batch.steps = [[], [], []]
    batch.generator = torch.Generator().manual_seed(0)
    _, logged = colar.method.loss(batch)
    thought = colar.method.think(batch.prompt, Greedy(), steps=0)
    assert thought.used_B.tolist() == [0, 0, 0] and float(logged["latent"]) == 0
    assert colar.method.counts(batch) == [12, 0]


def test_what_is_out_of_range_is_refused():
    for change, said in (
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"r": 6}, r"method\.r must be at most method\.r_max, got 6 and 5"),
        ({"latent_weight": -1.0}, r"method\.latent_weight must be at least 0"),
        ({"policy": Deterministic()}, r"latent_loss nll needs method\.policy gaussian"),
        ({"feedback": "soft"}, r"method\.feedback of colar must be project, got 'soft'"),
        ({"n_latent": -1}, "n_latent must be at least 0, got -1"),
    ):
        with pytest.raises(UserError, match=said):
            Colar(**change)
    reasoner = small_reasoner(Colar(n_latent=2, r=4), SMALL)
    with pytest.raises(UserError, match=r"a chain has 12 tokens, method\.n_latent \* method\.r are 8"):
        reasoner.method.loss(ragged_batch(reasoner.codec))
