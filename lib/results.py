"""log.jsonl and eval.npz of many runs -> one table, and which of the runs can be compared."""
import json
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
BATCH = ("batch_size", "gradient_accumulation_steps", "block_size")

# Runs that differ in these alone are horizons of one comparison.
HORIZON = ("max_steps", "warmup_steps")

# Groups of input tokens by how often training saw them, and the first of their bins in eval.npz.
SEEN = {"under 256": 0, "256 to 1,023": 9, "1,024 to 8,191": 11, "more": 14}

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
    seed = run["header"]["config"]["seed"]
    if "by" in run:
        return 0, run["by"], seed
    arm = arm_of(run)
    base = arm.split(",")[0]
    place = list(ARMS).index(base) if base in ARMS else len(ARMS)
    natural = re.sub(r"\d+", lambda number: number[0].zfill(9), arm)  # rank=6 before rank=12
    return place, natural, seed


# ---- files in ----------------------------------------------------------------------------------

def is_number(x):
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def read_run(folder):
    """out/RUN -> {"name", "header", "steps", "vals", "diverged", "went_on", "missing"}: steps and
    vals are the log's records; diverged is the step of a last validation that was not finite;
    went_on the keys, hardware and code that changed when it was resumed; missing the first step
    whose line the run's intervals ask for and the log has not. InputError if it is no run's log."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: no log.jsonl there, not a run")
    records, dropped = read_log(path)
    header, *records = records or [{}]
    given = header.get("config")
    whole = (isinstance(header.get("arm"), str) and isinstance(given, dict)
             and all(isinstance(header.get(key), dict) for key in ("params", "data"))
             and all(isinstance(given.get(key), int) for key in ("max_steps", "seed")))
    if not whole:
        raise InputError(f"{path}: no header, not a run's log")
    if dropped:
        print(f"note: {path}: unreadable lines dropped: {dropped}", file=sys.stderr)
    steps, scored = ([r for r in records if key in r] for key in ("loss", "val_loss"))
    vals = [r for r in scored if is_number(r["val_loss"])]
    went_on = sorted({key for r in records for key in r.get("went_on_with", {})})
    last, missing = max((r.get("step", 0) for r in records), default=0), set()
    for key, there in (("log_interval", steps), ("eval_interval", scored)):
        if given.get(key) and key not in went_on:
            missing |= set(range(given[key], last + 1, given[key])) - {r.get("step") for r in there}
    config = asdict(Config()) | modernise(given)
    return {"name": str(folder), "header": header | {"config": config}, "vals": vals,
            "steps": [r for r in steps if is_number(r["loss"])], "went_on": went_on,
            "missing": min(missing, default=None),
            "diverged": scored[-1].get("step") if scored and scored[-1] not in vals else None}


def find_runs(paths, notes):
    """The runs below folders of runs, or folders of such folders; what is none goes to `notes`."""
    runs = []
    for path in dict.fromkeys(str(path).rstrip("/") for path in paths):
        below = [str(log.parent) for log in sorted(Path(path).glob("*/log.jsonl"))]
        for folder in [path] if (Path(path) / "log.jsonl").is_file() or not below else below:
            try:
                if folder.endswith(".old") and Path(folder.removesuffix(".old")).is_dir():
                    raise InputError(f"{folder}: a run that --overwrite put aside")
                runs.append(read_run(folder))
            except InputError as error:
                notes.append(f"skipped, no run: {error}")
    return runs


def unfinished(run):
    """Why a run has no final loss, in words; "" if it has one: that of the last step."""
    steps = run["header"]["config"]["max_steps"]
    if run["missing"] is not None:
        return f"its log is not whole: nothing of step {run['missing']}"
    if run["diverged"] is not None:
        return f"diverged: its validation loss at step {run['diverged']} is not finite"
    last = run["vals"][-1]["step"] if run["vals"] else 0
    return "" if last == steps else f"unfinished, step {last} of {steps}"


def finished_runs(paths, notes):
    """The finished runs below `paths`; what else is there goes to `notes`. InputError if none."""
    found = find_runs(paths, notes)
    notes += [f"left out: {r['name']}: {unfinished(r)}" for r in found if unfinished(r)]
    runs = [r for r in found if not unfinished(r)]
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


def read_tsv(path, columns):
    """A file of lines with tabs -> a list of dicts. InputError if it has other columns."""
    head, *rows = [line.split("\t") for line in Path(path).read_text().splitlines()] or [[]]
    if head != list(columns) or any(len(row) != len(head) for row in rows):
        raise InputError(f"{path}: a line is {', '.join(columns)}, with tabs between them")
    return [dict(zip(head, row)) for row in rows]


def read_plan(folder):
    """FOLDER/plan.tsv -> its rows, {"item", "name", "arguments"}; [] where there is none."""
    path = Path(folder) / "plan.tsv"
    return read_tsv(path, ("item", "name", "arguments")) if path.is_file() else []


# ---- which runs can be compared ----------------------------------------------------------------

def settings(run, free=()):
    """All that must be equal in runs that are compared: config, but for an arm's keys, what changes
    no batch and the keys `free`; data; by how many steps a finished run was extended, since its
    rate fell twice."""
    kept = {key: value for key, value in run["header"]["config"].items()
            if key not in {*ARM_KEYS, *NO_ARM, *free}}
    return kept | {"data": run["header"]["data"], "extended": run["header"].get("extended")}


def difference(a, b, free=()):
    """The first setting in which two runs differ, in words, or ""."""
    ours, theirs = settings(a, free), settings(b, free)
    return next((f"{key} is {ours.get(key)} in {a['name']} and {value} in {b['name']}"
                 for key, value in theirs.items() if ours.get(key) != value), "")


def drop_clashes(runs):
    """Runs of equal settings -> (those that fit together, [(run, why it does not)]): one set of
    keys per arm and one name per set, one run per arm and seed, the same batches at equal seeds."""
    import pandas as pd  # takes half a second, which --help need not wait for
    rows, dropped, kept, batches = [], [], [], {}
    for run in runs:
        config = run["header"]["config"]
        keys = {key: config[key] for key in config.keys() - NO_ARM} | {"by": run.get("by")}
        rows.append({"name": run["name"], "arm": arm_of(run), "seed": config["seed"], "run": run,
                     "keys": json.dumps(keys, sort_keys=True)})
    table = pd.DataFrame(rows)
    for group, equal, why in (("arm", "keys", "not comparable: its arm has other keys in {}"),
                              ("keys", "arm", "it is the arm of {} under another name"),
                              (["arm", "seed"], "name", "{} is the same arm and seed")):
        first = table.groupby(group).transform("first")
        bad = table[equal] != first[equal]
        dropped += [(run, why.format(name))
                    for run, name in zip(table["run"][bad], first["name"][bad])]
        table = table[~bad]
    for run in table["run"]:  # with --by=batch_size every size has batches of its own
        key = tuple(run["header"]["config"][key] for key in ("seed", *BATCH))
        crc = {record["step"]: record.get("batch_crc") for record in run["steps"]}
        twin, theirs = batches.setdefault(key, (run["name"], crc))
        if any(theirs.get(step, mine) != mine for step, mine in crc.items()):
            dropped.append((run, f"not comparable: it saw other batches than {twin}"))
        else:
            kept.append(run)
    return kept, dropped


def refuse_unmatched(runs, free=()):
    """InputError if runs differ in more than arm, seed and the keys `free`, or clash."""
    for run in runs:
        if differs := difference(runs[0], run, free):
            raise InputError(f"not comparable: {differs}")
    for run, why in drop_clashes(runs)[1]:
        raise InputError(f"{run['name']}: {why}")


def provenance(runs):
    """What a reader must know of the code that made some runs, lines: files that no commit has,
    what changed when a run was resumed, several dtypes, devices or code hashes."""
    headers = [run["header"] for run in runs]
    dirty = [run["name"] for run in runs if run["header"].get("commit", "").endswith("+changes")]
    lines = [f"made from files that no commit has (+changes): {', '.join(dirty)}"] if dirty else []
    lines += [f"{run['name']} went on after a stop with other {', '.join(run['went_on'])}"
              for run in runs if run["went_on"]]
    hashes = [header.get("code_hash", "unknown") for header in headers]
    kinds = {"several versions of the code that decides numbers":
             [SAME_CODE.get(code, (code,))[0] for code in hashes]}
    kinds |= {f"{key} is not the same in all runs, which changes bits, not batches":
              [header["config"][key] for header in headers] for key in BITS}
    for what, values in kinds.items():
        counts = Counter(map(str, values)).most_common()
        if len(counts) > 1:
            lines.append(f"{what}: {', '.join(f'{value} ({n} runs)' for value, n in counts)}")
    return lines


def select(runs, baseline, free, notes):
    """The largest set of comparable runs, and those that differ from it in HORIZON alone: a list of
    tables (`as_table`), and the baseline. What is left out goes to `notes`."""
    groups, runs = {}, sorted(runs, key=lambda run: (arm_of(run) != baseline, order(run)))
    for run in runs:  # the baseline's first: of two that clash the first one stays
        key = json.dumps(settings(run, free), sort_keys=True)
        groups.setdefault(key, []).append(run)
    groups = sorted(groups.values(), key=lambda group: (
        bool(baseline) and baseline not in map(arm_of, group), -len(group)))
    main = groups[0]
    arms = list(map(arm_of, drop_clashes(main)[0]))
    baseline = baseline or ("bpe_tied" if "bpe_tied" in arms else arms[0])
    if baseline not in arms:
        there = ", ".join(dict.fromkeys(map(arm_of, runs)))
        raise InputError(f"--baseline={baseline}: no finished run of that arm (there are {there})")
    tables = []
    for group in groups:
        kept, dropped = drop_clashes(group)
        if difference(main[0], group[0], {*free, *HORIZON}):
            why = f"not comparable: {difference(main[0], group[0], free)}"
        elif baseline not in map(arm_of, kept):
            why = f"no run of {baseline} beside it"
        else:
            notes += [f"left out: {r['name']}: {why}" for r, why in dropped]
            tables.append(as_table(kept, notes))
            continue
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        notes.append(f"left out: {group[0]['name']}{others}: {why}")
    return tables, baseline


def seen_groups(arrays):
    """An eval.npz by the groups of SEEN: {group: (nats per token, share of tokens)}; None of one
    that has no such counts."""
    if "seen_nats" not in arrays:
        return None
    nats, tokens = (np.add.reduceat(np.pad(arrays[f"seen_{key}"].astype(float), (0, 64)),
                                    list(SEEN.values())) for key in ("nats", "tokens"))
    return dict(zip(SEEN, zip(nats / np.maximum(tokens, 1), tokens / tokens.sum())))


def as_table(runs, notes):
    """Comparable runs -> a table with a row a run: arm, seed, kind ("own head": a V x d table of
    its own, or "input's head": tied or coded), the final loss and bpb (bits per byte), run (what
    `read_run` gave), bootstrap (draws,), the loss on documents resampled, and seen, or None.

    Losses are of the whole validation split where every run has its eval.npz, else of the last
    validation. Of two arms with one loss, to six digits, at one seed the second is left out, since
    it is a copy and would narrow intervals. What is missing goes to `notes`.
    """
    import pandas as pd  # takes half a second, which --help need not wait for
    scored = [read_evaluation(run) or {"doc_tokens": None} for run in runs]
    whole = all(arrays["doc_tokens"] is not None and np.array_equal(
        arrays["doc_tokens"], scored[0]["doc_tokens"]) for arrays in scored)
    if not whole:
        notes.append("not every run has an eval.npz of the same documents: losses are of the last "
                     "validation's blocks, without intervals over documents")
    rows = []
    for run, arrays in zip(runs, scored):
        config, last = run["header"]["config"], run["vals"][-1]
        row = {"arm": arm_of(run), "seed": config["seed"], "name": run["name"],
               "kind": "own head" if config["head"] == "table" else "input's head",
               "loss": last["val_loss"], "bpb": last.get("val_bpb"), "run": run, "bootstrap": None,
               "seen": None}
        if whole:
            nats, tokens, size = (float(arrays[f"doc_{key}"].sum())
                                  for key in ("nats", "tokens", "bytes"))
            row |= {"loss": nats / tokens, "bpb": nats / math.log(2) / size,
                    "seen": seen_groups(arrays)}
        rows.append(row)
    table = pd.DataFrame(rows)
    if whole:
        nats = np.array([arrays["doc_nats"] for arrays in scored])
        table["bootstrap"] = list(bootstrap_documents(nats, scored[0]["doc_tokens"]).T)
    twins = table.groupby(["seed", table["loss"].round(6)])["name"].transform("first")
    copies = table["name"] != twins
    notes += [f"left out: {name}: the loss of {twin} to six digits, one run under two names"
              for name, twin in zip(table["name"][copies], twins[copies])]
    return table[~copies].sort_values("run", key=lambda runs: runs.map(order))
