#!/usr/bin/env bash
# What only a GPU can say, on one NVIDIA GPU without a network: whether every arm is the same there, how
# fast it is, and what the arms lose at the 124M shape. Three calls, in any order:
#
#     bash runs/gpu_check.sh tests         # tests/test_gpu.py, about two minutes
#     bash runs/gpu_check.sh bench         # codes and whole steps, eager and compiled, about two minutes
#     bash runs/gpu_check.sh runs 420      # as many runs of 41M tokens as fit into 420 seconds
#     SMOKE=1 bash runs/gpu_check.sh runs 100    # any of them at toy size on a CPU, in a minute
#
# Needs   python3 (PYTHON names another) with torch 2.11, numpy, tiktoken, tqdm, matplotlib and pytest.
# Data    41M tokens with GPT-2's ids, 35 MB when packed, made where there is a network:
#             python prepare.py fineweb-edu --tokens=41.5e6 --val_tokens=1e6 --name=gpu_check
#             tar -c data/gpu_check | xz --lzma2=preset=9,lc=0,lp=1,pb=1 > data/gpu_check.tar.xz
# Time    a run has 80 seconds of arithmetic on an H100 at 45 % of its peak. One that is cut short goes
#         on with the next call, as long as out/ is kept.
# OUT     a folder (unset: out/gpu_check): each run's log.jsonl and eval.npz, the benches' tables and
#         numbers. Nothing is tuned at this shape: all arms have nanoGPT's rate.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-} seconds=${2:-420} name=gpu_check data=gpu_check
PYTHON=${PYTHON:-python3} OUT=${OUT:-out/gpu_check}
size="configs/gpt2_124m.py configs/gpu_check.py" compile="False True" rounds=11 tests=:: processes=16
if [ "${SMOKE:-}" ]; then
    source runs/setup.sh
    use_toy_size
    export TEST_DEVICE=cpu
    PYTHON=python data=docstrings compile=False rounds=2 tests='\[kron\]' processes=2
elif [ "$what" != tests ] && [ ! -d data/$data ]; then
    tar -xf data/$data.tar.xz
fi
mkdir -p "$OUT" out
export TORCHINDUCTOR_CACHE_DIR=$PWD/out/inductor   # what one process has compiled, the next ones read

case $what in
tests)   # side by side: they wait for the compiler
    export TORCHINDUCTOR_COMPILE_THREADS=1
    "$PYTHON" -m pytest --collect-only -q tests/test_gpu.py | grep "$tests" |
        xargs -P $processes -n 4 "$PYTHON" -m pytest -q -p no:cacheprovider 2>&1 | tee "$OUT/tests.txt"
    ;;
bench)
    for part in codes step; do
        for compiled in $compile; do
            "$PYTHON" bench.py $part $size configs/kron.py configs/wide.py configs/bpe_untied.py \
                --dataset=$data --gradient_accumulation_steps=1 --compile=$compiled --rounds=$rounds \
                --out="$OUT/$part-compile=$compiled"
        done
    done | tee "$OUT/bench.txt"
    ;;
runs)   # what is learned first, first
    for arm in bpe_untied_fast kron wide bpe_untied_usual bpe_tied_usual; do
        run=out/$name-$arm left=$((seconds - SECONDS))
        if [ ! -e "$run/eval.npz" ] && [ $left -gt 0 ]; then
            timeout --signal=TERM --kill-after=20 $left "$PYTHON" train.py $size "configs/$arm.py" \
                --seed=1 --name="$name-$arm" || echo "$arm: exit status $?"   # cut short, or it diverged
        fi
        [ -e "$run/log.jsonl" ] || continue
        mkdir -p "$OUT/$arm"
        cp "$run"/log.jsonl "$run"/eval*.npz "$OUT/$arm" || true   # no eval.npz if it did not end
    done
    ;;
*)
    echo "error: say what: tests, bench or runs" >&2
    exit 2
    ;;
esac
