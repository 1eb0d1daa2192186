#!/usr/bin/env bash
# The comparison at full size: GPT-2 124M, 2.5B tokens of FineWeb-Edu, six arms, three seeds.
#
#     bash runs/gpt2_124m.sh           # prepare, train, compare, probe: results/gpt2-124m.md and probe-*
#     ARMS="bpe_untied_fast kron" SEEDS=1337 bash runs/gpt2_124m.sh --max_steps=1000   # options go to train.py
#     SMOKE=1 bash runs/gpt2_124m.sh   # the same commands at toy size, two CPU processes, a few minutes
#
# Hardware   one machine with 8 H100 (NPROC says how many); any number that divides 32 gives the same batches.
# Time       about 0.2 hours a run at 45 % MFU, 18 runs: 3 to 5 hours with validations; preparing the text
#            about an hour of 32 cores. `python train.py configs/gpt2_124m.py configs/kron.py --dry_run=8`
#            has the arithmetic.
# Disk       5 GB of tokens, 1.5 GB of checkpoint a run (twice where the best is not the last): 32 to 59 GB.
# Stopped?   The same command continues: prepared text is kept, finished runs are skipped, a stopped run goes on.
# Machines   runs/README.md has lines for several machines and for Slurm; LAUNCH=... takes their torchrun.
source "$(dirname "$0")/setup.sh"
name=gpt2-124m size=configs/gpt2_124m.py
SEEDS=${SEEDS:-1337 1338 1339}
if [ "${SMOKE:-}" ]; then
    use_toy_size
    ARMS="bpe_untied_usual kron"
elif [ ! -d data/fineweb-edu ]; then
    python prepare.py fineweb-edu --tokens="${TOKENS:-2.5e9}" --val_tokens=10e6 --name=fineweb-edu
fi
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron kron_shuffled bpe_tied_usual wide}
LAUNCH=${LAUNCH:-torchrun --standalone --nproc_per_node=${NPROC:-8} --max_restarts=3}
train_all "$@"
report robustness generation layers norms
