"""Interventions against the same answers worked out by hand, row by row."""

from hashlib import blake2b

import pytest
import torch

from eval import interventions
from eval.environments import Problem, Verdict
from eval.environments.base import Environment
from latent.config import LearnedStop
from latent.generate import decode
from latent.methods import FixedEmbedding, Pause, Recurrent, Sim
from latent.thought import Greedy
from tests.eval.lively import ENV, OF, PROBLEMS, lively


class Judged(Environment):
    """Calls about half of all texts right, by their hash: an untrained model is never right otherwise."""

    def verify(self, problem, text):
        return Verdict(0.0, blake2b((problem.key + text).encode()).digest()[0] < 128, True)

    def cluster(self, problem):
        return problem.key


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


def test_interventions_are_the_answers_to_other_inputs():
    reasoner = lively(OF)
    (was,) = interventions.baselines(reasoner, ENV, PROBLEMS, 8)
    inputs_NKD = torch.stack([was.inputs[i] for i in range(3)], 1)
    donors = was.donors.tolist()
    assert all(was.texts[d] != was.texts[b] for b, d in enumerate(donors) if len(set(was.texts)) > 1)
    assert len(set(was.texts)) > 1
    answers = {kind: interventions.intervened(reasoner, was, kind, 0) for kind in interventions.INTERVENTIONS}
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
            assert text == interventions.patched(reasoner, was, 1)[:1]
    assert answers["removed"] == reasoner.answer([p.question for p in PROBLEMS], steps=0)


def test_noise_has_the_norm_and_shuffles_are_permutations():
    reasoner, seen = lively(OF), {}
    think = reasoner.method.think

    def spying(prompt, choose, group=1, steps=None, edit=None):
        def spy(i, x):
            seen[i] = edit(i, x)
            return seen[i]

        return think(prompt, choose, group, steps, edit and spy)

    (was,) = interventions.baselines(reasoner, ENV, PROBLEMS, 8)
    reasoner.method.think = spying
    interventions.intervened(reasoner, was, "noise", 0)
    for i in range(3):
        torch.testing.assert_close(seen[i].norm(dim=-1), was.inputs[i].norm(dim=-1))
        assert torch.cosine_similarity(seen[i], was.inputs[i]).abs().max() < 0.8
    interventions.intervened(reasoner, was, "shuffled", 0)
    orders = [[next(n for n in range(8) if torch.equal(row, was.inputs[i][n])) for row in seen[i]] for i in range(3)]
    assert all(sorted(order) == list(range(8)) for order in orders) and orders[0] != orders[1]


@pytest.mark.parametrize("config", [Pause(OF), FixedEmbedding(OF)])
def test_controls_carry_nothing_from_problem_to_problem(config):
    found = interventions.causal(lively(config), Judged(), PROBLEMS, 4)
    assert 0 < sum(found["intact"]) < 8 and found["interventions"]["removed"]["correct"] != found["intact"]
    for kind in ("mean", "shuffled", "other problem"):
        assert found["interventions"][kind]["changed"] == 0
        assert found["interventions"][kind]["correct"] == found["intact"]
    assert [p["flipped"] for p in found["patches"]] == [0, 0, 0]
    assert "interchange" not in found and "pairs" not in found["patches"][0]  # such problems have no states


def test_stops_stay_where_they_were():
    reasoner = lively(Sim(n_latent=5, stride=2, halt=LearnedStop(bias=0.0)))
    with torch.no_grad():
        reasoner.method.stop.linear.weight.normal_()
        h_BD, _ = reasoner.method.backbone.read(reasoner.codec.prompt([p.question for p in PROBLEMS]).ids_BT)
        reasoner.method.stop.linear.bias.copy_(-(reasoner.method.stop.linear(h_BD)).median())
    (was,) = interventions.baselines(reasoner, ENV, PROBLEMS, 8)
    assert len(set(was.thought.used_B.tolist())) > 1
    used_B, zero = was.thought.used_B, lambda i, x: torch.zeros_like(x)
    _, again = interventions.think_and_answer(reasoner, PROBLEMS, interventions.StopAfter(used_B), edit=zero)
    assert torch.equal(again.used_B, used_B)
    _, free = interventions.think_and_answer(reasoner, PROBLEMS, Greedy(), edit=zero)
    assert not torch.equal(free.used_B, used_B)  # left alone, the stops would move
    for i in range(int(used_B.max())):  # what is given was thought, and by a row that thought as far where there is one
        live = set(was.rows_thinking(i).tolist())
        assert live == {b for b, n in enumerate(used_B.tolist()) if n > i}
        for b in live:
            d = int(was.donors[b])
            assert torch.equal(was.donated(i)[b], was.inputs[min(i, int(used_B[d]) - 1)][d]) and used_B[d] > 0
    found = interventions.causal(reasoner, ENV, PROBLEMS, 8)
    assert [p["n"] for p in found["patches"]] == [int((used_B > i).sum()) for i in range(int(used_B.max()))]


@pytest.mark.parametrize("config", [OF, Recurrent(n_recurrence=3)])
def test_the_sweep_is_the_answers_with_so_many_steps(config):
    reasoner = lively(config)
    env = Judged()
    found = interventions.causal(reasoner, env, PROBLEMS, 8)
    assert len({tuple(hits) for hits in found["sweep"].values()}) > 2
    assert found["trained"] == 3 and list(found["sweep"]) == [str(k) for k in range(6)]
    for k, right in found["sweep"].items():
        texts = reasoner.answer([p.question for p in PROBLEMS], steps=int(k))
        assert right == [int(env.verify(p, t).correct) for p, t in zip(PROBLEMS, texts)]
    with pytest.raises(ValueError, match="leave one without another"):
        interventions.causal(reasoner, ENV, PROBLEMS[:5], 4)


def test_a_patch_that_changes_nothing_gives_nothing_to_the_donor():
    reasoner = lively(OF)
    with torch.no_grad():
        reasoner.method.backbone.lm.get_output_embeddings().weight.zero_()  # it always says the same
    found = interventions.causal(reasoner, ENV, PROBLEMS, 8)
    assert [(p["flipped"], p["donor"]) for p in found["patches"]] == [(0, 0)] * 3


def test_a_loop_along_the_depth_is_not_mixed_over_lengths():
    problems = [Problem("01 12", (), "1 2 3 4"), Problem("01 12 23", (), "1 2 3 4")]
    with pytest.raises(ValueError, match="between prompts of the same length"):
        interventions.causal(lively(Recurrent(n_recurrence=2)), ENV, problems, 2)
