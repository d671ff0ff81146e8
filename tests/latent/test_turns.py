"""Several turns: each goes on from all that was read, thought and written before, as one row read anew would."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli

from eval.environments import Cups, build
from eval.environments.base import Session
from eval.judge import Sessions, judge
from kernels.errors import UserError
from latent.config import LearnedStop, ModelConfig
from latent.generate import rollout, score
from latent.methods import Coconut, CoT, NoCoT, Recurrent, Sim
from latent.policies import Gaussian
from latent.text import Batch
from tests.helpers import small_reasoner

ENV = build(Cups(cups=3, swaps=4, min_swaps=1, turns=2))
MODEL = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=96)


def reasoner_of(method, family="gpt2"):
    return small_reasoner(method, replace(MODEL, family=family), ENV, dtype=torch.float64)


class Row:
    """One row, its embeddings and positions written down, read anew from the beginning each time."""

    def __init__(self, method):
        self.method, self.x, self.at = method, [], []

    def add(self, embeddings, step=1):
        for e in embeddings:
            self.x.append(e)
            self.at.append(self.at[-1] + step if self.at else 0)

    def last(self):
        at = {"position_ids": torch.tensor([self.at]), "attention_mask": torch.ones(1, len(self.at))}
        x = torch.stack(self.x)[None]
        out = self.method.backbone.lm(inputs_embeds=x, use_cache=False, output_hidden_states=True, **at)
        return out.hidden_states[-1][0, -1], out.logits[0, -1]

    def say(self, ids):
        self.add(self.method.backbone.embed(torch.tensor([list(ids)]))[0])


def write(row: Row, tokens) -> torch.Tensor:
    """Log-probabilities of a text, which is read as it is written."""
    found = []
    for token in tokens:
        found.append(row.last()[1].log_softmax(-1)[token])
        row.say([int(token)])
    return torch.stack(found)


def test_a_problem_of_two_turns_is_the_whole_problem_cut_in_two():
    whole = build(Cups(cups=3, swaps=4, min_swaps=1))
    for problem in ENV.train_batch(0, 0, 50) + ENV.problems("test", 3, 20):
        first, second = ENV.turns_of(problem)
        moves = f"{first.question} {second.question}".split()
        assert len(first.steps) == len(second.steps) == 2
        assert first.steps + second.steps == whole.oracle(moves)
        assert sum(m != "." for m in moves) == problem.level
        session = ENV.open(problem)
        assert session.step("anything") == (second.question, 0.0, False)
        assert session.step(second.answer) == (None, 1.0, True)
    keys = [{p.key for p in ENV.problems(split, 4, 300)} for split in ("valid", "test")]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_episode_is_scored_as_one_row_read_anew(family):
    """Stops, thoughts and tokens of both turns, rows that stop at different times, by hand through transformers."""
    torch.manual_seed(5)
    close = 1e-9 if family == "gpt2" else 1e-5  # transformers turns positions in fp32
    method = Sim(n_latent=2, stride=2, step_tokens=6, halt=LearnedStop(bias=0.0), policy=Gaussian(std=0.3))
    reasoner = reasoner_of(method, family)
    made, codec = reasoner.method, reasoner.codec
    torch.nn.init.normal_(made.stop.linear.weight, std=0.5)
    problems = ENV.train_batch(0, 0, 3)
    sessions = Sessions(ENV, [p for p in problems for _ in range(2)], codec)
    prompt = codec.prompt([p.question for p in problems])
    rolled = rollout(made, prompt, 2, reasoner.max_tokens, codec.end, 1.0, sessions.react)
    assert [(d.kind, d.turn) for d in rolled.all_decisions] == [
        (kind, turn) for turn in (0, 1) for kind in ("halt", "thought", "token")
    ]
    assert len(set(rolled.all_used_B.tolist())) > 1
    now = {(d.kind, d.turn): d for d in score(made, rolled, 1.0)}
    turns = [(rolled.tokens_BT, rolled.used_B), (rolled.later[0].tokens_NT, rolled.later[0].used_N)]
    for b, problem in enumerate(sessions.problems):
        row = Row(made)
        for turn, (said, (tokens, used)) in enumerate(zip(ENV.turns_of(problem), turns, strict=True)):
            row.say(codec.observation(said.question) if turn else codec.question(said.question))
            thoughts = rolled.all_decisions[3 * turn + 1].value_BT[b]
            for i in range(2):
                h_D, _ = row.last()
                stop = Bernoulli(logits=made.stop.linear(h_D)[0])
                want = stop.log_prob(torch.tensor(float(i == used[b])).double())
                torch.testing.assert_close(now["halt", turn].logp_BT[b, i], want, atol=close, rtol=close)
                if i == used[b]:
                    break
                std = 0.3 * h_D.detach().square().mean().sqrt()
                want = torch.distributions.Normal(h_D, std).log_prob(thoughts[i]).sum()
                torch.testing.assert_close(now["thought", turn].logp_BT[b, i], want, atol=close, rtol=close)
                row.add([thoughts[i]], 2)
            first = row.last()[1].log_softmax(-1)[tokens[b, 0]]
            empty = 2 * (2 - int(used[b]))  # what was not thought leaves its places empty
            row.add(made.backbone.embed(tokens[b : b + 1, :1])[0], 1 + empty)
            wants = torch.cat([first[None], write(row, tokens[b, 1:])])
            torch.testing.assert_close(now["token", turn].logp_BT[b], wants, atol=close, rtol=close)
    times = [t for d in rolled.all_decisions for t in d.time_T.tolist()]
    assert len(set(times)) == len(times)
    assert min(rolled.later[0].decisions[0].time_T) > max(rolled.decisions[-1].time_T)


@pytest.mark.parametrize(
    "method", [NoCoT(), CoT(), Sim(n_latent=2, step_tokens=6), Coconut(n_latent=2, first_stage=1, earlier=0.0)]
)
def test_the_loss_of_both_turns_is_that_of_the_whole_transcript(method):
    torch.manual_seed(6)
    reasoner = reasoner_of(method)
    made, codec = reasoner.method, reasoner.codec
    problems = ENV.train_batch(0, 0, 4)
    batch = Batch.of(problems, codec, later=zip(*(ENV.turns_of(p)[1:] for p in problems)))
    got, logged = made.loss(batch)
    total, count, step_total, step_count = 0.0, 0, 0.0, 0
    for problem in problems:
        row = Row(made)
        for turn, said in enumerate(ENV.turns_of(problem)):
            row.say(codec.observation(said.question) if turn else codec.question(said.question))
            k = made.trained_steps
            for i in range(k):
                h_D, _ = row.last()
                row.add([h_D])
                if isinstance(method, Sim):
                    state_D, _ = row.last()
                    ids = torch.tensor(codec.step(said.steps[i]))
                    places = made.decoder.places(state_D).view(made.decoder.longest, -1)[: len(ids)]
                    step_total += float(F.cross_entropy(made.backbone.head(places), ids, reduction="sum").detach())
                    step_count += len(ids)
            skip = {"NoCoT": 9, "CoT": 0, "Sim": 9, "Coconut": 1}[type(method).__name__]
            text = [i for s in said.steps[skip:] for i in codec.step(s)] + list(codec.answer(said.answer))
            total -= float(write(row, text).sum().detach())
            count += len(text)
    want = total / count + (step_total / step_count if step_count else 0.0)
    assert float(got.detach()) == pytest.approx(want, abs=1e-9)
    assert float(logged["ce"]) == pytest.approx(total / count, abs=1e-9)
    assert made.counts(batch) == [count, step_count][: 1 + bool(step_count)]


def test_the_judge_plays_and_parts_of_rollouts_are_the_rollouts_of_parts():
    reasoner = reasoner_of(Sim(n_latent=2, step_tokens=6, halt=LearnedStop(bias=0.0)))
    problems = ENV.problems("test", 4, 6)
    items = judge(reasoner, ENV, problems, batch=4)
    assert [i.key for i in items] == [p.key for p in problems]
    for p, item in zip(problems, items):
        _, second = item.text.split("\n")
        verdict = ENV.verify(ENV.turns_of(p)[1], second)
        assert (item.correct, item.reward) == (verdict.correct, verdict.reward) and item.tokens == 6
    sessions = Sessions(ENV, [p for p in problems[:4] for _ in range(3)], reasoner.codec)
    prompt = reasoner.codec.prompt([p.question for p in problems[:4]])
    rolled = rollout(reasoner.method, prompt, 3, reasoner.max_tokens, None, 1.0, sessions.react)
    whole = score(reasoner.method, rolled, 1.0)
    parts = [score(reasoner.method, rolled.prompts(slice(i, i + 2)), 1.0) for i in (0, 2)]
    for d, *some in zip(whole, *parts, strict=True):
        logp = torch.cat([F.pad(s.logp_BT, (0, d.logp_BT.shape[1] - s.logp_BT.shape[1])) for s in some])
        made = torch.cat([F.pad(s.mask_BT, (0, d.mask_BT.shape[1] - s.mask_BT.shape[1])) for s in some])
        assert torch.equal(made, d.mask_BT)
        torch.testing.assert_close(logp.where(made, 0), d.logp_BT.where(made, 0), atol=1e-10, rtol=0)


def test_a_part_none_of_whose_episodes_goes_on_is_scored_without_a_second_turn():
    """Of six rollouts two go on: those of the whole are those of the parts, the last of which has one turn alone."""
    reasoner = reasoner_of(Sim(n_latent=2, step_tokens=6, halt=LearnedStop(bias=0.0)))
    problems = ENV.problems("test", 4, 3)
    second = [reasoner.codec.observation(ENV.turns_of(p)[1].question) for p in problems for _ in range(2)]

    def react(rows, tokens_NT):
        first, turns[0] = turns[0], False
        return [second[row] if first and row < 2 else None for row in rows]

    turns = [True]
    prompt = reasoner.codec.prompt([p.question for p in problems])
    rolled = rollout(reasoner.method, prompt, 2, reasoner.max_tokens, None, 1.0, react)
    assert rolled.later[0].rows_N.tolist() == [0, 1]
    whole = score(reasoner.method, rolled, 1.0)
    parts = [score(reasoner.method, rolled.prompts(slice(i, i + 1)), 1.0) for i in range(3)]
    assert [d.turn for d in whole] == [d.turn for d in parts[2]]
    for d, *some in zip(whole, *parts, strict=True):
        made = torch.cat([F.pad(s.mask_BT, (0, d.mask_BT.shape[1] - s.mask_BT.shape[1])) for s in some])
        logp = torch.cat([F.pad(s.logp_BT, (0, d.logp_BT.shape[1] - s.logp_BT.shape[1])) for s in some])
        assert torch.equal(made, d.mask_BT) and bool(d.mask_BT[2:].any()) == (d.turn == 0)
        torch.testing.assert_close(logp.where(made, 0), d.logp_BT.where(made, 0), atol=1e-10, rtol=0)


class Ending(Session):
    """Ends after the first turn."""

    def step(self, text):
        return None, 0.25, True


def test_a_session_that_ends_early_is_judged_by_the_turn_in_which_it_ended():
    class Short(type(ENV)):
        def open(self, problem):
            return Ending()

    env = Short(ENV.config)
    both = ((p, *env.turns_of(p)) for p in env.problems("test", 4, 20))
    problem, first, second = next(each for each in both if each[1].answer != each[2].answer)
    codec = reasoner_of(Sim(n_latent=2, step_tokens=6)).codec
    for text, right in ((first.answer, True), (second.answer, False)):
        sessions = Sessions(env, [problem], codec)
        sessions.react([0], torch.tensor([codec.answer(text)]))
        (verdict,) = sessions.verdicts()
        assert (verdict.correct, verdict.reward) == (right, 0.25)


def test_a_session_that_fails_names_its_problem():
    class Broken(Session):
        def step(self, text):
            return {}["gold"], 0.0, True

    class Worthless(Session):
        def step(self, text):
            return None, float("nan"), True

    (problem,) = ENV.problems("test", 4, 1)
    codec = reasoner_of(Sim(n_latent=2, step_tokens=6)).codec
    for session, said in (
        (Broken(), "failed: KeyError: 'gold'"),
        (Worthless(), "must give a number as the reward, got nan"),
    ):
        sessions = Sessions(ENV, [problem], codec)
        sessions.sessions = [session]
        with pytest.raises((RuntimeError, UserError), match=f"the session of problem {problem.key} {said}"):
            sessions.react([0], torch.tensor([codec.answer(problem.answer)]))


def test_a_loop_along_the_depth_says_that_it_reads_one_question():
    reasoner = reasoner_of(Recurrent(answer_tokens=3))
    sessions = Sessions(ENV, ENV.train_batch(0, 0, 2), reasoner.codec)
    prompt = reasoner.codec.prompt([p.question for p in sessions.problems])
    with pytest.raises(UserError, match="a loop along the depth reads one question"):
        rollout(reasoner.method, prompt, 1, 3, None, 1.0, sessions.react)
