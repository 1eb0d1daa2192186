#!/usr/bin/env bash
# From a fresh clone to trained models on a CPU: real text, four small models that differ in their input,
# their losses, and what they noticed of a word that they have never seen.
#
#     bash runs/demo.sh                          # training ends in about 8 minutes, after the install
#     MINUTES=30 bash runs/demo.sh               # longer, where the order of the arms is another
#     SEEDS="1 2 3" bash runs/demo.sh            # three times 8 minutes; every gap has an interval
#     ARMS="kron lowrank bpe_untied_fast" bash runs/demo.sh --eval_interval=50   # other arms; options go to train.py
#
# Stop it at any time: the same command goes on where it stopped. All it makes is in .venv/, data/ and out/.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron wide}   # the table at GPT-2's setting and tuned; two codes
SEEDS=${SEEDS:-1}
MINUTES=${MINUTES:-8}   # of training, for a seed of four arms
[ -d data/docstrings ] || python prepare.py docstrings

if [ -z "${STEPS:-}" ]; then   # an arm has a quarter of the time; about 8 s go to its start, and to its
    speed=out/demo-speed       # validations as much as to 30 steps and every twentieth
    [ -e $speed.json ] || python bench.py step configs/tiny.py configs/bpe_untied_usual.py "$@" --out=$speed
    ms=$(python -c "import json, statistics
print(round(statistics.median(json.load(open('$speed.json'))['result']['bpe_untied_usual']['ms'])))")
    STEPS=$(((MINUTES * 15000 - 8000) * 95 / 100 / ms - 30))
    STEPS=$((STEPS < 20 ? 20 : STEPS / 10 * 10))
    printf '\n%d ms a step here: %d steps an arm\n' "$ms" "$STEPS"
fi

runs=()
for seed in $SEEDS; do
    for arm in $ARMS; do
        printf '\n== %s, seed %s\n' "$arm" "$seed"
        python train.py configs/tiny.py "configs/$arm.py" --seed="$seed" --max_steps="$STEPS" \
            --log_interval=25 --eval_tokens=32768 "$@" --name="demo$STEPS-$arm-s$seed"
        runs+=("out/demo$STEPS-$arm-s$seed")
    done
done

baseline=bpe_untied_usual
[[ " $ARMS " = *" $baseline "* ]] || baseline=${ARMS%% *}
printf '\n== the comparison, against %s\n\n' "$baseline"
python compare.py "${runs[@]}" --baseline="$baseline" --out="out/demo$STEPS"
printf '\n== what two of the models noticed of a word that they have never seen\n\n'
python sample.py
cat << EOF

the picture of the comparison: out/demo$STEPS.png; of each run: out/demo$STEPS-*/loss.png
next:
  train longer         MINUTES=30 bash runs/demo.sh
  compare over seeds   SEEDS="1 2 3" bash runs/demo.sh            (the runs of seed 1 are kept)
  add an arm           ARMS="$ARMS lowrank" bash runs/demo.sh     (configs/ has more; README: an arm of your own)
  by hand              source .venv/bin/activate; python sample.py --interactive
EOF
