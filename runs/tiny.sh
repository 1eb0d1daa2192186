#!/usr/bin/env bash
# The CPU evidence of results/PLAN.md, part two: every line of results/tiny2/plan.tsv, two runs side by
# side, one thread each. About 9 hours of two cores with bfloat16 units, 25 without; 6 GB in out/.
#
#     bash runs/tiny.sh                            # finished runs are skipped, stopped ones go on
#     bash runs/tiny.sh --items 1 2 --seeds 21     # some items, in that order, one seed
#     LIST=1 bash runs/tiny.sh                     # prints what is still to be run
#     bash runs/tiny.sh --device=cuda              # options that are no option of runs/plan.py go to train.py
#
# Item 3 needs the text of data/freedocs-16384; results/PLAN.md says what it is.
source "$(dirname "$0")/setup.sh"
[ "${LIST:-}" ] || [ -d data/docstrings ] || python prepare.py docstrings
python -m runs.plan results/tiny2 ${LIST:+--list} "$@"
