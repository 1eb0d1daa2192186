#!/usr/bin/env bash
# The tuning that results/PLAN.md describes: 600 steps on seed 100, results/tiny/tuning/. About two hours of two cores.
#
#     bash runs/tune.sh     # runs whose logs are committed are skipped, runs that were stopped continue
KEEP=results/tiny/tuning
source "$(dirname "$0")/jobs.sh"
common="--seed=100 --max_steps=600 --eval_interval=300 --log_interval=50"

rate() { echo "--learning_rate=$1e-3 --min_lr=$1e-4"; }

lowest() {  # which of the numbers in $2... ends lowest in the runs named $1NUMBER
    for x in "${@:2}"; do
        echo "$(tail -n 1 "$KEEP/$1$x/log.jsonl" | grep -o '"val_loss": [0-9.]*' | cut -d' ' -f2) $x"
    done | sort -n | head -n 1 | cut -d' ' -f2
}

for lr in 4 2 8 1; do
    for arm in bpe_untied bpe_tied; do echo "$arm-lr$lr configs/$arm.py $(rate $lr) $common"; done
done | all
best=$(lowest bpe_untied-lr 1 2 4 8)
echo "the learning rate of what follows: ${best}e-3"

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
