"""What a process that trains on a CPU needs before its first tensor."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


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
