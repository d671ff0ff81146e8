"""Registered claims: what an ablation claimed in the commit that its runs came after.

An ablation names that commit. Where the repository's history is there, the claim is read from it, and so is which of
the records' commits came after it; `paper/claims.jsonl` keeps both, so that the paper is the same from a copy without
git. In a shallow clone, and in an installed package, that file is all that is read.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from kernels.errors import UserError
from latent.files import field, write_text
from paper.design import Ablation
from paper.records import HERE, IN_CHECKOUT

FILE = "claims.jsonl"
SOURCES = ("paper/ablations.py", "paper/planned.py")


@dataclass(frozen=True)
class Registration:
    """A claim as it stood in a commit. `after`: the commits of records that are that one or come after it."""

    ablation: str
    commit: str
    claim: str
    after: tuple[str, ...]


def check(ablations: dict[str, Ablation]) -> None:
    """Raise UserError for a registered commit that does not exist or does not hold the ablation, where git is there."""
    if has_history():
        for name, ablation in ablations.items():
            if ablation.registered is not None:
                claim_in(commit_of(name, ablation.registered), name)


def find(ablations: dict[str, Ablation], lines: dict[str, dict], folder: Path = HERE) -> dict[str, Registration]:
    """The registrations of those ablations that have one: from git where its history is there, else from the file.

    `lines`: the records. Raises UserError where git does not have what an ablation names, or the file lacks it.
    """
    wanted = {name: ablation.registered for name, ablation in ablations.items() if ablation.registered is not None}
    if not wanted:
        return {}
    if not has_history():
        kept = read(folder)
        for name, commit in wanted.items():
            if name not in kept or not kept[name].commit.startswith(commit):
                raise UserError(
                    f"ablation {name}: {folder / FILE} does not have its claim in commit {commit}; "
                    "python -m paper.build adds it in a checkout with its history"
                )
        return {name: kept[name] for name in wanted}
    found = {}
    made_at = sorted({line["env"]["git"] for line in lines.values() if line["env"]["git"]})
    for name, registered in wanted.items():
        commit = commit_of(name, registered)
        after = tuple(other for other in made_at if is_ancestor(commit, other))
        found[name] = Registration(name, commit, claim_in(commit, name), after)
    return found


def read(folder: Path = HERE) -> dict[str, Registration]:
    """The registrations in the file. Raises UserError naming the line of one that is not whole."""
    path, found = folder / FILE, {}
    for i, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        place = f"{path}, line {i}"
        try:
            line = json.loads(text)
        except ValueError:
            raise UserError(f"{place}: not a whole registration") from None
        name, commit, claim = (field(line, key, str, place) for key in ("ablation", "commit", "claim"))
        found[name] = Registration(name, commit, claim, tuple(map(str, field(line, "after", list, place))))
    return found


def write(found: Iterable[Registration], folder: Path = HERE) -> None:
    """Write the file, a line for each registration."""
    write_text(folder / FILE, "".join(json.dumps(asdict(each)) + "\n" for each in found))


@cache
def has_history() -> bool:
    """Whether this is a checkout of the repository with its whole history: not one that was begun anew from a copy."""
    top = git("rev-parse", "--show-toplevel") if IN_CHECKOUT else None
    if top is None or Path(top.strip()).resolve() != HERE.parent.resolve():
        return False
    if (git("rev-parse", "--is-shallow-repository") or "").strip() != "false":
        return False
    kept = {each.commit for each in read(HERE).values()}
    return not kept or any(git("cat-file", "-e", f"{commit}^{{commit}}") is not None for commit in kept)


def commit_of(name: str, registered: str) -> str:
    """The full hash of an ablation's registered commit, which HEAD must have in its history."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", registered):
        raise UserError(f"ablation {name}: `registered` must be a commit's hash, got {registered!r}")
    found = git("rev-parse", "--verify", "--quiet", registered + "^{commit}")
    if found is None:
        raise UserError(f"ablation {name}: there is no commit {registered}, in which it says it is registered")
    if not is_ancestor(found.strip(), "HEAD"):
        raise UserError(f"ablation {name}: its registered commit {registered} is not in the history of HEAD")
    return found.strip()


@cache
def is_ancestor(commit: str, other: str) -> bool:
    """Whether `other` is a commit or comes after it. One that git does not know does not."""
    return git("merge-base", "--is-ancestor", commit, other) is not None


@cache
def claim_in(commit: str, name: str) -> str:
    """The claim of an ablation as it stood in a commit. Files are parsed and not run."""
    try:
        for source in SOURCES:
            for key, made in ablations_in(git("show", f"{commit}:{source}") or ""):
                if key == name:
                    claims = [kw.value for kw in made.keywords if kw.arg == "claim"] + made.args[:1]
                    return str(ast.literal_eval(claims[0]))
    except (SyntaxError, ValueError, IndexError) as e:
        raise UserError(f"ablation {name}: its claim in commit {commit[:7]} cannot be read: {e}") from None
    raise UserError(f"ablation {name}: neither of {' and '.join(SOURCES)} has it in commit {commit[:7]}")


def ablations_in(text: str) -> Iterator[tuple[str, ast.Call]]:
    """The ablations that stand in dicts of a source file: the name and the call that makes it."""
    for node in ast.walk(ast.parse(text)):
        for key, value in zip(node.keys, node.values) if isinstance(node, ast.Dict) else ():
            called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id
            if called == "Ablation" and isinstance(key, ast.Constant):
                assert isinstance(value, ast.Call)
                yield str(key.value), value


def git(*args: str) -> str | None:
    """What git says in this repository; None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=HERE.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
