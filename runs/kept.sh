# Sourced by demo.sh and gpu_evidence.sh: what is kept of a run for results/, and what tuning chose.

# keep_run STATUS OUT KEEP < WHAT TRAIN.PY SAID: KEEP/log.jsonl and KEEP/eval.npz of the run in OUT. 1 if it did not end.
#
# A run that diverges ends before its last validation and leaves no eval.npz. That is a result too: its log is kept with one more record,
#     {"step": 300, "val_loss": null, "diverged": "what train.py said"}
# and compare.py, which looks at a log's last validation, says "diverged" of it, in a grid as in a comparison.
keep_run() {
    local said step
    said=$(grep -E '^error: step [0-9]+: the (validation loss|gradient norm) is ' || true)
    [ "$1" = 0 ] || [ "$said" ] || return 1
    rm -rf "$3.new"
    mkdir -p "$3.new"
    cp "$2/log.jsonl" "$3.new" || return 1
    if [ "$said" ]; then
        step=$(echo "$said" | sed 's/^error: step \([0-9]*\):.*/\1/')
        echo "{\"step\": $step, \"val_loss\": null, \"diverged\": \"$said\"}" >> "$3.new/log.jsonl"
    else
        cp "$2/eval.npz" "$3.new" || return 1
    fi
    mv "$3.new" "$3"
}

# tuned ARM: what the grid of tune.sh chose, from $TUNING (results/tiny/tuning.json), as options of train.py.
#
#     tuned kron        # --learning_rate=0.004 --min_lr=0.0004 --embed_lr_mult=0.25
#     tuned qr          # an arm without a grid: bpe_untied's rates, speed 1, its natural scale
#     tuned T           # kron_tied or kron_code_head, whichever the grid preferred: the T of results/PLAN.md
tuned() {
    "${PYTHON:-python}" - "$TUNING" "$1" << 'PYTHON'
import json
import sys

path, arm = sys.argv[1:]
with open(path) as file:
    chosen = {name: row["best"] for name, row in json.load(file)["arms"].items()}
if arm == "T":
    print(min(("kron_tied", "kron_code_head"), key=lambda name: chosen[name]["val_loss"]))
else:
    rates = chosen.get(arm, chosen["bpe_untied"])
    options = {"learning_rate": rates["learning_rate"], "min_lr": rates["min_lr"]}
    for key, natural in (("embed_lr_mult", 1), ("embed_std", 0)):
        if arm in chosen and chosen[arm][key] != natural:
            options[key] = chosen[arm][key]
    print(*(f"--{key}={value:g}" for key, value in options.items()))
PYTHON
}
