"""Many runs -> answers with intervals: the gaps between arms, paired by seed.

    python compare.py                               # what is comparable in out/, as tables
    python compare.py out/tiny-* --out=results/mine # also results/mine.md, .json and .png
    python compare.py results/tiny2 --baseline=bpe_untied --out=results/tiny2 \\
        --answers=results/answers.md --records=results/records.md
    python compare.py out/wd-* --by=weight_decay    # one number changed: which value is better?
    python compare.py --tune results/tiny2/tuning --out=results/tiny2/tuning

The largest set of finished runs that differ in arm and seed alone is compared, beside its other
horizons (max_steps); the rest is named. Rates may differ where a grid chose them (tuning.json).
A folder may have contrasts.tsv (the questions), plan.tsv (the planned runs), and folders of runs of
another text or dtype, which become sections of the page.
"""
import json
import shlex
import statistics
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from lib.config import compose, near, parse_value
from lib.errors import InputError, Parser, run, write_atomic
from lib.pages import answers, grid_table, page, records, sections, whole_page
from lib.plots import answer_picture, curves_picture
from lib.results import (NO_ARM, SILENT, difference, find_runs, finished_runs, must_match, order,
                         provenance, read_tsv, select)
from lib.stats import holm, paired, residual_deviations, summary, verdict
from lib.tables import refuse_folder, save_results
from lib.tuning import KEYS, choose, describe_setting, find_tuning, name_runs, setting


def describe(group):
    """What an arm's runs, rows of a table, show on their own."""
    runs, config = list(group["run"]), group["run"].iloc[0]["header"]["config"]
    updates = [v["update_ratio"] for r in runs for v in r["vals"] if v["update_ratio"] is not None]
    return {
        "seeds": group["seed"].tolist(), "params": runs[0]["header"]["params"],
        "kind": group["kind"].iloc[0], "tuned": runs[0].get("how"), "tried": runs[0].get("tried"),
        "setting": describe_setting(setting(config)), "loss": summary(group["loss"]),
        "bpb": summary(group["bpb"]), "ppl": summary(np.exp(group["loss"])),
        "rms": [statistics.fmean(r["vals"][i]["input_rms"] for r in runs) for i in (0, -1)],
        "update_ratio": statistics.median(updates) if updates else None,
        "has_table": config["head"] == "table" or config["code"] in ("learned", "frozen_random")}


def compare(table, baseline, contrasts=(), deviations=None):
    """A table of runs -> all that the page and the json show. Holm's correction is over the
    confirmatory contrasts, run or not. `deviations`: for kinds of arms that have none here."""
    deviations = (deviations or {}) | residual_deviations(table)
    there = [{c["arm"], c["base"]} for c in contrasts] + [{baseline}]
    contrasts = [*contrasts, *({"question": "", "arm": arm, "base": baseline, "kind": "exploratory"}
                               for arm in table["arm"].unique() if {arm, baseline} not in there)]
    found = [c | paired(table, c["arm"], c["base"], deviations) for c in contrasts]
    planned = [c for c in found if c["kind"] == "confirmatory"]
    tested = [c for c in planned if c.get("p") is not None]
    for c, p in zip(tested, holm([c["p"] for c in tested], len(planned))):
        c |= {"p_holm": p, "verdict": verdict(c, p)}
    several = [c for c in planned if c["gap"] and c["gap"]["sd"]]
    for c, p in zip(several, holm([c["gap"]["p"] for c in several], len(planned))):
        c["p_own"] = p
    return {"baseline": baseline, "steps": max(r["vals"][-1]["step"] for r in table["run"]),
            "deviations": deviations, "planned": planned,
            "exploratory": [c for c in found if c["kind"] != "confirmatory" and c["gap"]],
            "arms": {arm: describe(group) for arm, group in table.groupby("arm", sort=False)}}


def uneven(table):
    """Notes that name arms whose losses spread over seeds over three times as much as the others'
    of their kind: one deviation for all then suits none."""
    spread = table.groupby(["kind", "arm"])["loss"].std()
    typical = {(kind, arm): spread[kind].drop(arm).median() for kind, arm in spread.index}
    return [f"{arm} spreads over seeds by {sd:.3f} nats, others of its kind by "
            f"{typical[kind, arm]:.3f}: intervals are too narrow where it takes part"
            for (kind, arm), sd in spread.items() if sd > 3 * typical[kind, arm]]


def compare_horizons(found, deviations=None):
    """`found` (see `read_comparison`) with "results", the comparison of each of its tables, and
    "equal", the contrasts that several of them have, over the seeds that all those have. Kinds of
    arms that no table has with several seeds take these `deviations`."""
    tables, by_pair, equal = found["tables"], {}, []
    main = (deviations or {}) | residual_deviations(tables[0])  # for horizons with too few seeds
    results = [compare(table, found["baseline"], found["contrasts"], main) for table in tables]
    for table, result in sorted(zip(tables, results), key=lambda both: both[1]["steps"]):
        for c in [*result["planned"], *result["exploratory"]]:
            if c["gap"]:
                by_pair.setdefault((c["arm"], c["base"]), []).append((table, result, c["seeds"]))
    for pair, horizons in by_pair.items():
        seeds = set.intersection(*(set(seeds) for *_, seeds in horizons))
        for table, result, _ in horizons if len(horizons) > 1 and seeds else ():
            c = paired(table[table["seed"].isin(seeds)], *pair, result["deviations"])
            equal.append({"steps": result["steps"]} | {
                key: c[key] for key in ("arm", "base", "seeds", "gap", "interval")})
    return found | {"results": results, "equal": equal}


def read_values(paths, key, base, notes):
    """As `read_comparison`, of the runs that differ in one key alone, as arms KEY=VALUE. `base`:
    text, or None for the value of the config files of the runs' command."""
    moved, groups = {key, "min_lr"} if key == "learning_rate" else {key}, {}
    for r in finished_runs(paths, notes):
        config = r["header"]["config"]
        if key not in (known := config.keys() - {*SILENT}):
            raise InputError(f"--by={key}: not a key that decides a run's numbers"
                             + near(key, known))
        equal = must_match(r, moved) | {k: config[k] for k in config.keys() - {*NO_ARM, *moved}}
        groups.setdefault(json.dumps(equal, sort_keys=True), []).append(
            r | {"arm": f"{key}={config[key]}", "by": config[key]})
    group = max(groups.values(), key=lambda group: (len({r["by"] for r in group}), len(group)))
    arms = {r["by"]: r["arm"] for r in sorted(group, key=order)}
    if len(arms) < 2:
        raise InputError(f"--by={key}: no two runs differ in {key} alone")
    notes += [f"left out: {r['name']}: differs from {group[0]['name']} in more than {key}"
              for others in groups.values() if others is not group for r in others]
    words = shlex.split(group[0]["header"].get("command", ""))[2:]  # after python train.py
    value = parse_value(key, base) if base else getattr(
        compose([word for word in words if word[0] != "-"])[0], key)
    if value not in arms:
        raise InputError(f"no run has the base {key}={value}; --base=VALUE chooses another of "
                         f"{', '.join(map(str, arms))}")
    tables, baseline = select(group, arms[value], moved, notes)
    contrasts = [{"question": "", "arm": arm, "base": baseline, "kind": "confirmatory"}
                 for arm in arms.values() if arm != baseline]
    return {"tables": tables, "baseline": baseline, "contrasts": contrasts, "tuning": None}


def read_comparison(paths, folders, baseline, notes):
    """Folders of runs -> {"tables", "baseline", "contrasts", "tuning": the table of their grid}.
    Plan and tuning table are those of the `folders`, contrasts of the first that has some."""
    planned = Counter(str(Path(folder) / row["name"]).rpartition("-s")[0]
                      for folder in folders for row in read_tsv(folder, "plan.tsv"))
    runs = [r | {"asked": planned[r["name"].rpartition("-s")[0]]}
            for r in finished_runs(paths, notes)]
    tuning = find_tuning(runs, folders)
    if tuning:
        runs, folders = name_runs(runs, tuning, notes), [*folders, Path(tuning["path"]).parent]
    contrasts = next(filter(None, (read_tsv(folder, "contrasts.tsv") for folder in folders)), [])
    short = {r["was"]: r["arm"] for r in runs if r.get("how") == "tuned"}
    baseline = short.get(baseline, baseline)
    for c in contrasts:
        c |= {key: " ".join(short.get(arm, arm) for arm in (c.get(key) or "").split())
              for key in ("arm", "base", "through")}
    if not planned:  # the questions of others: those that these runs can answer
        contrasts = [c for c in contrasts if {c["arm"], c["base"]} <= {r["arm"] for r in runs}]
    tables, baseline = select(runs, baseline, KEYS if tuning else (), notes)
    return {"tables": tables, "baseline": baseline, "contrasts": contrasts, "tuning": tuning}


def compare_folders(folders, whole, notes):
    """The comparisons of the folders within some folders, with their "name"; all exploratory. Runs
    that differ from those of the comparison `whole` in dtype alone are set beside them."""
    import pandas as pd  # takes half a second, which --help need not wait for
    main, others = whole["tables"][0], []
    paths = {log.parent.parent for folder in folders for log in Path(folder).glob("*/*/log.jsonl")}
    for path in sorted(path for path in paths if path.name != "tuning"):
        own = []
        try:
            found = read_comparison([path], [path, path.parent], whole["baseline"], own)
        except InputError as error:
            notes.append(f"{path.name}: left out: {error}")
            continue
        notes += [f"{path.name}: {note}" for note in own]
        table = found["tables"][0]
        if not difference(main["run"].iloc[0], table["run"].iloc[0], KEYS):
            again = table.assign(arm=table["arm"] + f" in {path.name}")
            found["tables"] = [pd.concat([main[main["arm"].isin(table["arm"])], again])]
            found["contrasts"] = [
                {"question": f"What does {path.name} change?", "arm": arm,
                 "base": f"{arm} in {path.name}"} for arm in table["arm"].unique()]
        found["contrasts"] = [c | {"kind": "exploratory"} for c in found["contrasts"]]
        others.append(compare_horizons(found, whole["results"][0]["deviations"])
                      | {"name": path.name})
    return others


def tune(paths, out):
    """--tune: what a grid chose, as a table; with `out` as OUT.json and OUT.md."""
    notes = []
    runs = sorted(find_runs(paths, notes), key=order)
    if not runs:
        raise InputError(f"no runs of a grid below {', '.join(paths)}")
    table = choose(runs)
    notes += provenance(runs)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    parts = grid_table(table)
    print(*parts, sep="\n\n")
    if out:
        title = f"{Path(out).name}: the settings that a grid chose"
        text, made = whole_page(title, notes, parts, runs)
        save_results(out, text, table | {"notes": notes} | made, None)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=["out"], help="folders (default: out)")
    parser.add_argument("--baseline", help="the arm of the gaps (default: bpe_tied, or "
                        "the first that lib/plots.py lists)")
    parser.add_argument("--by", metavar="KEY", help="compare the values of this key")
    parser.add_argument("--base", metavar="VALUE", help="with --by: the value that the others are "
                        "compared with (default: that of the config file)")
    parser.add_argument("--tune", action="store_true", help="the runs are a grid: choose from it")
    parser.add_argument("--out", help="write OUT.md, OUT.json and OUT.png")
    parser.add_argument("--answers", metavar="FILE", help="write the planned answers, ten lines")
    parser.add_argument("--records", metavar="FILE", help="write the table of records")
    args = parser.parse_args()
    for path in filter(None, (args.out, args.answers, args.records)):
        refuse_folder(path)
    others = args.answers or args.records or args.baseline
    if args.base and not args.by or args.by and others or args.tune and (args.by or others):
        raise InputError("--base goes with --by, --by with --base and --out alone, "
                         "--tune with --out alone")
    if args.tune:
        return tune(args.runs, args.out)

    notes, folders = [], [] if args.by else args.runs
    found = compare_horizons(
        read_values(args.runs, args.by, args.base, notes) if args.by
        else read_comparison(args.runs, folders, args.baseline, notes))
    found["others"] = compare_folders(folders, found, notes)
    tables, result = found["tables"], found["results"][0]
    there = {name for one in (found, *found["others"]) for table in one["tables"]
             for name in table["name"]}
    plan = {str(Path(folder) / row["name"]): row["name"] for folder in folders
            for row in read_tsv(folder, "plan.tsv") if "tuning/" not in row["name"]}
    if left := [name for path, name in plan.items() if path not in there]:
        notes.insert(0, f"planned and not compared: {len(left)} of {len(plan)} runs, "
                     + ", ".join(left))
    untuned = [arm for arm, a in result["arms"].items() if a["tuned"] in (None, "not tuned")]
    if untuned and not args.by:
        notes.insert(0, f"not tuned, no grid has them: {', '.join(untuned)}")
    if all(len(arm["seeds"]) == 1 for arm in result["arms"].values()):
        notes.append("one seed: an interval covers the validation text, not another training run")
    if found["tuning"]:
        notes.append(f"tuned settings are those of {found['tuning']['path']}")
    notes += uneven(tables[0]) + provenance([r for table in tables for r in table["run"]])
    for path, text in ((args.answers, answers), (args.records, records)):
        if path:
            content = text(tables[0], result).encode()
            write_atomic(path, lambda file: file.write(content))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for section in sections(tables, result, found["equal"]):
        print(*filter(None, section), sep="\n\n", end="\n\n")
    if args.out:
        figure = (answer_picture(tables, found["others"], found["baseline"]) if plan
                  else curves_picture(tables[0]))  # a plan has horizons, and several widths
        save_results(args.out, *page(found, notes, Path(args.out).name), figure)


if __name__ == "__main__":
    run(main)
