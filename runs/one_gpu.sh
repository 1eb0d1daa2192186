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
# SIZE   model: layers x d, ids, context    tokens   six arms, one seed: hours that --dry_run says     disk
# 4gb    6 x 384, 16,384, 512               131M     GTX 1650: 9 to 21 hours                            3 GB
# 16gb   8 x 512, 50,257, 1,024             524M     T4: 16 to 34 hours                               10 GB
# 24gb   12 x 768, 50,257, 1,024            1.0B     RTX 4090: 16 to 19 hours; RTX 3090: 45 to 100    22 GB
#
# `python train.py configs/gpu_4gb.py configs/kron.py --dry_run=1650` has the arithmetic: memory and
# hours. Nobody has run these to the end yet, and no rate is tuned at these
# shapes: read gaps between arms, not losses. At 24gb, --max_steps=4768 --gradient_accumulation_steps=64
# with TOKENS=2.5e9 is the length of arXiv 2605.29459. Where the GPU is Apple's, add --device=mps (4gb;
# slow: float32, not compiled). Text comes from the Hub, and with 16gb and 24gb GPT-2's vocabulary once;
# with DATA nothing is fetched.
# Stopped?   The same command continues: prepared text is kept, finished runs are skipped, a stopped run goes on.
source "$(dirname "$0")/setup.sh"
SIZE=${SIZE:-4gb}
case $SIZE in
    4gb) tokens=132e6 val=3e6 tokenizer=bpe:16384 ;;
    16gb) tokens=525e6 val=5e6 tokenizer=gpt2 ;;
    24gb) tokens=1.01e9 val=10e6 tokenizer=gpt2 ;;
    *) echo "error: SIZE=$SIZE: there are 4gb, 16gb and 24gb" >&2; exit 2 ;;
esac
# in the order of what is learned first, should the night be short
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron kron_shuffled bpe_tied_usual wide}
SEEDS=${SEEDS:-1}
data=${DATA:-fineweb-edu-$SIZE} name=one-gpu-$SIZE${DATA:+-$DATA} size=configs/gpu_$SIZE.py
if [ "${SMOKE:-}" ]; then
    use_toy_size
    data=docstrings
elif [ ! -d "data/$data" ]; then
    [ -z "${DATA:-}" ] || { echo "error: data/$DATA is not there; prepare.py makes it" >&2; exit 2; }
    python prepare.py fineweb-edu --tokens="${TOKENS:-$tokens}" --val_tokens=$val --tokenizer=$tokenizer --name="$data"
fi
# vocab_size=0: whatever that text's tokenizer has
train_all --dataset="$data" ${DATA:+--vocab_size=0} "$@"
report echo robustness tokens
