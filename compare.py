"""Many runs -> answers with intervals: the gaps between arms, paired by seed.

    python compare.py                               # what is comparable in out/, as tables
    python compare.py out/tiny-* --out=results/mine # also results/mine.md, .json and .png
    python compare.py results/tiny2 --baseline=bpe_untied --out=results/tiny2 \\
        --answers=results/answers.md --records=results/records.md
    python compare.py out/wd-* --by=weight_decay    # one number changed: which value is better?
    python compare.py --tune results/tiny2/tuning --out=results/tiny2/tuning

Runs are folders that hold a log.jsonl (and eval.npz), or folders of such folders. With equal seeds
two arms saw the same batches and started from the same transformer body: one gap per seed. The
largest set of finished runs that differ in arm and seed alone is compared, beside its other
horizons (max_steps); the rest is named. Rates that differ between arms are compared where a grid
chose them: the tuning.json below results/ that the runs match. --tune chooses from a grid of runs.

FOLDER/contrasts.tsv (or that beside the tuning.json) has the contrasts that were planned: question,
arm, base, and confirmatory or exploratory. FOLDER/plan.tsv has the runs that were planned. A folder
within FOLDER that has runs, another text or dtype, is a section of the page.
"""
import json
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np

from lib.config import compose, parse_value
from lib.errors import InputError, Parser, run, write_atomic
from lib.pages import answers, not_reached, page, records, sections
from lib.results import (NO_ARM, SILENT, difference, finished_runs, provenance, read_plan,
                         read_tsv, select, settings)
from lib.stats import holm, paired, residual_deviations, summary, verdict
from lib.tables import refuse_folder, save_results
from lib.tuning import KEYS, describe_setting, find_tuning, name_runs, setting, tune


# ---- one comparison ----------------------------------------------------------------------------

def describe(group):
    """What an arm's runs, rows of a table, show on their own. Numbers that no run logged are
    None."""
    runs, losses = list(group["run"]), list(group["loss"])
    later = [v for r in runs for v in r["vals"] if v["step"]]
    rates = [s["tokens_per_s"] for r in runs for s in r["steps"] if s.get("tokens_per_s")]
    updates = [v["input_speed"] for v in later if v.get("input_speed") is not None]

    def values(records, key):
        found = [v.get(key) for v in records]
        return summary(found) if found and None not in found else None

    return {
        "seeds": sorted(map(int, group["seed"])), "params": runs[0]["header"]["params"],
        "kind": group["kind"].iloc[0], "tuned": runs[0].get("how"), "tried": runs[0].get("tried"),
        "setting": describe_setting(setting(runs[0]["header"]["config"])),
        "loss": summary(losses), "bpb": values(group.to_dict("records"), "bpb"),
        "ppl": summary(np.exp(losses)),
        "rms": [values([r["vals"][i] for r in runs], "input_rms") for i in (0, -1)],
        "update_ratio": statistics.median(updates) if updates else None,
        "clipped": values(later, "clipped"),
        "tokens_per_s": statistics.median(rates) if rates else None}


def compare(table, baseline, contrasts=(), deviations=None):
    """A table of runs (lib/results.py) -> everything that the page and the json show. Holm's
    correction is over the confirmatory contrasts, also those that were not run; every arm is set
    beside the baseline too, uncorrected. `deviations`: for kinds of arms that have none here."""
    deviations = (deviations or {}) | residual_deviations(table)
    planned, exploratory = [], []
    for contrast in contrasts:
        pair = paired(table, contrast["arm"], contrast["base"], deviations)
        found = contrast | (pair or {"gap": None, "verdict": ["not run"]})
        if contrast["kind"] == "confirmatory":
            planned.append(found)
        elif pair:
            exploratory.append(found)
    there = [{c["arm"], c["base"]} for c in [*planned, *exploratory] if c["gap"]]
    for arm in table["arm"].unique():
        if arm != baseline and {arm, baseline} not in there:
            if pair := paired(table, arm, baseline, deviations):
                exploratory.append({"question": "", "kind": "exploratory"} | pair)
    p_holm = holm({i: c["p"] for i, c in enumerate(planned) if c.get("p") is not None},
                  len(planned))
    for i, c in enumerate(planned):
        if c["gap"]:
            c |= {"p_holm": p_holm.get(i), "verdict": verdict(c, p_holm.get(i))}
    for c in exploratory:
        c["verdict"] = verdict(c, c["p"])
    return {"baseline": baseline, "steps": max(r["vals"][-1]["step"] for r in table["run"]),
            "variances": deviations, "planned": planned, "exploratory": exploratory,
            "arms": {arm: describe(group) for arm, group in table.groupby("arm", sort=False)}}


def at_equal_seeds(tables, results):
    """Horizons -> the contrasts that several of them have, over the seeds that all those have."""
    found, by_pair = [], {}
    for table, result in sorted(zip(tables, results), key=lambda both: both[1]["steps"]):
        for c in [*result["planned"], *result["exploratory"]]:
            if c["gap"]:
                by_pair.setdefault((c["arm"], c["base"]), []).append((table, result, c["seeds"]))
    for (arm, base), horizons in by_pair.items():
        seeds = set.intersection(*(set(seeds) for *_, seeds in horizons))
        for table, result, _ in horizons if len(horizons) > 1 and seeds else ():
            pair = paired(table[table["seed"].isin(seeds)], arm, base, result["variances"])
            found.append({"steps": result["steps"]} | {
                key: pair[key] for key in ("arm", "base", "seeds", "gap", "interval")})
    return found


# ---- contrasts ---------------------------------------------------------------------------------

def read_contrasts(folders, tuning):
    """The contrasts.tsv of the first of the folders that has one, [{"question", "arm", "base",
    "kind"}], with arms as the tuning table calls them; [] where none has one."""
    path = next((path for folder in folders
                 if (path := Path(folder) / "contrasts.tsv").is_file()), None)
    contrasts = read_tsv(path, ("question", "arm", "base", "kind")) if path else []
    short = {row["arm"]: name for name, row in tuning["arms"].items()} if tuning else {}
    for c in contrasts:
        if c["kind"] not in ("confirmatory", "exploratory"):
            raise InputError(f"{path}: a kind is confirmatory or exploratory, not {c['kind']}")
        c |= {key: short.get(c[key], c[key]) for key in ("arm", "base")}
    return contrasts


def name_by(runs, key, base, notes):
    """For --by=KEY: of the runs that differ in one key (and seed, and bits) alone those with the
    most values, as arms KEY=VALUE: (runs, the values in order, the base's arm, the keys that move).
    `base`: text, or None for the value of the config files of the runs' command."""
    moved = {key, "min_lr"} if key == "learning_rate" else {key}
    groups = {}
    for r in runs:
        config = r["header"]["config"]
        if key not in config.keys() - {*SILENT}:
            raise InputError(f"--by={key}: not a key that decides a run's numbers")
        equal = settings(r, moved) | {k: config[k] for k in config.keys() - {*NO_ARM, *moved}}
        groups.setdefault(json.dumps(equal, sort_keys=True), []).append(
            r | {"arm": f"{key}={config[key]}", "by": config[key]})
    group = max(groups.values(), key=lambda group: (len({r["by"] for r in group}), len(group)))
    values = sorted({r["by"] for r in group})
    if len(values) < 2:
        raise InputError(f"--by={key}: no two runs differ in {key} alone")
    names = {r["name"] for r in group}
    notes += [f"left out: {r['name']}: differs from {group[0]['name']} in more than {key}"
              for r in runs if r["name"] not in names]
    value = parse_value(key, base) if base is not None else None
    if base is None:
        words = shlex.split(group[0]["header"].get("command", ""))[2:]  # after python train.py
        try:
            value = getattr(compose([word for word in words if word[0] != "-"])[0], key)
        except InputError:  # other config files than those of the run
            pass
    if value not in values:
        raise InputError(f"no run has the base {key}={value}; --base=VALUE chooses another of "
                         f"{', '.join(map(str, values))}")
    return group, values, f"{key}={values[values.index(value)]}", moved


def read_comparison(paths, folders, baseline, notes):
    """Folders of runs -> (tables, baseline, contrasts, the tuning table's path, the table). The
    tuning table and the contrasts are those of the `folders`, or else of results/."""
    runs = finished_runs(paths, notes)
    path, tuning = find_tuning(runs, folders, notes)
    runs, free = (name_runs(runs, tuning, notes), KEYS) if tuning else (runs, ())
    contrasts = read_contrasts([*folders, *([Path(path).parent] if path else [])], tuning)
    return *select(runs, baseline, free, notes), contrasts, path, tuning


def compare_horizons(tables, baseline, contrasts):
    """Tables of several horizons -> (the comparison of each, the contrasts at equal seeds)."""
    # a horizon with too few seeds has the deviations of the first
    main = residual_deviations(tables[0])
    results = [compare(table, baseline, contrasts, main) for table in tables]
    return results, at_equal_seeds(tables, results)


def compare_folders(folder, baseline, main, notes):
    """The comparisons of the folders within a folder of runs that have runs of their own, but for
    its grid: (name, tables, comparisons, contrasts at equal seeds) each; all exploratory. Runs that
    could stand in the `main` table, but for their dtype, are set beside its own."""
    found = []
    for path in sorted({log.parent.parent for log in Path(folder).glob("*/*/log.jsonl")}):
        if path.name == "tuning":
            continue
        try:
            its_notes = []
            tables, base, contrasts, *_ = read_comparison([path], [path, folder], baseline,
                                                          its_notes)
        except InputError as error:
            notes.append(f"left out: {path}: {error}")
            continue
        notes += its_notes
        contrasts = [c | {"kind": "exploratory"} for c in contrasts]
        if not difference(main["run"].iloc[0], tables[0]["run"].iloc[0], KEYS):
            again = tables[0].assign(arm=tables[0]["arm"] + f" in {path.name}")
            contrasts = [{"question": f"What does {path.name} change?", "arm": arm,
                          "base": f"{arm} in {path.name}", "kind": "exploratory"}
                         for arm in tables[0]["arm"].unique()]
            import pandas as pd  # takes half a second, which --help need not wait for
            tables = [pd.concat([main[main["arm"].isin(tables[0]["arm"])], again])]
        found.append((path.name, tables, *compare_horizons(tables, base, contrasts)))
    return found


# ---- the command -------------------------------------------------------------------------------

def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=["out"], help="folders (default: out)")
    parser.add_argument("--baseline", help="the arm of the gaps (default: bpe_tied if there)")
    parser.add_argument("--by", metavar="KEY", help="compare the values of this key")
    parser.add_argument("--base", metavar="VALUE", help="with --by: the value that the others are "
                        "compared with (default: that of the config file)")
    parser.add_argument("--tune", action="store_true", help="the runs are a grid: choose from it")
    parser.add_argument("--default", help="with --tune: the config whose rates nobody tuned")
    parser.add_argument("--out", help="write OUT.md, OUT.json and OUT.png")
    parser.add_argument("--answers", metavar="FILE", help="write the planned answers, ten lines")
    parser.add_argument("--records", metavar="FILE", help="write the table of records")
    args = parser.parse_args()
    if args.out:
        refuse_folder(args.out)
    if args.tune:
        return tune(args.runs, args.default, args.out)

    notes, path, tuning, others, lacking = [], None, None, [], None
    folder = args.runs[0] if len(args.runs) == 1 else None
    if args.by:
        runs = finished_runs(args.runs, notes)
        runs, values, args.baseline, free = name_by(runs, args.by, args.base, notes)
        contrasts = [{"question": "", "arm": f"{args.by}={value}", "base": args.baseline,
                      "kind": "confirmatory"}
                     for value in values if f"{args.by}={value}" != args.baseline]
        tables, baseline = select(runs, args.baseline, free, notes)
    else:
        tables, baseline, contrasts, path, tuning = read_comparison(
            args.runs, [folder] if folder else [], args.baseline, notes)
        others = compare_folders(folder, baseline, tables[0], notes) if folder else []
    results, equal = compare_horizons(tables, baseline, contrasts)
    if folder and read_plan(folder):
        lacking = not_reached(folder, {name for found in (tables, *(other[1] for other in others))
                                       for table in found for name in table["name"]})
        notes.insert(0, f"planned and not compared: {lacking[0]} of {lacking[1]} runs")
    untuned = [arm for arm, a in results[0]["arms"].items() if a["tuned"] == "not tuned"]
    if not tuning and not args.by:
        notes.insert(0, "not tuned: every arm ran at the rates of its config, and nothing here "
                     "answers results/PLAN.md")
    elif untuned:
        notes.insert(0, f"not tuned, no grid has them: {', '.join(untuned)}")
    notes = [*notes, *provenance([r for table in tables for r in table["run"]])]
    texts = {}
    if args.answers:
        texts[args.answers] = answers(results[0], list(tables[0]["run"]))
    if args.records:
        texts[args.records] = records(tables[0], lambda arm, base: paired(
            tables[0], arm, base, results[0]["variances"]))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for title, words, table in sections(tables, results, equal):
        print(f"{title}\n\n{table or words}\n")
    for file, text in texts.items():
        write_atomic(file, lambda opened, text=text: opened.write(text.encode()))
    if args.out:
        from lib.plots import answer_picture, comparison_picture, values_picture
        if args.by:
            figure = values_picture(tables[0], args.by, values)
        elif contrasts:
            figure = answer_picture(tables, others, baseline)
        else:
            figure = comparison_picture(tables[0])
        text, saved = page(tables, results, equal, others, notes, tuning, lacking, args.out)
        save_results(args.out, text, saved | {"tuned": path}, figure)


if __name__ == "__main__":
    run(main)
