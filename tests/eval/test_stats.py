"""Statistics against published numbers and closed forms."""

from math import erfc

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit
from scipy.stats import binom, ttest_1samp, ttest_rel

from eval.stats import bootstrap, holm, interval, mcnemar, over_items, over_seeds, paired, unanimous, wilson


def test_wilson_is_newcombes_table():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    for n in range(1, 400):  # a proportion has ends, which rounding does not move
        assert wilson(0, n)[0] == 0.0 < wilson(0, n)[1] and wilson(n, n)[1] == 1.0 > wilson(n, n)[0]
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)


def test_bootstrap_has_the_binomial_width_for_one_seed():
    correct = np.zeros(1000)
    correct[:300] = 1
    low, high = bootstrap(correct, n_boot=4000)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_bootstrap_sees_the_spread_between_seeds():
    """Seeds that are all right or all wrong: the mean of S draws, items add nothing."""
    matrix = np.repeat([[0.0], [1.0]], 500, axis=1).repeat(5, axis=0)
    low, high = bootstrap(matrix, n_boot=4000)
    wider = np.sqrt(10 / 9) * 2.262 / 1.96  # Student's t, 9 degrees of freedom, in place of the normal
    assert (low, high) == pytest.approx((0.5 - 0.3 * wider, 0.5 + 0.3 * wider), abs=1e-3)  # Binomial(10, 1/2) / 10


def test_few_seeds_without_effect_are_mostly_left_without():
    """Five seeds of normal effects: zero is missed in 7.5 % of 1,000 draws, by the plain bootstrap in 18.7 %."""
    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(300):
        d = paired(rng.normal(size=(5, 1)), np.zeros((5, 1)), n_boot=400)
        misses += not d.low <= 0 <= d.high
    assert misses / 300 < 0.11


def test_p_values_hold_their_level_far_out_in_the_tail():
    """Seeds and items of normal effects, crossed, and none on the whole: 4,000 draws, levels .05 and .005."""
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0):
        p = []
        for _ in range(4000):
            x = scale * rng.normal(size=(5, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(5, 40))
            p.append(paired(x, np.zeros_like(x), n_boot=2).p)
        assert np.mean(np.array(p) < 0.05) < 0.06 and np.mean(np.array(p) < 0.005) < 0.01


def test_seeds_alone_are_a_t_test():
    a, b = np.array([[0.2], [0.5], [0.1], [0.9], [0.4]]), np.array([[0.1], [0.1], [0.2], [0.3], [0.2]])
    assert paired(a, b, 100).p == pytest.approx(ttest_rel(a[:, 0], b[:, 0]).pvalue)
    d = paired([[1.0], [3.0], [3.0], [3.0], [3.0]], np.zeros((5, 1)))
    assert d.high > 3.0  # five seeds need not hold the largest value there is
    x = np.random.default_rng(2).normal(1, 1, size=(4, 1))
    d, plain = paired(x, np.zeros((4, 1)), 50), ttest_1samp(x[:, 0], 0)
    assert d.p == pytest.approx(plain.pvalue)
    low, high = plain.confidence_interval(0.95)
    assert d.low <= low + 1e-12 and d.high >= high - 1e-12


@pytest.mark.parametrize("s, p", [(2, 2 / np.pi * np.arctan(1 / np.sqrt(8))), (3, 1 - np.sqrt(12 / 14))])
def test_seeds_that_agree_show_what_so_few_can(s, p):
    """Their spread counts as half of what they agree on: t = 2 sqrt(S), 1 and 2 degrees of freedom in closed form."""
    t = 2 * np.sqrt(s)
    quantile = {2: np.tan(np.pi * 0.475), 3: 0.95 * np.sqrt(2 / (1 - 0.95**2))}[s]
    for a, b in ((0.5, 0.0), (0.75, 0.25), (8.0, 6.0), (-3.0, 1.0)):
        d = paired(np.full((s, 1), a), np.full((s, 1), b))
        assert d.mean == a - b and d.p == pytest.approx(p)
        half = abs(a - b) / t * quantile
        assert (d.low, d.high) == pytest.approx((a - b - half, a - b + half))
    nearly = paired([[0.9], [0.8]], [[0.8], [0.7]])  # the same difference but for rounding
    assert nearly.p == pytest.approx(2 / np.pi * np.arctan(1 / np.sqrt(8))) and nearly.low < -0.3


def test_a_known_unit_says_how_far_seeds_that_agree_may_be_apart():
    d = paired(np.full((5, 1), 4.0), np.full((5, 1), 3.0), unit=0.1)
    half = stdtrit(4, 0.975) * 0.05 / np.sqrt(5)
    assert (d.low, d.high) == pytest.approx((1 - half, 1 + half))
    assert d.p == pytest.approx(2 * stdtr(4, -1 / (0.05 / np.sqrt(5)))) and d.p > 0
    apart = paired([[4.0], [4.2], [4.4]], [[3.0], [3.0], [3.0]], unit=0.1)
    assert apart.p == pytest.approx(ttest_1samp([1.0, 1.2, 1.4], 0).pvalue)  # more than half a unit: its own spread


def test_nothing_but_one_number_shows_nothing():
    d = paired([[1.0]], [[0.0]])
    assert (d.mean, d.low, d.high, d.p) == (1.0, -np.inf, np.inf, 1.0)
    same = paired([[8.0]] * 3, [[8.0]] * 3, unit=0.5)
    half = stdtrit(2, 0.975) * 0.25 / np.sqrt(3)
    assert (same.low, same.high, same.p) == (pytest.approx(-half), pytest.approx(half), 1.0)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        paired(np.ones((2, 3)), np.ones((2, 4)))


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("items", [50, 1000, 5000])
def test_all_right_against_all_wrong_is_no_certainty(seeds, items):
    d = paired(np.ones((seeds, items)), np.zeros((seeds, items)))
    assert 0 < d.p < 0.05 and d.high == 1.0
    assert d.low <= 1 - wilson(0, items)[1] + 1e-3 / items and d.low > 0
    back = paired(np.zeros((seeds, items)), np.ones((seeds, items)))
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-1, -1, -d.low, d.p))


def test_two_seeds_that_agree_are_no_better_than_their_items():
    """The same share in both: items alone speak, and a seed's share is not known to the last problem."""
    rng = np.random.default_rng(4)
    once = rng.permutation(np.repeat([1, 0], [60, 40]))
    a, b = np.array([once, once]), np.zeros((2, 100))
    d = paired(a, b, 50)
    items, step = once.std(ddof=1) / 10, 0.005 / np.sqrt(2)
    half = np.hypot(stdtrit(99, 0.975) * items, stdtrit(1, 0.975) * step)
    assert d.low <= 0.6 - half + 1e-12 and d.high >= 0.6 + half - 1e-12
    at_p = np.hypot(stdtrit(99, 1 - d.p / 2) * items, stdtrit(1, 1 - d.p / 2) * step)
    assert at_p == pytest.approx(0.6)  # the p-value is the level of the interval that ends at zero


@pytest.mark.parametrize("few", [1, 2, 3])
def test_an_interval_holds_a_rate_that_was_not_seen(few):
    a = np.zeros((5, 1000), int)
    a[:, :few] = 1
    d = paired(a, np.zeros_like(a), 50)
    unseen = wilson(0, 1000)[1]
    assert d.low <= few / 1000 - unseen and d.high >= few / 1000 + unseen and d.p > 0.05


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_holds_the_bootstraps_which_sees_skew(sign):
    x = sign * np.array([[0.0] * 99 + [100.0]])
    low, high = bootstrap(x, 2000)
    d, half = paired(x, np.zeros_like(x), 2000), stdtrit(99, 0.975) * x.std(ddof=1) / 10
    assert (d.low, d.high) == pytest.approx((min(low, x.mean() - half), max(high, x.mean() + half)))
    assert (high > x.mean() + half) if sign > 0 else (low < x.mean() - half)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.1, 0.4, 2.0])
def test_intervals_cover_and_p_values_hold_with_few_seeds(seeds, between):
    """No effect on the whole, seeds and items crossed: 1,500 draws; misses at .05 and .01 at most as often as that."""
    rng = np.random.default_rng(seeds)
    p, misses = [], 0
    for _ in range(1500):
        x = between * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(seeds, 40))
        d = paired(x, np.zeros_like(x), n_boot=2)
        p.append(d.p)
        misses += not d.low <= 0 <= d.high
    p = np.array(p)
    three = lambda level: level + 3 * np.sqrt(level * (1 - level) / 1500)  # noqa: E731  standard errors
    assert misses / 1500 < three(0.05) and (p < 0.05).mean() < three(0.05) and (p < 0.01).mean() < three(0.01)
    if between == 2.0:
        assert misses / 1500 > 0.03  # seeds alone: neither wider than need be


def test_shares_of_right_answers_hold_their_level():
    """Accuracies of two arms that are equally good, of 2 and 5 seeds on 200 items of different difficulty."""
    rng = np.random.default_rng(9)
    for seeds in (2, 5):
        p = []
        for _ in range(800):
            ease = 1 + rng.normal(size=(1, 200))
            a, b = (
                rng.random((seeds, 200)) < 1 / (1 + np.exp(-ease - 0.3 * rng.normal(size=(seeds, 1)))) for _ in "ab"
            )
            p.append(paired(a, b, n_boot=2).p)
        assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 800)


def test_mcnemar_is_the_exact_binomial():
    a = [True] * 8 + [False] * 2 + [True] * 50
    b = [False] * 8 + [True] * 2 + [True] * 50
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(a, a) == 1.0


def test_holm_is_the_textbook_example():
    """Four p-values as in Aickin and Gensler 1996 (Am. J. Public Health 86:726): steps 4p, 3p, 2p, p, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_paired_difference_is_the_normal_one_for_one_seed():
    rng = np.random.default_rng(1)
    a, b = rng.random(800) < 0.5, rng.random(800) < 0.45
    d = paired(a, b, n_boot=4000)
    each = a.astype(float) - b
    half = 1.96 * each.std() / np.sqrt(800)
    assert d.mean == pytest.approx(each.mean())
    assert (d.low, d.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.004)
    z = abs(each.mean()) / (each.std() / np.sqrt(800))
    assert d.p == pytest.approx(erfc(z / np.sqrt(2)), abs=0.002)
    assert paired(a, a).p == 1.0


def test_an_interval_is_no_narrower_than_wilsons():
    assert interval(np.ones((5, 1000))) == wilson(1000, 1000) and interval(np.zeros((3, 40))) == wilson(0, 40)
    some = np.ones((5, 1000))
    some[2, 7] = 0
    assert interval(some, 500)[0] == wilson(1000, 1000)[0] < bootstrap(some, 500)[0]
    spread = np.repeat([[0.0], [1.0]], 50, axis=1).repeat(5, axis=0)
    assert interval(spread, 500) == bootstrap(spread, 500)
    same = paired(np.ones((5, 1000)), np.ones((5, 1000)))
    assert (same.low, same.high, same.p) == (-wilson(0, 1000)[1], wilson(0, 1000)[1], 1.0)


def test_an_interval_over_seeds_alone_is_students():
    rng = np.random.default_rng(5)
    hits = rng.random((5, 300)) < np.array([[0.5], [0.52], [0.48], [0.55], [0.5]])
    low, high = ttest_1samp(hits.mean(1), 0).confidence_interval(0.95)
    assert over_seeds(hits) == pytest.approx((low, high))
    half = stdtrit(4, 0.975) * 0.5 / 300 / np.sqrt(5)  # seeds that agree in every item: to half of one
    assert over_seeds(np.ones((5, 300))) == pytest.approx((1 - half, 1.0))
    assert over_seeds(np.zeros((5, 300))) == pytest.approx((0.0, half))
    assert over_items(hits) == wilson(round(hits.mean() * 300), 300)
    with pytest.raises(ValueError, match="needs two"):
        over_seeds(np.ones((1, 300)))


def test_five_of_five_leave_much_open():
    """Clopper and Pearson's bound: the proportion at which n of n come up with probability .025."""
    for n in (2, 5, 20):
        assert binom.sf(n - 1, n, unanimous(n)) == pytest.approx(0.025)
    assert unanimous(5) == pytest.approx(0.478, abs=5e-4)
