"""Many runs -> answers with intervals: the gaps between arms, paired by seed.

    python compare.py                               # what is comparable in out/, as tables
    python compare.py out/tiny-* --out=results/mine # also results/mine.md, .json and .png
    python compare.py --tune results/tiny/tuning --default=configs/tiny.py --out=results/tiny/tuning
    python compare.py results/tiny --tuned=results/tiny/tuning.json --out=results/tiny

Runs are folders that hold a log.jsonl (and eval.npz), or folders of such folders. With equal seeds
two arms saw the same batches and started from the same transformer body: one gap per seed. The
largest set of finished runs that differ in arm and seed alone is compared, beside its other
horizons (max_steps); the rest is named. Rates that differ between arms are compared only with
--tuned, the grid that chose them; --tune chooses from a grid of runs.
"""
import math
import statistics
import sys
from pathlib import Path

import numpy as np

from lib.errors import InputError, Parser, run
from lib.page import at_equal_seeds, page, tables, warnings
from lib.plots import comparison_picture
from lib.tables import refuse_folder, save_results
from lib.results import equal_seeds, finished_runs, not_run, read_names, score, select
from lib.stats import document_interval, holm, pooled_interval, pooled_sd, speedup, summary
from lib.tuning import ELSEWHERE, KEYS, describe_setting, name_runs, read_tuning, setting, tune

# The contrasts of part one of results/PLAN.md: (name, arm, base, question). The answer is yes if the
# arm's loss is below its base's, no if it is above. T is the one of TABLE_FREE that tuning chose.
# Where the runs' folder has a contrasts.tsv, that has the contrasts.
CONTRASTS = [
    ("spelling", "kron", "kron_shuffled", "is a token's own spelling better than another's?"),
    ("head", "bpe_untied", "bpe_tied", "is an untied table, fully tuned, better than a tied one?"),
    ("table at all", "kron", "bpe_untied", "is kron better than a trained table?"),
    ("table at all", "lowrank", "bpe_untied", "is a table of low rank better than a full one?"),
    ("optimiser", "bpe_untied", "bpe_untied_default", "is a table better tuned than untuned?"),
    ("no table anywhere", "T", "bpe_tied", "without any V-sized table: better than tied?"),
    ("no table anywhere", "T", "kron", "without a table at the head: better than kron?"),
    ("fixed codes", "binary", "bpe_untied", "are the id's bits, untrained, better than a table?"),
    ("fixed codes", "affine", "bpe_untied", "are mixed bits, untrained, better than a table?"),
]
TABLE_FREE = ("kron_tied", "kron_code_head")
# Exploratory, beside each arm - baseline: the head alone; chance and low rank in spelling's place;
# what 2605.29459 compares.
EXPLORATORY = [("bpe_untied_usual", "bpe_tied"), ("random", "kron"), ("lowrank", "kron"),
               ("kron", "bpe_tied")]


# ---- statistics --------------------------------------------------------------------------------

def paired(arm, base, sd, degrees):
    """The gap arm - base, paired by seed: {seed: run} twice -> its summary (Student's interval over
    seeds), the interval with the pooled deviation `sd`, that over documents crossed with seeds, and
    the p-value of the one that the verdict rests on. None with no common seed."""
    seeds = sorted(arm.keys() & base.keys())
    if not seeds:
        return None
    losses = [(arm[seed]["loss"], base[seed]["loss"]) for seed in seeds]
    gap, n = summary(ours - theirs for ours, theirs in losses), len(seeds)
    pair = {"seeds": seeds, "gap": gap, "pooled": None, "documents": None,
            "speedup": summary(speedup(arm[seed], base[seed]) for seed in seeds),
            "percent": summary(100 * (ours - theirs) / theirs for ours, theirs in losses),
            "ppl_ratio": summary(math.exp(ours - theirs) for ours, theirs in losses),
            "interval": None, "p": None, "rests_on": "one seed, no interval"}
    if degrees:
        pair["pooled"], p = pooled_interval(gap["mean"], n, sd, degrees)
        if n > 1:
            pair |= {"interval": pair["pooled"], "p": p, "rests_on": "seeds, pooled deviation"}
    if arm[seeds[0]]["redrawn"] is not None:
        gaps = np.mean([arm[seed]["redrawn"] - base[seed]["redrawn"] for seed in seeds], axis=0)
        error = sd * math.sqrt(2 / n) if n > 1 else 0.0  # one seed says nothing of seeds
        pair["documents"], p = document_interval(gaps, error, degrees)
        if n == 1:
            pair |= {"interval": pair["documents"], "p": p,
                     "rests_on": "documents, this one training run"}
    return pair


def verdict(pair, p):
    """What a gap says at p-value `p`, and which interval that rests on."""
    if p is None:
        return pair["rests_on"]
    rests, alone = pair["rests_on"], pair["gap"]["interval"]
    if p >= 0.05:
        return f"not resolved ({rests})"
    if alone and alone[0] <= 0 <= alone[1]:
        rests += "; its own Student interval holds 0"
    return f"{'lower' if pair['gap']['mean'] < 0 else 'higher'} ({rests})"


def answer(pair, how, words=("yes", "no")):
    """What a planned contrast's verdict is worth: the first of `words` if the arm's loss is below
    its base's, the second if it is above, or not known. `how`: of each of the two arms, how it was
    tuned; None where nothing needs to be."""
    if how and None in how:
        return "not known: not tuned"
    for arm, tuned in zip((pair["arm"], pair["base"]), how or ()):
        wanted = "default" if arm.endswith("_default") else "tuned"
        if tuned not in (wanted, ELSEWHERE):
            return f"not known: {arm} was not tuned"
    if pair["p_holm"] is None:
        return "not known: one training run"
    if pair["p_holm"] >= 0.05:
        return "not known"
    text = words[pair["gap"]["mean"] > 0]
    text += f", {ELSEWHERE}" if how and ELSEWHERE in how else ""
    return text if len(pair["seeds"]) > 1 else f"{text}, in this one training run"


def table_free(arms, tuning):
    """The arm that T stands for: the one of TABLE_FREE that tuning chose; without a table of
    tuning the one that is there, if it is one."""
    if tuning:
        losses = {arm: tuning["arms"][arm]["best"]["val_loss"] for arm in TABLE_FREE
                  if arm in tuning["arms"]}
        return min(losses, key=losses.get, default="T")
    there = [arm for arm in TABLE_FREE if arm in arms]
    return there[0] if len(there) == 1 else "T"


def describe(by_seed):
    """What an arm's runs {seed: run} show on their own. Numbers that no run logged are None."""
    group = list(by_seed.values())
    later = [v for r in group for v in r["vals"] if v["step"]]
    rates = [s["tokens_per_s"] for r in group for s in r["steps"] if s.get("tokens_per_s")]

    def values(records, key):
        found = [v.get(key) for v in records]
        return summary(found) if found and None not in found else None

    config = group[0]["header"]["config"]
    speeds = [v["input_speed"] for v in later if v.get("input_speed") is not None]
    return {
        "seeds": sorted(by_seed), "params": group[0]["header"]["params"],
        "tuned": group[0].get("how"), "tried": group[0].get("tried"),
        "setting": describe_setting(setting(config)),
        "loss": values(group, "loss"), "bpb": values(group, "bpb"),
        "ppl": summary(math.exp(r["loss"]) for r in group),
        "rms": [values([r["vals"][i] for r in group], "input_rms") for i in (0, -1)],
        "speed": statistics.median(speeds) if speeds else None,
        "clipped": values(later, "clipped"),
        "tokens_per_s": statistics.median(rates) if rates else None}


def read_contrasts(paths):
    """contrasts.tsv of the one folder that is compared -> (planned, exploratory) as CONTRASTS and
    EXPLORATORY, in which an arm that is below its base is "lower"; None where there is none."""
    path = Path(paths[0]) / "contrasts.tsv"
    if len(paths) > 1 or not path.is_file():
        return None
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    if any(len(row) != 4 for row in rows):
        raise InputError(f"{path}: a line is question, arm, base and kind, with tabs between them")
    planned = [("", arm, base, question) for question, arm, base, kind in rows
               if kind == "confirmatory"]
    return planned, [(arm, base) for _, arm, base, kind in rows if kind != "confirmatory"]


def compare(arms, baseline, tuning=None, contrasts=None):
    """Scored runs {arm: {seed: run}} -> everything that the tables and the json show. `contrasts`:
    what `read_contrasts` gave."""
    planned, exploratory = contrasts or (CONTRASTS, EXPLORATORY)
    losses = {(arm, seed): r["loss"] for arm, runs in arms.items() for seed, r in runs.items()}
    sd, degrees = pooled_sd(losses)
    steps = max(r["vals"][-1]["step"] for runs in arms.values() for r in runs.values())
    result = {"baseline": baseline, "steps": steps, "pooled": {"sd": sd, "degrees": degrees},
              "planned": [], "exploratory": [],
              "arms": {arm: describe(runs) for arm, runs in arms.items()}}
    for name, arm, base, question in planned:
        arm = table_free(arms, tuning) if arm == "T" else arm
        pair = paired(arms.get(arm, {}), arms.get(base, {}), sd, degrees)
        what = {"name": name, "question": question, "arm": arm, "base": base}
        result["planned"].append(what | (pair or {"gap": None, "answer": "not run"}))
    made = {(c["arm"], c["base"]): c for c in result["planned"] if c["gap"]}
    # a contrast that was not run counts in the family as it was planned
    p_holm = holm({key: c["p"] for key, c in made.items() if c["p"] is not None}, len(planned))
    for key, c in made.items():
        c["p_holm"] = p_holm.get(key)
        c["verdict"] = verdict(c, c["p_holm"])
        if contrasts:  # whose plan says which arms are tuned
            c["answer"] = answer(c, None, ("lower", "higher"))
        else:
            c["answer"] = answer(c, [result["arms"][arm]["tuned"] for arm in key])
    for arm, base in dict.fromkeys([*exploratory, *((arm, baseline) for arm in arms)]):
        if arm == base or {(arm, base), (base, arm)} & made.keys():
            continue
        if pair := paired(arms.get(arm, {}), arms.get(base, {}), sd, degrees):
            pair |= {"arm": arm, "base": base, "verdict": verdict(pair, pair["p"])}
            result["exploratory"].append(pair)
    return result


# ---- the command -------------------------------------------------------------------------------

def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=["out"], help="folders (default: out)")
    parser.add_argument("--baseline", help="the arm of the gaps (default: bpe_tied if there)")
    parser.add_argument("--tuned", help="tuning.json: the grid that chose each arm's setting")
    parser.add_argument("--tune", action="store_true", help="the runs are a grid: choose from it")
    parser.add_argument("--default", help="with --tune: the config whose rates nobody tuned")
    parser.add_argument("--planned", help="a plan.tsv, or a file of names: the page says which are not compared")
    parser.add_argument("--out", help="write OUT.md, OUT.json and OUT.png")
    args = parser.parse_args()
    if args.out:
        refuse_folder(args.out)
    if args.tune:
        return tune(args.runs, args.default, args.out)

    notes, tuning = [], read_tuning(args.tuned) if args.tuned else None
    planned = read_names(args.planned) if args.planned else []
    runs = finished_runs(args.runs, notes)
    runs = name_runs(runs, tuning, notes) if tuning else runs
    horizons, baseline = select(runs, args.baseline, KEYS if tuning else (), notes)
    for arms in horizons:
        notes += score([r for by_seed in arms.values() for r in by_seed.values()])
    contrasts = read_contrasts(args.runs)
    results = [compare(arms, baseline, tuning, contrasts) for arms in horizons]
    equal = at_equal_seeds(compare(arms, baseline, tuning, contrasts)
                           for arms in equal_seeds(horizons))
    notes = warnings(horizons, results[0], tuning) + not_run(planned, horizons) + notes
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(tables(results[0], equal))
    if args.out:
        text, saved = page(horizons, results, equal, notes, tuning, args.out)
        shown = [c[side] for c in results[0]["planned"] if c["gap"] for side in ("arm", "base")]
        save_results(args.out, text, saved | {"tuned": args.tuned},
                     comparison_picture(horizons, baseline, shown))


if __name__ == "__main__":
    run(main)
