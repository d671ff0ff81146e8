"""Groups of sampled answers with all their decisions, in one turn or several, and how they are cut and joined."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from latent.thought import Decision, Prompt


@dataclass
class Turn:
    """A later turn of those N of B episodes that go on; `rows_N` are their rows.

    `prompt`: their observations, without the earlier turns. `tokens_NT` and `used_N`: as in `Rollout`. `decisions`:
    those of all B rows, masked where an episode has ended.
    """

    rows_N: Tensor
    prompt: Prompt
    tokens_NT: Tensor
    used_N: Tensor
    decisions: list[Decision]

    def part(self, rows: slice | Tensor) -> "Turn":
        """The turn of some of the B rows, which are renumbered from 0."""
        whole, device = len(self.decisions[-1].mask_BT), self.rows_N.device
        own = torch.arange(whole, device=device)[rows]
        number_B = torch.full((whole,), -1, device=device).index_copy(0, own, torch.arange(len(own), device=device))
        kept_N = number_B[self.rows_N] >= 0
        decisions = [d.rows(rows) for d in self.decisions]
        tokens_NT = self.tokens_NT[kept_N, : decisions[-1].mask_BT.shape[1]]
        prompt = Prompt(
            self.prompt.ids_BT[kept_N], None if self.prompt.mask_BT is None else self.prompt.mask_BT[kept_N]
        )
        return Turn(number_B[self.rows_N[kept_N]], prompt, tokens_NT, self.used_N[kept_N], decisions)


@dataclass
class Rollout:
    """P prompts answered G times each, in rows p * G + g, sampled without gradient.

    `tokens_BT` (right-padded completions), `used_B` (latents used) and `decisions` (all random choices, the text
    included) are those of the first turn. `later`: the turns after it, where there are any.
    """

    prompt: Prompt
    group: int
    tokens_BT: Tensor
    used_B: Tensor
    decisions: list[Decision]
    later: list[Turn] = field(default_factory=list)

    @property
    def all_used_B(self) -> Tensor:
        """Latent steps used in all turns together."""
        used_B = self.used_B.clone()
        for turn in self.later:
            used_B[turn.rows_N] += turn.used_N
        return used_B

    @property
    def all_decisions(self) -> list[Decision]:
        """The decisions of all turns, in order."""
        return [*self.decisions, *(d for turn in self.later for d in turn.decisions)]

    @classmethod
    def joined(cls, prompt: Prompt, group: int, parts: list["Rollout"], end: int | None) -> "Rollout":
        """The rollouts of all prompts from those of their pieces, in order, padded to the longest."""
        tokens = [part.tokens_BT for part in parts]
        longest = max(t.shape[1] for t in tokens)
        tokens_BT = torch.cat([F.pad(t, (0, longest - t.shape[1]), value=end or 0) for t in tokens])
        decisions = [Decision.joined(same) for same in zip(*(part.decisions for part in parts), strict=True)]
        return cls(prompt, group, tokens_BT, torch.cat([part.used_B for part in parts]), decisions)

    def prompts(self, index: slice) -> "Rollout":
        """All rollouts of some prompts, e.g. of a minibatch."""
        return self.part(Piece(index, slice(0, self.group)))

    def part(self, piece: "Piece") -> "Rollout":
        """Some rollouts of some prompts, e.g. of a micro-batch."""
        rows = piece.rows(self.group)
        decisions = [d.rows(rows) for d in self.decisions]
        return replace(
            self,
            prompt=self.prompt.rows(piece.prompts),
            group=piece.group.stop - piece.group.start,
            tokens_BT=self.tokens_BT[rows, : decisions[-1].mask_BT.shape[1]],
            used_B=self.used_B[rows],
            decisions=decisions,
            later=[turn.part(rows) for turn in self.later],
        )


@dataclass(frozen=True)
class Piece:
    """Which prompts, and which of the G rollouts of each."""

    prompts: slice
    group: slice

    def rows(self, group: int) -> slice | Tensor:
        """Its rows among those of all prompts with G = `group` rollouts each."""
        first, last = self.prompts.start, self.prompts.stop
        if self.group == slice(0, group):
            return slice(first * group, last * group)
        return (torch.arange(first, last)[:, None] * group + torch.arange(group)[self.group]).flatten()


def pieces(prompts: range, group: int, most: int) -> list[Piece]:
    """The rollouts of prompts, cut in order into pieces of at most `most` rows; 0 = one piece.

    A larger group is cut as well, and its prompt is then read once for every piece.
    """
    if not most or len(prompts) * group <= most:
        return [Piece(slice(prompts.start, prompts.stop), slice(0, group))]
    if group <= most:
        some = [prompts[i : i + most // group] for i in range(0, len(prompts), most // group)]
        return [Piece(slice(part.start, part.stop), slice(0, group)) for part in some]
    cut = [slice(g, min(g + most, group)) for g in range(0, group, most)]
    return [Piece(slice(p, p + 1), part) for p in prompts for part in cut]
