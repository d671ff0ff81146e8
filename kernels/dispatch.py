"""Which implementation of an op runs: `auto` takes Triton on a GPU and torch elsewhere; a named one runs or raises.

The setting is the argument `impl` of an op, else the environment variable LATENT_KERNELS, else `auto`. With
TRITON_INTERPRET=1 the Triton kernels run on CPU tensors too, slowly: that is how they are tested without a GPU.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import util
from typing import Literal

import torch
from torch import Tensor

from kernels.errors import UserError

Impl = Literal["auto", "torch", "triton"]
IMPLS = ("auto", "torch", "triton")
log = logging.getLogger("kernels")
_told: set[str] = set()


def asked(impl: Impl | None) -> str:
    """The setting: an op's own, the environment's, or `auto`. Raises UserError for anything else than those known."""
    found = impl or os.environ.get("LATENT_KERNELS") or "auto"
    if found not in IMPLS:
        raise UserError(f"kernels must be one of {', '.join(IMPLS)}, got {found!r}")
    return found


def choose(op: str, impl: Impl | None, x: Tensor, unless: str | None = None) -> Literal["torch", "triton"]:
    """The implementation to run for tensors like `x`.

    `unless` says why the Triton kernel cannot serve this call: then `auto` takes torch and logs the reason once, and
    `triton` raises UserError, as it does without a GPU.
    """
    wanted = asked(impl)
    if wanted == "torch":
        return "torch"
    if wanted == "auto" and not x.is_cuda:
        return "torch"
    unless = unless or unavailable(x.device)
    if unless is None:
        return "triton"
    if wanted == "triton":
        raise UserError(f"{op}: Triton asked for, but {unless}")
    if (told := f"{op}: {unless}; plain torch is used") not in _told:
        _told.add(told)
        log.warning(told)
    return "torch"


def unavailable(device: torch.device) -> str | None:
    """Why no Triton kernel can run on a device; None if one can."""
    if device.type in ("cuda", "meta") or interpreted():  # meta: tensors without data, to see what would be launched
        return None if find_spec("triton") else "Triton is not installed"
    return f"the tensors are on {device.type}, not on a GPU"


_supposed = 0  # compute capability of the meta device


def capability(device: torch.device) -> int:
    """The compute capability of an NVIDIA GPU, 90 for 9.0; 0 of any other device.

    On the meta device, where launches are only looked at, it is what `supposed` says.
    """
    if device.type == "meta":
        return _supposed
    if device.type != "cuda" or torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def supposed(capability: int) -> Iterator[None]:
    """Within, tensors without data are on a GPU of this compute capability."""
    global _supposed
    before, _supposed = _supposed, capability
    try:
        yield
    finally:
        _supposed = before


@cache
def find_spec(name: str) -> bool:
    """Whether a package is installed."""
    return util.find_spec(name) is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def not_floats(x: Tensor) -> str | None:
    """Why kernels that compute in fp32 cannot take `x`; None if they can."""
    if x.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return None
    return f"it computes in fp32 and takes fp32, bf16 or fp16, not {x.dtype}"


def rows(x: Tensor) -> Tensor:
    """`x` with a contiguous last dimension, copied if it has none."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def expect(op: str, name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor | None = None) -> None:
    """Raise ValueError unless `x` has the shape (None = any size) and lies on the device of `like`, in its dtype."""
    fits = x.dim() == len(shape) and all(want in (None, got) for got, want in zip(x.shape, shape))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{op}: {name} must have shape ({wanted}), got {tuple(x.shape)}")
    if like is not None and (x.device != like.device or x.dtype != like.dtype):
        raise ValueError(f"{op}: {name} must be {like.dtype} on {like.device}, got {x.dtype} on {x.device}")
