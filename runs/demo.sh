#!/usr/bin/env bash
# From a fresh clone to trained models on a CPU: real text, four small models that differ in their input
# alone, which of them is better, and what two of them noticed of a word that they have never seen.
#
#     bash runs/demo.sh                          # training ends in about 8 minutes, after the install
#     MINUTES=30 bash runs/demo.sh               # longer, where the order of the arms is another
#     SEEDS="1 2 3" bash runs/demo.sh            # three times 8 minutes; gaps over three seeds
#     ARMS="kron lowrank bpe_untied_fast" bash runs/demo.sh --eval_interval=50   # options go to train.py
#
# Stop it at any time: the same command goes on where it stopped. All it makes is in .venv/, data/ and out/.
source "$(dirname "$0")/setup.sh"
ARMS=${ARMS:-bpe_untied_usual bpe_untied_fast kron wide}   # the table at GPT-2's setting and tuned; two codes
SEEDS=${SEEDS:-1}
[ -d data/docstrings ] || python prepare.py docstrings
mkdir -p out
[ -e out/contrasts.tsv ] || cp runs/demo.tsv out/contrasts.tsv   # the questions, for compare.py

MINUTES=${MINUTES:-8}
speed=out/demo-speed-$MINUTES-${ARMS// /-}.json   # measured once, so that the same command goes on with the same runs
if [ -z "${STEPS:-}" ] && [ ! -e "$speed" ]; then
    python bench.py step configs/tiny.py $(printf 'configs/%s.py ' $ARMS) "$@" --rounds=3 --minutes="$MINUTES" \
        --out="${speed%.json}"
fi
STEPS=${STEPS:-$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$speed")}
name=demo$STEPS size=configs/tiny.py
train_all --max_steps="$STEPS" --log_interval=25 --eval_tokens=32768 "$@"

printf '\n== the comparison, against %s\n\n' "$baseline"
python compare.py --baseline="$baseline" --out="out/$name" --answers="out/$name-answers.md"
printf '\n== what came out\n\n'
cat "out/$name-answers.md"
echo
echo "That is at $STEPS steps. The order of the arms changes with the steps; README has it at 1,200."
echo "With one seed the intervals cover the validation text alone, not another training run."
printf '\n== what two of the models noticed of a word that they have never seen\n\n'
python sample.py
cat << EOF

the picture of the comparison: out/$name.png; of each run: out/$name-*/loss.png
next:
  the same again       source .venv/bin/activate; python compare.py; python sample.py --interactive
  train longer         MINUTES=30 bash runs/demo.sh
  compare over seeds   SEEDS="1 2 3" bash runs/demo.sh            (the runs of seed 1 are kept)
  add an arm           ARMS="$ARMS lowrank" STEPS=$STEPS bash runs/demo.sh   (configs/ has more; README: one of your own)
EOF
