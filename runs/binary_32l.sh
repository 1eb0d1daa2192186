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
# Machines   runs/README.md has lines for several machines and for Slurm; LAUNCH=... takes their torchrun.
source "$(dirname "$0")/setup.sh"
name=binary-32l size=configs/binary_32l.py data=fineweb-cosmopedia-unicode
ARMS=${ARMS:-bpe_untied binary affine}   # bpe_untied is the paper's learned table
SEEDS=${SEEDS:-1337 1338 1339}
if [ "${SMOKE:-}" ]; then
    use_toy_size
    data=docstrings-unicode
    [ -d data/$data ] || python prepare.py docstrings --tokenizer=unicode --name=$data
elif [ ! -d data/$data ]; then
    python prepare.py fineweb-edu --mix cosmopedia=0.2 --tokenizer=unicode --tokens="${TOKENS:-17e9}" \
        --val_tokens=10e6 --name=$data
fi
LAUNCH=${LAUNCH:-torchrun --standalone --nproc_per_node=${NPROC:-8} --max_restarts=3}
train_all --dataset=$data "$@"
report
python probe.py norms out/"$name"-bpe_untied-s* --out="results/probe-norms-$name"
