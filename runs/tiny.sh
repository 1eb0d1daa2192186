#!/usr/bin/env bash
# The CPU evidence, results/tiny.{md,json,png}: the runs of results/PLAN.md, item by item, each arm at the setting that
# runs/tune.sh chose for it (results/tiny/tuning.json).
#
#     bash runs/tiny.sh                            # about 100 times 1,200 steps of 5 minutes: a night of two cores; 3 GB in out/
#     ITEMS="2 3" SEEDS=11 bash runs/tiny.sh       # some of the items, one seed
#     LIST=1 ITEMS="2 3 4 5" bash runs/tiny.sh     # names of what would be run: results/tiny/planned.txt
#     bash runs/tiny.sh --device=cuda              # options go to train.py; compared are only runs that had the same
#
# A finished run's log.jsonl and eval.npz are kept in results/tiny/NAME. Where they are committed the run is skipped; runs that were
# stopped continue. What is there is compared at the end, so that a part of the items gives a part of the page.
TUNING=results/tiny/tuning.json KEEP=results/tiny
source "$(dirname "$0")/setup.sh"
[ -e $TUNING ] || { echo "error: no $TUNING; bash runs/tune.sh makes it" >&2; exit 2; }
source runs/jobs.sh
ITEMS=${ITEMS:-2 3 4 5 6}
SEEDS=${SEEDS:-11 12 13}
first=${SEEDS%% *}
given="$*"

item() { [[ " $ITEMS " = *" $1 "* ]]; }

line() { echo $* $given; }  # NAME ARGUMENTS...: a job; unquoted, for xargs would join lines that end in a blank

at() { line "$1" "configs/$2.py" $(tuned "$2") "${@:3}"; }  # NAME ARM OPTIONS...: a job at the arm's tuned setting

T=$(tuned T)
rank=--rank=32  # as many trained parameters as kron has in use

# The questions: every arm of a planned contrast. Weights of these and of item 3 stay in out/, for the probes.
if item 2; then
    for seed in $SEEDS; do
        for arm in bpe_tied bpe_untied kron kron_shuffled random binary affine "$T"; do at "$arm-s$seed" $arm --seed="$seed"; done
        at "lowrank-s$seed" lowrank $rank --seed="$seed"
        line "bpe_untied-default-s$seed" configs/bpe_untied.py --seed="$seed"  # the rates of configs/tiny.py
        line "bpe_untied-usual-s$seed" configs/bpe_untied.py $(tuned bpe_tied) --seed="$seed"  # but for the head, bpe_tied
    done | WEIGHTS=1 all
fi

# The horizon: four times as long, with a cosine of its own. The first seed now, the others after the heads.
horizon() {
    for seed in "$@"; do
        for arm in bpe_tied bpe_untied kron; do at "$arm-4800-s$seed" $arm --max_steps=4800 --eval_interval=400 --seed="$seed"; done
    done | WEIGHTS=1 all
}
if item 3; then
    horizon "$first"
    for arm in kron bpe_untied; do  # what sample.py shows in a fresh clone
        [ "${LIST:-}" ] || [ ! -d out/$arm-4800-s11 ] || python -m runs.carry out/$arm-4800-s11 results/demo/$arm.pt
    done
fi

# The frontier: from no trained parameters to the table's. An arm without a grid of its own has the table's rate; kron_raw, which is
# kron but for one thing, has kron's setting.
if item 4; then
    {
        for r in 6 12 46; do at "lowrank-r$r-s$first" lowrank --rank=$r --seed="$first"; done
        for rows in 256 1024; do at "random-rows$rows-s$first" random --rows=$rows --seed="$first"; done
        for arm in qr hash; do at "$arm-s$first" $arm --seed="$first"; done
        for P in 4 8; do at "kron-P$P-s$first" kron --pos_dim=$P --seed="$first"; done
        line "kron_raw-s$first" configs/kron_raw.py $(tuned kron) --seed="$first"
        for arm in trigram phase binary_linear frozen_random visual bytes2word; do at "$arm-s$first" $arm --seed="$first"; done
    } | all
fi

# Heads: no V x d table at all, with and without a bias per token.
if item 5; then
    {
        for arm in kron_tied kron_code_head; do at "$arm-s$first" $arm --seed="$first"; done
        for arm in kron_tied kron_code_head bpe_tied; do at "$arm-bias-s$first" $arm --head_bias=True --seed="$first"; done
        line "lowrank_tied-s$first" configs/lowrank_tied.py $(tuned lowrank) $rank --seed="$first"
    } | all
fi

if item 3; then horizon ${SEEDS#"$first"}; fi

# A vocabulary of 16,384, where kron's W is a quarter of the table: other data, so a page of its own.
if item 6; then
    KEEP=results/tiny-16384
    [ "${LIST:-}" ] || [ -d data/docstrings-16384 ] || python prepare.py docstrings --tokenizer=bpe:16384 --name=docstrings-16384
    given="--dataset=docstrings-16384 $given"
    for seed in $SEEDS; do
        for arm in bpe_untied kron kron_shuffled; do at "16384-$arm-s$seed" $arm --seed="$seed"; done
        at "16384-lowrank-s$seed" lowrank $rank --seed="$seed"
    done | all
fi

[ -z "${LIST:-}" ] || exit 0
for folder in results/tiny results/tiny-16384; do
    if ls $folder/*/log.jsonl > /dev/null 2>&1; then
        python compare.py $folder --tuned=$TUNING --planned=$folder/planned.txt --baseline=bpe_untied --out=$folder
    fi
done
