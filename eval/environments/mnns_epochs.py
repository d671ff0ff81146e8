"""MNNS as CoT2's code has it (github.com/alperengozeten/CoT2): all sequences of digits, split by multiset with a seed,
gone through in epochs.

Multisets are shuffled in the order in which sequences first have them; the first 80 % are trained on and the others
tested, each with all of its sequences; none validate. Deviates: an epoch is shuffled by a generator of ours, and its
last batch, which is smaller there, is filled up from the next epoch.
"""

import random
from collections import defaultdict
from itertools import product

from eval.environments.base import Problem, check_split
from eval.environments.mnns import MNNS, MNNSEnvironment, digits_of, problem_of
from kernels.errors import UserError

Digits = tuple[int, ...]


class EpochsMNNS(MNNSEnvironment):
    """The problems of a split are a list, and a training batch is the next piece of a shuffled one."""

    def __init__(self, config: MNNS, seed: int):
        super().__init__(config)
        orders: dict[Digits, list[Digits]] = defaultdict(list)
        for digits in product(range(config.smallest, config.largest + 1), repeat=config.digits):
            orders[tuple(sorted(digits))].append(digits)
        multisets = list(orders)
        random.Random(seed).shuffle(multisets)
        cut = int(0.8 * len(multisets))
        self.tested = frozenset(multisets[cut:])
        parts = {"train": multisets[:cut], "valid": [], "test": multisets[cut:]}
        self.sequences = {name: [d for multiset in part for d in orders[multiset]] for name, part in parts.items()}
        self._order: tuple[tuple[int | str, int] | None, list[Digits]] = (None, [])

    def split(self, problem: Problem) -> str:
        return "test" if tuple(sorted(digits_of(problem))) in self.tested else "train"

    def problems(self, split, level, n):
        check_split(split)
        if level not in self.levels():
            raise UserError(f"no level {level}: this environment has {self.levels()}")
        return [problem_of(digits) for digits in self.sequences[split][:n]]

    def train_batch(self, seed, index, size):
        places = (divmod(i, len(self.sequences["train"])) for i in range(index * size, (index + 1) * size))
        return [problem_of(self._shuffled(seed, epoch)[i]) for epoch, i in places]

    def _shuffled(self, seed: int | str, epoch: int) -> list[Digits]:
        if self._order[0] != (seed, epoch):
            order = list(self.sequences["train"])
            random.Random(f"epoch {seed} {epoch}").shuffle(order)
            self._order = ((seed, epoch), order)
        return self._order[1]
