"""What a run's id is made of, and configs as plain data and back."""

import json
from dataclasses import field, fields, make_dataclass, replace
from hashlib import blake2b

import pytest

from eval.environments import ENVIRONMENTS, Cups, ProsQA
from kernels.errors import UserError
from latent import make, methods
from latent.config import HALTS, Converged, LearnedStop, ModelConfig
from latent.methods import METHODS, Coconut, FixedEmbedding, ICoT, Pause, Recurrent, Sim
from latent.plain import HOW, hints, id_of, identity, plain, unlike, unpack
from latent.policies import POLICIES
from paper import records
from paper.ablations import ABLATIONS
from paper.controls import CONTROLS
from paper.design import cells
from train import latent as latent_job
from train.algorithms import ALGORITHMS
from train.config import RLVR, SFT, Arm, Experiment, Judge, Run
from train.flags import Options

CLASSES = [
    Run,
    SFT,
    RLVR,
    Judge,
    ModelConfig,
    *HALTS.values(),
    *POLICIES.values(),
    *ALGORITHMS.values(),
    *METHODS.values(),
    *ENVIRONMENTS.values(),
]
RUNS = [
    Run(Cups(cups=5), ModelConfig(n_layer=3), Sim(halt=LearnedStop()), RLVR(lr=1e-3), Judge(sweep=(1, 2)), init="ab12"),
    Run(ProsQA(), ModelConfig(), Pause(Coconut(n_latent=4, halt=Converged(by="kl"))), SFT(steps=3), seed=7),
    Run(Cups(), ModelConfig(), FixedEmbedding(Sim(n_latent=3)), SFT()),
    Run(Cups(), ModelConfig(), Recurrent(halt=Converged(below=0.3)), SFT(), Judge(items=3)),
]


def add_field(monkeypatch, cls, metadata=None):
    """Give a class one more field, with the default 7, as a later version of it would have."""
    new = make_dataclass("_", [("brand_new", int, field(default=7, metadata=metadata))])
    monkeypatch.setitem(cls.__dataclass_fields__, "brand_new", fields(new)[0])
    monkeypatch.setitem(hints(cls), "brand_new", int)
    monkeypatch.setattr(cls, "brand_new", 7, raising=False)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_new_field_with_a_default_changes_no_id(cls, monkeypatch):
    needed = (Cups(), ModelConfig(), Sim(), SFT()) if cls is Run else ()
    parts = {f.name: {"class": type(part).__name__} for f, part in zip(fields(cls), needed)}
    before = [run.id for run in RUNS]
    add_field(monkeypatch, cls)
    assert plain(cls(*needed))["brand_new"] == 7
    assert identity(cls(*needed)) == {"class": cls.__name__, **parts}
    assert [run.id for run in RUNS] == before


def test_a_field_that_is_set_changes_the_id_unless_it_only_says_how(monkeypatch):
    run = RUNS[1]
    assert replace(run, train=replace(run.train, batch=9)).id != run.id
    assert replace(run, train=replace(run.train, keep=9)).id == run.id
    before = run.id
    add_field(monkeypatch, SFT)
    object.__setattr__(run.train, "brand_new", 8)
    assert run.id != before
    add_field(monkeypatch, SFT, HOW)
    assert run.id == before
    object.__delattr__(run.train, "brand_new")


def test_an_id_is_the_hash_of_what_differs_with_the_schemas_number():
    run = Run(Cups(), ModelConfig(), Sim(n_latent=3, halt=LearnedStop()), SFT(steps=10), seed=2)
    said = (
        '{"class": "Run", "env": {"class": "Cups"}, "method": {"class": "Sim", "halt": {"class": "LearnedStop"}, '
        '"n_latent": 3}, "model": {"class": "ModelConfig"}, "schema": 2, "seed": 2, '
        '"train": {"class": "SFT", "steps": 10}}'
    )
    assert run.id == blake2b(said.encode(), digest_size=6).hexdigest()


def test_classes_with_the_same_fields_have_ids_of_their_own():
    ids = {Run(Cups(), ModelConfig(), kind(Sim()), SFT()).id for kind in (Pause, FixedEmbedding)}
    assert len(ids) == 2
    assert len({Run(Cups(), ModelConfig(), Sim(halt=halt()), SFT()).id for halt in HALTS.values()}) == 3


@pytest.mark.parametrize("run", RUNS, ids=lambda run: type(run.method).__name__)
def test_plain_data_and_what_differs_both_make_the_config_again(run):
    for data in (plain(run), identity(run)):
        assert unpack(json.loads(json.dumps(data)), CLASSES) == run
    assert unlike(plain(run), run) is None


def test_what_was_written_and_what_is_asked_are_told_apart_by_field(monkeypatch):
    run, written = RUNS[0], json.loads(json.dumps(plain(RUNS[0])))
    assert unlike(written, replace(run, seed=1)) == "seed"
    assert unlike(written, replace(run, method=replace(run.method, stride=2))) == "method.stride"
    assert unlike(written, replace(run, method=Coconut())) == "method"
    assert unlike({**written, "of_old": 1}, run) == "of_old"
    assert unlike(written, replace(run, train=replace(run.train, keep=5))) is None
    add_field(monkeypatch, RLVR)
    assert unlike(written, run) is None  # made before there was such a field
    object.__setattr__(run.train, "brand_new", 8)
    assert unlike(written, run) == "train.brand_new"
    object.__delattr__(run.train, "brand_new")


@pytest.mark.parametrize(
    "data, said",
    [
        ({"class": "Nothing"}, "this version has no 'Nothing'"),
        ({"class": ["Sim"]}, "this version has no"),
        ({"class": "Sim", "n_latents": 3}, "Sim has no field 'n_latents'"),
        ({"class": "Sim", "n_latent": "3"}, "config.n_latent cannot be '3'"),
        ({"class": "Sim", "n_latent": True}, "config.n_latent cannot be True"),
        ({"class": "Sim", "halt": {"class": "Cups"}}, "config.halt cannot be Cups"),
        ({"class": "Sim", "feedback": "soup"}, "config.feedback cannot be 'soup'"),
        ({"class": "Judge", "sweep": [1, "2"]}, "config.sweep cannot be"),
        ({"class": "Run", "env": {"class": "Cups"}}, "Run does not fit this version"),
        ({"class": "Sim", "n_latent": -1}, "n_latent must be at least 0"),
    ],
)
def test_data_that_is_no_config_is_refused_by_field(data, said):
    with pytest.raises(UserError, match=said):
        unpack(data, CLASSES)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"env": "cups"}, "env must be of type EnvConfig, got 'cups'"),
        ({"method": None}, "method must be of type MethodConfig, got None"),
        ({"train": SFT(batch=4.0)}, "train.batch must be of type int, got 4.0"),
        ({"model": ModelConfig(pretrained=3)}, r"model.pretrained must be of type str \| None, got 3"),
        ({"method": Sim(n_latent=True)}, "method.n_latent must be of type int, got True"),
        ({"judge": Judge(sweep=[1])}, r"judge.sweep must be of type tuple\[int, ...\], got \[1\]"),
        ({"init": 3}, r"init must be of type str \| None, got 3"),
        ({"seed": "0"}, "seed must be of type int, got '0'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_field(wrong, said):
    """In a config of a user's own file; flags have types of their own."""
    given = {"env": Cups(), "model": ModelConfig(), "method": Sim(), "train": SFT()} | wrong
    with pytest.raises(UserError, match=said):
        Run(**given)


def test_a_value_of_another_type_is_refused_in_an_arm():
    with pytest.raises(UserError, match=r"arms.a.method.n_latent must be of type int, got 2.0"):
        Experiment(Cups(), ModelConfig(), {"a": Arm(Sim(n_latent=2.0), SFT())})
    with pytest.raises(UserError, match=r"arms must be of type dict\[str, train.config.Arm\], got \{'a': 3\}"):
        Experiment(Cups(), ModelConfig(), {"a": 3})


def test_a_method_that_is_built_from_code_is_checked_as_flags_are():
    """A value outside of its choices would fall through to some other branch."""
    body = make.from_scratch(ModelConfig(n_layer=1, n_embd=16, n_head=2), 20, 0, 1)
    for wrong, path in (
        (Sim(feedback="projct"), "feedback"),
        (Recurrent(supervise="step"), "supervise"),
        (ICoT(side="middle"), "side"),
        (Pause(Sim(halt=Converged(by="l2"))), "of.halt.by"),
    ):
        with pytest.raises(UserError, match=rf"method\.{path} must be of type .*Literal"):
            methods.build(wrong, body)


def test_experiments_that_cannot_be_run_are_refused():
    with pytest.raises(UserError, match="needs at least one arm"):
        Experiment(Cups(), ModelConfig(), {})
    backwards = Experiment(Cups(), ModelConfig(), {"b": Arm(Sim(), RLVR(), init="a"), "a": Arm(Sim(), SFT())})
    with pytest.raises(UserError, match="arm 'b' stands before 'a', which it starts from"):
        backwards.runs()
    with pytest.raises(UserError, match=r"train\.stop_at is of supervised training"):
        RLVR(stop_at=0.5)
    with pytest.raises(UserError, match=r"train\.temperature must be in 1e-6\.\.1e6, got 1e-40"):
        RLVR(temperature=1e-40)


def test_arms_that_are_one_run_are_refused(tmp_path):
    """`keep` changes no result, and so no id: two processes would train one run."""
    arms = {"a": Arm(Sim(), SFT()), "b": Arm(Sim(), SFT(keep=3))}
    with pytest.raises(UserError, match="arms 'a' and 'b' are one and the same run"):
        latent_job.check(Experiment(Cups(), ModelConfig(), arms).runs(), Options(out=tmp_path))


def test_the_committed_records_are_of_todays_defaults():
    """A default that is changed gives old ids another meaning: the schema's number must change with it."""
    lines, left_out = records.read(records.HERE / "records")
    assert not left_out and len(lines) == 903
    runs = {cell.run.id: cell.run for ablation in ABLATIONS.values() for cell in cells(ablation, CONTROLS)}
    for id, line in lines.items():
        assert id_of(line["identity"]) == id == runs[id].id and identity(runs[id]) == line["identity"]
        assert unlike(line["config"], runs[id]) is None, (id, unlike(line["config"], runs[id]))
