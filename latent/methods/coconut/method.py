"""Coconut (Hao et al. 2024, arXiv:2412.06769, sec. 3): a curriculum turns a chain in tokens into latents.

In stage s the first s steps are gone and s * c latents stand in their place; the loss is on the text that remains.
Stage 0 is CoT; the last stage has all k latents and the answer alone, however many steps a problem had. With k = 0
there is only the last: no-CoT.

Deviates: a stage ends when the model writes the remaining text (`advance_at`), not only after a fixed number of
updates, and a share of batches comes from earlier stages, so that one run without a hand-made schedule goes through.
No <eot> token follows the thoughts, unless `closing` asks for one: the last latent gives the first token. AdamW's
moments are kept throughout; the authors' code makes a new optimizer at every epoch.
"""

import torch
from torch import Tensor

from latent.backbone import Backbone
from latent.methods.coconut import Coconut
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import text_loss
from latent.text import Batch, tokens_in
from latent.thought import Greedy

_MEMORY = 0.98  # of the moving average of exact match: about the last 50 batches
_FEWEST = 20  # updates in a stage before the average is believed


class CoconutMethod(AlongSequence[Coconut]):
    """Stage and moving average are buffers, so a checkpoint holds them and a resume goes on with them."""

    stage: Tensor
    in_stage: Tensor
    exact: Tensor  # the sum and the weight of a moving average
    on_host = ("stage", "in_stage", "exact")

    def __init__(self, config: Coconut, backbone: Backbone):
        super().__init__(config, backbone)
        self.last = config.n_latent // config.latents_per_step + 1
        self.first = config.first_stage if config.n_latent else self.last
        self.register_buffer("stage", torch.tensor(self.first))
        self.register_buffer("in_stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("exact", torch.zeros(2))
        self.drawn = 0  # the stage that the last batch was trained on

    def latents(self, stage: int) -> int:
        """Latents in a stage."""
        return min(stage * self.config.latents_per_step, self.config.n_latent)

    def target_step(self, latent: int, chain: int) -> int:
        return min(-(-latent // self.config.latents_per_step), chain)

    def steps_written(self, chain: int) -> int:
        return 0 if self.in_last_stage else max(0, chain - int(self.stage))

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        texts = [self.stride * self.latents(s) + sum(steps[s:]) for s in range(self.earliest, self.last)]
        return prompt + max([*texts, self.stride * self.config.n_latent]) + self.closing_positions + answer - 1

    @property
    def trained_steps(self) -> int:
        return self.latents(int(self.stage))

    @property
    def in_last_stage(self) -> bool:
        return int(self.stage) == self.last

    def least_updates(self, chain: int) -> int:
        by_count, by_merit = self.config.stage_steps, _FEWEST if self.config.advance_at < 1 else 0
        return (self.last - self.first) * min(filter(None, (by_count, by_merit)), default=0)

    def turn(self, batch: Batch) -> Taught:
        self.drawn = drawn = self.draw_stage(batch)
        text = batch.chain(skip=self.skipped(batch, drawn))
        k = self.latents(drawn)
        thought = self.closed(self.loop(batch.prompt, Greedy(), 1, k, k, stop=None))
        loss, logged = text_loss(self.backbone, thought, text)
        return Taught(thought, text, [loss], logged)

    def turn_counts(self, batch: Batch) -> list[int]:
        return [tokens_in(batch.chain_rows(skip=self.skipped(batch, self.draw_stage(batch))))]

    @property
    def earliest(self) -> int:
        """The first of the stages that batches are of."""
        return 0 if self.config.earlier and self.config.n_latent else self.first

    def draw_stage(self, batch: Batch) -> int:
        """The stage that a batch is trained on: this one or, for a share of batches, an earlier one."""
        stage = int(self.stage)
        earlier = stage > 0 and self.config.n_latent and batch.draw() < self.config.earlier
        return batch.draw_below(stage) if earlier else stage

    def skipped(self, batch: Batch, stage: int) -> int:
        """Steps of a chain that the text has lost in a stage: all of them in the last."""
        return stage if stage < self.last else max(map(len, batch.steps))

    def begin_update(self) -> bool:
        """Go on to the next stage, where this one is learned or has had its updates."""
        good = self.exact[0] > self.config.advance_at * self.exact[1] and self.in_stage >= _FEWEST
        if self.stage < self.last and (good or self.in_stage == self.config.stage_steps > 0):
            self.stage += 1
            self.in_stage.zero_()
            self.exact.zero_()
        return False

    def learned(self, logged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Count the update and, where its batch was of this stage, how much of it was learned."""
        self.in_stage += 1
        if self.drawn == self.stage:
            exact = logged["exact"]
            self.exact.lerp_(torch.stack([exact, torch.ones_like(exact)]).to(self.exact), 1 - _MEMORY)
        return {"stage": self.stage.float()}
