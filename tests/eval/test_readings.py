"""Readings of states against what was planted in them, closed forms, and the family's own forward."""

import math

import numpy as np
import pytest
import torch

from eval import readings
from eval.environments import MNNS, ProsQA, Reach, build
from eval.environments.prosqa import Graph, distances
from kernels.errors import UserError
from latent.config import Fixed, LearnedStop, ModelConfig
from latent.methods import CoT2, Recurrent, Sim, Soft
from tests.eval.lively import ENV, OF, PROBLEMS, lively
from tests.helpers import small_reasoner


def planted(reasoner, problems, make) -> readings.States:
    """States made from the step each latent should have reached."""
    reach = reasoner.method.target_step
    rows = [
        [torch.zeros(32, dtype=torch.float64)]
        + [make(reasoner.codec.step(p.steps[reach(i, len(p.steps)) - 1])) for i in range(1, 4)]
        for p in problems
    ]
    return readings.States(problems, torch.stack([torch.stack(r) for r in rows]), torch.full((len(rows),), 3))


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    reasoner = small_reasoner(OF)
    mix = torch.randn(13 * 4, 32, dtype=torch.float64)

    def told(step):
        hot = torch.zeros(4, 13, dtype=torch.float64)
        hot[torch.arange(4), torch.tensor(step)] = 1
        return hot.flatten() @ mix + 0.1 * torch.randn(32, dtype=torch.float64)

    train, test = ENV.train_batch("probe", 0, 1200), ENV.problems("test", 8, 200)
    rows = readings.probe(reasoner, planted(reasoner, train, told), planted(reasoner, test, told))
    assert [r["latent"] for r in rows] == [1, 2, 3]
    last = rows[-1]  # after all 8 swaps: 24 arrangements, whose random labels 10 linear directions cannot hold
    assert last["accuracy"] > 0.99 and last["control"] < 0.85 and last["selectivity"] > 0.15
    blind = lambda step: torch.randn(32, dtype=torch.float64)  # noqa: E731
    for row in readings.probe(reasoner, planted(reasoner, train, blind), planted(reasoner, test, blind))[1:]:
        assert row["accuracy"] == pytest.approx(row["majority"], abs=0.08)
        assert row["selectivity"] == pytest.approx(0, abs=0.08)


def test_a_ridge_fit_is_the_minimum_of_its_loss():
    a, b = torch.randn(60, 5), torch.randn(40, 5)
    ids = [torch.randint(3, (60,)).tolist(), torch.randint(3, (40,)).tolist()]
    got = [int(s == t) for s, t in zip(readings.linear_probe(a, ids[0], ridge=0.1)(b), ids[1])]
    mean, std = a.numpy().mean(0), a.numpy().std(0, ddof=1)
    x, z = ((m.numpy() - mean) / std for m in (a, b))
    y = np.eye(3)[ids[0]]
    rows = np.vstack([x, np.sqrt(0.1 * 60) * np.eye(5)])  # ridge as least squares with more rows
    weight = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((5, 3))]), rcond=None)[0]
    assert got == (np.argmax(z @ weight + y.mean(0), 1) == np.array(ids[1])).astype(int).tolist()


def test_the_lens_counts_tokens_in_superposition():
    reasoner = small_reasoner(OF)
    head = reasoner.method.backbone.lm.get_output_embeddings().weight
    with torch.no_grad():
        head.copy_(torch.nn.functional.normalize(torch.linalg.qr(torch.randn(32, 32)).Q[: len(head)]))
    states = planted(reasoner, PROBLEMS, lambda step: 1e4 * head.detach()[step[0]].double())
    rows = readings.lens(reasoner, ENV, readings.States(PROBLEMS, states.states_NKD.float(), states.used_N))
    assert rows[0]["support"] == pytest.approx(len(head)) and rows[0]["entropy"] == pytest.approx(math.log(len(head)))
    other = [PROBLEMS[(n + 1) % 8] for n in range(8)]
    reach = [[p.steps[reasoner.method.target_step(i, 8) - 1].split()[0] for i in (1, 2, 3)] for p in PROBLEMS]
    after = [[p.steps[reasoner.method.target_step(i, 8) - 1].split()[0] for i in (1, 2, 3)] for p in other]
    for i, row in enumerate(rows[1:]):
        assert row["elsewhere"] == sum(a[i] == b[i] for a, b in zip(reach, after)) / 8 < 1
        assert row["top"] == pytest.approx(1) and row["support"] == pytest.approx(1, abs=1e-5) and row["oracle"] == 1
    half = states.states_NKD.float().clone()
    half[:, 1] = 1e4 * (head.detach()[5] + head.detach()[6])
    assert readings.lens(reasoner, ENV, readings.States(PROBLEMS, half, states.used_N))[1]["support"] == pytest.approx(
        2, abs=1e-4
    )


@pytest.mark.parametrize("halt", [Fixed(), LearnedStop(bias=0.0)])
@torch.inference_mode()
def test_states_of_a_layer_are_the_familys_and_the_lens_reads_them_through_the_final_norm(halt):
    reasoner = lively(Sim(n_latent=3, stride=4, halt=halt))
    method, body = reasoner.method, reasoner.method.backbone.decoder[0]
    if method.stop is not None:
        method.stop.linear.weight.normal_()
        h_ND, _ = method.backbone.read(reasoner.codec.prompt([p.question for p in PROBLEMS]).ids_BT)
        method.stop.linear.bias.copy_(-method.stop.linear(h_ND).median())
    thoughts = readings.trace(reasoner, PROBLEMS, 3)
    last = readings.trace(reasoner, PROBLEMS, 3, layer=-1)
    torch.testing.assert_close(last.states_NKD, thoughts.states_NKD, rtol=0, atol=1e-10)
    assert (halt == Fixed()) == (len(set(thoughts.used_N.tolist())) == 1)
    for layer in (0, 1):
        states = readings.trace(reasoner, PROBLEMS, 3, layer=layer)
        assert torch.equal(states.used_N, thoughts.used_N) and states.layer == layer
        means = torch.zeros(4)
        for b, p in enumerate(PROBLEMS):
            ids = reasoner.codec.prompt([p.question]).ids_BT
            n, used = ids.shape[1], int(thoughts.used_N[b])
            x = torch.cat([method.backbone.embed(ids)[0], method.feedback(thoughts.states_NKD[b, :used])])[None]
            pos = torch.tensor([[*range(n), *(n + 4 * i + 3 for i in range(used))]])
            mask = torch.ones_like(pos)
            out = body(inputs_embeds=x, position_ids=pos, attention_mask=mask, output_hidden_states=True)
            want_KD = out.hidden_states[layer][0, n - 1 :]
            p_KV = method.backbone.lm.lm_head(body.ln_f(want_KD)).softmax(-1)
            torch.testing.assert_close(states.states_NKD[b, : used + 1], want_KD, rtol=0, atol=1e-10)
            means[: used + 1] += p_KV.max(-1).values
        rows = readings.lens(reasoner, ENV, states)
        assert [row["n"] for row in rows] == [int((thoughts.used_N >= i).sum()) for i in range(len(rows))]
        for i, row in enumerate(rows):
            assert row["top"] == pytest.approx(float(means[i]) / row["n"], rel=1e-5)


@torch.inference_mode()
def test_a_looped_layers_states_are_those_of_each_recurrence():
    config = Recurrent(prelude=1, core=1, coda=1, n_recurrence=3)
    reasoner = small_reasoner(config, ModelConfig(n_layer=3, n_embd=32, n_head=2, n_positions=64), dtype=torch.float64)
    method = reasoner.method
    thoughts, looped = (readings.trace(reasoner, PROBLEMS, 3, layer) for layer in (None, 2))
    torch.testing.assert_close(method.norm(looped.states_NKD[:, 1:]), thoughts.states_NKD[:, 1:], rtol=0, atol=1e-12)
    assert not looped.states_NKD[:, 0].any()  # the loop has not begun
    entered = readings.trace(reasoner, PROBLEMS, 3, layer=1).states_NKD
    first, second = entered[:, 1], entered[:, 2]  # the constant alone, and with what the state before carries
    torch.testing.assert_close(second - first, method.carry(thoughts.states_NKD[:, 1]), rtol=0, atol=1e-12)
    for layer in (0, 3):
        with pytest.raises(UserError, match=f"layer {layer} does not run in the latent steps of Recurrent"):
            readings.trace(reasoner, PROBLEMS, 3, layer=layer)


def test_the_frontier_is_the_graphs_breadth_first_search():
    env = build(ProsQA())
    for problem in env.problems("test", 0, 20):
        graph = Graph(**problem.data)
        hops = distances(graph.out, graph.root)
        for step in range(1, max(hops.values()) + 2):
            assert len(env.frontier(problem, step)) == sum(d == step for d in hops.values())
        target = problem.answer.split()[-2]
        assert target in dict(env.frontier(problem, hops[graph.target]))
    assert ENV.frontier(PROBLEMS[0], 1) == ()


def test_frontier_mass_is_probability_on_its_nodes():
    env = build(ProsQA())
    problems = env.problems("test", 0, 6)
    reasoner = small_reasoner(OF, ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=512), env)
    states = readings.trace(reasoner, problems, 6)
    row = readings.lens(reasoner, env, states)[2]
    p_NV = reasoner.method.backbone.head(states.states_NKD[:, 2].clone()).softmax(-1).detach()
    vocab = reasoner.codec.tokenizer.get_vocab()
    step = [reasoner.method.target_step(2, max(2, len(p.steps))) for p in problems]
    mass = [sum(float(p_NV[n, vocab[w]]) for w, _ in env.frontier(p, step[n])) for n, p in enumerate(problems)]
    assert row["frontier"] == pytest.approx(sum(mass) / 6, rel=1e-5)
    reached = [len(distances(Graph(**p.data).out, p.data["root"])) - 1 for p in problems]
    shares = [len(env.frontier(p, step[n])) / reached[n] for n, p in enumerate(problems)]
    assert row["frontier_share"] == pytest.approx(sum(shares) / 6)


@pytest.mark.parametrize("config", [Reach(), MNNS(digits=5)], ids=["reach", "mnns"])
def test_words_of_a_frontier_may_have_been_there_before(config):
    """The nodes that so many edges reach hold those of fewer; a sum may come up again."""
    env = build(config)
    problems = env.problems("test", env.main_level, 6)
    reasoner = small_reasoner(CoT2(n_latent=4), ModelConfig(n_layer=1, n_embd=32, n_head=2, n_positions=256), env)
    states = readings.trace(reasoner, problems, 6)
    vocab = reasoner.codec.tokenizer.get_vocab()
    for i in (1, 2):  # whose states say the next step: the second and the third
        p_NV = reasoner.method.backbone.head(states.states_NKD[:, i].clone()).softmax(-1).detach()
        mass, share = [], []
        for n, problem in enumerate(problems):
            words = [{w for w, _ in env.frontier(problem, step)} for step in range(1, 5)]
            mass.append(sum(float(p_NV[n, vocab[w]]) for w in words[i]))
            share.append(len(words[i]) / len(set().union(*words)))
        row = readings.lens(reasoner, env, states)[i]
        assert row["frontier"] == pytest.approx(sum(mass) / 6, rel=1e-5)
        assert row["frontier_share"] == pytest.approx(sum(share) / 6)


def test_collapse_is_measured_on_shapes_that_are_known():
    n = 64
    line = torch.randn(n, 1) * torch.ones(1, 32)
    ball = torch.linalg.qr(torch.randn(n, 33)).Q  # the first column stays out, the others are orthonormal
    ball = ball - ball.mean(0)
    states = torch.stack([torch.ones(n, 32), line, line], 1)
    rows = readings.collapse(readings.States(PROBLEMS * 8, states, torch.full((n,), 2)))
    assert rows[0]["dimensions"] == pytest.approx(1) and rows[1]["moved"] == 0
    assert rows[1]["cosine"] == pytest.approx(1)
    values = np.linalg.eigvalsh(np.cov(ball.numpy()[:, :32].T.astype(float)))
    states = torch.stack([torch.zeros(n, 32), ball[:, :32]], 1)
    rows = readings.collapse(readings.States(PROBLEMS * 8, states, torch.full((n,), 1)))
    assert rows[0]["dimensions"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert rows[0]["moved"] == pytest.approx(1)


def test_groups_are_counted():
    reasoner = small_reasoner(Sim(n_latent=3, stride=4, halt=LearnedStop(bias=0.0)))
    found = readings.diversity(reasoner, ENV, PROBLEMS, group=8)
    assert found["gap"] < 1e-4 and found["n"] == 8 and 1 < found["lengths"] <= 4 and 4 < found["texts"] <= 8
    assert found["entropy"]["halt"] == pytest.approx(math.log(2), rel=0.2)
    assert found["flat"] == pytest.approx(1 - found["pass_group"])  # no group of an untrained model is all right


@pytest.mark.filterwarnings("error")
def test_a_probe_of_one_token_says_it_of_every_state():
    probe = readings.linear_probe(torch.randn(1, 4), [7])
    assert probe(torch.randn(3, 4)) == [7, 7, 7]


def test_a_latent_that_stands_for_no_step_yet_is_not_read_for_the_last_one():
    """Of twelve latents over eight steps the first stands for none: it has neither an oracle nor a target."""
    reasoner = lively(Soft(n_latent=12, stride=1))
    states = readings.trace(reasoner, PROBLEMS)
    assert readings.step_of(reasoner, PROBLEMS[0], 1) == () and readings.targets(reasoner, states, 1)[1] == []
    first, last = (readings.step_of(reasoner, PROBLEMS[0], i) for i in (2, 12))
    assert (first, last) == tuple(reasoner.codec.step(PROBLEMS[0].steps[n]) for n in (0, -1))
    rows = readings.lens(reasoner, ENV, states)
    assert "oracle" not in rows[1] and "oracle" in rows[2]
    probed = readings.probe(reasoner, states, states)
    assert "accuracy" not in probed[0] and "accuracy" in probed[1] and len(probed) == 12
