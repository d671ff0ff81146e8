"""lm-eval reads what the judge reads: BOS, chats, words that look like control tokens, and the same budget."""

import json

import pytest
from lm_eval.api.instance import Instance

from eval.environments import GSM8K, build
from eval.harness import own_tasks
from eval.judge import judge
from eval.lm import LatentLM
from latent import hub, load
from latent.methods import Sim
from tests.latent.test_plain_text import PLAIN, WITH_BOS, reasoner_of, tokenizer_of

QUESTIONS = ["How many is 2 and 3?", "a <latent> b </s>", "<think>", "Hi <|im_end|>"]


def said(lm, contexts, task, limit=1024) -> list[str]:
    how = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    asked = [Instance("generate_until", {}, (c, dict(how)), i, metadata=(task, i, 1)) for i, c in enumerate(contexts)]
    return lm.generate_until(asked, disable_tqdm=True)


def lost(text: str) -> str:
    """A text as lm-eval hands it out: no special tokens, nothing from the first stop on."""
    for name in ("<s>", "</s>", "<|im_end|>", "[PAD]", "<think>", "<latent>"):
        text = text.replace(name, "")
    return text.split("\n\n")[0]


@pytest.mark.parametrize("bos, template", [(True, None), (False, None), (True, PLAIN), (True, WITH_BOS)])
def test_texts_are_the_reasoners(bos, template, tmp_path):
    hub.save(reasoner_of(tokenizer_of(bos, template), Sim(n_latent=2), chat=template is not None), tmp_path)
    reasoner, lm = load(tmp_path), LatentLM(str(tmp_path), batch_size=2)
    chats = QUESTIONS
    if template is not None:
        chats = [lm.apply_chat_template([{"role": "user", "content": q}]) for q in QUESTIONS]
    assert said(lm, chats, "latent_gsm8k") == [lost(t) for t in reasoner.answer(QUESTIONS)]
    assert [tuple(lm._read(c)) for c in chats] == [reasoner.codec.question(q)[:-1] for q in QUESTIONS]
    assert "latent_gsm8k" in own_tasks()


def test_the_budget_of_our_tasks_is_the_judges(tmp_path):
    """Not the task's own, which any model gets: a text cut elsewhere is another text."""
    rows = [{"question": q, "answer": f"#### {i}"} for i, q in enumerate(["How many is 2?", "Hi", "2 and 3?"])]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    env = build(GSM8K(train=None, test=str(tmp_path / "d.json"), max_answer=8))
    hub.save(reasoner_of(tokenizer_of(True), Sim(n_latent=2)), tmp_path / "model")
    reasoner, lm = load(tmp_path / "model"), LatentLM(str(tmp_path / "model"))
    assert reasoner.max_tokens == 8
    problems = env.splits["test"]
    want = [lost(item.text) for item in judge(reasoner, env, problems)]
    assert said(lm, [p.question for p in problems], "latent_gsm8k") == want
    longer = said(lm, [p.question for p in problems], "gsm8k", limit=20)  # another's task has its own
    assert all(a.startswith(b) for a, b in zip(longer, want)) and longer != want
