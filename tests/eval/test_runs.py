"""The list of runs, and a talk with one."""

import io
import json
import shutil

import pytest

from eval import chat, runs
from eval.environments import Cups, build
from eval.stats import mcnemar, wilson
from latent import hub
from latent.methods import Sim
from tests.helpers import small_reasoner


def record(home, id: str, method: dict, correct: list[int] | None, updates=10) -> None:
    """A run's folder as training leaves it."""
    folder = home / id
    folder.mkdir()
    env = {"class": "Cups", "cups": 4, "swaps": 8, "min_swaps": 2}
    config = {"class": "Run", "env": env, "method": method, "train": {"class": "SFT", "steps": 50}, "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in (5, updates)))
    if correct is not None:
        low, high = wilson(sum(correct), len(correct))
        main = {"accuracy": sum(correct) / len(correct), "low": low, "high": high, "used": 4.0}
        result = {"main": main, "correct": correct, "steps": 8.0, "flops": 4e6, "core_seconds": 12.0}
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def home(tmp_path):
    record(tmp_path, "aaa111", {"class": "Sim", "n_latent": 4}, [1] * 18 + [0] * 2)
    record(tmp_path, "bbb222", {"class": "Sim", "n_latent": 2}, [0] * 10 + [1] * 10)
    record(tmp_path, "ccc333", {"class": "CoT"}, None)
    (tmp_path / "cups-1234").mkdir()  # a table's folder
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"class": "Run"')
    return tmp_path


def shown(capsys, home, *args) -> list[str]:
    assert runs.main(["--out", str(home), *args]) == 0
    return capsys.readouterr().out.strip().splitlines()


def test_runs_are_listed_sorted_and_filtered(home, capsys):
    lines = shown(capsys, home, "--sort", "accuracy")
    assert [line.split()[0] for line in lines[2:]] == ["ccc333", "bbb222", "aaa111"]
    for column, before in (("begun", "when"), ("latents", "used"), ("core-s", "core_seconds")):
        assert shown(capsys, home, "--sort", column) == shown(capsys, home, "--sort", before)
    assert "at 10 of 50" in lines[2] and "0.500" in lines[3] and "0.900" in lines[4] and "0.699-0.972" in lines[4]
    assert [line[:6] for line in shown(capsys, home, "--where", "method=Sim", "method.n_latent=2")[2:]] == ["bbb222"]
    assert shown(capsys, home, "--where", "seed=7") == [f"no runs in {home} that match"]


def test_two_runs_are_compared_on_the_same_problems(home, capsys):
    out = "\n".join(shown(capsys, home, "--compare", "aaa", "bbb"))
    assert "method.n_latent: 4 | 2" in out and "accuracy: 0.900 | 0.500" in out and "+40.0 points" in out
    assert f"McNemar p = {mcnemar([1] * 18 + [0] * 2, [0] * 10 + [1] * 10):.2g}" in out
    assert "has not finished" in "\n".join(shown(capsys, home, "--compare", "aaa", "ccc"))


def test_runs_judged_on_other_splits_are_not_paired(home, capsys):
    path = home / "bbb222" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"judge": config.get("judge", {}) | {"split": "valid"}}))
    out = "\n".join(shown(capsys, home, "--compare", "aaa", "bbb"))
    assert "judged on different problems: no paired difference" in out and "McNemar" not in out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--compare", "aaa", "zzz"], "0 runs begin with 'zzz'"),
        (["--where", "method"], "--where takes NAME=VALUE, got 'method'"),
        (["--where", "colour=red"], "no run has a field 'colour'"),
        (["--sort", "beauty"], "--sort"),
        (["--out", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(args, message, home, capsys):
    assert runs.main([*([] if "--out" in args else ["--out", str(home)]), *args]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


def test_a_talk_shows_answer_thoughts_and_verdict(tmp_path, capsys, monkeypatch):
    reasoner = small_reasoner(Sim(n_latent=3, stride=4))
    record(tmp_path, "aaa111", {"class": "Sim"}, [1])
    hub.save(reasoner, tmp_path / "aaa111" / "model")
    (problem,) = build(Cups()).problems("test", 8, 1)
    typed = [
        "01 23 12 . . . . .",
        "/sample",
        "/latents 1",
        "01 02 . . . . . .",
        "01 99",
        "/latents 99",
        "01",
        "/latents ²",
        "/quit",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    assert chat.main([str(tmp_path / "aaa111"), "--top", "2"]) == 0
    out = capsys.readouterr().out
    (answer,) = reasoner.answer(["01 23 12 . . . . ."])
    assert answer in out and out.count("thought 3:") == 2 and out.count("thought 1:") == 3
    assert problem.question in out and "3 latents" in out and "1 latents" in out
    assert out.count("correct") + out.count("wrong: ") == 3
    assert "/latents takes a whole number" in out
    assert "cannot answer: cannot encode '01 99'" in out and "positions, the model has 64" in out
    shutil.copytree(tmp_path / "aaa111" / "model", tmp_path / "alone")
    monkeypatch.setattr("sys.stdin", io.StringIO("/sample\n01 23\n"))
    assert chat.main([str(tmp_path / "alone")]) == 0
    out = capsys.readouterr().out
    assert "the environment is not known" in out and "wrong" not in out


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "PATH"),
        (["nowhere"], "nowhere is not a folder"),
        (["tests", "--top", "0"], "--top must be at least 1, got 0"),
    ],
)
def test_a_talk_with_nobody_is_one_line(args, message, capsys):
    assert chat.main(args) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


def test_a_damaged_run_is_named_and_the_others_are_listed(home, capsys):
    (home / "aaa111" / "result.json").write_text('{"main": 3}')
    (home / "ccc333" / "metrics.jsonl").write_text("[1]\n")
    assert runs.main(["--out", str(home)]) == 0
    told = capsys.readouterr()
    assert "bbb222" in told.out and not any(name in told.out for name in ("aaa111", "ccc333", "half"))
    assert "aaa111 is damaged and left out" in told.err and "result.json has no field 'main.accuracy'" in told.err
    assert "metrics.jsonl, line 1 must hold an object, got a list" in told.err and "half is damaged" in told.err
    assert runs.main(["--out", str(home), "--compare", "aaa", "bbb"]) == 2
    assert capsys.readouterr().err.startswith("error: aaa is damaged")


def test_runs_on_clustered_items_are_compared_by_cluster(home, capsys):
    for name in ("aaa111", "bbb222"):
        path = home / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"clusters": [i // 2 for i in range(20)]}))
    out = "\n".join(shown(capsys, home, "--compare", "aaa", "bbb"))
    p = mcnemar([1] * 9 + [0], [0] * 5 + [1] * 5)  # each pair of items is one
    assert f"over 20 items in 10 clusters, McNemar p = {p:.2g}" in out
    earlier = home / "aaa111" / "result.json"  # a record of before clusters were kept
    earlier.write_text(json.dumps({k: v for k, v in json.loads(earlier.read_text()).items() if k != "clusters"}))
    for names in (("aaa", "bbb"), ("bbb", "aaa")):
        assert "over 20 items in 10 clusters" in "\n".join(shown(capsys, home, "--compare", *names))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clusters": [0, 1]}))
    assert runs.main(["--out", str(home), "--compare", "aaa", "bbb"]) == 2
    assert "'clusters' must hold a number from 0 for each of 'correct'" in capsys.readouterr().err


WRONG = [None, [], "x", -1, {"a": 1}, 1e30, True]


@pytest.mark.parametrize("name", ["config.json", "result.json", "env.json", "metrics.jsonl"])
def test_no_value_of_a_record_is_a_traceback(name, home, capsys):
    """Every field of every file in turn, in place of what it should be each of what it should not."""
    folder = home / "aaa111"
    (folder / "env.json").write_text(json.dumps({"starts": [{"time": "2026-01-02T03:04:05+00:00"}]}))
    good = json.loads((folder / name).read_text().splitlines()[-1])

    def fields(data, at=()):
        yield at
        for key in data if isinstance(data, dict) else range(len(data))[:1] if isinstance(data, list) else ():
            yield from fields(data[key], (*at, key))

    def put(data, at, value):
        if not at:
            return value
        copy = data.copy()
        copy[at[0]] = put(data[at[0]], at[1:], value)
        return copy

    for at in fields(good):
        for value in WRONG:
            (folder / name).write_text(json.dumps(put(good, at, value)) + "\n")
            for args in ([], ["--sort", "accuracy"], ["--compare", "aaa", "bbb"]):
                assert runs.main(["--out", str(home), *args]) in (0, 2)
    (folder / name).write_bytes(b"\xff\x00[")
    assert runs.main(["--out", str(home)]) == 0
    assert "aaa111 is damaged" in capsys.readouterr().err


def test_a_run_is_dated_by_its_first_start(home, capsys):
    start = {"time": "2001-02-03T12:00:00+00:00"}
    (home / "aaa111" / "env.json").write_text(json.dumps({"starts": [start, {"time": "2030-01-01T00:00:00+00:00"}]}))
    (home / "aaa111" / "diagnostics.json").write_text("{}")  # which makes no run newer
    assert "aaa111  2001-02-03" in shown(capsys, home)[2]


@pytest.mark.parametrize("where", ["problems", "data"])
def test_runs_judged_on_other_problems_are_not_paired(where, home, capsys):
    """By the digest of the problems, and of older records, which lack it, by the fingerprint of the data."""
    assert "no paired difference" not in "\n".join(shown(capsys, home, "--compare", "aaa", "bbb"))
    for name, value in (("aaa111", "one"), ("bbb222", "another")):
        path = home / name / ("result.json" if where == "problems" else "env.json")
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(told | {where: value}))
    assert "no paired difference" in "\n".join(shown(capsys, home, "--compare", "aaa", "bbb"))
