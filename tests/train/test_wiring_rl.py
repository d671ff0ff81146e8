"""An RL update recomputed by hand, from config to weights: row by row, in fp64, without the code it checks."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from eval.environments import Cups
from latent.config import LearnedStop, ModelConfig
from latent.generate import rollout
from latent.methods import Sim
from latent.policies import Deterministic, Gaussian
from tests.train.by_hand import AdamW, assert_same_weights, trainer_of
from train import rlvr
from train.algorithms import GRPO, PPO, DrGRPO
from train.config import RLVR, Run
from train.data import seed_of

METHOD = Sim(n_latent=4, stride=2, halt=LearnedStop(bias=-0.5))
MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2)
LEARN = RLVR(
    steps=1, batch=4, group=4, lr=0.03, warmup=2, weight_decay=0.1, clip=0.5, stop_lr=2.0, epochs=2, minibatches=2,
    clip_low=0.02, clip_high=0.05, entropy=0.03, kl=0.4, temperature=0.8, latent_cost=1 / 16,
    algorithm=GRPO(std_floor=1 / 16),
)  # fmt: skip


def choices(
    method, ids_1T, used: int, tokens: list[int], thoughts_KD: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, ...]:
    """Log-probability and entropy of every choice of one rollout in order, and what a critic expects before it.

    A thought's entropy, a density's, counts as 0.
    """
    backbone, k, stride = method.backbone, method.config.n_latent, method.stride
    h_BD, context = backbone.read(ids_1T)
    found = []
    expects = lambda h_BD: method.critic(h_BD.detach())[0, 0] if method.critic else torch.zeros(())  # noqa: E731
    for i in range(k):
        stop = Bernoulli(logits=method.stop.linear(h_BD)[0, 0])
        found.append((stop.log_prob(torch.tensor(float(i == used)).double()), stop.entropy(), expects(h_BD)))
        if i == used:
            break
        x_BD = h_BD
        if thoughts_KD is not None:
            std = method.config.policy.std * h_BD.detach().square().mean().sqrt()
            found.append((Normal(h_BD[0], std).log_prob(thoughts_KD[i]).sum(), torch.zeros(()), expects(h_BD)))
            x_BD = thoughts_KD[i][None]
        h_B1D, context = backbone.step(x_BD[:, None], context.skip(stride - 1))
        h_BD = h_B1D[:, 0]
    context = context.skip(stride * (k - used))
    for token in tokens:
        policy = Categorical(logits=backbone.head(h_BD)[0] / temperature)
        found.append((policy.log_prob(torch.tensor(token)), policy.entropy(), expects(h_BD)))
        h_B1D, context = backbone.step(backbone.embed(torch.tensor([[token]])), context)
        h_BD = h_B1D[:, 0]
    return tuple(torch.stack(each) for each in zip(*found))


def credited(rewards: list[float], algorithm, expected: list[torch.Tensor]) -> list[list[float]]:
    """The advantage of every choice of each rollout of one group."""
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    if isinstance(algorithm, PPO):
        adv = []
        for r, v in zip(rewards, expected):
            deltas = [(float(v[t + 1]) if t + 1 < len(v) else r) - float(v[t]) for t in range(len(v))]
            adv.append([sum(algorithm.lam ** (n - t) * deltas[n] for n in range(t, len(v))) for t in range(len(v))])
        return adv
    scale = max(std, algorithm.std_floor) if isinstance(algorithm, GRPO) else 1
    return [[(r - mean) / scale] * len(v) for r, v in zip(rewards, expected)]


@pytest.mark.parametrize(
    "algorithm, thoughts",
    [
        (LEARN.algorithm, Deterministic()),
        (DrGRPO(), Deterministic()),
        (DrGRPO(), Gaussian(std=0.2)),
        (PPO(lam=0.75, critic_weight=2.0), Deterministic()),
    ],
    ids=["grpo", "dr-grpo", "gaussian", "ppo"],
)
def test_an_update_is_the_one_that_the_config_says(algorithm, thoughts, tmp_path):
    c = replace(LEARN, algorithm=algorithm)
    trainer, env, policy = trainer_of(Run(Cups(), MODEL, replace(METHOD, policy=thoughts), c), tmp_path)
    if trainer.method.critic is not None:
        torch.nn.init.normal_(trainer.method.critic.weight)
        policy.critic = copy.deepcopy(trainer.method.critic)
    start = copy.deepcopy(policy)
    rlvr.fit(trainer, env)

    torch.manual_seed(seed_of(0, 0, 0))
    problems = env.train_batch(0, 0, c.batch)
    prompt = trainer.reasoner.codec.prompt([p.question for p in problems])
    rolled = rollout(start, prompt, c.group, env.answer_tokens, None, c.temperature)
    texts = trainer.reasoner.codec.texts(rolled.tokens_BT)
    drawn = [d.value_BT for d in rolled.decisions if d.kind == "thought"]
    assert len(drawn) == isinstance(thoughts, Gaussian)
    rows = list(zip(rolled.used_B.tolist(), rolled.tokens_BT.tolist(), drawn[0] if drawn else [None] * 16))
    rewards = [env.verify(problems[b // 4], texts[b]).reward - c.latent_cost * rows[b][0] for b in range(16)]
    of = lambda method, b: choices(method, prompt.ids_BT[b // 4][None], *rows[b], c.temperature)  # noqa: E731
    with torch.no_grad():
        before = [of(start, b) for b in range(16)]
    old = reference = [logp for logp, *_ in before]
    expected = [v for *_, v in before]
    adv = [a for p in range(0, 16, 4) for a in credited(rewards[p : p + 4], algorithm, expected[p : p + 4])]

    optimizer, below, above, apart = AdamW(policy, c, c.stop_lr), 0, 0, 0.0
    for _ in range(c.epochs):
        for minibatch in (range(8), range(8, 16)):
            gain = bonus = kl = count = compared = error = 0
            for b in minibatch:
                logp, entropy, value = of(policy, b)
                for t in range(len(logp)):
                    rho = (logp[t] - old[b][t]).exp()
                    bounded = rho.clamp(1 - c.clip_low, 1 + c.clip_high)
                    gain = gain + torch.minimum(rho * adv[b][t], bounded * adv[b][t])
                    below, above = below + int(rho < 1 - c.clip_low), above + int(rho > 1 + c.clip_high)
                    gap = reference[b][t] - logp[t]
                    real = isinstance(thoughts, Gaussian) and entropy[t] == 0  # of a thought, which has no part in it
                    kl = kl if real else kl + gap.exp() - 1 - gap
                    compared += not real
                error = error + (value - torch.tensor(adv[b]).double() - expected[b]).square().sum() / 2
                bonus, count = bonus + entropy.sum(), count + len(logp)
            apart = max(apart, float(kl.detach()))
            loss = -gain / count - c.entropy * bonus / count + c.kl * kl / compared
            loss = loss + algorithm.critic_weight * error / count if isinstance(algorithm, PPO) else loss
            optimizer.step(loss, rate=1 / 2)
    assert below and above and apart > 0.1  # the case is one in which bounds and reference matter
    assert len({len(tokens) + used for used, tokens, _ in rows}) > 1
    assert len({a[0] for a in adv[:8]} & {a[0] for a in adv[8:]}) < 4
    exact = 5e-5 if isinstance(algorithm, GRPO) else 1e-9  # rewards are fp32: whole sixteenths, a deviation is not
    assert_same_weights(trainer.method, policy, exact)
