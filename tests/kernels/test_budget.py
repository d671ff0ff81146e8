"""Every kernel compiled for four architectures, without a GPU, held to the committed table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from kernels import dispatch
from kernels.budget import SHAPES, TARGETS, faults, read

ROOT = Path(__file__).parent.parent.parent


def test_nothing_spills_and_nothing_takes_more_than_the_table_says():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # interpreted kernels are not compiled
    command = [
        sys.executable,
        "-m",
        "kernels.budget",
        "--check",
        "--archs",
        "sm_90",
    ]  # all four take a quarter of an hour
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_covers_every_op_shape_and_architecture():
    _, rows = read()
    ops = {p.parent.name for p in (ROOT / "kernels").glob("*/triton.py")}
    assert {r["op"] for r in rows} == ops
    assert {r["arch"] for r in rows} == set(TARGETS)
    assert {name for r in rows for name in r["shapes"].split()} == {s.name for s in SHAPES}
    assert not faults(rows)


def test_what_a_gpu_has_decides_what_is_compiled_for_it():
    device, found = torch.device("meta"), []
    for chip in (90, 80):
        with dispatch.supposed(chip):
            found.append(dispatch.capability(device))
    assert found == [90, 80] and dispatch.capability(device) == 0 == dispatch.capability(torch.device("cpu"))


def test_a_spill_is_a_fault():
    row = {"op": "x", "kernel": "k", "arch": "sm_90", "registers": 255, "spilled": 8, "shared": 0}
    assert faults([row]) == ["x k on sm_90 spills 8 bytes a thread"]
    assert "shared memory" in faults([row | {"spilled": 0, "shared": 228 * 1024}])[0]


def test_weights_of_a_loop_along_the_depth_stay_in_shared_memory():
    """No less of it than what the kernel's name says is kept; the layers' weights, not just a tile of them."""
    for row in (r for r in read()[1] if r["op"] == "recurrent_loop" and r["arch"] != "gfx942"):
        size = {k: int(v) for k, v in re.findall(r"(\w+)=(-?\d+)", row["kernel"])}
        columns = sum(size[f"{w}_c"] * size[f"{w}_kept"] for w in ("carry", "qkv", "out", "up", "down"))
        columns += size["gated"] * size["up_c"] * size["up_kept"]
        assert 2 * size["k"] * columns <= int(row["shared"]) and columns >= 16 * 30, row["kernel"]
