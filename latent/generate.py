"""Batched, cached generation: the text after a thought, groups of rollouts that share a prompt, and their replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical

from latent.methods.base import Method, text_hidden
from latent.text import Codec
from latent.thought import Chooser, Decision, Greedy, Prompt, Replay, Rollout, Sample, Thought


def decode(method: Method, thought: Thought, choose: Chooser, max_tokens: int, end: int | None) -> Tensor:
    """Write the text after a thought. Returns tokens (B, T), T <= max_tokens, filled with `end` after a row's end.

    Stops where all rows have ended, and at the model's last position.
    """
    backbone, h_BTD, context = method.backbone, thought.h_BTD, thought.context
    live_B = torch.ones(len(h_BTD), dtype=torch.bool, device=h_BTD.device)
    tokens = []
    for t in range(max_tokens):
        if t >= thought.h_BTD.shape[1]:
            if context.reach == backbone.positions:
                break
            h_BTD, context = backbone.step(backbone.embed(tokens[-1][:, None]), context)
        h_BD = h_BTD[:, t] if t < thought.h_BTD.shape[1] else h_BTD[:, -1]
        logits_BV = backbone.head(h_BD) / choose.temperature
        token_B = choose("token", Categorical(logits=logits_BV, validate_args=False), live_B)
        if end is not None:
            token_B = torch.where(live_B, token_B, end)
            live_B = live_B & (token_B != end)
        tokens.append(token_B)
        if end is not None and not live_B.any():
            break
    return torch.stack(tokens, 1)


@torch.no_grad()
def rollout(
    method: Method, prompt: Prompt, group: int, max_tokens: int, end: int | None, temperature: float
) -> Rollout:
    """Answer P prompts G times each, sampled; what is deterministic is thought once a prompt."""
    choose = Sample(temperature)
    thought = method.think(prompt, choose, group)
    tokens_BT = decode(method, thought, choose, max_tokens, end)
    return Rollout(prompt, group, tokens_BT, thought.used_B, thought.decisions + choose.decisions())


def score(method: Method, rolled: Rollout, temperature: float) -> list[Decision]:
    """The rollout's decisions with log-probabilities and entropies under the present parameters, with gradient.

    The thoughts are thought again on the recorded choices, the text is read in parallel.
    """
    *thinking, text = rolled.decisions
    thought = method.think(rolled.prompt, Replay(thinking), rolled.group)
    logits_BTV = method.backbone.head(text_hidden(method.backbone, thought, text.value_BT)) / temperature
    policy = Categorical(logits=logits_BTV, validate_args=False)
    logp_BT, entropy_BT = policy.log_prob(text.value_BT), policy.entropy()
    return [*thought.decisions, Decision("token", text.value_BT, logp_BT, entropy_BT, text.mask_BT)]


@dataclass
class Reasoner:
    """A method with the tokenizer and limits that make it answer text: what `load` returns.

    `answer_tokens` and `chain_tokens` bound the text; the second counts only for methods that write a chain.
    """

    method: Method
    codec: Codec
    answer_tokens: int
    chain_tokens: int

    @property
    def max_tokens(self) -> int:
        return self.answer_tokens + (self.chain_tokens if self.method.writes_chain else 0)

    @torch.inference_mode()
    def tokens(self, questions: list[str], steps: int | None = None) -> tuple[Tensor, Thought]:
        """Greedy completions of one batch, and the thoughts before them."""
        if steps is not None and steps < 0:
            raise ValueError(f"the number of latent steps must be at least 0, got {steps}")
        prompt = self.codec.prompt(questions, self.method.backbone.device)
        choose = Greedy()
        thought = self.method.think(prompt, choose, steps=steps)
        return decode(self.method, thought, choose, self.max_tokens, self.codec.end), thought

    def answer(self, questions: list[str], steps: int | None = None, batch: int = 64) -> list[str]:
        """The text after thinking, one a question. `steps` overrides the number of latents or recurrences."""
        was_training = self.method.training
        self.method.eval()
        texts = []
        for i in range(0, len(questions), batch):
            texts += self.codec.texts(self.tokens(questions[i : i + batch], steps)[0])
        self.method.train(was_training)
        return texts
