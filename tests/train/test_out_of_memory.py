"""Where memory runs out, a command says so in one line: what it was doing, and which flags need less."""

from pathlib import Path

import pytest
import torch

from kernels.errors import UserError, memory_for, mendable
from tests.helpers import python

# A run that fits loads all that is imported; after it the process may grow by 200 MiB of addresses.
SCRIPT = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from latent.cli import guarded
from eval.environments import Cups
from latent.config import ModelConfig
from latent.methods import Sim
from train.config import Judge, RLVR, Run, SFT
from train.run import execute

root, kind = Path(sys.argv[1]), sys.argv[2]
fits = Run(Cups(cups=5), ModelConfig(n_layer=2, n_embd=64), Sim(n_latent=2, step_tokens=32), SFT(steps=2, batch=4),
           Judge(items=8, level_items=0))
execute(fits, root, device="cpu")
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 2**20, resource.RLIM_INFINITY))
large = {
    "sft": replace(fits, train=SFT(steps=2, batch=8192)),
    "rlvr": replace(fits, init=fits.id, train=RLVR(steps=2, batch=64, group=512)),
    "judge": replace(fits, model=ModelConfig(n_embd=256), judge=Judge(items=2048, level_items=0, batch=2048)),
}[kind]
sys.exit(guarded(lambda: execute(large, root, device="cpu") and 0))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
@pytest.mark.parametrize(
    "kind, where, flags",
    [
        ("sft", "update 1", ["--train.micro-batch", "--train.batch", "--model.recompute"]),
        ("rlvr", "update 1", ["--train.micro-batch", "--train.batch", "--train.group", "--model.recompute"]),
        ("judge", "judging", ["--judge.batch", "--init", "--train.steps"]),
    ],
)
def test_a_process_that_may_not_grow_names_the_flags_to_change(tmp_path, kind, where, flags):
    done = python("-c", SCRIPT, tmp_path, kind)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"out of memory in {where}:" in line and "allocate" in line
    assert all(flag in line for flag in flags) and line.count("--") == len(flags)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 7.45 TiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_way_of_saying_it_is_one_line_that_says_where(error):
    said = r"^out of memory in update 3: less, please \(.*(llocat|ALLOC|memory).*\)$"
    with pytest.raises(UserError, match=said), memory_for("update 3", "less, please"):
        raise error
    assert mendable(error).startswith("out of memory") and "\n" not in mendable(error)


def test_other_errors_and_our_own_pass_as_they_are():
    for error in (RuntimeError("shapes differ"), UserError("no such flag"), OSError(2, "No such file")):
        with pytest.raises(type(error)) as seen, memory_for("update 3", "less, please"):
            raise error
        assert seen.value is error
