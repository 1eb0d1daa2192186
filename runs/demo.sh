#!/usr/bin/env bash
# From a fresh clone to trained models on a CPU: real text, four small models, what they cost and what they noticed.
#
#     bash runs/demo.sh                              # at most 8 minutes on two slow cores, after the install
#     STEPS=1200 SEEDS="1 2 3" bash runs/demo.sh     # longer; with three seeds every gap has an interval
#     ARMS="kron lowrank bpe_untied" bash runs/demo.sh --eval_interval=50    # other arms; options go to train.py
#
# Stop it at any time: the same command goes on where it stopped. All it makes is in .venv/, data/ and out/.
source "$(dirname "$0")/setup.sh"
source runs/kept.sh

TUNING=results/tiny/tuning.json     # each arm at what tuning on another seed chose for it: results/PLAN.md
ARMS=${ARMS:-kron kron_shuffled bpe_untied binary}
SEEDS=${SEEDS:-1}
STEPS=${STEPS:-400}                 # of 2,048 tokens: 0.8M of the text's 6.8M

[ -d data/docstrings ] || python prepare.py docstrings
read -ra arms <<< "$ARMS"
read -ra seeds <<< "$SEEDS"
baseline=bpe_untied
[[ " $ARMS " = *" $baseline "* ]] || baseline=${arms[0]}
total=$((${#arms[@]} * ${#seeds[@]})) runs=() began=$SECONDS left=
for seed in "${seeds[@]}"; do
    for arm in "${arms[@]}"; do
        done=${#runs[@]}
        [ "$done" = 0 ] || left=", about $(((SECONDS - began) * (total - done) / done / 60 + 1)) minutes left"
        printf '\n== run %d of %d: %s, seed %d%s\n' $((done + 1)) "$total" "$arm" "$seed" "$left"
        python train.py configs/tiny.py "configs/$arm.py" $(tuned "$arm") --seed="$seed" --max_steps="$STEPS" \
            --log_interval=25 --eval_tokens=32768 "$@" --name="demo$STEPS-$arm-s$seed"
        runs+=("out/demo$STEPS-$arm-s$seed")
    done
done

printf '\n== the comparison, against %s\n\n' "$baseline"
python compare.py "${runs[@]}" --tuned=$TUNING --baseline="$baseline" --out="out/demo$STEPS"
if [ ${#arms[@]} -gt 1 ]; then
    printf '\n== what the models noticed of a word that they have never seen\n\n'
    python sample.py "${runs[@]:0:${#arms[@]}}" --max_new_tokens=30
fi
cat << EOF

the picture of the comparison: out/demo$STEPS.png; of each run: out/demo$STEPS-*/loss.png
next:
  train longer         STEPS=1200 bash runs/demo.sh
  compare over seeds   SEEDS="1 2 3" bash runs/demo.sh        (the runs of seed $SEEDS are kept)
  add an arm           ARMS="$ARMS lowrank" bash runs/demo.sh     (configs/ has more; README: an arm of your own)
  by hand              source .venv/bin/activate; python sample.py --interactive
EOF
