#!/usr/bin/env bash
# The questions of results/PLAN.md at the 124M shape - 12 layers, d 768, context 1,024, GPT-2's 50,257 ids - on one GPU that has no
# network and is lent for minutes: results/h100-124m.{md,json,png}, with each run's log.jsonl and eval.npz in results/h100-124m/.
#
#     bash runs/gpu_evidence.sh pack TEXT...     # where the text is: evidence.tar.xz, the tokens to carry (35 MB for 41M tokens)
#     bash runs/gpu_evidence.sh checks           # on the GPU: the checks alone, at most two minutes
#     bash runs/gpu_evidence.sh                  # up to LIMIT=540 seconds of what follows; again until it says "all done"
#     SMOKE=1 bash runs/gpu_evidence.sh          # the same commands at toy size on a CPU, in a few minutes
#
# In the order of what is learned per minute, as planned for an H100 at 45 % of its peak:
#     checks    every arm on this GPU: eager and compiled as on the CPU, bfloat16, float16, no recompilation, no waiting    2 minutes
#     runs      625 steps of 65,536 tokens, 80 s of compute each; all four arms of a seed before the next seed             17 minutes
#     probes    echo, robustness, tokens: of the runs whose weights are on this machine                                     3 minutes
#     benches   whole steps; the forms in which kron can be compiled; inputs alone                                          5 minutes
#     runs      the other arms, seed by seed, as time is left                                                               2 minutes each
#
# After each call the page has the finished runs, and OUT=FOLDER gets evidence.tar.gz: all of results/ that this made, no weights.
# Unpacked here it makes the next call go on, on whatever machine: what is there is not done again. A run that is cut short continues
# from out/; a check, probe or bench begins again. Needs python3 with torch, numpy, tiktoken, tqdm, matplotlib, pytest; fetches nothing.
set -euo pipefail
shopt -s nullglob
text=()
for path in "${@:2}"; do text+=("$(cd "$(dirname "$path")" && pwd)/$(basename "$path")"); done  # before the folder changes
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1

# Rates are nanoGPT's for this shape, the same for all arms; at the tiny size tuning chose 4e-3. The speed and scale of each arm's input
# are what tuning chose at the tiny size, where its table is, else natural. Neither was tuned at this shape.
rates="--learning_rate=6e-4 --min_lr=6e-5"
TUNING=results/tiny/tuning.json

PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-540} name=${NAME:-h100-124m} data=evidence
seeds=${SEEDS:-1 2}
first="bpe_untied kron kron_shuffled bpe_tied"   # spelling, the table, the head: PLAN.md's questions
rest=${REST-kron_tied random lowrank}
options="--device=cuda --batch_size=32 --gradient_accumulation_steps=2 --max_steps=625 --warmup_steps=60 $rates
         --eval_interval=125 --eval_tokens=524288"
shape="--device=cuda --batch_size=32 --gradient_accumulation_steps=1" rounds=
tests=:: shards=16   # which tests of test_gpu.py, and how many processes side by side: they wait for the compiler, which has 16 cores

if [ "${1:-}" = pack ]; then
    source runs/setup.sh
    [ -d data/$data ] || python prepare.py text "${text[@]}" --name=$data --tokenizer=gpt2
    echo "packing data/$data (a minute or two) ..."
    tar -c data/$data | xz -T0 --lzma2=preset=9,lc=0,lp=1,pb=1 > evidence.tar.xz.tmp
    mv evidence.tar.xz.tmp evidence.tar.xz
    ls -l evidence.tar.xz
    exit
fi

if [ "${SMOKE:-}" ]; then
    source runs/setup.sh
    PYTHON=python name=smoke-gpu data=docstrings rest=${REST-random} tests='\[kron\]' shards=2 rounds=--rounds=2
    shape="--n_layer=2 --n_embd=96 --n_head=3 --block_size=64 --device=cpu --batch_size=4 --gradient_accumulation_steps=1"
    options="$shape --max_steps=12 --warmup_steps=2 --eval_interval=6 --eval_tokens=1024 --learning_rate=3e-3 --min_lr=3e-4"
    export TEST_DEVICE=cpu OMP_NUM_THREADS=1
    [ -d data/$data ] || python prepare.py docstrings
else
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null ||
        { echo "error: no GPU that $PYTHON's torch can use" >&2; exit 2; }
    if [ ! -d data/$data ]; then
        [ -e evidence.tar.xz ] || { echo "error: no evidence.tar.xz; made by: bash runs/gpu_evidence.sh pack TEXT..." >&2; exit 2; }
        mkdir -p data/unpacking
        tar -xf evidence.tar.xz -C data/unpacking
        mv data/unpacking/data/$data data/
        rm -r data/unpacking
    fi
fi
source runs/kept.sh
keep=results/$name
mkdir -p "$keep" out
export TORCHINDUCTOR_CACHE_DIR=$PWD/out/inductor   # what one process has compiled, the next ones read

collect() {  # whatever ends the call: the page of the finished runs, and a copy of everything for OUT
    [ -z "${child:-}" ] || { kill -TERM "$child" && wait "$child"; } 2> /dev/null || true
    local logs=("$keep"/*/log.jsonl) text
    if [ ${#logs[@]} -gt 0 ] && "$PYTHON" compare.py "$keep" --baseline=bpe_untied --out="results/$name" > "out/$name-compare.txt" 2>&1; then
        {
            printf '\n## How it was run\n\n%s\n' "Learning rates were not tuned at this shape: all arms have nanoGPT's. The speed and scale \
of an arm's input are its choice of results/tiny/tuning.json, or natural where it has none; they were not tuned at this shape either."
            printf '\n### The last step of each run\n\n```\n'
            for text in "$keep"/run-*.txt; do echo "$(basename "$text" .txt | cut -c5-): $(grep tokens/s "$text" | tail -n 1)"; done
            echo '```'
            for text in "$keep"/{checks,bench,kron}*.txt; do printf '\n### %s\n\n' "$(basename "$text" .txt)"; cat "$text"; done
        } >> "results/$name.md"
    fi
    [ -z "${OUT:-}" ] || tar -czf "$OUT/evidence.tar.gz" results/*"$name"*
}
failed=
trap collect EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

piece() {  # NAME COMMAND...: once, within the time that is left; the command and what it printed are then $keep/NAME.txt
    local left=$((LIMIT - SECONDS)) status=0 log=out/$name-$1.txt
    [ ! -e "$keep/$1.txt" ] || return 0
    if [ $left -lt 20 ]; then echo "time is up before $1; the same command goes on"; exit 0; fi
    echo "$SECONDS s: $1"
    timeout --signal=TERM --kill-after=20 $left "${@:2}" > "$log" 2> "$log.err" &
    child=$!
    wait $child || status=$?
    child=
    case $1 in run-*)
        if keep_run $status "out/$name-${1#run-}" "$keep/${1#run-}" < "$log.err"; then status=0; fi ;;   # diverged is done
    esac
    if [ $status = 0 ]; then
        tail -n 3 "$log"
        { printf '    %s\n\n' "${*:2}"; cat "$log"; } > "$log.new"
        mv "$log.new" "$keep/$1.txt"
        return
    fi
    if [ $SECONDS -ge "$LIMIT" ]; then echo "time is up in $1; the same command goes on"; exit 0; fi
    tail -n 40 "$log" "$log.err"
    failed="$failed $1"
    case $1 in run-* | checks) exit 1 ;; esac   # a probe or a bench does not keep the rest from going on
}

arm_config() {  # ARM: its config with the tuned speed and scale of its input, made once for all its runs
    local file=$keep/configs/$1.py option
    mkdir -p "$keep/configs"
    [ ! -e "$file" ] || return 0
    {
        cat "configs/$1.py"
        [ ! -e "$TUNING" ] || for option in $(tuned "$1"); do
            case $option in --embed_*) echo "${option#--}" ;; esac   # --embed_std=1 is embed_std=1
        done
    } > "$file.new"
    mv "$file.new" "$file"
}

train() {  # ARM SEED
    [ ! -e "$keep/$1-s$2/log.jsonl" ] || return 0
    arm_config "$1"
    piece "run-$1-s$2" "$PYTHON" train.py configs/gpt2_124m.py "$keep/configs/$1.py" --dataset=$data --seed="$2" $options --name="$name-$1-s$2"
}

check='"$0" -m pytest --collect-only -q tests/test_gpu.py | grep "$1" | xargs -P "$2" -n 4 "$0" -m pytest -q -p no:cacheprovider'
if [ -z "${UNCHECKED:-}" ]; then   # UNCHECKED=1 goes on where they have failed
    export TORCHINDUCTOR_COMPILE_THREADS=1
    piece checks bash -o pipefail -c "$check" "$PYTHON" "$tests" $shards
    unset TORCHINDUCTOR_COMPILE_THREADS
fi
[ "${1:-}" != checks ] || exit 0

for seed in $seeds; do for arm in $first; do train "$arm" "$seed"; done; done

runs=() weights=()
for seed in $seeds; do
    for arm in $first; do
        [ -e "$keep/$arm-s$seed/eval.npz" ] || continue   # it diverged
        runs+=("$keep/$arm-s$seed")
        [ ! -e "out/$name-$arm-s$seed/ckpt.pt" ] || weights+=("out/$name-$arm-s$seed")   # else it was made on another machine
    done
done
for probe in echo robustness; do
    [ ${#weights[@]} = 0 ] || piece "probe-$probe" "$PYTHON" probe.py $probe "${weights[@]}" --out="results/probe-$probe-$name"
done
piece probe-tokens "$PYTHON" probe.py tokens "${runs[@]}" --out="results/probe-tokens-$name"

piece bench-step "$PYTHON" bench.py step configs/bpe_tied.py configs/kron.py configs/bpe_untied.py $shape --dataset=$data $rounds
piece kron-forms "$PYTHON" -m runs.kron_forms $shape --dataset=$data $rounds
piece bench-codes "$PYTHON" bench.py codes --dataset=$data $rounds

for seed in $seeds; do for arm in $rest; do train "$arm" "$seed"; done; done
[ -z "$failed" ] || { echo "error: failed:$failed" >&2; exit 1; }
echo "all done"
