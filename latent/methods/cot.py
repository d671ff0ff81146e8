"""Control: distilled on chains written in tokens (SFT on the teacher's steps, then the answer)."""

from latent.methods.base import AlongSequence, text_loss
from latent.thought import Greedy


class CoT(AlongSequence):
    """Reads the prompt, writes the chain and the answer; trained on both."""

    def steps_written(self, chain):
        return -(-chain // self.config.every)

    def needs(self, prompt, steps, answer):
        return prompt + sum(steps[(len(steps) - 1) % self.config.every :: self.config.every]) + answer - 1

    def loss(self, batch):
        return text_loss(self.backbone, self.think(batch.prompt, Greedy()), batch.chain(every=self.config.every))
