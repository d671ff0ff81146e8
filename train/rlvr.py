"""RLVR: sample groups, verify them, and follow the policy gradient over every recorded decision."""

import copy
from dataclasses import asdict, replace

import torch
from torch import Tensor

from eval.environments.base import Environment
from eval.judge import Item, text_lengths, verify
from latent.generate import rollout, score
from latent.methods.base import Method
from latent.thought import Decision, Rollout
from train.config import RLVR
from train.loop import Trainer
from train.losses import advantages, flat, kl_to_reference, policy_loss

LARGEST_GAP = 1e-3  # nats between sampler and trainer on one decision; fp32 stays below 1e-4


def fit(trainer: Trainer, env: Environment) -> None:
    """GRPO-family updates; what is logged is explained in train/README.md. Raises RuntimeError without a signal.

    Each process samples its share of the prompts from a seed of its own; given all rollouts, the updates are the same
    on any number of processes.
    """
    c: RLVR = trainer.config
    reasoner, method = trainer.reasoner, trainer.method
    reference = copy.deepcopy(method).requires_grad_(False).eval() if c.kl else None

    def update(step: int) -> dict:
        problems = trainer.problems(env, step)
        prompt = reasoner.codec.prompt([p.question for p in problems], trainer.accelerator.device)
        rolled = rollout(method, prompt, c.group, reasoner.max_tokens, reasoner.codec.end, c.temperature)
        texts = reasoner.codec.texts(rolled.tokens_BT)
        verdicts = [verify(env, problems[i // c.group], text) for i, text in enumerate(texts)]
        used_B = rolled.used_B.float()
        reward_B = torch.tensor([v.reward for v in verdicts], device=used_B.device) - c.latent_cost * used_B
        reward_PG = reward_B.view(-1, c.group)
        adv_B = advantages(reward_PG, c.advantage, c.std_floor).flatten()
        flat_P = flat(reward_PG)
        watch(trainer, bool(flat_P.all()), all(v.correct for v in verdicts))

        metrics = learn(trainer, rolled, adv_B, reference)
        if trainer.logs_after(step) and trainer.accelerator.is_main_process:
            trainer.record.samples(
                [
                    {"step": step + 1, **asdict(item)}
                    for item in judged(problems, rolled, texts, verdicts, reward_B, reasoner.codec.end)[: 2 * c.group]
                ]
            )
        share = lambda name: sum(getattr(v, name) for v in verdicts) / len(verdicts)  # noqa: E731
        return {
            "reward": reward_B.mean(),
            "correct": share("correct"),
            "parsed": share("parsed"),
            "flat_groups": flat_P.float().mean(),
            "used": used_B.mean(),
            **metrics,
        }

    trainer.fit(update, dropout=False)  # the sampler's policy and the trainer's are then one


def learn(trainer: Trainer, rolled: Rollout, adv_B: Tensor, reference: Method | None) -> dict[str, Tensor]:
    """All updates on one batch of rollouts: `epochs` passes over its minibatches. Returns what the last one logged.

    A minibatch is P / minibatches prompts with their groups, on every process its share; its losses are means over the
    decisions of all of it. The old policy is the one that all minibatches were sampled from.
    """
    c: RLVR = trainer.config
    method, size = trainer.method, len(rolled.prompt.ids_BT) // c.minibatches
    parts = [rolled.prompts(slice(i * size, (i + 1) * size)) for i in range(c.minibatches)]
    adv_parts = adv_B.chunk(c.minibatches)
    once = c.epochs * c.minibatches == 1
    old = [None] if once else [detached(score(method, part, c.temperature)) for part in parts]
    gap, metrics = 0.0, {}
    for epoch in range(c.epochs):
        for i, part in enumerate(parts):
            now = score(method, part, c.temperature)
            was = detached(now) if old[i] is None else old[i]
            policy, logged = policy_loss(now, was, adv_parts[i], (c.clip_low, c.clip_high), c.entropy)
            if epoch == i == 0:
                gap = on_policy(logged, was, part.decisions)
            terms = [policy]
            if reference is not None:
                with torch.no_grad():
                    ref = score(reference, part, c.temperature)
                logged["kl"] = kl = kl_to_reference(now, ref)
                terms.append(replace(kl, weight=c.kl))
            loss, metrics = trainer.over_processes(terms, logged)
            metrics["grad_norm"] = trainer.descend(loss)
    return {"sampler_gap": gap, **metrics}


def judged(problems, rolled: Rollout, texts, verdicts, reward_B, end: int | None) -> list[Item]:
    """The rollouts as judged items, whose reward is what the policy was given."""
    lengths, used = text_lengths(rolled.tokens_BT, end), rolled.used_B.tolist()
    return [
        Item(p.key, p.level, text, v.correct, reward, v.parsed, v.reason, n, length)
        for p, text, v, reward, n, length in zip(
            [p for p in problems for _ in range(rolled.group)], texts, verdicts, reward_B.tolist(), used, lengths
        )
    ]


def detached(decisions: list[Decision]) -> list[Decision]:
    """The same without gradient: the policy that is compared against."""
    return [Decision(d.kind, d.value_BT, d.logp_BT.detach(), d.entropy_BT.detach(), d.mask_BT) for d in decisions]


def on_policy(metrics: dict, scored: list[Decision], sampled: list[Decision]) -> float:
    """Check the first update on fresh rollouts: ratio exactly 1, and the sampler's log-probs are the trainer's.

    Returns the largest gap between the two. Raises RuntimeError where training would be off-policy in silence.
    """
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1, f"ratio on fresh rollouts: {metrics}"
    gap = max(float(((a.logp_BT - b.logp_BT).abs() * b.mask_BT).max()) for a, b in zip(scored, sampled, strict=True))
    if not gap <= LARGEST_GAP:
        raise RuntimeError(f"sampler and trainer differ by {gap:.3g} nats on one decision")
    return gap


def watch(trainer: Trainer, no_signal: bool, all_right: bool) -> None:
    """After `patience` updates in a row without one group that has any spread of reward: the end, or an error.

    Where every rollout was right there is nothing left to learn; otherwise nothing can be learned.
    """
    no_signal, all_right = trainer.all_agree(no_signal), trainer.all_agree(all_right)
    streak = trainer.counters.get("flat", 0) + 1 if no_signal else 0
    trainer.counters["flat"] = streak
    if streak < trainer.config.patience:
        return
    if not all_right:
        raise RuntimeError(
            f"no group had any spread of reward for {streak} updates: start from a model that is sometimes right"
        )
    trainer.enough = True
