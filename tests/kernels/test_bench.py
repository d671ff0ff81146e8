import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import report
from kernels.bench_cases import planned

pytestmark = pytest.mark.slow  # in Triton's interpreter

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "kernels.bench"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: there is no GPU to measure on\n")


def test_the_readme_is_what_the_tables_say():
    assert report.README.read_text() == report.text(), "run python -m kernels.bench --readme"


def test_a_dry_run_finds_every_arm_right():
    """Each op's kernel and each rival, transformers' layers with our weights among them, against the definition."""
    done = subprocess.run(
        [sys.executable, "-m", "kernels.bench", "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ops = {line.split()[0] for line in done.stdout.splitlines()}
    assert ops == {p.op for p in planned()} and done.stdout.count("hf ") == 2
