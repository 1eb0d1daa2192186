"""A grid of runs -> each arm's learning rate, input multipliers and scale: runs in, tuning.json
out, and back in where tuned runs are compared.

    table = choose(runs, default)    # {"seeds", "steps", "settings", "arms": {arm: {"grid", ...}}}
    name, how = tuned_name(run, table)
"""
import json
import math
import sys
from pathlib import Path

from lib.config import compose
from lib.errors import InputError
from lib.results import (HORIZON, arm_of, difference, find_runs, order, provenance, settings,
                         unfinished)
from lib.tables import bullets, markdown_table, save_results, stamp

# What a grid may vary, with the value of who says nothing.
KEYS = {"learning_rate": None, "min_lr": None, "embed_lr_mult": 1.0, "embed_std": 0.0,
        "input_multiplier": 1.0}
UNTUNED = {key: usual for key, usual in KEYS.items() if usual is not None}
AXES = {"learning rate": "learning_rate", "speed r": "r", "scale": "scale",
        "multiplier": "input_multiplier"}
FLAT = 0.01  # nats: a step in r that changes the loss by less is on a plateau, not at an edge


def setting(config):
    """The tuned keys of a run's config."""
    return {key: float(config[key]) for key in KEYS}


def describe_setting(point):
    """A setting in a few words: 0.004, input rate × 0.25, scale 1."""
    text = f"{point['learning_rate']:.3g}"
    if not math.isclose(point["min_lr"], point["learning_rate"] / 10, rel_tol=1e-6):
        text += f" to {point['min_lr']:.3g}"
    if point["embed_lr_mult"] != 1:
        text += f", input rate × {point['embed_lr_mult']:.4g}"
    if point["embed_std"]:
        text += f", scale {point['embed_std']:.3g}"
    if point.get("input_multiplier", 1) != 1:
        text += f", input × {point['input_multiplier']:.3g}"
    return text


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
    # two digits: a default scale that is measured is the nominal one that a grid names
    scale = config["embed_std"] or (float(f"{rms:.2g}") if rms else None)
    loss = None if run["diverged"] is not None else run["vals"][-1]["val_loss"]
    r = config["embed_lr_mult"] / scale if scale and run["header"]["params"].get("input") else None
    return setting(config) | {"scale": scale, "r": r, "val_loss": loss, "name": run["name"]}


def choose(runs, default=None):
    """Tuning runs -> the table that tuning.json holds.

    The lowest of the runs' seeds is the grid's; its best points may have been run again on others.
    An arm's choice is its point of lowest final validation loss: the mean over all seeds among the
    points that have every seed of that arm. `edges` says where it lies at an edge of the grid.
    `default` is the setting that nobody tuned, a dict of KEYS. InputError for runs that are no
    grid: unfinished, differing in more than arms, seeds and the tuned keys, or two of the same
    point and seed.
    """
    points = {}
    seeds = sorted({run["header"]["config"]["seed"] for run in runs})
    for run in sorted(runs, key=lambda run: run["header"]["config"]["seed"]):
        why = unfinished(run)
        if why and run["diverged"] is None:
            raise InputError(f"{run['name']}: {why}")
        if differs := difference(runs[0], run, KEYS):
            raise InputError(f"not one grid: {differs}")
        arm, seed = untuned_name(arm_of(run)), run["header"]["config"]["seed"]
        point = grid_point(run)
        grid = points.setdefault(arm, [])
        twin = next((other for other in grid if same(other, point)), None)
        if twin is None:
            if seed != seeds[0]:
                raise InputError(f"{run['name']}: no point of the grid of seed {seeds[0]}")
            grid.append(point | {"again": {}})
        elif seed == seeds[0] or seed in twin["again"]:
            raise InputError(f"{twin['name']} and {run['name']} are the same point of the grid of "
                             f"{arm}")
        else:
            twin["again"][seed] = point["val_loss"]
    names = short_names(points)
    arms = {}
    for arm, grid in points.items():
        grid = sorted(grid, key=lambda point: [point[key] for key in KEYS])
        best = best_point(grid, arm)
        arms[names[arm]] = {"arm": arm, "best": best, "edges": edges(grid, best), "grid": grid}
    config = runs[0]["header"]["config"]
    return {"seeds": seeds, "steps": config["max_steps"], "default": default,
            "settings": settings(runs[0], KEYS), "arms": arms}


def best_point(grid, arm):
    """The point of lowest loss: of lowest mean over seeds among those with the most seeds.
    InputError if all diverged."""
    most = max(len(point["again"]) for point in grid)
    losses = {}
    for i, point in enumerate(grid):
        found = [point["val_loss"], *point["again"].values()]
        if len(point["again"]) == most and None not in found:
            losses[i] = math.fsum(found) / len(found)
    if not losses:
        raise InputError(f"every run of {arm} diverged: its grid chooses nothing")
    return grid[min(losses, key=losses.get)]


def beyond(grid, best, axis):
    """The point one step beyond the best one, if that lies at the end of an axis of AXES: a dict
    of KEYS; None where it lies inside or the axis has one value. The step is the grid's own. r is
    held when the scale moves, min_lr stays in proportion to learning_rate."""
    key = AXES[axis]
    values = sorted({point[key] for point in grid if point[key] is not None})
    if len(values) < 2 or best[key] not in (values[0], values[-1]):
        return None
    factor = best[key] / (values[1] if best[key] == values[0] else values[-2])
    new = {name: best[name] for name in KEYS}
    moved = {"learning_rate": ["learning_rate", "min_lr"], "r": ["embed_lr_mult"],
             "input_multiplier": ["input_multiplier"], "scale": ["embed_std"]}[key]
    if key == "scale":
        new["embed_std"] = best["scale"]
        moved += ["embed_lr_mult"] if best["r"] else []
    for name in moved:
        new[name] = float(f"{new[name] * factor:.6g}")
    return new


def options(point):
    """A setting as options of train.py, without what nobody has to say."""
    return [f"--{key}={point[key]:g}" for key, usual in KEYS.items() if point[key] != usual]


def edges(grid, best):
    """Where the best point lies at an edge of the grid: [{"axis", "value", "end", "of"}], the end
    being "lowest" or "highest" of so many values.

    An axis with a single value has no edge, nor has the default scale, nor an r at which the last
    step changed the loss by less than FLAT; a value beyond at which the run diverged is a value
    (results/PLAN.md).
    """
    found, default_scales = [], {point["scale"] for point in grid if not point["embed_std"]}
    for axis, key in AXES.items():
        values = sorted({point[key] for point in grid if point.get(key) is not None})
        default = key == "scale" and best["scale"] in default_scales
        if len(values) < 2 or default or best[key] not in (values[0], values[-1]):
            continue
        inward = values[1] if best[key] == values[0] else values[-2]
        beside = lowest_at(grid, key, inward)
        flat = key == "r" and beside is not None and beside - best["val_loss"] < FLAT
        if not flat:
            found.append({"axis": axis, "value": best[key], "of": len(values),
                          "end": "lowest" if best[key] == values[0] else "highest"})
    return found


def describe_edges(found):
    """What `edges` found, in words."""
    return "; ".join("{axis} {value:g} is the {end} of {of}".format(**edge) for edge in found)


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
        if "seed" in table:  # of before grids had several
            table["seeds"] = [table.pop("seed")]
        whole = {"seeds", "steps", "default", "settings", "arms"} <= table.keys()
        whole = whole and isinstance(table["settings"], dict)
        for row in table["arms"].values():
            whole = whole and {"arm", "best", "edges", "grid"} <= row.keys()
            whole = whole and all(isinstance(edge, dict) for edge in row["edges"])
            row["best"] = KEYS | row["best"]
            whole = whole and None not in (row["best"]["learning_rate"], row["best"]["min_lr"])
    except (ValueError, AttributeError, TypeError, KeyError):
        whole = False
    if not whole:
        raise InputError(f"{path}: not a table of tuned settings, or an old one (compare.py --tune "
                         "makes it anew)")
    return table


def same(a, b):
    """Whether two settings agree in the tuned keys, to the rounding of a json."""
    return all(math.isclose(a.get(key, usual), b.get(key, usual), rel_tol=1e-4, abs_tol=1e-12)
               for key, usual in KEYS.items())


def tuned_name(run, table):
    """What a run is called in a tuned comparison, and how its setting was come by: (name, how).

    how is "tuned", "default", "usual" (the chosen learning rate, all else untuned), "as ARM"
    (another arm of the family was tuned, this has its setting) or "not tuned". (None, why) for a
    run of a tuned arm that is at none of these.
    """
    full, mine = untuned_name(arm_of(run)), setting(run["header"]["config"])
    at_default = table["default"] is not None and same(mine, table["default"])
    for name, row in table["arms"].items():
        if full in (name, row["arm"]):
            if same(mine, row["best"]):
                return name, "tuned"
            if at_default:
                return f"{name}_default", "default"
            if same(mine, row["best"] | UNTUNED):
                return f"{name}_usual", "usual"
            chosen = describe_setting(row["best"])
            return None, f"{describe_setting(mine)} is not what the grid chose ({chosen})"
    family = full.split(",")[0]
    if family in table["arms"] and same(mine, table["arms"][family]["best"]):
        return full, f"as {family}"
    return full, "default" if at_default else "not tuned"


def at_edges(names, table):
    """Lines on those of these arms whose choice lies at an edge of its grid."""
    return [f"{name}'s setting lies at an edge of its grid: {describe_edges(row['edges'])}"
            for name, row in table["arms"].items() if name in names and row["edges"]]


def name_runs(runs, tuning, notes):
    """Runs as a tuned comparison calls them ("arm", "how", "tried": how many points its grid has),
    without those that it must not use. InputError if none is left."""
    kept = []
    for r in runs:
        if (seed := r["header"]["config"]["seed"]) in tuning["seeds"]:
            notes.append(f"left out: {r['name']}: seed {seed} chose the settings")
            continue
        name, how = tuned_name(r, tuning)
        if name is None:
            notes.append(f"left out: {r['name']}: {how}")
            continue
        tried = len(tuning["arms"][name]["grid"]) if name in tuning["arms"] else None
        kept.append(r | {"arm": name, "how": how, "tried": tried})
    if not kept:
        raise InputError(f"none of these runs can be compared: {notes[-1]}")
    notes += at_edges({r["arm"] for r in kept}, tuning)
    return kept


def is_tuned(run, table):
    """Whether a run has the setting that a grid chose for its arm, on the grid's data and shape."""
    here = settings(run, {*KEYS, *HORIZON, "eval_tokens"})
    grid = table["settings"]
    same_ground = all(here[key] == grid[key] for key in here.keys() & grid.keys())
    return same_ground and tuned_name(run, table)[1] == "tuned"


def find_tuning(runs, paths):
    """The tuning table that most of these runs match, FOLDER/tuning.json before those below
    results/: (its path, the table), (None, None) where no run has a tuned setting."""
    own = [path for path in (Path(folder) / "tuning.json" for folder in paths) if path.is_file()]
    places = dict.fromkeys([*own, *sorted(Path("results").glob("**/tuning.json"), reverse=True)])
    tables = {str(path): read_tuning(path) for path in places}
    matches = {path: sum(is_tuned(run, table) for run in runs) for path, table in tables.items()}
    path = max(matches, key=matches.get, default=None)
    return (path, tables[path]) if path and matches[path] else (None, None)


# ---- the command, its page and picture ---------------------------------------------------------

def tune(paths, default, out):
    """compare.py --tune: what a grid chose, as tables; with `out` as OUT.json and OUT.md."""
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
                     None)


def tuning_tables(table):
    """The choices, and every point of every grid: words and tables by turns."""
    chosen, every = [], []
    for name, row in table["arms"].items():
        chosen.append([name, len(row["grid"]), *cells(row["best"]),
                       describe_edges(row["edges"]) or "inside"])
        for point in row["grid"]:
            every.append([name, *cells(point), "chosen" if point == row["best"] else ""])
    columns = ["learning rate", "min_lr", "embed_lr_mult", "scale", "r = embed_lr_mult / scale",
               "input_multiplier", "loss (nats)", "on the other seeds"]
    first, *others = table["seeds"]
    words = (f"Each arm's setting of lowest validation loss after {table['steps']:,} steps on seed "
             f"{first}, which judges nothing else")
    if others:
        words += ("; the best two of an arm were run again on seed "
                  f"{', '.join(map(str, others))}, and the lower mean is taken")
    return [words + ":", markdown_table(["arm", "runs", *columns, "edge of the grid"], chosen),
            "Every run:", markdown_table(["arm", *columns, ""], every)]


def tuning_page(table, notes, made, out):
    """The whole .md of a grid."""
    by = (f"Made by `{made['command']}` on {made['date']}, from runs on "
          f"{'; '.join(made['hardware'])}, commits {', '.join(made['commit'])}.")
    return "\n\n".join([f"# {Path(out).name}: the settings that a grid chose", *bullets(notes),
                        *tuning_tables(table), by]) + "\n"


def cells(point):
    """A point of a grid as cells of a table."""
    scale = "-" if point["scale"] is None else f"{point['scale']:.3g}"
    scale += "" if point["embed_std"] else " (default)"
    r = "-" if point["r"] is None else f"{point['r']:.4g}"
    losses = ["diverged" if loss is None else f"{loss:.4f}"
              for loss in (point["val_loss"], *point["again"].values())]
    return [f"{point['learning_rate']:.3g}", f"{point['min_lr']:.3g}",
            f"{point['embed_lr_mult']:.4g}", scale, r, f"{point['input_multiplier']:.3g}",
            losses[0], ", ".join(losses[1:]) or "-"]
