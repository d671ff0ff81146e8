"""What ends a text in stock generation, and what a streamer sees, where a prompt holds placeholders."""

import torch
from torch import Tensor
from transformers.generation import StoppingCriteria


class Seen(StoppingCriteria):
    """A caller's criterion, on the ids that the caller sees."""

    def __init__(self, inner, t: int, n: int):
        self.inner, self.t, self.n = inner, t, n

    def __call__(self, input_ids: Tensor, scores, **kwargs):
        seen = torch.cat([input_ids[:, : self.t], input_ids[:, self.t + self.n :]], 1)
        return self.inner(seen, scores, **kwargs)


class Length(StoppingCriteria):
    """Ends a text that no end token closes, besides whatever else ends it."""

    def __init__(self, columns: int):
        self.columns = columns

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        done = input_ids.shape[1] >= self.columns
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


class Strings(StoppingCriteria):
    """Stop strings in the text of a closed vocabulary, in which the stock criterion cannot spell its probe."""

    def __init__(self, strings: str | list[str], tokenizer, begin: int):
        self.strings, self.tokenizer, self.begin = [strings] if isinstance(strings, str) else strings, tokenizer, begin

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.begin :])
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=input_ids.device)


class Stripped:
    """Takes what was appended to the prompt out of what is streamed."""

    def __init__(self, inner, added: int):
        self.inner, self.added, self.begun = inner, added, False

    def put(self, value: Tensor) -> None:
        if not self.begun and self.added:
            value = value[..., : -self.added]
        self.begun = True
        self.inner.put(value)

    def end(self) -> None:
        self.inner.end()
