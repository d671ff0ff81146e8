"""Which implementation of an op runs: `auto` takes Triton on a GPU and torch elsewhere; a named one runs or raises.

The setting is the argument `impl` of an op, else the environment variable LATENT_KERNELS, else `auto`. With
TRITON_INTERPRET=1 the Triton kernels run on CPU tensors too, slowly: that is how they are tested without a GPU.
"""

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import util
from typing import Literal

import torch
from torch import Tensor

from kernels.errors import UserError

Impl = Literal["auto", "torch", "triton"]
IMPLS = ("auto", "torch", "triton")
PATIENCE = 2.0  # seconds for which a caller waits for a kernel
MANY = 64  # rows beyond which no kernel has larger tiles
log = logging.getLogger("kernels")
_told: set[str] = set()
_failed: dict[tuple[str, str], str] = {}  # by op and kind of input: why its kernels did not compile


def asked(impl: Impl | None) -> str:
    """The setting: an op's own, the environment's, or `auto`. Raises UserError for anything else than those known."""
    found = impl or os.environ.get("LATENT_KERNELS") or "auto"
    if found not in IMPLS:
        raise UserError(f"kernels must be one of {', '.join(IMPLS)}, got {found!r}")
    return found


def choose(
    op: str, impl: Impl | None, x: Tensor, unless: str | None = None, called: bool = True
) -> Literal["torch", "triton"]:
    """The implementation to run for an input like `x`; not `called`: for any input on its device.

    `unless` says why the Triton kernel cannot serve this call: then `auto` takes torch and logs the reason once, and
    `triton` raises UserError, as it does without a GPU and for tensors that are no floats.
    """
    wanted = asked(impl)
    if wanted == "torch":
        return "torch"
    if wanted == "auto" and not on_gpu(x):
        return "torch"
    failed = _failed.get((op, kind_of(x))) if called and _failed else None
    unless = not_floats(x) or unless or unavailable(x.device) or failed
    if unless is None:
        return "triton"
    _decline(op, wanted, unless)
    return "torch"


def on_gpu(x: Tensor) -> bool:
    """Whether `auto` is to think of kernels at all."""
    return x.is_cuda


def kind_of(x: Tensor) -> str:
    """What kernels are compiled anew for: the dtype, the width, and the size of a tile of rows."""
    rows, size = x.shape[:-1].numel(), 1
    while size < min(rows, MANY):
        size *= 2
    many = f"up to {size} rows" if rows <= MANY else f"more than {MANY} rows"
    return f"{str(x.dtype).removeprefix('torch.')} of width {x.shape[-1]}, {many}"


def _decline(op: str, wanted: str, unless: str) -> None:
    """Say once that torch is used, or raise UserError where Triton was asked for."""
    if wanted == "triton":
        raise UserError(f"{op}: Triton asked for, but {unless}")
    if (told := f"{op}: {unless}; plain torch is used") not in _told:
        _told.add(told)
        log.warning(told)


class launching:
    """Within, the kernels of an op are launched, on the GPU of `x`.

    One that does not compile or does not fit is no error under `auto`: it is logged, what follows the block is done,
    and inputs like `x` (`kind_of`) go to torch from then on. Where Triton was asked for it is a UserError.
    """

    def __init__(self, op: str, impl: Impl | None, x: Tensor):
        self.op, self.wanted, self.kind = op, asked(impl), kind_of(x)
        # a kernel starts on the current GPU, which need not be the tensors'
        self.gpu = torch.cuda.device(x.device) if x.is_cuda else nullcontext()

    def __enter__(self) -> None:
        self.gpu.__enter__()

    def __exit__(self, kind, error, trace) -> bool:
        self.gpu.__exit__(kind, error, trace)
        if error is None or not _is_compilers(error):
            return False
        said = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        why = _failed[self.op, self.kind] = f"its kernel for {self.kind} does not compile here ({said.strip():.200})"
        _decline(self.op, self.wanted, why)
        return True


_jobs: dict[tuple, "_Job"] = {}  # by op and variant: the kernels that compile long


class _Job(threading.Thread):
    """A kernel that is compiled beside what goes on, for the GPU of `x`; `error` says why it could not be.

    No daemon: a process that ends waits for it, and leaves Triton's cache on disk filled for the next one.
    """

    def __init__(self, compile: Callable[[], None], x: Tensor):
        super().__init__()
        self.compile = compile
        self.error: Exception | None = None
        self.gpu = torch.cuda.device(x.device) if x.is_cuda else nullcontext()

    def run(self) -> None:
        try:
            with self.gpu:  # the current one is a thread's own
                self.compile()
        except Exception as e:
            self.error = e
        del self.compile  # and the tensors that it holds


def compiled(op: str, impl: Impl | None, x: Tensor, variant: Hashable, compile: Callable[[], None]) -> bool:
    """Whether the kernel of a variant can be launched; for a kernel that takes a compiler long, within `launching`.

    Under `auto` a thread compiles it, and torch serves until it is there; one that is in Triton's cache on disk is
    waited for. Where Triton was asked for it is compiled when it is launched. Raises what the compiler raised.
    """
    if asked(impl) == "triton":
        return True
    key = op, x.device, x.dtype, variant
    if key not in _jobs:
        _jobs[key] = _Job(compile, x)
        _jobs[key].start()
        _jobs[key].join(PATIENCE)
    job = _jobs[key]
    if job.is_alive():
        _decline(op, "auto", f"its kernel for {kind_of(x)} is being compiled, and serves once it is there")
        return False
    if job.error is not None:
        raise job.error
    return True


def _is_compilers(error: BaseException) -> bool:
    """Whether an error says that a kernel cannot be compiled, or takes more than the GPU has."""
    from triton.errors import TritonError

    return isinstance(error, TritonError) or "PassManager::run failed" in str(error)


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


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast multiplies in on a device, None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


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
