"""What the probes share: runs and prompts in, words, neighbours, intervals, a page out."""
import sys
import unicodedata
from pathlib import Path

import numpy as np
import regex  # tiktoken's; it knows Unicode's categories
import scipy
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib.config import ROOT
from lib.errors import InputError
from lib.plots import arm_style
from lib.provenance import describe_machine
from lib.results import order, plain_arm, read_run, read_table, refuse_unmatched
from lib.run_folder import load_checkpoint, load_model
from lib.stats import DRAWS, document_interval
from lib.tables import save_results
from lib.tuning import KEYS, name_runs, read_tuning

PROMPTS = ROOT / "prompts"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---- runs in -----------------------------------------------------------------------------------

def comparable(runs, tuned):
    """Runs in the order of the tables, equal in all but arm and seed, InputError for others. With
    `tuned`, the json of a grid, each at its arm's setting and named as compare.py names it."""
    if tuned:
        given, notes = len(runs), []
        runs = name_runs(runs, read_tuning(tuned), notes)
        if len(runs) < given:
            raise InputError(notes[0])
        print(*notes, sep="\n", file=sys.stderr)
    refuse_unmatched(runs, KEYS if tuned else ())
    return sorted(runs, key=order)


def by_arm(runs, measure):
    """{arm: {seed: measure(run)}}, in the runs' order."""
    found = {}
    for run in runs:
        found.setdefault(run["arm"], {})[run["header"]["config"]["seed"]] = measure(run)
    return found


def read_logs(args):
    """The command's runs as their logs have them, each with its last validated step."""
    runs = [read_run(path) for path in dict.fromkeys(args.runs)]
    for run in runs:
        if not run["vals"]:
            raise InputError(f"{run['name']}: its log has no validation yet")
        run["step"] = run["vals"][-1]["step"]
    return comparable(runs, args.tuned)


def measure_models(args, rows, measure):
    """Call `measure(model, tokenizer, row, head)` -> {key: value} for each row and each run of the
    command -> (the runs, {arm: {seed: {key: values of all rows}}}). `head`: what the model's
    `head_rows` gave. InputError, before any work, for runs that cannot be compared."""
    runs = []
    for path in dict.fromkeys(args.runs):
        checkpoint = load_checkpoint(path)
        config = checkpoint["config"]
        header = {"arm": config.pop("arm"), "data": config.pop("data", None), "config": config}
        runs.append({"name": str(path), "arm": plain_arm(header["arm"]), "header": header,
                     "step": checkpoint["step"], "steps": []})
    runs = comparable(runs, args.tuned)
    with torch.no_grad(), tqdm(desc=f"{len(runs)} runs", total=len(runs) * len(rows)) as bar:
        def measured(run):
            model, tok, _ = load_model(run["name"], DEVICE)
            found, head = [], model.head_rows()
            for row in rows:
                found.append(measure(model, tok, row, head))
                bar.update()
            return {key: [values[key] for values in found] for key in found[0]}
        return runs, by_arm(runs, measured)


def hidden(model, ids, prompt):
    """The final hidden states of a prompt's ids, (T,) -> (T, d). InputError if it is too long."""
    if len(ids) > model.config.block_size:
        raise InputError(f"a prompt has {len(ids):,} tokens, the context is "
                         f"{model.config.block_size:,}: {prompt[:50]!r}...")
    return model.hidden(torch.tensor([ids], device=model.device))[0]


def paired(a, b, key):
    """The difference of two arms' {seed: results} in a key over common seeds, (seeds, prompts)."""
    return np.array([np.subtract(a[seed][key], b[seed][key]) for seed in sorted(a.keys() & b)])


# ---- prompts in --------------------------------------------------------------------------------

def read_rows(path, columns, template=None, count=1):
    """As `read_table`, with {} `count` times in the column `template`."""
    rows = read_table(path, columns)
    for i, row in enumerate(rows, 1):
        if template and row[template].count("{}") != count:
            raise InputError(f"{path}, row {i}: the {template} needs exactly {count} {{}}")
    return rows


# ---- words and their neighbours ----------------------------------------------------------------

def normal(text):
    """Without case, and with composed characters (NFC)."""
    return unicodedata.normalize("NFC", text.casefold())


def canonical(text):
    """What typographic variants share: letters, digits and their marks, without case."""
    return regex.sub(r"[^\p{L}\p{N}\p{M}]", "", normal(text))


def edit_distance(a, b):
    """Levenshtein's: how many insertions, deletions and substitutions turn a into b."""
    row = range(len(b) + 1)
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def nearest(queries, own, rows, candidates, k, mean=0.0):
    """The k candidates nearest to each query by cosine once `mean` is taken off, its own id left
    out, the lower id first among equals: [[(id, cosine), ...], ...].

    queries (n, d); own: n ids, -1 for none; rows: a function, ids (m,) -> (m, d); candidates (m,).
    """
    q = F.normalize(queries - mean, dim=-1)
    parts = [q @ F.normalize(rows(part) - mean, dim=-1).T for part in candidates.split(4096)]
    cosine, best = torch.cat(parts, 1).sort(dim=1, descending=True, stable=True)  # (n, m)
    found = zip(own, candidates[best[:, :k + 1]].tolist(), cosine[:, :k + 1].tolist())
    return [[pair for pair in zip(ids, values) if pair[0] != id][:k] for id, ids, values in found]


# ---- intervals over seeds and prompts ----------------------------------------------------------

def crossed_interval(values):
    """95 % interval of a mean over seeds and prompts, (S, N) numbers, [low, high]: prompts
    resampled and stretched to Student's interval of N numbers, seeds as in `document_interval`."""
    seeds, prompts = values.shape
    drawn = np.random.RandomState(0).randint(0, prompts, (DRAWS, prompts))
    draws = values.mean(0)[drawn].mean(1)
    if prompts > 1:
        stretch = scipy.stats.t.ppf(0.975, prompts - 1) / scipy.stats.norm.ppf(0.975)
        stretch *= (prompts / (prompts - 1))**0.5
        draws = values.mean() + stretch * (draws - values.mean())
    error = scipy.stats.sem(values.mean(1)) if seeds > 1 else 0.0
    return document_interval(draws, error, seeds - 1)[0]


def share_interval(shares, enough=5):
    """95 % interval of a share of hits, (S, N) of S seeds and N prompts: `crossed_interval` within
    [0, 1]. Where fewer than `enough` prompts have a hit, or a miss, each prompt counts as one trial
    of Wilson's interval (1927): nothing in 20 prompts is [0, 0.16]."""
    by_prompt = shares.mean(0)
    if min((by_prompt > 0).sum(), (by_prompt < 1).sum()) < enough:
        trials = scipy.stats.binomtest(round(by_prompt.sum()), len(by_prompt))
        return list(map(float, trials.proportion_ci(method="wilson")))
    low, high = crossed_interval(shares)
    return [max(0.0, low), min(1.0, high)]


# ---- a page out --------------------------------------------------------------------------------

def interval(middle, ends, sign="", digits=1, scale=1):
    """A number and its interval (low, high), times `scale`, as text."""
    middle, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (middle, *ends))
    return f"{middle} [{low}, {high}]"


def draw_points(ax, arms, labels, joined=False):
    """Points with bars at each label, {arm: [(middle, low, high) or None, ...]}, the arms side by
    side; `joined` by each arm's line."""
    for i, (arm, points) in enumerate(arms.items()):
        there = [(x, *point) for x, point in enumerate(points) if point]
        if there:
            x, middle, low, high = np.array(there).T
            x += (i - (len(arms) - 1) / 2) * 0.07
            bars = np.maximum([middle - low, high - middle], 0)
            style = arm_style(arm) | ({} if joined else {"ls": ""})
            ax.errorbar(x, middle, bars, capsize=2, lw=1.3, ms=6, label=arm, **style)
    ax.set_xticks(range(len(labels)), labels)


def save(args, text, result, figure, runs=()):
    """Print a list of texts; write OUT.md, OUT.json and, if there is a figure, OUT.png."""
    made, name = describe_machine(DEVICE, 1), Path(args.out).name
    if runs:
        names = ", ".join(f"{Path(run['name']).name} (step {run['step']:,})" for run in runs)
        text = [*text, f"Runs: {names}."]
        result = {"runs": [{"run": run["name"], "arm": run["arm"], "step": run["step"],
                            "seed": run["header"]["config"]["seed"]} for run in runs]} | result
    print(*text, sep="\n\n")
    picture = [f"![{args.probe}]({name}.png)"] if figure else []
    page = [f"# {name}", *picture, *text,
            f"Made by `{made['command']}` on {made['date']}, {made['hardware']}, Python "
            f"{made['python']}, torch {made['torch']}, commit {made['commit']}."]
    save_results(args.out, "\n\n".join(page) + "\n", {"probe": args.probe} | made | result, figure)
