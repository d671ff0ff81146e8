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
from latent.methods.terms import Mean
from latent.rollout import Piece, Rollout, pieces
from latent.text import sent
from latent.thought import Chooser, Decision, Prompt, Replay, Sample, Share, Thought
from train.algorithms import Algorithm
from train.config import RLVR
from train.divergence import check_weights
from train.loop import Terms, Trainer, own_rows, together
from train.losses import Extreme, Logged, counted, flat, kl_to_reference

LARGEST_GAP = 1e-3  # nats between sampler and trainer on any decision; fp32 stays below 1e-4
# of bfloat16 on the average, for it rounds otherwise when a token is sampled than when a text is read in parallel: the
# largest of many thousand gaps may be a nat where the average is .02
MEAN_GAP_BF16 = 0.1


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
        items = judged(problems, rolled, texts, verdicts)
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
            shown = zip(items[: 2 * c.group], reward_B.tolist())
            trainer.record.samples([{"step": step + 1, **asdict(item), "reward": reward} for item, reward in shown])
        totals = {name: sum(getattr(item, name) for item in items) for name in ("correct", "parsed", "used", "tokens")}
        totals |= {"reward": reward_B.sum()}
        if reasoner.codec.end is not None:
            totals |= {"truncated": truncated(rolled, reasoner.codec.end).sum()}
        right_PG = rearrange(torch.tensor([item.correct for item in items]), "(P G) -> P G", G=c.group)
        groups = {"flat_groups": flat(reward_PG).float().sum(), "right_groups": right_PG.all(1).float().sum()}
        sums = engine.sum([*totals.values(), *groups.values()])
        sizes = [len(items) * engine.world] * len(totals) + [len(problems) * engine.world] * len(groups)
        return {**{name: total / n for name, total, n in zip([*totals, *groups], sums, sizes)}, **metrics}

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


def learn(trainer: Trainer, rolled: Rollout, outcome_B: Tensor, reference: Method | None) -> dict[str, float]:
    """Make all updates on a batch of rollouts: `epochs` passes over its minibatches. Returns what they log, together.

    A minibatch has P / minibatches prompts with their groups. Every process computes its share of it, in pieces of
    `micro_batch` rows, and losses are means over the whole minibatch. The old policy is the one that the whole batch
    was sampled from.
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
                    old[id(part)] = [d.detached() for d in score(method, part, c.temperature)]
    made: list[dict[str, Tensor]] = []
    first = trainer.done == (trainer.start.step if trainer.start else 0)

    def terms(part: Rollout, part_outcome_B: Tensor, fresh: bool, gone_over: bool) -> Terms:
        with trainer.precision():
            now = engine.module(score, part, c.temperature)
        if fresh:
            old[id(part)] = [d.detached() for d in now]
        was = old[id(part)]
        losses, logged = c.algorithm.loss(now, was, part_outcome_B, (c.clip_low, c.clip_high), c.entropy)
        if first:
            check_counts(c.algorithm, part.all_decisions, losses)
        if not gone_over:
            logged = {**logged, **sampler_gap(was, part.all_decisions)}
        if reference is None:
            return losses, logged
        with torch.no_grad(), engine.whole(reference), trainer.precision():
            ref = score(reference, part, c.temperature)
        kl = kl_to_reference(now, ref)
        return [*losses, replace(kl, weight=c.kl)], {**logged, "kl": kl}

    for epoch in range(c.epochs):
        for i, minibatch in enumerate(minibatches):
            each = [part.all_decisions for part, _ in minibatch]
            counts = [sum(n) for n in zip(*map(c.algorithm.counts, each), strict=True)]
            if reference is not None:
                counts.append(sum(d.mask_BT.sum() for decisions in each for d in decisions if not d.density))
            fresh, gone_over = epoch == i == 0, epoch > 0
            parts = [partial(terms, part, part_outcome_B, fresh, gone_over) for part, part_outcome_B in minibatch]
            check = partial(check_on_policy, bf16=trainer.record.run.model.bf16, fresh=fresh)
            made.append(trainer.descend(parts, partial(list, counts), check if not gone_over else lambda metrics: None))
    return together(made)


def truncated(rolled: Rollout, end: int) -> Tensor:
    """Which rollouts (B,) have a text that was cut before it had ended, in any turn."""
    texts = [d for d in rolled.all_decisions if d.kind == "token"]
    return torch.stack([d.mask_BT.any(1) & ~((d.value_BT == end) & d.mask_BT).any(1) for d in texts]).any(0)


def check_counts(algorithm: Algorithm, decisions: list[Decision], terms: list[Mean]) -> None:
    """Raise UserError where an algorithm's terms are means over something else than it says: a micro-batch, or a
    process, would then have another weight than its share."""
    told, made = ([int(n) for n in each] for each in (algorithm.counts(decisions), [term.count for term in terms]))
    if told != made:
        raise UserError(
            f"{type(algorithm).__name__}.counts says that the terms of its loss are means over {told}, and they are "
            f"means over {made}"
        )


def judged(problems, rolled: Rollout, texts, verdicts) -> list[Item]:
    """The rollouts as judged items."""
    written = [d.mask_BT.sum(1) for d in rolled.all_decisions if d.kind == "token"]
    lengths, used = torch.stack(written).sum(0).tolist(), rolled.all_used_B.tolist()
    return [
        Item(p.key, p.level, text, v.correct, v.reward, v.parsed, v.reason, n, length)
        for p, text, v, n, length in zip(
            [p for p in problems for _ in range(rolled.group)], texts, verdicts, used, lengths
        )
    ]


def sampler_gap(scored: list[Decision], sampled: list[Decision]) -> dict[str, Logged]:
    """The gap (nats) between a decision's log-probability when sampled and when scored, on the average and at most; NaN
    where one is.

    For densities, whose log-probability grows with their dimension, a gap is relative to its size where that is above
    1 nat.
    """
    total, most = [], []
    for new, was in zip(scored, sampled, strict=True):
        size_BT = was.logp_BT.abs().clamp(min=1.0) if was.density else 1.0
        gap_BT = (new.logp_BT - was.logp_BT).abs() / size_BT * was.mask_BT
        total.append(gap_BT.sum())
        most.append(gap_BT.max())
    mean = Mean(torch.stack(total).sum(), counted(sampled, "decisions"))
    return {"sampler_gap": mean, "sampler_gap_max": Extreme(torch.stack(most).max(), 1)}


def check_on_policy(metrics: dict[str, Tensor], bf16: bool, fresh: bool) -> None:
    """Check the first update on each rollout: sampler and trainer agree, and the ratios of `fresh` ones are exactly 1.

    Raises RuntimeError where they do not: training would be off-policy.
    """
    if fresh and not metrics["ratio_min"] == metrics["ratio_max"] == 1:
        raise RuntimeError(f"ratio on fresh rollouts: {metrics['ratio_min']} to {metrics['ratio_max']}")
    if bf16 and not float(metrics["sampler_gap"]) <= MEAN_GAP_BF16:
        raise RuntimeError(f"sampler and trainer differ by {metrics['sampler_gap']:.3g} nats a decision")
    if not bf16 and not float(metrics["sampler_gap_max"]) <= LARGEST_GAP:
        raise RuntimeError(f"sampler and trainer differ by {metrics['sampler_gap_max']:.3g} nats on one decision")


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
