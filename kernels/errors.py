"""The error of what a user can mend. It stands on the lowest floor, so that every floor can raise it."""


class UserError(ValueError):
    """Something was asked that cannot be done, and whoever asked can ask otherwise.

    A command prints its message as one line and exits with code 2. Every other exception is a bug of ours, and shows
    its traceback. It is a ValueError for those who call us from Python.
    """
