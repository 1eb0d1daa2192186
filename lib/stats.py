"""Numbers over seeds, documents and pairs -> means, intervals and p-values, on scipy.stats."""
import math
import statistics

import numpy as np
import scipy  # loads scipy.stats, which takes a second, where it is first used

DRAWS = 10_000  # of a bootstrap
LEVEL = 0.05  # nats: an interval within it on both sides of 0 says that two arms are level


def student_interval(mean, error, degrees):
    """95 % interval and two-sided p-value of a mean with its standard error: ([low, high], p)."""
    half = float(scipy.stats.t.ppf(0.975, degrees)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, degrees)) if error else float(mean == 0)
    return [mean - half, mean + half], p


def summary(values):
    """Numbers, one per seed -> {"mean", "sd", "n", "interval", "p", "per_seed"}; the sample sd,
    Student's 95 % interval and two-sided p-value are None for one seed."""
    values = [float(value) for value in values]
    n, mean, sd, interval, p = len(values), statistics.fmean(values), None, None, None
    if n > 1:
        sd = statistics.stdev(values)
        interval, p = student_interval(mean, sd / math.sqrt(n), n - 1)
    return {"mean": mean, "sd": sd, "n": n, "interval": interval, "p": p, "per_seed": values}


def residual_deviations(table):
    """The deviations of loss = arm + seed + residual by kind of arm, {kind: {"sd", "degrees" of
    freedom}}: least squares, with several kinds weighted until their variances stand still
    (restricted maximum likelihood)."""
    design = np.hstack([np.eye(len(table))[table.groupby(key).ngroup()] for key in ("arm", "seed")])
    y, (kinds, kind) = table["loss"].to_numpy(), np.unique(table["kind"], return_inverse=True)
    variance = np.ones(len(kinds))
    for _ in range(200):
        before, weight = variance, 1 / np.sqrt(np.maximum(variance, 1e-12))[kind]
        columns = scipy.linalg.orth(design * weight[:, None], rcond=1e-9)
        residual = (y * weight - columns @ (columns.T @ (y * weight))) / weight
        degrees = np.bincount(kind, 1 - (columns**2).sum(1))  # how many the fit leaves free
        squares = np.bincount(kind, residual**2)
        variance = np.where(degrees > 1e-6, squares / np.maximum(degrees, 1e-6), 1.0)
        if np.allclose(variance, before, rtol=1e-7, atol=0):
            break
    found = zip(kinds.tolist(), np.sqrt(variance).tolist(), degrees.tolist())
    return {kind: {"sd": sd, "degrees": free} for kind, sd, free in found if free > 1e-6}


def gap_variance(deviations, kinds):
    """The variance of one seed's gap between arms of two kinds, and its degrees of freedom:
    Satterthwaite's (1946) where the kinds differ. A kind without a deviation has the other's."""
    known = [deviations[kind] for kind in kinds if kind in deviations]
    if not known:
        return None, 0
    (a, of_a), (b, of_b) = ((one["sd"]**2, one["degrees"]) for one in (known[0], known[-1]))
    if known[0] == known[-1] or not a + b:
        return a + b, of_a
    return a + b, (a + b)**2 / (a**2 / of_a + b**2 / of_b)


def holm(p_values, count):
    """p-values corrected for `count` planned tests, made or not (Holm 1979)."""
    ranks = np.argsort(p_values)
    corrected = np.maximum.accumulate((count - np.arange(len(ranks))) * np.sort(p_values))
    return np.minimum(corrected, 1)[np.argsort(ranks)].tolist()


def bootstrap_documents(nats, tokens, draws=DRAWS):
    """Mean losses on documents resampled with replacement: nats (R, N) of R runs on documents of
    `tokens` (N,) each -> (draws, R). All runs share the draws, so differences are paired."""
    rng, N = np.random.default_rng(0), len(tokens)
    columns = np.concatenate([nats, [tokens]]).T.astype(float)  # (N, R + 1)
    sums = np.array([np.bincount(rng.integers(0, N, N), minlength=N) @ columns  # times drawn
                     for _ in range(draws)])
    return sums[:, :-1] / sums[:, -1:]


def document_interval(draws, error, degrees):
    """95 % interval and two-sided p-value of a gap from its bootstrap (draws,): ([low, high], p).
    Each draw gets a value of Student's distribution times `error`, the standard error over seeds;
    with error 0 it holds for these very training runs."""
    if error:  # the distribution evenly, not at random
        t = scipy.stats.t.ppf((np.arange(len(draws)) + 0.5) / len(draws), degrees)
        draws = draws + error * np.random.default_rng(1).permutation(t)
    low, high = np.quantile(draws, [0.025, 0.975])
    beyond = 1 + min((draws <= 0).sum(), (draws >= 0).sum())
    return [float(low), float(high)], float(min(1, 2 * beyond / (len(draws) + 1)))


def reached_at(vals, target):
    """The step at which a validation curve first comes down to `target`, interpolated, or None."""
    for before, val in zip([vals[0], *vals], vals):
        if val["val_loss"] <= target:
            (low, step), (high, start) = ((v["val_loss"], v["step"]) for v in (val, before))
            return float(np.interp(target, [low, high], [step, start]))
    return None


def steps_to_match(arm, base):
    """Two runs -> total steps over the step at which the arm reaches the base's final loss; where
    it never does, the step at which the base had reached the arm's final loss over total steps."""
    last = base["vals"][-1]
    reached = reached_at(arm["vals"], last["val_loss"])
    if reached is None:
        return reached_at(base["vals"], arm["vals"][-1]["val_loss"]) / last["step"]
    return last["step"] / max(reached, 1)


def paired(table, arm, base, deviations):
    """The gap arm - base, paired by seed, with its intervals; "not run" without a common seed.
    "pooled" has the deviations of all arms; "documents" is over documents crossed with seeds.
    "interval" and "p" are the pooled ones, with one seed the wider one of the two."""
    ours, theirs = (table[table["arm"] == name] for name in (arm, base))
    both = ours.merge(theirs, on="seed", suffixes=("", "_base")).sort_values("seed")
    if both.empty:
        return {"gap": None, "verdict": ["not run"]}
    n, gaps = len(both), both["loss"] - both["loss_base"]
    gap, documents = summary(gaps), (None, None)
    variance, degrees = gap_variance(deviations, both[["kind", "kind_base"]].iloc[0])
    error = math.sqrt(variance / n) if degrees else 0.0
    pooled = student_interval(gap["mean"], error, degrees) if degrees else (None, None)
    if both["bootstrap"].notna().all():
        draws = np.mean((both["bootstrap"] - both["bootstrap_base"]).tolist(), axis=0)
        documents = document_interval(draws, error if n > 1 else 0.0, degrees)
    one_seed = n == 1 and documents[0] and (not degrees or np.ptp(documents[0]) > np.ptp(pooled[0]))
    (interval, p), rests_on = (documents, "documents") if one_seed else (pooled, "seeds")
    pair = {"arm": arm, "base": base, "seeds": both["seed"].tolist(), "gap": gap,
            "pooled": pooled[0], "documents": documents[0],
            "interval": interval, "p": p, "rests_on": rests_on if interval else None,
            "percent": summary(100 * (both["loss"] / both["loss_base"] - 1)),
            "steps_to_match": summary(map(steps_to_match, both["run"], both["run_base"])),
            "asked": int(both[["asked", "asked_base"]].to_numpy().min())}
    return pair | {"verdict": verdict(pair, p)}


def verdict(pair, p):
    """What a gap says, a list: "lower" or "higher" at 5 %, "level" where the interval lies within
    LEVEL; both can hold. Else, and of one seed where several are planned, "not known"."""
    if pair["gap"]["n"] == 1 < pair["asked"]:
        return ["not known"]
    found = []
    if p is not None and p < 0.05:
        found.append("lower" if pair["gap"]["mean"] < 0 else "higher")
    if pair["interval"] and -LEVEL <= pair["interval"][0] and pair["interval"][1] <= LEVEL:
        found.append("level")
    return found or ["not known"]
