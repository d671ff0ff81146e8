"""HRPO, hybrid reasoning policy optimisation (Yue et al. 2025, arXiv:2505.18454, sec. 3): tokens through a gate.

Thinking samples a token v from p = softmax(logits / temperature) at every step, and feeds back

    x = a * e_v + sqrt(1 - a^2) * i * y,   y = sum_u p(u) E_u / |p|_2                                     (eq. 2-4)
    a = exp(-8 softplus(-Lambda) r),   r = sigmoid(W_r e_v + b_r),   i = sigmoid(W_i e_v + b_i)

Lambda starts such that a = u^r with u uniform in r_min..r_max, close to the token's embedding alone: the mixture comes
in as RL finds use for it. The tokens are decisions like those of the text, whose log-probabilities RL learns from
(`python -m train.latent hrpo --train rlvr --init RUN`). With the gate closed (r = 0) what is left is chain of thought
in tokens, and a run of `cot` is where HRPO starts from.

Supervised training, which the paper has not, feeds the gold chain through the gate and is the cross-entropy of chain
and answer; that of `cot` where the gate is closed. Chains may not be longer than k tokens; after a shorter one the
answer follows at once, and a learned stop (`method.halt learned`) is taught where that is. With k = 0 there is only the
answer: no-CoT.

Deviates: thinking ends after k tokens, or by `method.halt`, and not at an answer's delimiter. Gradients flow through
the mixture into the states before it, as eq. 2-4 have it; the authors' code (github.com/Yueeeeeeee/HRPO) learns from
mixtures as they were when sampled. Its reference policy for the KL reads plain tokens without the gate; ours thinks as
the policy does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from kernels.errors import UserError
from kernels.thought_feedback import thought_feedback
from latent.backbone import Backbone
from latent.halting import StopHead
from latent.methods.feedback import Feedback
from latent.methods.hrpo import Hrpo
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import text_loss, token_loss
from latent.policies.base import Policy
from latent.text import Batch, Text, pad_right, tokens_in
from latent.thought import Decision, Greedy, Prompt, Replay, Thought


class HrpoMethod(AlongSequence[Hrpo]):
    """Draws the tokens that it thinks in; greedy evaluation takes the likeliest."""

    fresh = (*AlongSequence.fresh, "feedback.")

    def __init__(self, config: Hrpo, backbone: Backbone):
        super().__init__(config, backbone)
        gate = Gate(config, backbone)
        self.feedback, self.policy = gate, Tokens(gate)

    @property
    def lr_scales(self) -> Mapping[str, float]:
        return {"feedback.decay": self.config.decay_lr, "feedback.": self.config.gate_lr}

    def target_step(self, latent: int, chain: int) -> int:
        return min(chain, latent * chain // self.config.n_latent)

    def check_chain(self, steps: list[int], answer: int) -> None:
        k = self.config.n_latent
        if k and sum(steps) > k:
            raise UserError(f"a chain has {sum(steps)} tokens, method.n_latent is {k}")

    def turn(self, batch: Batch) -> Taught:
        k, device = self.config.n_latent, batch.prompt.ids_BT.device
        text = pad_right(batch.answers, batch.pad, device)
        if k == 0:
            return self.without_latents(batch.prompt, text)
        rows = [sum(steps, ()) for steps in batch.steps]
        for row in rows:
            self.check_chain([len(row)], 0)
        ids_BK = torch.tensor([row + (batch.pad,) * (k - len(row)) for row in rows], device=device)
        used_B = torch.tensor([len(row) for row in rows], device=device)
        chain = Text(ids_BK, torch.arange(k, device=device) < used_B[:, None])
        thought = self.led(batch.prompt, ids_BK)
        written, _ = token_loss(self.backbone, thought.states_UKD[:, :-1], chain)
        if min(map(len, rows)) < k:
            thought = self.cut_at(thought, used_B)
        thought = self.closed(thought)
        answered, logged = text_loss(self.backbone, thought, text)
        stop = self.stop_term(thought, used_B, k)
        terms = [written.joined(answered), *stop.values()]
        return Taught(thought, text, terms, {**logged, "chain_ce": written, **stop})

    def turn_counts(self, batch: Batch) -> list[int]:
        k, answers = self.config.n_latent, tokens_in(batch.answers)
        if k == 0:
            return [answers]
        used = [tokens_in(steps) for steps in batch.steps]
        stops = [sum(min(n + 1, k) for n in used)] if isinstance(self.stop, StopHead) else []
        return [sum(used) + answers, *stops]

    def led(self, prompt: Prompt, ids_BK: Tensor) -> Thought:
        """The thought that draws these tokens; that of a control, which draws none."""
        k, none_BK = self.config.n_latent, torch.zeros(ids_BK.shape, device=ids_BK.device)
        gold = Decision("thought", ids_BK, none_BK, none_BK, none_BK.bool(), torch.arange(k))
        return self.loop(prompt, Greedy() if self.policy is None else Replay([gold]), 1, k, k, stop=None)


class Gate(Feedback):
    """Last hidden state -> the likeliest token's embedding, gated with the mixture of all, (B, D) -> (B, D)."""

    def __init__(self, config: Hrpo, backbone: Backbone):
        super().__init__("soft", backbone, temperature=config.temperature)
        d = backbone.width
        self.r, self.i = nn.Linear(d, d), nn.Linear(d, d)
        u_D = torch.empty(d).uniform_(config.r_min, config.r_max)
        self.decay = nn.Parameter(-torch.log(u_D ** (-1 / 8) - 1))

    @property
    def flops(self) -> int:
        """Those of the mixture, and both gates."""
        return super().flops + 4 * self.backbone[0].width ** 2

    def logits(self, h_BD: Tensor) -> Tensor:
        """Of the next token at the temperature, (B, V)."""
        return self.backbone[0].head(h_BD) / self.temperature

    def forward(self, h_BD: Tensor) -> Tensor:
        logits_BV = self.logits(h_BD)
        return self.joined(logits_BV, logits_BV.argmax(-1))

    def joined(self, logits_BV: Tensor, ids_B: Tensor) -> Tensor:
        """Chosen tokens, each with the mixture of all that could have been, (B, D)."""
        p_BV = logits_BV.softmax(-1)
        y_BD = self.backbone[0].average(p_BV / p_BV.norm(dim=-1, keepdim=True))
        e_BD = self.backbone[0].embed(ids_B)
        e_BD, r_BD, i_BD, decay_D = (x.to(y_BD.dtype) for x in (e_BD, self.r(e_BD), self.i(e_BD), self.decay))
        return thought_feedback(y_BD, gate=(e_BD, r_BD, i_BD, decay_D))


class Tokens(Policy):
    """The next token's distribution; what is fed back is that token through the gate."""

    around = False

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = [gate]  # in a list: its parameters are the feedback's

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Categorical:
        return Categorical(logits=self.gate[0].logits(h_BD), validate_args=False)

    def fed(self, value_B: Tensor, h_BD: Tensor) -> Tensor:
        return self.gate[0].joined(self.gate[0].logits(h_BD), value_B)
