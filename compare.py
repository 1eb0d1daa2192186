"""Many runs -> answers with intervals: the gaps between arms, paired by seed.

    python compare.py                               # what is comparable in out/, as tables
    python compare.py out/tiny-* --out=results/mine # also results/mine.md, .json and .png
    python compare.py results/tiny2 --out=results/tiny2 --answers=results/answers.md
    python compare.py out/wd-* --by=weight_decay    # one number changed: which value is better?
    python compare.py --tune results/tiny/tuning --default=configs/tiny.py --out=results/tiny/tuning

Runs are folders that hold a log.jsonl (and eval.npz), or folders of such folders. With equal seeds
two arms saw the same batches and started from the same transformer body: one gap per seed. The
largest set of finished runs that differ in arm and seed alone is compared, beside its other
horizons (max_steps); the rest is named. Rates that differ between arms are compared where a grid
chose them: the tuning.json below results/ that the runs match. --tune chooses from a grid of runs.

FOLDER/contrasts.tsv (or that beside the tuning.json) has the contrasts that were planned: question,
arm, base, and confirmatory or exploratory. FOLDER/plan.tsv has the runs that were planned.
"""
import json
import math
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np

from lib.config import compose, parse_value
from lib.errors import InputError, Parser, run, write_atomic
from lib.results import (BITS, SILENT, equal_seeds, finished_runs, not_run, provenance, select,
                         settings)
from lib.stats import (document_interval, gap_variance, holm, residual_variances, speedup,
                       student_interval, summary)
from lib.tables import (PUBLISHED, arm_table, bracket, bullets, gap_table, horizon_table, made_by,
                        numbers, refuse_folder, save_results, stamp)
from lib.tuning import KEYS, describe_setting, find_tuning, name_runs, setting, tune

LEVEL = 0.05  # nats: an interval within it on both sides of 0 says that two arms are level


# ---- statistics --------------------------------------------------------------------------------

def paired(table, arm, base, variances):
    """The gap arm - base, paired by seed, with its intervals; None without a common seed.

    "gap" has Student's own interval over the seeds' gaps; "pooled" is that with the residual
    variances of all arms, `residual_variances`; "documents" is over documents resampled, crossed
    with the seeds. "interval" and "p" are what a verdict rests on ("rests_on"): with several seeds
    the pooled one, with one seed the wider one of its documents and of one seed of its kind.
    """
    ours, theirs = (table[table["arm"] == name] for name in (arm, base))
    both = ours.merge(theirs, on="seed", suffixes=("", "_base")).sort_values("seed")
    if both.empty:
        return None
    n, gaps = len(both), both["loss"] - both["loss_base"]
    gap = summary(gaps)
    ratio = both["loss"] / both["loss_base"] - 1
    speedups = [speedup(*runs) for runs in zip(both["run"], both["run_base"])]
    pair = {"arm": arm, "base": base, "seeds": both["seed"].tolist(), "gap": gap,
            "pooled": None, "documents": None, "degrees": None, "interval": None, "p": None,
            "rests_on": None, "percent": summary(100 * ratio), "speedup": summary(speedups),
            "ppl_ratio": summary(math.exp(x) for x in gaps)}
    variance, degrees = gap_variance(variances, (ours["kind"].iloc[0], theirs["kind"].iloc[0]))
    error, found = 0.0, []
    if degrees:
        error = math.sqrt(variance / n)
        interval, p = student_interval(gap["mean"], error, degrees)
        pair |= {"pooled": interval, "degrees": degrees}
        found.append((interval, p, "seeds"))
    if all(draws is not None for draws in both["bootstrap"]):
        draws = np.mean((both["bootstrap"] - both["bootstrap_base"]).tolist(), axis=0)
        interval, p = document_interval(draws, error if n > 1 else 0.0, degrees)
        pair["documents"] = interval
        if n == 1:
            found.append((interval, p, "documents"))
    if found:
        interval, p, what = max(found, key=lambda one: one[0][1] - one[0][0])
        pair |= {"interval": interval, "p": p, "rests_on": what}
    return pair


def verdict(pair, p):
    """What a gap says at the p-value `p`, a list: "lower" or "higher" at 5 %, "level" where the
    interval lies within LEVEL; both can hold. Else "not known"."""
    found = []
    if p is not None and p < 0.05:
        found.append("lower" if pair["gap"]["mean"] < 0 else "higher")
    if pair["interval"] and -LEVEL <= pair["interval"][0] and pair["interval"][1] <= LEVEL:
        found.append("level")
    return found or ["not known"]


def describe(group):
    """What an arm's runs, rows of a table, show on their own. Numbers that no run logged are
    None."""
    runs, losses = list(group["run"]), list(group["loss"])
    later = [v for r in runs for v in r["vals"] if v["step"]]
    rates = [s["tokens_per_s"] for r in runs for s in r["steps"] if s.get("tokens_per_s")]

    def values(records, key):
        found = [v.get(key) for v in records]
        return summary(found) if found and None not in found else None

    config = runs[0]["header"]["config"]
    updates = [v["input_speed"] for v in later if v.get("input_speed") is not None]
    return {
        "seeds": sorted(map(int, group["seed"])), "params": runs[0]["header"]["params"],
        "kind": group["kind"].iloc[0], "tuned": runs[0].get("how"), "tried": runs[0].get("tried"),
        "setting": describe_setting(setting(config)), "loss": summary(losses),
        "bpb": values(group.to_dict("records"), "bpb"),
        "ppl": summary(math.exp(loss) for loss in losses),
        "rms": [values([r["vals"][i] for r in runs], "input_rms") for i in (0, -1)],
        "update_ratio": statistics.median(updates) if updates else None,
        "clipped": values(later, "clipped"),
        "tokens_per_s": statistics.median(rates) if rates else None}


def variances_of(table):
    """The residual variances of a table's losses, one for each kind of head."""
    losses = dict(zip(zip(table["arm"], table["seed"]), table["loss"]))
    return residual_variances(losses, dict(zip(table["arm"], table["kind"])))


def compare(table, baseline, contrasts=(), variances=None):
    """A table of runs (lib/results.py) -> everything that the page and the json show. `contrasts`:
    {"question", "arm", "base", "kind"} each. Holm's correction is over the confirmatory ones, and
    those that were not run count. Every arm is set beside the baseline too, uncorrected.
    `variances`: those of more runs, where the table is a part of them."""
    arms = {arm: group for arm, group in table.groupby("arm", sort=False)}
    variances = variances or variances_of(table)
    planned, exploratory = [], []
    for contrast in contrasts:
        pair = paired(table, contrast["arm"], contrast["base"], variances)
        found = contrast | (pair or {"gap": None, "verdict": ["not run"]})
        if contrast["kind"] == "confirmatory":
            planned.append(found)
        elif pair:
            exploratory.append(found)
    p_values = {i: c["p"] for i, c in enumerate(planned) if c.get("p") is not None}
    p_holm = holm(p_values, len(planned))
    there = [{c["arm"], c["base"]} for c in [*planned, *exploratory] if c["gap"]]
    for arm in arms:
        if arm != baseline and {arm, baseline} not in there:
            if pair := paired(table, arm, baseline, variances):
                exploratory.append({"question": "", "kind": "exploratory"} | pair)
    for i, c in enumerate(planned):
        if c["gap"]:
            c["p_holm"] = p_holm.get(i)
            c["verdict"] = verdict(c, c["p_holm"])
    for c in exploratory:
        c["verdict"] = verdict(c, c["p"])
    return {"baseline": baseline, "steps": max(r["vals"][-1]["step"] for r in table["run"]),
            "variances": {kind: {"sd": math.sqrt(variance), "degrees": degrees}
                          for kind, (variance, degrees) in variances.items()},
            "planned": planned, "exploratory": exploratory,
            "arms": {arm: describe(group) for arm, group in arms.items()}}


def at_equal_seeds(results):
    """Comparisons of horizons with equal seeds -> the contrasts that several of them have, each
    with its place among the horizons, shortest first, and its number of steps."""
    found = {}
    for place, result in enumerate(sorted(results, key=lambda result: result["steps"])):
        for c in [*result["planned"], *result["exploratory"]]:
            if c["gap"]:
                pair = {key: c[key] for key in ("arm", "base", "seeds", "gap", "interval")}
                pair |= {"horizon": place, "steps": result["steps"]}
                found.setdefault((c["arm"], c["base"]), []).append(pair)
    return [c for contrasts in found.values() if len(contrasts) > 1 for c in contrasts]


# ---- contrasts ---------------------------------------------------------------------------------

def read_contrasts(folders, tuning):
    """The contrasts.tsv of the first of the folders that has one: a list of {"question", "arm",
    "base", "kind"}; [] where none has. An arm that the tuning table calls by a shorter name has
    that name here too. InputError for a file that is none."""
    paths = [path for path in (Path(folder) / "contrasts.tsv" for folder in folders)
             if path.is_file()]
    if not paths:
        return []
    _, *rows = [line.split("\t") for line in paths[0].read_text().splitlines()]
    kinds = ("confirmatory", "exploratory")
    if any(len(row) != 4 or row[3] not in kinds for row in rows):
        raise InputError(f"{paths[0]}: a line is question, arm, base and kind, which is "
                         f"{' or '.join(kinds)}, with tabs between them")
    short = {row["arm"]: name for name, row in tuning["arms"].items()} if tuning else {}
    return [{"question": question, "arm": short.get(arm, arm), "base": short.get(base, base),
             "kind": kind} for question, arm, base, kind in rows]


def name_by(runs, key, base, notes):
    """For --by=KEY: of the runs that differ in one key (and seed, and bits) alone those with the
    most values, as arms KEY=VALUE in the order of the values. Returns (runs, the values, the base's
    arm, the keys that move). `base`: text, or None for the value of the runs' config files."""
    known = runs[0]["header"]["config"].keys() - {*SILENT}
    if key not in known:
        raise InputError(f"--by={key}: not a key that decides a run's numbers")
    moved = {key, "min_lr"} if key == "learning_rate" else {key}
    groups = {}
    for r in runs:
        config = r["header"]["config"]
        equal = settings(r) | {k: config[k] for k in known - {*BITS}}
        equal = {k: v for k, v in equal.items() if k not in moved}
        groups.setdefault(json.dumps(equal, sort_keys=True), []).append(r)

    def values_of(group):
        return sorted({r["header"]["config"][key] for r in group})

    group = max(groups.values(), key=lambda group: (len(values_of(group)), len(group)))
    values = values_of(group)
    if len(values) < 2:
        raise InputError(f"--by={key}: no two runs differ in {key} alone")
    notes += [f"left out: {r['name']}: differs from {group[0]['name']} in more than {key}"
              for r in runs if r not in group]
    value = parse_value(key, base) if base is not None else value_of_config(group[0], key)
    if value not in values:
        raise InputError(f"no run has the base {key}={value}; --base=VALUE chooses another of "
                         f"{', '.join(map(str, values))}")
    mixes = key in ("batch_size", "gradient_accumulation_steps", "block_size")
    named = [r | {"arm": f"{key}={r['header']['config'][key]}", "by": r["header"]["config"][key],
                  "batches": r["header"]["config"][key] if mixes else None} for r in group]
    return named, values, f"{key}={values[values.index(value)]}", moved


def value_of_config(run, key):
    """What the config files of a run's command set a key to, without its options; None if the log
    does not say."""
    words = shlex.split(run["header"].get("command", ""))[2:]  # after python train.py
    try:
        return getattr(compose([word for word in words if not word.startswith("-")])[0], key)
    except InputError:
        return None


# ---- the page ----------------------------------------------------------------------------------

def warnings(tables, result, tuned):
    """What makes a comparison worth less than it looks: lines, most important first. `tuned`:
    whether a grid chose the settings; None where that is not asked."""
    untuned = [arm for arm, a in result["arms"].items() if a["tuned"] in (None, "not tuned")]
    lines = []
    if tuned and untuned:
        lines.append(f"not tuned, no grid has them: {', '.join(untuned)}")
    elif tuned is False:
        lines.append("not tuned: every arm ran at the rates of its config, and nothing here "
                     "answers results/PLAN.md")
    lines += provenance([r for table in tables for r in table["run"]])
    seeds = {arm: set(a["seeds"]) for arm, a in result["arms"].items()}
    base = seeds[result["baseline"]]
    for arm, mine in seeds.items():
        if not mine & base:
            lines.append(f"no gap of {arm}: it has no seed in common with {result['baseline']} "
                         f"({numbers(mine)} and {numbers(base)})")
    for c in result["planned"]:
        if c["gap"] and seeds[c["arm"]] != seeds[c["base"]]:
            lines.append(f"unequal seeds: {c['arm']} has {numbers(seeds[c['arm']])}, {c['base']} "
                         f"has {numbers(seeds[c['base']])}; their gap is over the common ones")
    return lines


ABOUT_GAPS = (
    "Gaps are differences in validation loss, paired by seed; below 0 the first arm is better. "
    f"Lower and higher are at 5 %; level: the 95 % interval lies within ±{LEVEL}. The interval "
    "rests on the residual deviation of loss = arm + seed, one for arms with a V x d head of their "
    "own and one for the rest; with one seed it is the wider one of that and of documents "
    "resampled. Beside it: Student's of the contrast's own seeds, and documents crossed with "
    "seeds. "
    "Steps-to-match: how many times fewer steps than the base the arm needs to the base's final "
    "loss; below 1, the share of its steps that the base needed to the arm's.")

ABOUT_ARMS = (
    "Mean ± sample standard deviation over seeds. In use: trained input parameters in rows that a "
    "token of the vocabulary touches. rms(e): of the input per coordinate, from the start to the "
    "end. Update ratio: rms of a step's change of e over rms(e), the median over validations. "
    "Clipped: share of steps. tokens/s is what the runs logged beside whatever else the machine "
    "did; bench.py measures speed.")


def sections(result, equal):
    """Titles, texts and tables of the comparison: [(title, text, table)]. `equal`: what
    `at_equal_seeds` found."""
    made = [c for c in result["planned"] if c["gap"]]
    lacking = [f"{c['arm']} - {c['base']}" for c in result["planned"] if not c["gap"]]
    sds = [f"{v['sd']:.4f} nats ({kind}, {v['degrees']:.3g} degrees of freedom)"
           for kind, v in result["variances"].items()]
    about = ABOUT_GAPS + (f" Residual deviations: {', '.join(sds)}." if sds else "")
    found = []
    if made:
        text = f"{about} Corrected for {len(result['planned'])} planned contrasts (Holm)."
        text += f" Planned and not run: {', '.join(lacking)}." if lacking else ""
        found.append(("Questions", text, gap_table(made)))
    found.append(("Arms", ABOUT_ARMS, arm_table(result)))
    if equal:
        found.append(("Horizons", "Each with a cosine of its own; the gap and its interval, over "
                      "the seeds that all these horizons have.", horizon_table(equal)))
    if result["exploratory"]:
        text = "Exploratory, and uncorrected." + ("" if made else f" {about}")
        found.append(("Other contrasts", text, gap_table(result["exploratory"])))
    return found


def setting_of(run):
    """What every run of a comparison shares, in a sentence."""
    header, config = run["header"], run["header"]["config"]
    per_step = header.get("tokens_per_step", 0)
    epochs = f"{header['epochs']:.2f} epochs" if "epochs" in header else "epochs unknown"
    return (f"{config['max_steps']:,} steps of {per_step:,} tokens = "
            f"{config['max_steps'] * per_step:,} tokens ({epochs}) of `{config['dataset']}` "
            f"(train.bin sha256 {str(header['data'].get('train', 'unknown'))[:12]}...), "
            f"{config['n_layer']} layers, d {config['n_embd']}, context {config['block_size']}.")


def answers(result, runs):
    """At most ten lines for a README: each planned question with its gaps, and what they hold
    for."""
    by_question, seeds = {}, set()
    for c in result["planned"]:
        words = f"{c['arm']} - {c['base']}"
        if c["gap"]:
            seeds |= set(c["seeds"])
            words += f" is {c['gap']['mean']:+.3f}"
            words += f" {bracket(c['interval'], 3)}" if c["interval"] else ""
        words += f" ({' and '.join(c['verdict'])})"
        by_question.setdefault(c["question"], []).append(words)
    if len(by_question) > 9:
        raise InputError(f"--answers: {len(by_question)} questions are planned; a page that is "
                         "read has nine at most")
    lines = [f"- {question} {'; '.join(words)}." for question, words in by_question.items()]
    total = max(run["header"]["params"].get("total", 0) for run in runs) / 1e6
    limits = (f"- Nats per token, seeds {numbers(seeds)}, 95 % intervals; verdicts at 5 % after "
              f"Holm's correction for {len(result['planned'])}. Models of at most {total:.1f}M "
              f"parameters, {setting_of(runs[0])}")
    return "\n".join([*lines, limits]) + "\n"


def page(tables, results, equal, notes, tuning, out):
    """(the whole .md, what the .json holds)."""
    name, result = Path(out).name, results[0]
    runs = [r for table in tables for r in table["run"]]
    made = stamp(runs)
    text = [f"# {name}: {len(result['arms'])} arms, {len(tables[0])} runs", *bullets(notes)]
    for i, (title, words, table) in enumerate(sections(result, equal)):
        text += [f"## {title}", words, table] + ([f"![its picture]({name}.png)"] if i == 0 else [])
    text += ["## Published", PUBLISHED, "## What made these numbers",
             f"Every run: {setting_of(tables[0]['run'].iloc[0])}"]
    if tuning:
        steps = " and ".join(f"{r['steps']:,}" for r in results)
        text.append(f"Each arm's setting was chosen by a grid of {tuning['steps']:,} steps on seed "
                    f"{tuning['seeds'][0]}, and is used here at {steps} steps; whether the best "
                    "setting moves with the horizon was not checked.")
    text.append(made_by(made, runs))
    saved = made | result | {"notes": notes, "horizons": results[1:], "equal_seeds": equal,
                             "runs": [r["name"] for r in runs],
                             "data": runs[0]["header"]["data"]}
    return "\n\n".join(text) + "\n", saved


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
    args = parser.parse_args()
    if args.out:
        refuse_folder(args.out)
    if args.tune:
        return tune(args.runs, args.default, args.out)

    notes, path, tuning, contrasts = [], None, None, []
    runs = finished_runs(args.runs, notes)
    folders = args.runs if len(args.runs) == 1 else []
    if args.by:
        runs, values, args.baseline, free = name_by(runs, args.by, args.base, notes)
        contrasts = [{"question": "", "arm": f"{args.by}={value}", "base": args.baseline,
                      "kind": "confirmatory"}
                     for value in values if f"{args.by}={value}" != args.baseline]
    else:
        path, tuning = find_tuning(runs, folders)
        runs, free = (name_runs(runs, tuning, notes), KEYS) if tuning else (runs, ())
        contrasts = read_contrasts([*folders, *([Path(path).parent] if path else [])], tuning)
    tables, baseline = select(runs, args.baseline, free, notes)
    # a horizon with too few seeds has the variances of the first
    variances = [variances_of(tables[0]) | variances_of(table) for table in tables]
    results = [compare(table, baseline, contrasts, found)
               for table, found in zip(tables, variances)]
    equal = at_equal_seeds([compare(table, baseline, contrasts, found)
                            for table, found in zip(equal_seeds(tables), variances) if len(table)])
    planned = [note for folder in folders for note in not_run(folder, tables)]
    tuned = None if args.by else bool(tuning)
    notes = [*warnings(tables, results[0], tuned), *planned, *notes]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print("\n\n".join(f"{title}\n\n{table}" for title, _, table in sections(results[0], equal)))
    if args.answers:
        text = answers(results[0], list(tables[0]["run"]))
        write_atomic(args.answers, lambda file: file.write(text.encode()))
    if args.out:
        from lib.plots import comparison_picture, values_picture
        if args.by:
            figure = values_picture(tables[0], args.by, values)
        else:
            shown = [c[side] for c in results[0]["planned"] if c["gap"] for side in ("arm", "base")]
            figure = comparison_picture(tables, baseline, shown)
        text, saved = page(tables, results, equal, notes, tuning, args.out)
        save_results(args.out, text, saved | {"tuned": path}, figure)


if __name__ == "__main__":
    run(main)
