"""Coconut (Hao et al. 2024, arXiv:2412.06769, sec. 3): a curriculum turns a chain in tokens into latents.

In stage s the first s steps are gone and s * c latents stand in their place; the loss is on the text that remains.
Stage 0 is CoT; the last stage has all k latents and the answer alone, however many steps a problem had.

Deviates: a stage ends when the model writes the remaining text (`advance_at`), not only after a fixed number of
updates, and a share of batches comes from earlier stages, so that one run without a hand-made schedule goes through.
No <eot> token follows the thoughts: the last latent gives the first token.
"""

import torch

from latent.methods.base import AlongSequence, text_loss
from latent.thought import Greedy

_MEMORY = 0.98  # of the moving average of exact match: about the last 50 batches


class Coconut(AlongSequence):
    """Stage and moving average are buffers, so a checkpoint holds them and a resume goes on with them."""

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.last = config.n_latent // config.latents_per_step + 1
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("in_stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("exact", torch.zeros(()))

    def latents(self, stage: int) -> int:
        """Latents in a stage."""
        return min(stage * self.config.latents_per_step, self.config.n_latent)

    @property
    def writes_chain(self) -> bool:
        return int(self.stage) < self.last

    def needs(self, prompt, steps, answer):
        stages = (self.stride * self.latents(s) + sum(steps[s:]) for s in range(self.last + 1))
        return prompt + max(stages) + answer - 1

    def think(self, prompt, choose, group=1, steps=None):
        k = self.latents(int(self.stage)) if steps is None else steps
        return super().think(prompt, choose, group, k)

    def loss(self, batch):
        stage = int(self.stage)
        earlier = stage > 0 and torch.rand(()) < self.config.earlier
        drawn = int(torch.randint(stage, ())) if earlier else stage
        text = batch.chain(skip=drawn if drawn < self.last else max(map(len, batch.steps)))
        thought = self.think(batch.prompt, Greedy(), steps=self.latents(drawn))
        loss, metrics = text_loss(self.backbone, thought, text)
        if drawn == stage:
            self._advance(metrics["exact"])
        return loss, {**metrics, "stage": self.stage.float()}

    def _advance(self, exact) -> None:
        self.in_stage += 1
        self.exact.lerp_(exact, 1 - _MEMORY)
        seen = 1 - _MEMORY ** int(self.in_stage)  # the average starts from nothing in every stage
        good = self.exact / seen > self.config.advance_at and self.in_stage >= 20
        if self.stage < self.last and (good or self.in_stage == self.config.stage_steps):
            self.stage += 1
            self.in_stage.zero_()
            self.exact.zero_()
