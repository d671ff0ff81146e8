"""Registered claims against git repositories made here, and those of the paper against its own history."""

import subprocess
from dataclasses import replace

import pytest

from paper import build, claims, markup, records, tables
from paper import run as paper_run
from paper.ablations import ABLATIONS
from paper.claims import Registration
from paper.design import cells
from tests.paper.helpers import MINI, planted, seeds, written

SOURCE = """
ABLATIONS: dict[str, Ablation] = {{
    "other": Ablation(claim="Something else.", base="sim"),
    "mini": Ablation(
        claim={claim},
        base=missing_name,
    ),
}}
"""
RESULTS = {"1 latents": [[0, 1, 0, 0]] * 5, "2 latents": [[1, 1, 1, 0]] * 5}
FIVE = seeds(MINI, 5)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in which a claim was committed, reworded, and on another branch dropped; gives its commits."""
    home = tmp_path / "repository"
    (home / "paper").mkdir(parents=True)

    def git(*args):
        who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *args], cwd=home, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(text, file="ablations.py"):
        (home / "paper" / file).write_text(text)
        git("add", ".")
        git("commit", "-qm", "A claim")
        return git("rev-parse", "HEAD")

    git("init", "-q", "-b", "main")
    made = {"before": commit("ABLATIONS = {}\n")}
    made["first"] = commit(SOURCE.format(claim='"Two latents "\n        "are more."'))
    made["reworded"] = commit(SOURCE.format(claim=repr(MINI.claim)))
    made["computed"] = commit(SOURCE.format(claim="'a' + str(1)"))
    made["planned"] = commit(SOURCE.format(claim="'Planned.'").replace("mini", "later"), "planned.py")
    git("checkout", "-q", "-b", "side", made["first"])
    made["side"] = commit(SOURCE.format(claim="'On the side.'"))
    git("checkout", "-q", "main")
    see(home, monkeypatch)
    return home, made


def see(home, monkeypatch):
    monkeypatch.setattr(claims, "HERE", home / "paper")
    monkeypatch.setattr(claims, "IN_CHECKOUT", True)
    for name in ("has_history", "is_ancestor", "claim_in"):  # of this repository, and not as it was known of another
        known = getattr(claims, name)
        monkeypatch.setattr(claims, name, getattr(known, "__wrapped__", known))


def ran_at(*commits: str | None) -> dict[str, dict]:
    """Records of ten runs, which were made at these commits in turn."""
    lines = planted(RESULTS, FIVE)
    for i, line in enumerate(lines.values()):
        line["env"]["git"] = commits[i % len(commits)]
    return lines


def captioned(registered: str | None, lines: dict[str, dict], folder) -> str:
    ablation = replace(FIVE, registered=registered)
    found = claims.find({"mini": ablation}, lines, folder)
    return markup.caption(tables.gather("mini", ablation, cells(ablation, {}), lines, 20, found.get("mini")))


def test_a_caption_says_where_the_claim_was_registered_and_how_it_read(repository):
    home, made = repository
    lines = ran_at(made["first"], made["reworded"])
    said = captioned(made["first"][:7], lines, home / "paper")
    assert (
        "Claim: Two latents are not one. By these runs: not shown. Reworded later, when runs may have been seen; "
        f"registered in commit {made['first'][:7]}, before all of its 10 runs, as: Two latents are more. Accuracy at"
    ) in said
    said = captioned(made["reworded"], lines, home / "paper")
    assert f"Registered in commit {made['reworded'][:7]}, before 5 of its 10 runs. Accuracy at" in said
    unknown = ran_at(made["reworded"], made["side"], None, "f" * 40, made["before"])
    assert "before 2 of its 10 runs" in captioned(made["reworded"], unknown, home / "paper")
    assert "It was not registered before its runs. Accuracy at" in captioned(None, lines, home / "paper")


def test_a_claim_may_have_been_registered_among_the_planned_ones(repository):
    _, made = repository
    found = claims.find({"later": replace(FIVE, registered=made["planned"])}, ran_at(made["first"], made["planned"]))
    assert found["later"] == Registration("later", made["planned"], "Planned.", (made["planned"],))


def test_a_copy_without_history_says_the_same(repository, monkeypatch):
    """The committed file stands for git in a shallow clone, in a copy and in one whose history was begun anew; what it
    lacks is an error."""
    home, made = repository
    lines, first = ran_at(made["first"], made["reworded"]), made["first"][:9]
    want = captioned(first, lines, home / "paper")
    claims.write(claims.find({"mini": replace(FIVE, registered=first)}, lines).values(), home / "paper")
    shallow = home.parent / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", home.as_uri(), shallow], check=True, capture_output=True)
    anew = home.parent / "anew"  # its history was made again, with the file in it
    (anew / "paper").mkdir(parents=True)
    (anew / "paper" / claims.FILE).write_text((home / "paper" / claims.FILE).read_text())
    for args in (("init", "-q"), ("add", "."), ("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "All")):
        subprocess.run(["git", *args], cwd=anew, check=True, capture_output=True)
    for copy in (shallow, home.parent, anew):
        see(copy, monkeypatch)
        assert not claims.has_history()
        assert captioned(first, lines, home / "paper") == want
        claims.check({"mini": replace(FIVE, registered=made["before"])})  # nothing to check it against
        with pytest.raises(ValueError, match=f"ablation mini: .* does not have its claim in commit {made['side']}"):
            captioned(made["side"], lines, home / "paper")


@pytest.mark.parametrize(
    "registered, message",
    [
        ("abcdef1", "ablation mini: there is no commit abcdef1, in which it says it is registered"),
        ("HEAD", "ablation mini: `registered` must be a commit's hash, got 'HEAD'"),
        ("before", "ablation mini: neither of paper/ablations.py and paper/planned.py has it in commit {before:.7}"),
        ("side", "ablation mini: its registered commit {side} is not in the history of HEAD"),
        ("computed", "ablation mini: its claim in commit {computed:.7} cannot be read"),
    ],
)
def test_a_commit_that_does_not_hold_the_claim_is_one_line(registered, message, repository, monkeypatch, capsys):
    home, made = repository
    ablation = replace(FIVE, registered=made.get(registered, registered))
    for module in (build, paper_run):
        monkeypatch.setattr(module, "ABLATIONS", {"mini": ablation})
    written(home / "records", planted(RESULTS, ablation))
    for main, args in (
        (build.main, ["mini", "--out", str(home / "out")]),
        (paper_run.main, ["mini", "--out", str(home / "out"), "--dry-run"]),
    ):
        assert main([*args, "--records", str(home / "records")]) == 2
        err = capsys.readouterr().err.strip()
        assert message.format(**made) in err and "\n" not in err


def test_a_line_that_is_not_whole_is_named(tmp_path):
    for text, said in (
        ('{"ablation": "mini"', "not a whole registration"),
        ('{"ablation": 3}', "'ablation' must be str"),
    ):
        (tmp_path / claims.FILE).write_text(text + "\n")
        with pytest.raises(ValueError, match=rf"claims\.jsonl, line 1: .*{said}"):
            claims.read(tmp_path)


def test_the_committed_registrations_are_gits():
    """Where history is there; in every copy each registered claim has its line."""
    lines, _ = records.read(build.HERE / "records")
    kept = claims.read()
    assert list(kept) == [name for name, ablation in ABLATIONS.items() if ablation.registered]
    assert all(kept[name].commit.startswith(ABLATIONS[name].registered) for name in kept)
    claims.has_history.cache_clear()
    if claims.has_history():
        assert claims.find(ABLATIONS, lines) == kept


def test_a_registration_is_written_and_read(tmp_path):
    found = {"a": Registration("a", "1" * 40, "Some “claim”.", ("2" * 40,)), "b": Registration("b", "3" * 40, "", ())}
    claims.write(found.values(), tmp_path)
    assert claims.read(tmp_path) == found and claims.read(tmp_path / "nowhere") == {}
