"""The records behind the paper: one JSON line a run, per-item results packed. Tables and figures read these alone."""

import json
import zlib
from base64 import b85decode, b85encode
from pathlib import Path

from train.config import id_of
from train.record import alone, write_text

FILE = "runs.jsonl"


def pack(correct: list[int]) -> str:
    """0/1 results, one a problem, as text: their number, and the compressed bits."""
    bits = int("".join(map(str, correct)) or "0", 2).to_bytes(-(-len(correct) // 8), "big")
    return f"{len(correct)}:{b85encode(zlib.compress(bits, 9)).decode()}"


def unpack(text: str) -> list[int]:
    """The inverse of `pack`."""
    n, _, packed = text.partition(":")
    bits = int.from_bytes(zlib.decompress(b85decode(packed)), "big")
    return [int(b) for b in f"{bits:0{n}b}"[-int(n) :]] if int(n) else []


def of_run(home: Path) -> dict:
    """The line of a finished run, from its folder."""
    config, env, result = (json.loads((home / f"{name}.json").read_text()) for name in ("config", "env", "result"))
    result["correct"] = pack(result["correct"])
    for swept in result["sweep"].values():
        swept["correct"] = pack(swept["correct"])
    diagnosis = home / "diagnosis.json"
    found = {"diagnosis": shortened(json.loads(diagnosis.read_text()))} if diagnosis.exists() else {}
    about = {name: env[name] for name in ("git", "packages", "python", "cpu", "data")}
    return {"id": home.name, "config": config, "env": about | {"changed": bool(env["diff"])}, "result": result} | found


def shortened(diagnosis: dict) -> dict:
    """A diagnosis with its results item by item packed, and without the problems' keys."""
    causal = {k: v for k, v in diagnosis["causal"].items() if k != "keys"}
    causal["intact"] = pack(causal["intact"])
    causal["sweep"] = {k: pack(v) for k, v in causal["sweep"].items()}
    for each in causal["interventions"].values():
        each["correct"] = pack(each["correct"])
    return {**diagnosis, "causal": causal}


def read(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """Lines by run id, and what was left out and why: half a line, or one whose id is not that of its config."""
    lines, left_out = {}, []
    path = folder / FILE
    for i, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            id, config, _ = line["id"], line["config"], line["result"]["main"]
        except (ValueError, KeyError, TypeError):
            left_out.append(f"{path}, line {i}: not a whole record")
            continue
        if id != id_of(config):
            left_out.append(f"{path}, line {i}: run {id} has another config than its id says ({id_of(config)})")
        else:
            lines[id] = line
    return lines, left_out


def add(folder: Path, line: dict) -> None:
    """Put a line among the others, sorted by id: the file is the old one or the new one, whatever happens.

    A diagnosis that is there already stays unless the line has one.
    """
    with alone(folder / "runs.lock", wait=True):
        lines = read(folder)[0]
        kept = {k: v for k, v in lines.get(line["id"], {}).items() if k == "diagnosis"}
        lines[line["id"]] = kept | line
        write_text(folder / FILE, "".join(json.dumps(lines[id], sort_keys=True) + "\n" for id in sorted(lines)))
