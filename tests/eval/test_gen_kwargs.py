"""`--gen_kwargs` of an evaluation: likelihoods take them as texts do, or they are refused, by stock lm-eval too."""

import json
from functools import partial

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from eval import harness
from eval.lm import LatentLM
from latent import hub
from latent.methods import NoCoT, Recurrent, Sim
from tests.helpers import python, small_reasoner

ROWS = [{"q": "01 23 12", "to": ["4 2 1 3", "1 2 3 4"]}, {"q": "13 02", "to": ["2 1 4 3", "3 3 3 3"]}]
KINDS = {
    "choices": "output_type: multiple_choice\ndoc_to_choice: '{{to}}'\ndoc_to_target: 0\n",
    "score": "output_type: loglikelihood\ndoc_to_target: '{{to[0]}}'\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n",
    "texts": "output_type: generate_until\ndoc_to_target: '{{q}}'\ngeneration_kwargs: {until: [], max_gen_toks: 4}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained checkpoints, and a task of every kind of request."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("all")
    for name, method in {"sim": Sim(n_latent=3, stride=4), "recurrent": Recurrent(), "no-cot": NoCoT()}.items():
        reasoner = small_reasoner(method)
        reasoner.method.backbone.lm.lm_head.weight.data *= 20  # answers that differ with what was thought
        hub.save(reasoner, place / name)
    plain = small_reasoner(NoCoT())
    plain.method.backbone.lm.save_pretrained(place / "plain")
    plain.codec.tokenizer.save_pretrained(place / "plain")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "tasks").mkdir()
    for name, more in KINDS.items():
        text = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {place}/rows.jsonl}}\n"
        text += f"test_split: train\ndoc_to_text: '{{{{q}}}}'\n{more}"
        (place / "tasks" / f"{name}.yaml").write_text(text)
    return place


def evaluated(model, folder, tasks, **how) -> dict[str, list]:
    """What a model answered, by task. `model`: one in memory, or arguments of `latent`."""
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    args = {"model": "latent", "model_args": model} if isinstance(model, dict) else {"model": model}
    out = simple_evaluate(**args, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, device="cpu", **how)
    return {name: [s["resps"] for s in samples] for name, samples in out["samples"].items()}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("said", ["num_latents=1", {"num_latents": 1}])
def test_likelihoods_follow_as_many_latents_as_are_asked_for(by_name, said, folder):
    """As those of a model that was opened with so many; whoever makes the model, and however it is said."""
    tasks, args = ("choices", "score", "texts"), {"pretrained": str(folder / "sim")}
    opened = lambda **more: evaluated(LatentLM(**args, **more), folder, tasks)  # noqa: E731
    lm = args if by_name else LatentLM(**args)
    got = evaluated(lm, folder, tasks, gen_kwargs=said)
    assert got == opened(num_latents=1)
    assert all(got[task] != opened()[task] for task in ("choices", "score"))
    if not by_name:  # it holds for that evaluation alone
        assert evaluated(lm, folder, tasks) == opened() and lm.num_latents == 3


def test_recurrences_are_asked_for_alike(folder):
    args = {"pretrained": str(folder / "recurrent")}
    got = evaluated(args, folder, ["choices"], gen_kwargs={"num_recurrences": 2})
    assert got == evaluated(args | {"num_recurrences": 2}, folder, ["choices"])
    assert got != evaluated(args, folder, ["choices"])


@pytest.mark.parametrize(
    "model, tasks, said, message",
    [
        ("sim", ["choices"], {"temperature": 0.7}, "--gen_kwargs temperature: no text is generated in these tasks"),
        ("sim", ["score", "rolling"], {"max_gen_toks": 7}, "--gen_kwargs max_gen_toks: no text is generated"),
        ("sim", ["rolling"], {"num_latents": 2}, "before which nothing is thought"),
        ("sim", ["rolling"], {"num_recurrences": 2}, "before which nothing is thought"),
        ("sim", ["choices"], {"num_latents": -1}, "num_latents must be a whole number, at least 0, got -1"),
        ("sim", ["choices"], {"num_latents": "two"}, "at least 0, got two"),
        ("sim", ["score"], {"num_latents": 40}, "num_latents=40 leaves no room for text"),
        ("sim", ["score"], {"num_latents": 1, "num_recurrences": 1}, "are one setting"),
        ("recurrent", ["choices"], {"num_recurrences": 0}, "at least one recurrence, got 0"),
        ("plain", ["choices"], {"num_latents": 2}, "this is a plain causal LM: num_latents must be 0, got 2"),
        ("plain", ["rolling"], {"num_latents": 2}, "before which nothing is thought"),
    ],
)
def test_what_no_request_can_take_is_refused(model, tasks, said, message, folder):
    with pytest.raises(ValueError, match=message):
        evaluated({"pretrained": str(folder / model)}, folder, tasks, gen_kwargs=said)


def test_a_setting_of_texts_may_stand_beside_tasks_without(folder):
    args = {"pretrained": str(folder / "sim")}
    got = evaluated(args, folder, ["choices", "rolling", "texts"], gen_kwargs={"num_latents": 2, "max_gen_toks": 1})
    both = evaluated(args | {"num_latents": 2}, folder, ["choices", "rolling"])
    assert got["choices"] == both["choices"] and got["rolling"] == both["rolling"]
    assert all(resps[0][0].tokens == 1 and resps[0][0].used == 2 for resps in got["texts"])


def test_a_cache_of_likelihoods_knows_how_many_latents_were_asked_for(folder, tmp_path):
    """lm-eval's keys hold context and continuation alone."""
    args, cache = {"pretrained": str(folder / "sim")}, str(tmp_path / "cache")
    first = evaluated(args, folder, ["choices"], gen_kwargs={"num_latents": 1}, use_cache=cache)
    assert evaluated(args | {"num_latents": 1}, folder, ["choices"], use_cache=cache) == first
    for said in ({"num_latents": 2}, None):
        with pytest.raises(ValueError, match="of other settings: give another path"):
            evaluated(args, folder, ["choices"], gen_kwargs=said, use_cache=cache)


def test_the_command_says_it_in_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # to be quick
    args = ["run", "--model", "latent", "--model_args", f"pretrained={folder / 'sim'}", "--device", "cpu"]
    args += ["--include_path", str(folder / "tasks"), "--tasks", "choices", "--gen_kwargs"]
    assert harness.main([*args, "temperature=0.7"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "error: --gen_kwargs temperature: no text is generated in these tasks, leave it out"


@pytest.mark.slow
def test_stock_lm_evals_own_command_knows_the_model_by_a_task_of_ours_and_takes_them_too(folder, tmp_path):
    args = f"run --model latent --model_args pretrained={folder / 'sim'} --limit 2 --device cpu --log_samples".split()
    args += ["--tasks", f"{harness.TASKS / 'cups.yaml'},{folder}/tasks/choices.yaml", "--gen_kwargs", "num_latents=1"]
    done = python("-m", "lm_eval", *args, "--output_path", tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results*.json")
    assert json.loads(path.read_text())["results"]["cups"]["latents,strict-match"] == 1
    (path,) = tmp_path.rglob("samples_choices*.jsonl")
    got = [json.loads(line)["resps"] for line in path.read_text().splitlines()]
    want = evaluated({"pretrained": str(folder / "sim"), "num_latents": 1}, folder, ["choices"])["choices"]
    assert [[float(logp) for ((logp, _),) in rows] for rows in got] == [
        [pytest.approx(logp, abs=1e-4) for ((logp, _),) in rows] for rows in want
    ]
