"""Numbers over seeds, documents and pairs -> means, intervals and p-values, on scipy.stats."""
import math
import statistics

import numpy as np
import scipy  # loads scipy.stats, which takes a second, where it is first used

DRAWS = 10_000  # of a bootstrap


# ---- over seeds --------------------------------------------------------------------------------

def student_interval(mean, error, degrees):
    """95 % interval of a mean with its standard error, and the two-sided p-value of 0:
    ([low, high], p)."""
    half = float(scipy.stats.t.ppf(0.975, degrees)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, degrees)) if error else float(mean == 0)
    return [mean - half, mean + half], p


def summary(values):
    """Numbers, one per seed -> {"mean", "sd", "n", "interval"}; sample sd and 95 % Student
    interval are None for one seed."""
    values = [float(value) for value in values]
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"mean": mean, "sd": None, "n": n, "interval": None}
    sd = statistics.stdev(values)
    interval, _ = student_interval(mean, sd / math.sqrt(n), n - 1)
    return {"mean": mean, "sd": sd, "n": n, "interval": interval}


def spread(values):
    """One value per seed (n,) -> {"mean", "sd", "per_seed"}; the sample standard deviation is None
    for one seed."""
    numbers = summary(values)
    return {"mean": numbers["mean"], "sd": numbers["sd"], "per_seed": [float(x) for x in values]}


def residual_variances(values, kinds):
    """The variances of an additive model, value = arm + seed + residual, one for each kind of arm.

    `values`: {(arm, seed): value}; `kinds`: {arm: kind}. Returns {kind: (variance, degrees of
    freedom)} of the kinds of which something is left to estimate it from. With one kind this is
    least squares: A arms that all have S seeds leave (A-1)(S-1) degrees. With several, each
    variance is its kind's squared residuals over what the fit leaves of them, weighted by those
    variances until they stand still (restricted maximum likelihood).
    """
    arms = sorted({arm for arm, _ in values})
    seeds = sorted({seed for _, seed in values})
    design = np.zeros((len(values), len(arms) + len(seeds)))
    for row, (arm, seed) in zip(design, values):
        row[arms.index(arm)] = 1
        row[len(arms) + seeds.index(seed)] = 1
    y = np.array(list(values.values()), dtype=float)
    kind = np.array([kinds[arm] for arm, _ in values])
    found = dict.fromkeys(dict.fromkeys(kind.tolist()), (1.0, 0.0))
    for _ in range(200):
        before = found
        weight = np.array([1 / math.sqrt(max(before[k][0], 1e-12)) for k in kind])
        columns, sizes, _ = np.linalg.svd(design * weight[:, None], full_matrices=False)
        columns = columns[:, sizes > 1e-9 * sizes[0]]
        residual = (y * weight - columns @ (columns.T @ (y * weight))) / weight
        left = 1 - (columns**2).sum(1)  # how much of each value the fit leaves free
        found = {}
        for k in before:
            degrees = float(left[kind == k].sum())
            variance = float((residual[kind == k]**2).sum()) / degrees if degrees > 1e-6 else 1.0
            found[k] = variance, degrees
        if all(math.isclose(found[k][0], before[k][0], rel_tol=1e-7) for k in found):
            break
    return {k: numbers for k, numbers in found.items() if numbers[1] > 1e-6}


def gap_variance(variances, kinds):
    """The variance of one seed's gap between two arms of these kinds, (kind, kind), and its degrees
    of freedom: Satterthwaite's (1946) where the kinds differ. A kind that has no variance of its
    own has the other's; (None, 0) where neither has."""
    known = [variances.get(kind) for kind in kinds]
    known = [one or other for one, other in (known, known[::-1])]
    if None in known:
        return None, 0
    (a, of_a), (b, of_b) = known
    if known[0] == known[1] or not a + b:
        return a + b, of_a
    return a + b, (a + b)**2 / (a**2 / of_a + b**2 / of_b)


# ---- over documents ----------------------------------------------------------------------------

def bootstrap_documents(nats, tokens, draws=DRAWS):
    """Mean losses on documents resampled with replacement.

    nats (R, N) of R runs on N documents of `tokens` (N,) each -> (draws, R): per draw the ratio of
    summed nats to summed tokens. All runs share the draws, so a difference of columns is paired;
    the draws have a fixed seed.
    """
    rng = np.random.default_rng(0)
    N = len(tokens)
    columns = np.concatenate([nats, [tokens]]).T.astype(float)  # (N, R + 1)
    losses = np.empty((draws, len(nats)))
    for i in range(draws):
        times = np.bincount(rng.integers(0, N, N), minlength=N)  # how often each one is drawn
        sums = times @ columns
        losses[i] = sums[:-1] / sums[-1]
    return losses


def document_interval(gaps, error=0.0, degrees=1):
    """95 % interval and two-sided p-value of a gap from its bootstrap (draws,), the mean over seeds
    where there are several: ([low, high], p).

    Seeds are crossed in through `error`, their gaps' standard error with its degrees of freedom:
    each draw gets a value of Student's distribution, since a few seeds resampled would give too
    narrow an interval (two thirds of the variance at three). With error 0 it holds for these very
    training runs.
    """
    draws = np.asarray(gaps, dtype=float)
    if error:
        u = (np.arange(len(draws)) + 0.5) / len(draws)  # the distribution evenly, not at random
        t = scipy.stats.t.ppf(u, degrees)
        draws = draws + error * np.random.default_rng(1).permutation(t)
    low, high = np.quantile(draws, [0.025, 0.975])
    beyond = 1 + min((draws <= 0).sum(), (draws >= 0).sum())
    return [float(low), float(high)], float(min(1, 2 * beyond / (len(draws) + 1)))


# ---- of several tests, of counts ---------------------------------------------------------------

def holm(p_values, count=None):
    """p-values {name: p} corrected for being several (Holm 1979): {name: corrected p}.

    `count`: how many tests were planned, if some of them could not be made.
    """
    count = count or len(p_values)
    corrected, highest = {}, 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (count - i) * p))
        corrected[name] = highest
    return corrected


def wilson(hits, trials):
    """95 % interval of a binomial proportion: Wilson's score interval (1927). (low, high)."""
    test = scipy.stats.binomtest(round(hits), int(trials))
    low, high = test.proportion_ci(method="wilson")
    return float(low), float(high)


# ---- over prompts crossed with seeds -----------------------------------------------------------

def crossed_interval(values):
    """95 % interval of a mean over seeds and prompts, (S, N) numbers: prompts resampled, seeds as
    in `document_interval`. With one seed it holds for that very training run. [low, high].

    Few prompts resampled vary too little, by (N-1)/N, and the normal tail is too short for them:
    the draws are stretched to Student's interval of N numbers.
    """
    values = np.asarray(values, dtype=float)
    seeds, prompts = values.shape
    drawn = np.random.RandomState(0).randint(0, prompts, (DRAWS, prompts))
    draws = values.mean(0)[drawn].mean(1)
    if prompts > 1:
        stretch = scipy.stats.t.ppf(0.975, prompts - 1) / scipy.stats.norm.ppf(0.975)
        stretch *= math.sqrt(prompts / (prompts - 1))
        draws = values.mean() + stretch * (draws - values.mean())
    error = np.std(values.mean(1), ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    return document_interval(draws, error, seeds - 1)[0]


def share_interval(shares, enough=5):
    """95 % interval of a share of hits, (S, N) shares of what S seeds made of N prompts:
    `crossed_interval` within [0, 1].

    Where fewer than `enough` prompts have a hit, or a miss, how much prompts differ cannot be seen,
    and each counts as one trial of Wilson's interval: nothing in 20 prompts is [0, 0.16], however
    often each was tried.
    """
    shares = np.asarray(shares, dtype=float)
    by_prompt = shares.mean(0)
    if min((by_prompt > 0).sum(), (by_prompt < 1).sum()) < enough:
        return list(wilson(by_prompt.sum(), len(by_prompt)))
    low, high = crossed_interval(shares)
    return [max(0.0, low), min(1.0, high)]


def sign_flip(differences):
    """Exact two-sided p-value of paired differences (n,), whole numbers, whose signs are coins
    where nothing is different. With differences of -1, 0 and 1 this is McNemar's exact test: 22 of
    the one and 13 of the other give 0.18."""
    differences = np.asarray(differences, dtype=int)
    probability = np.ones(1)  # of each sum of the pairs so far, from the lowest on
    for size in np.abs(differences):
        up, down = np.pad(probability, (2 * size, 0)), np.pad(probability, (0, 2 * size))
        probability = (up + down) / 2
    sums = np.arange(len(probability)) - np.abs(differences).sum()
    return float(min(1.0, probability[np.abs(sums) >= abs(differences.sum())].sum()))


# ---- of two curves -----------------------------------------------------------------------------

def steps_to_match(vals, target):
    """The step at which a validation curve first comes down to `target`, interpolated linearly;
    None if it never does."""
    before = None
    for after in vals:
        if after["val_loss"] <= target:
            if before is None:
                return float(after["step"])
            fall = before["val_loss"] - after["val_loss"]
            share = (before["val_loss"] - target) / fall
            return before["step"] + share * (after["step"] - before["step"])
        before = after
    return None


def speedup(arm, base):
    """Two runs -> the baseline's steps over the arm's to the same loss: total steps / the step at
    which the arm reaches the baseline's final loss. Where it never does, the step at which the
    baseline had reached the arm's final loss / total steps, below 1."""
    total = base["vals"][-1]["step"]
    reached = steps_to_match(arm["vals"], base["vals"][-1]["val_loss"])
    if reached is not None:
        return total / max(reached, 1)
    return steps_to_match(base["vals"], arm["vals"][-1]["val_loss"]) / total
