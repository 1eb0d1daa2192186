#!/usr/bin/env bash
# The comparison on one consumer GPU: a learned table at its usual setting and a fast one, kron, kron
# without spelling, a tied table, a wide fixed code; on streamed FineWeb-Edu.
#
#     bash runs/one_gpu.sh                           # prepare, train, compare, probe: results/one-gpu-4gb.md
#     SIZE=24gb SEEDS="1 2 3" bash runs/one_gpu.sh   # another size; with three seeds every gap has an interval
#     DATA=mine ARMS="kron bpe_untied_fast" bash runs/one_gpu.sh --max_steps=2000   # data/mine, made by
#                                                    # prepare.py; options go to train.py
#     SMOKE=1 bash runs/one_gpu.sh                   # the same commands at toy size, on a CPU, in a few minutes
#
# SIZE   model: layers x d, ids, context    tokens   six arms, one seed, at 45 % of the peak           disk
# 4gb    6 x 384, 16,384, 512               131M     GTX 1650: 9 hours (19 at half of that)            3 GB
# 16gb   8 x 512, 50,257, 1,024             524M     T4: 11 hours                                     10 GB
# 24gb   12 x 768, 50,257, 1,024            1.0B     RTX 4090: 19 hours; RTX 3090: 45 hours           22 GB
#
# `python train.py configs/gpu_4gb.py configs/kron.py --dry_run=1650` has the arithmetic: memory, the
# largest micro-batch that fits, hours. Nobody has run these to the end yet, and no rate is tuned at these
# shapes: read gaps between arms, not losses. At 24gb, --max_steps=4768 --gradient_accumulation_steps=64
# with TOKENS=2.5e9 is the length of arXiv 2605.29459. Where the GPU is Apple's, add --device=mps (4gb;
# slow: float32, not compiled). Text comes from the Hub, and with 16gb and 24gb GPT-2's vocabulary once;
# with DATA nothing is fetched.
# Stopped?   The same command continues: prepared text is kept, finished runs are skipped, a stopped run goes on.
source "$(dirname "$0")/setup.sh"
SIZE=${SIZE:-4gb}
# in the order of what is learned first, should the night be short
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron kron_shuffled bpe_tied_usual wide}
SEEDS=${SEEDS:-1}
case $SIZE in
    4gb) tokens=132e6 val=3e6 tokenizer=bpe:16384 ;;
    16gb) tokens=525e6 val=5e6 tokenizer=gpt2 ;;
    24gb) tokens=1.01e9 val=10e6 tokenizer=gpt2 ;;
    *) echo "error: SIZE=$SIZE: there are 4gb, 16gb and 24gb" >&2; exit 2 ;;
esac
data=${DATA:-fineweb-edu-$SIZE} name=one-gpu-$SIZE
options=(--dataset="$data")
[ -z "${DATA:-}" ] || name=$name-$DATA options+=(--vocab_size=0)   # 0: whatever that text's tokenizer has

if [ "${SMOKE:-}" ]; then
    data=docstrings name=smoke-$name SEEDS="1 2"
    export OMP_NUM_THREADS=1
    options=(--dataset=$data --vocab_size=0 --device=cpu --n_layer=2 --n_embd=96 --n_head=3 --block_size=64
             --batch_size=4 --gradient_accumulation_steps=2 --max_steps=20 --warmup_steps=4 --eval_interval=10 --eval_tokens=4096)
    [ -d data/$data ] || python prepare.py docstrings
elif [ ! -d "data/$data" ]; then
    [ -z "${DATA:-}" ] || { echo "error: data/$DATA is not there; prepare.py makes it" >&2; exit 2; }
    python prepare.py fineweb-edu --tokens="${TOKENS:-$tokens}" --val_tokens=$val --tokenizer=$tokenizer --name="$data"
fi

runs=()
for seed in $SEEDS; do
    for arm in $ARMS; do
        python train.py "configs/gpu_$SIZE.py" "configs/$arm.py" --seed="$seed" "${options[@]}" "$@" \
            --name="$name-$arm-s$seed"
        runs+=("out/$name-$arm-s$seed")
    done
done

baseline=bpe_untied_usual
[[ " $ARMS " = *" $baseline "* ]] || baseline=${ARMS%% *}
python compare.py "${runs[@]}" --baseline="$baseline" --out="results/$name"
for probe in echo robustness tokens; do
    python probe.py $probe "${runs[@]}" --out="results/probe-$probe-$name"
done
