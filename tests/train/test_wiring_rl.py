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
from train.config import RLVR, Run
from train.loop import seed_of

METHOD = Sim(n_latent=4, stride=2, halt=LearnedStop(bias=-0.5))
MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2)
LEARN = RLVR(
    steps=1, batch=4, group=4, lr=0.03, warmup=2, weight_decay=0.1, clip=0.5, stop_lr=2.0, std_floor=1 / 16, epochs=2,
    minibatches=2, clip_low=0.02, clip_high=0.05, entropy=0.03, kl=0.4, temperature=0.8, latent_cost=1 / 16,
)  # fmt: skip


def choices(
    method, ids_1T, used: int, tokens: list[int], thoughts_KD: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of every choice of one rollout: its stops and thoughts, then its tokens.

    A thought's entropy, a density's, counts as 0.
    """
    backbone, k, stride = method.backbone, method.config.n_latent, method.stride
    h_BD, context = backbone.read(ids_1T)
    found = []
    for i in range(k):
        stop = Bernoulli(logits=method.stop.linear(h_BD)[0, 0])
        found.append((stop.log_prob(torch.tensor(float(i == used)).double()), stop.entropy()))
        if i == used:
            break
        x_BD = h_BD
        if thoughts_KD is not None:
            std = method.config.policy.std * h_BD.detach().square().mean().sqrt()
            found.append((Normal(h_BD[0], std).log_prob(thoughts_KD[i]).sum(), torch.zeros(())))
            x_BD = thoughts_KD[i][None]
        h_B1D, context = backbone.step(x_BD[:, None], context.skip(stride - 1))
        h_BD = h_B1D[:, 0]
    context = context.skip(stride * (k - used))
    for token in tokens:
        policy = Categorical(logits=backbone.head(h_BD)[0] / temperature)
        found.append((policy.log_prob(torch.tensor(token)), policy.entropy()))
        h_B1D, context = backbone.step(backbone.embed(torch.tensor([[token]])), context)
        h_BD = h_B1D[:, 0]
    logp, entropy = zip(*found)
    return torch.stack(logp), torch.stack(entropy)


def group_advantages(rewards: list[float], c: RLVR) -> list[float]:
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    return [(r - mean) / (max(std, c.std_floor) if c.advantage == "grpo" else 1) for r in rewards]


@pytest.mark.parametrize(
    "advantage, thoughts", [("grpo", Deterministic()), ("dr_grpo", Deterministic()), ("dr_grpo", Gaussian(std=0.2))]
)
def test_an_update_is_the_one_that_the_config_says(advantage, thoughts, tmp_path):
    c = RLVR(**{**vars(LEARN), "advantage": advantage})
    trainer, env, policy = trainer_of(Run(Cups(), MODEL, replace(METHOD, policy=thoughts), c), tmp_path)
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
    adv = [a for p in range(4) for a in group_advantages(rewards[4 * p : 4 * p + 4], c)]
    of = lambda method, b: choices(method, prompt.ids_BT[b // 4][None], *rows[b], c.temperature)  # noqa: E731
    with torch.no_grad():
        old, reference = ([of(start, b)[0] for b in range(16)] for _ in range(2))

    optimizer, below, above, apart = AdamW(policy, c, c.stop_lr), 0, 0, 0.0
    for _ in range(c.epochs):
        for minibatch in (range(8), range(8, 16)):
            gain = bonus = kl = count = 0
            for b in minibatch:
                logp, entropy = of(policy, b)
                for t in range(len(logp)):
                    rho = (logp[t] - old[b][t]).exp()
                    bounded = rho.clamp(1 - c.clip_low, 1 + c.clip_high)
                    gain = gain + torch.minimum(rho * adv[b], bounded * adv[b])
                    below, above = below + int(rho < 1 - c.clip_low), above + int(rho > 1 + c.clip_high)
                    gap = reference[b][t] - logp[t]
                    kl = kl + gap.exp() - 1 - gap
                bonus, count = bonus + entropy.sum(), count + len(logp)
            apart = max(apart, float(kl.detach()))
            optimizer.step(-gain / count - c.entropy * bonus / count + c.kl * kl / count, rate=1 / 2)
    assert below and above and apart > 0.1  # the case is one in which bounds and reference matter
    assert len({len(tokens) + used for used, tokens, _ in rows}) > 1 and len(set(adv[:8]) & set(adv[8:])) < 4
    exact = 1e-9 if advantage == "dr_grpo" else 5e-5  # rewards are fp32: these are whole sixteenths, a deviation is not
    assert_same_weights(trainer.method, policy, exact)
