#!/usr/bin/env bash
# The tuning of results/PLAN.md, part two: the tuning/ lines of results/tiny2/plan.tsv, then each arm's choice,
# results/tiny2/tuning.{md,json,png}. About six hours of two cores with bfloat16 units.
#
#     bash runs/tune.sh                     # finished runs are skipped, stopped ones go on
#     ITEMS=1 bash runs/tune.sh             # one item of the plan; LIST=1 prints what is to be run
ONLY=tuning/ source "$(dirname "$0")/tiny.sh"
[ "${LIST:-}" ] || python compare.py --tune results/tiny2/tuning --default=configs/tiny.py --out=results/tiny2/tuning
