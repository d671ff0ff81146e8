"""The embedding that closes a thought: read once between the latents and the text, learned with the rest."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latent
from kernels.errors import UserError
from latent import hub, methods
from latent.generate import rollout, score
from latent.methods import METHODS, Coconut, Codi, Pause, SequenceConfig, Sim, Soft
from latent.methods.terms import text_hidden
from latent.thought import Greedy
from tests.helpers import cups_batch, ragged_prompt, row_of, small_reasoner
from tests.latent.by_hand import ce_of, ragged_batch, states_of, teacher_of
from tests.latent.test_every_method import CONFIGS, made, taught
from tests.latent.test_hf import said

CLOSED = {name: replace(config, closing=True) for name, config in CONFIGS.items() if isinstance(config, SequenceConfig)}
QUESTIONS = ["01 23 12 01 . . . .", "03 . . . . . . ."]


def by_the_family(method, ids, k, fed, text):
    """The states that give a text's tokens, by the family's forward on latents that are given."""
    backbone, stride = method.backbone, method.stride
    x = torch.cat([backbone.embed(ids[None]), fed[:, :k], method.closing[None, None],
                   backbone.embed(text[None, :-1])], 1)  # fmt: skip
    n, room = len(ids), stride * k
    pos = [*range(n), *(n + stride * (i + 1) - 1 for i in range(k)), *(n + room + t for t in range(len(text)))]
    return states_of(backbone, x, pos)[-1][n + k :]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", CLOSED)
def test_a_text_follows_the_closing_embedding(name, family):
    """Left-padded and cached: the states of the text are the family's on prompt, inputs, closing, text."""
    torch.manual_seed(0)
    method = made(name, family, method=CLOSED[name]).method.eval()
    prompt, text_BT, inputs = ragged_prompt(), torch.randint(1, 13, (3, 4)), []

    def record(i, x):
        inputs.append(x)
        return x

    with torch.no_grad():
        with method.backbone.tap((-1,)) as tapped:
            thought = method.think(prompt, Greedy(), steps=method.steps, edit=record)
        for i in range(method.steps + 1):
            seen_BD = method.of_latent(tapped.calls, i).h_LBTD[0, :, 0]
            torch.testing.assert_close(seen_BD, thought.states_UKD[:, i], rtol=0, atol=1e-9)
        with pytest.raises(UserError, match=r"ends 1 latent steps before|not among"):  # what closes it is no latent
            method.of_latent(tapped.calls, method.steps + 1)
        with method.backbone.tap((-1,)) as tapped:
            method.think(prompt, Greedy(), steps=0)
        with pytest.raises(UserError, match="ends 1 latent steps before"):
            method.of_latent(tapped.calls, 1)
        got_BTD = text_hidden(method.backbone, thought, text_BT)
        k = method.steps
        fed_BKD = torch.stack(inputs[-k:], 1)
        for b in range(3):
            ids = row_of(prompt, b).ids_BT[0]
            want_TD = by_the_family(method, ids, k, fed_BKD[b : b + 1], text_BT[b])
            torch.testing.assert_close(got_BTD[b], want_TD, rtol=0, atol=1e-9 if family == "gpt2" else 1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_every_method_learns_it(name):
    """Its gradient is the loss's slope along a random direction, by central differences in fp64."""
    torch.manual_seed(0)
    reasoner = made(name, method=CLOSED[name])
    method, batch = reasoner.method, taught(name, made(name), slice(0, 4))
    direction, closing = torch.randn_like(method.closing), method.closing

    def loss():
        torch.manual_seed(1)
        return method.loss(batch)[0]

    loss().backward()
    slope = float(closing.grad @ direction)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            closing += step * direction
            values.append(float(loss()))
            closing -= step * direction
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5) and abs(slope) > 1e-6


def test_it_is_learned_where_there_are_no_latents():
    """By hand, row by row: the answer's cross-entropy after prompt and closing embedding, and its gradient."""
    reasoner = small_reasoner(Soft(n_latent=0, closing=True), dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    rows = zip(batch.prompt.ids_BT, batch.prompt.mask_BT, batch.answers, strict=True)
    want = torch.stack([
        ce_of(method.backbone, by_the_family(method, ids[real], 0, torch.empty(1, 0, method.backbone.width),
                                             torch.tensor(answer)), answer)
        for ids, real, answer in rows
    ]).sum() / sum(map(len, batch.answers))  # fmt: skip
    got = method.loss(batch)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    by_us, by_hand = (torch.autograd.grad(loss, method.closing)[0] for loss in (got, want))
    torch.testing.assert_close(by_us, by_hand, rtol=0, atol=1e-9)


def test_codi_matches_the_states_at_the_closing_embedding():
    """By hand: the student's states there, the teacher's at its chain's last token, which no closing follows."""
    torch.manual_seed(0)
    config = Codi(n_latent=2, stride=2, closing=True, distill_weight=3.0, teacher_weight=0.5)
    reasoner = small_reasoner(config, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    student_ce = teacher_ce = distance = 0.0
    written = 0
    for ids, real, steps, answer in zip(batch.prompt.ids_BT, batch.prompt.mask_BT, batch.steps, batch.answers):
        ids, chain, x = ids[real], sum(steps[:-1], ()), method.backbone.embed(ids[real][None])
        n = len(ids)
        pos = [*range(n), n + 1, n + 3, *(n + 4 + t for t in range(len(answer)))]
        for i in range(2):
            h_TD = states_of(method.backbone, x, pos[: n + i])[-1]
            x = torch.cat([x, method.feedback(h_TD[-1:])[None]], 1)
        x = torch.cat([x, method.closing[None, None], method.backbone.embed(torch.tensor([answer[:-1]]))], 1)
        states = states_of(method.backbone, x, pos)
        student_ce = student_ce + ce_of(method.backbone, states[-1][n + 2 :], answer)
        ce, teacher = teacher_of(method, ids, chain, answer)
        teacher_ce, written = teacher_ce + ce, written + len(chain) + len(answer)
        for s_TD, t_D in zip(states[1:], teacher[1:], strict=True):
            apart_D = (s_TD[n + 2] - t_D).abs()
            smooth = torch.where(apart_D < 1, apart_D**2 / 2, apart_D - 0.5).mean()
            distance = distance + smooth / t_D.std() / len(teacher[1:]) / len(batch.answers)
    want = student_ce / sum(map(len, batch.answers)) + 0.5 * teacher_ce / written + 3.0 * distance
    torch.testing.assert_close(method.loss(batch)[0], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        Coconut(n_latent=2, first_stage=3),
        Coconut(n_latent=2, first_stage=0),  # a stage without latents, which is closed, too
        Sim(n_latent=3, step_tokens=6),
        Sim(n_latent=0, step_tokens=6),
    ],
)
def test_a_checkpoint_with_one_answers_alike_everywhere(config, tmp_path):
    reasoner = small_reasoner(replace(config, closing=True))
    with torch.no_grad():
        reasoner.method.closing *= 300  # so that an answer without it is another one
    want = reasoner.answer(QUESTIONS)
    hub.save(reasoner, tmp_path)
    assert latent.load(tmp_path).answer(QUESTIONS) == want
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert said(model, tokenizer, QUESTIONS) == want


def test_rollouts_with_one_are_replayed_with_their_log_probs():
    torch.manual_seed(0)
    reasoner = small_reasoner(Sim(n_latent=2, step_tokens=6, closing=True), dtype=torch.float64)
    prompt = cups_batch(reasoner.codec).prompt
    rolled = rollout(reasoner.method, prompt, 3, 4, None, 1.0)
    for drawn, again in zip(rolled.decisions, score(reasoner.method, rolled, 1.0), strict=True):
        torch.testing.assert_close(again.logp_BT.detach(), drawn.logp_BT, rtol=0, atol=1e-9)


def test_it_takes_a_position_a_pass_and_the_layers_once():
    """And a control has it, too, at the same place."""
    plain, closed = (small_reasoner(Sim(n_latent=3, stride=2, closing=c)).method for c in (False, True))
    assert closed.reserved(3) == plain.reserved(3) + 1 == 7
    assert closed.passes(3, 4) == plain.passes(3, 4) + 1 == 8
    assert closed.positions_needed(5, [2], 4) == plain.positions_needed(5, [2], 4) + 1 == 15
    assert closed.flops(5, 3, 4) == plain.flops(5, 4, 4)
    paused = methods.build(Pause(of=Sim(n_latent=3, closing=True)), closed.backbone)
    assert paused.closing is not None and METHODS["sim"].closing is False
