"""Settings of our tasks that are only the usual ones: they hold for models that do not know better.

lm-eval hands a request's settings on without saying who set them. A checkpoint of ours knows how long its answers are,
and keeps to that unless somebody asks for something else; these types tell the two apart.
"""


class Usual:
    """A setting that a task has, and nobody asked for."""


class Number(Usual, int):
    """A number, for `max_gen_toks`."""


class Words(Usual, list):
    """Stop strings, for `until`."""
