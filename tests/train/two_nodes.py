"""What `test_launchers` starts under torchrun: a run on all processes, and then one of them fails while all train."""

import os
import sys
from pathlib import Path

import torch

from kernels.errors import UserError
from latent.cli import guarded
from tests.train.test_processes import run_of, train, trainer_of
from train import distill


def body() -> None:
    folder, data, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
    torch.save(train(run_of("sim", data, 3), folder / str(rank)), folder / f"{rank}.pt")

    def say(event):
        if rank == 1 and event["done"] == 2:
            raise UserError("this process has failed")

    trainer, env, _ = trainer_of(run_of("sim", data), folder / f"again-{rank}", say)
    distill.fit(trainer, env)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(body))
