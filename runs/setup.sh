# Sourced by the other scripts. Makes .venv, installs requirements.txt into it if it has changed since,
# puts it first on the PATH; then what the recipes share.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp -s requirements.txt .venv/installed.txt; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: Python 3.11 or newer is needed (PYTHON=... names one)" >&2; exit 2; }
    echo "installing requirements.txt into .venv (once, a minute or more) ..."
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi
export PATH="$PWD/.venv/bin:$PATH"

# Train every arm of $ARMS with every seed of $SEEDS. $size: config files; $name: what the runs are
# called; $LAUNCH: what starts train.py. The arguments go to train.py.
train_all() {
    runs=()
    for seed in $SEEDS; do
        for arm in $ARMS; do
            printf '\n== %s, seed %s\n' "$arm" "$seed"
            ${LAUNCH:-python} train.py $size "configs/$arm.py" --seed="$seed" "$@" --name="$name-$arm-s$seed"
            runs+=("out/$name-$arm-s$seed")
        done
    done
    baseline=bpe_untied_usual
    [[ " $ARMS " = *" $baseline "* ]] || baseline=${ARMS%% *}
}

# Compare those runs and probe them; the arguments are probes.
report() {
    python compare.py "${runs[@]}" --baseline="$baseline" --out="results/$name"
    for probe in "$@"; do
        python probe.py "$probe" "${runs[@]}" --out="results/probe-$probe-$name"
    done
}

# SMOKE=1: two seeds at toy size, two processes where there would be several.
use_toy_size() {
    name=smoke-$name size="$size configs/smoke.py" SEEDS="1 2" NPROC=2
    export OMP_NUM_THREADS=1
    [ -d data/docstrings ] || python prepare.py docstrings
}
