"""Supervised updates recomputed by hand, from config to weights, on ragged texts and in fp64."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from eval.environments import GSM8K
from latent.config import LearnedStop, ModelConfig
from latent.methods import Coconut, Sim
from latent.text import Batch
from tests.train.by_hand import AdamW, assert_same_weights, trainer_of
from train import distill
from train.config import SFT, Run
from train.data import seed_of

MODEL = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=192, vocab_size=300)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """Problems with chains of 0 to 9 steps and answers of 1 to 3 digits."""
    path = tmp_path_factory.mktemp("data") / "ragged.json"
    rows = [
        {"question": f"Say {i}.", "steps": [f"<<{j}+1={j + 1}>>" for j in range((i * 3) % 10)], "answer": str(i**2)}
        for i in range(40)
    ]
    path.write_text(json.dumps(rows))
    return GSM8K(train=str(path), max_chain=192)


def states_by_hand(method, ids, k: int):
    """The trace of one prompt and the inputs of its latents: the whole sequence through the family's forward."""
    x, pos, states = method.backbone.embed(ids), list(range(ids.shape[1])), []
    for i in range(k + 1):
        states.append(read(method, x, pos)[:, -1])
        if i < k:
            x = torch.cat([x, states[-1][:, None]], 1)
            pos.append(ids.shape[1] + method.stride * (i + 1) - 1)
    return states, x, pos


def read(method, x, pos):
    mask = torch.ones(x.shape[:2], dtype=torch.long)
    decoder = method.backbone.decoder[0]
    return decoder(inputs_embeds=x, position_ids=torch.tensor([pos]), attention_mask=mask, use_cache=False)[0]


def nats(method, ids, text, used: int, k: int) -> torch.Tensor:
    """Summed cross-entropy of a text that follows `used` of `k` latents: its positions are those after all k."""
    states, x, pos = states_by_hand(method, ids, used)
    n = ids.shape[1]
    x = torch.cat([x, method.backbone.embed(torch.tensor([text[:-1]], dtype=torch.long))], 1)
    h = read(method, x, pos + list(range(n + method.stride * k, n + method.stride * k + len(text) - 1)))
    h = torch.cat([states[used], h[0, len(pos) :]])
    return F.cross_entropy(method.backbone.head(h), torch.tensor(text), reduction="sum")


@pytest.mark.parametrize(
    "more",
    [{}, {"supervise_every": 2, "early_stops": "last"}, {"supervise_every": 3, "early_stops": "never"}],
    ids=["all", "every second", "every third"],
)
@pytest.mark.parametrize("stop_weight", [0.0, 0.6])
def test_a_step_of_sim_is_the_one_that_the_config_says(more, stop_weight, ragged, tmp_path):
    """Each latent's own step, all that follow it where there are more steps than latents, weighted; early stops too,
    and what a stop is taught."""
    config = Sim(n_latent=4, stride=2, step_weight=0.7, step_tokens=48, halt=LearnedStop(), **more)
    config = replace(config, stop_weight=stop_weight)
    c = SFT(steps=2, batch=8, lr=0.01, warmup=4, decay=0.0, weight_decay=0.2, beta2=0.9, clip=0.3, log_every=1)
    logged = []
    say = lambda event: logged.append(event["metrics"])  # noqa: E731
    trainer, env, method = trainer_of(Run(ragged, MODEL, config, c, seed=3), tmp_path, say)
    distill.fit(trainer, env)

    optimizer, codec = AdamW(method, c), trainer.reasoner.codec
    for step in range(2):
        generator = torch.Generator().manual_seed(seed_of(3, step, 0))
        some, half = (torch.rand(8, generator=generator) for _ in range(2))
        text_nats = step_nats = text_count = step_count = stop_nats = stop_count = 0
        problems = env.train_batch(3, step, 8)
        for b, p in enumerate(problems):
            ids = torch.tensor([codec.question(p.question)])
            n, answer = len(p.steps), codec.answer(p.answer)
            enough = min(4, max(1, n))  # no chain here repeats its last step
            used = 4 if half[b] < 0.5 or config.early_stops == "never" else enough + int(some[b] * (5 - enough))
            text_nats, text_count = text_nats + nats(method, ids, answer, used, 4), text_count + len(answer)
            states, _, _ = states_by_hand(method, ids, 4)
            for i in range(min(enough, 3) + 1):
                logit = method.stop.linear(states[i][0])[0]
                stop_nats = stop_nats - F.logsigmoid(logit if i == enough else -logit)
                stop_count += 1
            for i in range(config.supervise_every - 1, min(4, n), config.supervise_every):
                mine = p.steps[i : i + 1] if n <= 4 else [s for j, s in enumerate(p.steps) if j * 4 // n == i]
                wanted = sum(map(codec.step, mine), ())
                weight = method.decoder.places.weight.view(48, 16, 16)[: len(wanted)]
                bias = method.decoder.places.bias.view(48, 16)[: len(wanted)]
                h = torch.einsum("tij,j->ti", weight, states[1 + i][0]) + bias
                step_nats = step_nats + F.cross_entropy(method.backbone.head(h), torch.tensor(wanted), reduction="sum")
                step_count += len(wanted)
        assert len({len(p.steps) for p in problems}) > 3
        loss = text_nats / text_count + 0.7 * step_nats / step_count
        if stop_weight:  # else it has no gradient, and so no weight decay
            loss = loss + stop_weight * stop_nats / stop_count
        norm = optimizer.step(loss, rate=(step + 1) / 4)
        assert logged[step]["loss"] == pytest.approx(float(loss.detach()), abs=1e-9)
        assert logged[step]["grad_norm"] == pytest.approx(norm, rel=1e-9) and norm > 0.3
    assert_same_weights(trainer.method, method)


def test_a_curriculum_draws_its_stage_as_the_config_says(ragged, tmp_path):
    """A share `earlier` of batches comes from a stage before; the losses are those of the stage drawn, worked out."""
    config = Coconut(n_latent=3, stride=2, first_stage=3, earlier=0.5, advance_at=0.999)
    c = SFT(steps=6, batch=4, lr=0.01, warmup=0, log_every=1)
    seen = []
    trainer, env, method = trainer_of(
        Run(ragged, MODEL, config, c),
        tmp_path,
        lambda event: seen.append((event["metrics"], copy.deepcopy(trainer.method))),
    )
    distill.fit(trainer, env)
    codec, stages = trainer.reasoner.codec, []
    for step in range(6):
        generator = torch.Generator().manual_seed(seed_of(0, step, 0))
        stage = 3
        if float(torch.rand((), generator=generator)) < 0.5:
            stage = int(torch.randint(3, (), generator=generator))
        stages.append(stage)
        before = method if step == 0 else seen[step - 1][1]
        batch = Batch.of(env.train_batch(0, step, 4), codec)
        with torch.no_grad():
            rows = [(sum(s[stage:], ()) + a) for s, a in zip(batch.steps, batch.answers)]
            ids = [torch.tensor([codec.question(p.question)]) for p in env.train_batch(0, step, 4)]
            total = sum(nats(before, i, row, stage, stage) for i, row in zip(ids, rows))
        assert seen[step][0]["loss"] == pytest.approx(float(total / sum(map(len, rows))), abs=1e-9)
    assert 3 in stages and len(set(stages)) > 1
    assert int(trainer.method.in_stage) == 6 and int(trainer.method.stage) == 3
    weight = 1 - 0.98 ** stages.count(3)  # of the moving average: batches of earlier stages do not count
    assert float(trainer.method.exact[1]) == pytest.approx(weight, abs=1e-6)
