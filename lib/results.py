"""log.jsonl and eval.npz of many runs, and which of them can be compared."""
import math
import re
import sys
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lib.config import ARM_KEYS, Config, modernise
from lib.errors import InputError
from lib.plots import ARMS
from lib.run_folder import read_log
from lib.stats import redraw_documents


def order(run):
    """Sort key of a run: arms as in ARMS, others after them by name, then seeds."""
    arm = arm_of(run)
    base = arm.split(",")[0]
    place = list(ARMS).index(base) if base in ARMS else len(ARMS)
    natural = re.sub(r"\d+", lambda number: number[0].zfill(9), arm)  # rank=6 before rank=12
    return place, natural, run["header"]["config"]["seed"]


def arm_of(run):
    """What a run's arm is called in tables: its header's name, unless a comparison gave another."""
    return run.get("arm", run["header"]["arm"])


# ---- runs in -----------------------------------------------------------------------------------

# Runs that are compared may differ in these: they make the arm, leave its numbers alone, or change
# bits, not batches.
BITS = ("dtype", "device", "compile")

FREE = {*ARM_KEYS, *BITS, "seed", "name", "wandb_log", "log_interval", "eval_interval"}


def is_number(x):
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def read_run(folder):
    """out/RUN -> {"name", "header", "steps", "vals", "diverged", "went_on"}; steps and vals are the
    log's records in step order, diverged is the step of a last validation that was not finite, or
    None, went_on the keys, hardware and code that were others when it went on after a stop.

    InputError if it holds no run's log.
    """
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: no log.jsonl there, not a run")
    records, dropped = read_log(path)
    header = records[0] if records else {}
    parts = [header.get(key) for key in ("config", "params", "data")]
    if not isinstance(header.get("arm"), str) or not all(isinstance(p, dict) for p in parts):
        raise InputError(f"{path}: no header, not a run's log")
    for key in ("max_steps", "seed"):
        if not isinstance(header["config"].get(key), int):
            raise InputError(f"{path}: its header has no {key}, not a run's log")
    if dropped:
        print(f"note: {path}: {dropped} unreadable line{'s' if dropped > 1 else ''} dropped",
              file=sys.stderr)
    header["config"] = asdict(Config()) | modernise(header["config"])
    steps = [r for r in records[1:] if is_number(r.get("loss"))]
    scored = [r for r in records[1:] if "val_loss" in r]
    vals = [r for r in scored if is_number(r["val_loss"])]
    diverged = scored[-1]["step"] if scored and scored[-1] not in vals else None
    went_on = sorted({key for r in records[1:] for key in r.get("went_on_with", {})})
    return {"name": str(folder), "header": header, "steps": steps, "vals": vals,
            "diverged": diverged, "went_on": went_on}


# ---- which runs can be compared ----------------------------------------------------------------

def settings(run, free=()):
    """All that must be equal in runs that are compared: config, but for the FREE keys and those in
    `free`; data; by how many steps a finished run was extended, since its rate fell twice."""
    config = run["header"]["config"]
    kept = {key: value for key, value in config.items() if key not in FREE and key not in free}
    return kept | {"data": run["header"]["data"], "extended": run["header"].get("extended")}


def difference(a, b, free=()):
    """The first setting in which two runs differ, in words, or ""."""
    ours, theirs = settings(a, free), settings(b, free)
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            return (f"{key} is {ours.get(key)} in {a['name']} and {theirs.get(key)} in "
                    f"{b['name']}")
    return ""


def drop_clashes(runs):
    """Runs of equal settings -> (those that fit together, [(run, why it does not)]): one run per
    arm and seed, one set of arm keys per arm, the same batches in runs of the same seed."""
    first_of_arm, first_of_seed, seen, kept, dropped = {}, {}, {}, [], []
    for run in runs:
        arm, seed = arm_of(run), run["header"]["config"]["seed"]
        like, twin = first_of_arm.get(arm, run), first_of_seed.get(seed, run)
        step = other_batch(twin, run)
        keys = [key for key in ARM_KEYS
                if like["header"]["config"].get(key) != run["header"]["config"].get(key)]
        if keys:
            mine, other = (r["header"]["config"].get(keys[0]) for r in (run, like))
            why = f"not comparable: {keys[0]} is {other} in {like['name']} and {mine} in it"
        elif (arm, seed) in seen:
            why = f"{seen[arm, seed]} is the same arm and seed"
        elif step is not None:
            why = f"not comparable: step {step} saw other batches than in {twin['name']}"
        else:
            first_of_arm.setdefault(arm, run)
            first_of_seed.setdefault(seed, run)
            seen[arm, seed] = run["name"]
            kept.append(run)
            continue
        dropped.append((run, why))
    return kept, dropped


def other_batch(a, b):
    """The first step of which both logs have a batch's checksum and disagree, or None."""
    batches = {record["step"]: record.get("batch_crc") for record in a["steps"]}
    for record in b["steps"]:
        step, crc = record["step"], record.get("batch_crc")
        if batches.get(step, crc) != crc:
            return step
    return None


def refuse_unmatched(runs, free=()):
    """InputError, naming the first difference, if runs differ in anything but arm, seed and the
    keys `free`, or if equal seeds saw other batches."""
    for run in runs:
        if differs := difference(runs[0], run, free):
            raise InputError(f"not comparable: {differs}")
    for run, why in drop_clashes(runs)[1]:
        raise InputError(f"{run['name']}: {why}")


def provenance(runs):
    """What a reader must know of the code that made some runs: lines, none if all is as it should
    be. Files that no commit has, what a run went on with after a stop, several code hashes."""
    dirty = [r["name"] for r in runs if r["header"].get("commit", "").endswith("+changes")]
    lines = [f"made from files that no commit has (+changes): {', '.join(dirty)}"] if dirty else []
    for run in runs:
        if run["went_on"]:
            lines.append(f"{run['name']} went on after a stop with other "
                         f"{', '.join(run['went_on'])}")
    for key in BITS:
        found = Counter(str(r["header"]["config"][key]) for r in runs)
        if len(found) > 1:
            counts = ", ".join(f"{value} ({n} runs)" for value, n in found.most_common())
            lines.append(f"{key} is not the same in all runs, which changes bits, not batches: "
                         f"{counts}")
    versions = Counter(r["header"].get("code_hash", "unknown") for r in runs)
    if len(versions) > 1:
        counts = ", ".join(f"{code} ({n} runs)" for code, n in versions.most_common())
        lines.append(f"several versions of the code that decides numbers: {counts}")
    return lines


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
