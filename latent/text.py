"""Rows of ids as padded tensors, and batches of problems to train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent.config import Frontier
from latent.thought import Prompt

if TYPE_CHECKING:
    from latent.codec import Codec


@dataclass
class Text:
    """Right-padded token rows; `mask_BT` is False on padding, None where there is none.

    `at_N`: where the N tokens that are no padding lie among all B * T, None = asked of the mask, for which the host
    waits for the device.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None
    at_N: Tensor | None = None

    def places(self) -> Tensor | None:
        """`at_N`; None where there is no padding."""
        if self.mask_BT is None or self.at_N is not None:
            return self.at_N
        return self.mask_BT.flatten().nonzero()[:, 0]

    @property
    def lengths_B(self) -> Tensor | None:
        """The tokens of each row, None where there is no padding."""
        return None if self.mask_BT is None else self.mask_BT.sum(1)

    def rows(self) -> list[list[int]]:
        """The ids of each row, without padding."""
        ids = self.ids_BT.tolist()
        lengths = [len(row) for row in ids] if self.mask_BT is None else self.mask_BT.sum(1).tolist()
        return [row[:n] for row, n in zip(ids, lengths)]


def sent(values: list | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Numbers as a tensor on a device. The host does not wait for a GPU, which fetches them when it comes to it."""
    made = torch.as_tensor(values)
    return made.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else made.to(device)


def tokens_in(rows: Iterable[tuple[int, ...]]) -> int:
    """The number of tokens in all rows."""
    return sum(map(len, rows))


def pad_left(rows: list, pad: int, device="cpu") -> Prompt:
    """Rows of ids as left-padded prompts."""
    longest = max(map(len, rows))
    if min(map(len, rows)) == longest:
        return Prompt(sent(rows, device))
    ids = sent([[pad] * (longest - len(r)) + list(r) for r in rows], device)
    return Prompt(ids, sent([[i >= longest - len(r) for i in range(longest)] for r in rows], device))


def positions(ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Position ids (B, T) of left-padded rows, counted from each row's first token."""
    if mask_BT is None:
        return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    return (mask_BT.long().cumsum(1) - 1).clamp(min=0)


def pad_right(rows: list[tuple[int, ...]], pad: int, device="cpu") -> Text:
    """Rows of ids as right-padded text."""
    longest = max(map(len, rows))
    if min(map(len, rows)) == longest:
        return Text(sent(rows, device), None)
    ids = sent([r + (pad,) * (longest - len(r)) for r in rows], device)
    mask = sent([[i < len(r) for i in range(longest)] for r in rows], device)
    return Text(ids, mask, sent([b * longest + i for b, r in enumerate(rows) for i in range(len(r))], device))


@dataclass
class Batch:
    """Problems as ids: prompts, and for each row its steps and its answer.

    Where processes or micro-batches share a batch of `whole` rows, these have the given `numbers` in it (None: all).
    A loss makes its random draws through `draw`, `draw_below` and `draw_rows`, from `generator` (None: torch's global
    one), which all shares seed alike. `then`: the next turn of the same rows. `frontiers`: where a search may stand
    after each step, as probabilities of tokens (V,); None where no method asks for it.
    """

    prompt: Prompt
    steps: list[list[tuple[int, ...]]]
    answers: list[tuple[int, ...]]
    pad: int
    generator: torch.Generator | None = None
    numbers: Sequence[int] | None = None
    whole: int | None = None
    then: Batch | None = None
    frontiers: list[list[Tensor]] | None = None

    @classmethod
    def of(
        cls, problems, codec: Codec, device="cpu", later=(), frontiers: list[list[Frontier]] | None = None, **share
    ) -> Batch:
        """From anything with `question`, `steps` and `answer` as text. `share`: `generator`, `numbers`, `whole`.

        `later`: the later turns of the same problems, a list of problems for each turn. `frontiers`: of each problem,
        step by step.
        """
        batch = None
        for i, turn in reversed([*enumerate([problems, *later])]):  # the last first, so that each has what follows it
            if i == 0:
                prompt = codec.prompt([p.question for p in turn], device)
            else:
                prompt = pad_left([codec.observation(p.question) for p in turn], codec.pad, device)
            steps, answers = [[codec.step(s) for s in p.steps] for p in turn], [codec.answer(p.answer) for p in turn]
            batch = cls(prompt, steps, answers, codec.pad, then=batch, **share)
        assert batch is not None  # there is a first turn
        if frontiers is not None:
            batch.frontiers = [[codec.weights(step) for step in steps] for steps in frontiers]
        return batch

    def draw(self) -> float:
        """A uniform number in [0, 1), the same for every share of the batch."""
        return float(torch.rand((), generator=self.generator))

    def draw_below(self, n: int) -> int:
        """A uniform integer in 0..n - 1, the same for every share of the batch."""
        return int(torch.randint(n, (), generator=self.generator))

    def draw_rows(self) -> Tensor:
        """A uniform number in [0, 1) for each row here (B,). It depends on the row, not on how the batch is shared."""
        drawn = torch.rand(self.whole or len(self.answers), generator=self.generator)
        return sent(drawn if self.numbers is None else drawn[list(self.numbers)], self.prompt.ids_BT.device)

    def chain(self, skip: int = 0, every: int = 1) -> Text:
        """The text of a chain: one in `every` of the steps from number `skip` on, then the answer."""
        return pad_right(self.chain_rows(skip, every), self.pad, self.prompt.ids_BT.device)

    def chain_rows(self, skip: int = 0, every: int = 1) -> list[tuple[int, ...]]:
        """The same as rows of ids, one for each problem."""
        cut = [one_in(every, steps[skip:]) for steps in self.steps]
        return [sum(steps, ()) + answer for steps, answer in zip(cut, self.answers)]


def one_in(every: int, steps: list) -> list:
    """Every `every`-th step of a chain. Unless all are kept the last is left out, because the answer repeats it."""
    return steps if every == 1 else steps[every - 1 : -1 : every]


def __getattr__(name: str):
    """Codecs, which were in this file first: code that uses the library has them from here."""
    if name in ("Codec", "bpe_codec", "word_codec"):
        from latent import codec

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
