"""Text to ids and back: one codec for symbol tasks, for BPE trained on the data, and for pretrained tokenizers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import AddedToken
from torch import Tensor

from kernels.errors import UserError
from latent.config import Frontier
from latent.thought import Prompt

THINK, END, PAD = "<think>", "<end>", "<pad>"
LATENT, UNKNOWN = "<latent>", "<unknown>"  # a latent step in ids, a word outside a closed vocabulary: no embeddings


_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: around what a chat's user wrote and must stay text


class Codec:
    """Ids of a problem's parts. `tokenizer` is any Hugging Face tokenizer.

    A prompt begins as the tokenizer begins a text (`begin`: BOS, where it has one), then come the question and the
    token that says *now think*; the text after the thoughts is the chain's steps, if the method writes them, and the
    answer, closed by the end token unless the answer has a fixed number of tokens (`fixed_answer`), which then ends it.
    `chat`: questions go into the tokenizer's chat template, as the user's turn; ValueError where it has none.

    Questions, steps and answers are text and nothing else: a control token that is spelt in one (`<latent>`, `</s>`) is
    read as the letters it is spelt with, and refused with a ValueError where a closed vocabulary has no letters. The
    token that pads is no token that a text can begin, end or be unknown with.
    """

    def __init__(self, tokenizer, fixed_answer: int | None = None, chat: bool = False):
        self.tokenizer, self.fixed_answer, self.chat = tokenizer, fixed_answer, chat
        if chat and not tokenizer.chat_template:
            raise UserError("model.chat_template: this tokenizer has no chat template")
        self._raw = tokenizer.backend_tokenizer
        self._raw.no_truncation()  # a tokenizer.json may have been saved with it
        self._raw.no_padding()
        vocab = tokenizer.get_vocab()
        taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, None}
        fresh = LATENT not in vocab  # an exported checkpoint's tokenizer stays as it is
        own_pad = tokenizer.pad_token_id is None or (fresh and tokenizer.pad_token_id in taken)
        wanted = [THINK]
        if own_pad:
            wanted.append(PAD)
        if tokenizer.eos_token_id is None and fixed_answer is None:
            wanted.append(END)
        new = [t for t in wanted if t not in vocab]
        if new:
            tokenizer.add_special_tokens({"additional_special_tokens": new})
        if own_pad:
            tokenizer.pad_token = PAD
        self.think: int = tokenizer.convert_tokens_to_ids(THINK)
        self.pad: int = tokenizer.pad_token_id
        self.end: int | None = None if fixed_answer else tokenizer.convert_tokens_to_ids(tokenizer.eos_token or END)
        self._words_apart = type(self._raw.model).__name__ == "WordLevel"  # each is decoded with a space before it
        self.unknown: int | None = tokenizer.get_vocab().get(UNKNOWN)
        self.begin: tuple[int, ...] = beginning(tokenizer)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ours = {tokenizer.get_vocab().get(t) for t in (THINK, END, PAD, LATENT)} - {None}
        self._control = special | set(tokenizer.all_special_ids) | ours | {self.pad}
        if tokenizer.unk_token_id not in (self.end, self.pad, tokenizer.bos_token_id):
            self._control.discard(tokenizer.unk_token_id)  # that of a character it does not know
        self._words: str | None = None
        self._piece = lru_cache(1 << 16)(self._plain)  # steps and answers of symbol tasks come again and again
        self.weights = lru_cache(1 << 14)(self._weights)  # and so does what is reachable
        self.rows = self.size  # which is counted anew each time

    @property
    def size(self) -> int:
        """Rows that the embedding needs."""
        without = (LATENT, UNKNOWN, *([END] if self.fixed_answer else []))
        return len(self.tokenizer) - sum(name in self.tokenizer.get_vocab() for name in without)

    def name_latent(self) -> int:
        """The id of the placeholder of a latent step, which has no row in the embedding."""
        if LATENT not in self.tokenizer.get_vocab():
            self.tokenizer.add_tokens([AddedToken(LATENT, special=True)], special_tokens=True)
        self._control.add(latent := self.tokenizer.convert_tokens_to_ids(LATENT))
        self._words = None
        return latent

    def name_end(self) -> int | None:
        """The id of an end token for tools that close every text with one, where an answer ends by its length.

        It has no row in the embedding, and is never written. None where the end token is a model's own.
        """
        if self.end is not None:
            return None
        self.tokenizer.add_special_tokens({"eos_token": END})
        self._control.add(end := self.tokenizer.convert_tokens_to_ids(END))
        self._words = None
        return end

    def _encode(self, text: str, split: bool) -> list[int]:
        """Ids of a text; `split`: special tokens that are spelt in it are read as letters."""
        self._raw.encode_special_tokens = split
        try:
            ids = self._raw.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the tokenizers library raises nothing narrower
            raise UserError(f"cannot encode {text!r:.60}: {e}") from None
        finally:
            self._raw.encode_special_tokens = False
        if self.unknown is not None and self.unknown in ids:
            raise UserError(f"cannot encode {text!r:.60}: it has a word outside the vocabulary")
        return ids

    def _plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text in which nothing is a control token. Raises UserError where that cannot be."""
        ids = self._encode(text, split=True)
        if not self._control.isdisjoint(ids):  # added tokens that are not marked special are never split
            try:
                ids = self._spelt(text)
            except Exception as e:
                raise UserError(f"cannot encode {text!r:.60}: {e}") from None
            found = self._control.intersection(ids)
            if found:
                name = self.tokenizer.convert_ids_to_tokens(min(found))
                raise UserError(f"cannot encode {text!r:.60}: it holds {name!r}, which is a control token here")
        return tuple(ids)

    def _spelt(self, text: str) -> list[int]:
        """Ids of a text by the tokenizer's normalizer, pre-tokenizer and model alone: no added token is one."""
        raw, pieces = self._raw, [text]
        if raw.normalizer is not None:
            pieces = [raw.normalizer.normalize_str(text)]
        if raw.pre_tokenizer is not None:
            pieces = [piece for piece, _ in raw.pre_tokenizer.pre_tokenize_str(pieces[0])]
        return [token.id for piece in pieces for token in raw.model.tokenize(piece)]

    def question(self, text: str) -> tuple[int, ...]:
        """A prompt's ids: how a text begins, the question, the think token last."""
        ids = self._turn(text) if self.chat else self._plain(text)
        begun = ids[: len(self.begin)] == self.begin  # most templates write BOS themselves
        return (*(() if self.chat and begun else self.begin), *ids, self.think)

    def _turn(self, text: str) -> tuple[int, ...]:
        """Ids of a question as the user's turn of the chat template, whose own control tokens count as such."""
        marked = self.marked(text)
        turn = [{"role": "user", "content": marked}]
        said = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if marked != text and any(said.count(mark) < marked.count(mark) for mark in (_OPEN, _CLOSE)):
            raise UserError(f"cannot encode {text!r:.60}: the chat template cuts a control token in it")
        return self.rendered(said)

    def marked(self, text: str) -> str:
        """A turn's text for a chat template, with marks around what is spelt like a control token.

        `rendered` reads it as letters then. Raises UserError where the text holds both such a word and our marks.
        """
        marked = re.sub(self._control_words(), rf"{_OPEN}\g<0>{_CLOSE}", text)
        if marked != text and (_OPEN in text or _CLOSE in text):
            raise UserError(f"cannot encode {text!r:.60}: it holds a control token beside U+E000 or U+E001")
        return marked

    def _control_words(self) -> str:
        """A pattern of what control tokens are spelt like, the longest first."""
        if self._words is None:
            names = [self.tokenizer.convert_ids_to_tokens(i) for i in self._control]
            self._words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return self._words

    def rendered(self, said: str) -> tuple[int, ...]:
        """Ids of a chat as its template gives it: control tokens are such, but for those that are `marked`.

        Raises UserError where the template cut a mark off.
        """
        words = self._control_words()
        pieces = re.split(f"{_OPEN}({words}){_CLOSE}", said)  # template, token, template, token, ..., template
        if any(re.search(f"{_OPEN}(?:{words})|(?:{words}){_CLOSE}", p) for p in pieces):
            raise UserError(f"cannot encode {said!r:.60}: the chat template cuts a control token in it")
        ids = [self._plain(p) if i % 2 else self._encode(p, split=False) for i, p in enumerate(pieces) if p]
        return tuple(i for piece in ids for i in piece)

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

    def _weights(self, frontier: Frontier) -> Tensor:
        """The probability (V,) of every token where a search may stand. Raises UserError for a word of several."""
        ids = [self.step(word) for word, _ in frontier]
        for (word, _), said in zip(frontier, ids):
            if len(said) != 1:
                raise UserError(
                    f"{word!r:.40} is {len(said)} tokens: a frontier needs a token a word (a closed vocabulary)"
                )
        p_V, p_N = (
            torch.zeros(self.rows, dtype=torch.float64),
            torch.tensor([p for _, p in frontier], dtype=torch.float64),
        )
        return p_V.index_add_(0, torch.tensor([i for (i,) in ids]), p_N)

    def texts(self, tokens_BT: Tensor) -> list[str]:
        """Completions as text, cut at the end token; a special token before it stays, for the verifier to see."""
        rows = tokens_BT.tolist()
        if self.end is not None:
            rows = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        return [self.text(row) for row in rows]

    def text(self, ids: list[int]) -> str:
        """Ids as a text that begins with its first word."""
        text = self.tokenizer.decode(ids)
        return text.removeprefix(" ") if self._words_apart else text

    def prompt(self, questions: Iterable[str], device="cpu", width: int = 0) -> Prompt:
        """Left-padded prompts, of at least `width` positions. Raises UserError for what is no list of texts."""
        if isinstance(questions, str):
            raise UserError(f"questions must be a list of texts, got one text: give [{questions!r:.40}]")
        rows = [self.question(q) for q in questions]
        if not rows:
            raise UserError("there is no question to read")
        return pad_left(rows, self.pad, device, width)

    def observation(self, text: str) -> tuple[int, ...]:
        """The ids of what is said in a later turn, the think token last. Raises UserError in a chat template."""
        if self.chat:
            raise UserError("model.chat_template: a chat of several turns is not supported")
        return (*self._plain(text), self.think)


def beginning(tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text: BOS, where it adds one."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    mask = probe["special_tokens_mask"]
    return tuple(probe["input_ids"][: mask.index(0) if 0 in mask else 0])


@dataclass
class Text:
    """Right-padded token rows; `mask_BT` is False on padding, None where there is none."""

    ids_BT: Tensor
    mask_BT: Tensor | None

    def rows(self) -> list[list[int]]:
        """The ids of each row, without padding."""
        ids = self.ids_BT.tolist()
        lengths = [len(row) for row in ids] if self.mask_BT is None else self.mask_BT.sum(1).tolist()
        return [row[:n] for row, n in zip(ids, lengths)]


def tokens_in(rows: Iterable[tuple[int, ...]]) -> int:
    """Tokens in all rows together."""
    return sum(map(len, rows))


def pad_left(rows: list, pad: int, device="cpu", width: int = 0) -> Prompt:
    """Rows of ids as prompts, of at least `width` positions."""
    longest = max(width, *map(len, rows))
    if min(map(len, rows)) == longest:
        return Prompt(torch.tensor(rows, device=device))
    ids = torch.tensor([[pad] * (longest - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[i >= longest - len(r) for i in range(longest)] for r in rows], device=device)
    return Prompt(ids, mask)


def pad_right(rows: list[tuple[int, ...]], pad: int, device="cpu") -> Text:
    """Rows of ids as one tensor."""
    longest = max(map(len, rows))
    if min(map(len, rows)) == longest:
        return Text(torch.tensor(rows, device=device), None)
    ids = torch.tensor([r + (pad,) * (longest - len(r)) for r in rows], device=device)
    return Text(ids, torch.tensor([[i < len(r) for i in range(longest)] for r in rows], device=device))


@dataclass
class Batch:
    """Problems as ids: prompts, and for each row its steps and its answer.

    Where processes or micro-batches share a batch, each has the rows from `first` on of `whole` of them. What a loss
    draws at random it draws through `draw`, from a generator that is the same for all: torch's own where none is given.
    `then`: the turn that follows, of the same rows. `frontiers`: where a search may stand after each step, as
    probabilities of tokens (V,); None where no method asked for it.
    """

    prompt: Prompt
    steps: list[list[tuple[int, ...]]]
    answers: list[tuple[int, ...]]
    pad: int
    generator: torch.Generator | None = None
    first: int = 0
    whole: int | None = None
    then: "Batch | None" = None
    frontiers: list[list[Tensor]] | None = None

    @classmethod
    def of(
        cls, problems, codec: Codec, device="cpu", later=(), frontiers: list[list[Frontier]] | None = None, **share
    ) -> "Batch":
        """From anything with `question`, `steps` and `answer` as text. `share`: `generator`, `first`, `whole`.

        `later`: the same problems' later turns, as many lists as there are turns after the first. `frontiers`: of each
        problem, step by step.
        """
        made = cls.of_turn(problems, codec, codec.prompt([p.question for p in problems], device), share)
        if frontiers is not None:
            made.frontiers = [[codec.weights(step) for step in steps] for steps in frontiers]
        at = made
        for turn in later:
            prompt = pad_left([codec.observation(p.question) for p in turn], codec.pad, device)
            at.then = cls.of_turn(turn, codec, prompt, share)
            at = at.then
        return made

    @classmethod
    def of_turn(cls, problems, codec: Codec, prompt: Prompt, share: dict) -> "Batch":
        """One turn of some problems."""
        return cls(
            prompt,
            [[codec.step(s) for s in p.steps] for p in problems],
            [codec.answer(p.answer) for p in problems],
            codec.pad,
            **share,
        )

    def draw(self) -> float:
        """A number in [0, 1) for the whole batch."""
        return float(torch.rand((), generator=self.generator))

    def draw_below(self, n: int) -> int:
        """A whole number in 0..n - 1 for the whole batch."""
        return int(torch.randint(n, (), generator=self.generator))

    def draw_rows(self) -> Tensor:
        """A number in [0, 1) for each of these rows (B,): that row's, whoever else is in the process."""
        rows = len(self.answers)
        drawn = torch.rand(self.whole or rows, generator=self.generator)[self.first : self.first + rows]
        return drawn.to(self.prompt.ids_BT.device)

    def chain(self, skip: int = 0, every: int = 1) -> Text:
        """The steps from the `skip`-th on, cut to one in `every`, then the answer."""
        return pad_right(self.chain_rows(skip, every), self.pad, self.prompt.ids_BT.device)

    def chain_rows(self, skip: int = 0, every: int = 1) -> list[tuple[int, ...]]:
        """The same, a row of ids a problem."""
        cut = [one_in(every, steps[skip:]) for steps in self.steps]
        return [sum(steps, ()) + answer for steps, answer in zip(cut, self.answers)]


def one_in(every: int, steps: list) -> list:
    """One of a chain's steps in `every`; the last is left out, unless all are kept, as the answer follows it."""
    return steps if every == 1 else steps[every - 1 : -1 : every]


def word_codec(words: Iterable[str], fixed_answer: int | None = None) -> Codec:
    """One token a word of a closed vocabulary, split at white space. An unknown word is a ValueError at encoding."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, THINK] + ([] if fixed_answer else [END])
    vocab = {w: i for i, w in enumerate([*special, *words, UNKNOWN])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Replace(Regex("^"), " ")  # what a tool puts a text together of stays as many words
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
