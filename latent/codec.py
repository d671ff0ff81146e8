"""Text to ids and back: one codec for symbol tasks, for BPE trained on the data, and for pretrained tokenizers."""

import re
from collections.abc import Iterable
from functools import lru_cache

import torch
from tokenizers import AddedToken
from torch import Tensor

from kernels.errors import UserError
from latent.config import Frontier
from latent.text import pad_left
from latent.thought import Prompt

THINK, END, PAD = "<think>", "<end>", "<pad>"
LATENT, UNKNOWN = "<latent>", "<unknown>"  # a latent step, a word outside a closed vocabulary; neither is embedded
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters: marks around a control token that a user spelt in a chat


class Codec:
    """Encodes the parts of a problem, and decodes texts. `tokenizer` is any Hugging Face tokenizer.

    A prompt begins as the tokenizer begins a text (`begin`: BOS, where it has one); then come the question and the
    think token. The text after the thoughts is the chain's steps, if the method writes them, and the answer. The end
    token closes it, unless answers have a fixed number of tokens (`fixed_answer`). `chat`: questions go into the
    tokenizer's chat template as the user's turn. Raises UserError where it has none.

    Questions, steps and answers are text and nothing else: a control token that is spelt in one (`<latent>`, `</s>`) is
    read as the letters it is spelt with. A closed vocabulary has no letters: it raises UserError. The padding token is
    never BOS, the end token or the unknown token.
    """

    def __init__(self, tokenizer, fixed_answer: int | None = None, chat: bool = False):
        self.tokenizer, self.fixed_answer, self.chat = tokenizer, fixed_answer, chat
        if chat and not tokenizer.chat_template:
            raise UserError("model.chat_template: this tokenizer has no chat template")
        self._raw = tokenizer.backend_tokenizer
        self._raw.no_truncation()  # tokenizer.json may ask for truncation and padding
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
        self._word_level = type(self._raw.model).__name__ == "WordLevel"  # then a text decodes with a leading space
        self.unknown: int | None = tokenizer.get_vocab().get(UNKNOWN)
        self.begin: tuple[int, ...] = beginning(tokenizer)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ours = {tokenizer.get_vocab().get(t) for t in (THINK, END, PAD, LATENT)} - {None}
        self._control = special | set(tokenizer.all_special_ids) | ours | {self.pad}
        if tokenizer.unk_token_id not in (self.end, self.pad, tokenizer.bos_token_id):
            self._control.discard(tokenizer.unk_token_id)  # any unknown character gives it
        self._control_pattern: str | None = None
        self._rows = self.size  # which is counted anew each time
        self._remember()

    def _remember(self) -> None:
        """Make the caches of what small tasks ask again and again."""
        self.question = lru_cache(1 << 13)(self._question)
        self.step = lru_cache(1 << 16)(self._plain)  # ids of a step; symbol tasks repeat a few steps and answers
        self.weights = lru_cache(1 << 14)(self._weights)  # and few frontiers

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("question", "step", "weights")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._remember()  # its own: a copy's caches are of the copy

    @property
    def size(self) -> int:
        """Rows that the embedding needs."""
        without = (LATENT, UNKNOWN, *([END] if self.fixed_answer else []))
        return len(self.tokenizer) - sum(name in self.tokenizer.get_vocab() for name in without)

    def ensure_latent_token(self) -> int:
        """The id of the latent placeholder, added where the tokenizer lacks it. It is not embedded."""
        if LATENT not in self.tokenizer.get_vocab():
            self.tokenizer.add_tokens([AddedToken(LATENT, special=True)], special_tokens=True)
        self._control.add(latent := self.tokenizer.convert_tokens_to_ids(LATENT))
        self._control_pattern = None
        return latent

    def ensure_end_token(self) -> int | None:
        """The id of an end token for tools that close every text with one; it is added where answers have fixed length.

        It is neither embedded nor ever written. None where texts end with an end token that the model has learnt.
        """
        if self.end is not None:
            return None
        self.tokenizer.add_special_tokens({"eos_token": END})
        self._control.add(end := self.tokenizer.convert_tokens_to_ids(END))
        self._control_pattern = None
        return end

    def _encode(self, text: str, split: bool) -> list[int]:
        """Ids of a text. `split`: special tokens that are spelt in it are read as letters."""
        self._raw.encode_special_tokens = split
        try:
            ids = self._raw.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the tokenizers library raises nothing narrower
            raise UserError(f"cannot encode {text!r:.60}: {e}") from None
        finally:
            self._raw.encode_special_tokens = False
        if self.unknown is not None and self.unknown in ids:
            words = [word for word in text.split() if self._raw.token_to_id(word) is None]
            which = f": {words[0]!r:.30}" if words else ""
            raise UserError(f"cannot encode {text!r:.60}: it has a word outside the vocabulary{which}")
        return ids

    def _plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text without control tokens. Raises UserError where one that is spelt in it cannot be split."""
        ids = self._encode(text, split=True)
        if not self._control.isdisjoint(ids):  # added tokens that are not marked special are never split
            try:
                ids = self._spelt(text)
            except Exception as e:
                raise UserError(f"cannot encode {text!r:.60}: {e}") from None
            control = self._control.intersection(ids)
            if control:
                name = self.tokenizer.convert_ids_to_tokens(min(control))
                raise UserError(f"cannot encode {text!r:.60}: it holds {name!r}, which is a control token here")
        return tuple(ids)

    def _spelt(self, text: str) -> list[int]:
        """Ids of a text by the tokenizer's normalizer, pre-tokenizer and model alone, which know no added tokens."""
        raw, pieces = self._raw, [text]
        if raw.normalizer is not None:
            pieces = [raw.normalizer.normalize_str(text)]
        if raw.pre_tokenizer is not None:
            pieces = [piece for piece, _ in raw.pre_tokenizer.pre_tokenize_str(pieces[0])]
        return [token.id for piece in pieces for token in raw.model.tokenize(piece)]

    def _question(self, text: str) -> tuple[int, ...]:
        """A prompt's ids: BOS where there is one, the question, and the think token."""
        ids = self._turn(text) if self.chat else self._plain(text)
        begun = ids[: len(self.begin)] == self.begin  # most templates write BOS themselves
        return (*(() if self.chat and begun else self.begin), *ids, self.think)

    def _turn(self, text: str) -> tuple[int, ...]:
        """Ids of a question as the user's turn of a chat. The template's own control tokens stay control tokens."""
        marked = self.marked(text)
        turn = [{"role": "user", "content": marked}]
        chat = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if marked != text and any(chat.count(mark) < marked.count(mark) for mark in (_OPEN, _CLOSE)):
            raise UserError(f"cannot encode {text!r:.60}: the chat template cuts a control token in it")
        return self.rendered(chat)

    def marked(self, text: str) -> str:
        """A turn's text for a chat template, with marks around every word that is spelt like a control token.

        `rendered` then reads these words as letters. Raises UserError for a text that holds such a word and our marks.
        """
        marked = re.sub(self._control_words(), rf"{_OPEN}\g<0>{_CLOSE}", text)
        if marked != text and (_OPEN in text or _CLOSE in text):
            raise UserError(f"cannot encode {text!r:.60}: it holds a control token beside U+E000 or U+E001")
        return marked

    def _control_words(self) -> str:
        """A pattern that matches the spelling of any control token, the longest first."""
        if self._control_pattern is None:
            names = [self.tokenizer.convert_ids_to_tokens(i) for i in self._control]
            self._control_pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return self._control_pattern

    def rendered(self, chat: str) -> tuple[int, ...]:
        """Ids of a chat after its template: words that are `marked` are letters, all other control tokens are tokens.

        Raises UserError where the template cut a mark off.
        """
        words = self._control_words()
        pieces = re.split(f"{_OPEN}({words}){_CLOSE}", chat)  # the odd ones are the marked words
        if any(re.search(f"{_OPEN}(?:{words})|(?:{words}){_CLOSE}", p) for p in pieces):
            raise UserError(f"cannot encode {chat!r:.60}: the chat template cuts a control token in it")
        ids = [self._plain(p) if i % 2 else self._encode(p, split=False) for i, p in enumerate(pieces) if p]
        return tuple(i for piece in ids for i in piece)

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer, with the end token where its length is not fixed. Raises UserError for another length."""
        ids = self.step(text)
        if self.end is not None:
            return (*ids, self.end)
        if len(ids) != self.fixed_answer:
            raise UserError(f"the answer {text!r:.60} has {len(ids)} tokens, all answers must have {self.fixed_answer}")
        return ids

    def _weights(self, frontier: Frontier) -> Tensor:
        """The probability (V,) of every token where a search may stand. Raises UserError for a word of several, and for
        numbers that are no probabilities."""
        ids = [self.step(word) for word, _ in frontier]
        for (word, _), row in zip(frontier, ids):
            if len(row) != 1:
                raise UserError(
                    f"{word!r:.40} is {len(row)} tokens: a frontier needs a token a word (a closed vocabulary)"
                )
        p_V = torch.zeros(self._rows, dtype=torch.float64)
        p_N = torch.tensor([p for _, p in frontier], dtype=torch.float64)
        if not (bool((p_N >= 0).all()) and abs(float(p_N.sum()) - 1) < 1e-6):
            raise UserError(
                f"the probabilities of a frontier must be at least 0 and sum to 1, those of {frontier!r:.80} sum to "
                f"{float(p_N.sum()):.4g}"
            )
        return p_V.index_add_(0, torch.tensor([i for (i,) in ids]), p_N)

    def texts(self, tokens_BT: Tensor) -> list[str]:
        """Completions as texts, cut at the end token. Other special tokens stay, so that the verifier sees them."""
        rows = tokens_BT.tolist()
        if self.end is not None:
            rows = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        return [self.text(row) for row in rows]

    def text(self, ids: list[int]) -> str:
        """Ids as a text, without the leading space that a word-level vocabulary decodes to."""
        text = self.tokenizer.decode(ids)
        return text.removeprefix(" ") if self._word_level else text

    def prompt(self, questions: Iterable[str], device="cpu") -> Prompt:
        """Left-padded prompts. Raises UserError for anything but a list of texts."""
        if isinstance(questions, str):
            raise UserError(f"questions must be a list of texts, got one text: give [{questions!r:.40}]")
        rows = [self.question(q) for q in questions]
        if not rows:
            raise UserError("there is no question to read")
        return pad_left(rows, self.pad, device)

    def observation(self, text: str) -> tuple[int, ...]:
        """Ids of an observation in a later turn, and the think token. Raises UserError with a chat template."""
        if self.chat:
            raise UserError("model.chat_template: a chat of several turns is not supported")
        return (*self._plain(text), self.think)


def beginning(tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text: BOS where it adds one, else none."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    mask = probe["special_tokens_mask"]
    return tuple(probe["input_ids"][: mask.index(0) if 0 in mask else 0])


def word_codec(words: Iterable[str], fixed_answer: int | None = None) -> Codec:
    """A codec with one token for each of `words`, split at white space. Encoding an unknown word raises UserError."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, THINK] + ([] if fixed_answer else [END])
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*special, *words, UNKNOWN]))}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A space before every word: tools join a text from pieces, and would join words otherwise.
    raw.decoder = decoders.Replace(Regex("^"), " ")
    end = {} if fixed_answer else {"eos_token": END}
    return Codec(
        PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token=PAD, unk_token=UNKNOWN, additional_special_tokens=[THINK], **end
        ),
        fixed_answer,
    )


def bpe_codec(texts: Iterable[str], size: int) -> Codec:
    """Byte-level BPE of `size` tokens, trained on `texts`. A digit is a token, so that numbers are spelt alike."""
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
