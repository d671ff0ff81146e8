"""The thought loops against plain recomputations."""

import pytest
import torch
import torch.nn.functional as F

from kernels.errors import UserError
from latent.config import Converged, Fixed, LearnedStop, ModelConfig
from latent.generate import decode
from latent.methods import Coconut, CoT, NoCoT, Recurrent, Sim
from latent.methods.feedback import Feedback
from latent.methods.terms import text_hidden
from latent.text import Batch, pad_left
from latent.thought import Greedy, Sample
from tests.helpers import SMALL, cups_batch, ragged_prompt, row_of, small_reasoner


def whole(backbone, x_1TD, pos):
    """The family's own forward; without a mask it would take a jump in the positions for a second document."""
    mask = torch.ones(x_1TD.shape[:2], dtype=torch.long)
    out = backbone.decoder[0](
        inputs_embeds=x_1TD, position_ids=torch.tensor([pos]), attention_mask=mask, use_cache=False
    )
    return out.last_hidden_state


def naive_states(method, ids_1T, k):
    """Coconut's loop without cache or batch: the whole sequence through the family's forward, k + 1 times."""
    backbone, stride, n = method.backbone, method.stride, ids_1T.shape[1]
    x, pos, states = backbone.embed(ids_1T), list(range(n)), []
    for i in range(k + 1):
        states.append(whole(backbone, x, pos)[:, -1])
        x = torch.cat([x, method.feedback(states[-1])[:, None]], 1)
        pos.append(n + stride * (i + 1) - 1)
    return torch.stack(states, 1), x[:, :-1], pos[:-1]


@pytest.mark.parametrize("feedback", ["hidden", "norm", "project", "soft"])
@pytest.mark.parametrize("stride", [1, 4])
def test_latent_loop_is_the_naive_recomputation(feedback, stride):
    method = small_reasoner(Sim(n_latent=3, stride=stride, feedback=feedback), dtype=torch.float64).method
    prompt, text = ragged_prompt(), torch.randint(1, 13, (3, 4))
    thought = method.think(prompt, Greedy())
    h_BTD = text_hidden(method.backbone, thought, text)
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        states, x, pos = naive_states(method, ids, 3)
        torch.testing.assert_close(thought.states_UKD[b], states[0], rtol=0, atol=1e-10)
        x = torch.cat([x, method.backbone.embed(text[b : b + 1, :-1])], 1)
        start = ids.shape[1] + stride * 3
        want = whole(method.backbone, x, pos + list(range(start, start + 3)))[0, -4:]
        torch.testing.assert_close(h_BTD[b], want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("top_k, temperature", [(None, 1.0), (None, 0.6), (3, 1.0), (1, 0.5), (13, 2.0)])
def test_soft_tokens_are_the_mean_embedding_and_are_trained_through(top_k, temperature):
    method = small_reasoner(Sim(n_latent=1), dtype=torch.float64).method
    feedback, lm = Feedback("soft", method.backbone, top_k, temperature), method.backbone.lm
    h = torch.randn(2, method.backbone.width, dtype=torch.float64, requires_grad=True)
    want = torch.zeros_like(h)
    for b in range(2):
        odds = (lm.get_output_embeddings().weight @ h[b] / temperature).exp()
        likely = sorted(range(len(odds)), key=lambda v, odds=odds: -float(odds[v].detach()))[: top_k or len(odds)]
        for v in likely:
            want[b] = want[b] + odds[v] / odds[likely].sum() * lm.get_input_embeddings().weight[v]
    got = feedback(h)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(want.sin().sum(), [h, *lm.parameters()], allow_unused=True)
    for a, b in zip(torch.autograd.grad(got.sin().sum(), [h, *lm.parameters()], allow_unused=True), wanted):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=0, atol=1e-12))
    with torch.no_grad():
        torch.testing.assert_close(feedback(h), want, rtol=0, atol=1e-12)
        low = h.detach().bfloat16()  # states as autocast makes them
        assert feedback(low).dtype == torch.bfloat16
        if top_k in (None, 13):  # or rounding may choose another token
            torch.testing.assert_close(feedback(low).double(), feedback(low.double()), rtol=0, atol=0.02)


def test_batched_fp32_answers_are_the_single_ones():
    reasoner = small_reasoner(Sim(n_latent=4, stride=2))
    prompt = ragged_prompt()
    with torch.no_grad():
        thought = reasoner.method.think(prompt, Greedy())
        for b in range(3):
            alone = reasoner.method.think(row_of(prompt, b), Greedy())
            torch.testing.assert_close(thought.h_UTD[b], alone.h_UTD[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [CoT(), Sim(n_latent=0), Coconut(n_latent=0), Sim(n_latent=0, halt=LearnedStop())])
def test_no_latents_is_no_cot(config):
    torch.manual_seed(1)
    reasoner = small_reasoner(config)
    torch.manual_seed(1)
    plain = small_reasoner(NoCoT())
    prompt = cups_batch(plain.codec).prompt
    with torch.no_grad():
        got, want = (r.method.think(prompt, Greedy()) for r in (reasoner, plain))
        torch.testing.assert_close(got.h_UTD, want.h_UTD, rtol=0, atol=0)
        texts = [decode(r.method, t, Greedy(), 4, None) for r, t in ((reasoner, got), (plain, want))]
    assert torch.equal(*texts)
    assert got.used_B.tolist() == [0] * 6


def test_zero_steps_on_a_latent_model_is_its_no_cot():
    reasoner = small_reasoner(Sim(n_latent=5, stride=3))
    prompt = ragged_prompt()
    with torch.no_grad():
        thought = reasoner.method.think(prompt, Greedy(), steps=0)
        h_BD, _ = reasoner.method.backbone.read(prompt.ids_BT, prompt.mask_BT)
    assert torch.equal(thought.h_UTD[:, 0], h_BD)


def test_a_row_that_stops_early_is_that_row_with_fewer_latents():
    method = small_reasoner(Sim(n_latent=5, stride=2, halt=LearnedStop(bias=0.0)), dtype=torch.float64).method
    prompt = ragged_prompt((3, 7, 5, 6, 4, 7))
    text = torch.randint(1, 13, (6, 4))
    with torch.no_grad():
        thought = method.think(prompt, Sample())
        h_BTD = text_hidden(method.backbone, thought, text)
        assert len(set(thought.used_B.tolist())) > 2
        method.stop = None
        for b, used in enumerate(thought.used_B.tolist()):
            alone = method.think(row_of(prompt, b), Greedy(), steps=used)
            want = text_hidden(method.backbone, alone, text[b : b + 1])
            torch.testing.assert_close(h_BTD[b], want[0], rtol=0, atol=1e-10)


def test_losses_are_cross_entropies_of_the_right_text():
    batch_of = lambda r: cups_batch(r.codec)  # noqa: E731
    for config, chain in ((NoCoT(), False), (CoT(), True)):
        reasoner = small_reasoner(config, dtype=torch.float64)
        batch = batch_of(reasoner)
        rows = [sum(s, ()) + a if chain else a for s, a in zip(batch.steps, batch.answers)]
        total = count = 0
        for ids, row in zip(batch.prompt.ids_BT, rows):
            full = torch.cat([ids, torch.tensor(row)])
            logits = reasoner.method.backbone.lm(full[None], use_cache=False).logits[0, len(ids) - 1 : -1]
            total, count = total + F.cross_entropy(logits, torch.tensor(row), reduction="sum"), count + len(row)
        loss, _ = reasoner.method.loss(batch)
        torch.testing.assert_close(loss, total / count, rtol=0, atol=1e-10)


def test_coconut_replaces_steps_by_latents_and_advances():
    reasoner = small_reasoner(Coconut(n_latent=8, stride=4, advance_at=2.0, stage_steps=2, earlier=0.0))
    method, batch = reasoner.method, cups_batch(reasoner.codec)
    seen = []
    for _ in range(22):
        method.begin_update()
        stage, written = int(method.stage), method.steps_written(8)
        thought = method.think(batch.prompt, Greedy())
        want = F.cross_entropy(
            method.backbone.head(text_hidden(method.backbone, thought, batch.chain(stage).ids_BT)).flatten(0, 1),
            batch.chain(stage).ids_BT.flatten(),
        )
        loss, logged = method.loss(batch)
        method.learned(logged)
        torch.testing.assert_close(loss, want)
        seen.append((stage, int(thought.used_B[0]), written))
    assert seen[:3] == [(0, 0, 8), (0, 0, 8), (1, 1, 7)]
    assert seen[16] == (8, 8, 0) and seen[-1] == (9, 8, 0)
    assert batch.chain(9).ids_BT.shape[1] == 4  # the answer alone


def test_a_long_chain_is_dealt_evenly_over_the_latents():
    reasoner = small_reasoner(Sim(n_latent=4, step_tokens=8))
    batch = cups_batch(reasoner.codec, size=1)
    rows, text = reasoner.method.step_targets(reasoner.method.supervised(batch), batch, "cpu")
    want = [sum(batch.steps[0][2 * i : 2 * i + 2], ()) for i in range(4)]
    assert rows is None and text.ids_BT.tolist() == [list(w) for w in want]


def recurrent(r_max=5, halt=None, family="gpt2"):
    model = ModelConfig(family=family, n_layer=4, n_embd=32, n_head=2)
    config = Recurrent(prelude=1, core=2, coda=1, n_recurrence=3, r_min=1, r_max=r_max, halt=halt or Fixed())
    return small_reasoner(config, model, dtype=torch.float64)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("r", [1, 3])
def test_recurrent_depth_is_the_unrolled_network(family, r):
    method = recurrent(family=family).method
    prompt = ragged_prompt()
    thought = method.think(prompt, Greedy(), steps=r)
    for b in range(3):
        ids = row_of(prompt, b).ids_BT
        ids = torch.cat([ids, ids[:, -1:].expand(1, 3)], 1)
        want = unrolled(method, ids, r)
        exact = 1e-10 if family == "gpt2" else 1e-6  # Llama's RMSNorm rounds to fp32 in transformers
        torch.testing.assert_close(thought.h_UTD[b], want[0, -4:], rtol=0, atol=exact)


def unrolled(method, ids, r):
    """prelude, r times the core with injection, coda, by the family's own blocks and a causal mask."""
    body = method.backbone.decoder[0]
    blocks = list(body.h if hasattr(body, "h") else body.layers)
    n = ids.shape[1]
    pos = torch.arange(n)[None]
    mask = torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    h, more = method.backbone.embed(ids), {}
    if hasattr(body, "wpe"):
        h = h + body.wpe(pos)
    else:
        more = {"position_embeddings": body.rotary_emb(h, pos)}

    def run(h, part):
        for block in part:
            h = block(h, attention_mask=mask, **more)
        return h

    e = method.inject(run(h, blocks[:1]))
    s = torch.zeros_like(e)
    for _ in range(r):
        s = method.norm(run(method.carry(s) + e, blocks[1:3]))
    return (body.ln_f if hasattr(body, "ln_f") else body.norm)(run(s, blocks[3:]))


def test_recurrences_are_supervised_on_the_step_they_should_have_reached():
    reasoner = recurrent(r_max=1)
    method, batch = reasoner.method, cups_batch(reasoner.codec)
    loss, _ = method.loss(batch)
    logits = method.backbone.head(method.think(batch.prompt, Greedy(), steps=1).h_UTD)
    first_steps = torch.tensor([s[0] for s in batch.steps])
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), first_steps.flatten()))
    rows = method.targets(batch, 10).ids_BT.view(6, 10, 4)
    assert rows[2, 9].tolist() == list(batch.answers[2]) and rows[2, 4].tolist() == list(batch.steps[2][4])


def test_recurrent_rows_stop_on_their_own():
    method = recurrent(halt=LearnedStop(bias=0.0)).method
    prompt = ragged_prompt((3, 7, 5, 6))
    with torch.no_grad():
        thought = method.think(prompt, Sample())
        assert len(set(thought.used_B.tolist())) > 1
        method.stop = None
        for b, used in enumerate(thought.used_B.tolist()):
            want = method.think(row_of(prompt, b), Greedy(), steps=used).h_UTD[0]
            torch.testing.assert_close(thought.h_UTD[b], want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "by, hits", [("second_difference", 1), ("second_difference", 2), ("kl", 1), ("entropy", 1), ("entropy", 2)]
)
@pytest.mark.parametrize("depth", [False, True])
def test_rows_stop_where_they_have_settled(by, hits, depth):
    along = small_reasoner(Sim(n_latent=7, stride=1, halt=Converged()), SMALL, dtype=torch.float64).method
    method = recurrent(halt=Converged()).method if depth else along
    prompt, stop = ragged_prompt((3, 7, 5, 6, 4, 8)), method.stop
    with torch.no_grad():
        method.stop = None
        states_PKD = method.think(prompt, Greedy(), steps=7).states_UKD
        logp_PKV = method.backbone.head(method.lens(states_PKD)).log_softmax(-1)
        if by == "kl":
            moved_PK = (logp_PKV[:, 1:].exp() * logp_PKV.diff(dim=1)).sum(-1)
        elif by == "entropy":
            moved_PK = -(logp_PKV.exp() * logp_PKV).sum(-1)
        else:
            moved_PK = states_PKD.diff(n=2, dim=1).square().mean(-1).sqrt()
        # half-way between two neighbours among the values: no processor's rounding moves one across it
        ranked = moved_PK.flatten().sort().values
        n = int((0.6 if hits == 2 else 0.3) * len(ranked))
        assert ranked[n] - ranked[n - 1] > 1e-6 * ranked[n]
        below = float((ranked[n] + ranked[n - 1]) / 2)
        settled_PK = F.pad(moved_PK < below, (states_PKD.shape[1] - moved_PK.shape[1], 0))
        if hits == 2:
            settled_PK &= F.pad(settled_PK[:, :-1], (1, 0))
        used = [row.index(True) if True in row[:7] else 7 for row in settled_PK.tolist()]
        assert len(set(used)) > 1
        stop.config = Converged(by=by, below=below, hits=hits)
        method.stop = stop
        thought = method.think(prompt, Sample(), group=2, steps=7)
        assert thought.used_B.tolist() == [u for u in used for _ in range(2)] and not thought.decisions
        method.stop = None
        for p in range(6):
            want = method.think(row_of(prompt, p), Greedy(), steps=used[p]).h_UTD[0]
            torch.testing.assert_close(thought.h_UTD[thought.row_B[2 * p]], want, rtol=0, atol=1e-10)


def test_configs_say_what_is_wrong():
    with pytest.raises(ValueError, match="below must be positive, got 0"):
        Converged(below=0)
    with pytest.raises(ValueError, match="n_latent must be at least 0, got -1"):
        Sim(n_latent=-1)
    with pytest.raises(ValueError, match="multiple"):
        Coconut(n_latent=5, latents_per_step=2)
    with pytest.raises(ValueError, match="need 3 layers, the model has 2"):
        small_reasoner(Recurrent(coda=1), SMALL)
    with pytest.raises(ValueError, match=r"step_tokens is 2"):
        reasoner = small_reasoner(Sim(step_tokens=2))
        reasoner.method.loss(cups_batch(reasoner.codec))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "config", [CoT(), Sim(n_latent=2, step_tokens=9), Coconut(n_latent=2)], ids=["cot", "sim", "coconut"]
)
def test_rows_that_fit_alone_fit_together(config, family):
    """A long question with a short chain beside a short one with a long chain: the loss is that of each row alone."""
    shape = ModelConfig(family=family, n_layer=2, n_embd=16, n_head=2, n_positions=30)
    method = small_reasoner(config, shape, dtype=torch.float64).method
    rows = [([1, 2, 3] * 6 + [4], [(4,)], (5, 6)), ([1, 2], [(3, 4, 5)] * 5, (6, 7)), ([1] * 8, [(2, 3)], (4,) * 9)]
    batches = [Batch(pad_left([q], 0), [steps], [answer], 0) for q, steps, answer in rows]
    questions, steps, answers = map(list, zip(*rows))
    together = method.terms(Batch(pad_left(questions, 0), steps, answers, 0))[0]
    for term, *alone in zip(together, *(method.terms(b)[0] for b in batches), strict=True):
        torch.testing.assert_close(term.total, sum(a.total for a in alone), rtol=1e-6, atol=0)
        assert int(term.count) == sum(int(a.count) for a in alone)
    rows[0][0].extend([1] * 10)  # 29 to read leave no room for chain and answer
    with pytest.raises(UserError, match="the model has 30"):
        method.terms(Batch(pad_left(questions, 0), steps, answers, 0))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_text_of_two_tokens_fits_beside_a_prompt_that_leaves_room_for_one(family, grad):
    """Its second token is read in a single step, which the row beside it has no position for and does not need."""
    shape = ModelConfig(family=family, n_layer=2, n_embd=16, n_head=2, n_positions=10)
    method = small_reasoner(Sim(n_latent=2), shape, dtype=torch.float64).method
    prompt, ids_BT = ragged_prompt((8, 2)), torch.tensor([[5, 0], [6, 7]])
    with torch.set_grad_enabled(grad):
        h_BTD = text_hidden(method.backbone, method.think(prompt, Greedy()), ids_BT, lengths_U=torch.tensor([1, 2]))
        for b, n in enumerate((1, 2)):
            alone = text_hidden(method.backbone, method.think(row_of(prompt, b), Greedy()), ids_BT[b : b + 1, :n])
            torch.testing.assert_close(h_BTD[b : b + 1, :n], alone, rtol=0, atol=1e-6)
        with pytest.raises(UserError, match="need 11 positions, the model has 10"):
            text_hidden(method.backbone, method.think(prompt, Greedy()), ids_BT, lengths_U=torch.tensor([2, 2]))
