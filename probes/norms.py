"""How far does the mean row norm of the input's weights drift from the first validation to the
last?"""
import numpy as np

from lib.errors import InputError
from lib.results import arm_of, read_run
from lib.plots import draw_curves, panels
from lib.tables import markdown_table, pm
from lib.stats import spread
from probes.shared import about, comparable, save

PUBLISHED = ("Published (2605.29459): the learned table's mean row norm drifts in training, the "
             "projection's stays near 1.0.")


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="like out/tiny-kron-s1")


def read_norms(paths, tuned=None):
    """Folders of runs -> (the runs, {arm: {seed: {step: norm}}}); a norm is None where the input
    has no weights. InputError for what has no validation."""
    runs = [read_run(path) for path in paths]
    for run in runs:
        if not run["vals"]:
            raise InputError(f"{run['name']}: its log has no validation yet")
        run["step"] = run["vals"][-1]["step"]
    runs, curves = comparable(runs, tuned), {}
    for run in runs:
        curve = {record["step"]: record.get("input_norm") for record in run["vals"]}
        curves.setdefault(arm_of(run), {})[run["header"]["config"]["seed"]] = curve
    return runs, curves


def common_steps(arm, seeds):
    """The validations that all seeds of an arm have, in order. InputError if there are none."""
    steps = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
    if not steps:
        raise InputError(f"the runs of {arm} have no validation step in common")
    return steps


def drift(seeds, first, last):
    """{seed: {step: norm}} -> {"start", "end", "drift": spread over seeds} between two steps."""
    start = np.array([curve[first] for curve in seeds.values()])
    end = np.array([curve[last] for curve in seeds.values()])
    return {"start": spread(start), "end": spread(end), "drift": spread(end / start)}


def main(args):
    runs, curves = read_norms(args.runs, args.tuned)
    drifts, rows = {}, []
    figure, (ax,) = panels(1, 7.5)
    for arm, seeds in curves.items():
        if any(norm is None for curve in seeds.values() for norm in curve.values()):
            rows.append([arm, len(seeds), "no weights", "-", "-"])
            continue
        steps = common_steps(arm, seeds)
        drifts[arm] = drift(seeds, steps[0], steps[-1])
        rows.append([arm, len(seeds), *(pm(number, 3) for number in drifts[arm].values())])
        draw_curves(ax, arm, {seed: {step: curve[step] / curve[steps[0]] for step in steps}
                              for seed, curve in seeds.items()})
    ax.set(xlabel="training step", ylabel="input norm / its start",
           title="Mean row norm (bands: range over seeds)")
    if drifts:
        ax.legend(fontsize=8)
    text = ["Mean norm of the table's rows, or of the projection's as d x D, at the first and the "
            "last validation that all seeds of an arm have; mean ± sd over seeds:",
            markdown_table(["arm", "seeds", "start", "end", "drift = end / start"], rows),
            PUBLISHED]
    save(args, text, {"runs": about(runs), "norms": drifts, "curves": curves}, figure)
