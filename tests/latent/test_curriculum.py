"""What a method is trained on, and when: stages, steps dealt, numbers drawn, each worked out by hand."""

import pytest
import torch
import torch.nn.functional as F

from eval.environments import Cups, build
from latent.config import LearnedStop, ModelConfig
from latent.methods import Coconut, CoT, FixedEmbedding, NoCoT, Pause, Recurrent, Sim
from latent.methods import build as build_method
from latent.methods.fixed.method import Constant
from latent.methods.pause.method import PauseTokens
from latent.methods.terms import text_hidden
from latent.text import Batch
from latent.thought import Greedy
from tests.helpers import cups_batch, ragged_prompt, row_of, small_reasoner
from tests.latent.test_methods import naive_states, whole


def test_early_stops_are_any_number_from_where_the_chain_is_at_rest():
    """Cups of every level: after the live swaps come those that do nothing."""
    env, reasoner = build(Cups()), small_reasoner(Sim(n_latent=8, step_tokens=8, halt=LearnedStop()))
    problems = [p for level in env.levels() for p in env.problems("test", level, 6)]
    for seed in range(3):
        batch = Batch.of(problems, reasoner.codec, generator=torch.Generator().manual_seed(seed))
        used = reasoner.method.early_stops(batch, "cpu").tolist()
        generator = torch.Generator().manual_seed(seed)
        some, half = (torch.rand(len(problems), generator=generator).tolist() for _ in range(2))
        for p, n, x, y in zip(problems, used, some, half, strict=True):
            enough = next(i for i in range(1, 9) if len(set(p.steps[i - 1 :])) == 1)
            assert n == (8 if y < 0.5 else enough + int(x * (9 - enough)))


@pytest.mark.parametrize("rest", ["pairs", "identity"])
def test_early_stops_at_the_last_step_are_any_where_the_chain_is_as_it_ends(rest):
    """Swaps that come to nothing lead away from the last arrangement and back: between, no answer is taught."""
    env = build(Cups(rest=rest))
    method = Sim(n_latent=8, step_tokens=8, halt=LearnedStop(), early_stops="last")
    reasoner = small_reasoner(method, env=env)
    problems = [p for level in env.levels() for p in env.problems("test", level, 6)]
    batch = Batch.of(problems, reasoner.codec, generator=torch.Generator().manual_seed(0))
    used = reasoner.method.early_stops(batch, "cpu").tolist()
    generator = torch.Generator().manual_seed(0)
    some, half = (torch.rand(len(problems), generator=generator).tolist() for _ in range(2))
    for p, n, x, y in zip(problems, used, some, half, strict=True):
        enough = [i for i in range(1, 9) if p.steps[i - 1].split() == p.answer.split()]
        assert enough[0] == p.level and n == (8 if y < 0.5 else enough[int(x * len(enough))])
    assert len(set(used)) > 2


def test_each_latent_should_have_reached_the_last_of_its_steps():
    """Step j of n stands with latent 1 + floor(j k / n) where there are more steps than latents, else with its own."""
    method = small_reasoner(Sim(n_latent=4)).method
    for n in range(1, 14):
        of = [j if n <= 4 else j * 4 // n for j in range(n)]
        assert [method.target_step(i, n) for i in range(1, 5)] == [sum(x < i for x in of) for i in range(1, 5)]


def loss_of(method, thought, rows):
    """Mean cross-entropy of the tokens of texts that are equally long."""
    logits = method.backbone.head(text_hidden(method.backbone, thought, torch.tensor(rows)))
    return F.cross_entropy(logits.flatten(0, 1), torch.tensor(rows).flatten())


def test_the_last_stage_is_the_answer_alone_however_long_the_chain():
    """Eight steps, three latents: stage 3 still writes five of them, the last stage none."""
    for stage, left in ((3, 5), (4, 0)):
        reasoner = small_reasoner(Coconut(n_latent=3, first_stage=stage, earlier=0.0), dtype=torch.float64)
        batch = cups_batch(reasoner.codec)
        rows = [sum(steps[8 - left :], ()) + a for steps, a in zip(batch.steps, batch.answers)]
        thought = reasoner.method.think(batch.prompt, Greedy(), steps=3)
        loss, _ = reasoner.method.loss(batch)
        torch.testing.assert_close(loss, loss_of(reasoner.method, thought, rows), rtol=0, atol=1e-10)


def told(method, exact: list[float]) -> list[int]:
    """The stage of every update, each of which is on its stage and has so much right."""
    stages = []
    for x in exact:
        method.begin_update()
        method.drawn = int(method.stage)
        stages.append(int(method.stage))
        method.learned({"exact": torch.tensor(x)})
        assert int(method.stage) == stages[-1]  # what is judged now is in the stage that it was trained in
    return stages


def test_a_stage_ends_when_it_is_learned_and_the_next_begins_anew():
    """The average is believed after 20 updates; with weights .98^n, that of 20 ones and 20 noughts is .4."""
    make = lambda at: small_reasoner(Coconut(n_latent=4, advance_at=at, stage_steps=10**6)).method  # noqa: E731
    assert told(make(0.8), [1.0] * 45) == [0] * 20 + [1] * 20 + [2] * 5
    assert told(make(0.8), [0.79] * 45) == [0] * 45
    assert told(make(0.3), [1.0] * 20 + [0.0] * 60) == [0] * 20 + [1] * 60
    rising = told(make(0.5), [0.0] * 20 + [1.0] * 30)  # 1 - .98^n is half of 1 - .98^(n + 20) first at n = 17
    average = lambda n: (1 - 0.98**n) / (1 - 0.98 ** (n + 20))  # noqa: E731
    first = next(n for n in range(1, 30) if average(n) > 0.5)
    assert rising[: 20 + first] == [0] * (20 + first) and rising[20 + first] == 1


def test_a_stage_ends_by_count_and_the_last_one_is_trained_before_it_is_judged():
    method = small_reasoner(Coconut(n_latent=2, advance_at=1.0, stage_steps=5)).method
    assert told(method, [0.0] * 15) == [0] * 5 + [1] * 5 + [2] * 5
    assert method.least_updates(99) == 15 and not method.in_last_stage and method.steps_written(8) == 6
    assert told(method, [0.0] * 3) == [3] * 3 and method.in_last_stage and method.steps_written(8) == 0
    by_merit = small_reasoner(Coconut(n_latent=2, advance_at=0.9, first_stage=1)).method
    assert by_merit.least_updates(99) == 40 and told(by_merit, [1.0] * 41)[-2:] == [2, 3]


def test_without_latents_a_curriculum_is_no_cot_in_training_too():
    """Other batches are of earlier stages: here there are none, however often they are asked for."""
    reasoner = small_reasoner(Coconut(n_latent=0, earlier=1.0), dtype=torch.float64)
    batch = cups_batch(reasoner.codec)
    loss, _ = reasoner.method.loss(batch)
    torch.testing.assert_close(loss, reasoner_of_no_cot(reasoner).loss(batch)[0], rtol=0, atol=1e-12)
    assert reasoner.method.positions_needed(5, [4, 4, 4], 4) == reasoner_of_no_cot(reasoner).positions_needed(5, [4], 4)
    skips = small_reasoner(Coconut(n_latent=2, first_stage=3, earlier=0.0)).method
    assert skips.positions_needed(5, [4, 4, 4], 4) == 5 + 2 + 4 - 1


def reasoner_of_no_cot(reasoner):
    """No-CoT with the weights of a reasoner."""
    return build_method(NoCoT(), reasoner.method.backbone)


def test_a_stage_has_latents_per_step_for_each_step_that_is_gone():
    method = small_reasoner(Coconut(n_latent=6, latents_per_step=2)).method
    used = []
    for stage in range(5):
        method.stage.fill_(stage)
        used.append(int(method.think(ragged_prompt(), Greedy()).used_B[0]))
    assert used == [0, 2, 4, 6, 6] and method.last == 4
    assert [method.target_step(i, 9) for i in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    assert [method.target_step(i, 2) for i in range(1, 7)] == [1, 1, 2, 2, 2, 2]


def test_fewer_steps_than_in_training_leave_the_text_where_it_was():
    method = small_reasoner(Sim(n_latent=3, stride=4), dtype=torch.float64).method
    prompt, text = ragged_prompt(), torch.randint(1, 13, (3, 4))
    h_BTD = text_hidden(method.backbone, method.think(prompt, Greedy(), steps=1), text)
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        _, x, pos = naive_states(method, ids, 1)
        x = torch.cat([x, method.backbone.embed(text[b : b + 1, :-1])], 1)
        start = ids.shape[1] + 4 * 3
        want = whole(method.backbone, x, pos + list(range(start, start + 3)))[0, -4:]
        torch.testing.assert_close(h_BTD[b], want, rtol=0, atol=1e-10)


def test_a_cut_chain_is_what_is_trained_on():
    reasoner = small_reasoner(CoT(every=3), dtype=torch.float64)
    batch = cups_batch(reasoner.codec)
    rows = [steps[2] + steps[5] + answer for steps, answer in zip(batch.steps, batch.answers)]
    loss, _ = reasoner.method.loss(batch)
    want = loss_of(reasoner.method, reasoner.method.think(batch.prompt, Greedy()), rows)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-10)


def test_exact_is_the_share_of_rows_that_are_right_in_every_token():
    reasoner = small_reasoner(NoCoT())
    batch = cups_batch(reasoner.codec)
    answers = reasoner.tokens(build_questions(6))[0].tolist()
    batch.answers = [tuple(a) for a in answers[:2]] + [(a[0], *(x % 12 + 1 for x in a[1:])) for a in answers[2:]]
    assert all(a[1:] != tuple(b[1:]) for a, b in zip(batch.answers[2:], answers[2:]))
    _, logged = reasoner.method.loss(batch)
    assert float(logged["exact"]) == pytest.approx(2 / 6)


def build_questions(n: int) -> list[str]:
    return [p.question for p in build(Cups()).train_batch(0, 0, n)]


def test_a_norm_is_at_the_embeddings_scale_and_learns_it():
    method = small_reasoner(Sim(feedback="norm"), dtype=torch.float64).method
    scale = method.feedback.scale
    rms = method.backbone.lm.get_input_embeddings().weight.double().square().mean().sqrt()
    torch.testing.assert_close(scale.detach(), rms.expand_as(scale), rtol=1e-6, atol=0)
    scale.data = torch.rand_like(scale)
    h = torch.randn(3, len(scale), dtype=torch.float64)
    torch.testing.assert_close(method.feedback(h), h / h.square().mean(-1, keepdim=True).sqrt() * scale)


def test_constants_are_drawn_at_the_embeddings_scale():
    for config, made, name in ((FixedEmbedding(), Constant, "embedding"), (Pause(), PauseTokens, "table")):
        backbone = small_reasoner(config).method.backbone
        rms = backbone.lm.get_input_embeddings().weight.square().mean().sqrt()
        torch.manual_seed(5)
        got = getattr(made(backbone) if made is Constant else made(4, backbone), name)
        torch.manual_seed(5)
        torch.testing.assert_close(got.detach(), (rms * torch.randn(got.shape)).detach())


def recurrent(**more):
    model = ModelConfig(n_layer=2, n_embd=32, n_head=2)
    return small_reasoner(Recurrent(n_recurrence=3, **more), model, dtype=torch.float64)


def test_recurrences_in_training_are_drawn_between_the_bounds():
    """The loss is the mean over recurrences 1 to r of what each should read out; r is any of 2, 3 and 4."""
    reasoner = recurrent(r_min=2, r_max=4)
    method, seen = reasoner.method, set()
    for seed in range(8):
        batch = cups_batch(reasoner.codec)
        batch.generator = torch.Generator().manual_seed(seed)
        loss, _ = method.loss(batch)
        r = 2 + int(torch.randint(3, (), generator=torch.Generator().manual_seed(seed)))
        each = [
            F.cross_entropy(
                method.backbone.head(method.think(batch.prompt, Greedy(), steps=i + 1).h_UTD).flatten(0, 1),
                torch.tensor([steps[i] for steps in batch.steps]).flatten(),
            )
            for i in range(r)
        ]
        torch.testing.assert_close(loss, sum(each) / r, rtol=0, atol=1e-10)
        seen.add(r)
    assert seen == {2, 3, 4}


def test_exact_is_that_of_the_last_recurrence():
    """Rows whose answer is what one recurrence reads out: that of the last for four of six, of the first for one."""
    reasoner = recurrent(r_min=3, r_max=3)
    method, batch = reasoner.method, cups_batch(reasoner.codec)
    first, last = (
        [
            tuple(x)
            for x in method.backbone.head(method.think(batch.prompt, Greedy(), steps=i).h_UTD).argmax(-1).tolist()
        ]
        for i in (1, 3)
    )
    assert all(a != b for a, b in zip(first, last))
    batch.steps, batch.answers = [[] for _ in range(6)], [*last[:4], first[4], (1, 1, 1, 1)]
    _, logged = method.loss(batch)
    assert float(logged["exact"]) == pytest.approx(4 / 6)
