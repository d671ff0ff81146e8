"""Text to ids and back."""

import pytest
import torch

from eval.environments import GSM8K, Cups, ProsQA, build
from kernels.errors import UserError
from latent import hub, load
from latent.codec import bpe_codec, word_codec
from latent.config import Converged, LearnedStop, ModelConfig
from latent.methods import Coconut, CoT, NoCoT, Recurrent, Sim
from latent.text import Batch
from tests.helpers import SMALL, small_reasoner


def test_bpe_spells_numbers_digit_by_digit_and_loses_nothing():
    texts = ["John has 12345 apples, 3.5 pears\n", "<<48/2=24>>\n", "### -7"]
    codec = bpe_codec(texts * 20, 400)
    for text in texts:
        ids = codec.answer(text)
        assert codec.texts(torch.tensor([[*ids, 5, 6]])) == [text]
    assert len(codec.step("12345")) == 5


def test_what_scripts_have_by_its_first_name_is_there():
    from latent import codec, text
    from latent.hf import LatentForCausalLM

    assert text.Codec is codec.Codec and text.bpe_codec is bpe_codec and text.word_codec is codec.word_codec
    assert LatentForCausalLM.thinking is LatentForCausalLM.thinking_ids
    with pytest.raises(ImportError, match=r"cannot import name 'Codecs' from 'latent\.text'"):
        from latent.text import Codecs  # noqa: F401


def test_prompts_are_left_padded_and_end_in_the_think_token():
    codec = build(ProsQA()).codec(SMALL)
    prompt = codec.prompt(["Tom is a lempus .", "Is Tom a lempus or zumpus ?"])
    assert prompt.mask_BT.sum(1).tolist() == [6, 8]
    assert prompt.ids_BT[:, -1].tolist() == [codec.think] * 2
    assert (prompt.ids_BT[~prompt.mask_BT] == codec.pad).all()


def test_pretrained_tokenizers_get_what_they_lack():
    from transformers import PreTrainedTokenizerFast

    from latent.codec import Codec

    base = bpe_codec(["some text"], 300).tokenizer.backend_tokenizer
    codec = Codec(PreTrainedTokenizerFast(tokenizer_object=base))
    assert len({codec.pad, codec.end, codec.think}) == 3
    assert codec.texts(torch.tensor([codec.answer("some text")])) == ["some text"]


@pytest.mark.parametrize(
    "config",
    [
        NoCoT(),
        CoT(),
        Coconut(feedback="norm"),
        Sim(n_latent=4, halt=LearnedStop()),
        Recurrent(n_recurrence=2, halt=Converged()),
    ],
)
def test_save_and_load_give_the_same_answers(config, tmp_path):
    reasoner = small_reasoner(config)
    hub.save(reasoner, tmp_path / "model")
    again = load(tmp_path / "model")
    questions = [p.question for p in build(Cups()).problems("test", 8, 5)]
    assert again.answer(questions) == reasoner.answer(questions)
    assert again.method.config == config
    with pytest.raises(ValueError, match="at least 0, got -1"):
        again.answer(questions, steps=-1)


def test_gsm8k_answers_survive_the_tokenizer(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "What is 1,200 / 3?", "answer": "It is <<1200/3=400>>400\\n#### 400"}\n' * 1
                    + '{"question": "What is 7 - 9?", "answer": "<<7-9=-2>>\\n#### -2"}\n')  # fmt: skip
    env = build(GSM8K(train=str(path)))
    codec = env.codec(ModelConfig(vocab_size=300))
    for split in ("train", "test"):
        (problem,) = env.splits[split]
        batch = Batch.of([problem], codec)
        text = codec.texts(batch.chain().ids_BT)[0]
        assert text == "".join(problem.steps) + problem.answer
        assert env.verify(problem, text).correct


def test_a_closed_vocabulary_has_a_row_for_each_word_once_and_answers_of_one_length():
    codec = word_codec(["a", "a", "b"], fixed_answer=1)
    assert codec.size == len({*codec.step("a"), *codec.step("b")}) + 2  # padding and the think token
    assert max(codec.step("a b")) < codec.size and codec.text(list(codec.step("a b a"))) == "a b a"
    with pytest.raises(UserError, match="the answer 'a b' has 2 tokens, all answers must have 1"):
        codec.answer("a b")


def test_wrong_numbers_are_refused_and_training_goes_on():
    """A caller who trains and looks at answers in between."""
    reasoner = small_reasoner(Sim(n_latent=2))
    reasoner.method.train()
    for wrong, said in (
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"batch": -1}, "batch must be a whole number of at least 1, got -1"),
        ({"steps": 1.5}, "steps must be a whole number of at least 0, got 1.5"),
        ({"steps": -1}, "steps must be a whole number of at least 0, got -1"),
    ):
        with pytest.raises(UserError, match=said):
            reasoner.answer(["01 23 . . . . . ."], **wrong)
    with pytest.raises(UserError, match="outside the vocabulary"):
        reasoner.answer(["99"])
    assert reasoner.method.training
