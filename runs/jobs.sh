# Sourced by tune.sh and tiny.sh: runs that are skipped where their log is committed, side by side.
#
# A job is a line "NAME ARGUMENTS of train.py". Its log.jsonl and eval.npz are kept in $KEEP/NAME; where they are there
# already - from here or from another machine - nothing is trained again. A run that was stopped continues.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
JOBS=${JOBS:-$(nproc)}  # before the next line, which nproc heeds
export OMP_NUM_THREADS=1 KEEP
[ -d data/docstrings ] || python prepare.py docstrings

job() {
    local name=$1 keep=$KEEP/$1
    [ ! -e "$keep/log.jsonl" ] || return 0
    python train.py configs/tiny.py "${@:2}" --name="$name" > "out/$name.txt" 2>&1 || { tail -n 1 "out/$name.txt"; return 1; }
    mkdir -p "$keep.new"
    cp "out/$name/log.jsonl" "out/$name/eval.npz" "$keep.new"
    mv "$keep.new" "$keep"
    [ -n "${WEIGHTS:-}" ] || rm -f "out/$name"/*.pt
    echo "$(date +%T) $name: $(grep validation "out/$name.txt" | tail -n 1)"
}
export -f job

all() {  # jobs on standard input, $JOBS at a time
    mkdir -p out "$KEEP"
    xargs -r -P "$JOBS" -L 1 bash -c 'job "$@"' job
}
