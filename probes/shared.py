"""What the probes share: runs and prompt files in, words, neighbours, a page out."""
import csv
import json
import os
import re
import sys
import unicodedata
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib.run_folder import load_checkpoint, load_model
from lib.errors import InputError
from lib.config import ROOT
from lib.provenance import describe_machine
from lib.results import arm_of, order, refuse_unmatched
from lib.tables import save_results
from lib.tuning import KEYS, name_runs, read_tuning

PROMPTS = ROOT / "prompts"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---- runs and tables in ------------------------------------------------------------------------

def comparable(runs, tuned):
    """Runs that may stand side by side, in the order of the tables: equal in all but arm and seed.
    With `tuned`, the json of a grid, each at its arm's setting and named as compare.py names it.
    InputError for others."""
    if tuned:
        given, notes = runs, []
        runs = name_runs(given, read_tuning(tuned), notes)
        if len(runs) < len(given):
            raise InputError(next(note for note in notes if note.startswith("left out")))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    refuse_unmatched(runs, KEYS if tuned else ())
    return sorted(runs, key=order)


def about(runs):
    """What a results file says of each run."""
    return [{"run": run["name"], "arm": arm_of(run),
             "seed": run["header"]["config"]["seed"], "step": run["step"]} for run in runs]


def measure_runs(paths, tuned, steps, measure):
    """Call `measure(model, tokenizer, tick)` on every run -> ({arm: {seed: its result}}, about the
    runs), sorted by arm and seed. `tuned`: see `comparable`.

    `measure` calls `tick()` after each of its `steps` steps. InputError, before any work, for what
    is no checkpoint of a run and for runs that cannot be compared.
    """
    runs, found = [], {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        config = checkpoint["config"]
        if not isinstance(config, dict) or not {"arm", "seed"} <= config.keys():
            raise InputError(f"{path}: its config names no arm and seed, not a checkpoint of a run")
        config = {key: value for key, value in config.items() if key != "world_size"}
        header = {"arm": config.pop("arm"), "data": config.pop("data", None), "config": config}
        runs.append({"name": str(path), "step": checkpoint["step"], "steps": [], "header": header})
    runs = comparable(runs, tuned)
    with torch.no_grad(), tqdm(desc=f"{len(runs)} runs", total=len(runs) * steps) as bar:
        for run in runs:
            model, tok, _ = load_model(run["name"], DEVICE)
            by_seed = found.setdefault(arm_of(run), {})
            by_seed[run["header"]["config"]["seed"]] = measure(model, tok, bar.update)
    return found, about(runs)


def read_rows(path, columns):
    """A TSV file with a head (tabs, newlines and quotes in a cell are csv's) or JSON lines -> list
    of dicts, each with text in every one of `columns`. InputError if it is not that."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if str(path).endswith(".jsonl"):
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file, delimiter="\t", strict=True))
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    return check_rows(path, rows, columns)


def check_rows(path, rows, columns):
    """The rows, if there are any and each has text in every column; else InputError."""
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    for i, row in enumerate(rows, 1):
        for column in columns:
            cell = row.get(column) if isinstance(row, dict) else None
            if not isinstance(cell, str) or not cell:
                raise InputError(f"{path}, row {i}: no text in column '{column}' "
                                 f"(needed: {', '.join(columns)})")
        if None in row:  # where csv puts cells beyond the head
            raise InputError(f"{path}, row {i}: more cells than columns; a tab inside a cell needs "
                             "quotes around the cell")
    return rows


def read_families(path):
    """{family: (root, its words)} from a table of family, root and word."""
    families = {}
    for row in read_rows(path, ["family", "root", "word"]):
        families.setdefault(row["family"], (row["root"], []))[1].append(row["word"])
    return families


# ---- words -------------------------------------------------------------------------------------

def normal(text):
    """A text as it is compared: case ignored, characters composed (NFC)."""
    return unicodedata.normalize("NFC", text.casefold())


def is_mark(c):
    """Whether a character is a vowel sign, an accent or the like, of the one before it (Unicode's
    category M)."""
    return unicodedata.category(c)[0] == "M"


def canonical(text):
    """The form that typographic variants share: letters, digits and their marks, without leading
    space markers, punctuation, joiners and case. Maybe empty."""
    return "".join(c for c in normal(text) if c.isalnum() or is_mark(c))


def words(text):
    """Where the words of a text are: [(start, end)]. Letters and digits with their marks; hyphen
    and apostrophe inside."""
    joiners = "\u200c\u200d"  # which Indic scripts have inside words
    plain = "".join("x" if is_mark(c) or c in joiners else c for c in text)  # re knows no marks
    return [match.span() for match in re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*", plain)]


def edit_distance(a, b):
    """Levenshtein distance: the fewest insertions, deletions and substitutions of one character
    that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
            diagonal, row[j] = row[j], best
    return row[-1]


# ---- neighbours --------------------------------------------------------------------------------

def nearest(queries, own, rows, candidates, k, mean=0.0):
    """The candidates nearest to each query by cosine once `mean` is taken off, the lower id first
    among equals.

    queries (n, d); own: the id of each query, -1 for none; rows: a function, ids (m,) -> (m, d);
    candidates: ids (m,). Returns for each the k nearest other than its own, [(id, cosine), ...],
    and whether its own was the very nearest.
    """
    q = F.normalize(queries - mean, dim=-1)
    parts = [q @ F.normalize(rows(part) - mean, dim=-1).T for part in candidates.split(4096)]
    cosine = torch.cat(parts, 1)  # (n, m)
    best = cosine.argsort(dim=1, descending=True, stable=True)[:, :k + 1]
    near, itself = [], []
    for id, ids, values in zip(own, candidates[best].tolist(), cosine.gather(1, best).tolist()):
        near.append([pair for pair in zip(ids, values) if pair[0] != id][:k])
        itself.append(ids[0] == id)
    return near, itself


# ---- a page out --------------------------------------------------------------------------------

def interval(middle, low, high, sign="", digits=1):
    """A number and its interval as text."""
    form = f"{sign}.{digits}f"
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def save(args, text, result, figure):
    """Print the tables, a list of texts; write OUT.md, OUT.json and, if there is a figure, OUT.png
    with the command, commit, hardware and date that made them."""
    made, name = describe_machine(DEVICE, 1), os.path.basename(args.out)
    if result.get("runs"):
        names = [f"{Path(run['run']).name} (step {run['step']:,})" for run in result["runs"]]
        text.append(f"Runs: {', '.join(names)}.")
    print(*text, sep="\n\n")
    picture = [f"![{args.probe}]({name}.png)"] if figure else []
    page = [f"# {name}", *picture, *text,
            f"Made by `{made['command']}` on {made['date']}, {made['hardware']}, Python "
            f"{made['python']}, torch {made['torch']}, commit {made['commit']}."]
    save_results(args.out, "\n\n".join(page) + "\n", {"probe": args.probe} | made | result, figure)
