"""Intervals and tests for accuracies: Wilson, a two-level bootstrap, Student over seeds and items, McNemar, Holm."""

from dataclasses import dataclass
from functools import lru_cache
from math import comb, exp, hypot, log, sqrt

import numpy as np
from numpy.typing import ArrayLike

from kernels.errors import UserError

Z95 = 1.959963984540054


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22); 95 % unless z says otherwise.

    Raises UserError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n == 0:
        raise UserError(f"expected 0 <= hits <= n and n > 0, got {hits} of {n}")
    p, z2 = hits / n, z * z
    middle, half = p + z2 / (2 * n), z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def bootstrap(correct_SN: np.ndarray, n_boot: int = 10_000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over S training seeds and N items, both resampled.

    Seeds are drawn with replacement, then items, the same for every seed, because all seeds were judged on one test
    set. For a paired difference between two methods pass the difference of their matrices. A bootstrap of few seeds is
    too narrow; the deviations of the seeds' means are therefore scaled up by the ratio of Student's t quantile to the
    normal one.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled(correct_SN, n_boot, seed), [tail, 1 - tail])
    return float(low), float(high)


def interval(correct_SN: ArrayLike, n_boot: int = 10_000) -> tuple[float, float]:
    """A 95 % interval of an accuracy over S training seeds and N items, 0 or 1 each, by `bootstrap`.

    It is never narrower than Wilson's interval for N items, whatever the number of seeds: where nearly all items are
    right, or wrong, resampling shows almost no spread.
    """
    hit_SN = np.atleast_2d(np.asarray(correct_SN))
    low, high = bootstrap(hit_SN, n_boot)
    n = hit_SN.shape[1]
    least, most = wilson(round(hit_SN.mean() * n), n)
    return min(low, least), max(high, most)


def resampled(x_SN: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """Means (n_boot,) over resampled seeds and items, clipped to the possible range for 0/1 and their differences."""
    from scipy.special import stdtrit

    x_SN = np.atleast_2d(np.asarray(x_SN, dtype=np.float64))
    s, n = x_SN.shape
    counts = np.isin(x_SN, (-1, 0, 1)).all() and n > 1
    least, most = (-1.0 if x_SN.min() < 0 else 0.0, 1.0) if counts else (-np.inf, np.inf)
    if s > 1:
        wider = np.sqrt(s / (s - 1)) * stdtrit(s - 1, 0.975) / Z95
        x_SN = x_SN + (wider - 1) * (x_SN.mean(1, keepdims=True) - x_SN.mean())
    seeds_RS, items_RN = draws(s, n, n_boot, seed)
    chunks = range(0, n_boot, 500)
    means = [((items_RN[i : i + 500] @ x_SN.T) * seeds_RS[i : i + 500]).sum(1) / (s * n) for i in chunks]
    return np.concatenate(means).clip(least, most)


@lru_cache(maxsize=4)  # all arms of an ablation have the same numbers of seeds and items
def draws(s: int, n: int, n_boot: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of S seeds (n_boot, S) and each of N items (n_boot, N) is drawn in each resample."""
    rng = np.random.default_rng(seed)
    seeds_RS, items_RN = np.empty((n_boot, s), np.float32), np.empty((n_boot, n), np.float32)
    for i in range(n_boot):
        seeds_RS[i] = np.bincount(rng.integers(s, size=s), minlength=s)
        items_RN[i] = np.bincount(rng.integers(n, size=n), minlength=n)
    return seeds_RS, items_RN


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies: its mean, its 95 % interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def paired(a_SN, b_SN, n_boot: int = 10_000, seed: int = 0, unit: float | None = None) -> Difference:
    """The difference a - b between two arms of S seeds on the same N items: its mean, 95 % interval and p-value.

    Seeds are paired, because they share their data order. Both seeds and items are random, so the mean has a standard
    error from the spread of the seeds' means and another from that of the items' means (as in Owen 2007, Ann. Appl.
    Stat. 1:386). The half-width is sqrt(sum (t_i e_i)^2) over the two errors e_i, each with its own Student quantile
    t_i. It holds its level with as few as two seeds, where Satterthwaite's degrees of freedom do not. The p-value is
    the level at which that interval touches zero; it is never 0. The interval returned is the bootstrap's, widened to
    this one where it is narrower.

    Measured numbers are rounded: seeds that agree in every digit may still differ by less than a `unit`, so a spread
    counts as at least half a unit. The unit is 1 / N for 0/1 items. For other numbers the caller knows it; without one,
    where all seeds agree, it is taken to be the value that they agree on. The spread of 0/1 items counts at least as
    Wilson's interval for no difference in N items. A single number shows nothing: its interval is unbounded, or [-1, 1]
    for accuracies.
    """
    a_SN, b_SN = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a_SN, b_SN))
    if a_SN.shape != b_SN.shape or not a_SN.size:
        raise UserError(f"expected results of the same seeds on the same items, got {a_SN.shape} and {b_SN.shape}")
    diff_SN = a_SN - b_SN
    mean, n = float(diff_SN.mean()), diff_SN.shape[1]
    counts = n > 1 and all(np.isin(x, (0, 1)).all() for x in (a_SN, b_SN))
    least, most = (-1.0, 1.0) if counts else (-np.inf, np.inf)
    if counts and not diff_SN.any():
        unseen = wilson(0, n)[1]
        return Difference(0.0, -unseen, unseen, 1.0)
    scale = float(max(np.abs(a_SN).max(), np.abs(b_SN).max()))
    errors = []  # (standard error, degrees of freedom) over seeds, then over items
    for means, least_step in ((diff_SN.mean(1), 1 / n), (diff_SN.mean(0), 0.0)):
        if len(means) == 1:
            continue
        agree = np.ptp(means) <= 1e-9 * scale
        step = least_step if counts else unit
        if step is None:
            step = (abs(mean) if abs(mean) > 1e-9 * scale else scale) if agree else 0.0
        spread = 0.0 if agree else float(means.std(ddof=1))
        errors.append((max(spread, step / 2) / sqrt(len(means)), len(means) - 1))
    if counts:
        error, degrees = errors.pop()
        errors.append((max(error, wilson(0, n)[1] / Z95), degrees))
    if not any(error for error, _ in errors):
        return Difference(mean, least, most, 1.0) if not errors else Difference(mean, mean, mean, 1.0)
    half = half_width(errors, 0.05)
    low, high = np.quantile(resampled(diff_SN, n_boot, seed), [0.025, 0.975])
    low, high = max(least, min(float(low), mean - half)), min(most, max(float(high), mean + half))
    return Difference(mean, low, high, touching(errors, abs(mean)))


def half_width(errors: list[tuple[float, int]], p: float) -> float:
    """Half the width of the interval of level 1 - p, from independent (standard error, degrees of freedom)."""
    from scipy.special import stdtrit

    return hypot(*(error * float(stdtrit(degrees, p / 2)) for error, degrees in errors))


def touching(errors: list[tuple[float, int]], distance: float) -> float:
    """The p-value of a mean at `distance` from zero: the p at which the half-width equals it. At least 1e-300."""
    from scipy.optimize import brentq

    least = -300 * log(10)
    if half_width(errors, exp(least)) <= distance:
        return exp(least)
    if distance == 0:
        return 1.0
    return exp(brentq(lambda x: half_width(errors, exp(x)) - distance, least, 0.0, xtol=1e-12))


def holm(p: list[float]) -> list[float]:
    """P-values corrected for multiple tests (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def mcnemar(a, b) -> float:
    """Exact two-sided McNemar p-value for two models on the same items, given as lists of 0/1 results.

    Under the null hypothesis, of the items on which only one model is right each model has half (McNemar 1947,
    Psychometrika 12).
    """
    if len(a) != len(b):
        raise UserError(f"expected results on the same items, got {len(a)} and {len(b)}")
    only_a = sum(x and not y for x, y in zip(a, b))
    only_b = sum(y and not x for x, y in zip(a, b))
    n = only_a + only_b
    tail = sum(comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)
