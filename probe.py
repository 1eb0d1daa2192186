"""What the papers measured besides the loss, on any checkpoint of this project.

    python probe.py robustness out/tiny-kron-s* out/tiny-bpe_tied-s*   # does a misspelled word change the prediction?
    python probe.py robustness --published=FILE.json                   # the same tables from the published package's results
    python probe.py generation out/tiny-kron-s1 out/tiny-bpe_tied-s1   # are misspelled and made-up words said again?
    python probe.py layers out/tiny-*                                  # which tokens are near a word, at the input and above?
    python probe.py geometry --model=HuggingFaceTB/SmolLM-135M         # which in Kronecker space, which in trained tables?
    python probe.py norms out/tiny-*                                   # how far does the input drift in training?

Seeds of an arm are averaged; runs that differ in anything but arm and seed are refused. Each probe prints its tables and writes
results/probe-NAME.md, .json and .png (or --out=results/OTHER). Prompts and word families are small TSV files in prompts/.
"""
import csv
import difflib
import http.client
import itertools
import json
import math
import os
import re
import struct
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

from lib import tokenizer
from codes import KroneckerEmbedding
from lib.common import InputError, Parser, run, whole_number, write_atomic
from lib.checkpoint import load_checkpoint, load_model
from lib.machine import describe_machine
from lib.report import is_number, markdown_table, pm, read_run, refuse_unmatched
from sample import prompt_ids, side_by_side

PROMPTS = Path(__file__).resolve().parent / "prompts"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ARMS = ["bpe_tied", "bpe_untied", "bpe_untied_unit", "bpe_untied_lr", "binary", "affine", "random", "kron"]  # the tables' order
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#B8A800", "#0072B2", "#CC79A7", "#D55E00"]  # safe for the colour-blind,
MARKERS = "osD^vP*X"                                                                                # and told apart in grey
PUBLISHED = {  # arXiv 2605.29459: GPT-2 124M where nothing else is said
    "robustness": [["published: BPE, tied", 3, "47.3", "0.859", "0.857", "-"],
                   ["published: Kronecker", 3, "55.5", "0.794", "0.879", "-"]],
    "generation": "no rate; the claim is that Kronecker says novel strings and typos again where BPE forgets them.",
    "layers": {("E_raw", "bpe_tied"): "0.90 / 0.30 / 0.28", ("E_raw", "kron"): "0.97 / 0.24 / 0.22",
               ("L1", "bpe_tied"): "0.94 / 0.17 / 0.16", ("L1", "kron"): "0.97 / 0.26 / 0.23"},
    "geometry": "in models of 135M to 671B parameters the five nearest are often typographic variants in trained tables, seldom "
                "in Kronecker space. What follows from its definition: cosines of about k / sqrt(m n); 72 GPT-2 tokens have more "
                "than 16 bytes, 14 more than 32; 44 (P = 16) and 17 (P = 32) share their code.",
    "norms": "the learned table's mean row norm drifts in training, the projection's stays near 1.0."}


# ---- runs and tables in, files out -------------------------------------------------------------------------

def order(run):
    """Sort key of a run: arms in the papers' order, others after them, then seeds."""
    arm = run["header"]["arm"]
    return ARMS.index(arm) if arm in ARMS else len(ARMS), arm, run["header"]["config"]["seed"]


def about(runs):
    """What a results file says of each run."""
    return [{"run": r["name"], "arm": r["header"]["arm"], "seed": r["header"]["config"]["seed"], "step": r["step"]} for r in runs]


def measure_runs(paths, steps, measure):
    """Call `measure(model, tokenizer, tick)` on every run -> ({arm: {seed: its result}}, about the runs), sorted by arm and seed.

    `measure` calls `tick()` after each of its `steps` steps. InputError, before any work, for what is no checkpoint of a run and
    for runs that cannot be compared.
    """
    runs, found = [], {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint["config"], dict) or not {"arm", "seed"} <= checkpoint["config"].keys():
            raise InputError(f"{path}: its config names no arm and seed, not a checkpoint of a run")
        config = {k: v for k, v in checkpoint["config"].items() if k != "world_size"}
        header = {"arm": config.pop("arm"), "data": config.pop("data", None), "config": config}
        runs.append({"name": str(path), "step": checkpoint["step"], "steps": [], "header": header})
    refuse_unmatched(runs)
    runs.sort(key=order)
    with torch.no_grad(), tqdm(desc=f"{len(runs)} runs", total=len(runs) * steps) as bar:
        for r in runs:
            model, tok, _ = load_model(r["name"], DEVICE)
            found.setdefault(r["header"]["arm"], {})[r["header"]["config"]["seed"]] = measure(model, tok, bar.update)
    return found, about(runs)


def read_rows(path, columns):
    """A TSV file with a head (tabs, newlines and quotes in a cell are csv's) or JSON lines -> list of dicts, checked."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if str(path).endswith(".jsonl"):
                return check_rows(path, [json.loads(line) for line in file if line.strip()], columns)
            return check_rows(path, list(csv.DictReader(file, delimiter="\t", strict=True)), columns)
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def check_rows(path, rows, columns):
    """The rows, if there are any and each has text in every column and a known category; else InputError."""
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    for i, row in enumerate(rows, 1):
        for column in columns:
            if not isinstance(row, dict) or not isinstance(row.get(column), str) or not row[column]:
                raise InputError(f"{path}, row {i}: no text in column '{column}' (needed: {', '.join(columns)})")
        if None in row:  # where csv puts cells beyond the head
            raise InputError(f"{path}, row {i}: more cells than columns; a tab inside a cell needs quotes around the cell")
        if "category" in columns and row["category"] not in CATEGORIES:
            near = difflib.get_close_matches(row["category"], CATEGORIES, 1) or CATEGORIES
            raise InputError(f"{path}, row {i}: unknown category '{row['category']}' (known: {', '.join(near)})")
    return rows


def save(args, text, result, figure):
    """Print the tables; write OUT.md, OUT.json and OUT.png with the command, commit, hardware and date that made them."""
    made, name = describe_machine(DEVICE, 1), os.path.basename(args.out)
    if isinstance(PUBLISHED[args.probe], str):  # else it stands in the tables
        text.append(f"Published (2605.29459): {PUBLISHED[args.probe]}")
    if result.get("runs"):
        text.append("Runs: " + ", ".join(f"{Path(r['run']).name} (step {r['step']:,})" for r in result["runs"]) + ".")
    page = [f"# {name}", f"![{args.probe}]({name}.png)", *text, f"Made by `{made['command']}` on {made['date']}, "
            f"{made['hardware']}, Python {made['python']}, torch {made['torch']}, commit {made['commit']}."]
    result = {"probe": args.probe} | made | result
    print(*text, sep="\n\n")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(f"{args.out}.png", lambda file: figure.savefig(file, format="png", dpi=110))
    write_atomic(f"{args.out}.md", lambda file: file.write(("\n\n".join(page) + "\n").encode()))
    write_atomic(f"{args.out}.json", lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
    print(f"\nwrote {args.out}.md, {args.out}.json, {args.out}.png")


def spread(values):
    """One value per seed (n,) -> {"mean", "sd", "per_seed"}; the sample standard deviation is None for one seed."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "per_seed": [float(x) for x in values]}


def interval(middle, low, high, sign=""):
    """A number and its interval as text."""
    return f"{middle:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def panels(count, width):
    """A figure with `count` axes side by side."""
    figure = Figure(figsize=(width * count, 4.4), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    return figure, axes


def draw(ax, name, i, x, middle, low, high, line="-"):
    """One arm's values (n,) with bars from low to high; its colour and marker are the same in every picture."""
    i = ARMS.index(name) if name in ARMS else i
    bars = [np.maximum(np.subtract(middle, low), 0), np.maximum(np.subtract(high, middle), 0)]
    ax.errorbar(x, middle, bars, ls=line, capsize=2, lw=1.3, ms=6, label=name, color=COLOURS[i % 8], marker=MARKERS[i % 8])


# ---- robustness --------------------------------------------------------------------------------------------

CATEGORIES = ["geography", "math", "time", "colors", "idiom", "body", "animals", "counting", "syntax", "misc", "people"]
COLUMNS = ["category", "clean", "typo"]
METRICS = {"top1_matches": "share of top-1 kept", "kl_clean_to_typo": "KL (nats)", "cosine_hidden": "cosine",
           "logprob_drop": "drop (nats)"}


def read_pairs(path):
    """Prompt pairs, {category, clean, typo} each, from a TSV, from JSON lines or from a results JSON (see `read_published`)."""
    rows = read_published(path)["bpe"][0] if str(path).endswith(".json") else read_rows(path, COLUMNS)
    return [{c: row[c] for c in COLUMNS} for row in rows]


def read_published(path):
    """A results JSON, {"bpe": {"per_prompt": [...]}, "kron": ...} -> {arm: {0: per_prompt}}. InputError if it is not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {arm: check_rows(path, data[arm]["per_prompt"], COLUMNS) for arm in ("bpe", "kron")}
        for rows in found.values():
            rows.sort(key=lambda row: [row[c] for c in COLUMNS])
            if not all(is_number(float(row[metric])) for row in rows for metric in METRICS):
                raise ValueError("a measurement is not finite")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not results with bpe and kron, per_prompt each ({type(error).__name__}: {error})") from None
    if len({json.dumps([[row[c] for c in COLUMNS] for row in rows]) for rows in found.values()}) > 1:
        raise InputError(f"{path}: bpe and kron were not measured on the same pairs")
    return {arm: {0: rows} for arm, rows in found.items()}


def last_state(model, tok, prompt):
    """A prompt's last position: (logits (V,) over the real vocabulary, hidden state after the last norm (d,)), float64."""
    ids = torch.tensor([tok.encode(prompt)], device=DEVICE)
    if ids.size(1) > model.config.block_size:
        raise InputError(f"a prompt has {ids.size(1):,} tokens, the context is {model.config.block_size:,}: {prompt[:50]!r}...")
    h = model.hidden(ids)[0, -1]
    return model.lm_head(h)[:model.config.vocab_size].double(), h.double()


def compare_states(clean, typo):
    """Two `last_state`s -> one pair's measurements, named as in the published package. 2605.29459.

    With p and q the probabilities after the clean prompt and after the typo, t = argmax p and h, g the hidden states:
    kl_clean_to_typo = sum_v p(v) (log p(v) - log q(v)) and logprob_drop = log p(t) - log q(t), both in nats;
    cosine_hidden = cos(h, g); top1_matches: argmax q = t.
    """
    (p, h), (q, g) = clean, typo
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    top = p.argmax()
    return {"top1_matches": bool(q.argmax() == top), "kl_clean_to_typo": (p.exp() * (p - q)).sum().item(),
            "cosine_hidden": F.cosine_similarity(h, g, dim=0).item(), "logprob_drop": (p[top] - q[top]).item()}


def bootstrap(differences, draws=10_000):
    """95 % percentile interval of the mean of paired differences (n,): the pairs drawn anew with a fixed seed. (low, high)."""
    drawn = np.random.RandomState(0).randint(0, len(differences), (draws, len(differences)))
    return np.quantile(np.asarray(differences)[drawn].mean(1), [0.025, 0.975]).tolist()


def aggregate(results):
    """{arm: {seed: per_prompt}}, all on the same pairs in the same order -> the tables' numbers.

    "arms": per arm, group ("overall" and each category) and metric the mean with its spread over seeds, and the seeds' mean of
    medians. "contrasts": per two arms the difference a - b in the share of top-1 kept with a bootstrap interval over the pairs
    (each averaged over seeds first), and who wins each category: more top-1 kept, else the lower mean KL, else nobody (None).
    """
    category = np.array([row["category"] for row in next(iter(next(iter(results.values())).values()))])
    groups = {"overall": category == category} | {c: category == c for c in CATEGORIES if c in category}
    values = {arm: {m: np.array([[row[m] for row in rows] for rows in seeds.values()], float) for m in METRICS}
              for arm, seeds in results.items()}  # (seeds, pairs) each

    arms = {arm: {g: {m: spread(x[:, mask].mean(1)) | {"median": float(np.median(x[:, mask], 1).mean())} for m, x in v.items()}
                  for g, mask in groups.items()} for arm, v in values.items()}
    contrasts = []
    for a, b in itertools.combinations(arms, 2):
        difference = values[a]["top1_matches"].mean(0) - values[b]["top1_matches"].mean(0)  # (pairs,)
        winners = {}
        for c in list(groups)[1:]:
            scores = [(arms[x][c]["top1_matches"]["mean"], -arms[x][c]["kl_clean_to_typo"]["mean"]) for x in (a, b)]
            winners[c] = a if scores[0] > scores[1] else b if scores[1] > scores[0] else None
        contrasts.append({"a": a, "b": b, "difference": difference.mean(), "interval": bootstrap(difference), "winners": winners})
    return {"pairs": len(category), "arms": arms, "contrasts": contrasts}


def robustness(args):
    """Does one misspelled word change the prediction? Top-1 kept, KL and cosines, clean against misspelled prompts."""
    if bool(args.runs) == bool(args.published):
        raise InputError("robustness needs runs, or --published=FILE.json, and not both")
    if args.published:
        results, runs = read_published(args.published), []
    else:
        pairs = read_pairs(args.pairs)

        def measure(model, tok, tick):
            records = []
            for pair in pairs:
                states = last_state(model, tok, pair["clean"]), last_state(model, tok, pair["typo"])
                records.append(pair | compare_states(*states))
                tick()
            return records
        results, runs = measure_runs(args.runs, len(pairs), measure)
    found = aggregate(results)
    arms, metrics = found["arms"], list(METRICS)[1:]

    def percent(x):
        return pm({"mean": 100 * x["mean"], "sd": x["sd"] and 100 * x["sd"]}, 1)

    def cell(x, digits):
        return f"{pm(x, digits)} ({x['median']:.{digits}f})"
    rows = [[arm, len(a["overall"]["cosine_hidden"]["per_seed"]), percent(a["overall"]["top1_matches"]),
             *(cell(a["overall"][m], 3) for m in metrics)] for arm, a in arms.items()]
    text = [f"{found['pairs']} pairs of a clean and a misspelled prompt; mean ± sd over seeds (median over pairs):",
            markdown_table(["arm", "seeds", "top-1 kept (%)", *(METRICS[m] for m in metrics)], rows + PUBLISHED["robustness"])]
    rows = [[g, *(f"{percent(a[g]['top1_matches'])} %, {cell(a[g]['kl_clean_to_typo'], 2)}" for a in arms.values())]
            for g in next(iter(arms.values()))]
    text += ["Per category: top-1 kept, mean KL in nats (median):", markdown_table(["category", *arms], rows)]
    if len(arms) > 1:
        rows = [[f"{c['a']} - {c['b']}", interval(100 * c["difference"], *np.multiply(100, c["interval"]), "+"),
                 *(", ".join(k for k, w in c["winners"].items() if w == c[x]) or "-" for x in "ab")] for c in found["contrasts"]]
        text += ["Two by two: difference in top-1 kept (points) with a 95 % bootstrap interval over the pairs, and the "
                 "categories that each wins (more top-1 kept, else lower KL):",
                 markdown_table(["a - b", "difference", "a wins", "b wins"], rows)]
    figure, axes = panels(3, 5)
    for ax, (metric, label) in zip(axes, METRICS.items()):
        for i, (arm, a) in enumerate(arms.items()):
            values = a["overall"][metric]["per_seed"]
            draw(ax, arm, i, [i], [np.mean(values)], [min(values)], [max(values)], "")
        ax.set(xticks=range(len(arms)), ylabel=f"mean {label}")
        ax.set_xticklabels(arms, rotation=35, ha="right")
    axes[1].set_title(f"One misspelled word, {found['pairs']} prompt pairs (bars: range over seeds)")
    save(args, text, {"runs": runs} | found | {"per_prompt": results}, figure)


# ---- generation --------------------------------------------------------------------------------------------

SAMPLER = {"max_new_tokens": 30, "temperature": 0.7, "top_p": 0.9}  # 2605.29459
KINDS = ["normal", "typo", "novel", "typo in one slot", "novel in one slot"]


def edit_distance(a, b):
    """Levenshtein distance: the fewest insertions, deletions and substitutions of one character that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def find_echoes(text, word):
    """Where a text says a word again: [(start, end, edits)], edits 0 (exactly) or 1 (one edit). Whole words, case ignored."""
    found = []
    for match in re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*", text):
        if abs(len(match[0]) - len(word)) <= 1 < len(word):
            edits = edit_distance(match[0].casefold(), word.casefold())
            found += [(match.start(), match.end(), edits)] if edits <= 1 else []
    return found


def wilson(hits, trials):
    """95 % interval of a binomial proportion: Wilson's score interval (1927). (low, high)."""
    z, p = 1.959964, hits / trials
    centre, half = p + z * z / (2 * trials), z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return max(0.0, (centre - half) / (1 + z * z / trials)), min(1.0, (centre + half) / (1 + z * z / trials))


def continuations(model, tok, ids, samples):
    """Continue ids (1, T) `samples` times with the paper's sampler and seed -> list of str, each up to <|endoftext|>."""
    generator = torch.Generator(DEVICE).manual_seed(42)
    rows = torch.stack(list(model.generate(ids.repeat(samples, 1), generator=generator, **SAMPLER)), 1).tolist()  # (samples, 30)
    return [tok.decode(list(itertools.takewhile(lambda id: id != tok.eot, row))) for row in rows]


def print_samples(found):
    """Each arm's first sample of each misspelled or novel prompt, four arms side by side, the word highlighted in a terminal."""
    by_arm = {arm: {(r["kind"], r["prompt"], r["word"]): r for r in next(iter(seeds.values()))} for arm, seeds in found.items()}
    for kind, prompt, word in (key for key in max(by_arm.values(), key=len) if key[0] != "normal"):  # kron has more kinds
        print(f'"{prompt.replace("{}", word)}" ({kind})')
        columns = [(arm, r[kind, prompt, word]["samples"][0]["text"]) for arm, r in by_arm.items() if (kind, prompt, word) in r]
        for i in range(0, len(columns), 4):
            side_by_side(columns[i:i + 4], word)


def generation(args):
    """Is a word of the prompt (normal, misspelled, made up) said again in the continuation, exactly or within one edit?"""
    prompts = read_rows(PROMPTS / "generation.tsv", ["prompt", "normal", "typo", "novel"])

    def measure(model, tok, tick):
        records = []
        for row, kind in itertools.product(prompts, KINDS):
            word, one_slot = row[kind.split()[0]], kind.endswith("slot")
            if model.config.code == "kron" or not one_slot:
                ids = prompt_ids(model, tok, row["prompt"].replace("{}", word), word if one_slot else None)
                texts = continuations(model, tok, ids, args.samples)
                records.append({"kind": kind, "prompt": row["prompt"], "word": word,
                                "samples": [{"text": t, "echoes": find_echoes(t, word)} for t in texts]})
            tick()
        return records
    found, runs = measure_runs(args.runs, len(prompts) * len(KINDS), measure)
    print_samples(found)
    rates = {arm: {} for arm in found}
    for (arm, seeds), kind in itertools.product(found.items(), KINDS):
        samples = [s["echoes"] for records in seeds.values() for r in records if r["kind"] == kind for s in r["samples"]]
        for what, limit in (("exact", 0), ("one_edit", 1)) if samples else ():
            hits = sum(any(edits <= limit for _, _, edits in echoes) for echoes in samples)
            rates[arm].setdefault(what, {})[kind] = {"samples": len(samples), "hits": hits, "percent": 100 * hits / len(samples),
                                                     "interval": [100 * x for x in wilson(hits, len(samples))]}
    text = [f"How often a continuation says the prompt's word again: {len(prompts)} prompts x {args.samples} samples a run, 30 "
            "new tokens, temperature 0.7, top-p 0.9, seed 42. The 95 % intervals (Wilson) take samples as independent, which "
            "those of one prompt are not quite. In one slot: the word's bytes as a single token, which only kron can read."]
    figure, axes = panels(2, 6.5)
    for ax, (what, title) in zip(axes, (("exact", "exactly"), ("one_edit", "exactly or within one edit"))):
        rows = [[arm, r[what]["normal"]["samples"], *(interval(x["percent"], *x["interval"]) if (x := r[what].get(kind)) else "-"
                                                      for kind in KINDS)] for arm, r in rates.items()]
        text += [f"Says it {title} (% of the continuations):", markdown_table(["arm", "samples", *KINDS], rows)]
        for i, (arm, r) in enumerate(rates.items()):
            x = np.arange(len(r[what])) + (i - (len(rates) - 1) / 2) * 0.08
            draw(ax, arm, i, x, *zip(*((k["percent"], *k["interval"]) for k in r[what].values())), "")
        ax.set(ylabel="share of continuations (%)", title=f"Says the word {title}", ylim=(0, None), xticks=range(len(KINDS)))
        ax.set_xticklabels([k.replace(" in", "\nin") for k in KINDS])
    axes[0].legend(fontsize=8)
    first = {arm: next(iter(seeds.values())) for arm, seeds in found.items()}  # all texts would be megabytes
    sampler = SAMPLER | {"seed": 42, "samples": args.samples}
    save(args, text, {"runs": runs, "sampler": sampler, "rates": rates, "records_of_the_first_seed": first}, figure)


# ---- layers ------------------------------------------------------------------------------------------------

def canonical(text):
    """The form that typographic variants share: without leading space markers, punctuation and case. Maybe empty."""
    return "".join(c for c in text.casefold() if c.isalnum())


def read_families():
    """{family: (root, its words)}."""
    rows = read_rows(PROMPTS / "families.tsv", ["family", "root", "word"])
    return {r["family"]: (r["root"], [s["word"] for s in rows if s["family"] == r["family"]]) for r in rows}


def word_vectors(model, tok, words):
    """Input vectors (n, d) of " word", and the id of each, -1 where it is several tokens: there kron encodes the whole string's
    bytes, the other arms average their tokens' rows."""
    vectors, own = [], []
    for word in words:
        ids = tok.encode(f" {word}")
        own.append(ids[0] if len(ids) == 1 else -1)
        if len(ids) > 1 and model.config.code == "kron":
            ids = [model.config.vocab_size]  # the free slot
            model.transformer.wte.set_bytes(ids[0], f" {word}".encode())
        vectors.append(model.transformer.wte(torch.tensor(ids, device=DEVICE)).mean(0))
    return torch.stack(vectors), own


def levels(model, x):
    """Input vectors (n, d) -> {"E_raw": the same, "L0", "L1": after blocks 0 and 1}, each alone at position 0. (n, d) each."""
    found, x, rotary = {"E_raw": x}, x.unsqueeze(1), None  # (n, 1, d)
    if model.config.positions == "learned":
        x = x + model.transformer.wpe.weight[:1]
    else:
        rotary = model.cos[:1], model.sin[:1]
    for i, block in enumerate(model.transformer.h[:2]):
        x = block(x, rotary)
        found[f"L{i}"] = x.squeeze(1)
    return found


def nearest(queries, own, rows, candidates, k, mean=0.0):
    """The candidates nearest to each query by cosine once `mean` is taken off, the lower id first among equals.

    queries (n, d); own: the id of each query, -1 for none; rows: a function, ids (m,) -> (m, d); candidates: ids (m,).
    Returns the k nearest ids other than its own for each, and whether its own was the very nearest.
    """
    q = F.normalize(queries - mean, dim=-1)
    cosine = torch.cat([q @ F.normalize(rows(c) - mean, dim=-1).T for c in candidates.split(4096)], 1)  # (n, m)
    best = candidates[cosine.argsort(dim=1, descending=True, stable=True)[:, :k + 1]].tolist()
    return [[i for i in row if i != id][:k] for id, row in zip(own, best)], [row[0] == id for id, row in zip(own, best)]


def shares(neighbours, word, root, family):
    """L, M, S of a word's neighbours (texts): the share that is no typographic variant / has the root / is in the family."""
    names = [canonical(n) for n in neighbours]
    return [sum(x) / len(names) for x in ([n != word for n in names], [root in n for n in names], [n in family for n in names])]


def layers(args):
    """Which tokens are nearest to a word at the input and after the first two blocks: itself, its root, its family?"""
    families = read_families()
    words = [(family, word) for family, (_, members) in families.items() for word in members]
    split = set()  # the words that are several tokens

    def measure(model, tok, tick):
        texts = [raw.decode(errors="replace") for raw in tokenizer.token_bytes(tok)]
        ids = torch.arange(len(texts), device=DEVICE)
        vectors, own = word_vectors(model, tok, [w for _, w in words])
        split.update(w for (_, w), id in zip(words, own) if id < 0)
        queries, parts = levels(model, vectors), [levels(model, model.transformer.wte(c)) for c in ids.split(4096)]
        pairs = torch.from_numpy(np.random.RandomState(0).randint(0, len(ids), (2, 10_000))).to(DEVICE)
        found = {}
        for level in queries:
            table = torch.cat([part[level] for part in parts])  # (V, d)
            mean = table.mean(0)
            near, itself = nearest(queries[level], own, lambda i: table[i], ids, 10, mean)
            lms = [shares([texts[i] for i in row], word, *families[family]) for row, (family, word) in zip(near, words)]
            single = [x for x, id in zip(itself, own) if id >= 0]
            found[level] = {f: np.mean([x for x, (g, _) in zip(lms, words) if g == f], 0).tolist() for f in families}
            found[level] |= {"overall": np.mean(lms, 0).tolist(), "self_retrieval": float(np.mean(single)) if single else None,
                             "random_pair": F.cosine_similarity(*(table[pairs] - mean), dim=-1).mean().item()}
            tick()
        return found
    found, runs = measure_runs(args.runs, 3, measure)
    names = list(next(iter(next(iter(found.values())).values())))

    def seeds(arm, level, key):
        return np.array([by_level[level][key] for by_level in found[arm].values()], float)  # (seeds, 3) or (seeds,)

    def cell(x):
        return " / ".join(f"{v:.2f}" for v in x)
    text = ["L / M / S: the share of the ten nearest tokens (by cosine, mean-centred, the word's own token left out) that is no "
            "typographic variant / contains the family's root / is in the family. Words have a leading space; means over seeds.",
            f"Of the {len(words)} words {len(split)} are several tokens in this vocabulary: kron encodes their whole bytes, the "
            f"other arms average their tokens' rows. They are: {', '.join(w for _, w in words if w in split) or 'none'}.",
            "Sanity: a word of one token should be its own nearest always (1.00), and random pairs should have a cosine near 0."]
    for level in names:
        rows = [[f"{f} ({len(split & set(families[f][1]))} of {len(families[f][1])} words are several tokens)",
                 *(cell(seeds(arm, level, f).mean(0)) for arm in found)] for f in families]
        rows.append(["overall", *(cell(seeds(arm, level, "overall").mean(0)) for arm in found)])
        lms = [seeds(arm, level, "overall") for arm in found]  # (seeds, 3) each
        rows.append(["sd over seeds", *(cell(x.std(0, ddof=1)) if len(x) > 1 else "-" for x in lms)])
        rows.append(["published, 124M, overall", *(PUBLISHED["layers"].get((level, arm), "-") for arm in found)])
        for what, key in (("sanity: its own nearest", "self_retrieval"), ("sanity: random pairs' cosine", "random_pair")):
            rows.append([what, *(f"{seeds(arm, level, key).mean():.2f}" for arm in found)])
        text.append(markdown_table([level, *found], rows))
    figure, axes = panels(3, 5)
    for j, (ax, label) in enumerate(zip(axes, ("L: no typographic variant", "M: contains the root", "S: in the family"))):
        for i, arm in enumerate(found):
            y = np.array([seeds(arm, level, "overall")[:, j] for level in names])  # (levels, seeds)
            draw(ax, arm, i, np.arange(len(names)) + (i - (len(found) - 1) / 2) * 0.04, y.mean(1), y.min(1), y.max(1))
        ax.set(xticks=range(len(names)), xticklabels=names, xlabel="level (bars: range over seeds)", title=label,
               ylabel="share of the ten nearest", ylim=(0, 1.08 * ax.get_ylim()[1]))
    axes[0].legend(fontsize=8)
    save(args, text, {"runs": runs, "words_of_several_tokens": sorted(split), "levels": found}, figure)


# ---- geometry ----------------------------------------------------------------------------------------------

FALLOFF = {"run": "runs RUN ran running rerun", "compute": "computed computer commute compete",
           "nation": "nations notion national station", "international": "internationally interntional internatoinal"}
SPACES = ["trained", "random", "Kronecker"]
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def kron_rows(strings, pos_dim=32):
    """The Kronecker codes z of byte strings, as a function: ids (n,) -> (n, 256 P). 2605.29459, in production with P = 32."""
    return KroneckerEmbedding(len(strings), 1, strings, pos_dim).code


def kron_cosine(a, b, pos_dim=32):
    """cos(z(a), z(b)) of two byte strings."""
    return F.cosine_similarity(*kron_rows([a, b], pos_dim)(torch.arange(2)).double(), dim=0).item()


def collisions(strings, pos_dim):
    """Of a vocabulary's byte strings: (how many are longer than P, how many share their first P bytes with another)."""
    counts = Counter(s[:pos_dim] for s in strings)
    return sum(len(s) > pos_dim for s in strings), sum(n for n in counts.values() if n > 1)


def read_bytes(model, name, start=0, end=None):
    """Bytes [start, end) of a file of a model: of a local folder, or of a Hub id (HF_ENDPOINT honoured) by an HTTP range request.

    FileNotFoundError if there is no such file, InputError if it cannot be read or is not as long as that.
    """
    size = None if end is None else end - start
    if os.path.isdir(model):
        with open(os.path.join(model, name), "rb") as file:
            there = os.fstat(file.fileno()).st_size
            file.seek(min(start, there))
            data = bytearray(file.read(there if size is None else min(size, there)))
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise InputError(f"--model={model}: no such folder, and not a Hub id")
    else:
        url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{model}/resolve/main/{name}"
        request = urllib.request.Request(url, headers={} if size is None else {"Range": f"bytes={start}-{end - 1}"})
        bar, data = tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=2), bytearray()
        try:
            with bar, urllib.request.urlopen(request, timeout=60) as reply:
                if size is not None and reply.status != 206:
                    raise InputError(f"{url}: the server ignores byte ranges")
                while (size is None or len(data) <= size) and (piece := reply.read(2**20)):
                    data += piece
                    bar.update(len(piece))
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                raise FileNotFoundError(f"{url}: not found") from None
            raise InputError(f"{url}: {error}") from None
    if size is not None and len(data) != size:
        raise InputError(f"{model}/{name}: {len(data):,} bytes came where {size:,} should be")
    return data


def read_embedding(model):
    """The input-embedding table (V, d) of a safetensors model, in its own dtype. Reads the header and the table, nothing else.

    A safetensors file is 8 bytes of header length, a JSON header {tensor: {dtype, shape, data_offsets}}, then the tensors' bytes;
    a model in several files has an index, {"weight_map": {tensor: file}}. InputError for anything else.
    """
    def pick(names):  # the shortest, as some models have copies deeper inside
        fitting = sorted((n for n in names if n.endswith(EMBEDDINGS)), key=len)
        if not fitting:
            raise ValueError(f"no tensor is called {', '.join(EMBEDDINGS)}")
        return fitting[0]
    try:
        try:
            weight_map = json.loads(read_bytes(model, "model.safetensors.index.json"))["weight_map"]
            name = pick(weight_map)
            file = os.path.basename(weight_map[name])
        except FileNotFoundError:
            file, name = "model.safetensors", None
        (size,) = struct.unpack("<Q", read_bytes(model, file, 0, 8))
        if size > 100_000_000:  # the format's own limit
            raise ValueError(f"a header of {size:,} bytes")
        header = json.loads(read_bytes(model, file, 8, 8 + size))
        tensor = header[name or pick(header)]
        dtype, (rows, width), (start, end) = DTYPES[tensor["dtype"]], tensor["shape"], tensor["data_offsets"]
        if min(rows, width) < 1 or start < 0 or end - start != rows * width * dtype.itemsize:
            raise ValueError(f"shape {tensor['shape']} does not fit data_offsets {tensor['data_offsets']}")
        data = read_bytes(model, file, 8 + size + start, 8 + size + end)
        return torch.frombuffer(data, dtype=dtype).view(rows, width)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{model}: no embedding that can be read here ({type(error).__name__}: {error})") from None


def read_vocabulary(model, size):
    """The bytes of ids 0..size-1 from tokenizer.json, b"" where it has none: byte-level (GPT-2's) or sentencepiece-style."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 writes these bytes as themselves, others from 256 on
    alphabet = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(visible)))}
    try:
        data, strings = json.loads(read_bytes(model, "tokenizer.json")), [b""] * size
        vocab, byte_level = data["model"]["vocab"], '"ByteLevel"' in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
        if data["model"].get("type") == "WordPiece":
            raise ValueError("a WordPiece vocabulary")
        for token, id in vocab.items() if isinstance(vocab, dict) else ((token, i) for i, (token, _) in enumerate(vocab)):
            if byte_level and all(c in alphabet for c in token):
                raw = bytes(alphabet[c] for c in token)
            else:
                byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
                raw = bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode(errors="replace")
            if 0 <= id < size:
                strings[id] = raw
        return strings
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{model}: no vocabulary that can be read here ({type(error).__name__}: {error})") from None


def typographic(near):
    """{word: its neighbours' texts} -> the share of neighbours that are typographic variants of their word."""
    return float(np.mean([canonical(n) == canonical(word) for word, texts in near.items() for n in texts]))


def study_space(rows, ids, texts, words, families):
    """One space over a vocabulary: the five tokens nearest to each word, and cosines inside families and of random pairs.

    rows: a function, ids (n,) -> (n, d); ids: the candidates; texts: of every id; words: {word: id}; families: lists of ids.
    """
    mean = (sum(rows(c).double().sum(0) for c in ids.split(4096)) / len(ids)).float()
    near, _ = nearest(rows(torch.tensor(list(words.values()))), list(words.values()), rows, ids, 5)
    near = {word: [texts[i] for i in row] for word, row in zip(words, near)}
    inside = torch.tensor([pair for family in families for pair in itertools.combinations(family, 2)]).view(-1, 2).T
    random = ids[torch.from_numpy(np.random.RandomState(0).randint(0, len(ids), (2, 2000)))]

    def cosine(pairs, centre):
        return F.cosine_similarity(rows(pairs[0]) - centre, rows(pairs[1]) - centre).mean().item() if pairs.numel() else None
    return {"typographic": typographic(near), "neighbours": near,
            "cosine": {name: [cosine(inside, c), cosine(random, c)] for name, c in (("raw", 0.0), ("centred", mean))}}


def study_model(model, words, families):
    """`study_space` of a public model's trained table, a random table of its shape and the Kronecker code of its vocabulary."""
    table = read_embedding(model)
    strings = read_vocabulary(model, len(table))
    ids = torch.tensor([i for i, s in enumerate(strings) if s])
    index = {strings[i]: i for i in reversed(ids.tolist())}

    def find(words):
        return {w: id for w in words if (id := index.get(f" {w}".encode(), index.get(w.encode()))) is not None}
    if not find(words):
        raise InputError(f"{model}: none of the words is one token of its vocabulary: {', '.join(words)}")
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0), dtype=table.dtype)
    spaces = zip(SPACES, (lambda i: table[i].float(), lambda i: noise[i].float(), kron_rows(strings)))
    texts = [s.decode(errors="replace") for s in strings]
    members = [list(find(family).values()) for _, family in families.values()]
    return {"shape": list(table.shape), "words": list(find(words)), "spaces": {
        name: study_space(rows, ids, texts, find(words), members) for name, rows in tqdm(spaces, model, len(SPACES))}}


def jaccard(a, b):
    """Two {word: neighbours} -> mean over common words of |A n B| / |A u B|, sets of canonical forms; None without any."""
    pairs = [({canonical(n) for n in a[w]}, {canonical(n) for n in b[w]}) for w in a if w in b]
    return sum(len(x & y) / len(x | y) for x, y in pairs) / len(pairs) if pairs else None


def geometry(args):
    """Which tokens are nearest in Kronecker space, and which in the input tables of public models?"""
    words, families = [w for w in dict.fromkeys(args.words.split(",")) if w], read_families()
    if not words:
        raise InputError("--words is empty")
    tok = tokenizer.gpt2() if args.tokenizer == "gpt2" else load_model(args.tokenizer)[1]
    models = {m: study_model(m, words, families) for m in dict.fromkeys(args.model)}
    strings = tokenizer.token_bytes(tok)
    spelled, ids = [f" {w}".encode() for w in words], torch.arange(len(strings))
    rows, own = kron_rows(strings + spelled), [strings.index(raw) if raw in strings else -1 for raw in spelled]
    near, _ = nearest(rows(len(ids) + torch.arange(len(words))), own, rows, ids, 5)
    texts = {w: [strings[i].decode(errors="replace") for i in row] for w, row in zip(words, near)}
    falloff = [{"anchor": a, "variant": b, "edits": edit_distance(a, b), "cosine": kron_cosine(a.encode(), b.encode())}
               for a in FALLOFF for b in FALLOFF[a].split()]
    cut = {P: collisions(strings, P) for P in (8, 16, 32)}
    lines = [[w, ", ".join(f"{text!r} ({kron_cosine(raw, strings[i]):.2f})".replace("|", "¦") for text, i in zip(texts[w], row))]
             for w, raw, row in zip(words, spelled, near)]
    text = [f"Of {tok.name}'s {len(strings):,} tokens the five nearest to \" word\" in Kronecker space (P = 32), "
            f"{100 * typographic(texts):.0f} % typographic variants:", markdown_table(["word", "nearest (cosine)"], lines),
            "Falloff with edit distance:", markdown_table(["anchor", "variant", "edits", "cos z"], [
                [f["anchor"], f["variant"], f["edits"], f"{f['cosine']:.3f}"] for f in falloff]),
            f"Truncation of {tok.name}'s tokens:",
            markdown_table(["P (bytes)", "longer than P", "share their code"], [[P, *counts] for P, counts in cut.items()])]
    if models:
        lines = [[f"{m} ({s['shape'][0]:,} x {s['shape'][1]:,})", name, len(s["words"]), f"{100 * x['typographic']:.0f}",
                  f"{100 - 100 * x['typographic']:.0f}", *("{} over {:.3f}".format("-" if a is None else f"{a:.3f}", b)
                                                           for a, b in x["cosine"].values())]
                 for m, s in models.items() for name, x in s["spaces"].items()]
        text += ["Input tables of public models: of the five nearest (raw cosine) of the words that are one token, how many are "
                 "typographic variants; mean cosine of pairs in a word family over that of 2,000 random pairs, raw and centred:",
                 markdown_table(["model", "table", "words", "typographic (%)", "other (%)", "raw", "centred"], lines)]
    stability = [{"models": pair} | {name: jaccard(*(models[m]["spaces"][name]["neighbours"] for m in pair)) for name in SPACES}
                 for pair in itertools.combinations(models, 2)]
    if stability:
        lines = [[", ".join(s["models"]), *("-" if s[name] is None else f"{s[name]:.2f}" for name in SPACES)] for s in stability]
        text += ["Stability across vocabularies, mean Jaccard index of the neighbours' canonical forms:",
                 markdown_table(["models", *SPACES], lines)]
    figure, axes = panels(2 if models else 1, 6.5)
    rows = sorted(falloff, key=lambda f: (-f["edits"], f["cosine"]))
    axes[0].barh([f"{f['anchor']}, {f['variant']}: {f['edits']}" for f in rows], [f["cosine"] for f in rows], color="#0072B2")
    axes[0].set(xlabel="cosine of z", ylabel="anchor, variant: edit distance", title="Kronecker space, P = 32")
    for i, name in enumerate(SPACES if models else ()):
        y = [100 * s["spaces"][name]["typographic"] for s in models.values()]
        axes[1].bar(np.arange(len(y)) + 0.27 * (i - 1), y, 0.25, label=name, color=("#0072B2", "#DDDDDD", "#E69F00")[i],
                    hatch=("", "..", "//")[i], edgecolor="black")
    if models:
        axes[1].set(xticks=range(len(models)), ylabel="typographic variants among the five nearest (%)", title="Input tables")
        axes[1].set_xticklabels([Path(m).name for m in models], rotation=20, ha="right")
        axes[1].legend()
    save(args, text, {"tokenizer": tok.name, "neighbours": texts, "falloff": falloff, "models": models, "jaccard": stability,
                      "collisions": {P: {"longer": longer, "share": share} for P, (longer, share) in cut.items()}}, figure)


# ---- norms -------------------------------------------------------------------------------------------------

def norms(args):
    """How far does the mean row norm of the input's weights drift from the first validation to the last?"""
    runs = sorted((read_run(path) for path in args.runs), key=order)
    for r in runs:
        if not r["vals"]:
            raise InputError(f"{r['name']}: its log has no validation yet")
        r["step"] = r["vals"][-1]["step"]
    refuse_unmatched(runs)
    curves, rows, drifts = {}, [], {}
    for r in runs:
        curve = {v["step"]: v.get("input_norm") for v in r["vals"]}
        curves.setdefault(r["header"]["arm"], {})[r["header"]["config"]["seed"]] = curve
    figure, (ax,) = panels(1, 7.5)
    for i, (arm, seeds) in enumerate(curves.items()):
        if any(norm is None for curve in seeds.values() for norm in curve.values()):
            rows.append([arm, len(seeds), "no weights", "-", "-"])
            continue
        steps = sorted(set.intersection(*map(set, seeds.values())))  # validations that all seeds have
        if not steps:
            raise InputError(f"the runs of {arm} have no validation step in common")
        y = np.array([[curve[step] for step in steps] for curve in seeds.values()])  # (seeds, steps)
        ends = {"start": y[:, 0], "end": y[:, -1], "drift": y[:, -1] / y[:, 0]}
        drifts[arm] = {name: spread(x) for name, x in ends.items()}
        rows.append([arm, len(seeds), *(pm(s, 3) for s in drifts[arm].values())])
        y = y / y[:, :1]
        draw(ax, arm, i, steps, y.mean(0), y.min(0), y.max(0))
    ax.set(xlabel="training step", ylabel="input norm / its start", title="Mean row norm (bars: range over seeds)")
    if drifts:
        ax.legend(fontsize=8)
    text = ["Mean norm of the table's rows, or of the projection's as d x D, at the first and the last validation that all seeds "
            "of an arm have; mean ± sd over seeds:",
            markdown_table(["arm", "seeds", "start", "end", "drift = end / start"], rows)]
    save(args, text, {"runs": about(runs), "norms": drifts, "curves": curves}, figure)


def main():
    parser = Parser(description=__doc__)
    probes = parser.add_subparsers(dest="probe", required=True, metavar="robustness|generation|layers|geometry|norms")
    for probe in (robustness, generation, layers, geometry, norms):
        sub = probes.add_parser(probe.__name__, description=probe.__doc__)
        sub.set_defaults(call=probe)
        sub.add_argument("--out", default=f"results/probe-{probe.__name__}", help="write OUT.md, OUT.json and OUT.png")
        if probe is not geometry:
            sub.add_argument("runs", nargs="*" if probe is robustness else "+", metavar="RUN", help="like out/tiny-kron-s1")
        if probe is robustness:
            sub.add_argument("--pairs", default=PROMPTS / "typo_pairs.tsv", help=".tsv, .jsonl, or a results .json")
            sub.add_argument("--published", help="no runs, but the published package's results .json")
        if probe is generation:
            sub.add_argument("--samples", type=whole_number, default=8, help="continuations of each prompt")
        if probe is geometry:
            sub.add_argument("--words", default="run,compute,nation,return,value,water,Monday,science", help="comma-separated")
            sub.add_argument("--tokenizer", default="gpt2", help="gpt2, or a run whose vocabulary is used")
            sub.add_argument("--model", nargs="+", action="extend", default=[], help="safetensors models: folders or Hub ids")
    args = parser.parse_args()
    if os.path.isdir(args.out) or not os.path.basename(args.out):
        raise InputError(f"--out={args.out} is a folder; give a name without ending, like results/mine")
    args.call(args)


if __name__ == "__main__":
    run(main)
