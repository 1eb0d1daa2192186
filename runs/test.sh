#!/usr/bin/env bash
# The whole test suite, from a fresh clone, under 5 minutes on two cores. Arguments go to pytest: bash runs/test.sh -k codes
source "$(dirname "$0")/setup.sh"
python -m pytest -q tests "$@"
