"""A comparison as text: what a reader must know first, the answers, the tables, what made them."""
from collections import defaultdict
from pathlib import Path

import numpy as np

from lib.results import provenance
from lib.tables import bracket, bullets, markdown_table, pm, stamp
from lib.stats import pooled_sd
from lib.tuning import ELSEWHERE, describe_setting

# arXiv 2605.29459 (kron) and 2605.09751 (binary, affine), as they state them.
PUBLISHED = [
    ("kron - bpe_tied, 124M, 2.5B tokens, 3 seeds", "gap", "-0.083 +- 0.007 nats (-2.5 +- 0.2 %)"),
    ("kron / bpe_tied, likewise", "perplexity ratio", "about 0.91"),
    ("kron, likewise", "steps-to-match", "1.43x"),
    ("binary / learned table, 32 layers, 17B tokens, 3 seeds", "perplexity", "2.36 / 2.44"),
    ("affine, a slightly shorter run", "perplexity", "2.39"),
    ("seed to seed, those runs", "perplexity", "4.8 %: comparable, not better"),
]


# ---- what to know first ------------------------------------------------------------------------

def warnings(horizons, result, tuning):
    """What makes a comparison worth less than it looks: lines, most important first."""
    arms = horizons[0]
    lines = unequal_spread(arms)
    lines += [] if tuning else ["not tuned: every arm ran at the rates of its config, and nothing "
                               "here answers results/PLAN.md"]
    if tuning:
        untuned = [arm for arm, a in result["arms"].items() if a["tuned"] == "not tuned"]
        lines += [f"not tuned, no grid has them: {', '.join(untuned)}"] if untuned else []
    lines += provenance([r for h in horizons for by_seed in h.values() for r in by_seed.values()])
    base = arms[result["baseline"]]
    for arm, by_seed in arms.items():
        if not by_seed.keys() & base.keys():
            lines.append(f"no gap of {arm}: it has no seed in common with {result['baseline']} "
                         f"({numbers(by_seed)} and {numbers(base)})")
    for c in result["planned"]:
        pair = [arms.get(c["arm"], {}), arms.get(c["base"], {})]
        if all(pair) and pair[0].keys() != pair[1].keys():
            lines.append(f"unequal seeds: {c['arm']} has {numbers(pair[0])}, {c['base']} has "
                         f"{numbers(pair[1])}; their gap is over the common ones")
    return lines


def unequal_spread(arms, times=3, fewest=4):
    """Lines on arms whose losses, less the other arms' mean at each seed, deviate more than so many
    times as much as the others' residuals: the pooled interval takes it for granted that none
    does. Said where the others have at least `fewest` degrees of freedom."""
    losses = {arm: {seed: run["loss"] for seed, run in by_seed.items()}
              for arm, by_seed in arms.items() if len(by_seed) > 2}
    lines = []
    for arm, mine in losses.items():
        rest = {(other, seed): loss for other, theirs in losses.items() if other != arm
                for seed, loss in theirs.items() if seed in mine}
        others, degrees = pooled_sd(rest) if rest else (None, 0)
        if degrees < fewest:
            continue
        left = [loss - np.mean([value for (_, at), value in rest.items() if at == seed])
                for seed, loss in mine.items()]
        if np.std(left, ddof=1) > times * others:
            lines.append(f"unequal spread: {arm}'s losses have a residual deviation over seeds of "
                         f"{np.std(left, ddof=1):.3f}, the other arms' pooled one is {others:.3f}; "
                         f"pooled over all, intervals are too narrow for gaps to {arm} and too "
                         "wide for the rest")
    return lines


def numbers(seeds):
    """Seeds as text."""
    return ", ".join(str(seed) for seed in sorted(seeds)) or "none"


# ---- tables ------------------------------------------------------------------------------------

def question_table(result):
    """The planned contrasts, from question to answer."""
    rows = []
    for c in result["planned"]:
        gap, interval = "-", "-"
        if c["gap"]:
            gap, interval = f"{c['gap']['mean']:+.4f}", bracket(c["interval"])
        rows.append([c["question"], f"{c['arm']} - {c['base']}", gap, interval, c["answer"]])
    return markdown_table(["question", "contrast", "gap (nats)", "95 % interval", "answer"], rows)


def table_needed(planned):
    """What results/PLAN.md makes of the two contrasts with the table, a sentence; "" where they do
    not say. `planned`: all planned contrasts, also those that were not run."""
    answers = {c["arm"]: c["answer"] for c in planned if c["name"] == "table at all"}
    better = [arm for arm, text in answers.items() if text.startswith("yes")]
    if better:
        says = f"not needed: {' and '.join(better)} did better"
    elif all(text.startswith("no,") or text == "no" for text in answers.values()):
        says = f"needed, among these arms: {' and '.join(answers)} did worse"
    else:
        return ""
    limits = {text.partition(", ")[2]: None for text in answers.values()}
    limits = "; ".join(limit for limit in limits if limit)
    return ("Is a trained V x d table at the input needed? It is " + says
            + (f" ({limits})." if limits else "."))


def arm_table(result):
    """What each arm is and reaches."""
    rows = []
    for arm, a in result["arms"].items():
        counts = [f"{a['params'][key]:,}" if key in a["params"] else "-"
                  for key in ("input", "in_use", "head", "total")]
        start, end = a["rms"]
        scale = f"{start['mean']:.3g} -> {end['mean']:.3g}" if start and end else "-"
        speed = "-" if a["speed"] is None else f"{a['speed']:.2g}"
        clipped = "-" if a["clipped"] is None else f"{100 * a['clipped']['mean']:.0f} %"
        tuned = (a["tuned"] or "no") + (f", best of {a['tried']}" if a["tried"] else "")
        rate = "-" if a["tokens_per_s"] is None else f"{a['tokens_per_s']:,.0f}"
        rows.append([arm, numbers(a["seeds"]), *counts, pm(a["loss"]), pm(a["ppl"], 2),
                     pm(a["bpb"]), a["setting"], tuned, scale, speed, clipped, rate])
    columns = ["arm", "seeds", "input params", "in use", "head", "total", "loss (nats)",
               "perplexity", "bits/byte", "learning rate", "tuned", "rms(e)", "speed", "clipped",
               "tokens/s"]
    return markdown_table(columns, rows)


def gap_table(result, pairs):
    """Pairs of arms with every interval that at least one of them has."""
    degrees, rows = result["pooled"]["degrees"], []
    for c in pairs:
        rows.append({
            "contrast": f"{c['arm']} - {c['base']}", "seeds": numbers(c["seeds"]),
            "gap (nats)": pm(c["gap"], 4, "+"),
            "over seeds (Student)": bracket(c["gap"]["interval"]),
            f"over seeds (pooled, {degrees} df)": bracket(c["pooled"]),
            "documents x seeds": bracket(c["documents"]), "gap (%)": pm(c["percent"], 2, "+"),
            "steps-to-match": pm(c["speedup"], 2) + "x", "p (Holm)": p_value(c.get("p_holm")),
            "verdict": c["verdict"]})
    columns = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    return markdown_table(columns, [[row[name] for name in columns] for row in rows])


def p_value(p):
    """A p-value as text."""
    if p is None:
        return "-"
    return f"{p:.2g}" if p >= 1e-5 else "< 0.00001"


def at_equal_seeds(results):
    """Comparisons of horizons with equal seeds -> the contrasts that several of them have, each
    with its place among the horizons, shortest first, and its number of steps."""
    found = {}
    results = sorted(results, key=lambda result: result["steps"])
    for place, result in enumerate(results):
        for c in [*result["planned"], *result["exploratory"]]:
            if c["gap"]:
                pair = {key: c[key] for key in ("arm", "base", "seeds", "gap", "interval")}
                pair |= {"horizon": place, "steps": result["steps"]}
                found.setdefault((c["arm"], c["base"]), []).append(pair)
    return [c for contrasts in found.values() if len(contrasts) > 1 for c in contrasts]


def horizon_table(equal):
    """The gap of each contrast of `at_equal_seeds` at each number of steps; "" without any."""
    horizons, rows = dict(sorted((c["horizon"], c["steps"]) for c in equal)), {}
    for c in equal:
        row = rows.setdefault((c["arm"], c["base"], numbers(c["seeds"])),
                              dict.fromkeys(horizons, "-"))
        row[c["horizon"]] = f"{c['gap']['mean']:+.4f} {bracket(c['interval'])}"
    if not rows:
        return ""
    head = ["contrast", "seeds", *(f"{steps:,} steps" for steps in horizons.values())]
    return markdown_table(head, [[f"{arm} - {base}", seeds, *row.values()]
                                 for (arm, base, seeds), row in rows.items()])


def sections(result, equal):
    """Titles, texts and tables of the comparison: [(title, text, table)]. `equal`: what
    `at_equal_seeds` found."""
    planned = [c for c in result["planned"] if c["gap"]]
    sd, degrees = result["pooled"]["sd"], result["pooled"]["degrees"]
    elsewhere = any(arm["tuned"] == ELSEWHERE for arm in result["arms"].values())
    found = []
    if planned:
        found.append((
            "Questions",
            ((f"Exploratory: every answer is {ELSEWHERE}. " if elsewhere else "")
            + "Gaps are differences in validation loss, paired by seed; below 0 the first arm is "
            "better. The interval is the one that the answer rests on; yes and no are at 5 % "
            f"after Holm's correction for the {len(result['planned'])} planned contrasts. "
            + table_needed(result["planned"])).strip(),
            question_table(result)))
    found.append((
        "Arms",
        "Mean ± sample standard deviation over seeds. In use: trained input parameters in rows "
        "that a token of the vocabulary touches. rms(e): of the input per coordinate, from the "
        "start to the end. Speed: rms of a step's change of e over rms(e), the median over "
        "validations. Clipped: share of steps. tokens/s is what the runs logged beside whatever "
        "else the machine did; bench.py measures speed.", arm_table(result)))
    pooled = ""
    if sd is not None:
        pooled = (f"Pooled: the residual deviation of loss = arm + seed over all arms, {sd:.4f} "
                  f"nats, {degrees} degrees of freedom. ")
    intervals = (pooled + "Documents x seeds: validation documents drawn anew, with the seeds' "
                 "pooled deviation; with one seed documents alone, for that one training run. "
                 "Steps-to-match: how many times fewer steps than the base the arm needs to the "
                 "base's final loss; below 1, the share of its steps that the base needed to the "
                 "arm's.")
    if planned:
        found.append(("Planned contrasts", intervals, gap_table(result, planned)))
    if table := horizon_table(equal):
        found.append(("Horizons", "Each with a cosine of its own; the gap and its interval, over "
                      "the seeds that all these horizons have. With one seed the interval is over "
                      "documents, for that one training run.", table))
    if result["exploratory"]:
        text = "Exploratory, and outside Holm's correction." + ("" if planned else " " + intervals)
        found.append(("Other contrasts", text,
                      gap_table(result, result["exploratory"])))
    return found


def tables(result, equal):
    """The comparison for a terminal."""
    return "\n\n".join(f"{title}\n\n{table}" for title, _, table in sections(result, equal))


# ---- the page ----------------------------------------------------------------------------------

def page(horizons, results, equal, notes, tuning, out):
    """(the whole .md, what the .json holds)."""
    arms, result, name = horizons[0], results[0], Path(out).name
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    everything = [run for h in horizons for by_seed in h.values() for run in by_seed.values()]
    made = stamp(everything)
    text = [f"# {name}: {len(arms)} arms, {len(runs)} runs"]
    text += bullets(notes)
    picture = f"![validation loss, gaps, the frontier, the gap by training count]({name}.png)"
    for i, (title, words, table) in enumerate(sections(result, equal)):
        text += [f"## {title}", words, table] + ([picture] if i == 0 else [])
    text += ["## Published", markdown_table(["what", "figure", "value"], PUBLISHED),
             "## What made these numbers", setting_of(runs[0])]
    if tuning:
        text.append(f"Learning rate, input speed and scale: each arm's choice from a grid of "
                    f"{tuning['steps']:,} steps on seed {tuning['seeds'][0]}, used here at "
                    + " and ".join(f"{r['steps']:,}" for r in results)
                    + " steps; whether the best setting moves with the horizon was not checked.")
        if tuning["default"]:
            text.append(f"The default that nobody tuned: {describe_setting(tuning['default'])}.")
    machine = "{hardware}; Python {python}, torch {torch}, commit {commit}, code {code_hash}"
    machines = {machine.format_map(defaultdict(lambda: "unknown", r["header"]))
                for r in everything}
    text.append(f"Made by `{made['command']}` on {made['date']}, from runs on:\n\n"
                + "\n".join(f"- {m}" for m in sorted(machines)))
    commands = [f"{r['header'].get('date', '')}  {r['header'].get('command', r['name'])}"
                for r in everything]
    text.append("\n".join(["```", *commands, "```"]))
    saved = made | result | {"notes": notes, "horizons": results[1:], "equal_seeds": equal,
                             "runs": [run["name"] for run in everything],
                             "data": runs[0]["header"]["data"]}
    return "\n\n".join(text) + "\n", saved


def setting_of(run):
    """What every run of a comparison shares, in a sentence."""
    header, config = run["header"], run["header"]["config"]
    per_step = header.get("tokens_per_step", 0)
    epochs = f"{header['epochs']:.2f} epochs" if "epochs" in header else "epochs unknown"
    return (f"Every run: {config['max_steps']:,} steps of {per_step:,} tokens = "
            f"{config['max_steps'] * per_step:,} tokens ({epochs}) of `{config['dataset']}` "
            f"(train.bin sha256 {str(header['data'].get('train', 'unknown'))[:12]}...), "
            f"{config['n_layer']} layers, d {config['n_embd']}, context {config['block_size']}, "
            f"{config['dtype']}.")
