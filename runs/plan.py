"""Work through a plan of runs, some side by side, until all of it is done.

    python -m runs.plan results/tiny2                    # tune.sh and tiny.sh call it
    python -m runs.plan results/tiny2 --items 1 3 --seeds 21 --only tuning/ --list

FOLDER/plan.tsv has a line for each run: item, name, arguments of train.py. Of a run
FOLDER/NAME/log.jsonl and eval.npz are kept, of one that diverged the log alone; where the log is
there the run is done. A run that was stopped goes on. Arguments may hold

    {best} {second}    the setting of the best and of the second point of the arm's grid so far
    {beyond AXIS}      a step beyond the best point on an axis; not run if that lies inside
    {tuned}            what the arm's whole grid chose

An arm's grid: the runs of the same config file in tuning/ beside the run, or else above it. A line
waits for the lines that it needs.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lib.run_folder import read_log
from lib.errors import InputError, Parser, clock, run
from lib.config import ROOT
from lib.results import read_run
from lib.tuning import AXES, beyond, choose, options

WAITS, NOT_NEEDED = "waits", "not needed"


@dataclass
class Row:
    """A line of the plan."""
    item: str
    name: str
    arguments: str

    @property
    def config(self):
        return self.arguments.split()[0]

    @property
    def is_tuning(self):
        return "tuning/" in self.name

    @property
    def seed(self):
        found = re.search(r"--seed=(\d+)", self.arguments)
        return found[1] if found else ""


def read_plan(folder):
    """FOLDER/plan.tsv -> [Row]. InputError if it is none."""
    path, rows = Path(folder) / "plan.tsv", []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != 3 or not cells[2].startswith("configs/"):
            raise InputError(f"{path}, line {number}: not item, name and arguments, with tabs "
                             "between them and a config first")
        rows.append(Row(*cells))
    if len({row.name for row in rows}) != len(rows):
        raise InputError(f"{path}: two runs have the same name")
    return rows


class Plan:
    """The rows of a plan and how far they are."""

    def __init__(self, folder):
        self.folder, self.rows = Path(folder), read_plan(folder)

    def done(self, row):
        return (self.folder / row.name / "log.jsonl").is_file()

    def settled(self, row):
        """Whether nothing more will come of a row."""
        return self.done(row) or self.arguments(row) is NOT_NEEDED

    def grid_of(self, row):
        """The rows of its arm's grid: all of them for a run outside of it, for one that is part of
        it those above."""
        beside = Path(row.name).parent
        for folder in [beside] if row.is_tuning else [beside / "tuning", Path("tuning")]:
            grid = [other for other in self.rows
                    if other.config == row.config and Path(other.name).parent == folder]
            if grid:
                return grid[:grid.index(row)] if row in grid else grid
        raise InputError(f"{row.name}: the plan has no tuning/ runs of {row.config}")

    def points(self, rows):
        """What the runs of these rows choose: the one arm's row of a tuning table."""
        runs = [read_run(self.folder / row.name) for row in rows if self.done(row)]
        (arm,) = choose(runs)["arms"].values()
        return arm

    def arguments(self, row):
        """The row's arguments with everything filled in, a list; WAITS or NOT_NEEDED."""
        wanted = re.findall(r"\{(.*?)\}", row.arguments)
        if not wanted:
            return row.arguments.split()
        grid = self.grid_of(row)
        if not all(self.settled(other) for other in grid):
            return WAITS
        text = row.arguments
        for rule in wanted:
            point = self.find(rule, self.points(grid), row)
            if point is None:
                return NOT_NEEDED
            text = text.replace(f"{{{rule}}}", " ".join(options(point)))
        return text.split()

    def find(self, rule, arm, row):
        """The point that a rule names; None if there is none."""
        if rule == "tuned":
            return arm["best"]
        finished = [point for point in arm["grid"] if point["val_loss"] is not None]
        first, second = sorted(finished, key=lambda point: point["val_loss"])[:2]
        if rule in ("best", "second"):
            return first if rule == "best" else second
        if rule.removeprefix("beyond ") in AXES:
            return beyond(arm["grid"], first, rule.removeprefix("beyond "))
        raise InputError(f"{row.name}: no rule {{{rule}}}")


def keep(out, kept):
    """Copy what is kept of a run in `out` to `kept`, whole or not at all. What to say of it, "" if
    it has neither finished nor diverged."""
    records, _ = read_log(out / "log.jsonl") if (out / "log.jsonl").exists() else ([], 0)
    scored = [record for record in records if "val_loss" in record]
    diverged = bool(scored) and scored[-1]["val_loss"] is None
    if not diverged and not (out / "eval.npz").exists():
        return ""
    new = kept.with_name(kept.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in ("log.jsonl",) if diverged else ("log.jsonl", "eval.npz"):
        shutil.copy(out / name, new)
    new.rename(kept)
    return "diverged" if diverged else f"{scored[-1]['val_loss']:.4f} nats"


def last_line(path):
    """The last line of what a run said."""
    return (path.read_text(errors="replace").splitlines() or [""])[-1]


def work(plan, rows, jobs, given):
    """Run the rows, `jobs` at a time, in their order as far as they need not wait. Returns how many
    failed. SIGTERM and Ctrl-C stop the runs, which save first."""
    Path("out").mkdir(exist_ok=True)
    running, failed, stop = {}, [], []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(1))
    began, finished = time.monotonic(), 0
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # runs go side by side, a core each
    while True:
        for row in rows:
            if stop or len(running) >= jobs:
                break
            if plan.done(row) or row in failed or row in [r for r, *_ in running.values()]:
                continue
            arguments = plan.arguments(row)
            if arguments in (WAITS, NOT_NEEDED):
                continue
            name = f"{plan.folder.name}-{row.name.replace('/', '-')}"
            command = [sys.executable, "train.py", "configs/tiny.py", *arguments, *given,
                       f"--name={name}"]
            said = Path("out") / f"{name}.txt"
            with open(said, "w") as file:  # a group of its own: Ctrl-C comes through us alone
                child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env,
                                         cwd=ROOT, start_new_session=True)
            running[child] = row, name, said, time.monotonic()
        if not running:
            return len(failed)
        if stop == [1]:
            print("stopping: the runs save first; the same command goes on", flush=True)
            stop.append(2)
            for child in running:
                child.terminate()
        time.sleep(0.2)
        for child in [child for child in running if child.poll() is not None]:
            row, name, said, start = running.pop(child)
            out = Path("out") / name
            loss = keep(out, plan.folder / row.name)
            if loss:
                finished += 1
                if row.is_tuning:  # the others' weights are for the probes
                    for weights in out.glob("*.pt"):
                        weights.unlink()
            elif not stop:
                failed.append(row)
            left = sum(not plan.settled(other) for other in rows)
            each = (time.monotonic() - began) / max(1, finished)
            print(f"{time.strftime('%H:%M')} {row.name}: {loss or last_line(said)} | "
                  f"{clock(time.monotonic() - start)}, {left} left"
                  + (f", about {clock(each * left)}" if finished else ""), flush=True)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("folder", help="results/NAME, which has a plan.tsv")
    parser.add_argument("--items", nargs="*", help="these items alone, in this order")
    parser.add_argument("--seeds", nargs="*", help="these seeds alone")
    parser.add_argument("--only", default="", help="names that have this in them alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--list", action="store_true", help="print what is to be run, run nothing")
    args, given = parser.parse_known_args()
    plan = Plan(args.folder)
    items = args.items or list(dict.fromkeys(row.item for row in plan.rows))
    rows = [row for item in items for row in plan.rows if row.item == item
            and (not args.seeds or row.seed in args.seeds) and args.only in row.name]
    if not rows:
        raise InputError(f"{args.folder}/plan.tsv has no such runs")
    if args.list:
        for row in rows:
            if not plan.settled(row):
                print(row.item, row.name, row.arguments, sep="\t")
        return 0
    return 1 if work(plan, rows, args.jobs, given) else 0


if __name__ == "__main__":
    run(main)
