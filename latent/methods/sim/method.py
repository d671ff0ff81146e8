"""SIM-CoT (Wei et al. 2025, arXiv:2509.20317, eq. 4-6): latents with a step decoder that exists only in training.

The decoder reads latent i and must write step i; its loss shapes the latents. A chain longer than the latents is dealt
evenly over them; latents beyond the chain are left free, and so are all but every n-th where `supervise_every` is n.
Told the frontier, the decoder must say the distribution over where a search may stand after step i, as in CoT2
(arXiv:2505.23648, sec. 3), but off the hidden state, which is what is fed back; read by the LM head it is off the state
that latent i is made from, as the last latent's says the answer. With `stop_weight` a learned stop is taught by
cross-entropy to stop at the first latent whose step is the chain's last, and at none before.

Deviates: the decoder is linear and writes all tokens of a step in parallel, instead of a second language model that
writes them one by one. No token helps to guess the next, so the whole step must be in the latent; cups is then
learned sooner (paper/LOG.md), and a training step stays cheap. The rest is as against the authors' code
(github.com/InternLM/SIM-CoT): the decoder reads the state after latent i, theirs what is fed back as latent i, so that
here the last state must give both its step and the answer. There is no curriculum, and no start from a finished
Coconut. A long chain is dealt evenly, theirs gives the last latent all that is left; spare latents are free, theirs on
Coconut are taught the answer. The loss is a mean over the tokens of all steps, theirs on Coconut the sum over a step's
tokens, a mean over steps.
"""

import torch
from torch import Tensor, nn

from kernels.errors import UserError
from latent.backbone import Backbone
from latent.methods.frontier import frontier_loss, frontier_targets, reached
from latent.methods.sequence import AlongSequence, Taught
from latent.methods.sim import Sim
from latent.methods.terms import Mean, share, text_loss, token_loss
from latent.text import Batch, Text, pad_right, sent, tokens_in
from latent.thought import Greedy


class SimMethod(AlongSequence[Sim]):
    """Trained on the answer after the latents, and on every latent's step."""

    fresh = (*AlongSequence.fresh, "decoder.")

    def __init__(self, config: Sim, backbone: Backbone):
        super().__init__(config, backbone)
        n = config.decoder_tokens
        self.decoder = StepDecoder(backbone.width, n) if n else None
        self.is_taught = config.told != "answer" and config.n_latent > 0

    def turn(self, batch: Batch) -> Taught:
        device = batch.prompt.ids_BT.device
        k = self.config.n_latent
        thought = self.loop(batch.prompt, Greedy(), 1, k, k, stop=None)
        if self.stop is not None and k > 0 and self.config.early_stops != "never":
            thought = self.cut_at(thought, self.early_stops(batch, device))
        thought = self.closed(thought)
        text = pad_right(batch.answers, batch.pad, device)
        loss, logged = text_loss(self.backbone, thought, text)
        if not self.is_taught:
            return Taught(thought, text, [loss], logged)
        if self.config.told == "frontier":
            step_loss, more = self.frontier_loss(batch, thought.states_UKD)
        else:
            step_loss, hit_N = self.step_loss(batch, thought.states_UKD, device)
            more = {"step_ce": step_loss, "step_exact": share(hit_N)}
        step_loss.weight = self.config.step_weight
        stop = {}
        if self.config.stop_weight:
            first_B = sent([numbers[0] for numbers in self.at_last(batch)], device)
            stop = self.stop_term(thought, first_B, k, self.config.stop_weight)
        return Taught(thought, text, [loss, step_loss, *stop.values()], {**logged, **more, **stop})

    def frontier_loss(self, batch: Batch, states_BKD: Tensor) -> tuple[Mean, dict[str, Mean]]:
        """KL of where the search may stand from what is read off the latents."""
        every = self.config.supervise_every
        p_BKV = frontier_targets(batch, self.config.n_latent, self.backbone.vocab, every)
        if self.decoder is None:
            return frontier_loss(self.backbone, states_BKD[:, every - 1 : -1 : every], p_BKV)
        latents_BKD = states_BKD[:, every::every]
        h_ND = self.decoder(latents_BKD.flatten(0, 1), 1)[:, 0]
        return frontier_loss(self.backbone, h_ND.view_as(latents_BKD), p_BKV)

    def turn_counts(self, batch: Batch) -> list[int]:
        answers = tokens_in(batch.answers)
        if not self.is_taught:
            return [answers]
        if self.config.told == "frontier":
            return [answers, len(batch.answers)]
        counts = [answers, sum(len(tokens) for _, _, tokens in self.supervised(batch))]
        if self.config.stop_weight:
            counts.append(sum(min(numbers[0] + 1, self.config.n_latent) for numbers in self.at_last(batch)))
        return counts

    def step_loss(self, batch: Batch, states_BKD: Tensor, device: torch.device) -> tuple[Mean, Tensor]:
        """Cross-entropy of the steps given their latents, and which of the steps are right (N,)."""
        supervised = self.supervised(batch)
        if not supervised:
            return Mean(states_BKD.new_zeros(()), 0), torch.zeros(0, dtype=torch.bool, device=device)
        rows_N, text = self.step_targets(supervised, batch, device)
        latents_ND = states_BKD[:, 1:].flatten(0, 1)
        if rows_N is not None:
            latents_ND = latents_ND[rows_N]
        assert self.decoder is not None  # it is told chains
        h_NTD = self.decoder(latents_ND, text.ids_BT.shape[1])
        step_loss, hit_NT = token_loss(self.backbone, h_NTD, text)
        return step_loss, hit_NT.all(1)

    def early_stops(self, batch: Batch, device: torch.device) -> Tensor:
        """Latents used (B,) in training a model that will not always use all of them: any number that suffices.

        Suffices: from there on the chain no longer changes, or, as `early_stops` says, it is where it ends. Half of the
        rows draw such a number, the others use all k.
        """
        k = self.config.n_latent
        enough = self.at_rest(batch) if self.config.early_stops == "rest" else self.at_last(batch)
        drawn_B = (batch.draw_rows() * sent([len(numbers) for numbers in enough], device)).long()
        number_BK = sent([numbers + [k] * (k - len(numbers)) for numbers in enough], device)
        used_B = number_BK.gather(1, drawn_B[:, None])[:, 0]
        return torch.where(batch.draw_rows() < 0.5, k, used_B)

    def at_rest(self, batch: Batch) -> list[list[int]]:
        """Of each row the numbers of latents from which on its chain changes no more."""
        k, enough = self.config.n_latent, []
        for steps in batch.steps:
            n = min(k, max(1, len(steps)))
            while n > 1 and len(steps) <= k and steps[n - 2] == steps[-1]:
                n -= 1
            enough.append(list(range(n, k + 1)))
        return enough

    def at_last(self, batch: Batch) -> list[list[int]]:
        """Of each row the latents whose step is the last of its chain, wherever the chain goes between them."""
        k = self.config.n_latent
        numbers = range(1, k + 1)
        return [
            [i for i in numbers if not steps or steps[reached(i, k, len(steps)) - 1] == steps[-1]]
            for steps in batch.steps
        ]

    def dealt(self, n: int) -> list[tuple[int, int]]:
        """The first step and the one after the last that each latent must give, of a chain of n steps."""
        k = self.config.n_latent
        return [(reached(i, k, n), reached(i + 1, k, n)) for i in range(min(k, n))]

    def target_step(self, latent: int, chain: int) -> int:
        latent = min(latent + self.config.head, self.config.n_latent)
        return reached(latent, self.config.n_latent, chain)

    def check_chain(self, steps: list[int], answer: int) -> None:
        if self.config.told not in ("chain", "chains"):
            return
        every = self.config.supervise_every
        dealt = self.dealt(len(steps))[every - 1 :: every]
        longest = max((sum(steps[first:last]) for first, last in dealt), default=0)
        if longest > self.config.step_tokens:
            raise UserError(
                f"a latent's step has {longest} tokens, method.step_tokens is {self.config.step_tokens} "
                f"(--method.step-tokens {longest})"
            )

    def supervised(self, batch: Batch) -> list[tuple[int, int, tuple[int, ...]]]:
        """Row, latent from 0, and the tokens that it must give, of every latent that must give some."""
        every = self.config.supervise_every
        return [
            (b, i, steps[first] if last == first + 1 else sum(steps[first:last], ()))
            for b, steps in enumerate(batch.steps)
            for i, (first, last) in list(enumerate(self.dealt(len(steps))))[every - 1 :: every]
        ]

    def step_targets(self, supervised: list, batch: Batch, device: torch.device) -> tuple[Tensor | None, Text]:
        """The text that each latent must give: which of the B * K latents have one (None = all), and the text."""
        k = self.config.n_latent
        rows, text = [b * k + i for b, i, _ in supervised], [tokens for *_, tokens in supervised]
        full = len(rows) == k * len(batch.steps)
        return None if full else sent(rows, device), pad_right(text, batch.pad, device)


class StepDecoder(nn.Module):
    """Latents (N, D) -> hidden states (N, T, D) of a step's T tokens, a linear map for each place."""

    def __init__(self, width: int, longest: int):
        super().__init__()
        self.places = nn.Linear(width, longest * width)
        self.longest = longest

    def forward(self, latents_ND: Tensor, t: int) -> Tensor:
        if t > self.longest:
            raise UserError(f"a latent's step has {t} tokens, method.step_tokens is {self.longest}")
        weight, bias = (p[: t * latents_ND.shape[-1]] for p in (self.places.weight, self.places.bias))
        return nn.functional.linear(latents_ND, weight, bias).unflatten(-1, (t, -1))
