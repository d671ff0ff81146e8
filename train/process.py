"""What a process that trains needs around it: memory before its first tensor, an end in order, a launcher's needs."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)
PATIENCE = 8.0  # seconds from SIGTERM to the end: what sends it sends SIGKILL after ten or thirty


def settle() -> None:
    """One thread, and freed memory kept for the next tensor.

    glibc gives large blocks back to the system at once and faults every page in again when the next tensor asks for
    them: a quarter of a training step at GPT-2's size. Elsewhere than under glibc nothing is changed.
    """
    import torch

    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)


class Stopped(KeyboardInterrupt):
    """The process was told to end by SIGTERM. It passes wherever a ^C would."""

    code = 128 + signal.SIGTERM


class _Ending:
    """Whether this process was told to end, and whether it is amid something that it should finish first."""

    asked, amid = False, False


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped`, unless `amid_update` puts that off. In another thread than the main one
    nothing is changed: Python takes signals in that one alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _told_to_end)
    _Ending.asked = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told_to_end(signum, frame) -> None:
    first, _Ending.asked = not _Ending.asked, True
    if not _Ending.amid:
        raise Stopped
    if first:  # an update that takes longer is given up: the last checkpoint is there
        timer = threading.Timer(PATIENCE, os._exit, (Stopped.code,))
        timer.daemon = True
        timer.start()


@contextmanager
def amid_update() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM only makes what is yielded say True, for a good moment to be chosen; at the end it is raised."""
    _Ending.amid = True
    try:
        yield lambda: _Ending.asked
    finally:
        _Ending.amid = False
    if _Ending.asked:
        raise Stopped


def prepare_launch() -> None:
    """What a launcher's environment needs before torch is there."""
    from eval.cli import launched

    if launched():  # DDP warns of looking for parameters without a gradient, which some processes have in some updates
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    elif "RANK" not in os.environ and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        print(
            "accelerate launch has started one process, for it sees no GPUs: for several give it --multi_gpu, which "
            "works on a CPU as well, or use torchrun --nproc_per_node N",
            file=sys.stderr,
        )


def needs_cpu(device: str) -> bool:
    """Whether to train on the CPU: as told, or for want of a GPU, or of one that several processes can use."""
    import torch

    from eval.cli import launched

    if device == "cpu" or not torch.accelerator.is_available():
        return True
    if launched() is None:
        return False
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None  # for one is available
    return accelerator.type == "mps"
