"""Control: the answer at once, no chain and no latents."""

from latent.methods.base import AlongSequence, text_loss
from latent.methods.no_cot import NoCoT
from latent.text import pad_right, tokens_in
from latent.thought import Greedy


class NoCoTMethod(AlongSequence[NoCoT]):
    """Reads the prompt and answers; trained on the answer alone."""

    def terms(self, batch):
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        loss, logged = text_loss(self.backbone, self.think(batch.prompt, Greedy()), text)
        return [loss], logged

    def counts(self, batch):
        return [tokens_in(batch.answers)]
