"""The main job's command line: presets, classes chosen by name, files of a user's own."""

from dataclasses import replace

import pytest

from eval.environments import Countdown
from kernels.errors import UserError
from latent.config import Converged, Fixed, LearnedStop
from latent.methods import METHODS, Coconut, CoT, FixedEmbedding, Pause, Recurrent, Sim
from tests.helpers import python
from train.config import RLVR, SFT, Experiment, Run
from train.flags import parse
from train.presets import PRESETS


def asked(*args) -> Run | Experiment:
    return parse([str(a) for a in args])[1]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_flags_is_itself(name):
    assert parse([name])[:2] == (name, PRESETS[name]())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_may_stand_in_any_preset(name):
    assert type(asked("gsm8k", "--method", name).method) is METHODS[name]
    assert type(asked("cups", "--arms.latent.method", name).arms["latent"].method) is METHODS[name]


def test_classes_are_chosen_and_then_their_fields_are_flags():
    run = asked("sim", "--method=coconut", "--method.latents-per-step", 2, "--env", "countdown", "--env.numbers", 3)
    assert run.method == Coconut(stride=4, latents_per_step=2) and run.env == Countdown(numbers=3)
    run = asked("sim", "--train", "rlvr", "--train.group", 4, "--method.halt", "learned", "--method.halt.bias", -1)
    assert run.train == RLVR(group=4) and run.method == Sim(stride=4, halt=LearnedStop(bias=-1.0))
    run = asked("recurrent", "--method.halt", "converged", "--method.halt.by", "kl")
    assert run.method == Recurrent(halt=Converged(by="kl"))
    asked_for = asked("cups", "--arms.latent-rlvr.train", "sft", "--arms.latent-rlvr.train.steps", 7)
    assert (
        asked_for.arms["latent-rlvr"].train == SFT(steps=7)
        and asked_for.arms["latent"] == PRESETS["cups"]().arms["latent"]
    )


def test_a_method_keeps_what_both_have_and_a_control_is_of_the_method_before_it():
    with_halt = ["sim", "--method", "coconut", "--method.n-latent", 6]
    assert asked(*with_halt).method == Coconut(n_latent=6, stride=4)
    assert asked("sim", "--method", "pause").method == Pause(Sim(stride=4))
    assert asked("pause", "--method", "fixed").method == FixedEmbedding(Sim(stride=4))
    assert asked("pause", "--method", "sim").method == Sim(stride=4)
    assert asked("pause", "--method.of", "coconut", "--method.of.halt", "fixed").method == Pause(Coconut(stride=4))
    assert asked("sim", "--method", "cot").method == CoT()
    assert asked("sim", "--method", "sim", "--method.halt", "fixed") == replace(
        PRESETS["sim"](), method=Sim(stride=4, halt=Fixed())
    )


@pytest.mark.parametrize(
    "args, said",
    [
        (["nonsense"], "no preset 'nonsense'; there are modular"),
        (["sim", "--method", "soup"], "--method must be one of no-cot, cot, .*, got 'soup'"),
        (["sim", "--method"], "--method needs a value"),
        (["sim", "--method", "--seed", "1"], "--method needs a value"),
        (["sim", "--method", "sim", "--method", "cot"], "--method is given twice"),
        (["pause", "--method.of", "cot"], "--method.of must be one of coconut, sim, .*got 'cot'"),
        (["sim", "--method", "cot", "--method.n-latent", "3"], "n-latent"),
        (["cups", "--method", "cot"], "--method"),
        (["cups", "--arms.nobody.method", "cot"], "arms.nobody"),
        (["sim", "--method", "coconut", "--method.n-latent", "-1"], "n_latent must be at least 0"),
        (["sim", "--config", "x.py:y"], "--config takes the place of the preset 'sim'"),
        (["--config", "x.py"], "--config must be FILE.py:NAME or MODULE:NAME, got 'x.py'"),
        (["--config", "nowhere.py:run"], "there is no file .*nowhere.py"),
        (["--config", "nowhere:run"], "there is no module 'nowhere'"),
        (["--config", "json:loads_of"], "json has no 'loads_of'"),
        (["--config", "json:decoder"], "must be a Run, an Experiment or a function"),
        (["sim", "--train.algorithm", "grpo"], r"--train\.algorithm, grpo; it is a flag of --train rlvr$"),
        (["sim", "--method.feedbak", "norm"], r"feedbak, norm; did you mean --method\.feedback\?$"),
        (["sim", "--method.latents-per-step", "2"], r"; it is a flag of --method coconut$"),
        (["sim", "--train.step", "5"], r"--train\.step, 5; did you mean --train\.steps\?$"),
        (["modular", "--train.steps", "5"], r"did you mean --arms\.cot\.train\.steps or --arms"),
        (["sim", "--train.seed", "5"], r"--train\.seed, 5$"),  # nothing is named alike
        (["sim", "--help", "soup"], "--help soup: there are env, model, method, train, judge and all"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(args, said):
    with pytest.raises(UserError, match=said):
        parse(args)


@pytest.mark.parametrize(
    "args, said",
    [
        (["--train.lr", "nan"], "config.train: train.lr must be > 0, got nan"),
        (["--train.step", "5"], "Unrecognized options: --train.step, 5; did you mean --train.steps?"),
    ],
)
def test_output_that_is_ascii_changes_no_message(args, said):
    """tyro then draws its box by other characters."""
    ran = python("-m", "train.latent", "sim", *args, PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (2, f"error: {said}\n")


def shown(capsys, *args) -> str:
    with pytest.raises(SystemExit) as e:
        parse([*args, "--help"] if "--help" not in args else list(args))
    assert not e.value.code
    return capsys.readouterr().out


def test_help_is_one_screen_and_the_rest_by_group(capsys):
    first, part, whole = (
        shown(capsys, "cups"),
        shown(capsys, "sim", "--help", "method"),
        shown(capsys, "sim", "--help", "all"),
    )
    assert len(first.splitlines()) <= 55 and "--arms.ARM.method {no-cot,cot," in first and "--train.lr" not in first
    assert "--method.n-latent" in part and "--train.lr" not in part
    assert all(flag in whole for flag in ("--method.n-latent", "--train.lr", "--env.swaps", "--out", "--seed"))
    assert "--method.stage-steps" in shown(capsys, "sim", "--method", "coconut", "--help", "method")
    assert "--arms.latent-rlvr.train.latent-cost" in shown(capsys, "cups", "--help", "arms.latent-rlvr")


def test_help_alone_says_what_each_preset_is_in_one_line(capsys, monkeypatch):
    """At the usual width; each line begins with the name and is the first line of the docstring it comes from."""
    monkeypatch.setenv("COLUMNS", "120")
    listed, _, about_default = shown(capsys, "--help").partition("\nmodular: ")
    assert about_default.startswith("The default: a search in which order matters")
    lines = listed.splitlines()
    for name, preset in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.removeprefix(f"  {name}").strip() == preset.__doc__.splitlines()[0]
    assert "SIM-CoT (arXiv:2509.20317)" in listed and "cups-cue " not in shown(capsys, "sim")


def test_a_narrow_terminal_breaks_no_word(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    listed = shown(capsys, "--help").partition("\nmodular: ")[0].split()
    assert all(word in listed for preset in PRESETS.values() for word in preset.__doc__.splitlines()[0].split())


def test_help_of_a_file_is_not_that_of_a_preset_of_the_same_name(tmp_path, capsys):
    (tmp_path / "named_alike.py").write_text("from train.presets import PRESETS\n\nmodular = PRESETS['sim']()\n")
    text = shown(capsys, "--config", f"{tmp_path}/named_alike.py:modular")
    assert f"modular: {Run.__doc__.splitlines()[0]}" in text and "The default" not in text


MINE = '''
import random
from dataclasses import dataclass, replace
from typing import ClassVar

from eval.environments import Cups, register as register_env
from eval.environments.cups import CupsEnvironment
from latent.config import ModelConfig
from latent.methods import Sim, register
from train.config import SFT, Arm, Experiment, Judge, Run
from helper_beside_it import LATENTS


@register_env
@dataclass(frozen=True)
class Backwards(Cups):
    """Cups, the swaps told from the last to the first."""

    name: ClassVar[str] = "backwards"

    def make(self):
        return BackwardsEnvironment(self)


class BackwardsEnvironment(CupsEnvironment):
    def draw(self, rng: random.Random, level: int):
        problem = super().draw(rng, level)
        told = " ".join(reversed(problem.question.split(" ")))
        return replace(problem, question=told)


@register
@dataclass(frozen=True)
class Doubled(Sim):
    """Latents fed back at twice their size."""

    name: ClassVar[str] = "doubled"
    times: float = 2.0
    """How much larger."""

    def method_class(self):
        from its_method import DoubledMethod

        return DoubledMethod


def run() -> Run:
    """A small run of both."""
    small = ModelConfig(n_layer=1, n_embd=16, n_head=1, n_positions=64)
    how = SFT(steps=2, batch=4, log_every=1)
    return Run(Backwards(), small, Doubled(n_latent=LATENTS, step_tokens=16), how, Judge(4, 0))


one, two = Arm(run().method, run().train), Arm(Sim(n_latent=2, step_tokens=16), run().train)
both = Experiment(run().env, run().model, {"one": one, "two": two}, Judge(4, 0))
'''
ITS_METHOD = """
from latent.methods.sim.method import SimMethod


class DoubledMethod(SimMethod):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.feedback.register_forward_hook(lambda module, given, made: config.times * made)
"""
OPEN = """
import os, sys
from eval.environments import of_run
from latent import load
run, file = sys.argv[1:]
try: load(run)
except ValueError as e: print(e)
os.environ["LATENT_IMPORT"] = file
reasoner = load(run)
problem = of_run(run).problems("test", 8, 1)[0]
print(type(reasoner.method).__name__, reasoner.method.config.times, len(reasoner.answer([problem.question])))
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test imports by LATENT_IMPORT is no other test's."""
    monkeypatch.setenv("LATENT_IMPORT", "")


def test_what_latent_import_names_may_stand_in_any_preset(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "helper_beside_it.py").write_text("LATENTS = 2\n")
    command = ["-m", "train.latent", "sim", "--method", "doubled", "--method.times", "3.0", "--jobs", "0"]
    for name, said in (("mine.py", "--jobs must be at least 1, got 0"), ("nope.py", f"there is no file {tmp_path}")):
        ran = python(*command, LATENT_IMPORT=str(tmp_path / name))
        assert ran.returncode == 2 and ran.stderr.startswith(f"error: {said}") and ran.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_file_of_ones_own_runs_its_own_method_and_environment(tmp_path):
    """In worker processes, opened again, listed; without the file what it registers is named as missing."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "its_method.py").write_text(ITS_METHOD)
    (tmp_path / "helper_beside_it.py").write_text("LATENTS = 2\n")
    command = ["-m", "train.latent", "--config", f"{tmp_path}/mine.py:both", "--no-latency"]
    command += ["--out", str(tmp_path / "runs"), "--arms.one.method.times", "3.0", "--seed", "5"]
    ran = python(*command)
    assert ran.returncode == 0, ran.stderr
    assert "one" in ran.stdout and "two" in ran.stdout
    (home,) = [p.parent for p in tmp_path.glob("runs/*/config.json") if "Doubled" in p.read_text()]
    opened = python("-c", OPEN, home, f"{tmp_path}/mine.py")
    missing, found = opened.stdout.splitlines()
    assert missing.endswith("this version has no 'Doubled' (a file that registers it: LATENT_IMPORT)"), opened.stderr
    assert found == "DoubledMethod 3.0 1", opened.stderr


@pytest.mark.parametrize(
    "written, said",
    [
        ("a = 1\nraise ValueError('one' + chr(10) + 'two')", "line 2: ValueError: one"),
        ("import json\n\njson.loads('{')", "line 3: JSONDecodeError: Expecting"),
        ("run = [", "SyntaxError: '\\[' was never closed"),
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit()", "line 2: SystemExit"),
        ("from eval.environments import Cups\nrun = Cups(swaps='4')", "line 2: TypeError: "),
        ("from eval.environments import Cups\nrun = Cups(swaps=-1)", "swaps must be in"),
        ("def run():\n    return {}['x']", "line 2: KeyError: 'x'"),
        ("def run(n):\n    return n", "TypeError: run\\(\\) missing 1 required"),
    ],
)
def test_what_a_users_file_raises_is_one_line_that_names_it(written, said, tmp_path, request):
    file = tmp_path / f"file_of_case_{abs(hash(request.node.name))}.py"
    file.write_text(written)
    with pytest.raises(UserError, match=said) as e:
        parse(["--config", f"{file}:run"])
    assert "\n" not in str(e.value) and ("swaps must" in said or str(file) in str(e.value))


def test_a_file_beside_an_interactive_session_is_no_other_module(tmp_path, monkeypatch):
    """There sys.path has "" for the working directory, in which the file's own name is found."""
    (tmp_path / "file_of_a_session.py").write_text("import json\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(UserError, match=r"it must be a Run, .* got <module 'json'"):
        parse(["--config", "file_of_a_session.py:json"])


def test_a_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / "takes.py").write_text(
        MINE.replace('"doubled"', '"sim"').replace("from helper_beside_it import LATENTS", "LATENTS = 2")
    )
    with pytest.raises(UserError, match="there is a method 'sim' of class Sim already"):
        parse(["--config", f"{tmp_path}/takes.py:run"])
    (tmp_path / "json.py").write_text("run = 1\n")
    with pytest.raises(UserError, match=r"json\.py has the name of another module, 'json'"):
        parse(["--config", f"{tmp_path}/json.py:run"])
