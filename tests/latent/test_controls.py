"""Pause tokens, fixed-embedding passes and cut chains against plain recomputations."""

import pytest
import torch

from latent import hub, methods
from latent.config import LearnedStop
from latent.methods import Coconut, CoT, FixedEmbedding, Pause, Sim
from latent.methods.terms import text_hidden
from latent.text import Batch
from latent.thought import Greedy, Prompt, Sample
from tests.helpers import cups_batch, ragged_prompt, row_of, small_reasoner
from tests.latent.test_methods import whole

OF = Sim(n_latent=3, stride=4)


def inputs_of(method, k):
    return method.feedback.known(k)


@pytest.mark.parametrize("config", [Pause(OF), FixedEmbedding(OF)])
@pytest.mark.parametrize("k", [3, 5])
def test_a_control_is_its_inputs_through_the_familys_forward(config, k):
    """More passes than in training included: pause tokens then repeat the last."""
    method = small_reasoner(config, dtype=torch.float64).method
    prompt, text = ragged_prompt(), torch.randint(1, 13, (3, 4))
    thought = method.think(prompt, Greedy(), steps=k)
    h_BTD = text_hidden(method.backbone, thought, text)
    fed_KD = inputs_of(method, k)
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        n = ids.shape[1]
        x = torch.cat([method.backbone.embed(ids), fed_KD[None], method.backbone.embed(text[b : b + 1, :-1])], 1)
        after = list(range(n + 4 * k, n + 4 * k + 3))
        want = whole(method.backbone, x, [*range(n), *(n + 4 * (i + 1) - 1 for i in range(k)), *after])[0]
        torch.testing.assert_close(thought.states_UKD[b], want[n - 1 : n + k], rtol=0, atol=1e-10)
        torch.testing.assert_close(h_BTD[b], want[n + k - 1 :], rtol=0, atol=1e-10)
    if isinstance(config, Pause):
        assert torch.equal(fed_KD[3:], fed_KD[2:3].expand(k - 3, -1))


def test_fixed_passes_are_pause_tokens_that_are_all_the_same():
    """So what sequential passes add without recycling is nothing: one pass gives the same answers."""
    fixed, pause = (small_reasoner(c, dtype=torch.float64).method for c in (FixedEmbedding(OF), Pause(OF)))
    pause.backbone.load_state_dict(fixed.backbone.state_dict())
    pause.feedback.table.data[:] = fixed.feedback.embedding
    with torch.no_grad():
        a, b = (m.think(ragged_prompt(), Greedy()) for m in (fixed, pause) if torch.manual_seed(0))
    torch.testing.assert_close(a.states_UKD, b.states_UKD, rtol=0, atol=1e-12)


STEPWISE, CURRICULUM = Sim(n_latent=3, stride=4, step_tokens=12), Coconut(n_latent=3, stride=4, first_stage=3)


@pytest.mark.parametrize("of", [STEPWISE, CURRICULUM])
def test_controls_are_trained_on_the_same_loss(of):
    """With the same inputs put in by hand, the controlled method's loss is the control's."""
    for config in (Pause(of), FixedEmbedding(of)):
        control = small_reasoner(config, dtype=torch.float64)
        plain = methods.build(of, control.method.backbone).double()
        plain.load_state_dict(control.method.state_dict(), strict=False)
        fed, calls = inputs_of(control.method, 3), []

        def feed(h_BD, fed=fed, calls=calls):
            calls.append(1)
            return fed[len(calls) - 1].expand_as(h_BD)

        feed.known, feed.waits = lambda k: None, True
        del plain._modules["feedback"]
        plain.feedback = feed
        batch = cups_batch(control.codec)
        torch.manual_seed(1)
        want, _ = plain.loss(batch)
        torch.manual_seed(1)
        loss, _ = control.method.loss(batch)
        loss.backward()
        torch.testing.assert_close(loss, want, rtol=0, atol=1e-10)
        if isinstance(config, Pause):
            assert all(g.abs().sum() > 0 for g in control.method.feedback.table.grad)
        else:
            assert not list(control.method.feedback.parameters())


@pytest.mark.parametrize("config", [Pause(Coconut(n_latent=4, stride=2)), FixedEmbedding(Sim(n_latent=4, stride=2))])
def test_a_control_is_saved_and_loaded(config, tmp_path):
    reasoner = small_reasoner(config)
    hub.save(reasoner, tmp_path / "m")
    loaded = hub.load(tmp_path / "m")
    assert loaded.method.made_from == config
    questions = ["01 23 12 . . . . .", "03 12 01 01 . . . ."]
    assert loaded.answer(questions, steps=4) == reasoner.answer(questions, steps=4)


def test_a_control_stops_early_as_a_method_does():
    method = small_reasoner(Pause(Sim(n_latent=5, stride=2, halt=LearnedStop(bias=0.0))), dtype=torch.float64).method
    prompt = ragged_prompt((7, 7, 7, 7, 7, 7))
    prompt = Prompt(prompt.ids_BT)
    with torch.no_grad():
        thought = method.think(prompt, Sample())
        assert len(set(thought.used_B.tolist())) > 1
        method.stop = None
        for b, used in enumerate(thought.used_B.tolist()):
            alone = method.think(Prompt(prompt.ids_BT[b : b + 1]), Greedy(), steps=used)
            torch.testing.assert_close(thought.h_UTD[b], alone.h_UTD[0], rtol=0, atol=1e-10)


def test_fixed_passes_are_one_in_training_and_wait_in_answering():
    """The same states, counted by calls of the backbone."""
    method = small_reasoner(FixedEmbedding(OF), dtype=torch.float64).method
    prompt, step, calls = ragged_prompt(), method.backbone.step, []
    method.backbone.step = lambda *a, **k: (calls.append(1), step(*a, **k))[1]
    thoughts = []
    for training, passes in ((True, 1), (False, 3)):
        calls.clear()
        thoughts.append(method.train(training).think(prompt, Greedy(), steps=3).states_UKD)
        assert len(calls) == passes
    torch.testing.assert_close(*thoughts, rtol=0, atol=1e-10)


def test_what_an_answer_costs_in_sequence():
    for config, passes in ((OF, 7), (FixedEmbedding(OF), 7), (Pause(OF), 5)):
        assert small_reasoner(config).method.passes(3, 4) == passes
    assert small_reasoner(Pause(OF)).method.passes(0, 4) == 4


def test_a_cut_chain_keeps_one_step_in_so_many_but_not_the_last():
    reasoner = small_reasoner(CoT(every=3))
    problem = type("P", (), {"question": "01 12 . . . . . .", "answer": "1 2 3 4"})
    problem.steps = ["1 2 3 4", "2 1 3 4", "3 1 2 4", "4 1 2 3", "1 2 4 3", "1 3 2 4", "1 4 2 3", "2 3 4 1"]
    batch = Batch.of([problem], reasoner.codec)
    kept = [reasoner.codec.step(problem.steps[i]) for i in (2, 5)]
    assert tuple(batch.chain(every=3).ids_BT[0].tolist()) == sum(kept, ()) + reasoner.codec.answer("1 2 3 4")
    assert reasoner.method.steps_written(8) == 2 and reasoner.max_tokens == 12
    assert reasoner.method.positions_needed(9, [4] * 8, 4) == 9 + 8 + 3
    assert batch.chain(every=4).ids_BT[0].tolist() == [*reasoner.codec.step(problem.steps[3]), *batch.answers[0]]
    assert small_reasoner(CoT(every=4)).method.steps_written(8) == 1
    assert batch.chain(every=8).ids_BT[0].tolist() == list(batch.answers[0])
    assert batch.chain().ids_BT[0].tolist() == [*sum(map(reasoner.codec.step, problem.steps), ()), *batch.answers[0]]
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        CoT(every=0)
