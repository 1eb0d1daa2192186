"""Which runs are compared: found below folders, finished, comparable, scored."""
import math
import zipfile
from pathlib import Path

import numpy as np

from lib.common import InputError
from lib.report import arm_of, difference, drop_clashes, order, read_run
from lib.stats import redraw_documents

# Runs that differ in these alone are horizons of one comparison.
HORIZON = ("max_steps", "warmup_steps")


# ---- found -------------------------------------------------------------------------------------

def find_runs(paths):
    """Folders of runs, or folders of such folders -> (runs, [(path, why it is no run)])."""
    runs, skipped = [], []
    for path in dict.fromkeys(str(path).rstrip("/") for path in paths):
        below = [str(log.parent) for log in sorted(Path(path).glob("*/log.jsonl"))]
        is_run = (Path(path) / "log.jsonl").is_file()
        for folder in [path] if is_run or not below else below:
            try:
                runs.append(read_run(folder))
            except InputError as error:
                skipped.append((folder, str(error)))
    return runs, skipped


def unfinished(run):
    """Why a run has no final loss, in words; "" if it has one: that of the last step."""
    steps = run["header"]["config"]["max_steps"]
    last = run["vals"][-1]["step"] if run["vals"] else 0
    if run["diverged"] is not None:
        return f"diverged: its validation loss at step {run['diverged']} is not finite"
    return f"unfinished, step {last} of {steps}" if last != steps else ""


def finished_runs(paths, notes):
    """The finished runs below `paths`; what else is there goes to `notes`. InputError if none."""
    found, skipped = find_runs(paths)
    notes += [f"skipped, no run: {why}" for _, why in skipped]
    runs = [r for r in found if not unfinished(r)]
    notes += [f"left out: {r['name']}: {unfinished(r)}" for r in found if unfinished(r)]
    if not runs:
        what = notes[0] if notes else f"no runs below {', '.join(paths)}"
        raise InputError(f"nothing to compare: {what} (give folders that train.py made)")
    return runs


def read_names(path):
    """Names of runs from a file, with blanks between them; of a plan.tsv those that stand in its own
    folder. InputError if it cannot be read."""
    try:
        text = Path(path).read_text()
        if path.endswith(".tsv"):
            names = [line.split("\t")[1] for line in text.splitlines()[1:]]
            return [name for name in names if "/" not in name]
        return list(dict.fromkeys(text.split()))
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"--planned={path}: cannot be read ({error})") from None


def not_run(planned, horizons):
    """A note on the planned names that no compared run has (not run, not finished or left out): a
    list of at most one line."""
    there = {Path(run["name"]).name for arms in horizons for by_seed in arms.values()
             for run in by_seed.values()}
    lacking = [name for name in planned if name not in there]
    return [f"planned and not compared, {len(lacking)} of {len(planned)}: "
            f"{', '.join(lacking)}"] if lacking else []


# ---- comparable --------------------------------------------------------------------------------

def group_runs(runs, free=()):
    """Runs -> lists of runs that can be compared: equal settings, the largest list first."""
    groups = []
    for run in runs:
        for group in groups:
            if not difference(group[0], run, free):
                group.append(run)
                break
        else:
            groups.append([run])
    return sorted(groups, key=lambda group: -len(group))


def by_arm(runs):
    """Runs -> {arm: {seed: run}}, in the order of the tables."""
    arms = {}
    for r in sorted(runs, key=order):
        arms.setdefault(arm_of(r), {})[r["header"]["config"]["seed"]] = r
    return arms


def select(runs, baseline, free, notes):
    """The largest set of comparable runs, and those that differ from it in HORIZON alone: a list of
    {arm: {seed: run}}, and the baseline."""
    groups = group_runs(runs, free)
    if baseline:
        groups.sort(key=lambda group: baseline not in map(arm_of, group))  # a stable sort
        if baseline not in map(arm_of, groups[0]):
            there = ", ".join(dict.fromkeys(map(arm_of, sorted(runs, key=order))))
            raise InputError(f"--baseline={baseline}: no finished run of that arm (there are "
                             f"{there})")
    horizons = []
    for group in groups:
        kept, dropped = drop_clashes(group)
        arms = by_arm(kept)
        if not horizons:
            baseline = baseline or ("bpe_tied" if "bpe_tied" in arms else next(iter(arms)))
        differs = difference(groups[0][0], group[0], free)
        horizon = not difference(groups[0][0], group[0], {*free, *HORIZON})
        if horizon and baseline in arms:
            notes += [f"left out: {r['name']}: {why}" for r, why in dropped]
            horizons.append(arms)
        else:
            others = f" and {len(group) - 1} more" if len(group) > 1 else ""
            why = f"no run of {baseline} beside it" if horizon else f"not comparable: {differs}"
            notes.append(f"left out: {group[0]['name']}{others}: {why}")
    return horizons, baseline


def equal_seeds(horizons):
    """Horizons, {arm: {seed: run}} each, with those seeds of an arm alone that every horizon of it
    has, so that its losses at several can be set side by side."""
    kept = []
    for arms in horizons:
        there = {arm: [h[arm].keys() for h in horizons if arm in h] for arm in arms}
        seeds = {arm: set.intersection(*map(set, found)) for arm, found in there.items()}
        kept.append({arm: {seed: by_seed[seed] for seed in sorted(seeds[arm])}
                     for arm, by_seed in arms.items() if seeds[arm]})
    return [arms for arms in kept if arms]


# ---- scored ------------------------------------------------------------------------------------

def read_evaluation(run):
    """A run's eval.npz (lib/evaluate.py says what is in it) -> {name: array}, or None if there is
    none. InputError if it is damaged."""
    path = Path(run["name"]) / "eval.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not {"doc_nats", "doc_tokens", "doc_bytes"} <= arrays.keys():
            raise ValueError("no documents in it")
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or of another kind ({error})") from None
    return arrays


def score(runs):
    """Give each run of a comparison its final "loss" and "bpb": of the whole validation split where
    every run has its eval.npz, else of the last validation; and "redrawn" (draws,), the loss on
    documents drawn anew. Returns notes on what is missing, a list."""
    for r in runs:
        last = r["vals"][-1]
        r |= {"eval": read_evaluation(r), "redrawn": None, "loss": last["val_loss"],
              "bpb": last.get("val_bpb")}
    lacking = [r["name"] for r in runs if r["eval"] is None]
    if lacking:
        return [f"no eval.npz in {len(lacking)} of {len(runs)} runs ({lacking[0]}): losses are of "
                "the last validation's blocks, and there are no intervals over documents"]
    tokens = runs[0]["eval"]["doc_tokens"]
    for r in runs:
        if not np.array_equal(r["eval"]["doc_tokens"], tokens):
            return [f"{r['name']} scored other documents: there are no intervals over documents"]
    redrawn = redraw_documents(np.array([r["eval"]["doc_nats"] for r in runs]), tokens)
    for r, column in zip(runs, redrawn.T):
        nats, size = (float(r["eval"][key].sum()) for key in ("doc_nats", "doc_bytes"))
        r |= {"redrawn": column, "loss": nats / float(tokens.sum()),
              "bpb": nats / math.log(2) / size}
    return []
