"""A run is of the code of its classes: a change of it is noticed, a change of something else is not."""

import json
import os

import pytest

from tests.helpers import python

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
    # what the class does not need may change: remarks, other runs and classes of the file
    (tmp_path / "mine.py").write_text(CONFIG + "\n\nother = run  # another\n")
    (tmp_path / "scaling.py").write_text("# by hand\n" + METHOD + "\n\nclass Other:\n    pass\n")
    code, said = trained(tmp_path)
    assert code == 0 and "was finished before" in said
    (tmp_path / "scaling.py").write_text(METHOD.replace("SCALE = 1.0", "SCALE = 0.5"))
    code, said = trained(tmp_path)
    assert code == 2 and "was made from other code (mine.py, scaling.py) under the same name" in said
    assert "Traceback" not in said and sorted(os.listdir(home / "code")) == ["mine.py", "scaling.py"]
