"""PCCoT, parallel continuous chain of thought (Wu et al. 2025, arXiv:2506.18582, sec. 3): latents by Jacobi iteration.

The k latents start as one learned embedding, read in one pass after the prompt, and are refreshed T times, all in one
pass each, from the states of the pass before:

    x_1^t = f(h_0),   x_i^t = f(h_{i-1}^{t-1}),   h_1^t .. h_k^t = LM(prompt, x_1^t .. x_k^t),   t = 1 .. T

f is what is fed back and h_0 the state of the think token. Latent i is CODI's from t = i on, so that T >= k refreshes
are the sequential loop; with fewer the later latents rest on earlier guesses. An answer follows the last pass. The
losses are CODI's. Thinking takes T + 1 passes in sequence after the prompt's, however many latents there are.

Deviates: f is CODI's projection unless `feedback` says hidden, as the authors' runs have it (`use_projection` is false
in all configs of github.com/whyNLP/PCCoT, and in our preset of GSM8K). Their code reads prompt and first embeddings in
one pass, here they are two. Otherwise as in `latent.methods.codi`.
"""

import torch
from torch import Tensor, nn

from latent.backbone import Backbone
from latent.cache import Context
from latent.methods.base import Edit
from latent.methods.codi.method import CodiMethod
from latent.methods.feedback import Feedback
from latent.methods.pccot import Pccot
from latent.taps import Call


class PccotMethod(CodiMethod):
    """CODI, but for how the latents are computed; a control's are computed as it says."""

    config: Pccot
    feedback: Feedback  # but for a control, which does not recycle
    fresh = (*CodiMethod.fresh, "start")

    def __init__(self, config: Pccot, backbone: Backbone):
        super().__init__(config, backbone)
        self.start = nn.Parameter(backbone.random_embedding())

    def passes(self, used: float, tokens: float) -> float:
        if not self.recycles:
            return super().passes(used, tokens)
        return tokens + self.closing_positions + (self.config.iterations + 1 if used else 0)

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        once = super().flops(prompt, used, tokens)
        if not self.recycles:
            return once
        again, pairs = self.config.iterations, used * prompt + used * (used + 1) / 2
        attention = 4 * self.backbone.width * pairs * len(self.layer_flops)
        return once + again * (used * sum(self.layer_flops) + attention) + (again - 1) * used * self.feedback.flops

    def kept(self, prompt: float, used: float, text: float) -> float:
        again = self.config.iterations * used if self.recycles else 0
        return super().kept(prompt, used, text) + again * len(self.backbone.blocks)

    def of_latent(self, calls: list[Call], step: int) -> Call:
        """The position in the last pass over all latents."""
        _, *passes = calls[: len(calls) - self.closing_positions]
        again = step and passes and self.recycles
        return passes[-1].at(step - 1) if again else super().of_latent(calls, step)

    def _at_once(
        self, h_PD: Tensor, context: Context, k: int, known_KD: Tensor | None, edit: Edit | None
    ) -> tuple[Tensor, Context] | None:
        if not self.recycles:
            return super()._at_once(h_PD, context, k, known_KD, edit)
        before = context.skip(self.stride - 1)
        states_PKD, longer = self.backbone.step(self.start.expand(len(h_PD), k, -1), before, self.stride)
        for _ in range(self.config.iterations):
            from_PKD = torch.cat([h_PD[:, None], states_PKD[:, :-1]], 1)
            x_PKD = self.feedback(from_PKD.flatten(0, 1)).view_as(from_PKD)
            if edit is not None:
                x_PKD = torch.stack([edit(i, x_PD) for i, x_PD in enumerate(x_PKD.unbind(1))], 1)
            states_PKD, longer = self.backbone.step(x_PKD, before, self.stride)
        return states_PKD, longer
