"""The grid that chose each arm's learning rate, input speed and scale: runs in, tuning.json out,
and back in where tuned runs are compared.

    table = choose(runs, default)    # {"seeds", "steps", "settings", "arms": {arm: {"grid", ...}}}
    name, how = tuned_name(run, table)
"""
import json
import math
import sys
from pathlib import Path

from matplotlib.ticker import NullFormatter

from lib.config import compose
from lib.errors import InputError
from lib.plots import look, panels
from lib.results import (
    HORIZON,
    arm_of,
    difference,
    find_runs,
    order,
    provenance,
    settings,
    unfinished,
)
from lib.tables import bullets, markdown_table, save_results, stamp

# What a grid may vary, with the value of who says nothing.
KEYS = {"learning_rate": None, "min_lr": None, "embed_lr_mult": 1.0, "embed_std": 0.0,
        "input_multiplier": 1.0}
UNTUNED = {key: usual for key, usual in KEYS.items() if usual is not None}
AXES = {"learning rate": "learning_rate", "speed r": "r", "scale": "scale",
        "multiplier": "input_multiplier"}
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

    The lowest of the runs' seeds is the grid's; its best points may have been run again on others.
    An arm's choice is its point of lowest final validation loss: the mean over all seeds among the
    points that have every seed of that arm. `edges` says in words where it lies at an edge of the
    grid. `default` is the setting that nobody tuned, a dict of KEYS. InputError for runs that are
    no grid: unfinished, differing in more than arms, seeds and the tuned keys, or two of the same
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
    """Where the best point lies at an edge of the grid, in words, a list.

    A dimension with a single value has no edge. Speed counts as r = embed_lr_mult / scale. The
    natural scale is no edge, nor is a speed at which the last step changed the loss by less than
    FLAT; a value beyond at which the run diverged is a value (results/PLAN.md).
    """
    found, natural_scales = [], {point["scale"] for point in grid if not point["embed_std"]}
    for what, key in AXES.items():
        values = sorted({point[key] for point in grid if point.get(key) is not None})
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
        if "seed" in table:  # of before grids had several
            table["seeds"] = [table.pop("seed")]
        whole = {"seeds", "steps", "default", "settings", "arms"} <= table.keys()
        whole = whole and isinstance(table["settings"], dict)
        for row in table["arms"].values():
            whole = whole and {"arm", "best", "edges", "grid"} <= row.keys()
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
    found = {name: table["arms"][name]["edges"] for name in names if name in table["arms"]}
    return [f"{name}'s setting lies at an edge of its grid: {'; '.join(edges)}"
            for name, edges in found.items() if edges]


def describe_setting(point):
    """A setting in a few words: 4e-03, speed x 0.25, scale 1."""
    text = f"{point['learning_rate']:.3g}"
    if not math.isclose(point["min_lr"], point["learning_rate"] / 10, rel_tol=1e-6):
        text += f" to {point['min_lr']:.3g}"
    if point["embed_lr_mult"] != 1:
        text += f", speed × {point['embed_lr_mult']:.4g}"
    if point["embed_std"]:
        text += f", scale {point['embed_std']:.3g}"
    if point.get("input_multiplier", 1) != 1:
        text += f", input × {point['input_multiplier']:.3g}"
    return text


def name_runs(runs, tuning, notes):
    """Runs as a tuned comparison calls them, without those that it must not use. Where the grid had
    other data or another shape, how is ELSEWHERE."""
    kept, grid = [], tuning["settings"]
    for r in runs:
        if (seed := r["header"]["config"]["seed"]) in tuning["seeds"]:
            notes.append(f"left out: {r['name']}: seed {seed} chose the settings")
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
    notes += at_edges(dict.fromkeys(r["arm"] for r in kept), tuning)
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
               "input_multiplier", "loss (nats)", "on the other seeds"]
    return [f"Each arm's setting of lowest validation loss after {table['steps']:,} steps on seed "
            f"{table['seeds'][0]}, which judges nothing else"
            + ("; the best two of an arm were run again on seed "
               f"{', '.join(map(str, table['seeds'][1:]))}, and the lower mean is taken"
               if table["seeds"][1:] else "") + ":",
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
    losses = ["diverged" if loss is None else f"{loss:.4f}"
              for loss in (point["val_loss"], *point["again"].values())]
    return [f"{point['learning_rate']:.3g}", f"{point['min_lr']:.3g}",
            f"{point['embed_lr_mult']:.4g}", scale, r, f"{point['input_multiplier']:.3g}",
            losses[0], ", ".join(losses[1:]) or "-"]


def tuning_picture(table):
    """Loss against each axis on which some arm has several values: every run a marker, a line
    through the lowest loss at each value, a ring around each arm's choice."""
    labels = {"r": "r = embed_lr_mult / rms(e) at the start", "learning_rate": "learning_rate",
              "scale": "rms(e) at the start", "input_multiplier": "input_multiplier"}
    keys = [key for key in labels
            if any(len({p[key] for p in row["grid"]}) > 1 for row in table["arms"].values())]
    figure, axes = panels(max(1, len(keys)), 6.4, 5)
    for ax, key in zip(axes, keys):
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
        ax.set(xscale="log", xlabel=labels[key],
               title="line: lowest at each; ring: chosen; small: the rest",
               ylabel=f"validation loss after {table['steps']:,} steps (nats per token)")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        if key == "learning_rate":
            ax.set_xticks(sorted({x for line in ax.lines for x in line.get_xdata()}), minor=False)
        if ax.lines:
            ax.legend(fontsize=8)
    return figure
