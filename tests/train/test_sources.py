"""A run is of the code of its classes: a change of it is noticed, a change of something else is not."""

import importlib
import json
import os

import pytest

from tests.helpers import python
from train import sources
from train.presets import PRESETS

METHOD = """
import torch
from torch import nn

from latent.methods.sequence import AlongSequence, Taught
from latent.methods.terms import text_loss
from latent.text import pad_right, tokens_in
from latent.thought import Greedy

SCALE = 1.0


def scaled(x):
    return SCALE * x


class Scale(nn.Module):
    waits, flops = True, 0

    def known(self, k):
        return None

    def forward(self, h_BD):
        return scaled(h_BD)


class ScaledMethod(AlongSequence):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.feedback = Scale()

    def turn(self, batch):
        text = pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)
        thought = self.think(batch.prompt, Greedy())
        loss, logged = text_loss(self.backbone, thought, text)
        return Taught(thought, text, [loss], logged)

    def turn_counts(self, batch):
        return [tokens_in(batch.answers)]
"""
CONFIG = """
from dataclasses import dataclass
from typing import ClassVar

from eval.environments import Cups
from latent.config import ModelConfig
from latent.methods import SequenceConfig, register
from train.config import SFT, Judge, Run


@register
@dataclass(frozen=True)
class Scaled(SequenceConfig):
    name: ClassVar[str] = "scaled"
    told = "answer"

    def method_class(self):
        from scaling import ScaledMethod

        return ScaledMethod


MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2)
run = Run(Cups(swaps=2), MODEL, Scaled(n_latent=2), SFT(steps=2, batch=4), Judge(8, 0))
"""


def trained(folder) -> tuple[int, str]:
    """The exit code and what is said of the command that trains the run."""
    done = python("-m", "train.latent", "--config", folder / "mine.py:run", "--no-latency", "--jobs", "1", cwd=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_is_not_taken_for_one_by_other_code(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    (tmp_path / "scaling.py").write_text(METHOD)
    assert trained(tmp_path)[0] == 0
    (home,) = (p.parent for p in (tmp_path / "runs").glob("*/result.json"))
    kept = sorted((home / "code").iterdir())
    assert [p.name for p in kept] == ["mine.py", "scaling.py"]
    assert kept[1].read_text() == METHOD and json.loads((home / "env.json").read_text())["code"]
    # what the class does not need may change: remarks, and other runs and classes of its file
    (tmp_path / "mine.py").write_text(CONFIG + "\n\nother = run  # another\n")
    (tmp_path / "scaling.py").write_text("# by hand\n" + METHOD)
    code, said = trained(tmp_path)
    assert code == 0 and "was finished before" in said
    (tmp_path / "scaling.py").write_text(METHOD.replace("SCALE = 1.0", "SCALE = 0.5"))
    code, said = trained(tmp_path)
    assert code == 2 and "was made from other code (mine.py, scaling.py) under the same name" in said
    assert "Traceback" not in said and sorted(os.listdir(home / "code")) == ["mine.py", "scaling.py"]


LAYOUTS = {
    "relative": ("from .helper import M", "def use():\n    return M"),
    "a submodule": ("from {package} import helper", "def use():\n    return helper.M"),
    "by its full name": ("import {package}.helper", "def use():\n    return {package}.helper.M"),
    "a star": ("from .helper import *", "def use():\n    return M"),
    "tried": ("try:\n    from .helper import M\nexcept ImportError:\n    raise", "def use():\n    return M"),
    "within": ("", "def use():\n    from .helper import M\n    return M"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_class_needs_is_found_wherever_it_stands(layout, tmp_path, monkeypatch):
    package = f"own_{layout.replace(' ', '_')}"
    home = tmp_path / package
    home.mkdir()
    above, use = (part.format(package=package) for part in LAYOUTS[layout])
    (home / "__init__.py").write_text("")
    (home / "helper.py").write_text("from .deeper import J\n\n\nclass M:\n    k = 1\n    j = J\n")
    (home / "deeper.py").write_text("J = 1\n")
    body = f"""{above}
from dataclasses import dataclass

K = 1
K = K + 1

{use}


@dataclass(frozen=True)
class Config:
    n: int = K

    def made(self):
        return use()


class Other:
    pass
"""
    (home / "config.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = importlib.import_module(f"{package}.config").Config()

    def digest() -> str:
        return sources.of(config).digest

    before = digest()
    assert {"config.py", "helper.py", "deeper.py"} <= set(sources.of(config).files)
    (home / "config.py").write_text(body.replace("    pass", "    more = 1") + "# remark\n")
    assert digest() == before
    changes = (
        ("helper.py", "k = 1", "k = 2"),
        ("deeper.py", "J = 1", "J = 2"),
        ("config.py", "K = K + 1", "K = K + 2"),
    )
    for name, old, new in changes:
        text = (home / name).read_text()
        (home / name).write_text(text.replace(old, new))
        assert digest() != before
        (home / name).write_text(text)
        assert digest() == before
    (home / "config.py").write_text(body + "\nConfig.made = None\n")
    assert digest() != before


def test_what_is_ours_or_installed_or_broken_is_no_ones_own(tmp_path, monkeypatch):
    assert sources.of(PRESETS["sim"]()).digest is None
    (tmp_path / "broken_parent").mkdir()
    (tmp_path / "broken_parent" / "__init__.py").write_text("raise RuntimeError('no GPU')\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "as_installed.py").write_text("A = 1\n")
    for place in (tmp_path, tmp_path / "site-packages"):
        monkeypatch.syspath_prepend(str(place))
    assert sources.file_of("broken_parent.sub") is None and sources.file_of("as_installed") is None
    assert sources.file_of("torch") is None and sources.file_of("json") is None and sources.file_of("nowhere") is None


def test_code_that_is_in_no_file_is_never_the_same(tmp_path):
    """A class that is typed in, as in a notebook, cannot be read: a run of it is not taken for one of today's."""
    script = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from eval.environments import Cups
from latent.config import ModelConfig
from latent.methods import NoCoT, register
from train.config import SFT, Judge, Run
from train.run import execute

@register
@dataclass(frozen=True)
class Typed(NoCoT):
    name: ClassVar[str] = "typed"

run = Run(Cups(swaps=2), ModelConfig(n_layer=1, n_embd=16, n_head=2), Typed(), SFT(steps=1, batch=2), Judge(2, 0))
execute(run, "runs")
"""
    first, again = (python("-c", script, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr[-2000:]
    assert again.returncode != 0 and "was made from other code (that is in no file)" in again.stderr


REGISTERING = """
from dataclasses import dataclass
from functools import cache

RULES = {}


def rule(made):
    RULES[made.__name__] = made
    return made


def patch(cls):
    cls.more = 1


class Verifier:
    def verify(self, text):
        return RULES["strict"](text)


@rule
def strict(text):
    return text == "1"


_ = patch(Verifier)


@cache
def unused(text):
    return text == "2"


@dataclass
class Unused:
    n: int = 2


other = Unused(2)
"""


def test_what_registers_itself_is_needed_by_whoever_looks_it_up(tmp_path):
    """Definitions under a decorator of one's own, and values that a function of one's own makes; nothing else."""
    path = tmp_path / "rules.py"
    path.write_text(REGISTERING)
    text = sources.text_of(path, sources.needed_for({"Verifier"}, path))
    for edit in ('"1"', "more = 1", "RULES = {}"):
        assert edit in text.replace("'", '"')
    assert "unused" not in text and "Unused" not in text
    before = sources.text_of(path, sources.needed_for({"Verifier"}, path, calls=False))  # as older records have it
    assert before and '"1"' not in before.replace("'", '"')
