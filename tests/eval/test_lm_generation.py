"""Texts that lm-eval asks a checkpoint for: the judge's, at the judge's cost, unless a request says otherwise."""

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from eval import harness
from eval.environments import GSM8K, Cups, build
from eval.judge import judge
from eval.lm import LatentLM
from eval.task_defaults import DefaultNumber, DefaultStops
from latent import hub, load, make, methods
from latent.config import Converged, ModelConfig
from latent.generate import Reasoner
from latent.methods import CoT, NoCoT, Sim
from latent.text import Batch
from tests.eval.lm_helpers import PAIRS, asked, ours, pens, texts, whole


def test_limits_of_a_request(folders):
    lm = LatentLM(str(folders["sim"]))
    assert texts(lm, limit=4) == texts(lm, limit=500)  # more than there are positions: what the checkpoint needs
    how = {"until": ["<"], "max_new_tokens": 3, "do_sample": False}
    (short,) = lm.generate_until(asked("generate_until", [(PAIRS[0][0], how)]), disable_tqdm=True)
    full = texts(lm)[0].split()
    assert short.split() == full[:3] or len(short.split()) <= 3 < len(full) + 1


def test_the_score_is_the_judges_and_the_results_say_how_it_thought(folders):
    env = build(Cups())
    lm = LatentLM(str(folders["sim"]), num_latents=2, batch_size=8)
    manager = ours()
    out = simple_evaluate(lm, tasks=["cups"], limit=40, task_manager=manager, bootstrap_iters=0)
    reasoner = load(folders["sim"])
    items = judge(reasoner, env, env.problems("test", 8, 40), steps=2)
    said = [s["resps"][0][0] for s in out["samples"]["cups"] if s["filter"] == "strict-match"]
    assert said == [i.text for i in items]
    found = out["results"]["cups"]
    assert found["exact_match,strict-match"] == sum(i.correct for i in items) / 40
    assert out["config"]["num_latents"] == 2 and out["config"]["method"] == "Sim"
    prompts = [len(reasoner.codec.question(p.question)) for p in env.problems("test", 8, 40)]
    flops = [reasoner.method.flops(n, i.used, i.tokens) for n, i in zip(prompts, items)]
    assert found["latents,strict-match"] == 2 == out["config"]["cost"]["cups"]["latents"]
    assert found["tokens,strict-match"] == 4 and found["mflop,strict-match"] == pytest.approx(sum(flops) / 40 / 1e6)
    assert out["config"]["cost"]["cups"]["mflop"] == pytest.approx(sum(flops) / 40 / 1e6)


@pytest.mark.parametrize(
    "method", [NoCoT(), CoT(), Sim(n_latent=3, step_tokens=16, halt=Converged(below=10.0, hits=1))]
)
def test_texts_and_costs_are_the_judges_in_word_problems_too(method, tmp_path):
    """An untrained model rambles to its budget: it is the checkpoint's, not the task's, and latents stop as they do."""
    (tmp_path / "rows.jsonl").write_text(pens(30))
    env = build(GSM8K(train=None, test=str(tmp_path / "rows.jsonl"), max_answer=5, max_chain=9))
    torch.manual_seed(1)
    model = ModelConfig(n_embd=32, n_head=2, n_positions=64, vocab_size=300)
    codec = build(GSM8K(train=str(tmp_path / "rows.jsonl"))).codec(model)
    body = make.from_scratch(model, codec.size, codec.pad, codec.end)
    reasoner = Reasoner(methods.build(method, body), codec, env.answer_tokens, env.chain_tokens, env.chain_steps)
    problems = env.problems("test", 0, 30)
    batch, adam = Batch.of(problems[:12], codec), torch.optim.AdamW(reasoner.method.parameters(), 1e-2)
    for _ in range(30):  # until some texts end by themselves, and some do not
        adam.zero_grad()
        reasoner.method.loss(batch)[0].backward()
        adam.step()
    hub.save(reasoner, tmp_path / "model")
    items = judge(reasoner, env, problems)
    manager = TaskManager(
        include_path=str(harness.TASKS), include_defaults=False, metadata={"file": str(tmp_path / "rows.jsonl")}
    )
    for lm in (LatentLM(str(tmp_path / "model"), batch_size=7), LatentLM(reasoner, batch_size=30)):
        out = simple_evaluate(lm, tasks=["gsm8k_aug"], task_manager=manager, bootstrap_iters=0)
        samples = [s for s in out["samples"]["gsm8k_aug"] if s["filter"] == "strict-match"]
        assert [s["resps"][0][0] for s in samples] == [i.text for i in items]
        assert [s["latents"] for s in samples] == [i.used for i in items]
        assert [s["tokens"] for s in samples] == [i.tokens for i in items]
    assert max(i.tokens for i in items) == reasoner.max_tokens < 160 and len({i.tokens for i in items}) > 1
    out = simple_evaluate(
        lm, tasks=["gsm8k_aug"], task_manager=manager, bootstrap_iters=0, gen_kwargs={"max_gen_toks": 3}
    )
    assert out["results"]["gsm8k_aug"]["tokens,strict-match"] <= 3  # who asks for less gets less


def test_what_generation_is_asked_for_counts_for_its_own_requests(folders):
    """--gen_kwargs num_latents: as a model that was opened with so many, beside requests for others."""
    lm = LatentLM(str(folders["sim"]), batch_size=3)
    how = {"until": [], "max_gen_toks": 4}
    mixed = [(q, {**how, **more}) for q, _ in PAIRS for more in ({}, {"num_latents": 1}, {"num_latents": 5})]
    got = lm.generate_until(asked("generate_until", mixed), disable_tqdm=True)
    for i, steps in enumerate((3, 1, 5)):
        assert got[i::3] == whole(LatentLM(str(folders["sim"]), num_latents=steps))
        assert {text.used for text in got[i::3]} == {steps}
    loop = LatentLM(str(folders["recurrent"]))
    args = [("01 23", {**how, "num_recurrences": 2})]
    (text,) = loop.generate_until(asked("generate_until", args), disable_tqdm=True)
    assert (
        text
        == LatentLM(str(folders["recurrent"]), num_recurrences=2).generate_until(
            asked("generate_until", [("01 23", how)]), disable_tqdm=True
        )[0]
        and text.used == 2
    )
    for bad, message in (
        ({"num_latents": -1}, "at least 0, got -1"),
        ({"num_latents": 1.5}, "at least 0, got 1.5"),
        ({"num_latents": "two"}, "at least 0, got two"),
        ({"num_latents": 40}, "leaves no room for text"),
        ({"num_latents": 1, "num_recurrences": 1}, "are one setting"),
        ({"max_length": 30}, "give max_gen_toks"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.generate_until(asked("generate_until", [("01", {**how, **bad})]), disable_tqdm=True)
    with pytest.raises(ValueError, match="leave no room for text"):
        lm.generate_until(asked("generate_until", [("01 " * 80, {"until": []})]), disable_tqdm=True)


def test_what_nobody_asked_for_ends_no_text_and_long_contexts_are_cut_where_a_limit_was_asked_for(folders):
    lm = LatentLM(str(folders["cot"]))
    usual, said = (
        lm.generate_until(asked("generate_until", [("01 23 12", {"until": u, "max_gen_toks": n})]), disable_tqdm=True)[
            0
        ]
        for u, n in ((DefaultStops(["1", "2", "3", "0"]), DefaultNumber(2)), (["1", "2", "3", "0"], 36))
    )
    assert usual == load(folders["cot"]).answer(["01 23 12"])[0] and usual.tokens == 36
    assert len(said) < len(usual) and not set(said) & set("0123")
    long = "01 23 " * 20 + "12"  # 41 tokens and the think token; 64 positions, the last of 30 tokens takes none
    (cut,) = lm.generate_until(asked("generate_until", [(long, {"until": [], "max_gen_toks": 30})]), disable_tqdm=True)
    rest = " ".join(long.split()[-(64 + 1 - 30 - 1) :])
    (want,) = lm.generate_until(asked("generate_until", [(rest, {"until": [], "max_gen_toks": 30})]), disable_tqdm=True)
    assert cut == want and cut.tokens == 30
