"""The suite against recomputations by hand, planted states and counts."""

import json
import math
from hashlib import blake2b

import numpy as np
import pytest
import torch

from eval import diagnose, diagnostics
from eval.environments import Cups, Problem, ProsQA, Verdict, build
from eval.environments.prosqa import Graph, distances
from kernels.errors import UserError
from latent import hub
from latent.config import Fixed, LearnedStop, ModelConfig
from latent.generate import decode
from latent.methods import Coconut, CoT, FixedEmbedding, Pause, Recurrent, Sim
from latent.thought import Greedy
from tests.helpers import small_reasoner

ENV = build(Cups())
PROBLEMS = ENV.problems("test", 8, 8)
OF = Sim(n_latent=3, stride=4)


class Judged:
    """Calls about half of all texts right, by their hash: an untrained model is never right otherwise."""

    def verify(self, problem, text):
        return Verdict(0.0, blake2b((problem.key + text).encode()).digest()[0] < 128, True)


def by_hand(reasoner, problem, inputs_KD) -> str:
    """The answer of one problem with the inputs of its latents given, through read and step alone."""
    method, codec = reasoner.method, reasoner.codec
    with torch.no_grad():
        h, context = method.backbone.read(codec.prompt([problem.question]).ids_BT)
        for x in inputs_KD:
            h, context = method.backbone.step(x[None, None], context.skip(method.stride - 1))
            h = h[:, 0]
        ids = []
        for _ in range(reasoner.max_tokens):
            ids.append(method.backbone.head(h).argmax(-1))
            h, context = method.backbone.step(method.backbone.embed(ids[-1][:, None]), context)
            h = h[:, 0]
    return codec.text(torch.cat(ids).tolist())


def lively(config, seed=0):
    """Untrained, its feedback large, so that what is fed back shows in the answer."""
    torch.manual_seed(seed)
    reasoner = small_reasoner(config, dtype=torch.float64)
    with torch.no_grad():
        reasoner.method.backbone.lm.transformer.ln_f.weight.mul_(4)
    return reasoner


def test_interventions_are_the_answers_to_other_inputs():
    reasoner = lively(OF)
    (was,) = diagnostics.untouched(reasoner, ENV, PROBLEMS, 8)
    inputs_NKD = torch.stack(was.inputs, 1)
    donors = was.donors.tolist()
    assert all(was.texts[d] != was.texts[b] for b, d in enumerate(donors) if len(set(was.texts)) > 1)
    assert len(set(was.texts)) > 1
    answers = {kind: diagnostics.intervened(reasoner, was, kind, 0) for kind in diagnostics.INTERVENTIONS}
    for b, p in enumerate(PROBLEMS):
        assert was.texts[b] == by_hand(reasoner, p, inputs_NKD[b])
        assert answers["zeroed"][b] == by_hand(reasoner, p, torch.zeros(3, 32, dtype=torch.float64))
        assert answers["mean"][b] == by_hand(reasoner, p, inputs_NKD.mean(0))
        assert answers["other problem"][b] == by_hand(reasoner, p, inputs_NKD[donors[b]])
        edited = inputs_NKD[b].clone()
        edited[1] = inputs_NKD[donors[b], 1]
        if b == 0:  # later inputs are thought anew, from the patched one
            prompt = reasoner.codec.prompt([p.question])
            edit = lambda i, x: edited[1:2] if i == 1 else x  # noqa: B023, E731
            thought = reasoner.method.think(prompt, Greedy(), edit=edit)
            text = reasoner.codec.texts(decode(reasoner.method, thought, Greedy(), 4, None))
            assert text == diagnostics.patched(reasoner, was, 1)[:1]
    assert answers["removed"] == reasoner.answer([p.question for p in PROBLEMS], steps=0)


def test_noise_has_the_norm_and_shuffles_are_permutations():
    reasoner, seen = lively(OF), {}
    think = reasoner.method.think

    def spying(prompt, choose, group=1, steps=None, edit=None):
        def spy(i, x):
            seen[i] = edit(i, x)
            return seen[i]

        return think(prompt, choose, group, steps, edit and spy)

    (was,) = diagnostics.untouched(reasoner, ENV, PROBLEMS, 8)
    reasoner.method.think = spying
    diagnostics.intervened(reasoner, was, "noise", 0)
    for i in range(3):
        torch.testing.assert_close(seen[i].norm(dim=-1), was.inputs[i].norm(dim=-1))
        assert torch.cosine_similarity(seen[i], was.inputs[i]).abs().max() < 0.8
    diagnostics.intervened(reasoner, was, "shuffled", 0)
    orders = [[next(n for n in range(8) if torch.equal(row, was.inputs[i][n])) for row in seen[i]] for i in range(3)]
    assert all(sorted(order) == list(range(8)) for order in orders) and orders[0] != orders[1]


@pytest.mark.parametrize("config", [Pause(OF), FixedEmbedding(OF)])
def test_controls_carry_nothing_from_problem_to_problem(config):
    found = diagnostics.causal(lively(config), Judged(), PROBLEMS, 4)
    assert 0 < sum(found["intact"]) < 8 and found["interventions"]["removed"]["correct"] != found["intact"]
    for kind in ("mean", "shuffled", "other problem"):
        assert found["interventions"][kind]["changed"] == 0
        assert found["interventions"][kind]["correct"] == found["intact"]
    assert [p["flipped"] for p in found["patches"]] == [0, 0, 0]


def test_stops_stay_where_they_were():
    reasoner = lively(Sim(n_latent=5, stride=2, halt=LearnedStop(bias=0.0)))
    with torch.no_grad():
        reasoner.method.stop.linear.weight.normal_()
        h_BD, _ = reasoner.method.backbone.read(reasoner.codec.prompt([p.question for p in PROBLEMS]).ids_BT)
        reasoner.method.stop.linear.bias.copy_(-(reasoner.method.stop.linear(h_BD)).median())
    (was,) = diagnostics.untouched(reasoner, ENV, PROBLEMS, 8)
    assert len(set(was.thought.used_B.tolist())) > 1
    used_B, zero = was.thought.used_B, lambda i, x: torch.zeros_like(x)
    _, again = diagnostics.answer(reasoner, PROBLEMS, diagnostics.StopWhere(used_B), edit=zero)
    assert torch.equal(again.used_B, used_B)
    _, free = diagnostics.answer(reasoner, PROBLEMS, Greedy(), edit=zero)
    assert not torch.equal(free.used_B, used_B)  # left alone, the stops would move
    for i in range(int(used_B.max())):  # what is given was thought, and by a row that thought as far where there is one
        live = set(was.thinking(i).tolist())
        assert live == {b for b, n in enumerate(used_B.tolist()) if n > i}
        for b in live:
            d = int(was.donors[b])
            assert torch.equal(was.given(i)[b], was.inputs[min(i, int(used_B[d]) - 1)][d]) and used_B[d] > 0
    found = diagnostics.causal(reasoner, ENV, PROBLEMS, 8)
    assert [p["n"] for p in found["patches"]] == [int((used_B > i).sum()) for i in range(int(used_B.max()))]


@pytest.mark.parametrize("config", [OF, Recurrent(n_recurrence=3)])
def test_the_sweep_is_the_answers_with_so_many_steps(config):
    reasoner = lively(config)
    env = Judged()
    found = diagnostics.causal(reasoner, env, PROBLEMS, 8)
    assert len({tuple(hits) for hits in found["sweep"].values()}) > 2
    assert found["trained"] == 3 and list(found["sweep"]) == [str(k) for k in range(6)]
    for k, right in found["sweep"].items():
        texts = reasoner.answer([p.question for p in PROBLEMS], steps=int(k))
        assert right == [int(env.verify(p, t).correct) for p, t in zip(PROBLEMS, texts)]
    with pytest.raises(ValueError, match="leave one without another"):
        diagnostics.causal(reasoner, ENV, PROBLEMS[:5], 4)


def planted(reasoner, problems, make) -> diagnostics.States:
    """States made from the step each latent should have reached."""
    reach = reasoner.method.reaches
    rows = [
        [torch.zeros(32, dtype=torch.float64)]
        + [make(reasoner.codec.step(p.steps[reach(i, len(p.steps)) - 1])) for i in range(1, 4)]
        for p in problems
    ]
    return diagnostics.States(problems, torch.stack([torch.stack(r) for r in rows]), torch.full((len(rows),), 3))


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    reasoner = small_reasoner(OF)
    mix = torch.randn(13 * 4, 32, dtype=torch.float64)

    def told(step):
        hot = torch.zeros(4, 13, dtype=torch.float64)
        hot[torch.arange(4), torch.tensor(step)] = 1
        return hot.flatten() @ mix + 0.1 * torch.randn(32, dtype=torch.float64)

    train, test = ENV.train_batch("probe", 0, 1200), ENV.problems("test", 8, 200)
    rows = diagnostics.probe(reasoner, planted(reasoner, train, told), planted(reasoner, test, told))
    assert [r["latent"] for r in rows] == [1, 2, 3]
    last = rows[-1]  # after all 8 swaps: 24 arrangements, whose random labels 10 linear directions cannot hold
    assert last["accuracy"] > 0.99 and last["control"] < 0.85 and last["selectivity"] > 0.15
    blind = lambda step: torch.randn(32, dtype=torch.float64)  # noqa: E731
    for row in diagnostics.probe(reasoner, planted(reasoner, train, blind), planted(reasoner, test, blind))[1:]:
        assert row["accuracy"] == pytest.approx(row["majority"], abs=0.08)
        assert row["selectivity"] == pytest.approx(0, abs=0.08)


def test_a_patch_that_changes_nothing_gives_nothing_to_the_donor():
    reasoner = lively(OF)
    with torch.no_grad():
        reasoner.method.backbone.lm.get_output_embeddings().weight.zero_()  # it always says the same
    found = diagnostics.causal(reasoner, ENV, PROBLEMS, 8)
    assert [(p["flipped"], p["donor"]) for p in found["patches"]] == [(0, 0)] * 3


def test_a_loop_along_the_depth_is_not_mixed_over_lengths():
    problems = [Problem("01 12", (), "1 2 3 4"), Problem("01 12 23", (), "1 2 3 4")]
    with pytest.raises(ValueError, match="between prompts of the same length"):
        diagnostics.causal(lively(Recurrent(n_recurrence=2)), ENV, problems, 2)


def test_a_ridge_fit_is_the_minimum_of_its_loss():
    a, b = torch.randn(60, 5), torch.randn(40, 5)
    ids = [torch.randint(3, (60,)).tolist(), torch.randint(3, (40,)).tolist()]
    got = [int(s == t) for s, t in zip(diagnostics.linear_probe(a, ids[0], ridge=0.1)(b), ids[1])]
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
    rows = diagnostics.lens(reasoner, ENV, diagnostics.States(PROBLEMS, states.states_NKD.float(), states.used_N))
    assert rows[0]["support"] == pytest.approx(len(head)) and rows[0]["entropy"] == pytest.approx(math.log(len(head)))
    other = [PROBLEMS[(n + 1) % 8] for n in range(8)]
    reach = [[p.steps[reasoner.method.reaches(i, 8) - 1].split()[0] for i in (1, 2, 3)] for p in PROBLEMS]
    after = [[p.steps[reasoner.method.reaches(i, 8) - 1].split()[0] for i in (1, 2, 3)] for p in other]
    for i, row in enumerate(rows[1:]):
        assert row["elsewhere"] == sum(a[i] == b[i] for a, b in zip(reach, after)) / 8 < 1
        assert row["top"] == pytest.approx(1) and row["support"] == pytest.approx(1, abs=1e-5) and row["oracle"] == 1
    half = states.states_NKD.float().clone()
    half[:, 1] = 1e4 * (head.detach()[5] + head.detach()[6])
    assert diagnostics.lens(reasoner, ENV, diagnostics.States(PROBLEMS, half, states.used_N))[1][
        "support"
    ] == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("halt", [Fixed(), LearnedStop(bias=0.0)])
@torch.inference_mode()
def test_states_of_a_layer_are_the_familys_and_the_lens_reads_them_through_the_final_norm(halt):
    reasoner = lively(Sim(n_latent=3, stride=4, halt=halt))
    method, body = reasoner.method, reasoner.method.backbone.decoder[0]
    if method.stop is not None:
        method.stop.linear.weight.normal_()
        h_ND, _ = method.backbone.read(reasoner.codec.prompt([p.question for p in PROBLEMS]).ids_BT)
        method.stop.linear.bias.copy_(-method.stop.linear(h_ND).median())
    thoughts = diagnostics.trace(reasoner, PROBLEMS, 3)
    last = diagnostics.trace(reasoner, PROBLEMS, 3, layer=-1)
    torch.testing.assert_close(last.states_NKD, thoughts.states_NKD, rtol=0, atol=1e-10)
    assert (halt == Fixed()) == (len(set(thoughts.used_N.tolist())) == 1)
    for layer in (0, 1):
        states = diagnostics.trace(reasoner, PROBLEMS, 3, layer=layer)
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
        rows = diagnostics.lens(reasoner, ENV, states)
        assert [row["n"] for row in rows] == [int((thoughts.used_N >= i).sum()) for i in range(len(rows))]
        for i, row in enumerate(rows):
            assert row["top"] == pytest.approx(float(means[i]) / row["n"], rel=1e-5)


@torch.inference_mode()
def test_a_looped_layers_states_are_those_of_each_recurrence():
    config = Recurrent(prelude=1, core=1, coda=1, n_recurrence=3)
    reasoner = small_reasoner(config, ModelConfig(n_layer=3, n_embd=32, n_head=2, n_positions=64), dtype=torch.float64)
    method = reasoner.method
    thoughts, looped = (diagnostics.trace(reasoner, PROBLEMS, 3, layer) for layer in (None, 2))
    torch.testing.assert_close(method.norm(looped.states_NKD[:, 1:]), thoughts.states_NKD[:, 1:], rtol=0, atol=1e-12)
    assert not looped.states_NKD[:, 0].any()  # the loop has not begun
    entered = diagnostics.trace(reasoner, PROBLEMS, 3, layer=1).states_NKD
    first, second = entered[:, 1], entered[:, 2]  # the constant alone, and with what the state before carries
    torch.testing.assert_close(second - first, method.carry(thoughts.states_NKD[:, 1]), rtol=0, atol=1e-12)
    for layer in (0, 3):
        with pytest.raises(UserError, match=f"layer {layer} does not run in the latent steps of Recurrent"):
            diagnostics.trace(reasoner, PROBLEMS, 3, layer=layer)


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
    states = diagnostics.trace(reasoner, problems, 6)
    row = diagnostics.lens(reasoner, env, states)[2]
    p_NV = reasoner.method.backbone.head(states.states_NKD[:, 2].clone()).softmax(-1).detach()
    vocab = reasoner.codec.tokenizer.get_vocab()
    step = [reasoner.method.reaches(2, max(2, len(p.steps))) for p in problems]
    mass = [sum(float(p_NV[n, vocab[w]]) for w, _ in env.frontier(p, step[n])) for n, p in enumerate(problems)]
    assert row["frontier"] == pytest.approx(sum(mass) / 6, rel=1e-5)
    reached = [len(distances(Graph(**p.data).out, p.data["root"])) - 1 for p in problems]
    shares = [len(env.frontier(p, step[n])) / reached[n] for n, p in enumerate(problems)]
    assert row["frontier_share"] == pytest.approx(sum(shares) / 6)


def test_collapse_is_measured_on_shapes_that_are_known():
    n = 64
    line = torch.randn(n, 1) * torch.ones(1, 32)
    ball = torch.linalg.qr(torch.randn(n, 33)).Q  # the first column stays out, the others are orthonormal
    ball = ball - ball.mean(0)
    states = torch.stack([torch.ones(n, 32), line, line], 1)
    rows = diagnostics.collapse(diagnostics.States(PROBLEMS * 8, states, torch.full((n,), 2)))
    assert rows[0]["dimensions"] == pytest.approx(1) and rows[1]["moved"] == 0
    assert rows[1]["cosine"] == pytest.approx(1)
    values = np.linalg.eigvalsh(np.cov(ball.numpy()[:, :32].T.astype(float)))
    states = torch.stack([torch.zeros(n, 32), ball[:, :32]], 1)
    rows = diagnostics.collapse(diagnostics.States(PROBLEMS * 8, states, torch.full((n,), 1)))
    assert rows[0]["dimensions"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert rows[0]["moved"] == pytest.approx(1)


def test_groups_are_counted():
    reasoner = small_reasoner(Sim(n_latent=3, stride=4, halt=LearnedStop(bias=0.0)))
    found = diagnostics.diversity(reasoner, ENV, PROBLEMS, group=8)
    assert found["gap"] < 1e-4 and found["n"] == 8 and 1 < found["lengths"] <= 4 and 4 < found["texts"] <= 8
    assert found["entropy"]["halt"] == pytest.approx(math.log(2), rel=0.2)
    assert found["flat"] == pytest.approx(1 - found["pass_group"])  # no group of an untrained model is all right


def kept(tmp_path, name, method):
    """A finished run's folder."""
    home = tmp_path / name
    hub.save(small_reasoner(method), home / "model")
    env = {"class": "Cups", "cups": 4, "swaps": 8, "min_swaps": 2}
    from latent.plain import plain

    config = {"class": "Run", "env": env, "model": {}, "train": {}, "method": plain(method), "seed": 0}
    (home / "config.json").write_text(json.dumps(config))
    (home / "result.json").write_text("{}")
    return home


def test_a_run_is_diagnosed_beside_its_controls(tmp_path, capsys):
    home = kept(tmp_path, "aaa", OF)
    kept(tmp_path, "bbb", Pause(OF))
    kept(tmp_path, "ccc", FixedEmbedding(Sim(n_latent=3, stride=4, step_weight=0.5)))  # of another training
    args = ["--items", "10", "--batch", "5", "--probe-items", "60", "--group", "4"]
    assert diagnose.main([str(home), *args]) == 0
    out = capsys.readouterr().out.strip()
    found = json.loads((home / "diagnostics.json").read_text())
    assert list(found) == ["run", "pause"] and found["pause"]["method"] == "Pause"
    lost, low, high = diagnose.cost(found["run"], "other problem")
    assert low <= lost <= high
    first = out.splitlines()[0]
    assert f"cost {100 * lost:.1f} points of accuracy" in first and "10 problems" in first
    assert ("causally used" in first) == (low > 0)
    assert "latents of another problem" in out and "latent, pause" in out and "lens, run" in out
    assert "layer whose states are read" not in out and "layer" not in found["run"]
    assert diagnose.main([str(home), *args, "--layer", "-2"]) == 0
    inner = json.loads((home / "diagnostics.json").read_text())
    assert inner["run"]["layer"] == inner["pause"]["layer"] == 1 and inner["run"]["causal"] == found["run"]["causal"]
    assert inner["run"]["lens"] != found["run"]["lens"] and inner["run"]["probe"] != found["run"]["probe"]
    assert "layer whose states are read" in capsys.readouterr().out


def test_a_control_that_cannot_be_read_is_said_and_two_are_refused(tmp_path, capsys):
    of = Coconut(n_latent=3, stride=4)
    home = kept(tmp_path, "aaa", Sim(n_latent=3, stride=4))
    kept(tmp_path, "bbb", Pause(Sim(n_latent=3, stride=4)))
    stuck = kept(tmp_path, "ccc", Pause(of))  # still in stage 0: it thinks in nothing
    args = ["--items", "4", "--batch", "4", "--probe-items", "20", "--group", "2"]
    assert diagnose.main([str(home), *args, "--beside", str(stuck)]) == 2
    assert "thinks in no latents" in capsys.readouterr().err
    kept(tmp_path, "ddd", Pause(Sim(n_latent=3, stride=4)))
    assert diagnose.main([str(home), *args]) == 2
    assert "bbb and ddd are both pause controls: say --beside" in capsys.readouterr().err


def test_the_summary_says_used_only_where_the_interval_does():
    def found(intact, other):
        return {"env": "E", "causal": {"intact": intact, "interventions": {"other problem": {"correct": other}}}}

    assert "causally used" in diagnose.summary(found([1] * 100, [0] * 90 + [1] * 10))
    assert "not shown to be used" in diagnose.summary(found([1] * 50 + [0] * 50, [1] * 49 + [0] * 50 + [1]))


@pytest.mark.parametrize(
    "method, args, message",
    [
        (CoT(), [], "thinks in no latents (CoT): nothing to diagnose"),
        (OF, ["--items", "1"], "--items must be at least 2, got 1"),
        (OF, ["--layer", "3"], "--layer must be from -3 to 2, got 3"),
        (None, [], "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(method, args, message, tmp_path, capsys):
    home = kept(tmp_path, "aaa", method) if method else "nowhere"
    assert diagnose.main([str(home), *args]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err
