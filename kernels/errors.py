"""The error of what a user can mend. It stands on the lowest floor, so that every floor can raise it."""

import errno

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # full or forbidden: no bug of ours


class UserError(ValueError):
    """Something was asked that cannot be done, and whoever asked can ask otherwise.

    A command prints its message as one line and exits with code 2. Every other exception is a bug of ours, and shows
    its traceback. It is a ValueError for those who call us from Python.
    """


def mendable(error: BaseException) -> str | None:
    """The line to tell a user of an error that is theirs to mend, or their machine's; None of a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MACHINE:
        return str(error)
    text = str(error)
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text  # of torch
    if isinstance(error, MemoryError) or out_of_memory:
        first = next(iter(text.strip().splitlines()), "")
        return f"not enough memory: less at once needs less{f' ({first})' if first else ''}"
    return None
