#!/usr/bin/env bash
# From a fresh clone to trained models on a CPU: real text, the tiny arms, a table of validation losses, a typo-echo sample.
#
#     bash runs/demo.sh                            # four arms, under 10 minutes on two cores after the install
#     ARMS=all SEEDS="1 2 3" bash runs/demo.sh     # all eight, three seeds: gaps with intervals
#
# Stop it at any time: the same command goes on where it stopped. Everything it makes is in .venv/, data/ and out/.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_tied binary affine kron}
[ "$ARMS" = all ] && ARMS="bpe_tied bpe_untied bpe_untied_unit bpe_untied_lr binary affine random kron"
SEEDS=${SEEDS:-1}
STEPS=${STEPS:-500}   # 1M tokens a run, an eighth of the text
case " $ARMS " in *" bpe_tied "*) baseline=bpe_tied ;; *) baseline=${ARMS%% *} ;; esac

[ -d data/docstrings ] || python prepare.py docstrings
runs=()
for seed in $SEEDS; do
    for arm in $ARMS; do
        python train.py configs/tiny.py "configs/$arm.py" --seed="$seed" --max_steps="$STEPS" --log_interval=25 --name="demo-$arm-s$seed"
        runs+=("out/demo-$arm-s$seed")
    done
done
echo
python compare.py "${runs[@]}" --baseline="$baseline" --out=out/demo
echo
case " $ARMS " in *" kron "*) python sample.py "out/demo-kron-s${SEEDS%% *}" "out/demo-$baseline-s${SEEDS%% *}" --max_new_tokens=30 ;; esac
