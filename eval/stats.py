"""Intervals and tests for accuracies: Wilson, a two-level bootstrap over seeds and items, paired McNemar."""

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

Z95 = 1.959963984540054


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22); 95 % unless z says otherwise.

    Raises ValueError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"expected 0 <= hits <= n and n > 0, got {hits} of {n}")
    p, z2 = hits / n, z * z
    middle, half = p + z2 / (2 * n), z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def bootstrap(correct_SN: np.ndarray, n_boot: int = 10_000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over S training seeds and N items, both resampled.

    Seeds are drawn with replacement, then items, the same items for every seed: seeds were judged on one test set. For
    a paired difference between two methods give the difference of their matrices. A bootstrap of few seeds is too
    narrow, so the deviations of the seeds' means are widened to what Student's t has in place of the normal.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled(correct_SN, n_boot, seed), [tail, 1 - tail])
    return float(low), float(high)


def interval(correct_SN: np.ndarray, n_boot: int = 10_000) -> tuple[float, float]:
    """A 95 % interval of an accuracy over S training seeds and N items, 0 or 1 each: `bootstrap`'s.

    Where all are right, or all wrong, there is nothing to resample: then Wilson's for N items, however many the seeds.
    """
    correct_SN = np.atleast_2d(np.asarray(correct_SN))
    if correct_SN.min() != correct_SN.max():
        return bootstrap(correct_SN, n_boot)
    n = correct_SN.shape[1]
    return wilson(n if correct_SN.all() else 0, n)


def resampled(x_SN: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """Means (n_boot,) over resampled seeds and items, never beyond the range of the values."""
    from scipy.special import stdtrit

    x_SN = np.atleast_2d(np.asarray(x_SN, dtype=np.float64))
    rng = np.random.default_rng(seed)
    s, n = x_SN.shape
    least, most = x_SN.min(), x_SN.max()
    if s > 1:
        wider = np.sqrt(s / (s - 1)) * stdtrit(s - 1, 0.975) / Z95
        x_SN = x_SN + (wider - 1) * (x_SN.mean(1, keepdims=True) - x_SN.mean())
    means = np.empty(n_boot)
    for i in range(n_boot):
        seeds_S = np.bincount(rng.integers(s, size=s), minlength=s)
        items_N = np.bincount(rng.integers(n, size=n), minlength=n)
        means[i] = seeds_S @ x_SN @ items_N / (s * n)
    return means.clip(least, most)


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies: its mean, its 95 % interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def paired(a_SN, b_SN, n_boot: int = 10_000, seed: int = 0) -> Difference:
    """The difference a - b between two arms of S seeds on the same N items, by the two-level bootstrap.

    Seeds are paired, as they share data order. The p-value is twice the smaller share of resampled means on one side
    of zero, zero included, with one added to both counts (Davison and Hinkley 1997, sec. 4.2).
    """
    diff_SN = np.atleast_2d(np.asarray(a_SN, dtype=np.float64)) - np.atleast_2d(np.asarray(b_SN, dtype=np.float64))
    means = resampled(diff_SN, n_boot, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(float(diff_SN.mean()), float(low), float(high), min(1.0, 2 * (int(tail) + 1) / (n_boot + 1)))


def holm(p: list[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def mcnemar(a, b) -> float:
    """Exact two-sided McNemar p-value for two models on the same items, given as lists of right and wrong.

    Under the null the items on which just one is right split evenly (McNemar 1947, Psychometrika 12).
    """
    if len(a) != len(b):
        raise ValueError(f"expected results on the same items, got {len(a)} and {len(b)}")
    only_a = sum(x and not y for x, y in zip(a, b))
    only_b = sum(y and not x for x, y in zip(a, b))
    n = only_a + only_b
    tail = sum(comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)
