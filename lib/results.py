"""log.jsonl and eval.npz of many runs -> one table, and which of the runs can be compared."""
import csv
import json
import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lib.config import ARM_KEYS, Config
from lib.errors import InputError, one_line
from lib.plots import ARMS
from lib.run_folder import read_log
from lib.stats import bootstrap_documents

# Runs that are compared may differ in these: they change bits, not batches; or no number at all.
BITS = ("dtype", "device", "compile", "code_form")
SILENT = ("seed", "name", "log_interval", "eval_interval")
NO_ARM = {*BITS, *SILENT}

# Runs that differ in these alone are horizons of one comparison.
HORIZON = ("max_steps", "warmup_steps")

# The columns of the planned runs; of the questions, exploratory where the kind is not
# "confirmatory", whose column "through" may name arms on the way.
COLUMNS = {"plan.tsv": ["item", "name", "arguments"],
           "contrasts.tsv": ["question", "arm", "base", "kind"]}

# What a log's header has, and each validation that is not NaN.
HEADER = {"arm", "params", "data", "config", "commit", "code_hash", "hardware", "epochs",
          "tokens_per_step"}
VALIDATION = {"val_bpb", "input_rms", "update_ratio"}

# Groups of input tokens by how often training saw them, and the first of their bins in eval.npz.
SEEN = {"under 256": 0, "256 to 1,023": 9, "1,024 to 8,191": 11, "more": 14}

# Code hashes under which runs are equal bit for bit: {hash: the hash that it is counted as}. Files
# were split anew; 20 float32 steps of 27 configs were equal, four also killed and resumed.
SAME_CODE = {"b4200fc97b64": "66fdc01d2960"}


def plain_arm(arm, keys=BITS):
    """An arm's name without some keys: lowrank,rank=32,dtype=float32 -> lowrank,rank=32."""
    base, *options = arm.split(",")
    return ",".join([base, *(o for o in options if o.split("=")[0] not in keys)])


def order(run):
    """Sort key of a run: with --by its value, else arms as in ARMS, others by name; then seeds."""
    arm, seed = run["arm"], run["header"]["config"]["seed"]
    if "by" in run:
        return 0, run["by"], seed
    place = [*ARMS, arm.split(",")[0]].index(arm.split(",")[0])
    return place, re.sub(r"\d+", lambda number: number[0].zfill(9), arm), seed  # rank=6, rank=12


def read_run(folder):
    """out/RUN -> {"name", "arm", "header", "steps" and "vals": records of the log, "diverged": the
    step of a last validation that was not finite, "resumed_with": what changed when it was resumed,
    "missing": the first step whose line the log should have, "last": the last that it has}.
    InputError if it is no run's log."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: no log.jsonl there, not a run")
    header, *records = read_log(path) or [{}]
    if lacking := HEADER - header.keys():
        raise InputError(f"{path}: no header, not a run's log (no {', '.join(sorted(lacking))})")
    config = asdict(Config()) | header["config"]
    steps, scored = ([r for r in records if key in r] for key in ("loss", "val_loss"))
    vals = [r for r in scored if r["val_loss"] is not None and math.isfinite(r["val_loss"])]
    if lacking := {key for r in vals for key in VALIDATION - r.keys()}:
        raise InputError(f"{path}: a log of other code (no {', '.join(sorted(lacking))})")
    resumed_with = sorted({key for r in records for key in r.get("resumed_with", {})})
    last, missing = max((r.get("step", 0) for r in records), default=0), set()
    for key, there in (("log_interval", steps), ("eval_interval", scored)):
        if key not in resumed_with:
            wanted = range(config[key], last + 1, config[key])
            missing |= {*wanted} - {r.get("step") for r in there}
    return {"name": str(folder), "arm": plain_arm(header["arm"]),
            "header": header | {"config": config}, "steps": steps, "vals": vals,
            "resumed_with": resumed_with, "missing": min(missing, default=None), "last": last,
            "diverged": scored[-1].get("step") if scored and scored[-1] not in vals else None}


def find_runs(paths, notes):
    """The runs at or below some folders, each once; what is none goes to `notes`."""
    runs = {}
    for path in map(Path, paths):
        below = [log.parent for log in sorted(path.glob("*/log.jsonl"))]
        for folder in [path] if (path / "log.jsonl").is_file() or not below else below:
            try:
                if folder.suffix == ".old" and folder.with_suffix("").is_dir():
                    raise InputError(f"{folder}: a run that --overwrite put aside")
                runs.setdefault(folder.resolve(), read_run(folder))
            except InputError as error:
                notes.append(f"skipped, no run: {error}")
    return list(runs.values())


def unfinished(run):
    """Why a run has no final loss, in words; "" if it has one: that of the last step."""
    steps = run["header"]["config"]["max_steps"]
    if run["missing"] is not None:
        return f"its log is not whole: nothing of step {run['missing']}"
    if run["diverged"] is not None:
        return f"diverged: its validation loss at step {run['diverged']} is not finite"
    if run["vals"] and run["vals"][-1]["step"] == steps:
        return ""
    return f"unfinished, step {run['last']} of {steps}"


def finished_runs(paths, notes):
    """The finished runs below `paths`; what else is there goes to `notes`. InputError if none."""
    found = find_runs(paths, notes)
    notes += [f"left out: {r['name']}: {unfinished(r)}" for r in found if unfinished(r)]
    if not (runs := [r for r in found if not unfinished(r)]):
        raise InputError(f"nothing to compare: {notes[0]} (give folders that train.py made)")
    return runs


def read_evaluation(run):
    """A run's eval.npz (lib/evaluate.py) -> {name: array}, None if there is none."""
    path = Path(run["name"]) / "eval.npz"
    if not path.is_file():
        return None
    with one_line(f"{path} is damaged or of another kind", InputError):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if not np.isfinite(arrays["doc_nats"] + arrays["doc_tokens"]).all():
            raise ValueError("a loss in it is not finite")
    return arrays


def read_table(path, columns):
    """A table with tabs and a head, quoted as csv's -> list of dicts, each with text in every one
    of `columns`. InputError if it is not that."""
    with one_line(f"{path}: cannot be read", InputError):
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t", strict=True))
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    for i, row in enumerate(rows, 1):
        if None in row or not all(map(row.get, columns)):  # None: of cells beyond the head
            raise InputError(f"{path}, row {i}: no text in one of {', '.join(columns)}, or more "
                             "cells than columns")
    return rows


def read_tsv(folder, name):
    """The rows of FOLDER/plan.tsv or its like; [] where there is none."""
    path = Path(folder) / name
    rows = read_table(path, COLUMNS[name]) if path.is_file() else []
    for row in rows:
        if row.get("kind") not in (None, "confirmatory", "exploratory"):
            raise InputError(f"{path}: kind is confirmatory or exploratory, not {row['kind']}")
    return rows


def must_match(run, free=()):
    """All that must be equal in runs that are compared, but for the keys `free`."""
    kept = {key: value for key, value in run["header"]["config"].items()
            if key not in {*ARM_KEYS, *NO_ARM, *free}}
    return kept | {"data": run["header"]["data"]}


def difference(a, b, free=()):
    """The first setting in which two runs differ, in words, or ""."""
    ours, theirs = must_match(a, free), must_match(b, free)
    return next((f"{key} is {ours.get(key)} in {a['name']} and {value} in {b['name']}"
                 for key, value in theirs.items() if ours.get(key) != value), "")


def drop_clashes(runs, notes):
    """Runs of equal settings -> those that fit together; why the others do not goes to `notes`."""
    first, kept = {}, []  # first: {what must be equal: (the first run, its value)}
    for i, run in enumerate(runs):
        config, arm = run["header"]["config"], run["arm"]
        keys = str([(key, config[key]) for key in sorted(config.keys() - NO_ARM)])
        # with --by=batch_size every size has batches of its own
        batches = tuple(config[key] for key in ("seed", "block_size", "batch_size",
                                                "gradient_accumulation_steps"))
        claims = [(("arm", arm), keys, "not comparable: its arm has other keys in {}"),
                  (("run", arm, config["seed"]), i, "{} is the same arm and seed")]
        claims += [((batches, record["step"]), record.get("batch_crc"),
                    "not comparable: it saw other batches than {}") for record in run["steps"]]
        clashes = [text.format(first[what][0]) for what, value, text in claims
                   if what in first and first[what][1] != value]
        if clashes:
            notes.append(f"left out: {run['name']}: {clashes[0]}")
            continue
        kept.append(run)
        for what, value, _ in claims:
            first.setdefault(what, (run["name"], value))
    return kept


def refuse_unmatched(runs, free=()):
    """InputError if runs differ in more than arm, seed and the keys `free`, or clash."""
    notes = [f"not comparable: {why}" for run in runs if (why := difference(runs[0], run, free))]
    drop_clashes(runs, notes)
    if notes:
        raise InputError(notes[0].removeprefix("left out: "))


def provenance(runs):
    """What a reader must know of how some runs were made, lines."""
    dirty = [run["name"] for run in runs if run["header"]["commit"].endswith("+changes")]
    lines = [f"made from files that no commit has (+changes): {', '.join(dirty)}"] if dirty else []
    lines += [f"{run['name']} was resumed with other {', '.join(run['resumed_with'])}"
              for run in runs if run["resumed_with"]]
    for key in (*BITS, "code_hash"):
        values = [(run["header"] | run["header"]["config"])[key] for run in runs]
        counts = Counter(SAME_CODE.get(value, value) for value in values).most_common()
        if len(counts) > 1:
            each = ", ".join(f"{value} ({n} runs)" for value, n in counts)
            lines.append(f"{key} is not the same in all runs: {each}")
    return lines


def select(runs, baseline, free, notes):
    """The largest set of comparable runs, and those that differ from it in HORIZON alone: (a list
    of tables, the baseline). What is left out goes to `notes`."""
    groups, tables = {}, []
    runs = sorted(runs, key=lambda run: (run["arm"] != baseline, order(run)))
    for run in runs:  # the baseline's first: of two that clash the first one stays
        groups.setdefault(json.dumps(must_match(run, free), sort_keys=True), []).append(run)
    groups = sorted((drop_clashes(group, notes) for group in groups.values()), key=lambda group: (
        bool(baseline) and group[0]["arm"] != baseline, -len(group),
        -group[0]["header"]["config"]["max_steps"]))
    main = groups[0][0]
    baseline = baseline or main["arm"]
    if main["arm"] != baseline:
        there = ", ".join(dict.fromkeys(run["arm"] for run in runs))
        raise InputError(f"--baseline={baseline}: no finished run of that arm (there are {there})")
    for group in groups:
        why = f"no run of {baseline} beside it"
        if differs := difference(main, group[0], {*free, *HORIZON}):
            why = f"not comparable: {differs}"
        elif baseline in {run["arm"] for run in group}:
            tables.append(as_table(group, notes))
            continue
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        notes.append(f"left out: {group[0]['name']}{others}: {why}")
    return tables, baseline


def seen_groups(arrays):
    """An eval.npz by the groups of SEEN: {group: (nats per token, share of tokens)}."""
    nats, tokens = (np.add.reduceat(np.pad(arrays[f"seen_{key}"].astype(float), (0, 64)),
                                    list(SEEN.values())) for key in ("nats", "tokens"))
    return dict(zip(SEEN, zip(nats / np.maximum(tokens, 1), tokens / tokens.sum())))


def as_table(runs, notes):
    """Comparable runs -> a table with a row a run. Losses are of the whole validation split where
    every run has its eval.npz, with a bootstrap (draws,), else of the last validation. Of two arms
    with one loss, to six digits, at one seed the second is left out: a copy narrows intervals."""
    import pandas as pd  # takes half a second, which --help need not wait for
    scored = [read_evaluation(run) for run in runs]
    table = pd.DataFrame([{
        "arm": run["arm"], "seed": run["header"]["config"]["seed"], "name": run["name"],
        "kind": "own head" if run["header"]["config"]["head"] == "table" else "input's head",
        "loss": run["vals"][-1]["val_loss"], "bpb": run["vals"][-1]["val_bpb"], "run": run,
        "asked": run.get("asked", 0), "bootstrap": None, "seen": None} for run in runs])
    if all(arrays and np.array_equal(arrays["doc_tokens"], scored[0]["doc_tokens"])
           for arrays in scored):
        nats, tokens, size = (np.array([arrays[f"doc_{key}"].sum() for arrays in scored], float)
                              for key in ("nats", "tokens", "bytes"))
        table["loss"], table["bpb"] = nats / tokens, nats / math.log(2) / size
        table["seen"] = list(map(seen_groups, scored))
        documents = np.array([arrays["doc_nats"] for arrays in scored])
        table["bootstrap"] = list(bootstrap_documents(documents, scored[0]["doc_tokens"]).T)
    else:
        notes.append("not every run has an eval.npz of the same documents: losses are of the last "
                     "validation's blocks, without intervals over documents")
    twins = table.groupby(["seed", table["loss"].round(6)])["name"].transform("first")
    copies = table["name"] != twins
    notes += [f"left out: {name}: the loss of {twin} to six digits, which counts once"
              for name, twin in zip(table["name"][copies], twins[copies])]
    return table[~copies].sort_values("run", key=lambda runs: runs.map(order))
