"""What a notebook does with a reasoner: opens, asks, looks inside, changes a thought, trains on, saves."""

import pytest
import torch

import latent
from eval.environments import Cups, build
from kernels.errors import UserError
from latent import hub
from latent.config import ModelConfig
from latent.generate import Reasoner
from latent.methods import Sim
from latent.policies import Tokens
from tests.helpers import small_reasoner

ENV = build(Cups(swaps=4))
PROBLEMS = ENV.problems("test", 4, 6)
QUESTIONS = [p.question for p in PROBLEMS]


@pytest.fixture
def reasoner() -> Reasoner:
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=64)
    return small_reasoner(Sim(n_latent=3, stride=2, step_tokens=8), shape, ENV)


def test_a_name_is_a_folder_or_one_on_the_hub(reasoner, tmp_path, monkeypatch):
    reasoner.save(tmp_path / "runs" / "it")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        opened = latent.load(tmp_path / "runs" / "it", dtype=dtype)
        assert opened.method.backbone.dtype == dtype
        if dtype != torch.bfloat16:
            assert opened.answer(QUESTIONS) == reasoner.answer(QUESTIONS)
    monkeypatch.chdir(tmp_path)
    assert latent.load("runs/it").answer(QUESTIONS) == reasoner.answer(QUESTIONS)
    asked = []

    def download(name, revision):
        asked.append((name, revision))
        return "runs/it"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert latent.load("someone/model", revision="v2").answer(QUESTIONS) == reasoner.answer(QUESTIONS)
    assert asked == [("someone/model", "v2")]
    for name in ("runs/that", "that"):  # beside runs of ours, and no owner's: not asked for
        with pytest.raises(UserError, match=f"^{name} is not a folder$"):
            latent.load(name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision: 1 / 0)
    with pytest.raises(UserError, match="someone/model is not a folder, and was not downloaded from the hub: "):
        latent.load("someone/model")
    assert len(asked) == 1


def test_the_number_of_latents_that_it_was_saved_with_is_kept(reasoner, tmp_path):
    reasoner.steps = 1
    want = reasoner.answer(QUESTIONS, steps=1)
    assert reasoner.answer(QUESTIONS) == want
    reasoner.save(tmp_path)
    opened = latent.load(tmp_path)
    assert opened.steps == 1 and opened.answer(QUESTIONS) == want
    assert opened.answer(QUESTIONS, steps=3) == small(reasoner, steps=None).answer(QUESTIONS)
    assert hub.as_hf_model(opened).num_latents == 1


def small(reasoner: Reasoner, **changes) -> Reasoner:
    return Reasoner(**{**vars(reasoner), **changes})


def test_texts_are_bounded_and_drawn(reasoner):
    """By torch's generator; questions from anywhere; greedy at temperature 0, whatever was drawn before."""
    greedy = reasoner.answer(q for q in QUESTIONS)
    assert all(len(text.split()) == 2 for text in reasoner.answer(QUESTIONS, max_tokens=2))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(reasoner.answer(QUESTIONS, temperature=2.0))
    assert drawn[0] == drawn[1] != drawn[2] and reasoner.answer(QUESTIONS) == greedy
    sharp = reasoner.answer(QUESTIONS, temperature=1e-6)
    assert sharp == greedy
    for wrong in ({"max_tokens": 0}, {"steps": -1}, {"batch": 0}, {"steps": 1.5}, {"temperature": -1.0}):
        with pytest.raises(UserError, match="must be"):
            reasoner.answer(QUESTIONS, **wrong)


def test_thoughts_of_a_policy_are_drawn_where_texts_are(tmp_path):
    shape = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=64)
    reasoner = small_reasoner(Sim(n_latent=3, stride=2, policy=Tokens(k=2)), shape, ENV)
    torch.manual_seed(3)
    (_, one), (_, two) = (reasoner.tokens(QUESTIONS, temperature=1.0) for _ in range(2))
    assert (one.states_UKD - two.states_UKD).abs().max() > 1e-3
    assert [d.kind for d in one.decisions] == ["thought"] and not reasoner.tokens(QUESTIONS)[1].decisions


def test_a_thought_can_be_changed_and_what_comes_out_differentiated(reasoner):
    """As if the model itself had fed back what the edit gives: by the loop, step by step."""
    other = torch.randn(len(QUESTIONS), 16)

    def edit(i, x_BD):
        return other if i == 1 else x_BD

    _, states = reasoner.answer(QUESTIONS, return_thoughts=True, edit=edit)
    prompt, method = reasoner.codec.prompt(QUESTIONS), reasoner.method.eval()
    with torch.no_grad():
        h_BD, context = method.backbone.read(prompt.ids_BT, prompt.mask_BT)
        for i in range(3):
            x_BD = other if i == 1 else h_BD
            h_B1D, context = method.backbone.step(x_BD[:, None], context.skip(1))
            h_BD = h_B1D[:, 0]
            torch.testing.assert_close(torch.stack(states)[:, i + 1], h_BD, rtol=0, atol=1e-5)
    method.backbone.head(torch.stack(states)).sum().backward()
    assert method.backbone.lm.get_output_embeddings().weight.grad.abs().sum() > 0


def test_a_loss_is_the_methods_own(reasoner):
    loss, logged = reasoner.loss(PROBLEMS)
    terms, _ = reasoner.method.terms(latent.generate.Batch.of(PROBLEMS, reasoner.codec))
    assert float(loss) == pytest.approx(sum(float(t.weight * t.total / t.count) for t in terms))
    assert {"ce", "exact", "step_ce"} <= set(logged)
    assert "\n" not in repr(reasoner) and "Sim" in repr(reasoner)
