"""lib/stats.py: the statistics agree with printed tables and hand-computed values, and intervals
cover a known truth as often as they say."""
import math

import numpy as np
import pandas as pd
import pytest

from lib import stats


def runs_of(losses, kinds=None):
    """{(arm, seed): loss} as a table of runs; all arms are of one kind, or of {arm: kind}."""
    return pd.DataFrame([{"arm": arm, "seed": seed, "loss": loss, "kind": (kinds or {}).get(arm)
                          or "k"} for (arm, seed), loss in losses.items()])


def test_of_one_kind_the_variance_is_that_of_least_squares():
    """One 3 among nine values that are else 0: the residuals of arm + seed are 4/3, four times
    -2/3, four times 1/3; their squares sum to 4, on (3-1)(3-1) degrees of freedom. An arm with one
    seed tells nothing of the spread, nor do two runs alone."""
    values = {(arm, seed): 3.0 if (arm, seed) == ("a", 3) else 0.0
              for arm in "abc" for seed in (1, 2, 3)}
    for losses in (values, values | {("once", 2): 17.0}):
        one = stats.residual_deviations(runs_of(losses))["k"]
        assert one == pytest.approx({"sd": 1, "degrees": 4})
    assert stats.residual_deviations(runs_of({("a", 1): 2.0, ("b", 1): 3.0})) == {}


def test_a_gap_between_two_kinds_has_satterthwaites_degrees():
    """(1 + 4)^2 / (1/4 + 16/8) = 11.1; a kind that is not known has the other's variance."""
    deviations = {"a": {"sd": 1.0, "degrees": 4}, "b": {"sd": 2.0, "degrees": 8}}
    assert stats.gap_variance(deviations, ("a", "b")) == (5.0, pytest.approx(100 / 9))
    assert stats.gap_variance(deviations, ("a", "a")) == (2.0, 4)
    assert stats.gap_variance(deviations, ("a", "new")) == (2.0, 4)
    assert stats.gap_variance({}, ("a", "a")) == (None, 0)


@pytest.mark.parametrize("kinds, sd, pair", [
    ("ttrrrr", {"t": 0.1, "r": 0.02}, (0, 2)), ("ttrrrr", {"t": 0.1, "r": 0.02}, (2, 3)),
    ("tr", {"t": 0.1, "r": 0.02}, (0, 1)), ("trrr", {"t": 0.02, "r": 0.02}, (0, 1))])
def test_intervals_with_two_variances_cover_the_truth(kinds, sd, pair):
    """Within and between kinds, of which one spreads more, and one arm may be alone in its kind."""
    rng, hits, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        seeds = rng.normal(0, 0.05, 3)
        values = {(arm, s): seeds[s] + rng.normal(0, sd[kind])
                  for arm, kind in enumerate(kinds) for s in range(3)}
        deviations = stats.residual_deviations(runs_of(values, dict(enumerate(kinds))))
        variance, degrees = stats.gap_variance(deviations, [kinds[arm] for arm in pair])
        gap = np.mean([values[pair[0], s] - values[pair[1], s] for s in range(3)])
        (low, high), p = stats.student_interval(gap, math.sqrt(variance / 3), degrees)
        assert (p < 0.05) == (not low <= 0 <= high)
        hits += low <= 0 <= high
    assert 0.92 <= hits / trials <= 0.98


def test_holm_by_hand():
    """0.01, 0.03, 0.04 of three: 3 * 0.01, 2 * 0.03, and no less than that before it."""
    assert stats.holm([0.04, 0.01, 0.03], count=3) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.01, 0.9], count=5) == pytest.approx([0.05, 1.0]) and not stats.holm([], 2)


def test_a_resampled_loss_is_a_ratio_of_sums():
    """A document of 1 token at 9 nats, one of 9 tokens at 1 nat each: 1.8 nats per token on both,
    9 or 1 where one is drawn twice; a run that is 0.5 worse on every token is 0.5 worse always."""
    tokens = np.array([1, 9])
    nats = np.array([[9.0, 9.0], [9.5, 13.5]])
    losses = stats.bootstrap_documents(nats, tokens, draws=200)
    assert set(losses[:, 0].round(9)) == {9.0, 1.8, 1.0}
    assert losses[:, 1] - losses[:, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("seeds, seed_sd, document_sd, most", [
    (3, 0.02, 0.0, 0.97), (3, 0.0, 0.2, 0.97), (1, 0, 0.2, 0.97),
    (3, 0.02, 0.2, 0.99)])  # with two degrees of freedom it errs on the safe side
def test_the_crossed_interval_covers_a_known_gap(seeds, seed_sd, document_sd, most):
    """A true gap of -0.05, with seeds and documents drawn from known distributions: 95 % of the
    intervals contain it, whichever of the two varies. 1,000 trials: +- 1.4 %."""
    rng, documents, trials = np.random.default_rng(8), 150, 1_000
    gaps = -0.05 + rng.normal(0, seed_sd, (trials, seeds, 1))
    gaps = gaps + rng.normal(0, document_sd, (trials, 1, documents))
    draws = stats.bootstrap_documents(50 * gaps.reshape(-1, documents), np.full(documents, 50), 500)
    draws = draws.reshape(-1, trials, seeds).mean(2)
    finals = gaps.mean(2)  # (trials, seeds)
    errors = finals.std(1, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.zeros(trials)
    covered = 0
    for trial in range(trials):
        (low, high), _ = stats.document_interval(draws[:, trial], errors[trial], seeds - 1)
        covered += low <= -0.05 <= high
    assert 0.93 <= covered / trials <= most
