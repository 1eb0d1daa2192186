"""The grid that chose each arm's learning rate, input speed and scale: runs in, tuning.json out,
and back in where tuned runs are compared.

    table = choose(runs, default)    # {"seed", "steps", "settings", "arms": {arm: {"grid", ...}}}
    name, how = tuned_name(run, table)
"""
import json
import math
import sys
from pathlib import Path

from matplotlib.ticker import NullFormatter

from lib.common import InputError
from lib.config import compose
from lib.report import (arm_of, bullets, difference, look, markdown_table, order, panels,
                        provenance, save_results, settings, stamp)
from lib.runs import HORIZON, find_runs, unfinished

KEYS = ("learning_rate", "min_lr", "embed_lr_mult", "embed_std")  # what a grid may vary
ELSEWHERE = "at settings tuned elsewhere"
FLAT = 0.01  # nats: a step in speed that changes the loss by less is on a plateau, not at an edge


def setting(config):
    """The tuned keys of a run's config."""
    return {key: float(config[key]) for key in KEYS}


def untuned_name(arm):
    """An arm's name without its tuned keys: lowrank,rank=32,embed_lr_mult=4 -> lowrank,rank=32."""
    base, *options = arm.split(",")
    return ",".join([base, *(o for o in options if o.split("=")[0] not in KEYS)])


def short_names(arms):
    """Names of the grid's arms -> what a comparison calls them: the part before the comma, unless
    two arms share it."""
    bases = [arm.split(",")[0] for arm in arms]
    return {arm: base if bases.count(base) == 1 else arm for arm, base in zip(arms, bases)}


# ---- choosing ----------------------------------------------------------------------------------

def grid_point(run):
    """A tuning run as a point of its arm's grid: its setting, its scale, r and final loss (None if
    it diverged)."""
    config = run["header"]["config"]
    rms = run["vals"][0].get("input_rms") if run["vals"] else None
    # two digits: a natural scale that is measured is the nominal one that a grid names
    scale = config["embed_std"] or (float(f"{rms:.2g}") if rms else None)
    loss = None if run["diverged"] is not None else run["vals"][-1]["val_loss"]
    r = config["embed_lr_mult"] / scale if scale and run["header"]["params"].get("input") else None
    return setting(config) | {"scale": scale, "r": r, "val_loss": loss, "name": run["name"]}


def choose(runs, default=None):
    """Tuning runs -> the table that tuning.json holds.

    An arm's choice is its grid's point of lowest final validation loss. `edges` says in words where
    it lies at an edge of the grid: the choice is then not tuned. `default` is the setting that
    nobody tuned, a dict of KEYS. InputError for runs that are no grid: unfinished, of several
    seeds, differing in more than arms and the tuned keys, or two of the same point.
    """
    points = {}
    for run in runs:
        why = unfinished(run)
        if why and run["diverged"] is None:
            raise InputError(f"{run['name']}: {why}")
        seeds = [r["header"]["config"]["seed"] for r in (runs[0], run)]
        if seeds[0] != seeds[1]:
            raise InputError(f"a grid has one seed: {runs[0]['name']} has {seeds[0]}, "
                             f"{run['name']} has {seeds[1]}")
        if differs := difference(runs[0], run, KEYS):
            raise InputError(f"not one grid: {differs}")
        arm, point = untuned_name(arm_of(run)), grid_point(run)
        for other in points.setdefault(arm, []):
            if all(other[key] == point[key] for key in KEYS):
                raise InputError(f"{other['name']} and {run['name']} are the same point of the "
                                 f"grid of {arm}")
        points[arm].append(point)
    names = short_names(points)
    arms = {}
    for arm, grid in points.items():
        finished = [point for point in grid if point["val_loss"] is not None]
        if not finished:
            raise InputError(f"every run of {arm} diverged: its grid chooses nothing")
        best = min(finished, key=lambda point: point["val_loss"])
        grid = sorted(grid, key=lambda point: [point[key] for key in KEYS])
        arms[names[arm]] = {"arm": arm, "best": best, "edges": edges(grid, best), "grid": grid}
    config = runs[0]["header"]["config"]
    return {"seed": config["seed"], "steps": config["max_steps"], "default": default,
            "settings": settings(runs[0], KEYS), "arms": arms}


def edges(grid, best):
    """Where the best point lies at an edge of the grid, in words, a list.

    A dimension with a single value has no edge. Speed counts as r = embed_lr_mult / scale. The
    natural scale is no edge, nor is a speed at which the last step changed the loss by less than
    FLAT; a value beyond at which the run diverged is a value (results/PLAN.md).
    """
    found, natural_scales = [], {point["scale"] for point in grid if not point["embed_std"]}
    for what, key in (("learning rate", "learning_rate"), ("speed r", "r"), ("scale", "scale")):
        values = sorted({point[key] for point in grid if point[key] is not None})
        natural = key == "scale" and best["scale"] in natural_scales
        if len(values) < 2 or natural or best[key] not in (values[0], values[-1]):
            continue
        inward = values[1] if best[key] == values[0] else values[-2]
        beside = lowest_at(grid, key, inward)
        flat = key == "r" and beside is not None and beside - best["val_loss"] < FLAT
        if not flat:
            end = "lowest" if best[key] == values[0] else "highest"
            found.append(f"{what} {best[key]:g} is the {end} of {len(values)}")
    return found


def lowest_at(grid, key, value):
    """The lowest loss among a grid's points with point[key] == value; None if all diverged."""
    losses = [point["val_loss"] for point in grid
              if point[key] == value and point["val_loss"] is not None]
    return min(losses, default=None)


# ---- in a comparison ---------------------------------------------------------------------------

def read_tuning(path):
    """tuning.json -> the table that `choose` made. InputError if it is none."""
    try:
        with open(path) as file:
            table = json.load(file)
        whole = {"seed", "steps", "default", "settings", "arms"} <= table.keys()
        whole = whole and isinstance(table["settings"], dict)
        for row in table["arms"].values():
            whole = whole and {"arm", "best", "edges", "grid"} <= row.keys()
            whole = whole and set(KEYS) <= row["best"].keys()
    except (ValueError, AttributeError, TypeError, KeyError):
        whole = False
    if not whole:
        raise InputError(f"{path}: not a table of tuned settings, or an old one (compare.py --tune "
                         "makes it anew)")
    return table


def same(a, b):
    """Whether two settings agree in the tuned keys, to the rounding of a json."""
    return all(math.isclose(a[key], b[key], rel_tol=1e-4, abs_tol=1e-12) for key in KEYS)


def tuned_name(run, table):
    """What a run is called in a tuned comparison, and how its setting was come by: (name, how).

    how is "tuned", "default", "usual" (the chosen learning rate at speed 1 and the natural scale),
    "as ARM" (another arm of the family was tuned, this has its setting) or "not tuned". (None, why)
    for a run of a tuned arm that is at none of these.
    """
    full, mine = untuned_name(arm_of(run)), setting(run["header"]["config"])
    at_default = table["default"] is not None and same(mine, table["default"])
    for name, row in table["arms"].items():
        if full in (name, row["arm"]):
            if same(mine, row["best"]):
                return name, "tuned"
            if at_default:
                return f"{name}_default", "default"
            if same(mine, row["best"] | {"embed_lr_mult": 1, "embed_std": 0}):
                return f"{name}_usual", "usual"
            chosen = describe_setting(row["best"])
            return None, f"{describe_setting(mine)} is not what the grid chose ({chosen})"
    family = full.split(",")[0]
    if family in table["arms"] and same(mine, table["arms"][family]["best"]):
        return full, f"as {family}"
    return full, "default" if at_default else "not tuned"


def refuse_untuned(names, table):
    """InputError if the choice of one of these arms lies at an edge of its grid."""
    for name in names:
        if name in table["arms"] and table["arms"][name]["edges"]:
            why = "; ".join(table["arms"][name]["edges"])
            raise InputError(f"{name} is not tuned, its best setting lies at an edge of its grid: "
                             f"{why}. Extend the grid")


def describe_setting(point):
    """A setting in a few words: 4e-03, speed x 0.25, scale 1."""
    text = f"{point['learning_rate']:.3g}"
    if not math.isclose(point["min_lr"], point["learning_rate"] / 10, rel_tol=1e-6):
        text += f" to {point['min_lr']:.3g}"
    if point["embed_lr_mult"] != 1:
        text += f", speed × {point['embed_lr_mult']:.4g}"
    if point["embed_std"]:
        text += f", scale {point['embed_std']:.3g}"
    return text


def name_runs(runs, tuning, notes):
    """Runs as a tuned comparison calls them, without those that it must not use. Where the grid had
    other data or another shape, how is ELSEWHERE."""
    kept, grid = [], tuning["settings"]
    for r in runs:
        if r["header"]["config"]["seed"] == tuning["seed"]:
            notes.append(f"left out: {r['name']}: seed {tuning['seed']} chose the settings")
            continue
        name, how = tuned_name(r, tuning)
        if name is None:
            notes.append(f"left out: {r['name']}: {how}")
            continue
        mine = settings(r, {*KEYS, *HORIZON, "eval_tokens", "device"})
        other = [key for key in mine.keys() & grid.keys() if mine[key] != grid[key]]
        if other and how.startswith(("tuned", "as ")):
            how = ELSEWHERE
            if all(before["how"] != ELSEWHERE for before in kept):
                key = min(other)
                notes.append(f"{ELSEWHERE}: {key} is {grid[key]} in the grid and {mine[key]} in "
                             f"{r['name']}")
        tried = len(tuning["arms"][name]["grid"]) if name in tuning["arms"] else None
        r |= {"arm": name, "how": how, "tried": tried}
        kept.append(r)
    if not kept:
        raise InputError(f"none of these runs can be compared: {notes[-1]}")
    refuse_untuned({r["arm"] for r in kept}, tuning)
    return kept


# ---- the command, its page and picture ---------------------------------------------------------

def tune(paths, default, out):
    """compare.py --tune: what a grid chose, as tables; with `out` as tuning.json, .md and .png."""
    found, skipped = find_runs(paths)
    for _, why in skipped:
        print(f"note: skipped, no run: {why}", file=sys.stderr)
    if not found:
        raise InputError(f"no runs of a grid below {', '.join(paths)}")
    untuned = setting(vars(compose([default])[0])) if default else None
    table = choose(sorted(found, key=order), untuned)
    notes = provenance(found)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print("\n\n".join(tuning_tables(table)[:2]))
    if out:
        made = stamp(found)
        save_results(out, tuning_page(table, notes, made, out), table | {"notes": notes} | made,
                     tuning_picture(table))


def tuning_tables(table):
    """The choices, and every point of every grid, as markdown."""
    chosen, every = [], []
    for name, row in table["arms"].items():
        best = row["best"]
        chosen.append([name, len(row["grid"]), *cells(best),
                       "; ".join(row["edges"]) + ": extend" if row["edges"] else "inside"])
        for point in row["grid"]:
            mark = "chosen" if point == best else ""
            every.append([name, *cells(point), mark])
    columns = ["learning rate", "min_lr", "speed (embed_lr_mult)", "scale", "r = speed / scale",
               "loss (nats)"]
    return [f"Each arm's setting of lowest validation loss after {table['steps']:,} steps on seed "
            f"{table['seed']}, which judges nothing else:",
            markdown_table(["arm", "runs", *columns, "edge of the grid"], chosen),
            "Every run:", markdown_table(["arm", *columns, ""], every)]


def tuning_page(table, notes, made, out):
    """The whole .md of a grid."""
    name = Path(out).name
    short, chosen, said, every = tuning_tables(table)
    image = f"![loss against input speed and learning rate]({name}.png)"
    by = (f"Made by `{made['command']}` on {made['date']}, from runs on "
          f"{'; '.join(made['hardware'])}, commits {', '.join(made['commit'])}.")
    return "\n\n".join([f"# {name}: the settings that a grid chose", *bullets(notes), short, chosen,
                        image, said, every, by]) + "\n"


def cells(point):
    """A point of a grid as cells of a table."""
    scale = "-" if point["scale"] is None else f"{point['scale']:.3g}"
    scale += "" if point["embed_std"] else " (natural)"
    r = "-" if point["r"] is None else f"{point['r']:.4g}"
    loss = "diverged" if point["val_loss"] is None else f"{point['val_loss']:.4f}"
    return [f"{point['learning_rate']:.3g}", f"{point['min_lr']:.3g}",
            f"{point['embed_lr_mult']:.4g}", scale, r, loss]


def tuning_picture(table):
    """Loss against r and against the learning rate: every run a marker, a line through the lowest
    loss at each value, a ring around each arm's choice."""
    figure, axes = panels(2, 6.4, 5)
    titles = {"r": "Input speed over scale (line: lowest at each; ring: chosen; small: the rest)",
              "learning_rate": "Learning rate"}
    labels = {"r": "r = embed_lr_mult / rms(e) at the start", "learning_rate": "learning_rate"}
    for ax, key in zip(axes, titles):
        for name, row in table["arms"].items():
            points = [p for p in row["grid"] if p[key] is not None and p["val_loss"] is not None]
            values = sorted({p[key] for p in points})
            if len(values) < 2:
                continue
            style = look(name)
            ax.plot(values, [lowest_at(points, key, value) for value in values], lw=1.4, ms=6,
                    label=name, **style)
            ax.plot([p[key] for p in points], [p["val_loss"] for p in points], style["marker"],
                    color=style["color"], ms=3, alpha=0.5)
            if row["best"][key] is not None:
                ax.plot(row["best"][key], row["best"]["val_loss"], "o", ms=12, mfc="none",
                        color=style["color"])
        ax.set(xscale="log", xlabel=labels[key], title=titles[key],
               ylabel=f"validation loss after {table['steps']:,} steps (nats per token)")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        if key == "learning_rate":
            ax.set_xticks(sorted({x for line in ax.lines for x in line.get_xdata()}), minor=False)
        if ax.lines:
            ax.legend(fontsize=8)
    return figure
