"""What a caller gives to stock generation, called with the ids that the caller knows of; and when a text ends.

Placeholders were appended to the prompt. `t`: columns of the prompt as it was given. `n`: columns that were appended.
"""

import torch
from torch import Tensor
from transformers.generation import LogitsProcessor, StoppingCriteria


def callers_ids(ids: Tensor, t: int, n: int) -> Tensor:
    """Ids (..., T) without the columns that were appended to the prompt."""
    return torch.cat([ids[..., :t], ids[..., t + n :]], -1)


class OnCallersIds(StoppingCriteria):
    """A caller's criterion."""

    def __init__(self, inner, t: int, n: int):
        self.inner, self.t, self.n = inner, t, n

    def __call__(self, input_ids: Tensor, scores, **kwargs):
        return self.inner(callers_ids(input_ids, self.t, self.n), scores, **kwargs)


class LogitsOfCallersIds(LogitsProcessor):
    """A caller's processor of logits."""

    def __init__(self, inner, t: int, n: int):
        self.inner, self.t, self.n = inner, t, n

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.inner(callers_ids(input_ids, self.t, self.n), scores)


class AtColumn(StoppingCriteria):
    """Stops every row at a number of columns: for texts that no end token closes, and at the last position."""

    def __init__(self, columns: int):
        self.columns = columns

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        done = input_ids.shape[1] >= self.columns
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


class StopStringsOfWords(StoppingCriteria):
    """Stop strings for a word-level vocabulary: the stock criterion cannot encode in it the string it probes with."""

    def __init__(self, strings: str | list[str], tokenizer, begin: int):
        self.strings, self.tokenizer, self.begin = [strings] if isinstance(strings, str) else strings, tokenizer, begin

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.begin :])
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=input_ids.device)


class WithoutAppended:
    """A streamer that leaves out of the prompt what was appended to it."""

    def __init__(self, inner, appended: int):
        self.inner, self.appended, self.begun = inner, appended, False

    def put(self, value: Tensor) -> None:
        if not self.begun and self.appended:
            value = value[..., : -self.appended]  # generation streams the prompt first, in one piece
        self.begun = True
        self.inner.put(value)

    def end(self) -> None:
        self.inner.end()
