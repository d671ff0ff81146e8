"""Text to ids and back: one codec for symbol tasks, for BPE trained on the data, and for pretrained tokenizers."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import AddedToken
from torch import Tensor

from latent.thought import Prompt

THINK, END, PAD = "<think>", "<end>", "<pad>"
LATENT, UNKNOWN = "<latent>", "<unknown>"  # a latent step in ids, a word outside a closed vocabulary: no embeddings


class Codec:
    """Ids of a problem's parts. `tokenizer` is any Hugging Face tokenizer.

    A prompt is the question and the token that says *now think*; the text after the thoughts is the chain's steps, if
    the method writes them, and the answer, closed by the end token unless the answer has a fixed number of tokens
    (`fixed_answer`), which then ends it. `chat`: questions go into the tokenizer's chat template, as the user's turn;
    ValueError where it has none.
    """

    def __init__(self, tokenizer, fixed_answer: int | None = None, chat: bool = False):
        self.tokenizer, self.fixed_answer, self.chat = tokenizer, fixed_answer, chat
        if chat and not tokenizer.chat_template:
            raise ValueError("model.chat_template: this tokenizer has no chat template")
        wanted = [THINK]
        if tokenizer.pad_token_id is None:
            wanted.append(PAD)
        if tokenizer.eos_token_id is None and fixed_answer is None:
            wanted.append(END)
        new = [t for t in wanted if t not in tokenizer.get_vocab()]
        if new:
            tokenizer.add_special_tokens({"additional_special_tokens": new})
        self.think: int = tokenizer.convert_tokens_to_ids(THINK)
        self.pad: int = tokenizer.convert_tokens_to_ids(tokenizer.pad_token or PAD)
        self.end: int | None = None if fixed_answer else tokenizer.convert_tokens_to_ids(tokenizer.eos_token or END)
        self.unknown: int | None = tokenizer.get_vocab().get(UNKNOWN)
        self._piece = lru_cache(1 << 16)(self._encode)  # steps and answers of symbol tasks come again and again

    @property
    def size(self) -> int:
        """Rows that the embedding needs."""
        return len(self.tokenizer) - sum(name in self.tokenizer.get_vocab() for name in (LATENT, UNKNOWN))

    def name_latent(self) -> int:
        """The id of the placeholder of a latent step, which has no row in the embedding."""
        if LATENT not in self.tokenizer.get_vocab():
            self.tokenizer.add_tokens([AddedToken(LATENT, special=True)], special_tokens=True)
        return self.tokenizer.convert_tokens_to_ids(LATENT)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            ids = tuple(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as e:  # the tokenizers library raises nothing narrower
            raise ValueError(f"cannot encode {text!r:.60}: {e}") from None
        if self.unknown is not None and self.unknown in ids:
            raise ValueError(f"cannot encode {text!r:.60}: it has a word outside the vocabulary")
        return ids

    def question(self, text: str) -> tuple[int, ...]:
        """A question's ids, the think token last."""
        if self.chat:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return (*self._encode(text), self.think)

    def step(self, text: str) -> tuple[int, ...]:
        """The ids of one step of a chain."""
        return self._piece(text)

    def answer(self, text: str) -> tuple[int, ...]:
        """An answer's ids, closed by the end token where its length is not fixed."""
        ids = self._piece(text)
        if self.end is not None:
            return (*ids, self.end)
        assert len(ids) == self.fixed_answer, f"an answer of {len(ids)} tokens, expected {self.fixed_answer}: {text!r}"
        return ids

    def texts(self, tokens_BT: Tensor) -> list[str]:
        """Completions as text, cut at the end token; a special token before it stays, for the verifier to see."""
        rows = tokens_BT.tolist()
        if self.end is not None:
            rows = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        return self.tokenizer.batch_decode(rows)

    def prompt(self, questions: Iterable[str], device="cpu") -> Prompt:
        """Left-padded prompts."""
        rows = [self.question(q) for q in questions]
        longest = max(map(len, rows))
        if min(map(len, rows)) == longest:
            return Prompt(torch.tensor(rows, device=device))
        ids = torch.tensor([(self.pad,) * (longest - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[i >= longest - len(r) for i in range(longest)] for r in rows], device=device)
        return Prompt(ids, mask)


@dataclass
class Text:
    """Right-padded token rows; `mask_BT` is False on padding, None where there is none."""

    ids_BT: Tensor
    mask_BT: Tensor | None


def pad_right(rows: list[tuple[int, ...]], pad: int, device="cpu") -> Text:
    """Rows of ids as one tensor."""
    longest = max(map(len, rows))
    if min(map(len, rows)) == longest:
        return Text(torch.tensor(rows, device=device), None)
    ids = torch.tensor([r + (pad,) * (longest - len(r)) for r in rows], device=device)
    return Text(ids, torch.tensor([[i < len(r) for i in range(longest)] for r in rows], device=device))


@dataclass
class Batch:
    """Problems as ids: prompts, and for each row its steps and its answer."""

    prompt: Prompt
    steps: list[list[tuple[int, ...]]]
    answers: list[tuple[int, ...]]
    pad: int

    @classmethod
    def of(cls, problems, codec: Codec, device="cpu") -> "Batch":
        """From anything with `question`, `steps` and `answer` as text."""
        return cls(
            codec.prompt([p.question for p in problems], device),
            [[codec.step(s) for s in p.steps] for p in problems],
            [codec.answer(p.answer) for p in problems],
            codec.pad,
        )

    def chain(self, skip: int = 0, every: int = 1) -> Text:
        """The steps from the `skip`-th on, cut to one in `every`, then the answer."""
        cut = [one_in(every, steps[skip:]) for steps in self.steps]
        rows = [sum(steps, ()) + answer for steps, answer in zip(cut, self.answers)]
        return pad_right(rows, self.pad, self.prompt.ids_BT.device)


def one_in(every: int, steps: list) -> list:
    """One of a chain's steps in `every`; the last is left out, unless all are kept, as the answer follows it."""
    return steps if every == 1 else steps[every - 1 : -1 : every]


def word_codec(words: Iterable[str], fixed_answer: int | None = None) -> Codec:
    """One token a word of a closed vocabulary, split at white space. An unknown word is a ValueError at encoding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, THINK] + ([] if fixed_answer else [END])
    vocab = {w: i for i, w in enumerate([*special, *words, UNKNOWN])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = {} if fixed_answer else {"eos_token": END}
    return Codec(
        PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token=PAD, unk_token=UNKNOWN, additional_special_tokens=[THINK], **end
        ),
        fixed_answer,
    )


def bpe_codec(texts: Iterable[str], size: int) -> Codec:
    """Byte-level BPE of `size` tokens trained on `texts`, digits one by one so that numbers are spelt the same way."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, THINK, END], initial_alphabet=alphabet)
    trainer.show_progress = False
    raw.train_from_iterator(texts, trainer)
    special = {"pad_token": PAD, "eos_token": END, "additional_special_tokens": [THINK]}
    return Codec(PreTrainedTokenizerFast(tokenizer_object=raw, **special))
