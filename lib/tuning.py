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
from lib.tables import bullets, made_by, markdown_table, save_results, stamp

# What a grid may vary, with the value of who says nothing.
KEYS = {"learning_rate": None, "min_lr": None, "embed_lr_mult": 1.0, "embed_std": 0.0,
        "input_multiplier": 1.0}
UNTUNED = {key: usual for key, usual in KEYS.items() if usual is not None}
# An axis of a grid: the key of a point, and the keys that a step on it moves.
AXES = {"learning rate": ("learning_rate", ("learning_rate", "min_lr")),
        "speed r": ("r", ("embed_lr_mult",)),
        "scale": ("scale", ("embed_std", "embed_lr_mult")),  # r is held
        "multiplier": ("input_multiplier", ("input_multiplier",))}
FLAT = 0.01  # nats: a step in r that changes the loss by less is on a plateau, not at an edge


def setting(config):
    """The tuned keys of a run's config."""
    return {key: float(config[key]) for key in KEYS}


def same(a, b):
    """Whether two settings agree in the tuned keys, to the rounding of a json."""
    return all(math.isclose(a.get(key, usual), b.get(key, usual), rel_tol=1e-4, abs_tol=1e-12)
               for key, usual in KEYS.items())


def options(point):
    """A setting as options of train.py, without what nobody has to say."""
    return [f"--{key}={point[key]:g}" for key, usual in KEYS.items() if point[key] != usual]


def describe_setting(point):
    """A setting in a few words: 0.004, input rate × 0.25, scale 1."""
    words = {"learning_rate": "{:.3g}", "embed_lr_mult": "input rate × {:.4g}",
             "embed_std": "scale {:.3g}", "input_multiplier": "input × {:.3g}"}
    return ", ".join(form.format(point[key]) for key, form in words.items()
                     if point[key] != KEYS[key])


def untuned_name(run):
    """A run's arm without its tuned keys: lowrank,rank=32,embed_lr_mult=4 -> lowrank,rank=32."""
    base, *options = arm_of(run).split(",")
    return ",".join([base, *(o for o in options if o.split("=")[0] not in KEYS)])


# ---- choosing ----------------------------------------------------------------------------------

def grid_point(run):
    """A tuning run as a point of its arm's grid: its setting, its scale, r (None where nothing is
    trained), final loss (None if it diverged) and, by seed, its losses on other seeds."""
    config = run["header"]["config"]
    rms = run["vals"][0].get("input_rms") if run["vals"] else None
    # two digits: a default scale that is measured is the nominal one that a grid names
    scale = config["embed_std"] or (float(f"{rms:.2g}") if rms else None)
    loss = None if run["diverged"] is not None else run["vals"][-1]["val_loss"]
    r = config["embed_lr_mult"] / scale if scale and run["header"]["params"].get("input") else None
    return setting(config) | {"scale": scale, "r": r, "val_loss": loss, "name": run["name"],
                              "again": {}}


def choose(runs, default=None):
    """Tuning runs -> the table that tuning.json holds. InputError if they are no grid.

    The lowest of the runs' seeds is the grid's; its best points may have been run again on others.
    An arm's choice is its point of lowest final validation loss: the mean over all seeds among the
    points that have every seed of that arm. `default` is the setting that nobody tuned.
    """
    grids, arms = {}, {}
    seeds = sorted({run["header"]["config"]["seed"] for run in runs})
    for run in sorted(runs, key=lambda run: run["header"]["config"]["seed"]):
        if unfinished(run) and run["diverged"] is None:
            raise InputError(f"{run['name']}: {unfinished(run)}")
        if differs := difference(runs[0], run, KEYS):
            raise InputError(f"not one grid: {differs}")
        seed, point = run["header"]["config"]["seed"], grid_point(run)
        grid = grids.setdefault(untuned_name(run), {})
        first = grid.setdefault(tuple(f"{point[key]:.4g}" for key in KEYS), point)
        if first is point and seed != seeds[0]:
            raise InputError(f"{run['name']}: no point of the grid of seed {seeds[0]}")
        if first is not point and (seed == seeds[0] or seed in first["again"]):
            raise InputError(f"{first['name']} and {run['name']} are the same point of a grid")
        if first is not point:
            first["again"][seed] = point["val_loss"]
    bases = [arm.split(",")[0] for arm in grids]
    for (arm, grid), base in zip(grids.items(), bases):
        grid = sorted(grid.values(), key=lambda point: [point[key] for key in KEYS])
        most, losses = max(len(point["again"]) for point in grid), {}
        for i, point in enumerate(grid):
            found = [point["val_loss"], *point["again"].values()]
            if len(point["again"]) == most and None not in found:
                losses[i] = math.fsum(found) / len(found)
        if not losses:
            raise InputError(f"every run of {arm} diverged: its grid chooses nothing")
        best = grid[min(losses, key=losses.get)]
        arms[base if bases.count(base) == 1 else arm] = {
            "arm": arm, "best": best, "edges": edges(grid, best), "grid": grid}
    return {"seeds": seeds, "steps": runs[0]["header"]["config"]["max_steps"], "default": default,
            "settings": settings(runs[0], KEYS), "arms": arms}


def end_of_axis(grid, best, key):
    """(values of an axis in order, the value beside the best one) where the best lies at an end;
    None where it lies inside or the axis has one value."""
    values = sorted({point[key] for point in grid if point[key] is not None})
    if len(values) < 2 or best[key] not in (values[0], values[-1]):
        return None
    return values, values[1] if best[key] == values[0] else values[-2]


def beyond(grid, best, axis):
    """The setting one step of the grid beyond the best one, where that lies at the end of an axis
    of AXES, else None."""
    key, moved = AXES[axis]
    if not (end := end_of_axis(grid, best, key)):
        return None
    new = {name: best[name] for name in KEYS}
    if key == "scale":
        new["embed_std"] = best["scale"]
    return new | {name: float(f"{new[name] * best[key] / end[1]:.6g}") for name in moved
                  if name != "embed_lr_mult" or best["r"]}


def edges(grid, best):
    """Where the best point lies at an edge of the grid: [{"axis", "value", "end", "of"}], the end
    being "lowest" or "highest" of so many values. The default scale is no edge, nor an r at which
    the last step changed the loss by less than FLAT (results/PLAN.md)."""
    found, default_scales = [], {point["scale"] for point in grid if not point["embed_std"]}
    for axis, (key, _) in AXES.items():
        end = end_of_axis(grid, best, key)
        if not end or key == "scale" and best["scale"] in default_scales:
            continue
        beside = min((point["val_loss"] for point in grid
                      if point[key] == end[1] and point["val_loss"] is not None), default=math.inf)
        if key != "r" or beside - best["val_loss"] >= FLAT:
            found.append({"axis": axis, "value": best[key], "of": len(end[0]),
                          "end": "lowest" if best[key] == end[0][0] else "highest"})
    return found


def describe_edges(found):
    """What `edges` found, in words."""
    return "; ".join("{axis} {value:g} is the {end} of {of}".format(**edge) for edge in found)


# ---- in a comparison ---------------------------------------------------------------------------

def read_tuning(path):
    """tuning.json -> the table that `choose` made. InputError if it is none."""
    try:
        table = json.loads(Path(path).read_text())
        if "seed" in table:  # of before grids had several
            table["seeds"] = [table.pop("seed")]
        for row in table["arms"].values():
            row["best"] = KEYS | row["best"]
            describe_setting(row["best"]), describe_edges(row["edges"]), len(row["grid"])
        [table[key] for key in ("seeds", "steps", "default")], table["settings"]["data"]
    except (ValueError, AttributeError, TypeError, KeyError):
        raise InputError(f"{path}: not a table of tuned settings (compare.py --tune makes it)"
                         ) from None
    return table


def tuned_name(run, table):
    """What a run is called in a tuned comparison, and how its setting was come by: (name, how).

    how is "tuned", "default", "usual" (the chosen learning rate, all else untuned), "as ARM"
    (another arm of the family was tuned, this has its setting) or "not tuned". (None, why) for a
    run of a tuned arm that is at none of these.
    """
    full, mine = untuned_name(run), setting(run["header"]["config"])
    at_default = table["default"] is not None and same(mine, table["default"])
    for name, row in table["arms"].items():
        if full in (name, row["arm"]):
            if same(mine, row["best"]):
                return name, "tuned"
            if at_default:
                return f"{name}_default", "default"
            if same(mine, row["best"] | UNTUNED):
                return f"{name}_usual", "usual"
            return None, (f"{describe_setting(mine)} is not what the grid chose "
                          f"({describe_setting(row['best'])})")
    family = full.split(",")[0]
    if family in table["arms"] and same(mine, table["arms"][family]["best"]):
        return full, f"as {family}"
    return full, "default" if at_default else "not tuned"


def name_runs(runs, tuning, notes):
    """Runs as a tuned comparison calls them ("arm", "how", "tried": how many points its grid has),
    without those that it must not use. InputError if none is left."""
    kept = []
    for r in runs:
        name, how = tuned_name(r, tuning)
        if (seed := r["header"]["config"]["seed"]) in tuning["seeds"]:
            name, how = None, f"seed {seed} chose the settings"
        if name is None:
            notes.append(f"left out: {r['name']}: {how}")
        else:
            tried = len(tuning["arms"][name]["grid"]) if name in tuning["arms"] else None
            kept.append(r | {"arm": name, "how": how, "tried": tried})
    if not kept:
        raise InputError(f"none of these runs can be compared: {notes[-1]}")
    notes += [f"{name}'s setting lies at an edge of its grid: {describe_edges(row['edges'])}"
              for name, row in tuning["arms"].items()
              if row["edges"] and any(r["arm"] == name for r in kept)]
    return kept


def find_tuning(runs, paths, notes):
    """The tuning table that most of these runs match, on its data and shape: FOLDER/tuning.json
    before those below results/. (Its path, the table), (None, None) where no run matches any."""
    own = [path for path in (Path(folder) / "tuning.json" for folder in paths) if path.is_file()]
    others = sorted(Path("results").glob("**/tuning.json"), reverse=True)
    found, most = (None, None), 0
    for path in dict.fromkeys([*own, *others]):
        try:
            table = read_tuning(path)
        except InputError as error:
            notes.append(f"left out: {error}")
            continue
        matches = 0
        for run in runs:
            here = settings(run, {*KEYS, *HORIZON, "eval_tokens"})
            fits = all(table["settings"].get(key, here[key]) == here[key] for key in here)
            matches += fits and tuned_name(run, table)[1] == "tuned"
        if matches > most:
            found, most = (str(path), table), matches
    return found


# ---- the command -------------------------------------------------------------------------------

def tune(paths, default, out):
    """compare.py --tune: what a grid chose, as a table; with `out` as OUT.json and OUT.md."""
    notes = []
    runs = sorted(find_runs(paths, notes), key=order)
    if not runs:
        raise InputError(f"no runs of a grid below {', '.join(paths)}")
    table = choose(runs, setting(vars(compose([default])[0])) if default else None)
    notes += provenance(runs)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    words = (f"An arm's setting is that of lowest validation loss after {table['steps']:,} steps "
             f"on seed {table['seeds'][0]}, or of lowest mean where points were run again on "
             "another seed.")
    rows = []
    for name, row in table["arms"].items():
        for point in row["grid"]:
            losses = ["diverged" if loss is None else f"{loss:.4f}"
                      for loss in (point["val_loss"], *point["again"].values())]
            chosen = f"**chosen** of {len(row['grid'])} {describe_edges(row['edges'])}".strip()
            numbers = ["-" if point[key] is None else f"{point[key]:.4g}"
                       for key in (*KEYS, "scale", "r")]
            rows.append([name, *numbers, ", ".join(losses), chosen * (point == row["best"])])
    columns = ["arm", *KEYS, "scale", "r = embed_lr_mult / scale", "loss (nats), on each seed", ""]
    page = [words, markdown_table(columns, rows)]
    print("\n\n".join(page))
    if out:
        made = stamp(runs)
        page = [f"# {Path(out).name}: the settings that a grid chose", *bullets(notes), *page,
                made_by(made)]
        save_results(out, "\n\n".join(page) + "\n", table | {"notes": notes} | made, None)
