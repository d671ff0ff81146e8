"""The pages of the methods: their commands parse, their hyper-parameters are those of the presets, their links lead
somewhere, and numbers of ours are in what they link."""

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from latent.config import HALTS
from latent.methods import METHODS
from latent.policies import POLICIES
from train import flags
from train.config import Experiment
from train.presets import PRESETS

FOLDER = Path(__file__).parents[2] / "latent" / "methods"
CONTROLS = FOLDER / "controls.md"
WITHOUT_A_PAGE = ("no_cot", "cot", "pause", "fixed")  # which share one
PAGES = {path.parent.name: path for path in FOLDER.glob("*/README.md")}
COMMAND = re.compile(r"^python -m train\.latent (.*?) *(?:#.*)?$", re.MULTILINE)
HEADING = re.compile(r"^## Hyper-parameters in the preset `([\w-]+)`(?:, arm `([\w-]+)`)?$", re.MULTILINE)
ROW = re.compile(r"^\| `((?:method|train|model)\.[\w.]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
NAMES = {cls: name for table in (HALTS, POLICIES) for name, cls in table.items()}
TRAINED_WITH = {"steps", "batch", "lr", "warmup", "decay", "weight_decay", "beta2", "clip"}
EVERY_PAGE = pytest.mark.parametrize("path", [*PAGES.values(), CONTROLS], ids=lambda path: path.parent.name)


def value_of(point, arm, path: str):
    """The config's value at a dotted path: of the method and the training in the arm, of the model beside it."""
    part, *rest = path.split(".")
    value = getattr(arm if part in ("method", "train") else point, part)
    for name in rest:
        value = getattr(value, name)
    return value


def written(value, text: str) -> bool:
    """Whether a cell says a config's value: a class by the name that the command line has for it."""
    if is_dataclass(value):
        return NAMES[type(value)] == text
    if isinstance(value, bool | str):
        return str(value) == text
    return float(text.replace(",", "")) == value


def test_every_method_has_a_page_which_the_list_of_methods_links():
    listed = (FOLDER.parent / "README.md").read_text()
    controls = CONTROLS.read_text()
    for name in METHODS:
        folder = name.replace("-", "_")
        if folder in WITHOUT_A_PAGE:
            assert f"({folder}/method.py)" in controls and f"[`{name}`](methods/controls.md)" in listed
        else:
            assert f"[`{name}`](methods/{folder}/README.md)" in listed and "## Numbers" in PAGES[folder].read_text()


@EVERY_PAGE
def test_its_commands_parse_and_run_what_the_page_is_about(path):
    commands = COMMAND.findall(path.read_text())
    about = set(WITHOUT_A_PAGE) if path == CONTROLS else {path.parent.name}
    assert commands
    for command in commands:
        _, config, _ = flags.parse(shlex.split(command))
        arms = config.arms.values() if isinstance(config, Experiment) else [config]
        assert {type(arm.method).name.replace("-", "_") for arm in arms} & about, command


@EVERY_PAGE
def test_its_hyperparameters_are_all_there_and_those_of_the_preset(path):
    text = path.read_text()
    ((preset, arm_name),) = HEADING.findall(text)
    rows = ROW.findall(text)
    point = PRESETS[preset]()
    arm = point.arms[arm_name] if arm_name else point
    assert [(field, said) for field, said, _ in rows if not written(value_of(point, arm, field), said)] == []
    told = {
        part: {field.split(".")[1] for field, _, _ in rows if field.startswith(part)} for part in ("method", "train")
    }
    assert told["method"] == {f.name for f in fields(arm.method)}
    assert told["train"] >= TRAINED_WITH
    assert len({field for field, _, _ in rows}) == len(rows)


@EVERY_PAGE
def test_its_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text()):
        assert (path.parent / link).resolve().exists(), link


@EVERY_PAGE
def test_its_numbers_of_ours_are_in_the_table_or_log_that_it_links(path):
    """A row of ours without a link has no number."""
    for row in re.findall(r"^\| ours.*$", path.read_text(), re.MULTILINE):
        sources = [(path.parent / link).read_text() for link in LINK.findall(row)]
        for said in re.findall(r"(?<![\d.])[01]?\.\d{2,3}(?![\d])", row):
            there = rf"(?<![\d.])0?{re.escape(said)}(?!\d)"
            assert any(re.search(there, source) for source in sources), row
