"""CoLaR, compressed latent reasoning (Tan et al. 2025, arXiv:2505.16552, sec. 3): a chain, r tokens at a time.

For each batch r is drawn from 1..r_max. A chain is cut into groups of r tokens, and latent i is fed its group's pooled
embedding; the state before it must predict that embedding, by a head of its own, and one of its tokens, by the LM head:

    x_i = sum_{t in group i} e_t / sqrt(|group i|),   m_i = head(h_{i-1}, r)
    L = CE(one random token of each group, answer) + latent_weight mean_i l(x_i; m_i, s_i) / D
    l: -log N(x_i; m_i, s_i^2), or E |m_i + s_i z - x_i|^2 / |e|^2 with z ~ N(0, 1) and |e| the embeddings' scale

Thinking feeds back m_i, and in RL a draw from N(m_i, s_i^2), whose log-density is the decision's. `Gaussian` says what
s_i is. A chain of k r tokens takes k latents; asked for another number of latents, the model thinks with the r that
spans as many tokens (`--judge.sweep`). With k = 0 there is only the answer: no-CoT.

Deviates: r is told to the head, by a learned vector beside the state, and not to the model by words in the prompt. s_i
is relative to the root mean square of m_i and comes from the state by a linear map (policies/gaussian). The squared
error is the expectation, not that of one draw. No "###" ends the thoughts: a learned stop (`method.halt learned`) is
taught where the chain ends, and without it all k latents are used. A greedy answer feeds back m_i, where the authors'
code (github.com/xiaomi-research/colar) draws thoughts and answers when it is evaluated, too; training begins without
the CoT model that theirs is loaded from. It averages a latent's log-density over its coordinates in RL; here it is the
density.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from kernels.errors import UserError
from latent.backbone import Backbone
from latent.halting import StopHead
from latent.methods.base import Edit
from latent.methods.colar import Colar
from latent.methods.feedback import Feedback
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import Mean, text_loss, token_loss
from latent.text import Batch, Text, pad_right, tokens_in
from latent.thought import Chooser, Greedy, Prompt, Thought


class ColarMethod(AlongSequence[Colar]):
    """Trained on a chain's groups of tokens: as inputs, as what each latent must be, and as words."""

    fresh = (*AlongSequence.fresh, "head.")

    def __init__(self, config: Colar, backbone: Backbone):
        super().__init__(config, backbone)
        self.head = LatentHead(config.r_max, backbone)
        self.feedback = Predicted(self.head, backbone)

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        self.head.now.fill_(self.compression(self.steps if steps is None else steps))
        return super().think(prompt, choose, group, steps, edit)

    def compression(self, steps: int) -> int:
        """Tokens r that each of so many latents stands for."""
        if steps in (0, self.steps):
            return self.config.r
        return min(self.config.r_max, -(-self.steps * self.config.r // steps))

    def latents(self, r: int) -> int:
        """Latents that the longest chain takes at a compression."""
        return -(-self.steps * self.config.r // r)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        longest = max(self.steps * self.config.r if self.steps else 0, self.steps)
        return prompt + self.stride * longest + self.closing_positions + answer - 1

    def check_chain(self, steps: list[int], answer: int) -> None:
        if self.steps and sum(steps) > self.steps * self.config.r:
            raise UserError(
                f"a chain has {sum(steps)} tokens, method.n_latent * method.r are {self.steps * self.config.r}"
            )

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        factors = range(1, self.config.r_max + 1)
        return [(sum(chain / r for r in factors) / len(factors) if self.steps else 0, answer)]

    def target_step(self, latent: int, chain: int) -> int:
        return min(chain, latent * chain // self.steps)

    def turn(self, batch: Batch) -> Taught:
        device = batch.prompt.ids_BT.device
        text = pad_right(batch.answers, batch.pad, device)
        if not self.steps:
            return self.without_latents(batch.prompt, text)
        r, u_BK = self.draw(batch)
        groups = Groups(self.cut(batch, r), batch.pad, device)
        x_BKD = groups.pooled(self.backbone)
        thought = self.closed(self.led(batch.prompt, x_BKD, groups, r))
        answered, logged = text_loss(self.backbone, thought, text)
        before_ND = thought.states_UKD[:, :-1][groups.real_BK]
        written = latent = Mean(before_ND.sum(), 0)  # where no row has a chain
        if len(before_ND):
            written = token_loss(self.backbone, before_ND[:, None], Text(groups.words(u_BK)[:, None], None))[0]
            latent = self.predicted(before_ND, x_BKD[groups.real_BK], r)
        latent = replace(latent, weight=self.config.latent_weight)
        stop = self.stop_term(thought, groups.used_B, self.latents(r))
        terms = [written.joined(answered), latent, *stop.values()]
        return Taught(thought, text, terms, {**logged, "chain_ce": written, "latent": latent, **stop})

    def turn_counts(self, batch: Batch) -> list[int]:
        answers = tokens_in(batch.answers)
        if not self.steps:
            return [answers]
        r, _ = self.draw(batch)
        used = [len(groups) for groups in self.cut(batch, r)]
        counts = [sum(used) + answers, sum(used)]
        if isinstance(self.stop, StopHead):
            counts.append(sum(min(n + 1, self.latents(r)) for n in used))
        return counts

    def draw(self, batch: Batch) -> tuple[int, Tensor]:
        """The r that a batch is trained at, and a number in [0, 1) for each latent of each row."""
        r = 1 + batch.draw_below(self.config.r_max)
        return r, torch.stack([batch.draw_rows() for _ in range(self.latents(r))], 1)

    def cut(self, batch: Batch, r: int) -> list[list[tuple[int, ...]]]:
        """Each row's chain in groups of r tokens."""
        rows = []
        for steps in batch.steps:
            chain = sum(steps, ())
            self.check_chain([len(chain)], 0)
            rows.append([chain[i : i + r] for i in range(0, len(chain), r)])
        return rows

    def led(self, prompt: Prompt, x_BKD: Tensor, groups: "Groups", r: int) -> Thought:
        """The thought whose latents are fed pooled groups, in one pass; those of a control what it feeds."""
        k = x_BKD.shape[1]
        room = max(self.latents(r), self.steps)
        if self.recycles:
            thought = self.given(prompt, x_BKD, room)
        else:
            thought = self.loop(prompt, Greedy(), 1, k, room, stop=None)
        return thought if bool(groups.real_BK.all()) else self.cut_at(thought, groups.used_B)

    def predicted(self, before_ND: Tensor, x_ND: Tensor, r: int) -> Mean:
        """What the head's distributions say of the pooled groups that came; a mean over coordinates, too."""
        x_ND, mean_ND = x_ND.detach(), self.head(before_ND, self.head.now.new_tensor(r))
        dist = self.policy(mean_ND, before_ND) if self.policy is not None else None
        if self.config.latent_loss == "nll":
            assert dist is not None  # or the config had said so
            return Mean(-dist.log_prob(x_ND).sum() / x_ND.shape[-1], len(x_ND))
        apart_ND = (mean_ND - x_ND).square()
        if isinstance(dist, Independent):
            apart_ND = apart_ND + dist.variance
        return Mean((apart_ND / self.head.scale.square()).mean(-1).sum(), len(x_ND))


class Groups:
    """The groups of tokens of each row's chain: K of the longest, real where a row has one."""

    def __init__(self, rows: list[list[tuple[int, ...]]], pad: int, device: torch.device):
        k = max(map(len, rows))
        self.rows = rows
        self.used_B = torch.tensor([len(row) for row in rows], device=device)
        self.real_BK = torch.arange(k, device=device) < self.used_B[:, None]
        r = max((len(group) for row in rows for group in row), default=1)
        filled = [[*row, *[()] * (k - len(row))] for row in rows]
        ids = [[group + (pad,) * (r - len(group)) for group in row] for row in filled]
        self.ids_BKr = torch.tensor(ids, dtype=torch.long, device=device).view(len(rows), k, r)
        sizes = [[len(group) for group in row] for row in filled]
        self.sizes_BK = torch.tensor(sizes, dtype=torch.long, device=device).view(len(rows), k)

    def pooled(self, backbone: Backbone) -> Tensor:
        """The sum of each group's embeddings by the root of their number, (B, K, D); 0 where there is no group."""
        e_BKrD = backbone.embed(self.ids_BKr)
        there_BKr = torch.arange(e_BKrD.shape[2], device=e_BKrD.device) < self.sizes_BK[..., None]
        sum_BKD = (e_BKrD * there_BKr[..., None].to(e_BKrD.dtype)).sum(2)
        return sum_BKD / self.sizes_BK.clamp(min=1).to(e_BKrD.dtype).sqrt()[..., None]

    def words(self, u_BK: Tensor) -> Tensor:
        """A token of each group (N,), the one that a number in [0, 1) falls on."""
        at_BK = (u_BK[:, : self.real_BK.shape[1]] * self.sizes_BK).long()
        return self.ids_BKr.gather(2, at_BK[..., None])[..., 0][self.real_BK]


class LatentHead(nn.Module):
    """State (N, D) and compression r -> the next group's pooled embedding (N, D), at the embeddings' scale."""

    scale: Tensor
    now: Tensor

    def __init__(self, r_max: int, backbone: Backbone):
        super().__init__()
        d = backbone.width
        self.told = nn.Embedding(r_max, d)
        nn.init.zeros_(self.told.weight)
        self.mlp = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, d))
        self.register_buffer("scale", backbone.embedding_rms)
        self.register_buffer("now", torch.ones((), dtype=torch.long), persistent=False)  # the r of this thought

    def forward(self, h_ND: Tensor, r: Tensor) -> Tensor:
        return self.scale * self.mlp(h_ND + self.told(r - 1))


class Predicted(Feedback):
    """Last hidden state -> the head's prediction, (B, D) -> (B, D)."""

    def __init__(self, head: LatentHead, backbone: Backbone):
        super().__init__("hidden", backbone)
        self.head = [head]  # in a list: its parameters are the method's

    @property
    def flops(self) -> int:
        return 2 * sum(p.numel() for p in self.head[0].mlp.parameters() if p.ndim == 2)

    def forward(self, h_BD: Tensor) -> Tensor:
        return self.head[0](h_BD, self.head[0].now)
