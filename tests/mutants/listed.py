"""The mutants: what is changed, and the tests that should notice.

In the files in_*.py stand (file, pytest ids, ((what is wrong then, old text, new text), ...)) each. The tests are the
narrowest that should fail.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import in_eval, in_kernels, in_latent, in_sequence, in_train

ROOT = Path(__file__).parent.parent.parent
AREAS = ("train/", "latent/methods/", "eval/environments/", "eval/stats.py")


@dataclass(frozen=True)
class Mutant:
    """`old`, which is in a file exactly once, becomes `new`; `tests` are the pytest ids that should notice."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def area(self) -> str:
        return next((area for area in AREAS if self.file.startswith(area)), "others")

    def applied(self, root: Path = ROOT) -> str:
        """The file's text with the change. Raises ValueError where the old text is not there exactly once."""
        before = (root / self.file).read_text(encoding="utf-8")
        times = before.count(self.old)
        if times != 1:
            raise ValueError(f"{self}: its old text is there {times} times")
        return before.replace(self.old, self.new)

    def text(self, root: Path = ROOT) -> str:
        """`applied`; raises ValueError where that is no Python any more, too."""
        after = self.applied(root)
        if self.file.endswith(".py"):
            try:
                ast.parse(after)
            except SyntaxError as e:
                raise ValueError(f"{self}: it is no Python: {e}") from None
        return after

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


GROUPS = (*in_train.GROUPS, *in_latent.GROUPS, *in_sequence.GROUPS, *in_eval.GROUPS, *in_kernels.GROUPS)
MUTANTS = [Mutant(file, *each, tuple(tests.split())) for file, tests, changes in GROUPS for each in changes]
