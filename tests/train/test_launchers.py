"""How several processes begin and end: two nodes that meet, a process that dies, configurations that are refused."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.errors import UserError
from tests.train import workers
from tests.train.test_processes import assert_same, run_of, train
from train import run as runs
from train.engine import Engine

pytestmark = pytest.mark.slow  # launchers

LIMIT = 60  # seconds in which all have ended when one has: the promise, of which a tenth is needed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    rows = [{"question": f"Say {i}", "steps": ["<<1+1=2>>"] * (i % 4), "answer": str(i)} for i in range(40)]
    path = tmp_path_factory.mktemp("launched") / "rows.json"
    path.write_text(json.dumps(rows))
    return str(path)


def test_two_nodes_train_what_one_process_does_and_end_with_the_error_of_the_one_that_fails(data, tmp_path):
    """Two agents of torchrun that find each other, a process each; the error is printed once, on one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
             "--rdzv_backend", "c10d", "--rdzv_endpoint", place]  # fmt: skip
    command = [*agent, "-m", "tests.train.two_nodes", str(tmp_path), data]
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    one = train(run_of("sim", data), tmp_path / "one")
    said = "".join(node.communicate(timeout=4 * LIMIT)[0] for node in nodes)
    assert all(node.returncode for node in nodes)
    assert said.count("error: this process has failed") == 1, said[-3000:]
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=False), one)


def dies(folder: Path, data: str, how: str) -> None:
    """A run in which process 1 ends amid the third update, without a word to the others."""
    rank = int(os.environ["RANK"])

    def say(event):
        if rank == 1 and event["done"] == 2:
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(9)

    runs.execute(run_of("sim", data), folder / "runs", say, "cpu")


@pytest.mark.parametrize("how, sharded", [("killed", False), ("ended", False), ("killed", True)])
def test_a_process_that_dies_ends_the_others(how, sharded, data, tmp_path):
    """With no launcher that would end them."""
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
    zero, one = workers.end(workers.start(2, dies, tmp_path, data, how, **fsdp), LIMIT)
    assert one == (-signal.SIGKILL if how == "killed" else 9)
    assert zero not in (0, None), "process 0 did not end by itself with an error"
    assert "another of the 2 processes has ended, so process 0 ends, too" in (tmp_path / "failed-0").read_text()


REFUSED = {
    "mixed_precision is bf16": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "gradient_accumulation_steps is not 1": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    "asks for FSDP1": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
    "asks for torch.compile": {"ACCELERATE_DYNAMO_BACKEND": "EAGER"},
}


def refuses(folder: Path, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Engine.start("cpu")
    torch.distributed.barrier()  # before the first of them is gone


@pytest.mark.parametrize("said", REFUSED)
def test_a_configuration_that_would_change_a_run_is_refused(said, tmp_path):
    """It is in accelerate's file and in no run's id."""
    workers.run(2, refuses, tmp_path, said, **REFUSED[said])
