"""Two processes train what one does, on ragged texts: every method's loss, RL's updates, what is logged; in fp64."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.environments import GSM8K, Cups
from latent.config import LearnedStop, ModelConfig
from latent.generate import rollout
from latent.methods import Coconut, CoT, FixedEmbedding, NoCoT, Pause, Recurrent, Sim
from latent.methods.base import Mean
from latent.thought import Prompt, Rollout
from tests.train.by_hand import trainer_of
from train import distill, rlvr
from train.config import RLVR, SFT, Run
from train.selection import Selection

MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=192, vocab_size=300)
METHODS = {
    "no-cot": NoCoT(),
    "cot": CoT(every=2),
    "coconut": Coconut(n_latent=3, first_stage=2, earlier=0.5, stage_steps=3),
    "sim": Sim(n_latent=4, step_tokens=48, step_weight=0.5, halt=LearnedStop()),
    "pause": Pause(of=Coconut(n_latent=3, first_stage=4)),
    "fixed": FixedEmbedding(of=Sim(n_latent=2, step_tokens=96)),
    "recurrent": Recurrent(r_min=1, r_max=3, prelude=0),
}
LEARN = RLVR(steps=1, batch=8, group=3, lr=0.02, warmup=0, epochs=2, minibatches=2, kl=0.3, entropy=0.02,
             clip_low=0.01, clip_high=0.04)  # fmt: skip


def train(root: Path, data: str, rank: int) -> dict:
    """All that is compared, trained here: on one process, or on this one of several."""
    found = {}
    for name, method in METHODS.items():
        env = Cups(cups=4) if name == "recurrent" else GSM8K(train=data, max_chain=192)
        logged = []
        run = Run(env, MODEL, method, SFT(steps=4, batch=8, lr=0.02, warmup=0, log_every=1))
        trainer, env, _ = trainer_of(run, root, lambda event, logged=logged: logged.append(event["metrics"]))
        distill.fit(trainer, env)
        found[name] = dict(trainer.method.state_dict()), logged
    run = Run(GSM8K(train=data, max_answer=8), MODEL, Sim(n_latent=4, halt=LearnedStop(bias=-0.5)), LEARN)
    trainer, env, method = trainer_of(run, root)
    found["problems"] = [[p.key for p in trainer.problems(env, 0)]], []
    torch.manual_seed(1)
    prompt = trainer.reasoner.codec.prompt([p.question for p in env.train_batch(0, 0, 8)])
    reference = copy.deepcopy(method)
    for p in reference.parameters():
        p.data += 0.02 * torch.randn_like(p)
    rolled = rollout(method, prompt, 3, 8, trainer.reasoner.codec.end, 1.0)
    world = trainer.accelerator.num_processes
    own = [p for i in range(2) for p in range(4 * i + 4 // world * rank, 4 * i + 4 // world * (rank + 1))]
    adv_B = torch.randn(8, 3).view(8, 3)[own].flatten()
    logged = rlvr.learn(trainer, prompts(rolled, own), adv_B, reference)
    found["rl"] = dict(trainer.method.state_dict()), [{k: float(logged[k]) for k in ("loss", "kl", "grad_norm")}]
    chosen = SFT(
        steps=12, batch=16, lr=0.02, warmup=1, decay=0.0, log_every=4, valid_every=3, valid_items=65, select="best"
    )
    trainer, env, _ = trainer_of(run := Run(Cups(), ModelConfig(n_embd=32, n_head=2), NoCoT(), chosen), root)
    trainer.selection = Selection(env, run)
    distill.fit(trainer, env)
    said = trainer.selection.choose(trainer)["selected"]
    found["best"] = dict(trainer.method.state_dict()), [said]
    halves = {"x": Mean(torch.tensor(2.0 + rank), 1 + 2 * rank), "plain": torch.tensor(float(rank))}
    terms = [Mean(torch.tensor(3.0), 1 + rank, weight=2.0), Mean(torch.zeros(()), 0)]
    part, means = trainer.over_processes(terms, halves)
    found["means"] = [float(part)], [{k: float(v) for k, v in means.items()}]
    return found


def prompts(rolled: Rollout, own: list[int]) -> Rollout:
    """The rollouts of some prompts."""
    rows = [p * rolled.group + g for p in own for g in range(rolled.group)]
    names = ("value_BT", "logp_BT", "entropy_BT", "mask_BT")
    made = [replace(d, **{name: getattr(d, name)[rows] for name in names}) for d in rolled.decisions]
    mask = None if rolled.prompt.mask_BT is None else rolled.prompt.mask_BT[own]
    return Rollout(Prompt(rolled.prompt.ids_BT[own], mask), rolled.group, rolled.tokens_BT[rows], rolled.used_B[rows],
                   made)  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one process finds, and what each of two does."""
    folder = tmp_path_factory.mktemp("processes")
    rows = [
        {"question": f"Say {i}" * (1 + i % 3), "steps": [f"<<{j}+1={j + 1}>>" for j in range((3 * i) % 8)],
         "answer": str(i**2)}
        for i in range(80)
    ]  # fmt: skip
    data = folder / "ragged.json"
    data.write_text(json.dumps(rows))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    launched = subprocess.Popen([*launcher, "-m", "tests.train.test_processes", str(folder), str(data)],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    one = train(folder / "one", str(data), 0)
    said, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, said[-3000:]
    return one, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [*METHODS, "rl", "best"])
def test_two_processes_are_one(name, both):
    """Weights, buffers and logs: losses are means over the global count of what they average."""
    one, two = both
    for each in two:
        (want, logged), (got, seen) = one[name], each[name]
        for key in want:
            torch.testing.assert_close(got[key], want[key], rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
        for a, b in zip(seen, logged, strict=True):
            assert a == pytest.approx(b, abs=1e-6)  # means over processes are taken in fp32


def test_the_choice_was_between_different_weights(both):
    """65 problems are not shared out evenly, and the best weights are not the last ones."""
    (_, (said,)), _ = both[0]["best"], both[1]
    assert said["step"] in (3, 6, 9) and said["valid"] * 65 == pytest.approx(round(said["valid"] * 65))


def test_processes_share_every_minibatch(both):
    one, two = both
    (keys,), halves = one["problems"][0], [each["problems"][0][0] for each in two]
    assert halves == [keys[0:2] + keys[4:6], keys[2:4] + keys[6:8]]


def test_means_are_taken_over_the_global_count(both):
    """(3 + 3) / (1 + 2) twice weighted, a term of nothing, (2 + 3) / (1 + 3) logged, and a plain mean of 0 and 1."""
    _, two = both
    parts, logged = zip(*(each["means"] for each in two))
    assert sum(p[0] for p in parts) == pytest.approx(4.0) and parts[0][0] == pytest.approx(2.0)
    assert all(m[0] == pytest.approx({"loss": 4.0, "x": 1.25, "plain": 0.5}) for m in logged)


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    at, out = int(os.environ["RANK"]), Path(sys.argv[1])
    torch.save(train(out / str(at), sys.argv[2], at), out / f"{at}.pt")
    torch.distributed.destroy_process_group()
