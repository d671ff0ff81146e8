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

    Never narrower than Wilson's for N items, however many the seeds: where nearly all are right, or wrong, hardly
    anything is left to resample.
    """
    correct_SN = np.atleast_2d(np.asarray(correct_SN))
    low, high = bootstrap(correct_SN, n_boot)
    n = correct_SN.shape[1]
    least, most = wilson(round(correct_SN.mean() * n), n)
    return min(low, least), max(high, most)


def resampled(x_SN: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """Means (n_boot,) over resampled seeds and items; of 0 and 1, or of their differences, never beyond what can be."""
    from scipy.special import stdtrit

    x_SN = np.atleast_2d(np.asarray(x_SN, dtype=np.float64))
    rng = np.random.default_rng(seed)
    s, n = x_SN.shape
    counts = np.isin(x_SN, (-1, 0, 1)).all() and n > 1
    least, most = (-1.0 if x_SN.min() < 0 else 0.0, 1.0) if counts else (-np.inf, np.inf)
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
    """The difference a - b between two arms of S seeds on the same N items: the bootstrap's interval, and Student's p.

    Seeds are paired, as they share data order. The variance of the mean is that of the seeds' means and that of the
    items' means, each over its number, as both are drawn (as in Owen 2007, Ann. Appl. Stat. 1:386); the
    degrees of freedom are Satterthwaite's (1946, Biometrics 2). Where no item differs in any seed, the interval is that
    of a rate that was not seen in N items, to either side.
    """
    from scipy.special import stdtr

    diff_SN = np.atleast_2d(np.asarray(a_SN, dtype=np.float64)) - np.atleast_2d(np.asarray(b_SN, dtype=np.float64))
    mean, sizes = float(diff_SN.mean()), diff_SN.shape
    if not diff_SN.any():
        most = wilson(0, sizes[1])[1] if sizes[1] > 1 else 0.0
        return Difference(0.0, -most, most, 1.0)
    low, high = np.quantile(resampled(diff_SN, n_boot, seed), [0.025, 0.975])
    parts = [(diff_SN.mean(1 - axis).var(ddof=1) / n, n - 1) for axis, n in enumerate(sizes) if n > 1]
    variance = sum(v for v, _ in parts)
    if not variance:
        return Difference(mean, float(low), float(high), 0.0)
    degrees = variance**2 / sum(v**2 / df for v, df in parts)
    return Difference(mean, float(low), float(high), 2 * float(stdtr(degrees, -abs(mean) / variance**0.5)))


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
