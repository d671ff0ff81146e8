"""The exported face in tools that bring a head, a trainer or a pipeline of their own."""

import logging

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
    thoughts = torch.tensor([model.thinking_ids(k)] * len(QUESTIONS))
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
@pytest.mark.parametrize("more", [{}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}])
def test_generate_says_how_many_thoughts_it_used(name, more, folders):
    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    reasoner = load(folders[name])
    want = [int(reasoner.tokens([q])[1].used_B) for q in QUESTIONS]
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    out = model.generate(**ids, return_dict_in_generate=True, max_new_tokens=4, **more)
    each = more.get("num_return_sequences", 1)
    assert out.latents_used.tolist() == [n for n in want for _ in range(each)]
    model.generation_config.use_cache = False  # the model's own settings count as an argument does
    same = model.generate(**ids, return_dict_in_generate=True, max_new_tokens=4, **more)
    assert torch.equal(same.sequences, out.sequences) and torch.equal(same.latents_used, out.latents_used)


def test_more_rows_of_the_embedding_are_saved_with_a_config_that_opens(folders, tmp_path):
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(50)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight.shape[0] == 50 == again.method.backbone.vocab
    assert torch.equal(again.get_input_embeddings().weight[: len(before)], before)
    assert torch.equal(again.generate(**ids, max_new_tokens=4), model.generate(**ids, max_new_tokens=4))


def test_a_prompt_with_its_placeholders_thinks_as_often_as_they_are(folders):
    """What an RL trainer of another make samples from is then what it scores: the same ids in both."""
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    held = torch.tensor([model.thinking_ids(2)] * len(QUESTIONS))
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


@pytest.mark.parametrize("name", ["no-cot", "sim", "recurrent"])
def test_a_pipeline_gives_the_answer_apart_from_the_prompt(name, folders):
    """The prompt's words and the answer's, none of them run together, with the prompt or without."""
    reasoner = load(folders[name])
    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    k = model.num_latents
    for question, answer in zip(QUESTIONS, reasoner.answer(QUESTIONS)):
        words = [w for w in answer.split() if w[0] != "<"]
        for prompt in (question, " ".join([question, "<think>", *["<latent>"] * k])):
            (whole,) = ask(prompt)
            (alone,) = ask(prompt, return_full_text=False)
            assert whole["generated_text"].split() == prompt.split() + words
            assert whole["generated_text"] == prompt + alone["generated_text"] and alone["generated_text"][0] == " "
    (many,) = ask([QUESTIONS[0]], do_sample=True, num_return_sequences=3)
    assert all(each["generated_text"].startswith(QUESTIONS[0] + " ") for each in many)


def closed(model, tokenizer, texts, k):
    """Texts after k thoughts as other trainers have them: closed by the tokenizer's end token, padded on the right."""
    prompt = " ".join(["01 23 12 <think>", *["<latent>"] * k])
    rows = [tokenizer(f"{prompt} {text}{tokenizer.eos_token}")["input_ids"] for text in texts]
    longest = max(map(len, rows))
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]), mask


@pytest.mark.parametrize("name", ["no-cot", "sim", "recurrent"])
def test_a_text_that_is_closed_reads_as_the_text(name, folders):
    """Where a length ends answers, tools that close them with an end token change no logit and no loss."""
    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    k, texts = model.num_latents, ["4 2 1 3", "4 2"]
    ids, mask = closed(model, tokenizer, texts, k)
    assert ids[0, -1] == model.config.closing_id == tokenizer.eos_token_id
    begin = 4 + k
    labels = ids.masked_fill((torch.arange(ids.shape[1]) < begin) | ~mask, -100)
    total = 0.0
    for row, text in enumerate(texts):
        bare = torch.tensor([tokenizer(" ".join(["01 23 12 <think>", *["<latent>"] * k, text]))["input_ids"]])
        want = model(bare).logits[0]
        for given in (mask.long(), None):
            got = model(ids, attention_mask=given).logits[row, : bare.shape[1]]
            assert torch.allclose(got, want, atol=1e-5, equal_nan=True)
        logp = want[begin - 1 : -1].log_softmax(-1)
        total -= float(logp.gather(1, bare[0, begin:, None]).sum())
    assert abs(float(model(ids, attention_mask=mask, labels=labels).loss) - total / 6) < 1e-5
    whole = float(model(ids, attention_mask=mask, labels=labels, num_items_in_batch=8).loss)
    assert abs(whole - total / 8) < 1e-5
    with pytest.raises(ValueError, match="the end token stands before text"):
        model(torch.cat([ids[:1], ids[:1]], 1))
    with pytest.raises(ValueError, match="the end token stands before text"):
        model.generate(torch.cat([ids[:1, :3], ids[:1, -1:]], 1))
    out = model.generate(ids[:, :3], attention_mask=mask[:, :3], max_new_tokens=6)
    assert not (out == model.config.closing_id).any() and out.shape[1] == 3 + 4


def test_training_without_thoughts_is_said(folders, caplog):
    model, tokenizer = (auto.from_pretrained(folders["sim"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    logging.getLogger("transformers").propagate = True
    ids, mask, _ = batch(model, tokenizer, 2)
    model.train()
    model(ids, attention_mask=mask, labels=ids)
    with torch.no_grad():
        model(ids[:, :2])
    assert "has no <think>" not in caplog.text
    model(ids[:, :2], labels=ids[:, :2])
    assert "a row to train on has no <think>" in caplog.text


def saved(model, tokenizer, folder):
    """A model in memory, opened from where it was saved."""
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    return load(folder)


PAIRS = [("01 23 12", "4 2 1 3"), ("01 12", "2 3 1 4"), ("23", "1 2 4 3")]


@pytest.mark.parametrize("name", ["no-cot", "sim", "recurrent"])
def test_trls_sft_trainer_teaches_a_checkpoint(name, folders, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    asked = [" ".join([q, "<think>", *["<latent>"] * model.num_latents]) for q, _ in PAIRS]
    rows = [{"prompt": q, "completion": f" {a}"} for q, (_, a) in zip(asked, PAIRS)]
    how = trl.SFTConfig(str(tmp_path), max_steps=40, learning_rate=1e-2, per_device_train_batch_size=3, report_to=[],
                        save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True)  # fmt: skip
    trl.SFTTrainer(model, args=how, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    assert saved(model, tokenizer, tmp_path / "saved").answer([q for q, _ in PAIRS]) == [a for _, a in PAIRS]


@pytest.mark.parametrize("name", ["no-cot", "sim", "recurrent"])
def test_trls_grpo_trainer_raises_the_reward(name, folders, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, tokenizer = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    asked = [" ".join([q, "<think>", *["<latent>"] * model.num_latents]) for q, _ in PAIRS]
    how = trl.GRPOConfig(str(tmp_path), max_steps=30, learning_rate=1e-2, per_device_train_batch_size=12, report_to=[],
                         num_generations=4, max_completion_length=4, logging_steps=1, save_strategy="no", use_cpu=True,
                         bf16=False, disable_tqdm=True, seed=0)  # fmt: skip
    reward = lambda completions, **_: [float(text.split()[:1] == ["4"]) for text in completions]  # noqa: E731
    rows = Dataset.from_list([{"prompt": q} for q in asked] * 4)
    trainer = trl.GRPOTrainer(model, reward, how, rows, processing_class=tokenizer)
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[0] < 0.5 and min(rewards[-5:]) > 0.8
    answers = saved(model, tokenizer, tmp_path / "saved").answer([q for q, _ in PAIRS])
    assert all(text.split()[0] == "4" for text in answers)
