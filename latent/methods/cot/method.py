"""Control: distilled on chains written in tokens (SFT on the teacher's steps, then the answer)."""

from latent.methods.cot import CoT
from latent.methods.sequence import AlongSequence, Taught
from latent.text import Batch, one_in, tokens_in


class CoTMethod(AlongSequence[CoT]):
    """Reads the prompt, writes the chain and the answer; trained on both."""

    def steps_written(self, chain: int) -> int:
        return len(one_in(self.config.every, [0] * chain))

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        return prompt + self.written(steps) + answer - 1

    def written(self, steps: list[int]) -> int:
        return sum(one_in(self.config.every, steps))

    def turn(self, batch: Batch) -> Taught:
        return self.without_latents(batch.prompt, batch.chain(every=self.config.every))

    def turn_counts(self, batch: Batch) -> list[int]:
        return [tokens_in(batch.chain_rows(every=self.config.every))]
