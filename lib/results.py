"""log.jsonl and eval.npz of many runs -> one table, and which of the runs can be compared."""
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
from lib.stats import bootstrap_documents

# Runs that are compared may differ in these: they change bits, not batches; or no number at all.
BITS = ("dtype", "device", "compile", "code_form")
SILENT = ("seed", "name", "wandb_log", "log_interval", "eval_interval")
NO_ARM = {*BITS, *SILENT}
FREE = {*ARM_KEYS, *NO_ARM}

# Runs that differ in these alone are horizons of one comparison.
HORIZON = ("max_steps", "warmup_steps")

# Code hashes under which runs are equal bit for bit, of old code and new: {hash: (the hash that it
# is counted as, how that is known)}.
SAME_CODE = {
    # 20 float32 steps of 27 configs, four of them also killed and resumed: loss, gradient norm,
    # batch and validation loss were equal
    "b4200fc97b64": ("901315a7f549", "the same code before files were split anew"),
}


def arm_of(run):
    """What a run's arm is called in tables: the name that a comparison gave it, else its header's,
    without keys that only change bits."""
    base, *options = run.get("arm", run["header"]["arm"]).split(",")
    return ",".join([base, *(o for o in options if o.split("=")[0] not in BITS)])


def order(run):
    """Sort key of a run: arms as in ARMS, others after them by name, then seeds; in a comparison by
    one key its value in the arm's place."""
    if "by" in run:
        return 0, run["by"], run["header"]["config"]["seed"]
    arm = arm_of(run)
    base = arm.split(",")[0]
    place = list(ARMS).index(base) if base in ARMS else len(ARMS)
    natural = re.sub(r"\d+", lambda number: number[0].zfill(9), arm)  # rank=6 before rank=12
    return place, natural, run["header"]["config"]["seed"]


# ---- runs in -----------------------------------------------------------------------------------

def is_number(x):
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def read_run(folder):
    """out/RUN -> {"name", "header", "steps", "vals", "diverged", "went_on", "missing"}; steps and
    vals are the log's records in step order, diverged is the step of a last validation that was not
    finite, or None, went_on the keys, hardware and code that were others when it went on after a
    stop, missing the first step up to the last one that has no line and should have one, or None.

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
    steps = [r for r in records[1:] if is_number(r.get("loss"))]
    scored = [r for r in records[1:] if "val_loss" in r]
    vals = [r for r in scored if is_number(r["val_loss"])]
    diverged = scored[-1]["step"] if scored and scored[-1] not in vals else None
    went_on = sorted({key for r in records[1:] for key in r.get("went_on_with", {})})
    missing = first_missing(records, went_on)
    header["config"] = asdict(Config()) | modernise(header["config"])
    return {"name": str(folder), "header": header, "steps": steps, "vals": vals,
            "diverged": diverged, "went_on": went_on, "missing": missing}


def first_missing(records, went_on):
    """The first step, up to the last that is logged, whose line of training or of validation is not
    there although the run's intervals ask for it; None if the log is whole."""
    config = records[0]["config"]
    last = max((record.get("step", 0) for record in records), default=0)
    missing = []
    for key, found in (("log_interval", "loss"), ("eval_interval", "val_loss")):
        if config.get(key) and key not in went_on:
            there = {record.get("step") for record in records[1:] if found in record}
            missing += set(range(config[key], last + 1, config[key])) - there
    return min(missing, default=None)


def find_runs(paths):
    """Folders of runs, or folders of such folders -> (runs, [(path, why it is no run)])."""
    runs, skipped = [], []
    for path in dict.fromkeys(str(path).rstrip("/") for path in paths):
        below = [str(log.parent) for log in sorted(Path(path).glob("*/log.jsonl"))]
        is_run = (Path(path) / "log.jsonl").is_file()
        for folder in [path] if is_run or not below else below:
            if folder.endswith(".old") and Path(folder.removesuffix(".old")).is_dir():
                skipped.append((folder, f"{folder}: a run that --overwrite put aside"))
                continue
            try:
                runs.append(read_run(folder))
            except InputError as error:
                skipped.append((folder, str(error)))
    return runs, skipped


def unfinished(run):
    """Why a run has no final loss, in words; "" if it has one: that of the last step."""
    steps = run["header"]["config"]["max_steps"]
    last = run["vals"][-1]["step"] if run["vals"] else 0
    if run["missing"] is not None:
        return f"its log is not whole: nothing of step {run['missing']}"
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
    arm and seed, one set of arm keys per arm, one name for runs that differ in BITS alone, the same
    batches in runs of the same seed. Of a comparison by one key, "by" is its value, and "batches"
    too where that decides the batches."""
    first_of_arm, first_of_keys, first_of_seed, seen, kept, dropped = {}, {}, {}, {}, [], []
    for run in runs:
        arm, seed, config = arm_of(run), run["header"]["config"]["seed"], run["header"]["config"]
        decisive = (run.get("by"), *(config[key] for key in sorted(config.keys() - NO_ARM)))
        like, twin = first_of_arm.get(arm, run), first_of_seed.get((seed, run.get("batches")), run)
        namesake, step = first_of_keys.get(decisive, arm), other_batch(twin, run)
        keys = [key for key in ARM_KEYS if key not in BITS
                and like["header"]["config"].get(key) != run["header"]["config"].get(key)]
        if keys:
            mine, other = (r["header"]["config"].get(keys[0]) for r in (run, like))
            why = f"not comparable: {keys[0]} is {other} in {like['name']} and {mine} in it"
        elif namesake != arm:
            why = f"it is the arm {namesake} under another name"
        elif (arm, seed) in seen:
            why = f"{seen[arm, seed]} is the same arm and seed"
        elif step is not None:
            why = f"not comparable: step {step} saw other batches than in {twin['name']}"
        else:
            first_of_arm.setdefault(arm, run)
            first_of_keys.setdefault(decisive, arm)
            first_of_seed.setdefault((seed, run.get("batches")), run)
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
        if counts := unequal(r["header"]["config"][key] for r in runs):
            lines.append(f"{key} is not the same in all runs, which changes bits, not batches: "
                         f"{counts}")
    hashes = [r["header"].get("code_hash", "unknown") for r in runs]
    if counts := unequal(SAME_CODE.get(code, (code,))[0] for code in hashes):
        lines.append(f"several versions of the code that decides numbers: {counts}")
    return lines


def unequal(values):
    """How many runs have which value, in words; "" if all have one."""
    found = Counter(str(value) for value in values).most_common()
    return ", ".join(f"{value} ({n} runs)" for value, n in found) if len(found) > 1 else ""


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


def select(runs, baseline, free, notes):
    """The largest set of comparable runs, and those that differ from it in HORIZON alone: a list of
    tables (`as_table`), and the baseline. What is left out goes to `notes`."""
    groups = group_runs(sorted(runs, key=order), free)
    if baseline:
        groups.sort(key=lambda group: baseline not in map(arm_of, group))  # a stable sort
        if baseline not in map(arm_of, groups[0]):
            there = ", ".join(dict.fromkeys(map(arm_of, sorted(runs, key=order))))
            raise InputError(f"--baseline={baseline}: no finished run of that arm (there are "
                             f"{there})")
    horizons = []
    for group in groups:
        kept, dropped = drop_clashes(group)
        arms = list(map(arm_of, kept))
        if not horizons:
            baseline = baseline or ("bpe_tied" if "bpe_tied" in arms else arms[0])
        differs = difference(groups[0][0], group[0], free)
        horizon = not difference(groups[0][0], group[0], {*free, *HORIZON})
        if horizon and baseline in arms:
            notes += [f"left out: {r['name']}: {why}" for r, why in dropped]
            horizons.append(as_table(kept, baseline, notes))
        else:
            others = f" and {len(group) - 1} more" if len(group) > 1 else ""
            why = f"no run of {baseline} beside it" if horizon else f"not comparable: {differs}"
            notes.append(f"left out: {group[0]['name']}{others}: {why}")
    return horizons, baseline


# ---- one table ---------------------------------------------------------------------------------

def as_table(runs, baseline, notes):
    """Comparable runs -> a table with a row a run: arm, seed, kind ("own head": a V x d table of
    its own, or "input's head": tied or coded), the final loss and bpb (bits per byte), run (what
    `read_run` gave), evaluation (of eval.npz) and bootstrap (draws,), the loss on documents
    resampled, or None.

    Losses are of the whole validation split where every run has its eval.npz, else of the last
    validation. Of two arms with one loss, to six digits, at one seed the second is left out, since
    it is a copy and would narrow intervals; the baseline stays. What is missing goes to `notes`.
    """
    import pandas as pd  # takes half a second, which --help need not wait for
    scored = [read_evaluation(run) for run in runs]
    lacking = [run["name"] for run, arrays in zip(runs, scored) if arrays is None]
    if lacking:
        notes.append(f"no eval.npz in {len(lacking)} of {len(runs)} runs ({lacking[0]}): "
                     "losses are of the last validation's blocks, without intervals over documents")
    rows, first = [], {}
    for run, arrays in zip(runs, scored):
        config, last = run["header"]["config"], run["vals"][-1]
        row = {"arm": arm_of(run), "seed": config["seed"], "loss": last["val_loss"],
               "kind": "own head" if config["head"] == "table" else "input's head",
               "bpb": last.get("val_bpb"), "run": run, "evaluation": arrays, "bootstrap": None}
        if not lacking:
            nats, tokens, size = (float(arrays[f"doc_{key}"].sum())
                                  for key in ("nats", "tokens", "bytes"))
            row |= {"loss": nats / tokens, "bpb": nats / math.log(2) / size}
        rows.append(row)
    kept = []
    for row in sorted(rows, key=lambda row: row["arm"] != baseline):
        twin = first.setdefault((row["seed"], round(row["loss"], 6)), row)
        if twin is row:
            kept.append(row)
        else:
            notes.append(f"left out: {row['run']['name']}: the loss of {twin['run']['name']} to "
                         "six digits, one run under two names")
    kept.sort(key=lambda row: order(row["run"]))
    if not lacking:
        tokens = kept[0]["evaluation"]["doc_tokens"]
        others = [row["run"]["name"] for row in kept
                  if not np.array_equal(row["evaluation"]["doc_tokens"], tokens)]
        if others:
            notes.append(f"{others[0]} scored other documents: there are no intervals over "
                         "documents")
        else:
            nats = np.array([row["evaluation"]["doc_nats"] for row in kept])
            for row, column in zip(kept, bootstrap_documents(nats, tokens).T):
                row["bootstrap"] = column
    return pd.DataFrame(kept)


def equal_seeds(tables):
    """Tables of several horizons, with those seeds of an arm alone that every horizon with that arm
    has, so that its losses at several can be set side by side."""
    seeds = {}
    for table in tables:
        for arm, group in table.groupby("arm"):
            seeds[arm] = seeds.get(arm, set(group["seed"])) & set(group["seed"])
    return [table[[seed in seeds[arm] for arm, seed in zip(table["arm"], table["seed"])]]
            for table in tables]


def not_run(folder, tables):
    """A note on the runs of FOLDER/plan.tsv, of its own folder, that no table has (not run, not
    finished or left out): a list of at most one line. InputError if it is no plan."""
    path = Path(folder) / "plan.tsv"
    if not path.is_file():
        return []
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    if any(len(row) < 2 for row in rows):
        raise InputError(f"{path}: a line is item, name and arguments, with tabs between them")
    planned = [row[1] for row in rows if "/" not in row[1]]
    there = {Path(run["name"]).name for table in tables for run in table["run"]}
    lacking = [name for name in planned if name not in there]
    return [f"planned and not compared, {len(lacking)} of {len(planned)}: "
            f"{', '.join(lacking)}"] if lacking else []
