"""lib/stats.py: the statistics agree with printed tables and hand-computed values, and intervals
cover a known truth as often as they say."""
import math

import numpy as np
import pytest

from lib import stats


@pytest.mark.parametrize("degrees, t", [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262),
                                        (30, 2.042)])
def test_student_quantile_and_p_are_those_of_the_printed_tables(degrees, t):
    assert stats.student_quantile(degrees) == pytest.approx(t, abs=5e-4)
    assert stats.student_p(t, degrees) == pytest.approx(0.05, abs=1e-4)
    assert stats.student_p(-t, degrees) == stats.student_p(t, degrees)


def test_student_p_with_one_degree_is_cauchys():
    assert stats.student_p(1, 1) == pytest.approx(0.5)
    assert stats.student_p(0, 5) == 1


def test_summary_is_mean_sd_and_students_interval():
    """-0.076, -0.083, -0.090: -0.083 +- 0.007, with a half-width of 4.303 * 0.007 / sqrt(3)."""
    s = stats.summary([-0.076, -0.083, -0.090])
    assert (s["mean"], s["sd"], s["n"]) == (pytest.approx(-0.083), pytest.approx(0.007), 3)
    assert s["interval"] == pytest.approx([-0.083 - 0.01739, -0.083 + 0.01739], abs=1e-5)
    assert stats.summary([1.5]) == {"mean": 1.5, "sd": None, "n": 1, "interval": None}


def test_pooled_sd_by_hand():
    """One 3 among nine values that are else 0: the residuals of arm + seed are 4/3, four times
    -2/3, four times 1/3; their squares sum to 4, on (3-1)(3-1) degrees of freedom."""
    values = {(arm, seed): 3.0 if (arm, seed) == ("a", 3) else 0.0
              for arm in "abc" for seed in (1, 2, 3)}
    assert stats.pooled_sd(values) == (pytest.approx(1.0), 4)
    one_more = values | {("once", 2): 17.0}  # an arm with one seed tells nothing of the spread
    assert stats.pooled_sd(one_more) == (pytest.approx(1.0), 4)
    additive = {(arm, seed): arm + 10 * seed for arm in (1, 2, 4) for seed in (1, 2, 3)}
    assert stats.pooled_sd(additive) == (pytest.approx(0, abs=1e-9), 4)
    assert stats.pooled_sd({("a", 1): 2.0, ("b", 1): 3.0}) == (None, 0)


def test_of_two_arms_pooled_is_students_paired_interval():
    ours, theirs = [4.0, 4.2, 4.1], [4.5, 4.4, 4.8]
    values = {("a", s): x for s, x in enumerate(ours)} | {("b", s): x for s, x in enumerate(theirs)}
    sd, degrees = stats.pooled_sd(values)
    gap = stats.summary(a - b for a, b in zip(ours, theirs))
    interval, p = stats.pooled_interval(gap["mean"], 3, sd, degrees)
    assert degrees == 2 and interval == pytest.approx(gap["interval"])
    t = gap["mean"] / (gap["sd"] / math.sqrt(3))
    assert p == pytest.approx(stats.student_p(t, 2))


def test_holm_by_hand():
    """0.01, 0.03, 0.04 of three: 3 * 0.01, 2 * 0.03, and no less than that before it."""
    corrected = stats.holm({"x": 0.04, "y": 0.01, "z": 0.03})
    assert corrected == pytest.approx({"y": 0.03, "z": 0.06, "x": 0.06})
    assert stats.holm({"y": 0.01, "x": 0.9}, count=5) == pytest.approx({"y": 0.05, "x": 1.0})


@pytest.mark.parametrize("b, c, p", [(22, 13, 0.1755), (13, 22, 0.1755), (0, 5, 2 / 32), (3, 3, 1),
                                     (0, 0, 1), (1, 8, 2 * 10 / 512)])
def test_mcnemar_is_the_exact_binomial_test(b, c, p):
    assert stats.sign_flip([1] * b + [-1] * c + [0] * 9) == pytest.approx(p, abs=5e-5)


def test_a_redrawn_loss_is_a_ratio_of_sums():
    """A document of 1 token at 9 nats, one of 9 tokens at 1 nat each: 1.8 nats per token on both,
    9 or 1 where one is drawn twice; a run that is 0.5 worse on every token is 0.5 worse always."""
    tokens = np.array([1, 9])
    nats = np.array([[9.0, 9.0], [9.5, 13.5]])
    losses = stats.redraw_documents(nats, tokens, draws=200)
    assert set(losses[:, 0].round(9)) == {9.0, 1.8, 1.0}
    assert losses[:, 1] - losses[:, 0] == pytest.approx(0.5)


def test_documents_alone_are_narrower_than_documents_with_seeds():
    gaps = np.random.default_rng(5).normal(-0.1, 0.01, 5_000)
    alone, p = stats.document_interval(gaps)
    crossed, _ = stats.document_interval(gaps, error=0.02, degrees=4)
    assert alone == pytest.approx([-0.1196, -0.0804], abs=1e-3) and p < 0.001
    assert crossed[0] < -0.1 - 2.776 * 0.02 and crossed[1] > -0.1 + 2.776 * 0.02
    assert stats.document_interval(gaps + 0.1)[1] > 0.5


@pytest.mark.parametrize("arms, seeds, seed_sd, document_sd, most", [
    (2, 3, 0.02, 0.0, 0.97), (2, 3, 0.0, 0.2, 0.97), (6, 3, 0.02, 0.2, 0.97), (2, 1, 0, 0.2, 0.97),
    (2, 3, 0.02, 0.2, 0.99)])  # with two degrees of freedom it errs on the safe side
def test_the_crossed_interval_covers_a_known_gap(arms, seeds, seed_sd, document_sd, most):
    """Two arms whose true gap is -0.05, with seeds and documents drawn from known distributions:
    95 % of the intervals contain it, whichever of the two varies. 1,000 trials: +- 1.4 %."""
    rng, documents, trials = np.random.default_rng(8), 150, 1_000
    tokens = np.full(documents, 50)
    loss = np.full((trials, arms, seeds, documents), 4.0)
    loss[:, 0] -= 0.05
    loss += rng.normal(0, seed_sd, (trials, arms, seeds, 1))
    loss[:, 0] += rng.normal(0, document_sd, (trials, 1, documents))  # of arm and document
    pair = loss[:, :2].reshape(-1, documents) * tokens
    redrawn = stats.redraw_documents(pair, tokens, draws=1_000)
    redrawn = redrawn.reshape(-1, trials, 2, seeds)
    covered = 0
    for trial in range(trials):
        gaps = (redrawn[:, trial, 0] - redrawn[:, trial, 1]).mean(1)
        finals = {(arm, seed): loss[trial, arm, seed].mean()
                  for arm in range(arms) for seed in range(seeds)}
        sd, degrees = stats.pooled_sd(finals)
        error = sd * math.sqrt(2 / seeds) if degrees else 0.0
        (low, high), _ = stats.document_interval(gaps, error, degrees)
        covered += low <= -0.05 <= high
    assert 0.93 <= covered / trials <= most
