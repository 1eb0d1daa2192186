#!/usr/bin/env bash
# The evidence at the real shape - 12 layers, d 768, context 1,024, GPT-2's tokens - on one GPU that has no network and is lent for minutes.
#
#     bash runs/gpu_evidence.sh pack TEXT...     # where the text is: evidence.tar.xz, the tokens to carry (35 MB for 41M tokens of documentation)
#     bash runs/gpu_evidence.sh                  # on the GPU: up to LIMIT=540 seconds of the work below; again until it says "all done"
#     SMOKE=1 bash runs/gpu_evidence.sh          # the same commands at toy size, on a CPU
#
# In this order: checks of every arm on the GPU; the benches of codes and steps; kron and bpe_tied with three seeds; their probes; the other
# arms, seed by seed. Each run sees 500 x 65,536 tokens (STEPS) in the same order; the learning rate is nanoGPT's, the same for all.
# After each call results/NAME.{md,json,png} (h100-124m) has the finished runs, evidence/NAME every log; OUT=FOLDER gets a copy of both.
# A run that is cut short continues; a check, bench or probe begins again. Needs python3 with torch, numpy, tiktoken, tqdm, matplotlib, pytest.
set -euo pipefail
shopt -s nullglob
mapfile -t files < <([ $# -lt 2 ] || realpath -- "${@:2}")  # before the folder changes
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1

if [ "${1:-}" = pack ]; then
    source runs/setup.sh
    [ -d data/evidence ] || python prepare.py text "${files[@]}" --name=evidence --tokenizer=gpt2
    echo "packing data/evidence (a minute or two) ..."
    tar -c data/evidence | xz -T0 --lzma2=preset=9,lc=0,lp=1,pb=1 > evidence.tar.xz.tmp
    mv evidence.tar.xz.tmp evidence.tar.xz
    ls -l evidence.tar.xz
    exit
fi

PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-540} name=${NAME:-h100-124m} data=evidence seeds="1 2 3" first="kron bpe_tied"
rest=${REST-bpe_untied bpe_untied_lr random bpe_untied_unit binary affine}
options=(--device=cuda --batch_size=32 --gradient_accumulation_steps=2 --max_steps="${STEPS:-500}" --warmup_steps=50
         --learning_rate=6e-4 --min_lr=6e-5 --eval_interval=100 --eval_tokens=524288)
shape=(--device=cuda --batch_size=32) rounds=()
if [ "${SMOKE:-}" ]; then
    source runs/setup.sh
    PYTHON=python name=smoke-gpu data=docstrings seeds="1 2" rest=${REST-random}
    export TEST_DEVICE=cpu OMP_NUM_THREADS=1
    shape=(--n_layer=2 --n_embd=96 --n_head=3 --block_size=64 --batch_size=4 --gradient_accumulation_steps=1 --device=cpu) rounds=(--rounds=2)
    options=("${shape[@]}" --max_steps=12 --warmup_steps=2 --eval_interval=6 --eval_tokens=1024 --learning_rate=3e-3 --min_lr=3e-4)
    [ -d data/$data ] || python prepare.py docstrings
else
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null || { echo "error: no GPU that $PYTHON's torch can use" >&2; exit 2; }
    if [ ! -d data/$data ]; then
        [ -e evidence.tar.xz ] || { echo "error: no evidence.tar.xz; made by: bash runs/gpu_evidence.sh pack TEXT..." >&2; exit 2; }
        mkdir -p data/unpacking && tar -xf evidence.tar.xz -C data/unpacking && mv data/unpacking/data/evidence data/ && rm -r data/unpacking
    fi
fi
work=evidence/$name
mkdir -p "$work" results

collect() {  # whatever ends the call: the table of the finished runs, and copies for OUT
    [ -z "${child:-}" ] || { kill -TERM "$child" && wait "$child"; } 2> /dev/null || true
    local runs=()
    for done in "$work"/run-*.done; do
        done=$(basename "$done" .done)
        runs+=("out/$name-${done#run-}")
        cp "out/$name-${done#run-}/log.jsonl" "$work/$done.jsonl"
    done
    [ ${#runs[@]} = 0 ] || "$PYTHON" compare.py "${runs[@]}" --baseline=bpe_tied --out="results/$name" > "$work/compare.log" 2>&1 || true
    [ -z "${OUT:-}" ] || tar -czf "$OUT/evidence.tar.gz" "$work" results/*"$name"*
}
trap collect EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

piece() {  # NAME COMMAND...: once, within the time that is left; what it prints is $work/NAME.log
    local left=$((LIMIT - SECONDS)) status=0
    if [ -e "$work/$1.done" ]; then
        [ "$(cat "$work/$1.done")" = "${*:2}" ] || { echo "error: $work/$1.done is of another command; NAME=... keeps them apart" >&2; exit 2; }
        return
    fi
    if [ $left -lt 20 ]; then echo "time is up before $1; the same command goes on"; exit 0; fi
    echo "$SECONDS s: $1"
    timeout --signal=TERM --kill-after=20 $left "${@:2}" > "$work/$1.log" 2>&1 &
    child=$!
    wait $child || status=$?
    child=
    tail -n 3 "$work/$1.log"
    if [ $status != 0 ] && [ $SECONDS -ge "$LIMIT" ]; then echo "time is up in $1; the same command goes on"; exit 0; fi
    [ $status = 0 ] || { tail -n 40 "$work/$1.log"; exit $status; }
    echo "${*:2}" > "$work/$1.done"
}

train() {  # ARM SEED
    piece "run-$1-s$2" "$PYTHON" train.py configs/gpt2_124m.py "configs/$1.py" --dataset=$data --seed="$2" "${options[@]}" --name="$name-$1-s$2"
}

bench() {  # NAME ARGUMENTS...
    piece "bench-$1" "$PYTHON" bench.py "${@:2}" --dataset=$data "${rounds[@]}" --out="$work/bench-$1"
}

piece checks "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_gpu.py
bench codes codes
bench step step configs/kron.py configs/bpe_untied.py "${shape[@]}"
bench form step configs/kron.py,code_form=table configs/kron.py "${shape[@]}"
for seed in $seeds; do for arm in $first; do train "$arm" "$seed"; done; done
runs=()
for arm in $first; do for seed in $seeds; do runs+=("out/$name-$arm-s$seed"); done; done
for probe in robustness generation; do
    piece "probe-$probe" "$PYTHON" probe.py $probe "${runs[@]}" --out="results/probe-$probe-$name"
done
for seed in $seeds; do for arm in $rest; do train "$arm" "$seed"; done; done
echo "all done"
