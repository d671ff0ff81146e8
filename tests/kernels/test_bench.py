import csv
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import bench, report
from kernels.bench_cases import planned
from tests.helpers import ROOT, python

pytestmark = pytest.mark.slow  # in Triton's interpreter


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = python("-m", "kernels.bench")
    assert (done.returncode, done.stderr) == (2, "error: there is no GPU to measure on\n")


def test_one_case_has_the_gpu_at_a_time():
    with Path(bench.__file__).open() as other:
        with bench.the_gpu(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert signal.alarm(0) == 0  # nor does its time limit go on


def test_a_case_that_hangs_is_ended_and_lets_go_of_the_gpu():
    hangs = "from kernels import bench; bench.LIMIT = 1\nwith bench.the_gpu():\n    while True: pass"
    done = subprocess.run([sys.executable, "-c", hangs], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGALRM
    with bench.the_gpu():
        pass


def test_what_a_table_lacks(tmp_path, monkeypatch):
    """A row counts for the GPU that it was measured on, and where the kernel was right."""
    monkeypatch.setattr(bench, "TABLE", tmp_path / "bench.csv")
    plans = planned()[:4]
    assert bench.lacking(plans, "H200") == plans
    rows = [(plans[0], "triton", "H200"), (plans[1], "torch", "H200"), (plans[2], "triton", "H100")]
    with bench.TABLE.open("w", newline="") as f:
        writer = csv.DictWriter(f, bench.FIELDS)
        writer.writeheader()
        for p, impl, gpu in rows:
            writer.writerow(
                {"op": p.op, "shape": p.shape.name, "batch": p.batch, "dtype": p.dtype, "impl": impl, "gpu": gpu}
            )
    assert bench.lacking(plans, "H200") == plans[1:] and bench.lacking(plans, "H100") == [*plans[:2], plans[3]]


def test_the_readme_is_what_the_tables_say():
    assert report.README.read_text() == report.text(), "run python -m kernels.bench --readme"


def test_a_dry_run_finds_every_arm_right():
    """Each op's kernel and each rival, transformers' layers with our weights among them, against the definition."""
    done = python("-m", "kernels.bench", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    ops = {line.split()[0] for line in done.stdout.splitlines()}
    assert ops == {p.op for p in planned()} and done.stdout.count("hf ") == 2
