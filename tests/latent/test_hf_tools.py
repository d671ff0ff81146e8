"""The exported face in tools that bring a head, a trainer or a pipeline of their own."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from latent import hub, load
from latent.config import Converged
from latent.methods import Coconut, NoCoT, Recurrent, Sim
from tests.helpers import small_reasoner

QUESTIONS = ["01 23 12", "13 02 . .", "12 01 23 . 01"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    methods = {
        "no-cot": NoCoT(),
        "sim": Sim(n_latent=3, stride=2),
        "halting": Sim(n_latent=4, halt=Converged(below=2.0, hits=1)),
        "coconut": Coconut(n_latent=3, first_stage=2),
        "recurrent": Recurrent(n_recurrence=3, halt=Converged(below=2.0, hits=1)),
    }
    made = {}
    for name, method in methods.items():
        made[name] = tmp_path_factory.mktemp(name)
        hub.save(small_reasoner(method), made[name])
    return made


def batch(model, tokenizer, k):
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    thoughts = torch.tensor([model.thinking(k)] * len(QUESTIONS))
    text = torch.tensor([tokenizer("4 2 1 3")["input_ids"]] * len(QUESTIONS))
    mask = torch.cat([ids.attention_mask, torch.ones_like(thoughts), torch.ones_like(text)], 1)
    return torch.cat([ids.input_ids, thoughts, text], 1), mask, ids.input_ids.shape[1] + thoughts.shape[1]


@pytest.mark.parametrize("name", ["no-cot", "sim", "coconut"])
def test_the_states_that_come_back_give_the_logits_by_the_head(name, folders):
    """What a trainer computes with a head of its own, from `base_model`, is what the model itself says."""
    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids, mask, _ = batch(model, tokenizer, model.num_latents)
    with torch.no_grad():
        out = model.base_model(ids, attention_mask=mask)
        logits = model.get_output_embeddings()(out.last_hidden_state)
    assert torch.allclose(logits, out.logits[..., : logits.shape[-1]], atol=1e-6)
    assert out.last_hidden_state.shape[:2] == ids.shape


@pytest.mark.parametrize("name", ["sim", "coconut"])
def test_gradient_checkpointing_changes_no_gradient(name, folders):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    ids, mask, begin = batch(model, tokenizer, model.num_latents)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < begin, -100)
    grads = []
    for recompute in (False, True):
        (model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable)()
        assert model.is_gradient_checkpointing == recompute
        model.zero_grad()
        model.train()
        torch.manual_seed(0)
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    assert max((grads[0][n] - grads[1][n]).abs().max().item() for n in grads[0]) < 1e-12


def test_the_stock_trainer_trains_and_evaluates_with_checkpointing(folders, tmp_path):
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids, mask, begin = batch(model, tokenizer, 2)
    rows = [{"input_ids": i, "attention_mask": m, "labels": i.masked_fill(torch.arange(len(i)) < begin, -100)}
            for i, m in zip(ids, mask)]  # fmt: skip
    how = TrainingArguments(
        str(tmp_path), max_steps=30, per_device_train_batch_size=3, learning_rate=1e-2, gradient_checkpointing=True,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, how, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert model.method.backbone.recompute
    assert trainer.evaluate()["eval_loss"] < 0.2 * before
    predicted = trainer.predict(rows).predictions
    assert predicted.shape[:2] == ids.shape  # logits alone are gathered
    out = model.generate(ids[:, : begin - 2], attention_mask=mask[:, : begin - 2], num_latents=2, max_new_tokens=4)
    assert (out[:, -4:] == ids[:, -4:]).all()


@pytest.mark.parametrize("name, steps", [("sim", None), ("sim", 1), ("halting", None), ("no-cot", None)])
def test_the_thoughts_of_an_answer_are_those_of_think(name, steps, folders):
    reasoner = load(folders[name])
    texts, thoughts = reasoner.answer(QUESTIONS, steps, batch=2, return_thoughts=True)
    assert texts == reasoner.answer(QUESTIONS, steps)
    for question, states_KD in zip(QUESTIONS, thoughts):
        _, thought = reasoner.tokens([question], steps)
        used = int(thought.used_B)
        assert states_KD.shape == (used + 1, reasoner.method.backbone.width)
        assert torch.allclose(states_KD, thought.states_UKD[0, : used + 1], atol=1e-5)


@pytest.mark.parametrize("name", ["halting", "recurrent"])
@pytest.mark.parametrize("more", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_says_how_many_thoughts_it_used(name, more, folders):
    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    reasoner = load(folders[name])
    want = [int(reasoner.tokens([q])[1].used_B) for q in QUESTIONS]
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    out = model.generate(**ids, return_dict_in_generate=True, max_new_tokens=4, **more)
    each = more.get("num_return_sequences", 1)
    assert out.latents_used.tolist() == [n for n in want for _ in range(each)]


def test_a_prompt_with_its_placeholders_thinks_as_often_as_they_are(folders):
    """What an RL trainer of another make samples from is then what it scores: the same ids in both."""
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    held = torch.tensor([model.thinking(2)] * len(QUESTIONS))
    with_them = torch.cat([ids.input_ids, held], 1)
    mask = torch.cat([ids.attention_mask, torch.ones_like(held)], 1)
    plain = model.generate(**ids, num_latents=2, max_new_tokens=5)[:, ids.input_ids.shape[1] :]
    out = model.generate(with_them, attention_mask=mask, max_new_tokens=5, output_logits=True,
                         return_dict_in_generate=True)  # fmt: skip
    assert out.sequences[:, : with_them.shape[1]].equal(with_them)
    assert out.sequences[:, with_them.shape[1] :].equal(plain) and out.latents_used.tolist() == [2] * 3
    whole = torch.cat([mask, torch.ones_like(plain)], 1)
    scored = model(out.sequences, attention_mask=whole).logits[:, with_them.shape[1] - 1 : -1]
    assert torch.allclose(scored, torch.stack(out.logits, 1), atol=1e-5)
    with pytest.raises(ValueError, match="num_latents must not be given"):
        model.generate(with_them, attention_mask=mask, num_latents=2)
    with pytest.raises(ValueError, match="or none"):
        model.generate(torch.tensor([with_them[0].tolist(), [5] * with_them.shape[1]]))


def test_a_pipeline_gives_the_answer_apart_from_the_prompt(folders):
    reasoner = load(folders["sim"])
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for question, answer in zip(QUESTIONS, reasoner.answer(QUESTIONS, 2)):
        (said,) = ask(question, num_latents=2, return_full_text=False)
        assert said["generated_text"].split() == [w for w in answer.split() if w[0] != "<"]
