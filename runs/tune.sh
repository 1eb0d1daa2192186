#!/usr/bin/env bash
# The tuning that results/PLAN.md describes: 600 steps on seed 100, kept in results/tiny/tuning/. About two hours of two cores.
#
#     bash runs/tune.sh     # runs whose logs are committed are skipped, runs that were stopped continue
#
# Ends with results/tiny/tuning.{md,json,png}: each arm's choice, which runs/tiny.sh uses.
KEEP=results/tiny/tuning
source "$(dirname "$0")/jobs.sh"
common="--seed=100 --max_steps=600 --eval_interval=300 --log_interval=50"

rate() { echo "--learning_rate=$1e-3 --min_lr=$1e-4"; }

grid() {  # rates: the learning rates of the plain tables alone; all: every run that is there
    python - "$KEEP" "$1" "$2" << 'PYTHON'
import sys

from lib.runs import find_runs
from lib.tuning import choose, setting

folder, which, what = sys.argv[1:]
runs, _ = find_runs([folder])
if which == "rates":
    natural = {"embed_lr_mult": 1, "embed_std": 0}
    runs = [run for run in runs if run["header"]["config"]["code"] == "learned"
            and natural.items() <= setting(run["header"]["config"]).items()]
arms = choose(runs)["arms"]

if what == "best":  # the learning rate of bpe_untied, in thousandths
    print(f"{1e3 * arms['bpe_untied']['best']['learning_rate']:g}")

if what == "beyond":  # a job for each edge at which an arm's best run lies: one step beyond it
    for row in arms.values():
        base, *options = row["arm"].split(",")
        for edge in row["edges"]:
            new = dict(row["best"])
            names = {"learning rate": "learning_rate", "speed r": "r", "scale": "scale"}
            key, = (key for name, key in names.items() if edge.startswith(name))
            values = sorted({point[key] for point in row["grid"] if point[key] is not None})
            inward = values[1] if new[key] == values[0] else values[-2]
            factor = new[key] / inward  # the grid's own
            if key == "learning_rate":
                new["learning_rate"] *= factor
                new["min_lr"] *= factor
            elif key == "r":
                new["embed_lr_mult"] *= factor
            else:  # at the same r
                new["embed_std"] = new["scale"] * factor
                new["embed_lr_mult"] *= factor if new["r"] else 1
            rates = [f"--{name}={new[name]:g}" for name in ("learning_rate", "min_lr")]
            speed, std = new["embed_lr_mult"], new["embed_std"]
            name = f"{base}-lr{1e3 * new['learning_rate']:g}-speed{speed:g}-std{std:g}"
            print(name, f"configs/{base}.py", *(f"--{option}" for option in options), *rates,
                  f"--embed_lr_mult={speed:g} --embed_std={std:g}")
PYTHON
}

extend() {  # the grid, until no arm's best run lies at an edge
    local jobs
    jobs=$(grid "$1" beyond)
    while [ "$jobs" ]; do
        echo "beyond the edges: $(echo "$jobs" | cut -d' ' -f1 | tr '\n' ' ')"
        echo "$jobs" | sed "s/\$/ $common/" | all
        jobs=$(grid "$1" beyond)
    done
}

# 1. The learning rate, on the plain tables.
for lr in 4 2 8 1; do
    for arm in bpe_untied bpe_tied; do echo "$arm-lr$lr configs/$arm.py $(rate $lr) $common"; done
done | all
extend rates
best=$(grid rates best)
echo "the learning rate of what follows: ${best}e-3"

# 2. How fast the input learns: r = embed_lr_mult / scale. 3. The bits, which learn nothing, by rate and scale.
{
    for arm in kron kron_shuffled kron_tied kron_code_head random lowrank; do
        for speed in 1 0.25 4 0.0625; do
            options=
            [ $arm != lowrank ] || options=--rank=32
            echo "$arm-speed$speed configs/$arm.py $options --embed_lr_mult=$speed $(rate "$best") $common"
        done
    done
    for r in 12.5 200 800; do  # r = 50 at scale 0.02 is the run of the first step
        echo "bpe_untied-std0.02-r$r configs/bpe_untied.py --embed_std=0.02 --embed_lr_mult=$(awk "BEGIN{print 0.02 * $r}") $(rate "$best") $common"
    done
    for r in 12.5 50 200 800; do
        echo "bpe_untied-std1-r$r configs/bpe_untied.py --embed_std=1 --embed_lr_mult=$r $(rate "$best") $common"
    done
    for lr in 2 4 1; do
        for std in 0 0.5 0.1; do  # 0: natural
            for arm in binary affine; do
                echo "$arm-lr$lr-std$std configs/$arm.py --embed_std=$std $(rate $lr) $common"
            done
        done
    done
} | all
extend all

# For the frontier alone: phase, whose steps are larger than kron's.
for speed in 1 0.25 0.0625 0.015625; do
    echo "phase-speed$speed configs/phase.py --embed_lr_mult=$speed $(rate "$best") $common"
done | all
extend all

python compare.py --tune $KEEP --default=configs/tiny.py --out=$KEEP
