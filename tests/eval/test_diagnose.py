"""The command that diagnoses a run beside its controls."""

import json

import pytest

from eval import diagnose
from latent import hub
from latent.methods import Coconut, CoT, FixedEmbedding, Pause, Sim
from tests.eval.lively import OF
from tests.helpers import small_reasoner


def kept(tmp_path, name, method):
    """A finished run's folder."""
    home = tmp_path / name
    hub.save(small_reasoner(method), home / "model")
    env = {"class": "Cups", "cups": 4, "swaps": 8, "min_swaps": 2}
    from latent.plain import plain

    config = {"class": "Run", "env": env, "model": {}, "train": {}, "method": plain(method), "seed": 0}
    (home / "config.json").write_text(json.dumps(config))
    (home / "result.json").write_text("{}")
    return home


def test_a_run_is_diagnosed_beside_its_controls(tmp_path, capsys):
    home = kept(tmp_path, "aaa", OF)
    kept(tmp_path, "bbb", Pause(OF))
    kept(tmp_path, "ccc", FixedEmbedding(Sim(n_latent=3, stride=4, step_weight=0.5)))  # of another training
    args = ["--items", "10", "--batch", "5", "--probe-items", "60", "--group", "4"]
    assert diagnose.main([str(home), *args]) == 0
    out = capsys.readouterr().out.strip()
    found = json.loads((home / "diagnostics.json").read_text())
    assert list(found) == ["run", "pause"] and found["pause"]["method"] == "Pause"
    lost, low, high = diagnose.cost(found["run"], "other problem")
    assert low <= lost <= high
    first = out.splitlines()[0]
    assert f"cost {100 * lost:.1f} points of accuracy" in first and "10 problems" in first
    assert ("causally used" in first) == (low > 0)
    assert "latents of another problem" in out and "lens, run" in out
    at_states = [line.split() for line in out[out.index("state, pause") :].splitlines()[1:5]]
    patches, probe = found["pause"]["causal"]["patches"], found["pause"]["probe"]
    assert [row[0] for row in at_states] == ["0", "1", "2", "3"]  # state 0 is fed back, states 1 to 3 are read
    assert [row[1] for row in at_states] == [*(f"{at['flipped']:.2f}" for at in patches), "-"]
    assert [row[6] for row in at_states] == ["-", *(f"{at['accuracy']:.2f}" for at in probe)]
    exchanged = [line.split() for line in out[out.index("exchanged, pause") :].splitlines()[1:4]]
    assert [row[:3] for row in exchanged] == [[str(i), str(3 * i), str(at["pairs"])] for i, at in enumerate(patches)]
    assert [at["step"] for at in patches] == [0, 3, 6] and patches[0]["pairs"] == 0 < patches[1]["pairs"]
    assert exchanged[1][3] == "0.000" and exchanged[1][5:7] == ["0.00", "0.00"]  # nothing of a problem is fed back
    assert f"in 0.000 of {found['run']['causal']['interchange']['pairs']} patches that should change it" in out
    assert "layer whose states are read" not in out and "layer" not in found["run"]
    assert diagnose.main([str(home), *args, "--layer", "-2"]) == 0
    inner = json.loads((home / "diagnostics.json").read_text())
    assert inner["run"]["layer"] == inner["pause"]["layer"] == 1 and inner["run"]["causal"] == found["run"]["causal"]
    assert inner["run"]["lens"] != found["run"]["lens"] and inner["run"]["probe"] != found["run"]["probe"]
    assert "layer whose states are read" in capsys.readouterr().out


def test_a_control_that_cannot_be_read_is_said_and_two_are_refused(tmp_path, capsys):
    of = Coconut(n_latent=3, stride=4)
    home = kept(tmp_path, "aaa", Sim(n_latent=3, stride=4))
    kept(tmp_path, "bbb", Pause(Sim(n_latent=3, stride=4)))
    stuck = kept(tmp_path, "ccc", Pause(of))  # still in stage 0: it thinks in nothing
    args = ["--items", "4", "--batch", "4", "--probe-items", "20", "--group", "2"]
    assert diagnose.main([str(home), *args, "--beside", str(stuck)]) == 2
    assert "thinks in no latents" in capsys.readouterr().err
    kept(tmp_path, "ddd", Pause(Sim(n_latent=3, stride=4)))
    assert diagnose.main([str(home), *args]) == 2
    assert "bbb and ddd are both pause controls: say --beside" in capsys.readouterr().err


def test_the_summary_says_used_only_where_the_interval_does():
    def found(intact, other):
        causal = {"intact": intact, "interventions": {"other problem": {"correct": other}}, "clusters": [*range(100)]}
        return {"env": "E", "causal": causal}

    assert "causally used" in diagnose.summary(found([1] * 100, [0] * 90 + [1] * 10))
    assert "not shown to be used" in diagnose.summary(found([1] * 50 + [0] * 50, [1] * 49 + [0] * 50 + [1]))


@pytest.mark.parametrize(
    "method, args, message",
    [
        (CoT(), [], "thinks in no latents (CoT): nothing to diagnose"),
        (OF, ["--items", "1"], "--items must be at least 2, got 1"),
        (OF, ["--layer", "3"], "--layer must be from -3 to 2, got 3"),
        (None, [], "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(method, args, message, tmp_path, capsys):
    home = kept(tmp_path, "aaa", method) if method else "nowhere"
    assert diagnose.main([str(home), *args]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err
