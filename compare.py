"""Many runs -> one table with uncertainty: gaps to a baseline, paired by seed.

    python compare.py out/tiny-* --baseline=bpe_tied                       # print the table
    python compare.py out/tiny-* --baseline=bpe_tied --out=results/tiny    # and write results/tiny.md, .json and .png

Runs are grouped by arm and paired by seed: with equal seeds two arms saw the same batches and started from the same
transformer body, so the gap between them is one number per seed. Runs that differ in anything but arm and seed are refused;
unfinished runs are left out.
"""
import glob
import json
import math
import os
import shlex
import statistics
import sys
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from lib.common import InputError, Parser, run
from lib.report import (bracket, draw_curves, is_finished, markdown_table, panels, pm, read_run,
                        refuse_folder, refuse_unmatched, save_results)
from lib.stats import summary

# One change at a time, from the baseline to kron: what differs between the two arms of each pair.
CONTRASTS = [("bytes", "kron", "random"), ("untying", "bpe_untied", "bpe_tied"), ("input scale", "bpe_untied_unit", "bpe_untied"),
             ("input speed", "bpe_untied_lr", "bpe_untied_unit")]
# arXiv 2605.29459 (kron) and 2605.09751 (binary, affine), as they state them.
PUBLISHED = [("kron - bpe_tied, 124M, 2.5B tokens, 3 seeds", "gap", "-0.083 +- 0.007 nats (-2.5 +- 0.2 %)"),
             ("kron / bpe_tied, likewise", "perplexity ratio", "about 0.91"),
             ("kron, likewise", "steps-to-match", "1.43x"),
             ("binary / learned table, 32 layers, 17B tokens, 3 seeds", "perplexity", "2.36 / 2.44"),
             ("affine, a slightly shorter run", "perplexity", "2.39"),
             ("seed to seed, those runs", "perplexity", "4.8 %: comparable, not better")]


# ---- reading -----------------------------------------------------------------------------------------------

def read_run(folder):
    """out/RUN -> {"name", "header", "steps", "vals"}, both lists in step order. InputError if it holds no run's log."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: no log.jsonl there, not a run")
    records, dropped = read_log(path)
    if not records or not {"config", "arm", "params", "data"} <= records[0].keys() or not isinstance(records[0]["config"], dict):
        raise InputError(f"{path}: no header, not a run's log")
    if dropped:
        print(f"note: {path}: {dropped} unreadable line{'s' if dropped > 1 else ''} dropped", file=sys.stderr)
    steps = [r for r in records[1:] if is_number(r.get("loss"))]
    vals = [r for r in records[1:] if is_number(r.get("val_loss"))]
    return {"name": str(folder), "header": records[0], "steps": steps, "vals": vals}


def is_number(x):
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def is_finished(run):
    """Whether the last validation is that of the last step of its config."""
    return bool(run["vals"]) and run["vals"][-1]["step"] == run["header"]["config"]["max_steps"]


def refuse_unmatched(runs):
    """InputError, naming the first difference, if runs differ in anything but arm and seed,
    or if equal seeds saw other batches."""
    def rest(run):
        config, free = run["header"]["config"], (*ARM_KEYS, "seed", "run", "wandb_log")
        return {k: v for k, v in config.items() if k not in free} | {"data": run["header"]["data"]}

    def arm_keys(run):
        return {k: run["header"]["config"].get(k) for k in ARM_KEYS}

    first, arms, pairs = runs[0], {}, {}
    for r in runs:
        like = arms.setdefault(r["header"]["arm"], r)
        for a, b, what in ((rest(first), rest(r), first), (arm_keys(like), arm_keys(r), like)):
            for key in {**a, **b}:
                if a.get(key) != b.get(key):
                    raise InputError(f"not comparable: {key} is {a.get(key)} in {what['name']} and {b.get(key)} in {r['name']}")
        same = pairs.setdefault((r["header"]["arm"], r["header"]["config"]["seed"]), r)
        if same is not r:
            raise InputError(f"{same['name']} and {r['name']} are the same arm and seed")
        twin = next(t for t in runs if t["header"]["config"]["seed"] == r["header"]["config"]["seed"])
        batches = {s["step"]: s.get("batch_crc") for s in twin["steps"]}
        for s in r["steps"]:
            if batches.get(s["step"], s.get("batch_crc")) != s.get("batch_crc"):
                raise InputError(f"not comparable: step {s['step']} saw other batches in {twin['name']} than in {r['name']}")


# ---- statistics --------------------------------------------------------------------------------------------

def student_quantile(degrees, level=0.95):
    """t with P(|T| < t) = level for Student's T; 12.706, 4.303, 3.182 for 1, 2, 3 degrees of freedom.

    With x = sqrt(degrees) tan(a) the density becomes cos(a)^(degrees - 1), which a fine sum integrates.
    """
    edges = np.linspace(0, math.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(level * mass[-1], mass, edges[1:]))


def summary(values):
    """Numbers, one per seed -> {"mean", "sd", "n", "interval"}; sample sd and 95 % Student interval are None for one seed."""
    values = list(values)
    n, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if n > 1 else None
    half = student_quantile(n - 1) * sd / math.sqrt(n) if n > 1 else None
    return {"mean": mean, "sd": sd, "n": n, "interval": None if half is None else [mean - half, mean + half]}


def steps_to_match(vals, target):
    """The step at which a validation curve first comes down to `target`, interpolated linearly; None if it never does."""
    for before, after in zip([None, *vals], vals):
        if after["val_loss"] <= target:
            if before is None:
                return float(after["step"])
            share = (before["val_loss"] - target) / (before["val_loss"] - after["val_loss"])
            return before["step"] + share * (after["step"] - before["step"])
    return None


def paired(arm, base):
    """The gap arm - base, paired by seed: {seed: run} twice -> summaries and a verdict. None with no common seed."""
    seeds = sorted(arm.keys() & base.keys())
    if not seeds:
        return None
    finals = [(arm[s]["vals"][-1]["val_loss"], base[s]["vals"][-1]["val_loss"]) for s in seeds]
    gap = summary(a - b for a, b in finals)
    low, high = gap["interval"] or (0, 0)
    verdict = ("one seed, no interval" if gap["n"] == 1 else
               "lower" if high < 0 else "higher" if low > 0 else f"not resolved at {gap['n']} seeds")
    matches = [steps_to_match(arm[s]["vals"], b) for s, (_, b) in zip(seeds, finals)]
    reached = [arm[s]["vals"][-1]["step"] / m for s, m in zip(seeds, matches) if m]
    return {"seeds": seeds, "gap": gap, "percent": summary(100 * (a - b) / b for a, b in finals), "verdict": verdict,
            "ppl_ratio": summary(math.exp(a - b) for a, b in finals),
            "speedup": summary(reached) if reached else None, "reached": len(reached)}


def compare(runs, baseline):
    """Matched, finished runs -> everything that the table, the json and the picture show."""
    arms = {}
    for r in runs:
        arms.setdefault(r["header"]["arm"], {})[r["header"]["config"]["seed"]] = r
    if baseline not in arms:
        raise InputError(f"--baseline={baseline}: no finished run of that arm (there are {', '.join(arms)})")
    result = {"baseline": baseline, "arms": {}, "contrasts": []}
    for arm, by_seed in arms.items():
        group = list(by_seed.values())
        last = [r["vals"][-1] for r in group]
        norms = [(r["vals"][0].get("input_norm"), r["vals"][-1].get("input_norm")) for r in group]
        rates = [statistics.median(s["tokens_per_s"] for s in r["steps"]) for r in group if r["steps"]]
        result["arms"][arm] = {
            "seeds": sorted(by_seed), "params": group[0]["header"]["params"],
            "val_loss": summary(v["val_loss"] for v in last), "val_ppl": summary(v["val_ppl"] for v in last),
            "val_bpb": summary(v["val_bpb"] for v in last), "tokens_per_s": summary(rates) if rates else None,
            "input_norm": [summary(x) if None not in x else None for x in zip(*norms)],
            "against_baseline": paired(by_seed, arms[baseline])}
    for what, arm, base in CONTRASTS:
        if arm in arms and base in arms and (contrast := paired(arms[arm], arms[base])):
            result["contrasts"].append({"what": what, "arm": arm, "base": base} | contrast)
    return result


# ---- writing -----------------------------------------------------------------------------------------------

def pm(s, digits=4, sign=""):
    """A summary as text: mean +- sd, or the mean alone for one seed."""
    if s is None:
        return "-"
    return f"{s['mean']:{sign},.{digits}f}" + (f" ± {s['sd']:,.{digits}f}" if s["sd"] is not None else "")


def interval(s, digits=4):
    """A summary's interval as text."""
    return "-" if s["interval"] is None else f"[{s['interval'][0]:+.{digits}f}, {s['interval'][1]:+.{digits}f}]"


def gap_cells(p):
    """The cells that every paired row shares."""
    n, match = p["gap"]["n"], "not reached"
    if p["reached"]:
        match = pm(p["speedup"], 2) + "x" + (f" ({p['reached']} of {n} seeds)" if p["reached"] < n else "")
    return [n, pm(p["gap"], 4, "+"), interval(p["gap"]), pm(p["percent"], 2, "+"), pm(p["ppl_ratio"], 3), match, p["verdict"]]


def tables(result):
    """The comparison as markdown tables."""
    loss, gaps = [], []
    for arm, a in result["arms"].items():
        start, end = a["input_norm"]
        loss.append([arm, len(a["seeds"]), *(f"{a['params'][k]:,}" for k in ("input", "body", "head", "total")),
                     pm(a["val_loss"]), pm(a["val_ppl"], 2), pm(a["val_bpb"]),
                     f"{a['tokens_per_s']['mean']:,.0f}" if a["tokens_per_s"] else "-",
                     f"{start['mean']:.3f} -> {end['mean']:.3f}" if start and end else "none"])
        if arm != result["baseline"] and a["against_baseline"]:
            gaps.append([arm, *gap_cells(a["against_baseline"])])
    head = ["seeds", "gap (nats)", "95 % interval", "gap (%)", "perplexity ratio", "steps-to-match", "verdict"]
    columns = ["arm", "seeds", "input params", "body", "head", "total",
               "loss (nats)", "perplexity", "bits/byte", "tokens/s", "input norm"]
    text = ["Validation, mean ± sample standard deviation over seeds (tokens/s as the runs logged them, "
            "beside whatever else the machine did: bench.py measures speed):", markdown_table(columns, loss)]
    if gaps:
        text += [f"Against `{result['baseline']}`, paired by seed (negative is better; steps-to-match is total steps / "
                 "the step at which the baseline's final loss is reached):", markdown_table(["arm", *head], gaps)]
    if result["contrasts"]:
        rows = [[c["what"], f"{c['arm']} - {c['base']}", *gap_cells(c)] for c in result["contrasts"]]
        text += ["One change at a time, paired by seed:", markdown_table(["what changes", "pair", *head], rows)]
    return "\n\n".join(text)


def report(result, runs, unfinished, picture):
    """The whole .md: tables, published figures, and what made the numbers."""
    header, config = runs[0]["header"], runs[0]["header"]["config"]
    versions = {"{hardware}; Python {python}, torch {torch}, commit {commit}".format_map(defaultdict(str, r["header"]))
                for r in runs}
    text = [f"# {Path(picture).stem}: {len(result['arms'])} arms, {len(runs)} runs",
            f"![validation loss, gap, input norms]({Path(picture).name})", tables(result)]
    text += ["Published:", markdown_table(["what", "figure", "value"], PUBLISHED)]
    if unfinished:
        steps = (f"{r['name']} (step {r['vals'][-1]['step'] if r['vals'] else 0} of {r['header']['config']['max_steps']})"
                 for r in unfinished)
        text.append("Left out because unfinished: " + ", ".join(steps))
    per_step = header.get("tokens_per_step", 0)
    text.append(f"Every run: {config['max_steps']:,} steps of {per_step:,} tokens = {config['max_steps'] * per_step:,} tokens "
                f"({header.get('epochs', 0):.2f} epochs) of `{config['dataset']}` (train.bin sha256 "
                f"{header['data']['train'][:12]}...), {config['n_layer']} layers, d {config['n_embd']}, "
                f"context {config['block_size']}, {config['dtype']}, peak learning rate {config['learning_rate']}.")
    text.append("Made by `" + result["command"] + f"` on {result['date']}, from runs on " + "; ".join(sorted(versions)) + ":")
    text.append("```\n" + "\n".join(f"{r['header'].get('date', '')}  {r['header'].get('command', '')}" for r in runs) + "\n```")
    return "\n\n".join(text) + "\n"


def plot(result, runs, path):
    """Validation loss, gap to the baseline, input norm against steps: mean over seeds, band from the lowest to the highest."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    # Okabe and Ito: colour-blind safe, and told apart in grey
    colours = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#B8A800", "#0072B2", "#D55E00", "#CC79A7"]
    styles = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2))]
    markers = "osD^vP*X"
    by_arm = {}
    for r in runs:
        by_arm.setdefault(r["header"]["arm"], {})[r["header"]["config"]["seed"]] = {v["step"]: v for v in r["vals"]}
    figure, (losses, gaps, norms) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for i, (arm, seeds) in enumerate(by_arm.items()):
        look = dict(color=colours[i % 8], ls=styles[i % 8], marker=markers[i % 8], ms=4, lw=1.6, label=arm)

        def draw(axes, curves):  # curves: {seed: {step: value}}
            steps = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
            if steps:
                values = np.array([[c[s] for s in steps] for c in curves.values()])
                axes.plot(steps, values.mean(0), **look)
                axes.fill_between(steps, values.min(0), values.max(0), color=look["color"], alpha=0.15, lw=0)
        base = by_arm[result["baseline"]]
        draw(losses, {s: {t: v["val_loss"] for t, v in c.items() if t} for s, c in seeds.items()})
        draw(gaps, {s: {t: v["val_loss"] - base[s][t]["val_loss"] for t, v in c.items() if t and t in base[s]}
                    for s, c in seeds.items() if s in base})
        draw(norms, {s: {t: v["input_norm"] for t, v in c.items() if v.get("input_norm")} for s, c in seeds.items()})
    finals = [v["val_loss"] for r in runs for v in r["vals"][-1:]]
    late = [v["val_loss"] for r in runs for v in r["vals"] if v["step"] >= r["vals"][-1]["step"] / 5]
    losses.set(ylim=(min(finals) - 0.05, max(late) + 0.05), ylabel="validation loss (nats per token)", title="Validation loss")
    gaps.set(ylabel=f"loss - loss of {result['baseline']} (nats)", title="Gap to the baseline at the same step")
    norms.set(yscale="log", ylabel="mean row norm of the input's weights", title="Input norm (binary and affine have no weights)")
    for axes in (losses, gaps, norms):
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    losses.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders below out/ (default: all that hold a log)")
    parser.add_argument("--baseline", default="bpe_tied", help="the arm that gaps are measured against")
    parser.add_argument("--out", help="write OUT.md, OUT.json and OUT.png")
    args = parser.parse_args()
    folders = args.runs or [os.path.dirname(path) for path in sorted(glob.glob("out/*/log.jsonl"))]
    if not folders:
        raise InputError("no runs: give folders that train.py made, like out/tiny-*")
    runs = [read_run(f.rstrip("/")) for f in dict.fromkeys(folders)]
    unfinished = [r for r in runs if not is_finished(r)]
    runs = [r for r in runs if is_finished(r)]
    for r in unfinished:
        print(f"left out, unfinished: {r['name']}")
    if not runs:
        raise InputError("none of these runs is finished")
    refuse_unmatched(runs)
    result = compare(runs, args.baseline)
    print(tables(result))
    if args.out:
        result |= {"command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
                   "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "published": PUBLISHED,
                   "unfinished": [r["name"] for r in unfinished],
                   "runs": [{"name": r["name"], "header": r["header"], "validations": r["vals"]} for r in runs]}
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        plot(result, runs, f"{args.out}.png")
        write_atomic(f"{args.out}.json", lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
        write_atomic(f"{args.out}.md", lambda file: file.write(report(result, runs, unfinished, f"{args.out}.png").encode()))
        print(f"\nwrote {args.out}.md, {args.out}.json, {args.out}.png")


if __name__ == "__main__":
    run(main)
