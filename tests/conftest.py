import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands that tests start, too: each worker has one core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import pytest

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it, and what they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
ON_ONE_WORKER = ("tests/train/test_processes.py",)  # files whose fixtures take a minute; the other tests go one by one


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests go to whichever worker is free; those of some files to one, and first, so that the others fill the rest.

    pytest-xdist's own mark for this, `xdist_group`, is passed over in silence under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in ON_ONE_WORKER else nodeid

    return Scheduling(config, log)


def pytest_collection_finish():
    """A million objects of imported modules stay as they are: no collection of garbage looks at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Or packages that look for leaks as the process ends would find them all."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
