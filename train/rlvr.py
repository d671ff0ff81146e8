"""RLVR: sample groups, verify them, and follow an algorithm's loss over every recorded decision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from eval.environments.base import Environment
from eval.judge import Item, Sessions, verify
from kernels.errors import UserError
from latent.generate import React, decode, rollout, score
from latent.methods.base import Method
from latent.rollout import Piece, Rollout, pieces
from latent.text import sent
from latent.thought import Chooser, Decision, Prompt, Replay, Sample, Share, Thought
from train.config import RLVR
from train.divergence import check_weights
from train.loop import Terms, Trainer, own_rows
from train.losses import Extreme, flat, kl_to_reference

LARGEST_GAP = 1e-3  # nats between sampler and trainer on one decision; fp32 stays below 1e-4
LARGEST_GAP_BF16 = 0.5  # bfloat16 rounds otherwise when a token is sampled than when a text is read in parallel


def fit(trainer: Trainer, env: Environment) -> None:
    """Make all updates. train/README.md explains what is logged. Raises UserError where the rewards give no signal."""
    c = settings(trainer)
    reasoner, engine = trainer.reasoner, trainer.engine
    # where each prompt of a batch is among those of all processes in turn
    place_P = torch.tensor([i for rank in range(engine.world) for i in own_rows(c, rank, engine.world)]).argsort()

    def update(step: int) -> dict:
        problems = trainer.problems(env, step)
        prompt = reasoner.codec.prompt([p.question for p in problems], engine.device)
        sessions = None
        if env.turns > 1:
            sessions = Sessions(env, [p for p in problems for _ in range(c.group)], reasoner.codec)
        with _explained(trainer, step), engine.whole(), trainer.precision():
            rolled = sample(trainer, prompt, step, None if sessions is None else sessions.react)
        if sessions is None:
            texts = reasoner.codec.texts(rolled.tokens_BT)
            verdicts = [verify(env, problems[i // c.group], text) for i, text in enumerate(texts)]
        else:
            texts, verdicts = ["\n".join(each) for each in sessions.texts], sessions.verdicts()
        used_B = rolled.all_used_B.float().cpu()  # rewards are numbers of the host
        reward_B = torch.tensor([v.reward for v in verdicts]) - c.latent_cost * used_B
        reward_PG = rearrange(reward_B, "(P G) -> P G", G=c.group)
        whole_PG = torch.cat(engine.gather(reward_PG))  # what a rollout is worth may hang on other prompts' rewards
        whole_PG = whole_PG[place_P]
        check_reward_signal(trainer, not c.algorithm.signal(whole_PG), all(v.correct for v in verdicts))

        outcome_PG = c.algorithm.outcome(whole_PG)
        if getattr(outcome_PG, "shape", None) != whole_PG.shape:
            raise UserError(
                f"{type(c.algorithm).__name__}.outcome must give a tensor as that of the rewards, "
                f"{tuple(whole_PG.shape)}, got {getattr(outcome_PG, 'shape', outcome_PG)!s:.40}"
            )
        outcome_B = rearrange(outcome_PG[trainer.rows], "P G -> (P G)")
        with _explained(trainer, step):
            metrics = learn(trainer, rolled, sent(outcome_B, engine.device), trainer.reference)
        if trainer.logs_after(step) and engine.leads:
            items = judged(problems, rolled, texts, verdicts, reward_B)[: 2 * c.group]
            trainer.record.samples([{"step": step + 1, **asdict(item)} for item in items])
        totals = {name: sum(getattr(v, name) for v in verdicts) for name in ("correct", "parsed")}
        totals |= {"reward": reward_B.sum(), "used": used_B.sum()}
        n, groups = len(verdicts) * engine.world, len(problems) * engine.world
        *sums, flats = engine.sum([*totals.values(), flat(reward_PG).float().sum()])
        return {**{name: total / n for name, total in zip(totals, sums)}, "flat_groups": flats / groups, **metrics}

    trainer.fit(update, dropout=False)  # dropout would make the trainer's policy another than the sampler's


@contextmanager
def _explained(trainer: Trainer, step: int) -> Iterator[None]:
    """Within, what torch raises for a policy that is no distribution is a UserError where the weights are why."""
    try:
        yield
    except (RuntimeError, ValueError):
        check_weights(trainer, step)
        raise


def settings(trainer: Trainer) -> RLVR:
    """The trainer's config, as that of RL."""
    c = trainer.config
    assert isinstance(c, RLVR)
    return c


@torch.no_grad()
def sample(trainer: Trainer, prompt: Prompt, step: int, react: React | None = None) -> Rollout:
    """This process's rollouts, in pieces of `micro_batch` rows: the same as one process would sample in one piece.

    In one piece all thoughts are sampled before any text. The generator's state at the start of the texts is therefore
    that after the longest thought of any piece on any process. With several pieces each thought is replayed before its
    text is sampled, so that no two are in memory.
    """
    c = settings(trainer)
    method, engine = trainer.method, trainer.engine
    limits = trainer.reasoner.max_tokens, trainer.reasoner.codec.end
    cut = pieces(range(len(prompt.ids_BT)), c.group, c.micro_batch)
    if len(cut) == engine.world == 1:
        return rollout(method, prompt, c.group, *limits, c.temperature, react)
    device, group = prompt.ids_BT.device, range(c.group)
    own_B = torch.tensor([p * c.group + g for p in trainer.rows for g in group], device=device)

    def choosing(piece: Piece, state: Tensor | None = None) -> Sample:
        generator = trainer.generator(step, device)
        generator = generator if state is None else generator.set_state(state)
        return Sample(c.temperature, Share(own_B[piece.rows(c.group)], c.batch * c.group, generator))

    def think(piece: Piece, choose: Chooser) -> Thought:
        return method.think(prompt.rows(piece.prompts), choose, len(group[piece.group]))

    drawn: list[tuple[Thought | None, list[Decision], Tensor | None]] = []
    latest = (0, trainer.generator(step, device).get_state())
    for piece in cut:
        choose = choosing(piece)
        thought = think(piece, choose)
        if len(cut) > 1 and not choose.drawn:
            break  # a method samples for all rows or for none: no state to find, and nothing to replay
        drawn.append((thought if len(cut) == 1 else None, thought.decisions, thought.used_B))
        assert choose.share is not None  # as `choosing` made it
        latest = max(latest, (choose.drawn, choose.share.generator.get_state()), key=lambda each: each[0])
    _, state = max(engine.gather(latest), key=lambda each: each[0])
    rolled = []
    for piece, (kept, decisions, used_B) in zip(cut, drawn or [(None, [], None)] * len(cut)):
        choose = choosing(piece, state)
        choose.follow(decisions)
        thought = think(piece, Replay(decisions, used_B=used_B)) if kept is None else kept
        tokens_BT = decode(method, thought, choose, *limits)
        every = decisions + choose.decisions()
        rolled.append(Rollout(prompt.rows(piece.prompts), len(group[piece.group]), tokens_BT, thought.used_B, every))
    return Rollout.joined(prompt, c.group, rolled, limits[1])


def learn(trainer: Trainer, rolled: Rollout, outcome_B: Tensor, reference: Method | None) -> dict[str, Tensor]:
    """Make all updates on a batch of rollouts: `epochs` passes over its minibatches. Returns what the last one logged.

    A minibatch has P / minibatches prompts with their groups. Every process computes its share of it, in pieces of
    `micro_batch` rows, and losses are means over all decisions of the minibatch. The old policy is the one that the
    whole batch was sampled from. `sampler_gap` is the first one's.
    """
    c = settings(trainer)
    method, engine, size = trainer.method, trainer.engine, len(rolled.prompt.ids_BT) // c.minibatches
    cuts = [pieces(range(i * size, (i + 1) * size), c.group, c.micro_batch) for i in range(c.minibatches)]
    minibatches = [[(rolled.part(piece), outcome_B[piece.rows(c.group)]) for piece in cut] for cut in cuts]
    old: dict[int, list[Decision]] = {}
    if c.minibatches > 1:  # the first one's are those of its first pass, before which no weight changes
        with engine.whole():  # not under no_grad: fused kernels would run, and round in other ways than the trainer
            for part, _ in (each for minibatch in minibatches[1:] for each in minibatch):
                with trainer.precision():
                    old[id(part)] = detached(score(method, part, c.temperature))
    metrics: dict[str, Tensor] = {}

    def terms(part: Rollout, part_outcome_B: Tensor, fresh: bool) -> Terms:
        with trainer.precision():
            now = engine.module(score, part, c.temperature)
        if fresh:
            old[id(part)] = detached(now)
        was = old[id(part)]
        losses, logged = c.algorithm.loss(now, was, part_outcome_B, (c.clip_low, c.clip_high), c.entropy)
        if fresh:
            logged = {**logged, "sampler_gap": Extreme(sampler_gap(was, part.all_decisions), 1)}
        if reference is None:
            return losses, logged
        with torch.no_grad(), engine.whole(reference), trainer.precision():
            ref = score(reference, part, c.temperature)
        kl = kl_to_reference(now, ref)
        return [*losses, replace(kl, weight=c.kl)], {**logged, "kl": kl}

    for epoch in range(c.epochs):
        for i, minibatch in enumerate(minibatches):
            every = [d for part, _ in minibatch for d in part.all_decisions]
            counts = [sum(d.mask_BT.sum() for d in every)] * c.algorithm.terms
            if reference is not None:
                counts.append(sum(d.mask_BT.sum() for d in every if not d.density))
            fresh = epoch == i == 0
            parts = [partial(terms, part, part_outcome_B, fresh) for part, part_outcome_B in minibatch]
            limit = LARGEST_GAP_BF16 if trainer.record.run.model.bf16 else LARGEST_GAP
            check = partial(check_on_policy, limit=limit) if fresh else (lambda metrics: None)
            metrics |= trainer.descend(parts, partial(list, counts), check)
    return metrics


def judged(problems, rolled: Rollout, texts, verdicts, reward_B) -> list[Item]:
    """The rollouts as judged items, with the reward that training used."""
    written = [d.mask_BT.sum(1) for d in rolled.all_decisions if d.kind == "token"]
    lengths, used = torch.stack(written).sum(0).tolist(), rolled.all_used_B.tolist()
    return [
        Item(p.key, p.level, text, v.correct, reward, v.parsed, v.reason, n, length)
        for p, text, v, reward, n, length in zip(
            [p for p in problems for _ in range(rolled.group)], texts, verdicts, reward_B.tolist(), used, lengths
        )
    ]


def detached(decisions: list[Decision]) -> list[Decision]:
    """The same decisions without gradient: those of the old policy."""
    return [
        replace(
            d,
            logp_BT=d.logp_BT.detach(),
            entropy_BT=d.entropy_BT.detach(),
            expected_BT=None if d.expected_BT is None else d.expected_BT.detach(),
        )
        for d in decisions
    ]


def sampler_gap(scored: list[Decision], sampled: list[Decision]) -> Tensor:
    """The largest gap (nats) between a decision's log-probability when sampled and when scored; NaN where one is.

    For densities, whose log-probability grows with their dimension, a gap is relative to its size where that is above
    1 nat.
    """
    gaps = []
    for new, was in zip(scored, sampled, strict=True):
        size_BT = was.logp_BT.abs().clamp(min=1.0) if was.density else 1.0
        gaps.append(((new.logp_BT - was.logp_BT).abs() / size_BT * was.mask_BT).max())
    return torch.stack(gaps).max()


def check_on_policy(metrics: dict[str, Tensor], limit: float) -> None:
    """Check the first update on fresh rollouts: the ratios are exactly 1, and sampler and trainer agree.

    Raises RuntimeError where they do not, or differ by more than `limit` nats: training would be off-policy.
    """
    if not metrics["ratio_min"] == metrics["ratio_max"] == 1:
        raise RuntimeError(f"ratio on fresh rollouts: {metrics['ratio_min']} to {metrics['ratio_max']}")
    gap = float(metrics["sampler_gap"])
    if not gap <= limit:
        raise RuntimeError(f"sampler and trainer differ by {gap:.3g} nats on one decision")


def check_reward_signal(trainer: Trainer, no_signal: bool, all_right: bool) -> None:
    """End a run after `patience` updates in a row in which no group had rewards that differ.

    Where every rollout was right the run ends early, because nothing is left to learn. Otherwise nothing can be
    learned: raises UserError.
    """
    no_signal, all_right = trainer.engine.all_agree(no_signal), trainer.engine.all_agree(all_right)
    streak = trainer.counters.get("flat", 0) + 1 if no_signal else 0
    trainer.counters["flat"] = streak
    if streak < settings(trainer).patience:
        return
    if not all_right:
        raise UserError(
            f"no group had any spread of reward for {streak} updates, or a reward that is accepted: start from a model "
            "that is sometimes right"
        )
    trainer.counters["ended"] = True
