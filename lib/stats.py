"""Numbers over seeds, documents and pairs -> means, intervals and p-values."""
import math
import statistics
from functools import lru_cache

import numpy as np


# ---- over seeds --------------------------------------------------------------------------------

@lru_cache
def student_mass(degrees):
    """Student's distribution as a fine sum: with x = sqrt(degrees) tan(a) its density becomes
    cos(a)^(degrees - 1). Edges a (n,) from 0 to pi/2 and P(|T| < x) at each, (n,)."""
    edges = np.linspace(0, math.pi / 2, 1_000_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1)
    mass = np.concatenate([[0], np.cumsum(density)])
    return edges, mass / mass[-1]


def student_quantile(degrees, level=0.95):
    """t with P(|T| < t) = level for Student's T; 12.706, 4.303, 3.182 for 1, 2, 3 degrees of
    freedom."""
    edges, mass = student_mass(degrees)
    return math.sqrt(degrees) * math.tan(np.interp(level, mass, edges))


def student_p(t, degrees):
    """P(|T| > |t|) for Student's T, to about 1e-6: the two-sided p-value of a t statistic."""
    edges, mass = student_mass(degrees)
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(degrees)), edges, mass))


def summary(values):
    """Numbers, one per seed -> {"mean", "sd", "n", "interval"}; sample sd and 95 % Student
    interval are None for one seed."""
    values = list(values)
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"mean": mean, "sd": None, "n": n, "interval": None}
    sd = statistics.stdev(values)
    half = student_quantile(n - 1) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "n": n, "interval": [mean - half, mean + half]}


def spread(values):
    """One value per seed (n,) -> {"mean", "sd", "per_seed"}; the sample standard deviation is None
    for one seed."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "per_seed": [float(x) for x in values]}


def pooled_sd(values):
    """The residual deviation of an additive model, value = arm + seed + residual, by least squares.

    `values`: {(arm, seed): value}. Returns (sd, degrees of freedom), which are (A-1)(S-1) where
    each of A arms has each of S seeds; (None, 0) where nothing is left to estimate it from.
    """
    arms = sorted({arm for arm, _ in values})
    seeds = sorted({seed for _, seed in values})
    design = np.zeros((len(values), len(arms) + len(seeds)))
    for row, (arm, seed) in zip(design, values):
        row[arms.index(arm)] = 1
        row[len(arms) + seeds.index(seed)] = 1
    y = np.array(list(values.values()), dtype=float)
    fit, _, rank, _ = np.linalg.lstsq(design, y)
    degrees = len(y) - int(rank)
    if degrees == 0:
        return None, 0
    residual = y - design @ fit
    return math.sqrt(residual @ residual / degrees), degrees


def pooled_interval(gap, n, sd, degrees):
    """95 % interval and p-value of a gap between two arms over n common seeds, each arm's values
    having the residual deviation `sd`: ([low, high], p)."""
    error = sd * math.sqrt(2 / n)
    half = student_quantile(degrees) * error
    p = student_p(gap / error, degrees) if error else float(gap == 0)
    return [gap - half, gap + half], p


# ---- over documents ----------------------------------------------------------------------------

DRAWS = 10_000


def redraw_documents(nats, tokens, draws=DRAWS):
    """Mean losses on documents drawn anew with replacement.

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
    """95 % interval and two-sided p-value of a gap from its redrawn values (draws,), the mean over
    seeds where there are several: ([low, high], p).

    Seeds are crossed in through `error`, their gaps' standard error with its degrees of freedom:
    each draw gets a value of Student's distribution, since a few seeds drawn anew would give too
    narrow an interval (two thirds of the variance at three). With error 0 it holds for these very
    training runs.
    """
    draws = np.asarray(gaps, dtype=float)
    if error:
        edges, mass = student_mass(degrees)
        u = (np.arange(len(draws)) + 0.5) / len(draws)  # the distribution evenly, not at random
        t = math.sqrt(degrees) * np.tan(np.interp(abs(2 * u - 1), mass, edges)) * np.sign(u - 0.5)
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
    z, p = 1.959964, hits / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


# ---- over prompts crossed with seeds -----------------------------------------------------------

def crossed_interval(values):
    """95 % interval of a mean over seeds and prompts, (S, N) numbers: prompts drawn anew, seeds as
    in `document_interval`. With one seed it holds for that very training run. [low, high].

    Few prompts drawn anew vary too little, by (N-1)/N, and the normal tail is too short for them:
    the draws are stretched to Student's interval of N numbers.
    """
    values = np.asarray(values, dtype=float)
    seeds, prompts = values.shape
    drawn = np.random.RandomState(0).randint(0, prompts, (DRAWS, prompts))
    draws = values.mean(0)[drawn].mean(1)
    if prompts > 1:
        stretch = student_quantile(prompts - 1) / 1.959964 * math.sqrt(prompts / (prompts - 1))
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
