"""Control: the answer at once, no chain and no latents."""

from torch import Tensor

from latent.methods.base import AlongSequence, Mean, text_loss
from latent.methods.no_cot import NoCoT
from latent.text import Batch, pad_right, tokens_in
from latent.thought import Greedy


class NoCoTMethod(AlongSequence[NoCoT]):
    """Reads the prompt and answers; trained on the answer alone."""

    def terms(self, batch: Batch) -> tuple[list[Mean], dict[str, Mean]]:
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        loss, logged = text_loss(self.backbone, self.think(batch.prompt, Greedy()), text)
        return [loss], logged

    def counts(self, batch: Batch) -> list[int | Tensor]:
        return [tokens_in(batch.answers)]
