"""Mixtures of tokens that are taught where a search may stand: loss, answers and merged tokens worked out by hand."""

from dataclasses import replace
from hashlib import blake2b

import pytest
import torch

from eval.environments import MNNS, Cups, build
from eval.environments.base import Problem
from kernels.errors import UserError
from latent.config import LearnedStop, ModelConfig
from latent.generate import decode, rollout, score
from latent.methods import CoT, CoT2, FixedEmbedding, NoCoT, Pause, Sim
from latent.policies import Gaussian, Tokens
from latent.policies.tokens.policy import DrawnThoughts
from latent.text import Batch
from latent.thought import Greedy, Sample, Share
from tests.helpers import ragged_prompt, row_of, small_reasoner
from tests.latent.test_methods import whole
from train.distill import taught

ENV = build(MNNS(digits=4, largest=5))
TINY = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=32)


def reasoner_of(method, env=ENV, family="gpt2", dtype=torch.float64):
    torch.manual_seed(3)
    return small_reasoner(method, replace(TINY, family=family), env, dtype)


def by_hand(method, codec, problem: Problem, k: int, fed: str, read: str):
    """KL summed over k latents and cross-entropy of the answer, one row, everything read anew for each latent.

    `fed`: "target" mixtures, those that the head says ("own"), the "hidden" state. `read`: the step i is read by the
    head off the state "before" latent i, or off latent i through a linear "decoder".
    """
    backbone, stride = method.backbone, method.stride
    table, head = (e.weight for e in (backbone.lm.get_input_embeddings(), backbone.lm.get_output_embeddings()))
    ids = list(codec.question(problem.question))
    x, pos, kl = table[ids][None], list(range(len(ids))), 0.0
    digits = [int(d) for d in problem.question.split()]

    def target(t):
        """Of all 2^t signs, each as likely."""
        p_V = torch.zeros(len(head), dtype=torch.float64)
        for signs in range(2**t):
            total = sum(d if signs >> i & 1 else -d for i, d in enumerate(digits[:t]))
            p_V[codec.step(f"={total}")[0]] += 2.0**-t
        return p_V

    def divergence(p_V, h_D):
        q_V = (head @ h_D).softmax(0)
        return sum(p * (p.log() - q.log()) for p, q in zip(p_V, q_V) if p > 0)

    every = method.config.supervise_every
    for t in range(1, k + 1):
        step = min(t, len(digits) - 1) if len(digits) - 1 <= k else -(-t * (len(digits) - 1) // k)
        p_V, h_D = target(step), whole(backbone, x, pos)[0, -1]
        if read == "before" and t % every == 0:
            kl = kl + divergence(p_V, h_D)
        mixed = {"target": p_V @ table, "own": (head @ h_D).softmax(0) @ table, "hidden": h_D}[fed]
        x, pos = torch.cat([x, mixed[None, None]], 1), [*pos, len(ids) + stride * t - 1]
        if read == "decoder" and t % every == 0:
            h_D = whole(backbone, x, pos)[0, -1]
            kl = kl + divergence(p_V, method.decoder.places.weight @ h_D + method.decoder.places.bias)
    logp_V = (head @ whole(backbone, x, pos)[0, -1]).log_softmax(0)
    return kl, -logp_V[codec.answer(problem.answer)[0]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "method, fed, read",
    [
        (CoT2(n_latent=3, step_weight=0.7), "target", "before"),
        (CoT2(n_latent=3, step_weight=0.7, stride=2), "target", "before"),
        (CoT2(n_latent=3, step_weight=0.7, teacher=False), "own", "before"),
        (CoT2(n_latent=2), "target", "before"),
        (CoT2(n_latent=5, step_weight=2.0), "target", "before"),
        (CoT2(n_latent=3, told="answer"), "own", ""),
        (CoT2(n_latent=3, teacher=False, supervise_every=2), "own", "before"),
        (CoT2(n_latent=4, teacher=False, supervise_every=2, step_weight=0.5), "own", "before"),
        (Sim(n_latent=5, told="frontier", supervise_every=2), "hidden", "decoder"),
        (Sim(n_latent=3, told="frontier", head=True, supervise_every=3), "hidden", "before"),
        (Sim(n_latent=3, told="frontier", step_weight=0.7), "hidden", "decoder"),
        (Sim(n_latent=4, told="frontier", head=True), "hidden", "before"),
        (Sim(n_latent=2, told="answer"), "hidden", ""),
    ],
    ids=lambda x: "",
)
def test_the_loss_and_its_gradients_are_those_worked_out(method, fed, read, family):
    made = reasoner_of(method, family=family)
    problems = ENV.train_batch(0, 0, 5)
    loss, logged = made.method.loss(taught(ENV, method, problems, made.codec))
    rows = [by_hand(made.method, made.codec, p, method.n_latent, fed, read) for p in problems]
    kl, ce = (sum(each) / 5 for each in zip(*rows))
    close = 1e-9 if family == "gpt2" else 1e-5  # transformers turns positions in fp32
    torch.testing.assert_close(loss, method.step_weight * kl + ce, atol=close, rtol=close)
    if read:
        torch.testing.assert_close(
            logged["step_kl"], kl.detach() / (method.n_latent // method.supervise_every), atol=close, rtol=close
        )
    params = list(made.method.parameters())
    got, want = (torch.autograd.grad(x, params, allow_unused=True) for x in (loss, method.step_weight * kl + ce))
    for a, b in zip(got, want):
        for x, y in ((a, b), (b, a)):
            assert x is not None or y is None or not y.any()
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=10 * close, rtol=10 * close)


def test_answers_batched_with_a_cache_are_those_of_one_row_read_anew():
    made = reasoner_of(CoT2(n_latent=3, stride=2))
    prompt = ragged_prompt(vocab=10)
    with torch.no_grad():
        thought = made.method.think(prompt, Greedy())
        for b in range(3):
            ids = row_of(prompt, b).ids_BT
            x, pos = made.method.backbone.embed(ids), list(range(ids.shape[1]))
            for t in range(3):
                logits_V = made.method.backbone.lm.get_output_embeddings()(whole(made.method.backbone, x, pos)[0, -1])
                mixed_D = logits_V.softmax(0) @ made.method.backbone.lm.get_input_embeddings().weight
                x, pos = torch.cat([x, mixed_D[None, None]], 1), [*pos, ids.shape[1] + 2 * (t + 1) - 1]
            want = whole(made.method.backbone, x, pos)[0, -1]
            torch.testing.assert_close(thought.h_UTD[b, 0], want, atol=1e-10, rtol=0)


def test_a_head_that_says_the_targets_thinks_as_it_was_taught():
    """Teacher and model agree where the mixtures do: the loss of the taught pass is then that of the model's own."""
    env = build(Cups(cups=3, swaps=3, min_swaps=3, state_tokens=1))
    method = CoT2(n_latent=3)
    forced, free = reasoner_of(method, env), reasoner_of(replace(method, teacher=False), env)
    batch = taught(env, method, env.train_batch(0, 0, 4), forced.codec)
    p_BKV = torch.stack([torch.stack(steps) for steps in batch.frontiers])
    assert p_BKV.shape[:2] == (4, 3) and torch.equal(p_BKV.max(-1).values, torch.ones(4, 3).double())
    table_VD = free.method.backbone.lm.get_input_embeddings().weight
    taken = iter((p_BKV @ table_VD).unbind(1))
    free.method.feedback.forward = lambda h_BD: next(taken)
    for a, b in zip(forced.method.terms(batch)[0], free.method.terms(batch)[0]):
        torch.testing.assert_close(a.total, b.total, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [Pause, FixedEmbedding])
def test_controls_feed_their_own_and_are_taught_the_same(kind):
    made = reasoner_of(kind(CoT2(n_latent=3)))
    problems = ENV.train_batch(0, 0, 3)
    method, codec = made.method, made.codec
    fed = method.feedback.known(3)
    loss, _ = method.loss(taught(ENV, kind(CoT2(n_latent=3)), problems, codec))
    total = 0.0
    for p in problems:
        ids = torch.tensor([codec.question(p.question)])
        x = torch.cat([method.backbone.embed(ids), fed[None]], 1)
        h = whole(method.backbone, x, list(range(x.shape[1])))[0, -4:]
        logp = method.backbone.head(h).log_softmax(-1)
        for t, step in enumerate(ENV.frontiers(p)):
            total = total + sum(q * (torch.tensor(q).double().log() - logp[t, codec.step(w)[0]]) for w, q in step)
        total = total - logp[3, codec.answer(p.answer)[0]]
    torch.testing.assert_close(loss, total / 3, atol=1e-7, rtol=0)


def test_a_latent_that_is_not_thought_is_no_cot():
    mixed, plain = reasoner_of(CoT2(n_latent=0)), reasoner_of(NoCoT())
    problems = ENV.train_batch(0, 0, 4)
    a, b = (r.method.loss(taught(ENV, r.method.config, problems, r.codec))[0] for r in (mixed, plain))
    assert torch.equal(a, b)


def test_an_exhaustive_chain_is_taught_and_decoded_whole():
    method = CoT(told="search")
    made = reasoner_of(method)
    told = [ENV.told(p, "search", "any") for p in ENV.train_batch(0, 0, 3)]
    batch = taught(ENV, method, told, made.codec)
    rows = batch.chain().ids_BT
    assert rows.shape == (3, 2**3 - 1 + 1)
    for p, row in zip(told, rows.tolist()):
        assert made.codec.text(row).split() == [*"".join(p.steps).split(), p.answer]
    written = replace(made, chain_tokens=ENV.longest_chain("search"))
    assert written.max_tokens == 8 and len(written.answer(["1 2 3 4"])[0].split()) == 8


def merged(method, codec, prompt_ids, tokens_KN, text_ids):
    """Log-probabilities (K,) of merged tokens and (T,) of a text, one row, everything read anew."""
    backbone, config = method.backbone, method.config
    table, head = (e.weight for e in (backbone.lm.get_input_embeddings(), backbone.lm.get_output_embeddings()))
    x, pos, thoughts, logp = table[prompt_ids][None], list(range(len(prompt_ids))), [], []
    for tokens_N in tokens_KN:
        logp_V = (head @ whole(backbone, x, pos)[0, -1] / config.policy.temperature).log_softmax(0)
        thoughts.append(sum(logp_V[i] for i in tokens_N))
        # by the family's own look-up, which trains no padding token's row
        x = torch.cat([x, sum(backbone.embed(i[None, None]) for i in tokens_N) / len(tokens_N)], 1)
        pos.append(pos[-1] + config.stride)
    for token in text_ids:
        logp.append((head @ whole(backbone, x, pos)[0, -1]).log_softmax(0)[token])
        x, pos = torch.cat([x, backbone.embed(token[None, None])], 1), [*pos, pos[-1] + 1]
    return torch.stack(thoughts), torch.stack(logp)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "method",
    [
        CoT2(n_latent=3, policy=Tokens(k=1)),
        CoT2(n_latent=3, stride=2, policy=Tokens(k=3, temperature=3.0)),
        Sim(n_latent=2, policy=Tokens(k=2)),
    ],
    ids=["discrete", "three", "sim"],
)
def test_merged_tokens_have_the_log_probs_and_gradients_written_out(method, family):
    made = reasoner_of(method, family=family)
    prompt = made.codec.prompt([p.question for p in ENV.train_batch(0, 0, 2)])
    rolled = rollout(made.method, prompt, 3, 1, None, 1.0)
    thought, token = rolled.decisions
    k = method.policy.k
    assert thought.value_BT.shape == (6, method.n_latent, k) and not thought.density
    now = score(made.method, rolled, 1.0)
    wants = [
        merged(made.method, made.codec, prompt.ids_BT[b // 3], thought.value_BT[b], rolled.tokens_BT[b])
        for b in range(6)
    ]
    close = 1e-9 if family == "gpt2" else 1e-5
    for decision, sampled, want in zip(now, (thought, token), zip(*wants)):
        want = torch.stack(want)
        torch.testing.assert_close(decision.logp_BT, want, atol=close, rtol=close)
        torch.testing.assert_close(sampled.logp_BT, want.detach(), atol=close, rtol=close)
        weight, params = torch.randn_like(want), [p for n, p in made.method.named_parameters() if "decoder" not in n]
        got, hand = (
            torch.autograd.grad((x * weight).sum(), params, retain_graph=True, allow_unused=True)
            for x in (decision.logp_BT, want)
        )
        for a, b in zip(got, hand):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, atol=10 * close, rtol=10 * close)


def test_merged_tokens_are_drawn_as_the_head_says_and_their_entropy_is_k_times_the_heads():
    made = reasoner_of(CoT2(n_latent=1, policy=Tokens(k=4, temperature=2.0)))
    prompt = made.codec.prompt(["1 2 3 4"])
    drawn = made.method.think(prompt, Sample(), 20_000).decisions[0]
    h_BD, _ = made.method.backbone.read(prompt.ids_BT)
    p_V = (made.method.backbone.head(h_BD)[0] / 2).softmax(0).detach()
    counts_V = torch.bincount(drawn.value_BT.flatten(), minlength=len(p_V)) / drawn.value_BT.numel()
    assert bool(((counts_V - p_V).abs() < 5 * (p_V * (1 - p_V) / 80_000).sqrt()).all())
    torch.testing.assert_close(drawn.entropy_BT[0, 0], -4 * (p_V * p_V.log()).sum())
    first, second = drawn.value_BT[:, 0, 0], drawn.value_BT[:, 0, 1]
    likely = int(p_V.argmax())
    both = ((first == likely) & (second == likely)).double().mean()
    assert abs(float(both) - float(p_V[likely]) ** 2) < 5 * (float(p_V[likely]) ** 2 / 20_000) ** 0.5


@pytest.mark.parametrize("policy", [Tokens(k=3), Gaussian()])
def test_a_share_of_a_batch_draws_what_the_whole_would_have_drawn(policy):
    made = reasoner_of(CoT2(n_latent=2, policy=policy))
    prompt = made.codec.prompt([p.question for p in ENV.train_batch(0, 0, 4)])
    torch.manual_seed(5)
    want = made.method.think(prompt, Sample(), 2).decisions[0].value_BT
    for part in (slice(0, 3), slice(3, 4)):
        rows_B = torch.arange(8)[part.start * 2 : part.stop * 2]
        choose = Sample(share=Share(rows_B, 8, torch.Generator().manual_seed(5)))
        got = made.method.think(prompt.rows(part), choose, 2).decisions[0].value_BT
        torch.testing.assert_close(got, want[rows_B], atol=1e-12, rtol=0)


def test_greedy_answers_feed_the_mixture_whatever_the_policy():
    plain, drawn = reasoner_of(CoT2(n_latent=3)), reasoner_of(CoT2(n_latent=3, policy=Tokens()))
    prompt = plain.codec.prompt([p.question for p in ENV.train_batch(0, 0, 4)])
    a, b = (r.method.think(prompt, Greedy()) for r in (plain, drawn))
    assert torch.equal(a.states_UKD, b.states_UKD)
    assert torch.equal(*(decode(r.method, t, Greedy(), 1, None) for r, t in ((plain, a), (drawn, b))))


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda: CoT2(n_latent=3, teacher=False, supervise_every=0),
            r"supervise_every must be in 1\.\.method\.n_latent = 3",
        ),
        (lambda: Sim(n_latent=3, supervise_every=4), r"supervise_every must be in 1\.\.method\.n_latent = 3, got 4"),
        (lambda: CoT2(supervise_every=2), r"method\.supervise_every 2 needs method\.teacher off"),
        (lambda: Sim(stop_weight=1.0), r"method\.stop_weight teaches a learned stop \(method\.halt learned\)"),
        (lambda: Sim(stop_weight=1.0, halt=LearnedStop(), told="answer"), r"by a chain \(method\.told\)"),
        (lambda: Sim(stop_weight=-1.0), r"method\.stop_weight must be at least 0"),
        (lambda: Sim(early_stops="no"), "early_stops must be one of rest, last, never, got 'no'"),
    ],
)
def test_what_cannot_be_supervised_is_said_in_one_line(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_greedy_answers_that_are_drawn_feed_the_tokens_worked_out():
    """K tokens a thought at its temperature, by numbers that the prompt alone says, whatever else is in the batch."""
    policy = Tokens(k=3, temperature=3.0, judged="drawn")
    made = reasoner_of(CoT2(n_latent=2, stride=2, policy=policy))
    backbone, prompt = made.method.backbone, ragged_prompt(vocab=10)
    head = backbone.lm.get_output_embeddings()
    with torch.no_grad():
        thought = made.method.think(prompt, Greedy())
        for b in range(3):
            row = row_of(prompt, b)
            digest = blake2b(repr(row.ids_BT[0].tolist()).encode(), digest_size=8).digest()
            u_KN = torch.rand(
                2, 3, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            ).double()
            x, pos = backbone.embed(row.ids_BT), list(range(row.ids_BT.shape[1]))
            for t in range(2):
                p_V = (head(whole(backbone, x, pos)[0, -1]) / 3).softmax(0)
                ids = [next(i for i in range(len(p_V)) if p_V[: i + 1].sum() > u) for u in u_KN[t]]
                fed_D = sum(backbone.embed(torch.tensor([[i]]))[0, 0] for i in ids) / 3
                x, pos = torch.cat([x, fed_D[None, None]], 1), [*pos, row.ids_BT.shape[1] + 2 * (t + 1) - 1]
            torch.testing.assert_close(thought.h_UTD[b, 0], whole(backbone, x, pos)[0, -1], atol=1e-10, rtol=0)
            alone = made.method.think(row, Greedy())
            torch.testing.assert_close(alone.h_UTD[0], thought.h_UTD[b], atol=1e-10, rtol=0)
    assert not thought.decisions


def test_drawn_tokens_are_as_frequent_as_the_head_says():
    made = reasoner_of(CoT2(n_latent=1, policy=Tokens(k=1, temperature=2.0, judged="drawn"))).method
    prompt = ragged_prompt(vocab=10)
    h_BD, _ = made.backbone.read(prompt.ids_BT[:1])
    dist = made.policy(h_BD, h_BD)
    u_N = (torch.arange(10_000) + 0.5) / 10_000
    ids_BN = DrawnThoughts(Greedy(), u_N[None, None])("thought", dist, torch.ones(1, dtype=torch.bool))
    counts_V = torch.bincount(ids_BN[0], minlength=made.backbone.vocab)
    p_V = (made.backbone.head(h_BD)[0] / 2).softmax(0)
    assert bool(((counts_V - 10_000 * p_V).abs() < 1.01).all())


def test_how_answers_are_judged_changes_no_training():
    for told in ("answer", "frontier"):
        plain = CoT2(n_latent=3, told=told, policy=Tokens(k=3))
        drawn = replace(plain, policy=replace(plain.policy, judged="drawn"))
        made = [reasoner_of(method) for method in (plain, drawn)]
        problems = ENV.train_batch(0, 0, 4)
        a, b = (r.method.loss(taught(ENV, r.method.config, problems, r.codec))[0] for r in made)
        assert torch.equal(a, b)
        torch.manual_seed(1)
        prompt = made[0].codec.prompt([p.question for p in problems])
        first = rollout(made[0].method, prompt, 2, 1, None, 1.0)
        torch.manual_seed(1)
        assert torch.equal(first.tokens_BT, rollout(made[1].method, prompt, 2, 1, None, 1.0).tokens_BT)


def test_what_cannot_be_drawn_is_said_in_one_line():
    with pytest.raises(UserError, match="k must be at least 1, got 0"):
        Tokens(k=0)
    with pytest.raises(UserError, match=r"method\.policy\.temperature must be > 0"):
        Tokens(temperature=0.0)
    with pytest.raises(UserError, match="judged must be one of method, drawn, got 'mean'"):
        Tokens(judged="mean")


def test_a_batch_without_frontiers_has_none():
    made = reasoner_of(NoCoT())
    assert Batch.of(ENV.train_batch(0, 0, 2), made.codec).frontiers is None
