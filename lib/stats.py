"""Numbers over seeds and pairs -> means with intervals."""
import math
import statistics

import numpy as np


def student_quantile(degrees, level=0.95):
    """t with P(|T| < t) = level for Student's T; 12.706, 4.303, 3.182 for 1, 2, 3 degrees of
    freedom.

    With x = sqrt(degrees) tan(a) the density becomes cos(a)^(degrees - 1), which a fine sum
    integrates.
    """
    edges = np.linspace(0, math.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(level * mass[-1], mass, edges[1:]))


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


def bootstrap(differences, draws=10_000):
    """95 % percentile interval of the mean of paired differences (n,): the pairs drawn anew with a
    fixed seed. (low, high)."""
    n = len(differences)
    drawn = np.random.RandomState(0).randint(0, n, (draws, n))
    return np.quantile(np.asarray(differences)[drawn].mean(1), [0.025, 0.975]).tolist()


def wilson(hits, trials):
    """95 % interval of a binomial proportion: Wilson's score interval (1927). (low, high)."""
    z, p = 1.959964, hits / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
