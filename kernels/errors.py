"""The error of what a user can mend. It stands on the lowest floor, so that every floor can raise it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# full, forbidden, or a name that no file system takes: no bug of ours
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
# how torch, its libraries and C++ say that no memory is left, where the type of the error does not
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


class UserError(ValueError):
    """Something was asked that cannot be done, and whoever asked can ask otherwise.

    A command prints its message as one line and exits with code 2. Every other exception is a bug of ours, and shows
    its traceback. It is a ValueError for those who call us from Python.
    """


def unwritten(it: object, verb: str) -> UserError:
    """The error of a class that lacks what each of its kind must write."""
    return UserError(f"{type(it).__name__} must write `{verb}`")


def mendable(error: BaseException) -> str | None:
    """The line to tell a user of an error that is theirs to mend, or their machine's; None of a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MACHINE:
        return str(error)
    if out_of_memory(error):
        return f"out of memory: less at once needs less{_said(error)}"
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU or the machine has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Within, running out of memory is a UserError that names `what` was being done and the flags that need less."""
    try:
        yield
    except Exception as e:
        if isinstance(e, UserError) or not out_of_memory(e):
            raise
        raise UserError(f"out of memory in {what}: {remedy}{_said(e)}") from e


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def said(error: BaseException) -> str:
    """The same, with its type where that says what the message does not, as in KeyError: 'foo'."""
    first = first_line(error)
    return first if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {first}"


def _said(error: BaseException) -> str:
    """The first line of an error's own message, in brackets."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f" ({first})" if first else ""
