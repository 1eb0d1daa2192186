#!/usr/bin/env bash
# The whole test suite from a fresh clone, on two processes. Arguments go to pytest: bash runs/test.sh -k codes
source "$(dirname "$0")/setup.sh"
python -m pytest -q -n 2 --dist=loadfile tests "$@"
