"""Intervals and tests for accuracies: Wilson, a two-level bootstrap, Student over seeds and items, McNemar, Holm.

Items may stand or fall together: permutations of one multiset of digits, which have one answer. Where `clusters` names
the cluster of every item, clusters and not items are what is drawn, resampled and counted. A cluster of copies then
counts as one item, and items that are alone give the same numbers as without `clusters`, bit for bit.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, hypot, log, sqrt

import numpy as np
from numpy.typing import ArrayLike

from kernels.errors import UserError

Z95 = 1.959963984540054


def wilson(hits: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22); 95 % unless z says otherwise.

    Numbers need not be whole: see `over_items`. Raises UserError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n == 0:
        raise UserError(f"expected 0 <= hits <= n and n > 0, got {hits} of {n}")
    p, z2 = hits / n, z * z
    middle, half = p + z2 / (2 * n), z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def grouped(clusters: ArrayLike | None, n: int) -> np.ndarray | None:
    """The cluster of each of n items as a number, in order of appearance; None where every item is alone.

    Raises UserError for clusters of another number of items.
    """
    if clusters is None:
        return None
    _, first_C, index_N = np.unique(np.asarray(clusters), return_index=True, return_inverse=True)
    if len(index_N) != n:
        raise UserError(f"expected the cluster of each of {n} items, got {len(index_N)}")
    return None if len(first_C) == n else np.argsort(np.argsort(first_C))[index_N]


def design_effect(x_N: np.ndarray, cluster_N: np.ndarray) -> float:
    """How many times the variance of a mean is that of as many items drawn one by one (Kish 1965, sec. 5.4).

    Estimated as for a ratio of cluster totals: sum_c (sum_i (x_i - mean))^2 / sum_i (x_i - mean)^2. Where all values
    are equal nothing is known of how alike a cluster is, and it is that of clusters of copies, sum_c m_c^2 / n.
    Deviates: never below 1, and no correction for the number of clusters, so that copies count as one item exactly.
    """
    apart_N = x_N - x_N.mean()
    size_C = np.bincount(cluster_N)
    if len(size_C) == 1 or not np.ptp(x_N):
        return float((size_C**2).sum() / len(x_N))
    return max(1.0, float((np.bincount(cluster_N, apart_N) ** 2).sum() / (apart_N**2).sum()))


def bootstrap(
    correct_SN: np.ndarray, n_boot: int = 10_000, level: float = 0.95, seed: int = 0, clusters: ArrayLike | None = None
) -> tuple[float, float]:
    """Percentile interval of the mean over S training seeds and N items, both resampled.

    Seeds are drawn with replacement, then items, the same for every seed, because all seeds were judged on one test
    set. For a paired difference between two methods pass the difference of their matrices. A bootstrap of few seeds is
    too narrow; the deviations of the seeds' means are therefore scaled up by the ratio of Student's t quantile to the
    normal one. Of clustered items whole clusters are drawn.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled(correct_SN, n_boot, seed, clusters), [tail, 1 - tail])
    return float(low), float(high)


def interval(correct_SN: ArrayLike, n_boot: int = 10_000, clusters: ArrayLike | None = None) -> tuple[float, float]:
    """A 95 % interval of an accuracy over S training seeds and N items, 0 or 1 each, by `bootstrap`.

    It is never narrower than Wilson's interval for N items, whatever the number of seeds: where nearly all items are
    right, or wrong, resampling shows almost no spread.
    """
    hit_SN = np.atleast_2d(np.asarray(correct_SN))
    low, high = bootstrap(hit_SN, n_boot, clusters=clusters)
    least, most = over_items(hit_SN, clusters)
    return min(low, least), max(high, most)


def over_seeds(correct_SN: ArrayLike) -> tuple[float, float]:
    """A 95 % interval of an accuracy on these N items over S training seeds alone: Student's, of the seeds' means.

    Their spread counts as at least half an item, as in `paired`. Raises UserError for a single seed.
    """
    from scipy.special import stdtrit

    hit_SN = np.asarray(correct_SN, dtype=np.float64)
    s, n = hit_SN.shape
    if s < 2:
        raise UserError("an interval over seeds needs two of them")
    mean_S = hit_SN.mean(1)
    half = float(stdtrit(s - 1, 0.975)) * max(float(mean_S.std(ddof=1)), 0.5 / n) / sqrt(s)
    return max(0.0, float(mean_S.mean()) - half), min(1.0, float(mean_S.mean()) + half)


def over_items(correct_SN: ArrayLike, clusters: ArrayLike | None = None) -> tuple[float, float]:
    """A 95 % interval of the accuracy of these S training runs over N items alone: Wilson's, at their mean.

    Clustered items count as N / `design_effect` (Korn and Graubard 1998, Survey Methodology 24:193).
    """
    hit_SN = np.atleast_2d(np.asarray(correct_SN))
    n = hit_SN.shape[1]
    hits, cluster_N = round(hit_SN.mean() * n), grouped(clusters, n)
    if cluster_N is None:
        return wilson(hits, n)
    effect = design_effect(hit_SN.mean(0), cluster_N)
    return wilson(hits / effect, n / effect)


def unanimous(n: int) -> float:
    """The lower 95 % bound of a proportion of which n of n were seen (Clopper and Pearson 1934, Biometrika 26:404)."""
    return 0.025 ** (1 / n)


def resampled(x_SN: np.ndarray, n_boot: int, seed: int, clusters: ArrayLike | None = None) -> np.ndarray:
    """Means (n_boot,) over resampled seeds and items, clipped to the possible range for 0/1 and their differences.

    Of clustered items whole clusters are resampled, and a mean is over as many items as they have.
    """
    from scipy.special import stdtrit

    x_SN = np.atleast_2d(np.asarray(x_SN, dtype=np.float64))
    s, n = x_SN.shape
    counts = np.isin(x_SN, (-1, 0, 1)).all() and n > 1
    least, most = (-1.0 if x_SN.min() < 0 else 0.0, 1.0) if counts else (-np.inf, np.inf)
    if s > 1:
        wider = np.sqrt(s / (s - 1)) * stdtrit(s - 1, 0.975) / Z95
        x_SN = x_SN + (wider - 1) * (x_SN.mean(1, keepdims=True) - x_SN.mean())
    cluster_N, size_C = grouped(clusters, n), None
    if cluster_N is not None:
        x_SN = np.stack([np.bincount(cluster_N, x_N) for x_N in x_SN])  # totals of clusters from here on
        size_C = np.bincount(cluster_N).astype(float)
    seeds_RS, items_RN = draws(s, x_SN.shape[1], n_boot, seed)
    means = []
    for i in range(0, n_boot, 500):
        seeds, items = seeds_RS[i : i + 500], items_RN[i : i + 500].astype(np.float64)
        drawn = n if size_C is None else items @ size_C
        means.append(((items @ x_SN.T) * seeds).sum(1) / (s * drawn))
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


def paired(
    a_SN, b_SN, n_boot: int = 10_000, seed: int = 0, unit: float | None = None, clusters: ArrayLike | None = None
) -> Difference:
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

    Of clustered items the errors are those of clusters, each weighted by its size; N is then (sum m_c)^2 / sum m_c^2.
    """
    a_SN, b_SN = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a_SN, b_SN))
    if a_SN.shape != b_SN.shape or not a_SN.size:
        raise UserError(f"expected results of the same seeds on the same items, got {a_SN.shape} and {b_SN.shape}")
    diff_SN = a_SN - b_SN
    mean, n = float(diff_SN.mean()), diff_SN.shape[1]
    counts = n > 1 and all(np.isin(x, (0, 1)).all() for x in (a_SN, b_SN))
    least, most = (-1.0, 1.0) if counts else (-np.inf, np.inf)
    cluster_N, item_means, alone = grouped(clusters, n), diff_SN.mean(0), float(n)
    if cluster_N is not None:
        size_C = np.bincount(cluster_N)
        alone = n**2 / float((size_C**2).sum())
        # linear in the clusters' totals: their mean is the items' mean, whatever the sizes
        item_means = mean + np.bincount(cluster_N, item_means - mean) * len(size_C) / n
        if len(size_C) == 1:
            return Difference(mean, least, most, 1.0)
    unseen = wilson(0, alone)[1]
    if counts and not diff_SN.any():
        return Difference(0.0, -unseen, unseen, 1.0)
    scale = float(max(np.abs(a_SN).max(), np.abs(b_SN).max()))
    errors = []  # (standard error, degrees of freedom) over seeds, then over items
    for means, least_step in ((diff_SN.mean(1), 1 / alone), (item_means, 0.0)):
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
        errors.append((max(error, unseen / Z95), degrees))
    if not any(error for error, _ in errors):
        return Difference(mean, least, most, 1.0) if not errors else Difference(mean, mean, mean, 1.0)
    half = half_width(errors, 0.05)
    low, high = np.quantile(resampled(diff_SN, n_boot, seed, clusters), [0.025, 0.975])
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


def mcnemar(a, b, clusters: ArrayLike | None = None) -> float:
    """Exact two-sided McNemar p-value for two models on the same items, given as lists of 0/1 results.

    Under the null hypothesis, of the items on which only one model is right each model has half (McNemar 1947,
    Psychometrika 12). Of clustered items each cluster's difference has either sign with probability a half, all its
    items together; this is McNemar's test where items are alone, and the variance is that of Obuchowski (1998, Stat.
    Med. 17:1495).
    """
    if len(a) != len(b):
        raise UserError(f"expected results on the same items, got {len(a)} and {len(b)}")
    cluster_N = grouped(clusters, len(a))
    each_N = np.asarray(a, dtype=int) - np.asarray(b, dtype=int)
    if cluster_N is not None:
        each_N = np.bincount(cluster_N, each_N).astype(int)
    return sign_flips(each_N.tolist())


def sign_flips(differences: list[int]) -> float:
    """The exact probability that a sum of whole numbers with random signs is as far from 0 as theirs is."""
    p = np.ones(1)  # of each sum from -most to most
    for size in map(abs, filter(None, differences)):
        wider = np.zeros(len(p) + 2 * size)
        wider[: len(p)] += p / 2
        wider[2 * size :] += p / 2
        p = wider
    most = len(p) // 2
    far = np.abs(np.arange(-most, most + 1)) >= abs(sum(differences))
    return min(1.0, float(p[far].sum()))
