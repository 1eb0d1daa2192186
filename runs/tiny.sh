#!/usr/bin/env bash
# The CPU evidence, results/tiny.{md,json,png}: every arm, three seeds, at the tiny size on the docstrings of this machine.
#
#     bash runs/tiny.sh                        # 24 runs of about 5 minutes of two cores' time, half a gigabyte in out/
#     ARMS="bpe_tied kron" SEEDS="1 2" bash runs/tiny.sh
#
# Runs that are finished are skipped, runs that were stopped continue.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_tied bpe_untied bpe_untied_unit bpe_untied_lr binary affine random kron}
SEEDS=${SEEDS:-1 2 3}
JOBS=${JOBS:-$(nproc)}  # before the next line, which nproc heeds
export OMP_NUM_THREADS=1
[ -d data/docstrings ] || python prepare.py docstrings
mkdir -p out
for seed in $SEEDS; do for arm in $ARMS; do echo "$arm $seed"; done; done |
    xargs -P "$JOBS" -L 1 bash -c 'python train.py configs/tiny.py configs/$0.py --seed=$1 2>&1 | grep --line-buffered -E "error|validation|finished" | sed -u "s/^/$0 $1: /"'
python compare.py $(for seed in $SEEDS; do for arm in $ARMS; do echo "out/tiny-$arm-s$seed"; done; done) --baseline=bpe_tied --out=results/tiny
