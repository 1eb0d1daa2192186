"""Tables in Markdown, and the files of a result."""
import json
import os
import re
from pathlib import Path

from lib.errors import InputError, write_atomic


def markdown_table(head, rows):
    """Rows of cells -> a GitHub table, padded so that it reads well in a terminal too."""
    table = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def pm(s, digits=4, sign=""):
    """A summary as text: mean ± sd, or the mean alone for one seed, or - for none."""
    if s is None:
        return "-"
    mean = f"{s['mean']:{sign},.{digits}f}"
    return mean if s["sd"] is None else f"{mean} ± {s['sd']:,.{digits}f}"


def bracket(interval, digits=4):
    """An interval (low, high) as text, - for None."""
    return "[{:+.{n}f}, {:+.{n}f}]".format(*interval, n=digits) if interval else "-"


contrast_name = "{arm} - {base}".format_map  # of a contrast, a dict


def numbers(seeds):
    """Seeds as text."""
    return ", ".join(map(str, sorted(seeds))) or "none"


def arm_table(result):
    """What each arm is and reaches."""
    rows = []
    for arm, a in result["arms"].items():
        counts = [f"{a['params'][key]:,}" if key in a["params"] else "-"
                  for key in ("input", "in_use", "head", "total")]
        rows.append([
            arm, numbers(a["seeds"]), *counts, pm(a["loss"]), pm(a["ppl"], 2), pm(a["bpb"]),
            a["setting"], (a["tuned"] or "no") + (f", best of {a['tried']}" if a["tried"] else ""),
            "{:.3g} -> {:.3g}".format(*a["rms"]),
            "-" if a["update_ratio"] is None else f"{a['update_ratio']:.2g}"])
    columns = ["arm", "seeds", "input params", "in use", "head", "total", "loss (nats)",
               "perplexity", "bits/byte", "setting", "tuned", "rms(e)", "update ratio"]
    return markdown_table(columns, rows)


def gap_table(pairs):
    """Pairs of arms, with every column in which one of them has something."""
    rows = []
    for c in pairs:
        p = c.get("p_holm")
        rows.append({
            "question": c["question"] or "-", "contrast": contrast_name(c),
            "verdict": ", ".join(c["verdict"]), "gap (nats)": pm(c["gap"], 4, "+"),
            "95 % interval": bracket(c["interval"]), "seeds": numbers(c["seeds"]),
            "p (Holm)": "-" if p is None else f"{p:.2g}" if p >= 1e-5 else "< 0.00001",
            "rests on": c["rests_on"] or "-", "own seeds (Student)": bracket(c["gap"]["interval"]),
            "documents x seeds": bracket(c["documents"]), "gap (%)": pm(c["percent"], 2, "+"),
            "steps-to-match": pm(c["steps_to_match"], 2) + "x"})
    one = len({row["question"] for row in rows}) == 1
    columns = [name for name in rows[0] if any(row[name] != "-" for row in rows)
               and not (one and name == "question")]
    return markdown_table(columns, [[row[name] for name in columns] for row in rows])


def horizon_table(equal):
    """The gap of each of some contrasts at each number of steps."""
    horizons, rows = dict.fromkeys(sorted({c["steps"] for c in equal}), "-"), {}
    for c in equal:
        row = rows.setdefault((contrast_name(c), numbers(c["seeds"])), dict(horizons))
        row[c["steps"]] = f"{c['gap']['mean']:+.4f} {bracket(c['interval'])}"
    return markdown_table(["contrast", "seeds", *(f"{steps:,} steps" for steps in horizons)],
                          [[*names, *row.values()] for names, row in rows.items()])


def save_results(out, page, result, figure):
    """Write OUT.md (a text), OUT.json (a dict, six digits) and OUT.png; with no `figure` no picture
    stays from before."""
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    # what holds no further list or dict stands on one line
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: " ".join(found[0].split()),
                  json.dumps(rounded, indent=1))
    for ending, content in ((".md", page), (".json", text + "\n")):
        write_atomic(out + ending, lambda file: file.write(content.encode()))
    if figure:
        write_atomic(f"{out}.png", lambda file: figure.savefig(file, format="png", dpi="figure"))
    else:
        Path(f"{out}.png").unlink(missing_ok=True)
    print(f"\nwrote {out}.md, {out}.json" + (f", {out}.png" if figure else ""))


def refuse_folder(out):
    """InputError if what is to be written is a folder, unless runs are in it: their page stands
    beside it; or if it lies below a file."""
    if not os.path.basename(out) or (os.path.isdir(out) and not any(Path(out).glob("*/log.jsonl"))):
        raise InputError(f"{out} is a folder; give a name in it, like results/mine")
    if file := next((path for path in Path(out).parents if path.is_file()), None):
        raise InputError(f"{out}: {file} is a file, not a folder")
