"""What is said or refused before a run trains: texts that do not fit, golds that a tokenizer loses."""

import dataclasses
import json
import re

import pytest
import torch
from tokenizers import normalizers

from eval import environments
from eval.environments import GSM8K, Countdown, Cups, Math500, ProntoQA, ProsQA
from kernels.errors import UserError
from latent import make, methods
from latent.codec import Codec
from latent.config import LearnedStop, ModelConfig
from latent.generate import Reasoner
from latent.methods import Coconut, Colar, CoT, CoT2, Hrpo, ICoT, Kava, NoCoT, Pause, Recurrent, Sim
from latent.methods.sim.method import SimMethod
from tests.latent.test_plain_text import tokenizer_of
from train import checks, data
from train import run as runs
from train.config import RLVR, SFT, Judge, Run

MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=2048, vocab_size=300)


def checked(run: Run, codec=None) -> list[str]:
    """What is said of a run, with another codec than that of its data if given."""
    env = environments.build(run.env)
    codec = codec or env.codec(run.model)
    method = methods.build(run.method, make.from_scratch(run.model, codec.size, codec.pad, codec.end))
    reasoner = Reasoner(method, codec, env.answer_tokens, env.chain_tokens, env.chain_steps)
    return checks.check(reasoner, env, run, runs.judged_problems(run, env))


def of(env, method=None, train=None) -> Run:
    return Run(env, MODEL, method or NoCoT(), train or SFT(steps=1, batch=4), Judge(items=100, level_items=10))


@pytest.fixture
def words(tmp_path):
    """40 word problems, one in ten (one of the four that are judged) with a chain and an answer that are long."""
    rows = [
        {"question": f"{i}?", "steps": [f"<<{i}+{i}={2 * i}>>"] * (20 if i % 10 == 3 else 1),
         "answer": str(i * 10**20 if i % 10 == 3 else i)}
        for i in range(10, 50)
    ]  # fmt: skip
    path = tmp_path / "words.json"
    path.write_text(json.dumps(rows))
    return GSM8K(train=str(path), max_answer=12, max_chain=96)


@pytest.mark.parametrize(
    "method", [NoCoT(), CoT(), CoT(every=2), Sim(n_latent=2, step_tokens=200), Coconut(n_latent=2, first_stage=3)]
)
def test_texts_longer_than_what_is_decoded_are_said_with_the_flag_that_would_do(method, words):
    run = of(words, method)
    (said,) = checked(run)
    chain = isinstance(method, CoT)
    assert said.startswith("2 of 34 problems to train on and 1 of 4 to judge cannot be right")
    flags = dict(re.findall(r"--env\.(max-\w+) (\d+)", said))
    assert set(flags) == ({"max-answer", "max-chain"} if chain else {"max-answer"})
    enough = {k.replace("-", "_"): int(v) for k, v in flags.items()}
    assert checked(dataclasses.replace(run, env=dataclasses.replace(words, **enough))) == []
    fewer = {k: v - 1 for k, v in enough.items()}
    if method == CoT(every=2):
        return  # the share of steps that are written changes with max_chain: enough is more than needed
    assert checked(dataclasses.replace(run, env=dataclasses.replace(words, **fewer))) != []


@pytest.mark.parametrize("control", [lambda kava: kava, Pause], ids=["itself", "pause"])
def test_kava_needs_a_problem_whose_chain_its_teacher_writes(control, tmp_path):
    path, step = tmp_path / "words.json", "<<3+4=7>>"

    def said_of(steps: list[str], **fields) -> list[str]:
        rows = [{"question": f"{i}?", "steps": steps if i == 7 else [], "answer": str(i)} for i in range(40)]
        path.write_text(json.dumps(rows))
        return checked(of(GSM8K(train=str(path)), control(Kava(n_latent=2, **fields))))

    for steps in ([], [step]):
        with pytest.raises(
            UserError, match="learns from chains, and no training problem has one of more than one step"
        ):
            said_of(steps)
    with pytest.raises(UserError, match=r"learns from chains, and no training problem has one$"):
        said_of([], keep_last=True)
    assert said_of([step, step]) == said_of([step], keep_last=True) == []


@pytest.mark.parametrize("method, flag", [(Hrpo(n_latent=4), "method.n_latent is"), (Colar(n_latent=4, r=1), "are")])
def test_a_chain_that_is_too_long_is_the_longest_one(method, flag, words, tmp_path):
    """What is said is enough for all of them: not raised again for the next one."""
    steps = ["<<1+1=2>>"]
    rows = [{"question": f"{i}?", "steps": steps * (2 + i % 7), "answer": str(i)} for i in range(10, 50)]
    (tmp_path / "w.json").write_text(json.dumps(rows))
    run = of(GSM8K(train=str(tmp_path / "w.json")), method)
    with pytest.raises(UserError, match=flag) as e:
        checked(run)
    enough = int(re.findall(r"a chain has (\d+) tokens", str(e.value))[0])
    checked(dataclasses.replace(run, method=dataclasses.replace(method, n_latent=enough)))


def test_a_run_says_it_before_it_trains(words, tmp_path):
    events = []
    runs.execute(of(words), tmp_path, events.append, "cpu")
    assert events[0]["stage"] == "note" and "--env.max-answer" in events[0]["said"]
    assert {e["stage"] for e in events[1:]} == {"train", "judge"}


def test_a_run_in_which_nothing_can_be_right_is_refused(words, tmp_path):
    short = dataclasses.replace(words, max_answer=2)
    for train in (SFT(steps=1, batch=4), RLVR(steps=1, batch=4, group=2)):
        with pytest.raises(ValueError, match=r"4 of 4 to judge cannot be right: .* 2 are decoded \(--env.max-answer"):
            runs.execute(of(short, train=train), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_answer_that_cannot_be_read_off_in_parallel_is_refused_wherever_it_stands(words, tmp_path):
    rows = [{"question": f"{i}?", "steps": [], "answer": "7" if i == 38 else "17"} for i in range(10, 50)]
    (tmp_path / "w.json").write_text(json.dumps(rows))
    run = of(GSM8K(train=str(tmp_path / "w.json")), Recurrent(prelude=0, answer_tokens=4))
    codec = environments.build(run.env).codec(MODEL)
    size = len(codec.answer("### 17"))
    with pytest.raises(ValueError, match=rf"must have method.answer_tokens = {size} tokens .* got one of {size - 1}"):
        checked(of(run.env, Recurrent(prelude=0, answer_tokens=size)))


def lossy(normalizer) -> Codec:
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.normalizer = normalizer
    return Codec(tokenizer)


def test_a_tokenizer_that_loses_case_is_refused_where_case_counts():
    env = ProsQA()
    with pytest.raises(ValueError, match=r"the gold answers of (\d+) of \1 problems are judged wrong") as e:
        checked(of(env), lossy(normalizers.Lowercase()))
    assert re.search(r"'### [A-Z].*comes back from the tokenizer as '### [a-z]", str(e.value))
    assert all("tokens of an answer are decoded" in line for line in checked(of(env), lossy(None)))


@pytest.mark.parametrize(
    "env, method", [(Cups(), NoCoT()), (ProntoQA(), NoCoT()), (Countdown(), NoCoT()), (Countdown(), CoT())]
)
def test_a_tokenizer_that_loses_case_serves_where_there_is_none(env, method):
    """And one that needs more tokens than the environment's own vocabulary gets them."""
    run = of(env, method)
    said = checked(run, codec := lossy(normalizers.Lowercase()))
    built = environments.build(env)
    most = max(len(codec.answer(p.answer)) for lv in built.levels() for p in built.problems("test", lv, 10))
    if most - 1 > built.answer_tokens:
        (line,) = said
        assert int(re.search(r"up to (\d+) tokens of an answer", line)[1]) >= most - 1


def test_a_normaliser_that_spoils_some_golds_is_refused_with_their_share(tmp_path):
    rows = [{"problem": f"{i}?", "answer": "x²" if i % 4 == 0 else f"{i}"} for i in range(8)]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    run = of(Math500(train=str(tmp_path / "m.json"), test=str(tmp_path / "m.json").replace("m.json", "t.json")))
    (tmp_path / "t.json").write_text(json.dumps([{"problem": "t?", "answer": "3"}]))
    assert checked(run, lossy(None)) == []
    with pytest.raises(ValueError, match=r"gold answers of 2 of 8 problems are judged wrong.*'### x²', comes back"):
        checked(run, lossy(normalizers.Replace("²", "")))


def test_the_chain_before_a_gold_is_read_back_too(words):
    """A chain that ends in the answer's mark would be taken for it, whatever follows is judged."""
    run = of(dataclasses.replace(words, max_chain=400, max_answer=40), CoT())
    assert checked(run) == []
    env = environments.build(run.env)
    spoilt = [dataclasses.replace(p, answer=p.answer.replace("###", "")) for p in env.splits["test"]]
    codec = env.codec(MODEL)
    reasoner = Reasoner(
        methods.build(CoT(), make.from_scratch(MODEL, codec.size, codec.pad, codec.end)), codec, 9, 9, 1
    )
    with pytest.raises(ValueError, match="is not accepted even as it stands"):
        checks.check_golds(reasoner, env, spoilt)
    (text,) = checks.read_back(codec, env.splits["test"][:1], chain=True)
    assert text == "".join(env.splits["test"][0].steps) + env.splits["test"][0].answer
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method, least", [(Coconut(n_latent=2, advance_at=1.0, stage_steps=5), 15), (ICoT(), 1600)])
def test_a_curriculum_that_cannot_end_is_said(method, least):
    """Chains of 32 tokens that go one by one every 50 updates; three stages of 5 before the last."""
    (said,) = checked(of(Cups(), method, SFT(steps=least, batch=4)))
    assert said.startswith(f"{type(method).__name__}'s curriculum takes {least} updates to its last stage, of {least}")
    assert checked(of(Cups(), method, SFT(steps=least + 1, batch=4))) == []


def test_rl_on_a_curriculum_that_has_not_ended_and_a_cost_that_moves_nothing_are_said():
    said = checked(of(Cups(), Coconut(n_latent=2), RLVR(steps=1, batch=4)))
    assert len(said) == 1 and "it thinks in 0 of 2 latents" in said[0]
    costly = RLVR(steps=1, batch=4, latent_cost=0.1)
    for method in (Sim(), Pause(Sim())):
        (said,) = checked(of(Cups(), method, costly))
        assert said.startswith("train.latent_cost 0.1 moves no choice")
    assert checked(of(Cups(), Pause(Sim(halt=LearnedStop())), costly)) == []


def test_counts_that_are_not_those_of_the_terms_are_refused(monkeypatch):
    """With micro-batches the loss would be divided by them."""
    assert checked(of(Cups(), Sim(n_latent=2, step_tokens=16))) == []
    monkeypatch.setattr(SimMethod, "turn_counts", lambda self, batch: [1, 2])
    with pytest.raises(UserError, match=r"the terms of its loss have the counts \[1, 2\], and they have \["):
        checked(of(Cups(), Sim(n_latent=2, step_tokens=16)))


@pytest.mark.parametrize("given", [None, [0.5], {"chance": "half"}])
def test_floors_are_shares_by_name(monkeypatch, given):
    monkeypatch.setattr(type(environments.build(Cups())), "floors", lambda self, problems: given)
    with pytest.raises(UserError, match="floors must give a dict of shares by name"):
        checked(of(Cups()))


WRONG = {  # of an environment: what it gives, and what is said of it
    "train_batch": (lambda env: lambda seed, index, size: env.problems("test", 8, size), "must not share a problem"),
    "problems": (lambda env: lambda split, level, n: [dataclasses.replace(PROBLEM, level=3)], "was asked of level"),
    "cluster": (lambda env: lambda problem: None, "cluster must give a text, got None"),
    "floors": (lambda env: lambda problems: {"chance": None}, "floors must give a dict of shares by name"),
    "frontiers": (lambda env: lambda problem: [], "has no frontier"),
    "frontier": (lambda env: lambda problem, step: (("1", 1.0),), "has not ended after 10000 steps"),
}
PROBLEM = environments.build(Cups()).problems("test", 8, 1)[0]


@pytest.mark.parametrize("name", WRONG)
def test_an_environment_that_would_fail_late_or_silently_is_refused_before_it_trains(name, monkeypatch):
    wrong, said = WRONG[name]
    kind = type(environments.build(Cups()))
    env = environments.build(Cups())
    monkeypatch.setattr(kind, name, staticmethod(wrong(env)))
    with pytest.raises(UserError, match=said):
        checked(of(Cups(state_tokens=1), CoT2(n_latent=2)))


def test_fewer_problems_than_are_asked_for_are_said():
    notes = checked(Run(Cups(cups=3, swaps=3), MODEL, NoCoT(), SFT(steps=1, batch=4), Judge(100, 0)))
    (n,) = re.fullmatch(
        r"judged on (\d+) problems: there are no 100 \(judge\.items\) of the main level", notes[0]
    ).groups()
    assert int(n) == len(environments.build(Cups(cups=3, swaps=3)).problems("test", 3, 100))


@pytest.mark.parametrize("given", [3, 5, 0])
def test_a_batch_of_another_size_than_was_asked_for_is_refused(given):
    class Odd:
        def train_batch(self, seed, index, size):
            return [PROBLEM] * given

    with pytest.raises(UserError, match=f"Odd.train_batch was asked for 4 problems, batch 7 has {given}"):
        data.batch(Odd(), of(Cups()), 7)


def test_a_frontier_that_is_no_distribution_is_refused():
    env = environments.build(Cups(state_tokens=1))
    codec, (problem,) = env.codec(MODEL), env.problems("test", 8, 1)
    ((word, _),) = env.frontier(problem, 1)
    for p in (0.5, 2.0, -1.0):
        with pytest.raises(UserError, match=r"must be at least 0 and sum to 1, those of"):
            codec.weights(((word, p),))
