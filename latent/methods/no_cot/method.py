"""Control: the answer at once, no chain and no latents."""

from latent.methods.no_cot import NoCoT
from latent.methods.sequence import AlongSequence, Taught
from latent.text import Batch, pad_right, tokens_in


class NoCoTMethod(AlongSequence[NoCoT]):
    """Reads the prompt and answers; trained on the answer alone."""

    def turn(self, batch: Batch) -> Taught:
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        return self.without_latents(batch.prompt, text)

    def turn_counts(self, batch: Batch) -> list[int]:
        return [tokens_in(batch.answers)]
