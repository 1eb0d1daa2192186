"""A comparison as a page of Markdown, the ten lines of its answers, and the table of records."""
import math
from datetime import datetime, timezone

from lib.config import ROOT
from lib.errors import InputError, this_command
from lib.results import SEEN
from lib.stats import paired, summary
from lib.tables import (arm_table, bracket, contrast_name, gap_table, horizon_table,
                        markdown_table, numbers, pm)
from lib.tuning import KEYS, describe_edges


def sections(tables, result, equal):
    """Titles, texts and tables of a comparison, (title, text, table or "") each."""
    planned, exploratory = result["planned"], result["exploratory"]
    about = ("Gaps are in nats per token, paired by seed; below 0 the first arm is better. "
             f"results/README.md explains the columns. {deviations(result)}")
    if planned:
        own = [f"{contrast_name(c)} {'lower' if c['gap']['mean'] < 0 else 'higher'} "
               f"(p {c['p_own']:.2g})" for c in planned if c.get("p_own", 1) < 0.05]
        yield ("How to read the tables",
               f"{about} Verdicts are corrected (Holm) for {len(planned)} contrasts, intervals are "
               "not. Exploratory: known by each contrast's own seeds (Student, Holm) are "
               f"{', '.join(own) or 'none'}.", "")
    for question in dict.fromkeys(c["question"] for c in planned):
        asked = [c for c in planned if c["question"] == question]
        made = [c for c in asked if c["gap"]]
        lacking = ", ".join(contrast_name(c) for c in asked if not c["gap"])
        yield (question or "Values", f"Not run: {lacking}." if lacking else "",
               gap_table(made) if made else "")
    asked = [c for c in [*planned, *exploratory] if c["question"] and c["gap"]]
    if apart := [taken_apart(tables[0], c) for c in asked if c.get("through")]:
        yield "The published contrast taken apart", "\n\n".join(apart), ""
    if asked and tables[0]["seen"].notna().all():
        yield ("By how often training saw the input token", "The input token is the one before "
               "what is predicted. Exploratory; mean gap ± sample standard deviation over seeds.",
               seen_table(tables[0], asked))
    if equal:
        yield ("Horizons", "Each with a cosine of its own; the gap and its interval, over the "
               "seeds that all these horizons have.", horizon_table(equal))
    yield "Arms", "Mean ± sample standard deviation over seeds.", arm_table(result)
    if exploratory:
        text = "Exploratory, and uncorrected." + ("" if planned else f" {about}")
        yield "Other contrasts", text, gap_table(exploratory)


def deviations(result):
    """The residual deviations of a comparison's kinds of arms, in words."""
    kinds = {arm["kind"] for arm in result["arms"].values()}
    sds = [f"{v['sd']:.4f} nats ({kind}, {v['degrees']:.3g} degrees of freedom)"
           for kind, v in result["deviations"].items() if kind in kinds]
    return f"Residual deviations: {', '.join(sds) or 'none'}."


def taken_apart(table, c):
    """A contrast as the sum of its steps from arm to arm: a line that adds up, over the seeds that
    all these arms have."""
    arms = [c["arm"], *c["through"].split(), c["base"]]
    losses = table.pivot(index="seed", columns="arm", values="loss").reindex(columns=arms).dropna()
    if losses.empty:
        return f"{contrast_name(c)}: no seed has all of {', '.join(arms)}."
    gaps = -losses.mean().diff().iloc[1:]
    words = " ".join(f"{gap:+.3f} ({arm} - {base})" for gap, arm, base in zip(gaps, arms, arms[1:]))
    return (f"{contrast_name(c)}: {gaps.sum():+.3f} = {words}, in nats, the mean over seeds "
            f"{numbers(losses.index)}.")


def seen_table(table, contrasts):
    """The gaps of contrasts in groups of tokens, by how often training saw the input token."""
    rows, seen = [], table.set_index(["arm", "seed"])["seen"]
    for c in contrasts:
        cells = [pm(summary(seen[c["arm"], seed][group][0] - seen[c["base"], seed][group][0]
                            for seed in c["seeds"]), 3, "+") for group in SEEN]
        rows.append([contrast_name(c), numbers(c["seeds"]), *cells])
    head = [f"{group} times ({100 * share:.0f} % of tokens)"
            for group, (_, share) in seen.iloc[0].items()]
    return markdown_table(["contrast", "seeds", *head], rows)


def setting_of(run):
    """What every run of a comparison shares, in a sentence."""
    header, config = run["header"], run["header"]["config"]
    steps, per_step = config["max_steps"], header["tokens_per_step"]
    return (f"{steps:,} steps of {per_step:,} tokens = {steps * per_step:,} tokens "
            f"({header['epochs']:.2f} epochs) of `{config['dataset']}` "
            f"(train.bin sha256 {header['data']['train'][:12]}...), "
            f"{config['n_layer']} layers, d {config['n_embd']}, context {config['block_size']}.")


def whole_page(title, notes, parts, runs):
    """(a page: title, notes, the parts that are not empty, what made it; that as a dict)."""
    made = {key: sorted({run["header"][key] for run in runs}) for key in ("commit", "hardware")}
    made |= {"command": this_command(),
             "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    first = "Read this first:\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
    last = (f"Made by `{made['command']}` on {made['date']}, from runs on "
            f"{'; '.join(made['hardware'])}, commits {', '.join(made['commit'])}; each run's "
            "command is in its log.jsonl.")
    return "\n\n".join(part for part in [f"# {title}", first, *parts, last] if part) + "\n", made


def page(found, notes, name):
    """(the whole .md, what the .json holds) of what compare.py found."""
    tables, results, equal = found["tables"], found["results"], found["equal"]
    result, tuning, runs = results[0], found["tuning"], [r for t in tables for r in t["run"]]
    parts = [f"![its picture]({name}.png)"]
    for title, *section in sections(tables, result, equal):
        parts += [f"## {title}", *section]
    for other in found["others"]:
        first = other["results"][0]
        asked = [c for c in first["exploratory"] if c["question"]]
        parts += [f"## In {other['name']}",
                  f"Exploratory, and uncorrected. {deviations(first)} "
                  + setting_of(other["tables"][0]["run"].iloc[0]),
                  gap_table(asked) if asked else "", arm_table(first),
                  horizon_table(other["equal"]) if other["equal"] else ""]
    parts += ["## Published", (ROOT / "lib" / "published.md").read_text().strip(),
              "## What made these numbers", f"Every run: {setting_of(runs[0])}"]
    if tuning:
        steps = " and ".join(f"{r['steps']:,}" for r in results)
        parts.append(f"A tuned arm's setting was chosen by a grid of {tuning['steps']:,} steps "
                     f"(seed {numbers(tuning['seeds'])}). It is used here at {steps} steps; "
                     "whether the best setting moves with the horizon was not checked. Tuning and "
                     "judging share the validation documents.")
    title = f"{name}: {len(result['arms'])} arms, {len(tables[0])} runs"
    text, made = whole_page(title, notes, parts, runs)
    return text, made | result | {
        "notes": notes, "horizons": results[1:], "equal_seeds": equal,
        "others": {other["name"]: other["results"] for other in found["others"]},
        "runs": [r["name"] for r in runs], "data": runs[0]["header"]["data"],
        "tuned": tuning and tuning["path"]}


def grid_table(table):
    """What `choose` chose: (in words, every point of every arm's grid with its losses)."""
    words = (f"An arm's setting is that of lowest validation loss after {table['steps']:,} steps "
             f"on seed {table['seeds'][0]}, or of lowest mean where points were run again on "
             "another seed.")
    rows = []
    for name, row in table["arms"].items():
        chosen = f"**chosen** of {len(row['grid'])} {describe_edges(row['edges'])}".strip()
        for point in row["grid"]:
            losses = ["diverged" if loss is None else f"{loss:.4f}"
                      for loss in (point["val_loss"], *point["again"].values())]
            values = ["-" if point[key] is None else f"{point[key]:.4g}"
                      for key in (*KEYS, "scale", "r")]
            rows.append([name, *values, ", ".join(losses), chosen * (point == row["best"])])
    columns = ["arm", *KEYS, "scale", "r = embed_lr_mult / scale", "loss (nats), on each seed", ""]
    return words, markdown_table(columns, rows)


SAYS = {"lower": "{:.3f} nats below", "higher": "{:.3f} nats above", "level": "level with",
        "not known": "with no known difference from", "not run": "without a run of"}
YES = {"lower": "No", "level": "No", "higher": "Yes, for the lowest loss among these arms",
       "not known": "Not known"}  # is a trained table needed?


def so_far(c):
    """That a contrast has fewer seeds than were planned, or one alone, in words; else ""."""
    if c["gap"] and c["gap"]["n"] < c["asked"]:
        return f"; so far, {c['gap']['n']} of {c['asked']} seeds"
    return "; one training run each" if c["gap"] and c["gap"]["n"] == 1 else ""


def answers(table, result):
    """For a README: the answer to the title in one line, which the first question decides, with all
    planned contrasts of its arm; then a table of the planned questions."""
    planned, headers = result["planned"], [run["header"] for run in table["run"]]
    if not 0 < len({c["question"] for c in planned}) < 9:
        raise InputError("--answers: contrasts.tsv needs one to eight confirmatory questions")
    asked = [c for c in planned if c["question"] == planned[0]["question"]]
    arm, ends, questions = asked[0]["arm"], {}, {}  # ends: {how it ends: beside which arms}
    for c in planned:
        words = (f"{contrast_name(c)}: {' and '.join(c['verdict'])}, {c['gap']['mean']:+.3f} "
                 + bracket(c["interval"], 3) + so_far(c) if c["gap"] else "not run")
        questions.setdefault(c["question"], []).append(words)
        if arm in (c["arm"], c["base"]):
            verdict = c["verdict"][0]
            if arm == c["base"]:
                verdict = {"lower": "higher", "higher": "lower"}.get(verdict, verdict)
            says = SAYS[verdict].format(abs(c["gap"]["mean"]) if c["gap"] else "")
            ends.setdefault(says, []).append(c["base"] if arm == c["arm"] else c["arm"])
    first, *others = [f"{says} {' and '.join(arms)}" for says, arms in ends.items()]
    decided = all(c["gap"] and c["gap"]["n"] >= c["asked"] for c in asked)
    total = max(header["params"]["total"] for header in headers) / 1e6
    trained = result["arms"].get(arm, {"params": {}})["params"].get("in_use", "unknown")
    answer = (f"**{YES[asked[0]['verdict'][-1]] if decided else 'Not decided'}. With "
              f"{trained or 'no'} trained input parameters, {arm} ends {first}** "
              f"(at most {total:.1f}M parameters, {headers[0]['config']['dataset']}, "
              f"{result['steps']:,} steps, {headers[0]['epochs']:.2g} epochs, seeds "
              f"{numbers(asked[0].get('seeds', []))}{max(map(so_far, asked), key=len)}).")
    if others:
        answer += f" It ends {', '.join(others)}."
    rows = [[question, "<br>".join(words)] for question, words in questions.items()]
    return f"{answer}\n\n{markdown_table(['question', 'gap, 95 % interval'], rows)}\n"


CLASSES = [("none", 0, True), ("at most 50,000", 50_000, True), ("at most 200,000", 200_000, True),
           ("any", math.inf, True), ("any, and no V x d table anywhere", math.inf, False)]


def records(table, result):
    """The best arm of each class, of those with every seed, and its lead over the next one; then
    all these arms and how far each is from the best of the smallest class that it is in."""
    arms = {arm: a for arm, a in result["arms"].items() if set(a["seeds"]) == set(table["seed"])}
    cells = {arm: [arm, f"{a['params']['in_use']:,}", pm(a["loss"])] for arm, a in arms.items()}
    ranked, rows, best = sorted(arms, key=lambda arm: arms[arm]["loss"]["mean"]), [], {}

    def lead(arm, other):
        gap = paired(table, arm, other, result["deviations"])
        return gap["interval"], f"{gap['gap']['mean']:+.4f} {bracket(gap['interval'])}"

    for name, most, tables in CLASSES:
        inside = [arm for arm in ranked if arms[arm]["params"]["in_use"] <= most
                  and (tables or not arms[arm]["has_table"])]
        best |= {arm: inside[0] for arm in inside if arm not in best}
        row = [name, "-", "-", "-", "-", "-"]
        if inside:
            row[1:4] = cells[inside[0]]
        if len(inside) > 1:
            interval, words = lead(*inside[:2])
            row[4:] = inside[1], words + ", shared" * (interval is None or interval[1] >= 0)
        rows.append(row)
    every = [[*cells[arm], "-" if best[arm] == arm else best[arm],
              "-" if best[arm] == arm else lead(arm, best[arm])[1],
              arms[arm]["tried"] or "-"] for arm in ranked]
    return "\n\n".join([
        "# Records", "The rule, and how to make a row: Records in results/README.md.",
        markdown_table(["trained input parameters in use", "record", "of them", "loss (nats)",
                        "next", "its lead (95 %)"], rows),
        "Every arm, and its gap to the record of the smallest class that it is in:",
        markdown_table(["arm", "parameters in use", "loss (nats)", "record", "gap (95 %)",
                        "points tried"], every)]) + "\n"
