"""What a process that trains needs around it: memory before its first tensor, an end in order, its fellows."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
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


def needs_cpu(device: str) -> bool:
    """Whether to train on the CPU: as told, or for want of a GPU, or of one that several processes can use."""
    import torch

    from eval.cli import launched

    if device == "cpu" or not torch.accelerator.is_available():
        return True
    return launched() is not None and torch.accelerator.current_accelerator().type == "mps"


def on_main(accelerator, work: Callable[[], T]) -> T:
    """What process 0 does for all of them, once: they get what comes of it, or its error, and end as it does."""
    value, error = None, None
    if accelerator.is_main_process:
        try:
            value = work()
        except Exception as e:
            error = e
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        value, error = broadcast_object_list([value, error])
    if error is not None:
        raise error
    return value


@contextmanager
def while_one_works(accelerator) -> Iterator[None]:
    """What process 0 does alone, for however long: the others wait at the end, past the backend's timeout.

    A process that ends takes the others with it, as in any collective call.
    """
    group = None
    if accelerator.num_processes > 1:
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    yield
    if group is not None:
        dist.barrier(group)
