"""Control: the answer at once, no chain and no latents."""

from latent.methods.base import AlongSequence, Taught, text_loss
from latent.methods.no_cot import NoCoT
from latent.text import Batch, pad_right, tokens_in
from latent.thought import Greedy


class NoCoTMethod(AlongSequence[NoCoT]):
    """Reads the prompt and answers; trained on the answer alone."""

    def turn(self, batch: Batch) -> Taught:
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        thought = self.think(batch.prompt, Greedy())
        loss, logged = text_loss(self.backbone, thought, text)
        return Taught(thought, text, [loss], logged)

    def turn_counts(self, batch: Batch) -> list[int]:
        return [tokens_in(batch.answers)]
