#!/usr/bin/env bash
# What this machine's CPU says about speed and memory: results/speed-cpu.md. About 15 minutes; leave
# the machine alone meanwhile.
#
#     bash runs/speed.sh
#     NANOGPT=../nanoGPT bash runs/speed.sh    # where you have a clone of nanoGPT: its program too
#
# The 50,257 ids are GPT-2's where tiktoken has its vocabulary, else a BPE of that size. If the
# package kronecker-embeddings is installed into .venv (it is no requirement) it is measured beside
# ours.
source "$(dirname "$0")/setup.sh"
data=docstrings-50257
[ -d data/docstrings ] || python prepare.py docstrings
[ -d data/$data ] || python prepare.py docstrings --tokenizer=gpt2 --name=$data ||
    python prepare.py docstrings --tokenizer=bpe:50257 --name=$data
large=(--batch_size=1 --gradient_accumulation_steps=1 --dataset=$data)

bench() {
    echo "measuring: bench.py $*" >&2
    printf '\n    python bench.py %s\n\n' "$*"
    python bench.py "$@"
}
mkdir -p results
{
    printf '# Speed and memory on a CPU\n\n'
    printf 'Made by `bash runs/speed.sh` on %s. median (lowest - highest); ' "$(date -u +%F)"
    printf 'ratios are within rounds.\n'
    bench codes --dataset=$data
    bench step configs/kron.py configs/bpe_untied.py "${large[@]}"
    bench step configs/kron.py,code_form=table configs/kron.py "${large[@]}"
    bench step configs/kron_tied.py configs/kron.py "${large[@]}"
    bench step configs/tiny.py configs/bpe_tied.py --nanogpt="${NANOGPT:-../nanoGPT}" --rounds=15
    bench sample configs/kron.py --dataset=$data --rounds=1
    bench memory
    bench prepare
} > results/speed-cpu.tmp
mv results/speed-cpu.tmp results/speed-cpu.md
cat results/speed-cpu.md
