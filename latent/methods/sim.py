"""SIM-CoT (Wei et al. 2025, arXiv:2509.20317, eq. 4-6): latents with a step decoder that exists only in training.

The decoder reads latent i and must write step i; its loss shapes the latents, so no curriculum is needed. A chain
longer than the latents is dealt evenly over them; latents beyond the chain are left free.

Deviates: the decoder is a residual MLP that writes token t from the latent, token t - 1 and t, instead of a second
language model. What a step says is then to be found in the latent, not in the decoder, and a training step stays cheap.
"""

import torch
from torch import Tensor, nn

from latent.methods.base import AlongSequence, text_loss, token_loss
from latent.text import Batch, Text, pad_right
from latent.thought import Greedy


class Sim(AlongSequence):
    """Trained on the answer after k latents, and on every latent's step."""

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.decoder = StepDecoder(backbone.width, config.decoder_layers, backbone.positions)

    def loss(self, batch):
        thought = self.think(batch.prompt, Greedy())
        device = batch.prompt.ids_BT.device
        loss, metrics = text_loss(self.backbone, thought, pad_right(batch.answers, batch.pad, device))
        if self.config.n_latent == 0:
            return loss, metrics
        rows_N, text = self.step_targets(batch, device)
        latents_ND = thought.states_BKD[:, 1:].flatten(0, 1)
        if rows_N is not None:
            latents_ND = latents_ND[rows_N]
        h_NTD = self.decoder(latents_ND, self.backbone.embed(text.ids_BT[:, :-1]))
        step_loss, hit_NT = token_loss(self.backbone, h_NTD, text)
        metrics |= {"step_ce": step_loss.detach(), "step_exact": hit_NT.all(1).float().mean()}
        return loss + self.config.step_weight * step_loss, metrics

    def step_targets(self, batch: Batch, device) -> tuple[Tensor | None, Text]:
        """The text that each latent must give. Returns which of the B * K latents have one (None = all), and the text."""
        k, rows, text = self.config.n_latent, [], []
        for b, steps in enumerate(batch.steps):
            n = len(steps)
            for i in range(min(k, n)):
                first, last = (i, i + 1) if n <= k else (-(-i * n // k), -(-(i + 1) * n // k))
                rows.append(b * k + i)
                text.append(steps[first] if last == first + 1 else sum(steps[first:last], ()))
        full = len(rows) == k * len(batch.steps)
        return None if full else torch.tensor(rows, device=device), pad_right(text, batch.pad, device)


class StepDecoder(nn.Module):
    """Latents (N, D) and the embeddings of a text's tokens but the last (N, T - 1, D) -> its hidden states (N, T, D)."""

    def __init__(self, width: int, layers: int, longest: int):
        super().__init__()
        self.place = nn.Parameter(torch.randn(longest, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, latents_ND: Tensor, tokens_NTD: Tensor) -> Tensor:
        t = tokens_NTD.shape[1] + 1
        h_NTD = latents_ND[:, None] + self.place[:t]
        h_NTD = torch.cat([h_NTD[:, :1], h_NTD[:, 1:] + tokens_NTD], 1)
        for block in self.blocks:
            h_NTD = h_NTD + block(h_NTD)
        return self.norm(h_NTD)
