"""Control: iCoT, or stepwise internalisation (Deng, Choi & Shieber 2024, arXiv:2405.14838, sec. 3).

At update t the first s(t) + o tokens of a chain are gone, and the loss is the cross-entropy of what remains, the answer
last:

    s(t) = floor((t - whole) / remove_every),   P(o) = (1 - e^-lambda) e^(-lambda o),   L = CE(chain[s + o:], answer)

The offset o, drawn for each row (removal smoothing), lets the model meet the next length before it must write it. When
s grows, AdamW's moments are forgotten, unless the last batch had no chain left. What is learned in the end is a model
without latents: it shows what a curriculum alone brings.

Deviates: removal counts updates and not shares of an epoch.
"""

from dataclasses import replace

import torch
from torch import Tensor

from latent.backbone import Backbone
from latent.methods.icot import ICoT
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import Mean
from latent.text import Batch, pad_right, tokens_in


class ICoTMethod(AlongSequence[ICoT]):
    """The number of updates is a buffer, so a checkpoint holds it and a resume goes on with it."""

    updates: Tensor  # that were begun
    gone: Tensor  # whether no row of the last batch had any chain left
    on_host = ("updates", "gone")

    def __init__(self, config: ICoT, backbone: Backbone):
        super().__init__(config, backbone)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("gone", torch.zeros((), dtype=torch.bool))

    @property
    def removed(self) -> int | None:
        """Tokens that every chain has lost; None = all of them."""
        n = max(0, self.since) // self.config.remove_every
        return None if 0 < self.config.all_beyond <= n else n

    @property
    def since(self) -> int:
        """The number, from 0, of the latest update since tokens began to go."""
        return int(self.updates) - 1 - self.config.whole

    @property
    def in_last_stage(self) -> bool:
        return bool(self.gone) or self.removed is None

    def least_updates(self, chain: int) -> int:
        return self.config.whole + self.config.remove_every * min(chain, self.config.all_beyond or chain)

    def begin_update(self) -> bool:
        """Count the update. AdamW's moments are forgotten where one token more goes, and any was left."""
        self.updates += 1
        grown = self.since > 0 and self.since % self.config.remove_every == 0
        return self.config.reset_optimizer and grown and not bool(self.gone)

    def steps_written(self, chain: int) -> int:
        return 0 if self.in_last_stage else chain

    def tokens_written(self, tokens: int, steps: int) -> int:
        return 0 if self.removed is None else max(0, tokens - self.removed)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        return prompt + sum(steps) + answer - 1

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        """A whole chain, as at the start."""
        return [(0, chain + answer)]

    def turn(self, batch: Batch) -> Taught:
        rows, device = self.left(batch), batch.prompt.ids_BT.device
        text = pad_right([chain + answer for chain, answer in zip(rows, batch.answers)], batch.pad, device)
        taught = self.without_latents(batch.prompt, text)
        left = Mean(taught.terms[0].total.new_full((), tokens_in(rows)), len(rows))
        return replace(taught, logged={**taught.logged, "chain_left": left})

    def turn_counts(self, batch: Batch) -> list[int]:
        return [tokens_in(self.left(batch)) + tokens_in(batch.answers)]

    def left(self, batch: Batch) -> list[tuple[int, ...]]:
        """What is left of each row's chain, with the offsets that the batch draws."""
        chains = [sum(steps, ()) for steps in batch.steps]
        if self.removed is None:
            return [()] * len(chains)
        gone = [self.removed] * len(chains)
        if self.config.smoothing:
            offsets_B = (-torch.log1p(-batch.draw_rows().double()) / self.config.smoothing).floor()
            gone = [self.removed + int(o) for o in offsets_B.tolist()]
        if self.config.side == "left":
            return [chain[n:] for chain, n in zip(chains, gone)]
        return [chain[: max(0, len(chain) - n)] for chain, n in zip(chains, gone)]

    def learned(self, logged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep whether any chain was left in the update."""
        self.gone.copy_(logged["chain_left"] == 0)
        return {}
