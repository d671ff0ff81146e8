"""Items that stand or fall together: against copies, brute force, published formulas, and coverage by simulation."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from eval.stats import bootstrap, design_effect, interval, mcnemar, over_items, paired, resampled, wilson

RNG = np.random.default_rng(0)
A, B = (RNG.random((3, 60)) < p for p in (0.7, 0.5))
COPIES = np.repeat(np.arange(60), 4)


def copied(x_SN):
    return np.repeat(x_SN, 4, axis=1)


def test_a_cluster_of_copies_counts_as_one_item():
    """Also in another order, and under other names."""
    order = RNG.permutation(240)
    for take, names in ((slice(None), COPIES), (order, [f"cluster {k}" for k in COPIES[order]])):
        a, b = copied(A)[:, take], copied(B)[:, take]
        assert over_items(a[:1], names) == pytest.approx(over_items(A[:1]))
        assert mcnemar(a[0], b[0], names) == pytest.approx(mcnemar(A[0], B[0]))
        got, want = paired(a, b, 2, clusters=names), paired(A, B, 2)  # two resamples: Student's interval alone
        assert (got.mean, got.p) == pytest.approx((want.mean, want.p))
    assert bootstrap(copied(A), 300, clusters=COPIES) == pytest.approx(bootstrap(A, 300))
    assert interval(copied(A[:1]), 300, COPIES) == pytest.approx(interval(A[:1], 300))
    got, want = paired(copied(A), copied(B), 300, clusters=COPIES), paired(A, B, 300)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    for x in (np.ones_like(A), np.zeros_like(A)):
        assert over_items(copied(x), COPIES) == pytest.approx(over_items(x))
        same, want = paired(copied(x), copied(x), 20, clusters=COPIES), paired(x, x, 20)
        assert (same.low, same.high, same.p) == pytest.approx((want.low, want.high, want.p))


def test_items_that_are_alone_give_the_same_numbers_to_the_bit():
    names = [f"{k * 7919 % 60}" for k in range(60)]
    assert bootstrap(A, 300, clusters=names) == bootstrap(A, 300)
    assert interval(A, 300, names) == interval(A, 300) and over_items(A, names) == over_items(A)
    assert paired(A, B, 300, clusters=names) == paired(A, B, 300)
    assert mcnemar(A[0], B[0], names) == mcnemar(A[0], B[0])
    with pytest.raises(ValueError, match="expected the cluster of each of 60 items, got 59"):
        paired(A, B, clusters=names[1:])


CLUSTERS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5])
X = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0, 1])


def test_the_design_effect_is_the_ratio_of_variances():
    """Of the linearised ratio estimator, cluster by cluster; with Wilson's interval solved from the quadratic."""
    p, over = X.mean(), 0.0
    for c in range(6):
        mine = X[c == CLUSTERS]
        over += (mine.sum() - p * len(mine)) ** 2
    effect = over / (10 * p * (1 - p))
    assert design_effect(X.astype(float), CLUSTERS) == pytest.approx(effect) and effect > 1
    n, z = 10 / effect, norm.ppf(0.975)
    roots = np.roots([1 + z * z / n, -2 * p - z * z / n, p * p])
    assert over_items(X, CLUSTERS) == pytest.approx(tuple(sorted(roots)))
    assert over_items(X, [0] * 10) == pytest.approx(wilson(0.6, 1))  # one cluster is one item
    assert design_effect(np.array([1.0, 0, 1, 0]), np.array([0, 0, 1, 1])) == 1.0  # unlike items make none narrower


def test_the_bootstrap_draws_whole_clusters():
    """Against all 3^3 draws of three clusters of different sizes, each as likely."""
    clusters, x = np.array([0, 0, 0, 1, 1, 2]), np.array([1.0, 1, 0, 0, 0, 1])
    totals, sizes = np.array([2, 0, 1]), np.array([3, 2, 1])
    every = [totals[list(d)].sum() / sizes[list(d)].sum() for d in product(range(3), repeat=3)]
    means = resampled(x, 5000, 0, clusters)
    for value in set(every):
        want, got = (np.mean(np.array(some) <= value + 1e-9) for some in (every, means))
        assert got == pytest.approx(want, abs=3 * np.sqrt(0.25 / 5000))
    assert set(means.round(9)) == set(np.round(every, 9))
    assert bootstrap(x, 5000, clusters=clusters) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_error_of_a_difference_is_that_of_weighted_cluster_means():
    """One seed: sqrt(C / (C - 1) sum_c (m_c (mean_c - mean))^2) / n, by a loop over clusters."""
    a, b = X, np.array([0, 0, 0, 1, 0, 1, 0, 1, 0, 0])
    d = (a - b).astype(float)
    total = sum((d[c == CLUSTERS].size * (d[c == CLUSTERS].mean() - d.mean())) ** 2 for c in range(6))
    error = np.sqrt(6 / 5 * total) / 10
    sizes = np.bincount(CLUSTERS)
    least = wilson(0, 10**2 / (sizes**2).sum())[1] / norm.ppf(0.975)  # what so few items can show at least
    got = paired(a, b, 2, clusters=CLUSTERS)
    half = student.ppf(0.975, 5) * max(error, least)
    assert (got.low, got.high) == pytest.approx((max(-1, d.mean() - half), min(1, d.mean() + half)))
    assert got.p == pytest.approx(2 * student.sf(d.mean() / max(error, least), 5))
    assert paired(a, b, clusters=[0] * 10).p == 1.0


def test_clustered_mcnemar_is_every_sign_tried():
    a, b = X, np.array([0, 0, 0, 1, 0, 1, 0, 1, 0, 0])
    sums = [int((a - b)[c == CLUSTERS].sum()) for c in range(6)]
    tried = [abs(sum(s * x for s, x in zip(signs, sums))) for signs in product((1, -1), repeat=6)]
    assert mcnemar(a, b, CLUSTERS) == pytest.approx(np.mean([t >= abs(sum(sums)) for t in tried]))
    assert mcnemar(a, a, CLUSTERS) == 1.0


def test_intervals_cover_where_clusters_stand_or_fall_together():
    """120 clusters of 1 to 5 items that nearly agree: intervals over clusters hold their level, those over items do
    not."""
    rng, misses = np.random.default_rng(7), {"clusters": 0, "items": 0, "paired": 0, "mcnemar": 0}
    trials = 400
    for _ in range(trials):
        size = rng.integers(1, 6, size=120)
        clusters = np.repeat(np.arange(120), size)
        ease = np.repeat(rng.beta(0.7, 0.3, size=120), size)
        a, b = (rng.random(len(ease)) < np.repeat(rng.random(120) < 0.9, size) * ease for _ in "ab")
        for name, names in (("clusters", clusters), ("items", None)):
            low, high = over_items(a, names)
            misses[name] += not low <= 0.9 * 0.7 <= high
        misses["paired"] += paired(a, b, 2, clusters=clusters).p < 0.05
        misses["mcnemar"] += mcnemar(a, b, clusters) < 0.05
    bound = 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert all(misses[name] / trials < bound for name in ("clusters", "paired", "mcnemar")), misses
    assert misses["items"] / trials > bound
