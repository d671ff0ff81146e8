"""The process around a training run: memory and threads, SIGTERM, and the environment that launchers make."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernels.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)
PATIENCE = 8.0  # seconds from SIGTERM to the end: schedulers send SIGKILL after ten or thirty


def configure_cpu_process() -> None:
    """Use one thread, and keep freed memory for the next tensor.

    glibc returns large blocks to the system at once, and every page of the next tensor is faulted in anew, which takes
    a quarter of a training step at GPT-2's size. Without glibc, memory is left as it is. Where shapes vary what is kept
    grows: `give_back_memory` bounds it.
    """
    import torch

    torch.set_num_threads(1)
    if (libc := _glibc()) is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


_looked = 0.0  # when `give_back_memory` last looked


def give_back_memory() -> None:
    """Return freed memory to the system where less than a quarter of the machine's is left; looks once a second.

    Tensors of ever new sizes leave holes that no later one fills: processes that trained a model of 135 million
    parameters on ragged text came to 11 to 13 GB each and were killed where two of them shared 24 (paper/LOG.md).
    """
    global _looked
    if time.monotonic() < _looked + 1:
        return
    _looked = time.monotonic()
    from train.memory import available, machine

    left, has = available(), machine()
    if left is not None and has is not None and left < has / 4 and (libc := _glibc()) is not None:
        libc.malloc_trim(0)


class Stopped(KeyboardInterrupt):
    """Raised after SIGTERM. It is a KeyboardInterrupt, and is handled wherever ^C is."""

    code = 128 + signal.SIGTERM


class _Sigterm:
    """Whether SIGTERM has come, and whether the process is in an update that it should finish first."""

    received, in_update = False, False
    timer: threading.Timer | None = None  # ends a process that does not end itself


@contextmanager
def heeding_sigterm(*also: signal.Signals) -> Iterator[None]:
    """Inside, SIGTERM, and other signals that are given, raise `Stopped`, unless `amid_update` delays it.

    It does nothing outside of the main thread, because Python delivers signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, _on_sigterm) for each in (signal.SIGTERM, *also)}
    _Sigterm.received = False
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _Sigterm.received = False  # what comes after is not told to end
        if _Sigterm.timer is not None:
            _Sigterm.timer.cancel()


def _on_sigterm(signum, frame) -> None:
    first, _Sigterm.received = not _Sigterm.received, True
    if not _Sigterm.in_update:
        raise Stopped
    if first:  # an update that takes longer is abandoned; the run goes on from its last checkpoint
        _Sigterm.timer = threading.Timer(PATIENCE, os._exit, (Stopped.code,))
        _Sigterm.timer.daemon = True
        _Sigterm.timer.start()


@contextmanager
def amid_update() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM only makes the yielded function return True, so that an update can end; `Stopped` comes after."""
    _Sigterm.in_update = True
    try:
        yield lambda: _Sigterm.received
    finally:
        _Sigterm.in_update = False
    if _Sigterm.received:
        raise Stopped


def prepare_launch() -> None:
    """Set what torch needs under a launcher before it is imported; warn where accelerate launch started one process."""
    from latent.cli import launched

    if launched():  # silences DDP's warning about find_unused_parameters, which we need
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    elif "RANK" not in os.environ and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        print(
            "accelerate launch has started one process, for it sees no GPUs: for several give it --multi_gpu, which "
            "works on a CPU as well, or use torchrun --nproc_per_node N",
            file=sys.stderr,
        )


def runs_on(device: str) -> str:
    """The kind of device that `device` comes to here: "cpu", "cuda", ..."""
    import torch

    accelerator = None if needs_cpu(device) else torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def needs_cpu(device: str) -> bool:
    """Whether to train on the CPU: where `device` says so, without a GPU, and for several processes on MPS.

    Raises UserError unless `device` is "auto" or "cpu": which GPU is the launcher's to say (CUDA_VISIBLE_DEVICES).
    """
    if device not in ("auto", "cpu"):
        raise UserError(f"device must be auto or cpu, got {device!r} (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    import torch

    from latent.cli import launched

    if device == "cpu" or not torch.accelerator.is_available():
        return True
    if launched() is None:
        return False
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None  # as `is_available` said
    return accelerator.type == "mps"
