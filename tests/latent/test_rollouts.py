"""Rollouts and their replay: the heart of RL on decisions."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from eval.environments import ProntoQA, build
from latent.config import Converged, LearnedStop, ModelConfig
from latent.generate import decode, rollout, score
from latent.methods import NoCoT, Recurrent, Sim
from latent.methods.terms import text_hidden
from latent.thought import Greedy, Prompt, Replay, Sample
from tests.helpers import cups_batch, ragged_prompt, row_of, small_reasoner

STOPPING = Sim(n_latent=4, stride=2, halt=LearnedStop(bias=-0.5))


@pytest.mark.parametrize("config", [STOPPING, Sim(n_latent=3), Recurrent(n_recurrence=3, halt=LearnedStop(bias=-0.5))])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_replay_gives_the_sampled_log_probs(config, temperature):
    reasoner = small_reasoner(config, ModelConfig(n_embd=32, n_head=2))
    prompt = ragged_prompt()
    rolled = rollout(reasoner.method, prompt, 5, 4, None, temperature)
    now = score(reasoner.method, rolled, temperature)
    assert [d.kind for d in now] == [d.kind for d in rolled.decisions]
    for a, b in zip(now, rolled.decisions):
        assert torch.equal(a.mask_BT, b.mask_BT) and torch.equal(a.value_BT, b.value_BT)
        torch.testing.assert_close(a.logp_BT[b.mask_BT], b.logp_BT[b.mask_BT], rtol=0, atol=1e-5)
        torch.testing.assert_close(a.entropy_BT[b.mask_BT], b.entropy_BT[b.mask_BT], rtol=0, atol=1e-5)


def test_log_prob_of_a_rollout_is_that_of_its_parts():
    """The stops and tokens of one rollout, worked out by hand from single, unbatched forwards."""
    reasoner = small_reasoner(STOPPING, dtype=torch.float64)
    method, prompt = reasoner.method, ragged_prompt((6, 6))
    rolled = rollout(method, prompt, 8, 4, None, 1.0)
    halt, token = rolled.decisions
    for row in range(16):
        ids = prompt.ids_BT[row // 8][None]
        used = int(rolled.used_B[row])
        with torch.no_grad():
            h_BD, context = method.backbone.read(ids)
            logp = 0.0
            for i in range(4):
                stops = Bernoulli(logits=method.stop.linear(h_BD)[0, 0])
                logp += stops.log_prob(torch.tensor(float(i == used), dtype=torch.float64))
                if i == used:
                    break
                h_B1D, context = method.backbone.step(method.feedback(h_BD)[:, None], context.skip(1))
                h_BD = h_B1D[:, 0]
            assert torch.allclose((halt.logp_BT * halt.mask_BT)[row].sum(), logp, atol=1e-10)
            context, total = context.skip(2 * (4 - used)), 0.0
            for t in range(4):
                chosen = rolled.tokens_BT[row, t]
                total += method.backbone.head(h_BD).log_softmax(-1)[0, chosen]
                h_B1D, context = method.backbone.step(method.backbone.embed(chosen[None, None]), context)
                h_BD = h_B1D[:, 0]
            assert torch.allclose(token.logp_BT[row].sum(), total, atol=1e-10)


def test_a_group_that_shares_its_thought_is_the_prompt_repeated():
    method = small_reasoner(STOPPING, dtype=torch.float64).method
    prompt = ragged_prompt()
    rolled = rollout(method, prompt, 4, 4, None, 1.0)
    repeated = Prompt(prompt.ids_BT.repeat_interleave(4, 0), prompt.mask_BT.repeat_interleave(4, 0))
    *thinking, _ = rolled.decisions
    with torch.no_grad():
        thought = method.think(repeated, Replay(thinking))
        want = score(method, rolled, 1.0)
    torch.testing.assert_close(thought.decisions[0].logp_BT, want[0].logp_BT, rtol=0, atol=1e-12)
    assert torch.equal(thought.used_B, rolled.used_B)


def test_sampling_follows_the_policy():
    """10,000 first tokens against the softmax they are drawn from: chi-square with 12 degrees of freedom."""
    reasoner = small_reasoner(Sim(n_latent=1))
    prompt = cups_batch(reasoner.codec, 1).prompt
    rolled = rollout(reasoner.method, prompt, 10_000, 1, None, 1.0)
    with torch.no_grad():
        h_BTD = reasoner.method.think(prompt, Greedy()).h_UTD
        p_V = reasoner.method.backbone.head(h_BTD)[0, 0].softmax(-1)
    counts_V = torch.bincount(rolled.tokens_BT[:, 0], minlength=len(p_V))
    chi2 = ((counts_V - 10_000 * p_V) ** 2 / (10_000 * p_V)).sum()
    assert chi2 < 32.9  # the 0.1 % point


def test_a_row_ends_at_its_end_token_and_later_choices_do_not_count():
    from eval.environments import ProsQA, build

    reasoner = small_reasoner(Sim(n_latent=2), ModelConfig(n_embd=32, n_head=2), build(ProsQA()))
    end = reasoner.codec.end
    with torch.no_grad():
        reasoner.method.backbone.lm.get_output_embeddings().weight[end] *= 4  # often, not always
    rolled = rollout(reasoner.method, ragged_prompt(), 64, 6, end, 1.0)
    text = rolled.decisions[-1]
    ends = [row.index(end) if end in row else 5 for row in rolled.tokens_BT.tolist()]
    assert len(set(ends)) > 2
    assert text.mask_BT.sum(1).tolist() == [e + 1 for e in ends]


def test_choosers_agree_on_what_was_chosen():
    dist, live = Categorical(logits=torch.randn(5, 7)), torch.tensor([True, True, False, True, True])
    sample = Sample()
    values = [sample("a", dist, live) for _ in range(3)]
    (recorded,) = sample.decisions()
    replay = Replay([recorded])
    assert all(torch.equal(replay("a", dist, live), v) for v in values)
    torch.testing.assert_close(replay.decisions()[0].logp_BT, recorded.logp_BT)
    assert torch.equal(Greedy()("a", dist, live), dist.logits.argmax(-1)) and not sample.decisions()
    with pytest.raises(ValueError, match="temperature must be > 0"):
        Sample(0.0)


def test_greedy_decoding_is_the_argmax_recomputed():
    reasoner = small_reasoner(Sim(n_latent=2), dtype=torch.float64)
    prompt, method = ragged_prompt((5, 5)), reasoner.method
    with torch.no_grad():
        tokens = decode(method, method.think(prompt, Greedy()), Greedy(), 5, None)
        thought = method.think(prompt, Greedy())
        h_BD, context = thought.h_UTD[:, 0], thought.context
        for t in range(5):
            best = method.backbone.head(h_BD).argmax(-1)
            assert torch.equal(best, tokens[:, t])
            h_B1D, context = method.backbone.step(method.backbone.embed(best[:, None]), context)
            h_BD = h_B1D[:, 0]


def test_a_minibatch_replays_like_the_whole():
    """Prompts whose rollouts all stopped early, or all ended early, are thought about and read no further."""
    reasoner = small_reasoner(Sim(n_latent=6, stride=2, halt=LearnedStop(bias=1.0)), dtype=torch.float64)
    rolled = rollout(reasoner.method, ragged_prompt(), 3, 4, None, 1.0)
    whole = score(reasoner.method, rolled, 1.0)
    lengths = set()
    for p in range(3):
        part = rolled.prompts(slice(p, p + 1))
        for a, b, recorded in zip(score(reasoner.method, part, 1.0), whole, part.decisions):
            lengths.add(recorded.mask_BT.shape[1])
            assert torch.equal(a.mask_BT, recorded.mask_BT)
            t = a.mask_BT.shape[1]
            torch.testing.assert_close(
                a.logp_BT * a.mask_BT, (b.logp_BT * b.mask_BT)[3 * p : 3 * p + 3, :t], rtol=0, atol=1e-12
            )
            assert not b.mask_BT[3 * p : 3 * p + 3, t:].any()
    assert len(lengths) > 2


@pytest.mark.parametrize("depth", [False, True])
def test_a_replay_thinks_as_long_as_the_rollout_did_whatever_the_rule_says_now(depth):
    halt = Converged(by="kl", below=0.02 if depth else 5.0, hits=1)
    config = Recurrent(n_recurrence=5, halt=halt) if depth else Sim(n_latent=5, stride=2, halt=halt)
    method = small_reasoner(config, dtype=torch.float64).method
    rolled = rollout(method, ragged_prompt((3, 7, 5)), 2, 4, None, 1.0)
    method.stop.config = Converged(by="kl", below=1e-12, hits=1)  # by now nothing settles
    now = score(method, rolled, 1.0)[-1]
    torch.testing.assert_close(now.logp_BT, rolled.decisions[-1].logp_BT, rtol=0, atol=1e-10)
    assert rolled.used_B.min() < 5


def test_looking_seldom_whether_all_have_ended_changes_nothing_that_counts(monkeypatch):
    """As on a GPU: the rows are filled beyond the longest text, and replayed as they were drawn."""
    method, prompt, end = small_reasoner(Sim(n_latent=2)).method, ragged_prompt(), 4
    seen = []
    for every in (1, 5):
        monkeypatch.setattr("latent.generate._LOOK", {"cpu": every})
        torch.manual_seed(0)
        seen.append(rollout(method, prompt, 3, 200, end, 1.0))
    often, seldom = seen
    t = often.tokens_BT.shape[1]
    assert t < 200 and seldom.tokens_BT.shape[1] == -(-t // 5) * 5
    assert torch.equal(seldom.tokens_BT[:, :t], often.tokens_BT) and (seldom.tokens_BT[:, t:] == end).all()
    written = seldom.decisions[-1]
    assert torch.equal(written.mask_BT[:, :t], often.decisions[-1].mask_BT) and not written.mask_BT[:, t:].any()
    for now, was in zip(score(method, seldom, 1.0), seldom.decisions, strict=True):
        torch.testing.assert_close(now.logp_BT[was.mask_BT], was.logp_BT[was.mask_BT], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [NoCoT(), Sim(n_latent=2, stride=1)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_greedy_text_ends_at_its_own_last_position(config, family):
    """Beside a longer prompt a text is as long as alone, up to the last position that the model has."""
    env = build(ProntoQA(hops=3))
    shape = ModelConfig(family=family, n_layer=1, n_embd=16, n_head=2, n_positions=120)
    torch.manual_seed(1)  # of weights that do not write the end token soon
    reasoner = small_reasoner(config, shape, env, torch.float64)
    reasoner.answer_tokens = 200  # nothing but the positions ends an untrained text
    whole = sorted((p.question for p in env.problems("test", env.main_level, 20)), key=lambda q: len(q.split()))[-1]
    words = whole.split()
    questions = [" ".join(words[:n]) for n in (90, 30, 60, 30, 10)]
    alone = [reasoner.answer([q])[0] for q in questions]
    assert reasoner.answer(questions) == alone
    assert max(len(text.split()) for text in alone) > 35  # beside the longest prompt 30 positions are left


@pytest.mark.parametrize("config", [NoCoT(), Sim(n_latent=2, stride=1)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_drawn_text_ends_at_its_own_last_position_and_is_scored_there(config, family):
    """A text may be as long as alone, whatever prompt stands beside it; each is scored as its row read anew."""
    shape = ModelConfig(family=family, n_layer=1, n_embd=16, n_head=2, n_positions=24)
    near = {"gpt2": 1e-10, "llama": 1e-6}[family]  # rotations are in fp32
    torch.manual_seed(2)
    method = small_reasoner(config, shape, dtype=torch.float64).method
    prompt = ragged_prompt((3, 18, 9))
    end, k = 0, config.n_latent if isinstance(config, Sim) else 0
    rolled = rollout(method, prompt, 4, 100, end, 1.0)
    text = rolled.decisions[-1]
    lengths = text.mask_BT.sum(1)
    longest = [24 - k - n + 1 for n in (3, 18, 9) for _ in range(4)]
    ended = [bool(row[n - 1] == end) for row, n in zip(rolled.tokens_BT, lengths)]
    assert all(n == most or done for n, most, done in zip(lengths.tolist(), longest, ended))
    assert lengths[:4].max() > 7 - k >= lengths[4:8].max()  # beside the longest prompt 7 are left before latents
    (scored,) = score(method, rolled, 1.0)
    torch.testing.assert_close(scored.logp_BT[text.mask_BT], text.logp_BT[text.mask_BT], rtol=0, atol=near)
    for b in range(12):
        one, n = row_of(prompt, b // 4), int(lengths[b])
        thought = method.think(one, Greedy())
        tokens = rolled.tokens_BT[b : b + 1, :n]
        h_1TD = text_hidden(method.backbone, thought, tokens)
        logp_1T = method.backbone.head(h_1TD).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        torch.testing.assert_close(scored.logp_BT[b, :n], logp_1T[0], rtol=0, atol=near)
