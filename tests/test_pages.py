"""The pages on how to add something, followed literally: their files written, their commands run."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from latent import hub, methods
from paper import run as paper_run
from train import flags
from train.run import execute

ROOT = Path(__file__).resolve().parents[1]
FILE = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:LATENT_IMPORT=(\S+) )?python -m (\S+) (.*)$", re.MULTILINE)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Writes a page's files into a folder and goes there; gives its commands. What it registers goes again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LATENT_IMPORT", "")
    before = set(sys.modules)
    tables = [
        methods.METHODS,
        flags.ENVIRONMENTS,
        flags.POLICIES,
        flags.ALGORITHMS,
        paper_run.ABLATIONS,
        paper_run.SEARCHES,
    ]
    kept = [dict(table) for table in tables]

    def follow(name: str) -> list[tuple[str | None, str, list[str]]]:
        text = (ROOT / name).read_text()
        for path, body in FILE.findall(text):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(body)
        return [(file, module, rest.split()) for file, module, rest in COMMAND.findall(text)]

    yield follow
    for table, was in zip(tables, kept):
        table.clear()
        table.update(was)
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", None) or ""):
            del sys.modules[module]


@pytest.mark.parametrize(
    "name, changed",
    [
        ("latent/README.md", ["scaled 0.7", "laplace 0.1"]),
        ("eval/README.md", ["sums 5"]),
        ("train/README.md", ["rloo 0.5"]),
    ],
)
def test_a_page_on_how_to_add_something_adds_it(name, changed, page, tmp_path):
    """Each command's run is made, and its record says what was added, with the flag that the command gives."""
    runs = [rest for _, module, rest in page(name) if module == "train.latent" and "--config" in rest]
    assert len(runs) == len(changed)
    for args, want in zip(runs, changed):
        _, run, options = flags.parse(args)
        result = execute(run, options.out, device="cpu")
        assert 0 <= result["main"]["accuracy"] <= 1
        about = json.loads((tmp_path / "runs" / run.id / "config.json").read_text())
        parts = [about["method"], about["method"].get("policy", {}), about["env"], about["train"].get("algorithm", {})]
        named, value = want.split()
        (mine,) = [part for part in parts if named in (part.get("class") or "").lower()]
        assert float(value) in mine.values()
        assert hub.load(tmp_path / "runs" / run.id).method.title == type(run.method).__name__


def test_what_is_added_does_what_its_page_says(page, tmp_path):
    """The algorithm's advantages by a loop, the environment's golds and corrupted ones, the policy's density."""
    page("train/README.md")
    rloo = importlib.import_module("rloo").RLOO()
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 1.0, 0.0, 0.0]])
    for p in range(2):
        for g in range(4):
            others = [float(reward[p, i]) for i in range(4) if i != g]
            assert float(rloo.outcome(reward)[p, g]) == pytest.approx(float(reward[p, g]) - sum(others) / 3)
    page("eval/README.md")
    env = importlib.import_module("sums").Sums().make()
    for problem in env.train_batch(0, 0, 20):
        assert env.verify(problem, problem.answer).correct and int(problem.answer) == sum(
            map(int, problem.question.split())
        ) % 10  # fmt: skip
        assert not env.verify(problem, str((int(problem.answer) + 1) % 10)).correct
    page("latent/README.md")
    policy = importlib.import_module("laplace").LaplacePolicy(0.5)
    x, value = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    want = (-(value - x).abs() / (0.5 * x.abs()) - (2 * 0.5 * x.abs()).log()).sum(1)
    torch.testing.assert_close(policy(x, x).log_prob(value), want)


def test_the_loop_on_the_page_trains_and_saves(page, tmp_path):
    torch.manual_seed(0)
    page("train/README.md")
    own = importlib.import_module("own")
    start = own.begin(own.run, own.env)
    problems = own.env.train_batch(0, 999, 64)
    with torch.no_grad():
        assert own.reasoner.loss(problems)[0] < start.loss(problems)[0] - 1  # nats
    asked = [p.question for p in own.env.problems("test", 4, 8)]
    assert len(own.answers) == 8 and hub.load(tmp_path / "mine").answer(asked) == own.answers


def test_the_page_on_ablations_adds_one(page, capsys, monkeypatch):
    commands = page("paper/README.md")
    (file, module, rest) = next(each for each in commands if "--dry-run" in each[2])
    assert module == "paper.run"
    monkeypatch.setitem(os.environ, "LATENT_IMPORT", file)
    assert paper_run.main(rest) == 0
    out = capsys.readouterr().out
    assert "width: 32, seed 1" in out and out.splitlines()[-1].startswith("6 cells")  # none is in records of one's own


def test_the_page_on_searches_adds_one(page, capsys, monkeypatch):
    (file, _, rest) = next(each for each in page("paper/README.md") if "--search" in each[2] and "--dry-run" in each[2])
    monkeypatch.setitem(os.environ, "LATENT_IMPORT", file)
    assert paper_run.main(rest) == 0
    out = capsys.readouterr().out
    assert "cups-lr: cot: 0.009, seed 100" in out and out.splitlines()[-1].startswith("9 cells")


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_page_on_kernels_adds_one(dtype, page):
    pytest.importorskip("triton")
    page("kernels/README.md")
    leaky = importlib.import_module("leaky").leaky
    h, before = (torch.randn(5, 300).to(dtype) for _ in range(2))
    want = 0.3 * before.double() + 0.7 * h.double()
    wrong = {impl: float((leaky(h, before, 0.3, impl).double() - want).abs().max()) for impl in ("torch", "triton")}
    assert wrong["triton"] <= 2 * wrong["torch"] and leaky(h, before, 0.3, "triton").dtype == dtype
