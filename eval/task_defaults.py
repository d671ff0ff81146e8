"""Settings that our lm-eval tasks bring along for models of other makes.

lm-eval hands a request's settings on without saying who set them. A checkpoint of ours knows how long its answers are,
and ignores a task's default; what the user asks for still holds. The types in this file tell the two apart.
"""


class TaskDefault:
    """A setting that comes from one of our tasks, and that no user asked for."""


class DefaultNumber(TaskDefault, int):
    """A default of `max_gen_toks`."""


class DefaultStops(TaskDefault, list):
    """Default stop strings, for `until`."""
