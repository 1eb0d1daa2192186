"""Runs in, tables and pictures out. `ARMS` gives every arm its place and its look, the same in
every table and picture."""
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lib.checkpoint import read_log
from lib.common import InputError, write_atomic
from lib.config import ARM_KEYS, modernise

# arm: (colour, marker, line). The first eight colours are Okabe and Ito's, safe for the
# colour-blind; markers and lines tell arms apart in grey. The order is that of the tables.
ARMS = {
    "bpe_tied": ("#000000", "o", "-"),
    "bpe_untied": ("#E69F00", "s", "--"),
    "bpe_untied_unit": ("#56B4E9", "D", "-."),
    "bpe_untied_lr": ("#009E73", "^", ":"),
    "binary": ("#B8A800", "v", (0, (5, 1))),
    "binary_linear": ("#7A7000", "v", "-"),
    "affine": ("#0072B2", "P", (0, (1, 1))),
    "random": ("#CC79A7", "*", (0, (3, 1, 1, 1))),
    "kron": ("#D55E00", "X", (0, (8, 2))),
}
OTHER_MARKERS = "<>phHd|_1234"


def look(arm):
    """How an arm is drawn, {color, marker, ls}. One without a row in ARMS has a look of its own:
    a colour from its name, and a marker that no arm in ARMS has."""
    if arm in ARMS:
        colour, marker, line = ARMS[arm]
        return {"color": colour, "marker": marker, "ls": line}
    number = sum(byte * 31**i for i, byte in enumerate(arm.encode()))
    hue = (number * 0.618034) % 1.0  # neighbouring numbers, distant hues
    red, green, blue = (0.35 + 0.3 * math.cos(2 * math.pi * (hue - third / 3))
                        for third in range(3))
    return {"color": (red, green, blue), "marker": OTHER_MARKERS[number % len(OTHER_MARKERS)],
            "ls": "-"}


def order(run):
    """Sort key of a run: arms as in ARMS, others after them by name, then seeds."""
    arm = run["header"]["arm"]
    place = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
    return place, arm, run["header"]["config"]["seed"]


# ---- runs in -----------------------------------------------------------------------------------

def is_number(x):
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def read_run(folder):
    """out/RUN -> {"name", "header", "steps", "vals"}, both lists in step order.

    InputError if it holds no run's log.
    """
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: no log.jsonl there, not a run")
    records, dropped = read_log(path)
    header = records[0] if records else {}
    whole = {"config", "arm", "params", "data"} <= header.keys()
    if not whole or not isinstance(header["config"], dict):
        raise InputError(f"{path}: no header, not a run's log")
    if dropped:
        print(f"note: {path}: {dropped} unreadable line{'s' if dropped > 1 else ''} dropped",
              file=sys.stderr)
    header["config"] = modernise(header["config"])
    steps = [r for r in records[1:] if is_number(r.get("loss"))]
    vals = [r for r in records[1:] if is_number(r.get("val_loss"))]
    return {"name": str(folder), "header": header, "steps": steps, "vals": vals}


def is_finished(run):
    """Whether the last validation is that of the last step of its config."""
    return bool(run["vals"]) and run["vals"][-1]["step"] == run["header"]["config"]["max_steps"]


def refuse_difference(a, b, what_a, what_b):
    """InputError naming the first key in which two dicts differ."""
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            raise InputError(f"not comparable: {key} is {a.get(key)} in {what_a} and {b.get(key)} "
                             f"in {what_b}")


def refuse_unmatched(runs):
    """InputError, naming the first difference, if runs differ in anything but arm and seed, or if
    equal seeds saw other batches."""
    free = {*ARM_KEYS, "seed", "name", "wandb_log"}

    def rest(run):
        config = run["header"]["config"]
        kept = {key: value for key, value in config.items() if key not in free}
        return kept | {"data": run["header"]["data"]}

    def arm_keys(run):
        return {key: run["header"]["config"].get(key) for key in ARM_KEYS}

    first_of_arm, first_of_seed, seen = {}, {}, {}
    for run in runs:
        arm, seed = run["header"]["arm"], run["header"]["config"]["seed"]
        like = first_of_arm.setdefault(arm, run)
        refuse_difference(rest(runs[0]), rest(run), runs[0]["name"], run["name"])
        refuse_difference(arm_keys(like), arm_keys(run), like["name"], run["name"])
        if (arm, seed) in seen:
            raise InputError(f"{seen[arm, seed]} and {run['name']} are the same arm and seed")
        seen[arm, seed] = run["name"]
        twin = first_of_seed.setdefault(seed, run)
        batches = {record["step"]: record.get("batch_crc") for record in twin["steps"]}
        for record in run["steps"]:
            step, crc = record["step"], record.get("batch_crc")
            if batches.get(step, crc) != crc:
                raise InputError(f"not comparable: step {step} saw other batches in {twin['name']} "
                                 f"than in {run['name']}")


# ---- tables out --------------------------------------------------------------------------------

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


def bracket(s, digits=4):
    """A summary's interval as text."""
    if s["interval"] is None:
        return "-"
    low, high = s["interval"]
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def save_results(out, page, result, figure):
    """Write OUT.png, OUT.md (a text) and OUT.json (a dict), making the folder if need be."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(f"{out}.png", lambda file: figure.savefig(file, format="png", dpi=110))
    write_atomic(f"{out}.md", lambda file: file.write(page.encode()))
    text = json.dumps(result, indent=1) + "\n"
    write_atomic(f"{out}.json", lambda file: file.write(text.encode()))
    print(f"\nwrote {out}.md, {out}.json, {out}.png")


def refuse_folder(out):
    """InputError if --out is a folder or empty: it is a name without ending."""
    if os.path.isdir(out) or not os.path.basename(out):
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


def draw_curves(ax, arm, curves):
    """An arm's curves {seed: {step: value}}: the mean over seeds at the steps that all have, with a
    band from the lowest to the highest."""
    steps = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
    if steps:
        values = np.array([[curve[step] for step in steps] for curve in curves.values()])
        style = look(arm)
        ax.plot(steps, values.mean(0), ms=4, lw=1.6, label=arm, **style)
        ax.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


def loss_picture(records, title, path):
    """loss.png of one run: training and validation loss against steps."""
    figure, (ax,) = panels(1, 7)
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    if training:
        ax.plot(*zip(*training), color="0.7", lw=1, label="training batch")
    if validation:
        ax.plot(*zip(*validation), color="C0", marker="o", ms=4, label="validation")
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    ax.legend()
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
