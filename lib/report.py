"""Runs in, tables and pictures out. `ARMS` gives every arm its place and its look, the same in
every table and picture."""
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lib.checkpoint import read_log
from lib.common import InputError, write_atomic
from lib.config import ARM_KEYS, Config, modernise

# arm: (colour, marker, line). The order is that of the tables. Arms of one family share a marker;
# colours are Okabe and Ito's, safe for the colour-blind, and shades of them; lines tell the arms of
# a family apart in grey.
ARMS = {
    "bpe_tied": ("#000000", "o", "-"),
    "bpe_tied_usual": ("#777777", "o", ":"),
    "bpe_untied": ("#E69F00", "s", "--"),
    "bpe_untied_default": ("#A87400", "s", ":"),
    "bpe_untied_usual": ("#F5C76B", "s", "-."),
    "bpe_untied_unit": ("#56B4E9", "D", "-."),
    "bpe_untied_lr": ("#009E73", "^", ":"),
    "lowrank": ("#5B3A99", "p", "-"),
    "lowrank_tied": ("#B39DDB", "p", "-."),
    "binary": ("#B8A800", "v", (0, (5, 1))),
    "binary_linear": ("#7A7000", "v", "-"),
    "affine": ("#0072B2", "P", (0, (1, 1))),
    "minimal": ("#7FB8DA", "P", "--"),
    "wide": ("#004B75", "P", "-"),
    "frozen_random": ("#888888", "v", ":"),
    "visual": ("#444444", "v", "-."),
    "random": ("#CC79A7", "*", (0, (3, 1, 1, 1))),
    "hash": ("#8A3F68", "*", "-"),
    "qr": ("#E8BCD3", "*", "--"),
    "trigram": ("#00606B", ">", "-"),
    "phase": ("#6FB7A8", "h", "--"),
    "bytes2word": ("#3B6EA5", "<", "-."),
    "kron": ("#D55E00", "X", (0, (8, 2))),
    "kron_wide": ("#A63A00", "X", (0, (3, 1))),
    "kron_raw": ("#F4A582", "X", ":"),
    "kron_shuffled": ("#6E2400", "X", "-"),
    "kron_tied": ("#B2473E", "X", "-."),
    "kron_code_head": ("#F08080", "X", "--"),
}
OTHER_MARKERS = "Hd8|_1234"


def look(arm):
    """How an arm is drawn, {color, marker, ls}. One without a row in ARMS has a look of its own:
    a colour from its name, and a marker that no arm in ARMS has."""
    if arm in ARMS:
        colour, marker, line = ARMS[arm]
        return {"color": colour, "marker": marker, "ls": line}
    number = sum(byte * 31**i for i, byte in enumerate(arm.encode())) % 65_521  # a prime
    hue = (number * 0.618034) % 1.0  # neighbouring numbers, distant hues
    red, green, blue = (0.35 + 0.3 * math.cos(2 * math.pi * (hue - third / 3))
                        for third in range(3))
    return {"color": (red, green, blue), "marker": OTHER_MARKERS[number % len(OTHER_MARKERS)],
            "ls": "-"}


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


# ---- tables out --------------------------------------------------------------------------------

def bullets(notes):
    """What a page's reader must know first, as a list of at most one paragraph."""
    return ["Read this first:\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []


def markdown_table(head, rows):
    """Rows of cells -> a GitHub table, padded so that it reads well in a terminal too."""
    table = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in table]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def pm(s, digits=4, sign=""):
    """A summary as text: mean ± sd, or the mean alone for one seed, or - for none."""
    if s is None:
        return "-"
    mean = f"{s['mean']:{sign},.{digits}f}"
    return mean if s["sd"] is None else f"{mean} ± {s['sd']:,.{digits}f}"


def bracket(interval, digits=4):
    """An interval (low, high) as text, - for None."""
    if interval is None:
        return "-"
    low, high = interval
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def rounded(x):
    """Nested dicts and lists with every float to six significant digits."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    return float(f"{x:.6g}") if isinstance(x, float) else x


def compact(text):
    """JSON text with every innermost list and dict on one line, if it fits in 100 columns."""
    def one_line(found):
        line = " ".join(found[0].split())
        return line if len(line) <= 90 else found[0]
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", one_line, text)


def save_results(out, page, result, figure):
    """Write OUT.md (a text), OUT.json (a dict) and OUT.png, making the folder if need be; where
    there is nothing to draw, `figure` None, no picture stays from before."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    if figure:
        write_atomic(f"{out}.png", lambda file: figure.savefig(file, format="png", dpi=110))
    else:
        Path(f"{out}.png").unlink(missing_ok=True)
    write_atomic(f"{out}.md", lambda file: file.write(page.encode()))
    text = compact(json.dumps(rounded(result), indent=1)) + "\n"
    write_atomic(f"{out}.json", lambda file: file.write(text.encode()))
    print(f"\nwrote {out}.md, {out}.json" + (f", {out}.png" if figure else ""))


def stamp(runs):
    """What made a results file: the command, the date, the runs' commits and hardware."""
    headers = [run["header"] for run in runs]
    return {"command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": sorted({header.get("commit", "unknown") for header in headers}),
            "hardware": sorted({header.get("hardware", "unknown") for header in headers})}


def refuse_folder(out):
    """InputError if --out is a folder or empty: it is a name without ending. A folder of runs is
    one that its page stands beside: results/tiny.md and results/tiny/."""
    if not os.path.basename(out) or (os.path.isdir(out) and not any(Path(out).glob("*/log.jsonl"))):
        raise InputError(f"--out={out} is a folder; give a name without ending, like results/mine")


# ---- pictures out ------------------------------------------------------------------------------

def panels(count, width, height=4.4):
    """A figure with `count` axes side by side, and the list of them."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    return figure, axes


def draw_bars(ax, arm, x, middle, low, high, line=None):
    """An arm's values (n,) at x with bars from low to high; `line` in place of the arm's own."""
    style = look(arm)
    style["ls"] = style["ls"] if line is None else line
    below = np.maximum(np.subtract(middle, low), 0)
    above = np.maximum(np.subtract(high, middle), 0)
    ax.errorbar(x, middle, [below, above], capsize=2, lw=1.3, ms=6, label=arm, **style)


def draw_curves(ax, arm, curves, thin=False):
    """An arm's curves {seed: {step: value}}: the mean over seeds at the steps that all have, with a
    band from the lowest to the highest; `thin`: without markers and label."""
    steps = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
    if not steps:
        return
    values = np.array([[curve[step] for step in steps] for curve in curves.values()])
    style = look(arm)
    if thin:
        ax.plot(steps, values.mean(0), lw=1, alpha=0.6, color=style["color"], ls=style["ls"])
    else:
        ax.plot(steps, values.mean(0), ms=5, lw=1.6, label=arm, **style)
    ax.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


def smoothed(values):
    """The running mean of a list over about a 25th of it: what is k values past counts w^k."""
    weight = 1 - 25 / max(25, len(values))
    means, total, count = [], 0.0, 0.0
    for value in values:
        total, count = weight * total + value, weight * count + 1
        means.append(total / count)
    return means


def draw_loss(records, title):
    """Training and validation loss of one run against steps, with the last value; the axis leaves
    out the start, whose fall from ln V would flatten all that follows."""
    figure, (ax,) = panels(1, 7)
    training, validation = ([(r["step"], r[key]) for r in records if r.get(key) is not None]
                            for key in ("loss", "val_loss"))
    if training:
        steps, losses = zip(*training)
        ax.plot(steps, losses, color="0.75", lw=0.8, label="training batch")
        if len(steps) > 25:
            ax.plot(steps, smoothed(losses), color="0.4", lw=1.2, label="training, smoothed")
    if validation:
        ax.plot(*zip(*validation), color="C0", marker="o", ms=4, label="validation")
        ax.annotate(f"{validation[-1][1]:.3f}", validation[-1], (0, 8), ha="right", color="C0",
                    textcoords="offset points")
    last = max((step for step, _ in [*training, *validation]), default=0)
    later = [loss for step, loss in [*training, *validation] if step > last / 10]
    if later:
        ax.set_ylim(min(later) - 0.1, max(later) + 0.1)
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    if ax.lines:
        ax.legend()
    return figure


def loss_picture(records, title, path):
    """loss.png of one run."""
    figure = draw_loss(records, title)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
