"""Work through a plan of runs, some side by side, until all of it is done.

    python -m runs.plan results/tiny2                    # tune.sh and tiny.sh call it
    python -m runs.plan results/tiny2 --items 1 3 --seeds 21 --only tuning/ --list

FOLDER/plan.tsv has a line for each run: item, name, arguments of train.py. A run is done where
FOLDER/NAME has its log.jsonl, beside its eval.npz. Arguments may hold

    {best} {second}    the setting of the best and of the second point of the arm's grid so far
    {beyond AXIS}      a step beyond the best point on an axis; not run if that lies inside
    {tuned}            what the arm's whole grid chose

An arm's grid: the runs of the same config file in tuning/ beside the run, or else above it.
"""
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lib.config import ROOT
from lib.distributed import stop_signals
from lib.errors import InputError, Parser, run
from lib.results import find_runs, read_run, read_tsv, unfinished
from lib.tuning import AXES, KEYS, beyond, choose

WAITS, NOT_NEEDED = "waits", "not needed"


class Plan:
    """The rows of a plan, {"item", "name", "arguments"}, and how far they are."""

    def __init__(self, folder):
        self.folder, self.rows = Path(folder), read_tsv(folder, "plan.tsv")
        if not all(row["arguments"].startswith("configs/") for row in self.rows):
            raise InputError(f"{folder}/plan.tsv: arguments of a run begin with a config file")

    def done(self, row):
        return (self.folder / row["name"] / "log.jsonl").is_file()

    def ended(self, row):
        """Whether nothing more will come of a row."""
        return self.done(row) or self.arguments(row) is NOT_NEEDED

    def grid_of(self, row):
        """The rows of its arm's grid; for a row of the grid itself those above it."""
        beside = Path(row["name"]).parent
        for folder in [beside] if beside.name == "tuning" else [beside / "tuning", Path("tuning")]:
            grid = [other for other in self.rows if Path(other["name"]).parent == folder
                    and other["arguments"].split()[0] == row["arguments"].split()[0]]
            if grid:
                return grid[:grid.index(row)] if row in grid else grid
        raise InputError(f"{row['name']}: the plan has no tuning/ runs of its config")

    def arguments(self, row):
        """The row's arguments with everything filled in, a list; WAITS or NOT_NEEDED."""
        text = row["arguments"]
        for rule in re.findall(r"\{(.*?)\}", text):
            grid = self.grid_of(row)
            if not all(self.ended(other) for other in grid):
                return WAITS
            runs = [read_run(self.folder / other["name"]) for other in grid if self.done(other)]
            (arm,) = choose(runs)["arms"].values()
            ranked = sorted((point for point in arm["grid"] if point["val_loss"] is not None),
                            key=lambda point: point["val_loss"])
            points = {"tuned": arm["best"]} | dict(zip(("best", "second"), ranked))
            points |= {f"beyond {axis}": beyond(arm["grid"], ranked[0], axis) for axis in AXES}
            if not (point := points[rule]):
                return NOT_NEEDED
            options = [f"--{key}={point[key]:g}" for key in KEYS if point[key] != KEYS[key]]
            text = text.replace(f"{{{rule}}}", " ".join(options))
        return text.split()


def archive(out, folder):
    """Copy the log and scores of a run in `out` to `folder`, whole or not at all. What to say of
    it, "" if it has neither finished nor diverged."""
    made = next(iter(find_runs([out], [])), None)
    diverged = made and made["diverged"] is not None
    if not made or not diverged and (unfinished(made) or not (out / "eval.npz").exists()):
        return ""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for path in (out / "log.jsonl", *out.glob("eval.npz")):
        shutil.copy(path, new)
    new.rename(folder)
    return "diverged" if diverged else f"{made['vals'][-1]['val_loss']:.4f} nats"


def work(plan, rows, jobs, given):
    """Run the rows, `jobs` at a time, in their order as far as they need not wait. Returns how many
    failed. SIGTERM and Ctrl-C stop the runs, which save first."""
    Path("out").mkdir(exist_ok=True)
    running, failed, stop, told = {}, 0, stop_signals(), False
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # runs go side by side, a core each
    rest = [row for row in rows if not plan.done(row)]
    while True:
        for row in rest.copy():
            if stop or len(running) >= jobs:
                break
            if (arguments := plan.arguments(row)) in (WAITS, NOT_NEEDED):
                continue
            rest.remove(row)
            out = Path("out") / f"{plan.folder.name}-{row['name'].replace('/', '-')}"
            command = [sys.executable, "train.py", "configs/tiny.py", *arguments, *given,
                       f"--name={out.name}"]
            with open(f"{out}.txt", "w") as file:  # a group of its own: Ctrl-C comes through us
                child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env,
                                         cwd=ROOT, start_new_session=True)
            running[child] = row, out
        if not running:
            return failed
        if stop and not told:
            print("stopping: the runs save first; the same command goes on", flush=True)
            told = True
            for child in running:
                child.terminate()
        time.sleep(0.2)
        for child in [child for child in running if child.poll() is not None]:
            row, out = running.pop(child)
            said = archive(out, plan.folder / row["name"])
            failed += not said and not stop
            for weights in out.glob("*.pt") if said and "tuning/" in row["name"] else ():
                weights.unlink()  # the others' are for the probes
            said = said or (Path(f"{out}.txt").read_text().splitlines() or [""])[-1]
            left = sum(not plan.ended(other) for other in rows)
            print(f"{time.strftime('%H:%M')} {row['name']}: {said} | {left} left", flush=True)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("folder", help="results/NAME, which has a plan.tsv")
    parser.add_argument("--items", nargs="*", help="these items alone, in this order")
    parser.add_argument("--seeds", nargs="*", help="these seeds alone")
    parser.add_argument("--only", default="", help="names that have this in them alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--list", action="store_true", help="print what is to be run, run nothing")
    args, given = parser.parse_known_args()
    plan, seeds = Plan(args.folder), {f"--seed={seed}" for seed in args.seeds or ()}
    items = args.items or dict.fromkeys(row["item"] for row in plan.rows)
    rows = [row for item in items for row in plan.rows
            if row["item"] == item and args.only in row["name"]
            and (not seeds or seeds & {*row["arguments"].split()})]
    if not rows:
        raise InputError(f"{args.folder}/plan.tsv has no such runs")
    if not args.list:
        return 1 if work(plan, rows, args.jobs, given) else 0
    for row in rows:
        if not plan.ended(row):
            print(*row.values(), sep="\t")


if __name__ == "__main__":
    run(main)
