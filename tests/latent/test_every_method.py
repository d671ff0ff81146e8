"""What holds of every method in the table, each as its preset on cups has it; a new one is picked up as it stands."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

import latent
from eval.environments import build
from eval.environments.base import Environment
from eval.interventions import recording, think_and_answer
from kernels.errors import UserError
from latent import hub, methods
from latent.backbone import Backbone
from latent.config import ModelConfig
from latent.generate import Reasoner, decode, rollout, score
from latent.methods import METHODS, FixedEmbedding, MethodConfig, NoCoT, Pause, SequenceConfig, Sim
from latent.text import Batch
from latent.thought import Greedy
from tests.helpers import ragged_prompt, row_of, small_reasoner
from tests.latent.test_hf import said
from train import distill
from train.presets import of_method

TINY = ModelConfig(n_layer=2, n_embd=16, n_head=2, n_positions=128)
RUNS = {name: of_method(config)() for name, config in METHODS.items()}
CONFIGS = {name: run.method for name, run in RUNS.items()}
FAMILIES = {"gpt2": 1e-9, "llama": 1e-9, "qwen3": 1e-9, "gpt_neox": 1e-5}  # neox turns its positions in fp32


def env_of(name: str, turns: int = 1) -> Environment:
    """The environment of a method's preset."""
    config = RUNS[name].env
    return build(replace(config, turns=turns) if turns > 1 else config)


def made(name: str, family: str = "gpt2", dtype=torch.float64, method: MethodConfig | None = None) -> Reasoner:
    """An untrained reasoner of a method, or of a control of it. gpt_neox goes through its own `forward`."""
    env, config = env_of(name), method or CONFIGS[name]
    if family != "gpt_neox":
        return small_reasoner(config, replace(TINY, family=family), env, dtype)
    reasoner = small_reasoner(NoCoT(), TINY, env)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    neox = GPTNeoXConfig(vocab_size=reasoner.codec.size, intermediate_size=32, initializer_range=0.25, **shape, **ids)
    body = Backbone(GPTNeoXForCausalLM(neox))
    torch.nn.init.normal_(body.lm.get_input_embeddings().weight)  # as `from_scratch` does
    return replace(reasoner, method=methods.build(config, body).to(dtype))


def taught(name: str, reasoner: Reasoner, rows: slice, turns: int = 1, **share) -> Batch:
    """Some problems of a method's environment, as it is trained on them."""
    env = env_of(name, turns)
    some = env.train_batch(0, 0, rows.stop)[rows]
    return distill.taught(env, reasoner.method.made_from, some, reasoner.codec, **share)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_is_its_rows_and_learns(name, family):
    """Thoughts and text of each row alone, and a loss that falls in two updates; or a line that says what it needs."""
    torch.manual_seed(0)
    try:
        reasoner = made(name, family)
    except UserError as e:
        assert family == "gpt_neox" and "GPT-2, Llama and Qwen3" in str(e)
        return
    method, prompt = reasoner.method.eval(), ragged_prompt()
    with torch.no_grad():
        thought = method.think(prompt, Greedy())
        text = decode(method, thought, Greedy(), reasoner.max_tokens, None)
        for b in range(3):
            alone = method.think(row_of(prompt, b), Greedy())
            torch.testing.assert_close(thought.h_UTD[b], alone.h_UTD[0], rtol=0, atol=FAMILIES[family])
            torch.testing.assert_close(thought.states_UKD[b], alone.states_UKD[0], rtol=0, atol=FAMILIES[family])
            assert torch.equal(text[b], decode(method, alone, Greedy(), reasoner.max_tokens, None)[0])
    batch, losses = taught(name, reasoner, slice(0, 4)), []
    optimizer = torch.optim.SGD(method.train().parameters(), lr=1e-3)
    for _ in range(3):
        torch.manual_seed(1)  # the same draws
        loss, _ = method.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("name", [name for name in METHODS if made(name).method.parallel_answer is None])
def test_no_latent_steps_are_reading_the_prompt(name):
    method, prompt = made(name).method, ragged_prompt()
    with torch.no_grad():
        thought = method.think(prompt, Greedy(), steps=0)
        want_BD, _ = method.backbone.read(prompt.ids_BT, prompt.mask_BT)
    assert torch.equal(thought.h_UTD[:, 0], want_BD) and thought.used_B.tolist() == [0] * 3


@pytest.mark.parametrize("name", METHODS)
def test_it_is_saved_loaded_and_exported(name, tmp_path):
    reasoner = made(name, dtype=torch.float32)
    hub.save(reasoner, tmp_path)
    whole = [p.question.split() for p in env_of(name).train_batch(0, 0, 3)]
    questions = [" ".join(words[i:]) for i, words in enumerate(whole)]  # of different lengths
    want = reasoner.answer(questions)
    loaded = latent.load(tmp_path)
    assert loaded.method.made_from == CONFIGS[name] and loaded.answer(questions) == want
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert said(model, tokenizer, questions) == want
    assert said(model, tokenizer, questions, use_cache=False) == want


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_batch_is_that_of_its_parts(name, turns):
    """Totals and counts add up over the parts, with the draws of the whole; and the counts are known beforehand."""
    reasoner = made(name)
    method = reasoner.method
    if turns > 1 and (method.parallel_answer is not None or not hasattr(RUNS[name].env, "turns")):
        return  # one question is all that it reads

    def part(rows: slice) -> Batch:
        share = {"generator": torch.Generator().manual_seed(3), "numbers": range(rows.start, rows.stop), "whole": 5}
        return taught(name, reasoner, rows, turns, **share)

    want, _ = method.terms(part(slice(0, 5)))
    parts = [method.terms(part(rows))[0] for rows in (slice(0, 2), slice(2, 5))]
    assert [int(term.count) for term in want] == [int(n) for n in method.counts(part(slice(0, 5)))]
    for term, *pieces in zip(want, *parts, strict=True):
        assert term.count == sum(int(piece.count) for piece in pieces)
        torch.testing.assert_close(term.total, sum(piece.total for piece in pieces), rtol=1e-9, atol=1e-9)
        assert {term.weight} == {piece.weight for piece in pieces}


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if issubclass(config, SequenceConfig)])
def test_a_control_is_fed_its_own_in_training_too(name):
    """The loss with pause tokens has a gradient for each of them, and that with a fixed embedding changes with it."""
    losses = []
    for control in (Pause, FixedEmbedding):
        torch.manual_seed(0)
        reasoner = made(name, method=control(CONFIGS[name].small()))
        method, batch = reasoner.method, taught(name, reasoner, slice(0, 3))
        while method.trained_steps < method.steps:
            method.begin_update()
            method.learned(method.loss(batch)[1])
        if control is Pause:
            for _ in range(8):  # draws differ
                method.loss(batch)[0].backward()
            assert all(row.any() for row in method.feedback.table.grad)
        else:
            for _ in range(2):
                torch.manual_seed(1)
                losses.append(method.loss(batch)[0].item())
                method.feedback.embedding.neg_()
    assert abs(losses[0] - losses[1]) > 1e-6


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if issubclass(config, SequenceConfig)])
def test_what_is_fed_back_costs_what_torch_counts(name):
    reasoner = made(name)
    with FlopCounterMode(display=False) as counter:
        reasoner.method.feedback(torch.randn(1, 16, dtype=torch.float64))
    method, once = reasoner.method, counter.get_total_flops()
    assert method.feedback.flops == once
    if name in ("pccot", "kava"):
        return  # they make all inputs anew in every pass
    k, bare = method.steps, made(name, method=Sim(n_latent=method.steps, stride=method.stride)).method
    assert method.flops(9, k, 4) == bare.flops(9, k + method.closing_positions, 4) + k * once


def test_a_feedback_that_does_not_say_what_it_costs_costs_its_weights_and_that_of_a_control_nothing():
    method = made("sim").method
    k, plain = method.steps, method.flops(9, method.steps, 4)  # the state as it is
    method.feedback = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16, bias=False))
    assert method.flops(9, k, 4) - plain == k * 2 * (16 * 24 + 24 * 16)
    for control in (Pause(method.config), FixedEmbedding(method.config)):
        assert made("sim", method=control).method.flops(9, k, 4) == plain


@pytest.mark.parametrize("name", METHODS)
def test_fresh_rollouts_are_replayed_with_the_log_probs_they_were_drawn_with(name):
    reasoner = made(name)
    rolled = rollout(reasoner.method, ragged_prompt(), 4, 3, None, 1.0)
    for now, was in zip(score(reasoner.method, rolled, 1.0), rolled.decisions, strict=True):
        assert now.kind == was.kind and torch.equal(now.mask_BT, was.mask_BT)
        torch.testing.assert_close(now.logp_BT[was.mask_BT], was.logp_BT[was.mask_BT], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in METHODS if made(name).method.steps])
def test_what_a_diagnostic_records_of_a_latent_is_what_went_into_it(name):
    """Given back, it leads to the same states, also where latents are read in several passes; changed, to others."""
    reasoner, inputs = made(name), {}
    problems = env_of(name).train_batch(0, 0, 3)
    _, thought = think_and_answer(reasoner, problems, Greedy(), edit=recording(inputs))
    assert sorted(inputs) == list(range(int(thought.used_B.max())))  # none before the first stage of a curriculum
    _, again = think_and_answer(reasoner, problems, Greedy(), edit=lambda i, x: inputs[i])
    torch.testing.assert_close(again.states_UKD, thought.states_UKD, rtol=0, atol=1e-9)
    _, other = think_and_answer(reasoner, problems, Greedy(), edit=lambda i, x: -inputs[i])
    assert not inputs or (other.states_UKD - thought.states_UKD).abs().max() > 1e-3
