"""The records behind the paper: a JSON line for each run, with packed per-item results. Tables read nothing else.

A line has the run's `identity` (the fields that differed from their defaults), the `id`, which is its hash, and the
whole `config` as it was then.
"""

import json
import math
import zlib
from base64 import b85decode, b85encode
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from kernels.errors import UserError
from latent.files import field, write_text
from latent.plain import id_of, identity
from train.config import Run
from train.record import exclusive_lock

FILE = "runs.jsonl"
SEARCH_FILE = "search.jsonl"  # runs judged on the validation split
HERE = Path(__file__).parent
IN_CHECKOUT = (HERE.parent / "pyproject.toml").is_file()
OUT = HERE if IN_CHECKOUT else Path("latent-paper")  # nothing is written into an installed package
PER_LEVEL = 250  # problems of each level in pooled results


def pack(correct: list[int]) -> str:
    """0/1 results as text: their number and the compressed bits."""
    bits = int("".join(map(str, correct)) or "0", 2).to_bytes(-(-len(correct) // 8), "big")
    return f"{len(correct)}:{b85encode(zlib.compress(bits, 9)).decode()}"


def unpack(text: str) -> list[int]:
    """The inverse of `pack`. Raises UserError for any other text."""
    return list(_unpacked(text))


@lru_cache(maxsize=8192)  # tables, numbers and figures ask for the same results again and again
def _unpacked(text: str) -> bytes:
    n, _, packed = text.partition(":")
    try:
        raw = zlib.decompress(b85decode(packed))
    except (ValueError, zlib.error):
        raw = None
    bits = int.from_bytes(raw or b"", "big")
    if raw is None or not n.isdecimal() or len(raw) != -(-int(n) // 8) or bits.bit_length() > int(n):
        raise UserError(f"not packed results: {text!r:.40}")
    return bytes(map(int, f"{bits:0{n}b}"[-int(n) :])) if int(n) else b""


def pack_clusters(clusters: list) -> str:
    """The clusters of items as text: their numbers in order of appearance, compressed."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    listed = " ".join(str(numbers[name]) for name in clusters)
    return b85encode(zlib.compress(listed.encode(), 9)).decode()


def unpack_clusters(text: str) -> list[int]:
    """The inverse of `pack_clusters`, as numbers. Raises UserError for any other text."""
    try:
        return [int(number) for number in zlib.decompress(b85decode(text)).split()]
    except (ValueError, zlib.error):
        raise UserError(f"not packed clusters: {text!r:.40}") from None


def shared(clusters: list) -> dict[str, str]:
    """The field `clusters` of results, where items share one."""
    return {"clusters": pack_clusters(clusters)} if len(set(clusters)) < len(clusters) else {}


def of_run(home: Path, run: Run) -> dict:
    """The line of a finished run, from its folder."""
    config, env, result = (json.loads((home / f"{name}.json").read_text()) for name in ("config", "env", "result"))
    samples = [json.loads(line) for line in (home / "samples.jsonl").read_text().splitlines()]
    result |= {"pooled": pooled(samples, run.judge.split), "sooner": sooner(config, home / "metrics.jsonl")}
    result |= {"correct": pack(result["correct"]), **shared(result.get("clusters", []))}
    for swept in result["sweep"].values():
        swept["correct"] = pack(swept["correct"])
    diagnosis = home / "diagnosis.json"
    diagnosed = {"diagnosis": shortened(json.loads(diagnosis.read_text()))} if diagnosis.exists() else {}
    if diagnosed and "iia" in (whole := diagnosed["diagnosis"]["causal"].get("interchange", {})):
        result["exchanged"] = whole["iia"]
    about = {name: env[name] for name in ("git", "packages", "python", "cpu", "data")}
    about["changed"] = bool(env["diff"])
    line = {"id": run.id, "identity": identity(run), "config": config, "env": about, "result": result}
    return line | diagnosed


def pooled(samples: list[dict], split: str = "test") -> dict:
    """Results over levels with equal weight: the first `PER_LEVEL` problems of each, ordered by key.

    It uses samples of the final evaluation only; RL also logs rollouts of its training.
    """
    levels: dict[int, list[dict]] = {}
    for sample in sorted((x for x in samples if x.get("split") == split), key=lambda x: (x["level"], x["key"])):
        levels.setdefault(sample["level"], []).append(sample)
    some = [x for level in levels.values() for x in level[:PER_LEVEL]]
    return {
        "accuracy": sum(x["correct"] for x in some) / len(some),
        "used": sum(x["used"] for x in some) / len(some),
        "correct": pack([int(x["correct"]) for x in some]),
        **shared([x.get("cluster") or x["key"] for x in some]),
        "problems": sha256(" ".join(x["key"] for x in some).encode()).hexdigest()[:12],
    }


def pooled_sizes(levels: dict[str, dict]) -> dict[str, int]:
    """How many problems of each level are in the pooled results, by the result's levels, in their order there."""
    return {level: min(levels[level]["n"], PER_LEVEL) for level in sorted(levels, key=int)}


def sooner(config: dict, metrics: Path) -> int:
    """Updates until a log line's exact match is .9, in a curriculum's last stage; all updates where it never is."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = max((line.get("stage", 0.0) for line in lines), default=0.0)
    reached = (x["step"] for x in lines if x.get("exact", 0.0) >= 0.9 and x.get("stage", 0.0) == last)
    return next(reached, config["train"]["steps"])


def shortened(diagnosis: dict) -> dict:
    """A diagnosis with packed per-item results, and without the problems' keys."""
    causal = {k: v for k, v in diagnosis["causal"].items() if k not in ("keys", "clusters")}
    causal |= shared(diagnosis["causal"].get("clusters", []))
    causal["intact"] = pack(causal["intact"])
    causal["sweep"] = {k: pack(v) for k, v in causal["sweep"].items()}
    for each in causal["interventions"].values():
        each["correct"] = pack(each["correct"])
    return {**diagnosis, "causal": causal}


def read(folder: Path, file: str = FILE) -> tuple[dict[str, dict], list[str]]:
    """Lines by run id, and what was left out and why: incomplete lines, and lines whose id is not their config's.

    Raises UserError for a folder that is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --records is a folder")
    lines, left_out, _ = _read(folder / file)
    return lines, left_out


def unlisted(lines: dict[str, dict], known: set[str]) -> list[str]:
    """A line that says how many records are of runs other than those `known`, by id; none where all are known."""
    n = len(lines.keys() - known)
    said = f"{n} of {len(lines)} records belong to no ablation known here (LATENT_IMPORT names modules with more)"
    return [said] if n else []


def _read(path: Path) -> tuple[dict[str, dict], list[str], list[str]]:
    """The same, and the text of complete lines that were left out."""
    lines, left_out, others = {}, [], []
    try:
        texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    for i, text in enumerate(texts, 1):
        place = f"{path}, line {i}"
        try:
            line = json.loads(text)
            id, of_config, _, _ = line["id"], dict(line["identity"]), line["config"], line["result"]["main"]
        except (ValueError, KeyError, TypeError, RecursionError):
            left_out.append(f"{place}: not a whole record")
            continue
        if id != id_of(of_config):
            left_out.append(f"{place}: run {id!s:.40} has another config than its id says ({id_of(of_config)})")
            others.append(text)
            continue
        try:
            check(line, place)
            lines[id] = line
        except UserError as e:
            left_out.append(str(e))
    return lines, left_out, others


NUMBER = (int, float)
RESULTS = ("main.accuracy", "main.used", "pooled.accuracy", "pooled.used", "sooner", "steps", "flops", "core_seconds",
           "parameters", "steps_written", "latents", "used_mean")  # fmt: skip
Kind = type | tuple[type, ...]
OTHERS: dict[str, Kind] = {
    "config.env.class": str,
    "config.judge": dict,
    "config.method.class": str,
    "config.train.log_every": int,
    "result.pooled.problems": str,
    "env.cpu": str,
    "env.git": (str, type(None)),
    "env.packages": dict,
}
PACKED = ("result.correct", "result.pooled.correct")
BY_STATE = {"diagnosis.probe": ("accuracy", "majority"), "diagnosis.causal.patches": ("flipped",)}
EXCHANGED = ("iia", "chance")  # of a patch, where that was measured


def check(line: dict, place: str) -> None:
    """Raise UserError, naming place and field, for a record that lacks what tables and figures read."""
    for name in RESULTS:
        if not math.isfinite(field(line, f"result.{name}", NUMBER, place)):
            raise UserError(f"{place}: field 'result.{name}' must be finite")
    for name, kind in OTHERS.items():
        field(line, name, kind, place)
    field(line, "env.packages.torch", str, place)
    packed = list(PACKED)
    for steps, _ in field(line, "result.sweep", dict, place).items():
        if not steps.isdecimal():
            raise UserError(f"{place}: field 'result.sweep' must be by numbers of latent steps, got {steps!r:.40}")
        packed.append(f"result.sweep.{steps}.correct")
    if "diagnosis" in line:
        field(line, "diagnosis.causal", dict, place)
        packed.append("diagnosis.causal.intact")
        packed += [f"diagnosis.causal.sweep.{k}" for k in field(line, "diagnosis.causal.sweep", dict, place)]
        kinds = field(line, "diagnosis.causal.interventions", dict, place)
        packed += [f"diagnosis.causal.interventions.{kind}.correct" for kind in kinds]
        for name, numbers in BY_STATE.items():
            for i, each in enumerate(field(line, name, list, place)):
                asked = [*numbers, *(number for number in EXCHANGED if isinstance(each, dict) and number in each)]
                if not all(math.isfinite(field(each, number, NUMBER, f"{place}, {name}, {i}")) for number in asked):
                    raise UserError(f"{place}: field {name!r} must have finite numbers")
    for name in packed:
        try:
            unpack(field(line, name, str, place))
        except UserError as e:
            raise UserError(str(e) if str(e).startswith(place) else f"{place}: field {name!r}: {e}") from None
    for name in ("result", "result.pooled", *(["diagnosis.causal"] if "diagnosis" in line else [])):
        check_clusters(line, name, place)
    if "levels" in line["result"]:
        check_levels(line, place)


def check_clusters(line: dict, name: str, place: str) -> None:
    """Raise UserError where the clusters in a part of a record are not those of its items."""
    part = line
    for each in name.split("."):
        part = part[each]
    if "clusters" not in part:
        return
    n = len(unpack(part["intact" if name == "diagnosis.causal" else "correct"]))
    try:
        found = len(unpack_clusters(field(line, f"{name}.clusters", str, place)))
    except UserError as e:
        raise UserError(str(e) if str(e).startswith(place) else f"{place}: field '{name}.clusters': {e}") from None
    if found != n:
        raise UserError(f"{place}: field '{name}.clusters' has {found} items, the results {n}")


def check_levels(line: dict, place: str) -> None:
    """Raise UserError for results by level that are no such results, or not those that were pooled."""
    levels = field(line, "result.levels", dict, place)
    for level in levels:
        if not level.isdecimal():
            raise UserError(f"{place}: field 'result.levels' must be by level, got {level!r:.40}")
        field(line, f"result.levels.{level}.n", int, place)
        field(line, f"result.levels.{level}.accuracy", NUMBER, place)
    here, there = sum(pooled_sizes(levels).values()), len(unpack(line["result"]["pooled"]["correct"]))
    if here != there:
        raise UserError(f"{place}: field 'result.pooled.correct' has {there} results, result.levels says {here}")


def add(folder: Path, line: dict, file: str = FILE) -> None:
    """Add a line to a file, sorted by id. A kill leaves the old file or the new one.

    An existing diagnosis of the run is kept unless the line has one. Complete lines that `read` leaves out are kept.
    """
    with exclusive_lock(folder / "runs.lock", wait=True):
        lines, _, others = _read(folder / file)
        diagnosed = {k: v for k, v in lines.get(line["id"], {}).items() if k == "diagnosis"}
        lines[line["id"]] = diagnosed | line
        texts = [json.dumps(lines[id], sort_keys=True) for id in sorted(lines)] + others
        write_text(folder / file, "".join(text + "\n" for text in texts))
