"""A grid of runs -> each arm's learning rate, input multipliers and scale: runs in, tuning.json
out, and back in where tuned runs are compared."""
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

from lib.config import ARM_KEYS, Config
from lib.errors import DAMAGE, InputError, one_line
from lib.results import BITS, HORIZON, difference, must_match, plain_arm, unfinished

# What a grid may vary, with the value of who says nothing.
KEYS = {"learning_rate": None, "min_lr": None, "embed_lr_mult": 1.0, "embed_std": 0.0,
        "input_multiplier": 1.0}
# An axis of a grid: the key of a point, and the keys that a step on it moves.
AXES = {"learning rate": ("learning_rate", ("learning_rate", "min_lr")),
        "r": ("r", ("embed_lr_mult",)),  # embed_lr_mult / scale
        "scale": ("scale", ("embed_std", "embed_lr_mult")),  # r is held
        "multiplier": ("input_multiplier", ("input_multiplier",))}
FLAT = 0.01  # nats: a step in r that changes the loss by less is on a plateau, not at an edge


def setting(config):
    """The tuned keys of a run's config."""
    return {key: float(config[key]) for key in KEYS}


def describe_setting(point):
    """A setting in a few words: 0.004, input rate × 0.25, scale 1."""
    words = {"learning_rate": "{:.3g}", "embed_lr_mult": "input rate × {:.4g}",
             "embed_std": "scale {:.3g}", "input_multiplier": "input × {:.3g}"}
    return ", ".join(form.format(point[key]) for key, form in words.items()
                     if point[key] != KEYS[key])


def arm_keys(config):
    """What makes a config's arm, besides the tuned keys."""
    return {key: config[key] for key in ARM_KEYS if key not in (*KEYS, *BITS)}


def grid_point(run):
    """A tuning run as a point of its grid; r is None where nothing is trained, val_loss if it
    diverged; "again" is for losses on other seeds."""
    config = run["header"]["config"]
    rms = run["vals"][0].get("input_rms") if run["vals"] else None
    # two digits: a default scale that is measured is the nominal one that a grid names
    scale = config["embed_std"] or (float(f"{rms:.2g}") if rms else None)
    loss = None if run["diverged"] is not None else run["vals"][-1]["val_loss"]
    r = config["embed_lr_mult"] / scale if scale and run["header"]["params"].get("input") else None
    return setting(config) | {"scale": scale, "r": r, "val_loss": loss, "name": run["name"],
                              "again": {}}


def choose(runs):
    """Tuning runs -> the table that tuning.json holds. The lowest of their seeds is the grid's; its
    best points may have been run again on others. An arm's choice is the point of lowest loss, the
    mean over seeds among those with most seeds."""
    grids, arms, keys = {}, {}, {}
    seeds = sorted({run["header"]["config"]["seed"] for run in runs})
    for run in sorted(runs, key=lambda run: run["header"]["config"]["seed"]):
        if unfinished(run) and run["diverged"] is None:
            raise InputError(f"{run['name']}: {unfinished(run)}")
        if differs := difference(runs[0], run, KEYS):
            raise InputError(f"not one grid: {differs}")
        seed, point = run["header"]["config"]["seed"], grid_point(run)
        arm, at = plain_arm(run["arm"], KEYS), tuple(setting(point).values())
        grid, keys[arm] = grids.setdefault(arm, {}), arm_keys(run["header"]["config"])
        if seed == seeds[0] and at not in grid:
            grid[at] = point
        elif at not in grid:
            raise InputError(f"{run['name']}: no point of the grid of seed {seeds[0]}")
        elif seed == seeds[0] or seed in grid[at]["again"]:
            raise InputError(f"{grid[at]['name']} and {run['name']} are the same point of a grid")
        else:
            grid[at]["again"][seed] = point["val_loss"]
    bases = [arm.split(",")[0] for arm in grids]
    for (arm, points), base in zip(grids.items(), bases):
        grid = [points[at] for at in sorted(points)]
        losses = [[point["val_loss"], *point["again"].values()] for point in grid]
        most = max(map(len, losses))
        means = {i: statistics.fmean(found) for i, found in enumerate(losses)
                 if len(found) == most and None not in found}
        if not means:
            raise InputError(f"every run of {arm} diverged: its grid chooses nothing")
        best = grid[min(means, key=means.get)]
        arms[base if bases.count(base) == 1 else arm] = {
            "arm": arm, "keys": keys[arm], "best": best, "edges": edges(grid, best),
            "grid": grid}
    return {"seeds": seeds, "steps": runs[0]["header"]["config"]["max_steps"],
            "settings": must_match(runs[0], KEYS), "arms": arms}


def ends(grid, best):
    """The axes at an end of which the best lies: {axis: (its values, the one beside the best)}."""
    found = {}
    for axis, (key, _) in AXES.items():
        values = sorted({point[key] for point in grid if point[key] is not None})
        if len(values) > 1 and best[key] in (values[0], values[-1]):
            found[axis] = values, values[1] if best[key] == values[0] else values[-2]
    return found


def beyond(grid, best, axis):
    """The setting a step beyond the best, where that lies at the end of an axis, else None."""
    if axis not in (found := ends(grid, best)):
        return None
    key, moved = AXES[axis]
    new = setting(best) | ({"embed_std": best["scale"]} if key == "scale" else {})
    step = best[key] / found[axis][1]
    return new | {name: float(f"{new[name] * step:.6g}") for name in moved
                  if name != "embed_lr_mult" or best["r"]}


def edges(grid, best):
    """Where the best point lies at an edge of the grid: [{"axis", "value", "end", "of"}]. The
    default scale is no edge, nor an r at which the last step changed the loss by less than FLAT."""
    found, default_scales = [], {point["scale"] for point in grid if not point["embed_std"]}
    for axis, (values, beside) in ends(grid, best).items():
        key = AXES[axis][0]
        losses = [point["val_loss"] for point in grid if point[key] == beside and point["val_loss"]]
        flat = key == "r" and min(losses, default=math.inf) - best["val_loss"] < FLAT
        if not flat and not (key == "scale" and best["scale"] in default_scales):
            found.append({"axis": axis, "value": best[key], "of": len(values),
                          "end": "lowest" if best[key] == values[0] else "highest"})
    return found


def describe_edges(found):
    """What `edges` found, in words."""
    return "; ".join("{axis} {value:g} is the {end} of {of}".format(**edge) for edge in found)


def read_tuning(path):
    """tuning.json -> the table that `choose` made, and its "path". InputError if it is none."""
    with one_line(f"{path}: not a table of compare.py --tune", InputError, DAMAGE):
        table = json.loads(Path(path).read_text())
        for row in table["arms"].values():
            row["keys"] = arm_keys(asdict(Config()) | row["keys"])  # of arms that came later too
            setting(row["best"])
        return {"path": str(path)} | {k: table[k] for k in ("seeds", "steps", "settings", "arms")}


def tuned_name(run, table):
    """What a run is called in a tuned comparison, and how its setting was come by: (name, how).
    how is "tuned", "as ARM" (of its family) or "not tuned". (None, why) for a run of a tuned arm at
    another setting."""
    full, config = plain_arm(run["arm"], KEYS), run["header"]["config"]
    mine = setting(config)
    for name, row in table["arms"].items():  # bpe_untied_fast can be the tuned bpe_untied
        if (mine, arm_keys(config)) == (setting(row["best"]), row["keys"]):
            return name, "tuned"
    for name, row in table["arms"].items():
        if full in (name, row["arm"]) and arm_keys(config) == row["keys"]:
            return None, (f"{describe_setting(mine)} is not what the grid chose "
                          f"({describe_setting(row['best'])})")
    family = full.split(",")[0]
    if family in table["arms"] and mine == setting(table["arms"][family]["best"]):
        return full, f"as {family}"
    return full, "not tuned"


def name_runs(runs, tuning, notes):
    """Runs with "arm" and "how" of `tuned_name` and "was", their arm's own name, without those that
    must not be compared."""
    kept, tried = [], {name: len(row["grid"]) for name, row in tuning["arms"].items()}
    for r in runs:
        name, how = tuned_name(r, tuning)
        if (seed := r["header"]["config"]["seed"]) in tuning["seeds"]:
            name, how = None, f"seed {seed} chose the settings"
        if name is None:
            notes.append(f"left out: {r['name']}: {how}")
        else:
            kept.append(r | {"arm": name, "how": how, "tried": tried.get(name),
                             "was": plain_arm(r["arm"], KEYS)})
    if not kept:
        raise InputError(f"none of these runs can be compared: {notes[-1]}")
    notes += [f"{name}'s setting lies at an edge of its grid: {describe_edges(row['edges'])}"
              for name, row in tuning["arms"].items()
              if row["edges"] and any(r["arm"] == name for r in kept)]
    return kept


def find_tuning(runs, paths):
    """The table of the tuning.json that most runs match, in data and shape, or None."""
    own = [path for folder in paths if (path := Path(folder) / "tuning.json").is_file()]
    found, most = None, 0
    for path in [*own, *sorted(Path("results").glob("**/tuning.json"), reverse=True)]:
        table, matches = read_tuning(path), 0
        for run in runs:
            here = must_match(run, {*KEYS, *HORIZON, "eval_tokens"})
            fits = all(table["settings"].get(key, here[key]) == here[key] for key in here)
            matches += fits and tuned_name(run, table)[1] == "tuned"
        if matches > most:
            found, most = table, matches
    return found
