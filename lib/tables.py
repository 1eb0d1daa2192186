"""Tables and pages in Markdown, and the files of a result."""
import json
import os
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from lib.errors import InputError, write_atomic

# ---- tables out --------------------------------------------------------------------------------

def bullets(notes):
    """What a page's reader must know first, as a list of at most one paragraph."""
    return ["Read this first:\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []


def markdown_table(head, rows):
    """Rows of cells -> a GitHub table, padded so that it reads well in a terminal too."""
    table = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in table]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def pm(s, digits=4, sign=""):
    """A summary as text: mean ± sd, or the mean alone for one seed, or - for none."""
    if s is None:
        return "-"
    mean = f"{s['mean']:{sign},.{digits}f}"
    return mean if s["sd"] is None else f"{mean} ± {s['sd']:,.{digits}f}"


def bracket(interval, digits=4):
    """An interval (low, high) as text, - for None."""
    if interval is None:
        return "-"
    low, high = interval
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def rounded(x):
    """Nested dicts and lists with every float to six significant digits."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    return float(f"{x:.6g}") if isinstance(x, float) else x


def compact(text):
    """JSON text with every innermost list and dict on one line, if it fits in 100 columns."""
    def one_line(found):
        line = " ".join(found[0].split())
        return line if len(line) <= 90 else found[0]
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", one_line, text)


def save_results(out, page, result, figure):
    """Write OUT.md (a text), OUT.json (a dict) and OUT.png, making the folder if need be; where
    there is nothing to draw, `figure` None, no picture stays from before."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    if figure:
        write_atomic(f"{out}.png", lambda file: figure.savefig(file, format="png", dpi=110))
    else:
        Path(f"{out}.png").unlink(missing_ok=True)
    write_atomic(f"{out}.md", lambda file: file.write(page.encode()))
    text = compact(json.dumps(rounded(result), indent=1)) + "\n"
    write_atomic(f"{out}.json", lambda file: file.write(text.encode()))
    print(f"\nwrote {out}.md, {out}.json" + (f", {out}.png" if figure else ""))


def stamp(runs):
    """What made a results file: the command, the date, the runs' commits and hardware."""
    headers = [run["header"] for run in runs]
    return {"command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": sorted({header.get("commit", "unknown") for header in headers}),
            "hardware": sorted({header.get("hardware", "unknown") for header in headers})}


def refuse_folder(out):
    """InputError if --out is a folder or empty: it is a name without ending. A folder of runs is
    one that its page stands beside: results/tiny.md and results/tiny/."""
    if not os.path.basename(out) or (os.path.isdir(out) and not any(Path(out).glob("*/log.jsonl"))):
        raise InputError(f"--out={out} is a folder; give a name without ending, like results/mine")
