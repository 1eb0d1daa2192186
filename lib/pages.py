"""A comparison as a page of Markdown, the ten lines of its answers, and the table of records."""
import re
from pathlib import Path

from lib.errors import InputError
from lib.results import SEEN, read_plan
from lib.stats import LEVEL, summary
from lib.tables import (PUBLISHED, arm_table, bracket, bullets, gap_table, horizon_table, made_by,
                        markdown_table, numbers, pm, stamp)

ABOUT_GAPS = (
    "Gaps are differences in validation loss, nats per token, paired by seed; below 0 the first "
    f"arm is better. Lower and higher are at 5 %; level: the 95 % interval lies within ±{LEVEL}. "
    "The interval rests on the residual deviation of loss = arm + seed, one for arms with a V x d "
    "head of their own and one for the rest; with one seed it is the wider one of that and of "
    "documents resampled. Beside it: Student's of the contrast's own seeds, and documents crossed "
    "with seeds. Steps-to-match: how many times fewer steps than the base the arm needs to the "
    "base's final loss; below 1, the share of its steps that the base needed to the arm's.")

ABOUT_ARMS = (
    "Mean ± sample standard deviation over seeds. In use: trained input parameters in rows that a "
    "token of the vocabulary touches. rms(e): of the input per coordinate, from the start to the "
    "end. Update ratio: rms of a step's change of e over rms(e), the median over validations. "
    "Clipped: share of steps. tokens/s is what the runs logged beside whatever else the machine "
    "did; bench.py measures speed.")


def sections(tables, results, equal):
    """Titles, texts and tables of a comparison: [(title, text, table or "")]. `equal`: what
    `at_equal_seeds` found."""
    result, found = results[0], []
    sds = [f"{v['sd']:.4f} nats ({kind}, {v['degrees']:.3g} degrees of freedom)"
           for kind, v in result["variances"].items()]
    about = ABOUT_GAPS + (f" Residual deviations: {', '.join(sds)}." if sds else "")
    if result["planned"]:
        about += f" Corrected for {len(result['planned'])} planned contrasts (Holm)."
        found.append(("How to read the tables", about, ""))
    for question in dict.fromkeys(c["question"] for c in result["planned"]):
        asked = [c for c in result["planned"] if c["question"] == question]
        made = [c for c in asked if c["gap"]]
        lacking = [f"{c['arm']} - {c['base']}" for c in asked if not c["gap"]]
        found.append((question or "Values", f"Not run: {', '.join(lacking)}." if lacking else "",
                      gap_table(made) if made else ""))
    asked = [c for c in [*result["planned"], *result["exploratory"]] if c["question"] and c["gap"]]
    apart = [text for c in asked if c["kind"] == "exploratory"
             for text in taken_apart(tables[0], c, [d for d in asked if d is not c])]
    if apart:
        found.append(("The published contrast taken apart", "\n\n".join(apart), ""))
    if asked and tables[0]["seen"].notna().all():
        found.append(("By how often training saw the input token", "The input token is the one "
                      "before what is predicted. Exploratory; mean gap ± sample standard deviation "
                      "over seeds.", seen_table(tables[0], asked)))
    if equal:
        found.append(("Horizons", "Each with a cosine of its own; the gap and its interval, over "
                      "the seeds that all these horizons have.", horizon_table(equal)))
    found.append(("Arms", ABOUT_ARMS, arm_table(result)))
    if result["exploratory"]:
        text = "Exploratory, and uncorrected." + ("" if result["planned"] else f" {about}")
        found.append(("Other contrasts", text, gap_table(result["exploratory"])))
    return found


def taken_apart(table, c, others):
    """A contrast as a sum of two of the others, arm - X and X - base, and with each of these as a
    sum within its own question: lines that add up, over the seeds that all arms have."""
    def halves(c, others):
        return next(([one, other] for one in others for other in others
                     if (c["arm"], one["base"], c["base"])
                     == (one["arm"], other["arm"], other["base"])), [c])

    parts = halves(c, others)
    finer = [half for part in parts for half in halves(
        part, [d for d in others if d["question"] == part["question"] and d is not part])]
    lines = []
    for terms in (parts, finer) if len(finer) > len(parts) else (parts,):
        losses = table.pivot(index="seed", columns="arm", values="loss")
        losses = losses[[c["arm"], *(term["base"] for term in terms)]].dropna()
        gaps = -losses.mean().diff().iloc[1:]
        words = " ".join(f"{gap:+.3f} ({term['arm']} - {term['base']})"
                         for gap, term in zip(gaps, terms))
        lines.append(f"{c['arm']} - {c['base']}: {gaps.sum():+.3f} = {words}, in nats, the mean "
                     f"over seeds {numbers(losses.index)}.")
    return lines if len(parts) > 1 else []


def seen_table(table, contrasts):
    """The gaps of contrasts in groups of tokens, by how often training saw the input token."""
    rows, first = [], table["seen"].iloc[0]
    for c in contrasts:
        losses = {side: table[table["arm"] == c[side]].set_index("seed")["seen"]
                  for side in ("arm", "base")}
        cells = []
        for group in SEEN:
            gaps = [losses["arm"][seed][group][0] - losses["base"][seed][group][0]
                    for seed in c["seeds"]]
            cells.append(pm(summary(gaps), 3, "+"))
        rows.append([f"{c['arm']} - {c['base']}", numbers(c["seeds"]), *cells])
    head = [f"{group} times ({100 * first[group][1]:.0f} % of tokens)" for group in SEEN]
    return markdown_table(["contrast", "seeds", *head], rows)


def not_reached(folder, there):
    """What FOLDER/plan.tsv has and the comparison has not (paths `there`): (how many, of how many,
    a table by item)."""
    plan = [row for row in read_plan(folder) if "tuning/" not in row["name"]]
    items, lacking = dict.fromkeys(row["item"] for row in plan), 0
    rows = []
    for item in items:
        mine = [row["name"] for row in plan if row["item"] == item]
        names, words = {}, {}
        for name in mine:
            if str(Path(folder) / name) not in there:
                arm, _, seed = name.rpartition("-s")
                names.setdefault(arm, []).append(seed)
        for arm, seeds in names.items():
            words.setdefault(", ".join(seeds), []).append(arm)
        count = sum(map(len, names.values()))
        lacking += count
        if count:
            rows.append([item, f"{count} of {len(mine)}", "; ".join(
                f"{', '.join(arms)} (seed {seeds})" for seeds, arms in words.items())])
    return lacking, len(plan), markdown_table(["item", "runs", "which"], rows)


def setting_of(run):
    """What every run of a comparison shares, in a sentence."""
    header, config = run["header"], run["header"]["config"]
    per_step = header.get("tokens_per_step", 0)
    epochs = f"{header['epochs']:.2f} epochs" if "epochs" in header else "epochs unknown"
    return (f"{config['max_steps']:,} steps of {per_step:,} tokens = "
            f"{config['max_steps'] * per_step:,} tokens ({epochs}) of `{config['dataset']}` "
            f"(train.bin sha256 {str(header['data'].get('train', 'unknown'))[:12]}...), "
            f"{config['n_layer']} layers, d {config['n_embd']}, context {config['block_size']}.")


def page(tables, results, equal, others, notes, tuning, lacking, out):
    """(the whole .md, what the .json holds). `others`: comparisons of folders within the folder,
    (name, tables, results, equal) each; `lacking`: what `not_reached` found, or None."""
    name, result = Path(out).name, results[0]
    runs = [r for table in tables for r in table["run"]]
    made = stamp(runs)
    text = [f"# {name}: {len(result['arms'])} arms, {len(tables[0])} runs", *bullets(notes),
            f"![its picture]({name}.png)"]
    for title, words, table in sections(tables, results, equal):
        text += [part for part in (f"## {title}", words, table) if part]
    for other, its_tables, its_results, its_equal in others:
        asked = [c for c in its_results[0]["exploratory"] if c["question"]]
        text += [f"## In {other}", f"Exploratory. {setting_of(its_tables[0]['run'].iloc[0])}",
                 *([gap_table(asked)] if asked else []), arm_table(its_results[0]),
                 *([horizon_table(its_equal)] if its_equal else [])]
    if lacking and lacking[0]:
        text += ["## Planned and not reached", f"{lacking[0]} of {lacking[1]} runs, by item "
                 "of results/PLAN.md.", lacking[2]]
    text += ["## Published", PUBLISHED, "## What made these numbers",
             f"Every run: {setting_of(tables[0]['run'].iloc[0])}"]
    if tuning:
        steps = " and ".join(f"{r['steps']:,}" for r in results)
        text.append(f"Each arm's setting was chosen by a grid of {tuning['steps']:,} steps on seed "
                    f"{tuning['seeds'][0]}, and is used here at {steps} steps; whether the best "
                    "setting moves with the horizon was not checked.")
    text.append(made_by(made))
    saved = made | result | {"notes": notes, "horizons": results[1:], "equal_seeds": equal,
                             "others": {other: found for other, _, found, _ in others},
                             "runs": [r["name"] for r in runs], "data": runs[0]["header"]["data"]}
    return "\n\n".join(text) + "\n", saved


# ---- answers, records --------------------------------------------------------------------------

SAYS = {"lower": "{:.3f} nats below", "higher": "{:.3f} nats above", "level": "level with",
        "not known": "not known to differ from", "not run": "not yet set beside"}
YES = {"lower": "No", "level": "No", "higher": "Yes, for the lowest loss",
       "not known": "Not known", "not run": "Not known yet"}  # is a trained table needed?


def answers(result, runs):
    """At most ten lines for a README: the answer to the title, from the first question's contrasts,
    then each planned question with its gaps, and what they hold for."""
    by_question = {}
    for c in result["planned"]:
        by_question.setdefault(c["question"], []).append(c)
    if not 0 < len(by_question) < 9:
        raise InputError("--answers: contrasts.tsv has one to eight confirmatory questions")
    first, *_ = by_question.values()
    ends = [SAYS[c["verdict"][0]].format(abs(c["gap"]["mean"]) if c["gap"] else 0) + f" {c['base']}"
            for c in first]
    total = max(run["header"]["params"].get("total", 0) for run in runs) / 1e6
    arm = first[0]["arm"]
    trained = result["arms"].get(arm, {"params": {}})["params"].get("in_use", "unknown")
    lines = [f"**{YES[first[0]['verdict'][-1]]}: {arm} (trained input parameters: {trained}) ends "
             f"{', '.join(ends)}** "
             f"({total:.0f}M parameters, {runs[0]['header']['config']['dataset']}, "
             f"{result['steps']:,} steps, seeds {numbers(first[0].get('seeds', []))})."]
    for question, asked in by_question.items():
        words = [f"{c['arm']} - {c['base']}"
                 + (f" {c['gap']['mean']:+.3f} {bracket(c['interval'], 3)}" if c["gap"] else "")
                 + f" ({' and '.join(c['verdict'])})" for c in asked]
        lines.append(f"- {question} {'; '.join(words)}.")
    seeds = {seed for c in result["planned"] if c["gap"] for seed in c["seeds"]}
    return "\n".join([*lines, f"- Gaps in nats per token, seeds {numbers(seeds)}, 95 % intervals; "
                      f"verdicts at 5 % after Holm's correction for {len(result['planned'])}. "
                      f"{setting_of(runs[0])}"]) + "\n"


RULE = """# Records

Lowest mean validation loss after 1,200 steps over seeds 21, 22 and 23, by trained input parameters
in rows that a token uses. Body, tokens and steps are those of `configs/tiny.py` on
`python prepare.py docstrings`; an arm is tuned on seeds 100 and 101 with at most ten points. A new
record beats the old one paired by seed: its interval lies below 0. To make a row and to check it:

    for s in 21 22 23; do python train.py configs/tiny.py configs/mine.py --seed=$s; done
    python compare.py results/tiny2 out/tiny-mine-s2? --records=out/records.md

"""


def records(table, pair):
    """The table of records: of the arms with every seed the best of each class, and its lead over
    the next one, `pair(arm, base)`."""
    arms = []
    for arm, group in table.groupby("arm"):
        header = group["run"].iloc[0]["header"]
        has_table = (header["config"]["head"] == "table"
                     or header["config"]["code"] in ("learned", "frozen_random"))
        if set(group["seed"]) == set(table["seed"]):
            arms.append((group["loss"].mean(), arm, header["params"]["in_use"], has_table,
                         summary(group["loss"])))
    rows = []
    for name, most, tables in (("none", 0, True), ("at most 50,000", 50_000, True),
                               ("at most 200,000", 200_000, True), ("any", 1e99, True),
                               ("any, and no V x d table anywhere", 1e99, False)):
        best = sorted(one for one in arms if one[2] <= most and (tables or not one[3]))[:2]
        row = [name, *(f"{best[0][1]}|{best[0][2]:,}".split("|") if best else "--"),
               pm(best[0][4] if best else None), "-", "-"]
        if len(best) > 1:
            lead = pair(best[0][1], best[1][1])
            row[4:] = best[1][1], f"{lead['gap']['mean']:+.4f} {bracket(lead['interval'])}"
        rows.append(row)
    return RULE + markdown_table(["trained input parameters in use", "record", "of them",
                                  "loss (nats)", "next", "its lead (95 %)"], rows) + "\n"
