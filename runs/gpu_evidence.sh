#!/usr/bin/env bash
# The evidence at the real shape - 12 layers, d 768, context 1,024, GPT-2's tokens - on one GPU that has no network and is lent for minutes.
#
#     bash runs/gpu_evidence.sh pack TEXT...     # where the text is: data/evidence, and evidence.tar.xz to carry (45 MB of 40M tokens)
#     bash runs/gpu_evidence.sh                  # on the GPU: up to LIMIT=540 seconds of the work below; again until it says "all done"
#     SMOKE=1 bash runs/gpu_evidence.sh          # the same commands at toy size, on a CPU
#
# In this order: checks of every arm on the GPU; the benches of codes and steps; kron and bpe_tied with three seeds; their probes; the other
# arms, seed by seed. Each run sees 500 x 65,536 tokens (STEPS) in the same order; the learning rate is nanoGPT's, the same for all.
# After each call results/h100-124m.{md,json,png} says what is finished, and evidence/ holds the logs; OUT=FOLDER gets a copy of both.
# A call that is cut short loses nothing but the step it was in. It needs python3 with torch, numpy, tiktoken, tqdm, matplotlib, pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1

if [ "${1:-}" = pack ]; then
    source runs/setup.sh
    python prepare.py text "${@:2}" --name=evidence --tokenizer=gpt2
    tar -c data/evidence | xz -T0 --lzma2=preset=9,lc=0,lp=1,pb=1 > evidence.tar.xz
    ls -l evidence.tar.xz
    exit
fi

LIMIT=${LIMIT:-540}
name=${NAME:-h100-124m} data=evidence bench="--dataset=evidence" seeds="1 2 3" first="kron bpe_tied"
rest=${REST-bpe_untied bpe_untied_lr random bpe_untied_unit binary affine}
options=(--batch_size=32 --gradient_accumulation_steps=2 --max_steps="${STEPS:-500}" --warmup_steps=50 --learning_rate=6e-4 --min_lr=6e-5
         --eval_interval=100 --eval_tokens=524288)
[ "$(type -P "${PYTHON:=python3}")" ] || { echo "error: no $PYTHON" >&2; exit 2; }
if [ "${SMOKE:-}" ]; then
    source runs/setup.sh
    PYTHON=python name=smoke-gpu data=docstrings seeds="1 2" rest=${REST-random}
    export TEST_DEVICE=cpu OMP_NUM_THREADS=1
    small="--n_layer=2 --n_embd=96 --n_head=3 --block_size=64 --batch_size=4 --gradient_accumulation_steps=1 --device=cpu"
    options=($small --max_steps=12 --warmup_steps=2 --eval_interval=6 --eval_tokens=1024 --learning_rate=3e-3 --min_lr=3e-4)
    bench="--dataset=docstrings --rounds=2"
    [ -d data/$data ] || python prepare.py docstrings
elif [ ! -d data/$data ]; then
    [ -e evidence.tar.xz ] || { echo "error: no data/$data and no evidence.tar.xz; make it with: bash runs/gpu_evidence.sh pack TEXT..." >&2; exit 2; }
    tar -xf evidence.tar.xz
fi
mkdir -p evidence results

collect() {  # whatever ends the call: the table of the finished runs, and copies for OUT
    local runs=()
    for done in evidence/"$name"-*.done; do
        [ -e "$done" ] && runs+=("out/$(basename "$done" .done)")
    done
    [ ${#runs[@]} = 0 ] || "$PYTHON" compare.py "${runs[@]}" --baseline=bpe_tied --out="results/$name" > evidence/compare.log 2>&1 || cat evidence/compare.log >&2
    for log in out/"$name"-*/log.jsonl; do
        [ -e "$log" ] && cp "$log" "evidence/$(basename "$(dirname "$log")").jsonl"
    done
    [ -z "${OUT:-}" ] || tar -czf "$OUT/evidence.tar.gz" evidence results/*"$name"*
}
trap collect EXIT

piece() {  # NAME COMMAND...: once, within the time that is left; its output is evidence/NAME.log
    local left=$((LIMIT - SECONDS)) status=0
    [ ! -e "evidence/$1.done" ] || return 0
    if [ $left -lt 20 ]; then echo "time is up before $1; the same command goes on"; exit 0; fi
    echo "$SECONDS s: $1"
    timeout --signal=TERM --kill-after=20 $left "${@:2}" > "evidence/$1.log" 2>&1 || status=$?
    tail -n 3 "evidence/$1.log"
    if [ $status = 124 ]; then echo "time is up in $1; the same command goes on"; exit 0; fi
    [ $status = 0 ] || { tail -n 40 "evidence/$1.log"; exit $status; }
    touch "evidence/$1.done"
}

train() {  # ARM SEED
    piece "$name-$1-s$2" "$PYTHON" train.py configs/gpt2_124m.py "configs/$1.py" --dataset=$data --seed="$2" "${options[@]}" --run="$name-$1-s$2"
}

piece checks "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_gpu.py
piece codes "$PYTHON" bench.py codes $bench --out=evidence/codes
piece step "$PYTHON" bench.py step configs/kron.py configs/bpe_untied.py ${small:---batch_size=32} $bench --out=evidence/step
piece form "$PYTHON" bench.py step configs/kron.py,code_form=table configs/kron.py ${small:---batch_size=32} $bench --out=evidence/form
for seed in $seeds; do for arm in $first; do train "$arm" "$seed"; done; done
for probe in robustness generation; do
    piece "probe-$probe" "$PYTHON" probe.py $probe $(for arm in $first; do for seed in $seeds; do echo "out/$name-$arm-s$seed"; done; done) \
        --out="results/probe-$probe-$name"
done
for seed in $seeds; do for arm in $rest; do train "$arm" "$seed"; done; done
echo "all done"
