"""Does the continuation repeat a word of the prompt (normal, misspelled, made up), exactly or
within one edit?"""
import itertools

import numpy as np
import torch

from lib.errors import InputError, whole_number
from lib.generation import generate, prompt_ids
from lib.plots import draw_bars, panels
from lib.tables import markdown_table
from lib.stats import share_interval
from probes.shared import (PROMPTS, edit_distance, interval, measure_runs, normal, read_rows, save,
                           words)

SAMPLER = {"max_new_tokens": 30, "temperature": 0.7, "top_p": 0.9}  # arXiv 2605.29459
KINDS = ["normal", "typo", "novel", "typo in one slot", "novel in one slot"]
LIMITS = {"exact": (0, "exactly"), "one_edit": (1, "exactly or within one edit")}
PUBLISHED = ("Published (2605.29459): no rate; the claim is that Kronecker says novel strings and "
             "typos again where BPE forgets them.")


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="like out/tiny-kron-s1")
    parser.add_argument("--prompts", default=PROMPTS / "generation.tsv",
                        help=".tsv or .jsonl of prompt (with {} once), normal, typo, novel")
    parser.add_argument("--samples", type=whole_number, default=8,
                        help="continuations of each prompt")


def find_echoes(text, word):
    """Where a text says a word again: [(start, end, edits)], edits 0 (exactly) or 1 (one edit).
    Whole words, case ignored."""
    found = []
    if len(word) < 2:  # every short word is one edit away
        return found
    for start, end in words(text):
        said = normal(text[start:end])
        if abs(len(said) - len(normal(word))) <= 1:
            edits = edit_distance(said, normal(word))
            if edits <= 1:
                found.append((start, end, edits))
    return found


def continuations(model, tok, ids, samples, word=""):
    """Continue ids (1, T) `samples` times with the paper's sampler and seed -> list of str, each up
    to <|endoftext|>. `word`: what the slot is, which a coded head can say."""
    generator = torch.Generator(ids.device).manual_seed(42)
    steps = generate(model, ids.repeat(samples, 1), generator=generator, **SAMPLER)
    texts = []
    for row in torch.stack(list(steps), 1).tolist():  # (samples, 30)
        said = itertools.takewhile(lambda id: id != tok.eot, row)
        text = ""
        for is_slot, some in itertools.groupby(said, lambda id: id == model.slot):
            text += f" {word}" * len(list(some)) if is_slot else tok.decode(list(some))
        texts.append(text)
    return texts


def print_samples(prompts, samples):
    """Each arm's first sample of each prompt that has a misspelled or novel word."""
    for (i, row), kind in itertools.product(enumerate(prompts), KINDS[1:]):
        print(f'"{row["prompt"].replace("{}", row[kind.split()[0]])}" ({kind})')
        for arm, texts in samples.items():
            if texts[kind]:
                print(f"  {arm}: {' '.join(texts[kind][i].split())}")


def says(record, limit):
    """The share of a record's samples that say its word again within `limit` edits."""
    samples = record["samples"]
    hits = [any(edits <= limit for _, _, edits in sample["echoes"]) for sample in samples]
    return sum(hits) / len(hits)


def count_echoes(found, samples):
    """{arm: {seed: records of `samples` each}} -> {arm: {"exact" or "one_edit": {kind: {"samples",
    "hits", "percent", "interval"}}}}, the interval over prompts and seeds (`share_interval`)."""
    rates = {arm: {what: {} for what in LIMITS} for arm in found}
    for (arm, seeds), kind in itertools.product(found.items(), KINDS):
        for what, (limit, _) in LIMITS.items():
            shares = []
            for records in seeds.values():
                shares.append([says(r, limit) for r in records if r["kind"] == kind])
            shares = np.array(shares)  # (seeds, prompts)
            if shares.size:
                rates[arm][what][kind] = {
                    "samples": shares.size * samples, "hits": round(shares.sum() * samples),
                    "percent": 100 * shares.mean(),
                    "interval": [100 * end for end in share_interval(shares)]}
    return rates


def main(args):
    prompts = read_rows(args.prompts, ["prompt", "normal", "typo", "novel"])
    for i, row in enumerate(prompts, 1):
        if row["prompt"].count("{}") != 1:
            raise InputError(f"{args.prompts}, row {i}: the prompt needs {{}} once, where the word "
                             f"goes: {row['prompt']!r}")

    def measure(model, tok, tick):
        records = []
        for row, kind in itertools.product(prompts, KINDS):
            word, one_slot = row[kind.split()[0]], kind.endswith("slot")
            if model.transformer.wte.reads_bytes or not one_slot:
                prompt = row["prompt"].replace("{}", word)
                ids = prompt_ids(model, tok, prompt, word if one_slot else None)
                texts = continuations(model, tok, ids, args.samples, word)
                samples = [{"text": text, "echoes": find_echoes(text, word)} for text in texts]
                records.append({"kind": kind, "prompt": row["prompt"], "word": word,
                                "samples": samples})
            tick()
        return records
    found, runs = measure_runs(args.runs, args.tuned, len(prompts) * len(KINDS), measure)
    samples = first_samples(found)
    print_samples(prompts, samples)
    rates = count_echoes(found, args.samples)
    text = [f"How often a continuation says the prompt's word again: {len(prompts)} prompts x "
            f"{args.samples} samples a run, 30 new tokens, temperature 0.7, top-p 0.9, seed 42. "
            "The 95 % intervals are over prompts (bootstrap, each with all its samples) crossed "
            "with seeds (Student); where fewer than five prompts bring the word back, or all but a "
            "few do, each prompt counts as one trial (Wilson). In one slot: the word's bytes as a "
            "single token, which only codes that read bytes can."]
    said = any(kind["hits"] for rate in rates.values() for what in LIMITS
               for kind in rate[what].values())
    if not said:
        text.append("No continuation of any run says its word again, not even within one edit: "
                    "there is nothing to draw.")
    save(args, text + tables(rates) + [PUBLISHED],
         {"runs": runs, "sampler": SAMPLER | {"seed": 42, "samples": args.samples}, "rates": rates,
          "prompts": [row["prompt"] for row in prompts], "first_samples": samples},
         draw(rates) if said else None)


def first_samples(found):
    """One sample per prompt: {arm: {kind: [text of each prompt]}}, of each arm's first seed."""
    samples = {}
    for arm, seeds in found.items():
        samples[arm] = {kind: [] for kind in KINDS}
        for record in next(iter(seeds.values())):
            samples[arm][record["kind"]].append(record["samples"][0]["text"])
    return samples


def tables(rates):
    """The page's tables."""
    def cell(rate):
        return interval(rate["percent"], *rate["interval"]) if rate else "-"
    text = []
    for what, (_, title) in LIMITS.items():
        rows = []
        for arm, rate in rates.items():
            numbers = rate[what]
            rows.append([arm, numbers["normal"]["samples"], *(cell(numbers.get(k)) for k in KINDS)])
        text += [f"Says it {title} (% of the continuations):",
                 markdown_table(["arm", "samples", *KINDS], rows)]
    return text


def draw(rates):
    """The picture: exactly, and within one edit."""
    figure, axes = panels(2, 6.5)
    for ax, (what, (_, title)) in zip(axes, LIMITS.items()):
        for i, (arm, rate) in enumerate(rates.items()):
            kinds = list(rate[what].values())
            low, high = zip(*(kind["interval"] for kind in kinds))
            shift = (i - (len(rates) - 1) / 2) * 0.08
            draw_bars(ax, arm, np.arange(len(kinds)) + shift, [k["percent"] for k in kinds],
                      low, high, "")
        ax.set(ylabel="share of continuations (%)", title=f"Says the word {title}", ylim=(0, None),
               xticks=range(len(KINDS)))
        ax.set_xticklabels([kind.replace(" in", "\nin") for kind in KINDS])
    axes[0].legend(fontsize=8)
    return figure
