# Sourced by tune.sh and tiny.sh: runs that are skipped where their log is committed, side by side.
#
# A job is a line "NAME ARGUMENTS of train.py". Its log.jsonl and eval.npz are kept in $KEEP/NAME, the log alone if it diverged; where
# they are there already - from here or from another machine - nothing is trained again. A run that was stopped continues.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source runs/kept.sh
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
export OMP_NUM_THREADS=1 KEEP  # one thread: $JOBS runs go side by side
[ "${LIST:-}" ] || [ -d data/docstrings ] || python prepare.py docstrings

job() {
    [ $# -gt 0 ] || return 0  # some xargs call it once for no lines
    local name=$1 status=0
    [ ! -e "$KEEP/$name/log.jsonl" ] || return 0
    python train.py configs/tiny.py "${@:2}" --name="$name" > "out/$name.txt" 2>&1 || status=$?
    if keep_run $status "out/$name" "$KEEP/$name" < "out/$name.txt"; then
        [ -n "${WEIGHTS:-}" ] || rm -f "out/$name"/*.pt
        echo "$(date +%T) $name: $(grep -E 'validation|^error' "out/$name.txt" | tail -n 1)"
    else
        echo "$name: $(tail -n 1 "out/$name.txt")"
        return 1
    fi
}
export -f job keep_run

all() {  # jobs on standard input, $JOBS at a time; with LIST=1 only their names, printed
    [ -z "${LIST:-}" ] || { cut -d' ' -f1; return; }
    mkdir -p out "$KEEP"
    xargs -P "$JOBS" -L 1 bash -c 'job "$@"' job
}
