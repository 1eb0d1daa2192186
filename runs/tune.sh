#!/usr/bin/env bash
# The tuning of results/PLAN.md, part two: the tuning/ lines of results/tiny2/plan.tsv, then each arm's
# choice, results/tiny2/tuning.{md,json}. About six hours of two cores with bfloat16 units.
#
#     bash runs/tune.sh                     # finished runs are skipped, stopped ones go on
#     bash runs/tune.sh --items 1           # one item of the plan; LIST=1 prints what is still to be run
source "$(dirname "$0")/setup.sh"
[ "${LIST:-}" ] || [ -d data/docstrings ] || python prepare.py docstrings
python -m runs.plan results/tiny2 --only tuning/ ${LIST:+--list} "$@"
[ "${LIST:-}" ] || python compare.py --tune results/tiny2/tuning --out=results/tiny2/tuning
