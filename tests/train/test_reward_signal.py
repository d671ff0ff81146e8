"""What RL watches over: updates that teach nothing, a sampler that is not the policy, which problem an answer is to."""

import json

import pytest
import torch

from eval.environments import Cups
from kernels.errors import UserError
from latent.config import LearnedStop, ModelConfig
from latent.methods import Sim
from latent.rollout import Rollout, Turn
from latent.thought import Decision, Prompt
from tests.train.by_hand import trainer_of
from train import loop, rlvr
from train.config import RLVR, Run


def test_only_updates_in_a_row_are_counted(tmp_path):
    run = Run(Cups(), ModelConfig(n_layer=1, n_embd=16, n_head=2), Sim(n_latent=2), RLVR(patience=3))
    trainer, _, _ = trainer_of(run, tmp_path)
    for no_signal in (True, True, False, True, True, False):
        rlvr.check_reward_signal(trainer, no_signal, all_right=False)
    assert trainer.counters["flat"] == 0 and not trainer.stop_early
    rlvr.check_reward_signal(trainer, True, True)
    rlvr.check_reward_signal(trainer, True, True)
    assert not trainer.stop_early
    rlvr.check_reward_signal(trainer, True, True)
    assert trainer.stop_early
    with pytest.raises(UserError, match="no group had any spread of reward for 4 updates"):
        rlvr.check_reward_signal(trainer, True, False)


@pytest.mark.parametrize("gap, said", [(0.02, "0.02"), (-0.005, "0.005"), (float("nan"), "nan")])
def test_a_sampler_that_is_not_the_trainers_policy_is_an_error(gap, said):
    """Where a decision was made; what is masked does not count."""
    logp, mask = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[True, True, False]])
    sampled = Decision("token", torch.zeros_like(logp), logp, torch.zeros_like(logp), mask, torch.arange(3))
    ratios = {"ratio_min": torch.tensor(1.0), "ratio_max": torch.tensor(1.0)}

    def scored(place: int, more: float) -> Decision:
        other = logp.clone()
        other[0, place] += more
        return Decision(
            "token", torch.zeros_like(logp), other, torch.zeros_like(logp), mask, torch.arange(logp.shape[1])
        )

    def checked(place: int, more: float, bf16: bool = False) -> float:
        found = rlvr.sampler_gap([scored(place, more)], [sampled])
        gaps = {"sampler_gap": found["sampler_gap"].taken(), "sampler_gap_max": found["sampler_gap_max"].value}
        rlvr.check_on_policy({**ratios, **gaps}, bf16=bf16, fresh=True)
        assert not gaps["sampler_gap_max"] or gaps["sampler_gap"] == gaps["sampler_gap_max"] / 2  # of two decisions
        return float(gaps["sampler_gap_max"])

    with pytest.raises(RuntimeError, match=f"sampler and trainer differ by {said} nats on one decision"):
        checked(1, gap)
    assert checked(2, 0.02) == 0.0
    assert checked(0, 5e-4) == pytest.approx(5e-4, rel=1e-3)
    assert checked(0, 0.19, bf16=True) == pytest.approx(0.19)
    with pytest.raises(RuntimeError, match=r"differ by 0\.11 nats a decision"):
        checked(0, 0.22, bf16=True)
    no_gap = {"sampler_gap": torch.tensor(0.0), "sampler_gap_max": torch.tensor(0.0)}
    ratios = {"ratio_min": torch.tensor(1.0), "ratio_max": torch.tensor(1.5)}
    rlvr.check_on_policy({**ratios, **no_gap}, bf16=False, fresh=False)
    with pytest.raises(RuntimeError, match=r"ratio on fresh rollouts: 1.0 to 1.5"):
        rlvr.check_on_policy({**ratios, **no_gap}, bf16=False, fresh=True)


def test_metrics_of_several_steps_are_means_and_extremes():
    steps = [{"loss": 1.0, "ratio_max": 3.0, "ratio_min": 0.5}, {"loss": 2.0, "ratio_max": 1.5, "ratio_min": 0.9}, {}]
    assert loop.together(steps) == {"loss": 1.5, "ratio_max": 3.0, "ratio_min": 0.5}


def test_a_rollout_is_truncated_where_a_text_of_it_did_not_end():
    """In any turn; a turn that it has not come to is none of its texts."""

    def text(rows: list[list[int]], turn: int) -> Decision:
        made = torch.tensor([[t >= 0 for t in row] for row in rows])
        zeros = torch.zeros(made.shape)
        return Decision("token", torch.tensor(rows), zeros, zeros, made, torch.arange(made.shape[1]), turn)

    first = text([[5, 9, -1], [5, 5, 5], [9, -1, -1], [4, 4, 9]], 0)
    second = text([[9, -1], [9, -1], [-1, -1], [4, 4]], 1)
    rolled = Rollout(Prompt(torch.zeros(2, 1, dtype=torch.long)), 2, first.value_BT, torch.zeros(4), [first])
    assert rlvr.truncated(rolled, 9).tolist() == [False, True, False, False]
    none_B = torch.zeros(4, dtype=torch.long)
    rolled.later = [Turn(torch.arange(4), rolled.prompt, second.value_BT, none_B, [second])]
    assert rlvr.truncated(rolled, 9).tolist() == [False, True, False, True]


def test_every_rollout_is_judged_by_its_own_problem(tmp_path):
    """Two cups, one swap or two: samples of two problems with different answers, judged again from their keys."""
    env = Cups(cups=2, swaps=2, min_swaps=1)
    how = RLVR(steps=3, batch=4, group=48, log_every=1, latent_cost=0.25)
    run = Run(env, ModelConfig(n_layer=1, n_embd=16, n_head=2), Sim(n_latent=2, halt=LearnedStop(bias=0.0)), how)
    trainer, env, _ = trainer_of(run, tmp_path)
    rlvr.fit(trainer, env)
    known = [{p.key: p for p in env.train_batch(0, step, 4)} for step in range(3)]
    samples = [json.loads(line) for line in (tmp_path / run.id / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * 2 * 48
    for i, s in enumerate(samples):
        p = env.train_batch(0, i // 96, 4)[i % 96 // 48]
        verdict = env.verify(p, s["text"])
        assert (s["key"], s["correct"], s["parsed"]) == (p.key, verdict.correct, verdict.parsed)
        assert s["reward"] == pytest.approx(verdict.reward - 0.25 * s["used"])
    assert any(len({p.answer for p in each.values()}) == 2 for each in known)
    assert 3 < sum(s["correct"] for s in samples) < len(samples) / 2


def test_samples_are_those_of_the_updates_that_are_logged(tmp_path):
    """At every log line, the last one too: the same rollouts as where each is logged, whose reward is their mean."""
    rows, rewards = {}, {}
    for every in (1, 3):
        learn = RLVR(steps=7, batch=2, group=4, lr=1e-3, log_every=every, latent_cost=0.05, patience=99)
        run = Run(Cups(), ModelConfig(n_embd=16, n_head=2), Sim(n_latent=3, halt=LearnedStop(bias=-1.0)), learn)
        trainer, env, _ = trainer_of(run, tmp_path)
        rlvr.fit(trainer, env)
        read = lambda name, home=tmp_path / run.id: [json.loads(x) for x in (home / name).read_text().splitlines()]  # noqa: E731
        rows[every], rewards[every] = read("samples.jsonl"), {x["step"]: x["reward"] for x in read("metrics.jsonl")}
    assert list(rewards[3]) == [3, 6, 7]
    assert [row["step"] for row in rows[3]] == [step for step in (3, 6, 7) for _ in range(8)]
    assert rows[3] == [row for row in rows[1] if row["step"] in (3, 6, 7)]
    for step, reward in rewards[1].items():
        of_step = [row["reward"] for row in rows[1] if row["step"] == step]
        assert len(of_step) == 8 and sum(of_step) / 8 == pytest.approx(reward, abs=1e-6)
