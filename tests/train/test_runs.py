"""Whole runs at a tiny size: records, exact resume, RL's invariants, what is refused."""

import dataclasses
import json
import shutil
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from eval.environments import GSM8K, Cups, Verdict, build, of_run
from kernels.errors import UserError
from latent import hub, load, methods
from latent.backbone import Backbone
from latent.config import LearnedStop, ModelConfig
from latent.methods import Coconut, Colar, CoT, FixedEmbedding, Hrpo, ICoT, NoCoT, Pause, Recurrent, Sim
from latent.policies import Gaussian
from tests.helpers import small_reasoner
from train import rlvr
from train import run as runs
from train.config import RLVR, SFT, Arm, Experiment, Judge, Run
from train.run import execute
from train.start import begin, check_same_model, check_starts, fingerprint

MODEL = ModelConfig(n_layer=2, n_embd=32, n_head=2)
JUDGE = Judge(items=40, level_items=5, batch=16)
SMALL_SFT = SFT(steps=12, batch=8, warmup=2, log_every=5, save_every=4)
SMALL_RL = RLVR(steps=9, batch=4, group=4, warmup=2, log_every=4, save_every=3, latent_cost=0.02, patience=99)


def sft(method, **more) -> Run:
    return Run(env=Cups(), model=MODEL, method=method, train=dataclasses.replace(SMALL_SFT, **more), judge=JUDGE)


def rl(init: Run, method, **more) -> Run:
    return Run(
        env=Cups(), model=MODEL, method=method, train=dataclasses.replace(SMALL_RL, **more), judge=JUDGE, init=init.id
    )


def weights(root, run) -> dict[str, torch.Tensor]:
    return load(root / run.id).method.state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def run_killed_at(run, root, step):
    def say(event):
        if event["stage"] == "train" and event["done"] == step:
            raise Killed

    with pytest.raises(Killed):
        runs.execute(run, root, say, "cpu")
    assert not (root / run.id / "result.json").exists()
    return runs.execute(run, root, device="cpu")


STOPPING = Sim(n_latent=8, stride=4, halt=LearnedStop(bias=-1.0))


@pytest.mark.parametrize(
    "method",
    [
        Coconut(n_latent=8, stride=4, stage_steps=3),
        STOPPING,
        Recurrent(r_min=1, r_max=3),
        ICoT(remove_every=5),  # the optimizer starts afresh at the update after the checkpoint
        Hrpo(n_latent=32),
        Colar(n_latent=8),
    ],
)
def test_a_killed_run_goes_on_as_if_never_stopped(method, tmp_path):
    run = sft(method)
    whole = runs.execute(run, tmp_path / "a", device="cpu")
    again = run_killed_at(run, tmp_path / "b", 10)  # two updates after the last checkpoint
    assert same(weights(tmp_path / "a", run), weights(tmp_path / "b", run))
    assert {k: v for k, v in whole.items() if k != "core_seconds"} == {
        k: v for k, v in again.items() if k != "core_seconds"
    }
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "core_seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / x / run.id / "metrics.jsonl" for x in "ab")
    ]
    assert logs[0] == logs[1] and [m["step"] for m in logs[0]] == [5, 10, 12]


def test_a_killed_rl_run_goes_on_as_if_never_stopped(tmp_path):
    start = sft(STOPPING)
    run = rl(start, STOPPING, kl=0.05, epochs=2, minibatches=2)
    for root in ("a", "b"):
        runs.execute(start, tmp_path / root, device="cpu")
    runs.execute(run, tmp_path / "a", device="cpu")
    run_killed_at(run, tmp_path / "b", 8)
    assert same(weights(tmp_path / "a", run), weights(tmp_path / "b", run))
    samples = [(tmp_path / x / run.id / "samples.jsonl").read_text() for x in "ab"]
    assert samples[0] == samples[1]


def test_rl_logs_a_ratio_of_one_and_verdicts(tmp_path):
    start = sft(STOPPING)
    runs.execute(start, tmp_path, device="cpu")
    run = rl(start, STOPPING)
    runs.execute(run, tmp_path, device="cpu")
    metrics = [json.loads(line) for line in (tmp_path / run.id / "metrics.jsonl").read_text().splitlines()]
    for m in metrics:
        assert m["ratio"] == m["ratio_min"] == m["ratio_max"] == 1.0
        assert m["sampler_gap"] < 1e-4
        wanted = {"reward", "correct", "parsed", "flat_groups", "entropy_halt", "entropy_token", "used", "grad_norm"}
        assert wanted <= m.keys()
    samples = [json.loads(line) for line in (tmp_path / run.id / "samples.jsonl").read_text().splitlines()]
    for s in [s for s in samples if "split" not in s]:
        assert s["reward"] == pytest.approx(float(s["correct"]) - 0.02 * s["used"], abs=1e-6)


def test_rl_climbs_where_reward_depends_on_a_stop_alone(tmp_path):
    """Untrained, every answer is a guess, so the cost decides: the best policy is not to think."""
    start = sft(STOPPING, steps=0)
    runs.execute(start, tmp_path, device="cpu")
    run = rl(start, STOPPING, steps=30, lr=1e-2, latent_cost=1.0, log_every=1, batch=8, group=8)
    runs.execute(run, tmp_path, device="cpu")
    used = [json.loads(line)["used"] for line in (tmp_path / run.id / "metrics.jsonl").read_text().splitlines()]
    assert used[0] > 1 and used[-1] < 0.1


def test_training_sees_no_test_problem():
    from eval import environments

    env = environments.build(Cups())
    test = {p.key for lv in env.levels() for p in env.problems("test", lv, 1000)}
    seen = {p.key for i in range(60) for p in env.train_batch(0, i, 64)}
    assert len(seen) > 2500 and not seen & test


def test_record_holds_what_was_asked_and_what_came_out(tmp_path):
    run = sft(CoT())
    result = runs.execute(run, tmp_path, device="cpu")
    home = tmp_path / run.id
    config = json.loads((home / "config.json").read_text())
    assert config["method"] == {"class": "CoT", "told": "chain", "every": 1} and config["train"]["class"] == "SFT"
    assert json.loads((home / "env.json").read_text())["packages"]["torch"] == metadata.version("torch")
    assert json.loads((home / "result.json").read_text()) == result
    judged = [json.loads(line) for line in (home / "samples.jsonl").read_text().splitlines()]
    main = [s for s in judged if s["level"] == 8]
    assert len(main) == 40 and sum(s["correct"] for s in main) / 40 == result["main"]["accuracy"]
    assert not (home / "checkpoint").exists()
    answers = load(home).answer(["01 23 . . . . . ."])
    assert len(answers[0].split()) == 36
    assert runs.execute(run, tmp_path, device="cpu") == result  # nothing is trained twice


def test_the_seed_says_which_weights_a_run_begins_with(tmp_path):
    seen = []
    for seed in (0, 1):
        run = dataclasses.replace(sft(STOPPING, steps=0), seed=seed)
        runs.execute(run, tmp_path, device="cpu")
        torch.manual_seed(seed)
        begun = begin(run, runs.environments.build(Cups()), tmp_path).method.state_dict()
        seen.append(weights(tmp_path, run))
        assert all(torch.equal(seen[-1][k], begun[k]) for k in seen[-1])  # without what is trained alone
    assert not same(*seen)


def test_a_run_is_judged_at_every_level_and_number_of_steps_asked_for(tmp_path):
    run = dataclasses.replace(
        sft(Sim(n_latent=3, step_tokens=12)), judge=Judge(items=24, level_items=5, batch=7, sweep=(0, 1, 3))
    )
    result = runs.execute(run, tmp_path, device="cpu")
    env, reasoner = runs.environments.build(Cups()), load(tmp_path / run.id)
    right = lambda p, steps=None: env.verify(p, reasoner.answer([p.question], steps)[0]).correct  # noqa: E731
    main = env.problems("test", 8, 24)
    assert result["correct"] == [right(p) for p in main] and set(result["sweep"]) == {"0", "1"}
    for k in (0, 1):
        assert result["sweep"][str(k)]["correct"] == [right(p, k) for p in main]
        assert result["sweep"][str(k)]["used"] == k
    assert list(result["levels"]) == [str(level) for level in env.levels()]
    for level in env.levels()[:-1]:
        problems = env.problems("test", level, 5)
        assert result["levels"][str(level)]["accuracy"] == sum(map(right, problems)) / len(problems)
    assert result["used_mean"] == 3.0


def test_ids_tell_configs_apart():
    base = sft(Sim())
    others = [sft(Sim(n_latent=7)), sft(Coconut()), sft(Sim(), lr=1e-3), dataclasses.replace(base, seed=1)]
    others.append(dataclasses.replace(base, train=RLVR(**{f: getattr(base.train, f) for f in vars(base.train)})))
    assert len({r.id for r in [base, *others]}) == 6 and base.id == sft(Sim()).id


def test_an_arm_starts_from_the_run_of_the_arm_it_names(tmp_path):
    asked = Experiment(Cups(), MODEL, {"a": Arm(STOPPING, SMALL_SFT), "b": Arm(STOPPING, SMALL_RL, init="a")}, JUDGE)
    planned = asked.runs()
    assert planned["b"].init == planned["a"].id
    runs.execute(planned["a"], tmp_path, device="cpu")
    begun = begin(planned["b"], runs.environments.build(Cups()), tmp_path)
    assert same(begun.method.state_dict(), weights(tmp_path, planned["a"]))
    with pytest.raises(ValueError, match="do not fit Recurrent"):
        begin(dataclasses.replace(planned["b"], method=Recurrent()), runs.environments.build(Cups()), tmp_path)


def test_groups_without_spread_stop_the_run(tmp_path, monkeypatch):
    start = sft(Sim(n_latent=8, stride=4))
    runs.execute(start, tmp_path, device="cpu")
    run = rl(start, Sim(n_latent=8, stride=4), patience=3)
    monkeypatch.setattr(rlvr, "verify", lambda env, p, text: Verdict(0.0, False, True))
    with pytest.raises(UserError, match="no group had any spread of reward for 3 updates"):
        runs.execute(run, tmp_path, device="cpu")
    monkeypatch.setattr(rlvr, "verify", lambda env, p, text: Verdict(1.0, True, True))
    assert runs.execute(run, tmp_path, device="cpu")["updates"] == 3  # nothing is left to learn: a whole run


def test_a_run_is_not_taken_for_one_on_other_data(tmp_path):
    from eval.environments import GSM8K

    data = tmp_path / "data.jsonl"
    rows = [f'{{"question": "What is {i}?", "answer": "#### {i}"}}\n' for i in range(40)]
    data.write_text("".join(rows))
    small = dataclasses.replace(MODEL, vocab_size=300)
    run = Run(GSM8K(train=str(data)), small, Sim(n_latent=2), dataclasses.replace(SMALL_SFT, steps=2), JUDGE)
    runs.execute(run, tmp_path / "runs", device="cpu")
    data.write_text("".join(rows[:-1]))
    with pytest.raises(ValueError, match="was made from other data"):
        runs.execute(run, tmp_path / "runs", device="cpu")


def test_a_run_has_the_model_it_starts_from(tmp_path):
    first = sft(STOPPING)
    runs.execute(first, tmp_path, device="cpu")
    wider = dataclasses.replace(rl(first, STOPPING), model=dataclasses.replace(MODEL, n_embd=MODEL.n_embd * 2))
    with pytest.raises(ValueError, match=f"has model.n_embd {MODEL.n_embd} where {MODEL.n_embd * 2} is asked"):
        runs.execute(wider, tmp_path, device="cpu")
    assert not (tmp_path / wider.id).exists()


def test_a_run_leaves_a_card_and_a_picture_of_its_curves(tmp_path):
    run = sft(STOPPING)
    result = runs.execute(run, tmp_path, device="cpu", command="python -m train.latent sim")
    card = (tmp_path / run.id / "model" / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: transformers" in front and "latent-reasoning, sim" in front and "base_model" not in front
    main = result["main"]
    assert f"| 8 | {main['accuracy']:.3f} | {main['low']:.3f} to {main['high']:.3f} | {main['n']} |" in card
    assert "python -m train.latent sim" in card and f"Run {run.id}" in card and "12 updates of SFT" in card
    picture = (tmp_path / run.id / "curves.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_tracker_sees_what_the_record_has(tmp_path, monkeypatch):
    """accelerate's trackers, with one that keeps what it is given."""
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    kept = []

    class Keeper(GeneralTracker):
        name, requires_logging_directory = "keeper", False

        def __init__(self):
            super().__init__()

        @property
        def tracker(self):
            return kept

        def store_init_configuration(self, values):
            kept.append(values)

        def log(self, values, step=None, **more):
            kept.append((step, values))

    run = sft(STOPPING)
    made = Accelerator.__init__

    def init(self, *args, log_with=None, **more):
        made(self, *args, log_with=Keeper() if log_with == "keeper" else log_with, **more)

    monkeypatch.setattr(Accelerator, "__init__", init)
    runs.execute(run, tmp_path, device="cpu", track="keeper")
    config, *lines = kept
    assert config["method.n_latent"] == 8 and config["train.class"] == "SFT"
    logged = [json.loads(line) for line in (tmp_path / run.id / "metrics.jsonl").read_text().splitlines()]
    assert [values for _, values in lines] == logged and [step for step, _ in lines] == [5, 10, 12]


def test_a_chain_that_no_latent_can_give_is_refused_before_training(tmp_path):
    """Wherever in the data it is: nine steps on four latents make groups of three steps, one of them long."""
    rows = [{"question": f"{i}?", "steps": ["1+1=2"] * (9 if i == 37 else 1), "answer": "2"} for i in range(40)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    from eval.environments import GSM8K

    env = GSM8K(train=str(tmp_path / "data.json"))
    run = dataclasses.replace(
        sft(Sim(n_latent=4, step_tokens=8)), env=env, model=dataclasses.replace(MODEL, n_positions=256)
    )
    with pytest.raises(ValueError, match=r"a latent's step has \d+ tokens, method\.step_tokens is 8"):
        runs.execute(run, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_an_arm_cannot_start_from_is_said_before_anything_is_trained(tmp_path):
    """Of an arm of the same command, and of a folder; a stop head, a step decoder and a policy may start afresh."""
    fits = [
        Sim(n_latent=3, halt=LearnedStop()),
        Sim(step_tokens=9),
        CoT(),
        Sim(policy=Gaussian(learned=True)),
        Coconut(),
    ]
    for method in fits:
        asked = Experiment(Cups(), MODEL, {"a": Arm(Sim(), SMALL_SFT), "b": Arm(method, SMALL_RL, init="a")}, JUDGE)
        check_starts(asked.runs().values(), tmp_path)
    for method in (Coconut(feedback="norm"), Sim(feedback="project"), Pause(Sim()), FixedEmbedding(Sim())):
        asked = Experiment(Cups(), MODEL, {"a": Arm(CoT(), SMALL_SFT), "b": Arm(method, SMALL_SFT, init="a")}, JUDGE)
        check_starts(asked.runs().values(), tmp_path)  # nothing fed latents back that could be lost
    start = sft(Sim(n_latent=8, stride=4))
    runs.execute(start, tmp_path, device="cpu")
    for method in (Recurrent(), Sim(feedback="project"), Sim(feedback="norm")):
        asked = Experiment(Cups(), MODEL, {"a": Arm(Sim(), SMALL_SFT), "b": Arm(method, SMALL_RL, init="a")}, JUDGE)
        name = type(method).__name__
        with pytest.raises(UserError, match=f"the weights of {asked.runs()['a'].id} do not fit {name}: "):
            check_starts(asked.runs().values(), tmp_path)
        alone = dataclasses.replace(start, method=method, init=start.id)
        with pytest.raises(UserError, match=f"the weights of {start.id} do not fit {name}: "):
            check_starts([alone], tmp_path)
    wider = dataclasses.replace(start, model=dataclasses.replace(MODEL, n_embd=64), init=start.id)
    with pytest.raises(UserError, match=r"has model\.n_embd \d+ where 64 is asked"):
        check_starts([wider], tmp_path)
    (tmp_path / start.id / "model" / "model.safetensors").unlink()
    for init, lacks in ((start.id, "it has no model.safetensors"), ("nowhere", "nowhere is not a folder")):
        with pytest.raises(UserError, match=lacks):
            check_starts([dataclasses.replace(start, init=init)], tmp_path)


def test_a_start_that_any_tool_wrote_is_of_the_size_that_is_asked_for(tmp_path):
    """`runs/ID/model` has no flags of a run: its own config says what it is, and what to give."""
    first = sft(STOPPING)
    runs.execute(first, tmp_path, device="cpu")
    other = dataclasses.replace(sft(STOPPING, steps=2), init=str(tmp_path / first.id / "model"))
    assert runs.execute(other, tmp_path, device="cpu")["updates"] == 2
    deeper = dataclasses.replace(other, model=dataclasses.replace(MODEL, n_layer=3, n_head=4))
    with pytest.raises(UserError, match=r"\(--model.n-layer 2 --model.n-head 2\)"):
        runs.execute(deeper, tmp_path, device="cpu")


def test_a_run_is_not_taken_for_one_from_other_weights(tmp_path):
    """Other weights in the folder that it starts from; none there any more is no matter to a run that has finished."""
    first = sft(STOPPING)
    runs.execute(first, tmp_path / "starts", device="cpu")
    start = tmp_path / "start"
    shutil.copytree(tmp_path / "starts" / first.id / "model", start)
    run = dataclasses.replace(sft(STOPPING, steps=2), init=str(start))
    result = runs.execute(run, tmp_path, device="cpu")
    weights = load_file(start / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="was made from other weights"):
        runs.execute(run, tmp_path, device="cpu")
    shutil.rmtree(start)
    assert runs.execute(run, tmp_path, device="cpu") == result


def test_a_curriculum_begins_where_its_config_says_and_rl_goes_on_from_where_it_ended(tmp_path):
    coconut = Coconut(n_latent=8, stride=4, advance_at=1.0, stage_steps=1)
    first = sft(coconut)
    assert runs.execute(first, tmp_path, device="cpu")["latents"] == 8
    again = dataclasses.replace(
        sft(dataclasses.replace(coconut, first_stage=1, stage_steps=99), steps=2), init=first.id
    )
    assert runs.execute(again, tmp_path, device="cpu")["latents"] == 1
    assert runs.execute(rl(first, coconut, steps=1), tmp_path, device="cpu")["latents"] == 8
    judged = dataclasses.replace(sft(coconut, steps=0), init=first.id)
    assert runs.execute(judged, tmp_path, device="cpu")["latents"] == 8  # nothing is trained, so nothing begins


def test_a_sweep_leaves_out_arms_that_do_not_think(tmp_path):
    judge = dataclasses.replace(JUDGE, sweep=(0, 2, 99))
    with pytest.raises(UserError, match="positions"):
        runs.execute(dataclasses.replace(sft(STOPPING, steps=1), judge=judge), tmp_path, device="cpu")
    result = runs.execute(dataclasses.replace(sft(CoT(), steps=1), judge=judge), tmp_path, device="cpu")
    assert result["sweep"] == {} and result["latents"] == 0


def test_the_first_of_several_minibatches_is_on_policy_however_scores_round(tmp_path, monkeypatch):
    """On a GPU the same chain may be steps one by one now and a graph the next time: no two scores need be equal."""
    start = sft(STOPPING)
    runs.execute(start, tmp_path, device="cpu")
    scored, calls = rlvr.score, []

    def rounding(*args):
        calls.append(1)
        return [dataclasses.replace(d, logp_BT=d.logp_BT + 1e-7 * len(calls)) for d in scored(*args)]

    monkeypatch.setattr(rlvr, "score", rounding)
    run = rl(start, STOPPING, steps=2, epochs=2, minibatches=2, micro_batch=4)
    assert runs.execute(run, tmp_path, device="cpu")["updates"] == 2
    # the second minibatch beforehand, and both in each pass, two pieces each
    assert len(calls) == 2 * (2 + 2 * 2 * 2)


def test_a_start_of_another_family_goes_on_whatever_the_flags_of_a_model_from_scratch_say(tmp_path):
    """No flag asks for Qwen2: what a checkpoint of it has is not compared with them."""
    body = Backbone(Qwen2ForCausalLM(Qwen2Config(
        vocab_size=13, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )))  # fmt: skip
    cups = small_reasoner(STOPPING)
    hub.save(dataclasses.replace(cups, method=methods.build(STOPPING, body)), tmp_path / "start")
    run = dataclasses.replace(sft(STOPPING, steps=1), init=str(tmp_path / "start"))
    check_same_model(run, tmp_path / "start")


def test_a_small_tensor_among_frozen_ones_is_other_weights(tmp_path):
    run = dataclasses.replace(sft(STOPPING), init=str(tmp_path))
    frozen = {name: torch.randn(3_000_000) for name in ("a", "z")}
    prints = set()
    for i in range(2):
        save_file({**frozen, "m.feedback": torch.full((64, 64), float(i))}, tmp_path / "model.safetensors")
        prints.add(fingerprint(run, tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert len({*prints, fingerprint(run, tmp_path)}) == 3


def test_a_run_is_not_opened_on_other_data_than_it_was_trained_on(tmp_path):
    words = tmp_path / "words.json"

    def write(shift: int) -> None:
        rows = [{"question": f"{i + shift} pens?", "steps": [], "answer": str(i)} for i in range(40)]
        words.write_text(json.dumps(rows))

    write(0)
    env = GSM8K(train=str(words))
    run = Run(env, ModelConfig(n_layer=1, n_embd=16, n_head=2), NoCoT(), SFT(steps=1, batch=4), Judge(4, 0))
    execute(run, tmp_path / "runs", device="cpu")
    home = tmp_path / "runs" / run.id
    assert of_run(home).fingerprint() == build(env).fingerprint()
    write(1)
    with pytest.raises(UserError, match="was trained on other data than is there now under the same name"):
        of_run(home)


def test_a_run_goes_on_with_the_problems_that_it_was_begun_with_alone(tmp_path, monkeypatch):
    """An environment that gives others in every process is told apart when the run goes on."""
    run = Run(Cups(swaps=2), ModelConfig(n_layer=1, n_embd=16, n_head=2), NoCoT(), SFT(steps=1, batch=4), Judge(4, 0))
    result = execute(run, tmp_path, device="cpu")
    assert result["problems"] == json.loads((tmp_path / run.id / "env.json").read_text())["problems"]
    (tmp_path / run.id / "result.json").unlink()
    kind = type(build(Cups()))
    given = kind.problems
    monkeypatch.setattr(kind, "problems", lambda self, split, level, n: given(self, split, level, n)[::-1])
    with pytest.raises(UserError, match=f"was begun with other problems to judge .{result['problems']}, now"):
        execute(run, tmp_path, device="cpu")


def test_what_a_run_has_to_say_is_logged_where_no_one_listens(tmp_path, caplog):
    env = Cups(cups=3, swaps=3)
    run = Run(env, ModelConfig(n_layer=1, n_embd=16, n_head=2), NoCoT(), SFT(steps=1, batch=4), Judge(100, 0))
    execute(run, tmp_path, device="cpu")
    assert [m for m in caplog.messages if m.startswith("judged on ") and "there are no 100" in m]
