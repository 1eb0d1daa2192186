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
# Machines   runs/README.md has the torchrun lines for several machines and for Slurm.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron kron_shuffled bpe_tied_usual wide}
SEEDS=${SEEDS:-1337 1338 1339}
NPROC=${NPROC:-8}
TOKENS=${TOKENS:-2.5e9}
data=fineweb-edu name=gpt2-124m options=()

if [ "${SMOKE:-}" ]; then
    ARMS="bpe_untied_usual kron" SEEDS="1 2" NPROC=2 data=docstrings name=smoke-gpt2-124m
    export OMP_NUM_THREADS=1
    options=(--dataset=$data --device=cpu --n_layer=2 --n_embd=96 --n_head=3 --block_size=64
             --batch_size=4 --gradient_accumulation_steps=4 --max_steps=20 --warmup_steps=4 --eval_interval=10 --eval_tokens=4096 --learning_rate=3e-3 --min_lr=3e-4)
    [ -d data/$data ] || python prepare.py docstrings
else
    [ -d data/$data ] || python prepare.py fineweb-edu --tokens="$TOKENS" --val_tokens=10e6 --name=$data
fi

runs=()
for seed in $SEEDS; do
    for arm in $ARMS; do
        torchrun --standalone --nproc_per_node="$NPROC" --max_restarts=3 \
            train.py configs/gpt2_124m.py "configs/$arm.py" --seed="$seed" "${options[@]}" "$@" \
            --name="$name-$arm-s$seed"
        runs+=("out/$name-$arm-s$seed")
    done
done

baseline=bpe_untied_usual
[[ " $ARMS " = *" $baseline "* ]] || baseline=${ARMS%% *}
python compare.py "${runs[@]}" --baseline="$baseline" --out="results/$name"
for probe in robustness generation layers norms; do
    python probe.py $probe "${runs[@]}" --out="results/probe-$probe-$name"
done
