#!/usr/bin/env bash
# The binary-code paper at full size: 32 layers, d 1024, rotary, V = 65,536 Unicode-centric, about 17B
# tokens; a learned table, the id's bits, the bits mixed.
#
#     bash runs/binary_32l.sh           # prepare, train, compare: results/binary-32l.md
#     SEEDS=1337 bash runs/binary_32l.sh    # one seed; TOKENS=2e9 prepares less text and goes over it 8.5 times
#     bash runs/binary_32l.sh --batch_size=4 --gradient_accumulation_steps=128    # options go to train.py
#     SMOKE=1 bash runs/binary_32l.sh   # the same commands at toy size, two CPU processes, a few minutes
#
# Hardware   one machine with 8 H100 (NPROC says how many); any number that divides 64 gives the same batches.
# Time       about 4.3 hours a run at 45 % MFU, nine runs: 40 hours with validations; preparing the text half
#            a day of 32 cores. `python train.py configs/binary_32l.py configs/binary.py --dry_run=8` has the
#            arithmetic: exactly 67,108,864 trained parameters fewer than the learned table.
# Disk       34 GB of tokens, 6 GB of checkpoint a run (twice where the best is not the last): 90 to 145 GB.
# Stopped?   The same command continues: prepared text is kept, finished runs are skipped, a stopped run goes on.
# Machines   runs/README.md has the torchrun lines for several machines and for Slurm.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_untied binary affine}   # bpe_untied is the paper's learned table
SEEDS=${SEEDS:-1337 1338 1339}
NPROC=${NPROC:-8}
TOKENS=${TOKENS:-17e9}
data=fineweb-cosmopedia-unicode name=binary-32l options=()

if [ "${SMOKE:-}" ]; then
    SEEDS="1 2" NPROC=2 data=docstrings-unicode name=smoke-binary-32l
    export OMP_NUM_THREADS=1
    options=(--dataset=$data --device=cpu --n_layer=2 --n_embd=32 --n_head=2 --block_size=64
             --batch_size=2 --gradient_accumulation_steps=2 --max_steps=6 --warmup_steps=2 --eval_interval=3 --eval_tokens=256 --learning_rate=3e-3 --min_lr=3e-4)
    [ -d data/$data ] || python prepare.py docstrings --tokenizer=unicode --name=$data
else
    [ -d data/$data ] || python prepare.py fineweb-edu --mix cosmopedia=0.2 --tokenizer=unicode \
        --tokens="$TOKENS" --val_tokens=10e6 --name=$data
fi

runs=()
for seed in $SEEDS; do
    for arm in $ARMS; do
        torchrun --standalone --nproc_per_node="$NPROC" --max_restarts=3 \
            train.py configs/binary_32l.py "configs/$arm.py" --seed="$seed" "${options[@]}" "$@" \
            --name="$name-$arm-s$seed"
        runs+=("out/$name-$arm-s$seed")
    done
done

python compare.py "${runs[@]}" --baseline=bpe_untied --out="results/$name"
python probe.py norms out/$name-bpe_untied-s* --out="results/probe-norms-$name"
