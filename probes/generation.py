"""Does the continuation repeat a word of the prompt (normal, misspelled, made up), exactly or
within one edit?"""
import itertools
import math

import numpy as np
import regex  # tiktoken's; it knows Unicode's categories
import torch

from lib.errors import whole_number
from lib.generation import continue_text
from lib.tables import markdown_table
from probes.shared import (PROMPTS, edit_distance, interval, measure_models, normal, read_rows,
                           save, share_interval)

OPTIONS = {"--prompts": dict(default=PROMPTS / "generation.tsv",
                             help=".tsv of prompt (with {} once), normal, typo, novel"),
           "--samples": dict(type=whole_number, default=8, help="continuations of each prompt")}
SAMPLER = {"max_new_tokens": 30, "temperature": 0.7, "top_p": 0.9, "seed": 42}  # arXiv 2605.29459
KINDS = ["normal", "typo", "novel", "typo in one slot", "novel in one slot"]
LIMITS = {"exact": (0, "exactly"), "one_edit": (1, "exactly or within one edit")}
PUBLISHED = ("Published (2605.29459): no rate; the claim is that Kronecker says novel strings and "
             "typos again where BPE forgets them.")


def fewest_edits(text, word):
    """How many edits the nearest whole word of a text is from `word`, case ignored. Infinity where
    there is none, and for a word of one letter, to which every short word is near."""
    # with their marks and the joiners of Indic scripts; hyphen and apostrophe inside
    part = r"[\p{L}\p{N}\p{M}\u200c\u200d]+"
    words = regex.findall(rf"{part}(?:['’-]{part})*", text)
    edits = [edit_distance(normal(said), normal(word)) for said in words]
    return min(edits, default=math.inf) if len(word) > 1 else math.inf


def prompt_ids(model, tok, prompt, word, one_slot):
    """A prompt with `word` at its {} -> ids (T,). With `one_slot` the word and the space before it
    are one free id that has their bytes, which a coded head can also say."""
    model.slot = None  # forgets the last prompt's word
    if not one_slot:
        return tok.encode(prompt.replace("{}", word))
    start, end = prompt.split("{}")
    space = " " if start.endswith(" ") else ""
    slot = model.set_bytes(f"{space}{word}".encode())
    return [*tok.encode(start.removesuffix(space)), slot, *tok.encode(end)]


def aggregate(found):
    """{arm: {seed: {kind: edits (prompts, samples)}}} -> {arm: {"exact" or "one_edit": {kind:
    {"samples", "hits", "percent", "interval"}}}}, the interval over prompts and seeds."""
    rates = {arm: {what: {} for what in LIMITS} for arm in found}
    for (arm, seeds), (what, (limit, _)) in itertools.product(found.items(), LIMITS.items()):
        for kind in [kind for kind in KINDS if kind in next(iter(seeds.values()))]:
            hits = np.array([edits[kind] for edits in seeds.values()]) <= limit
            shares = hits.mean(2)  # (seeds, prompts)
            rates[arm][what][kind] = {
                "samples": hits.size, "hits": int(hits.sum()), "percent": 100 * shares.mean(),
                "interval": [100 * end for end in share_interval(shares)]}
    return rates


def main(args):
    prompts = read_rows(args.prompts, ["prompt", "normal", "typo", "novel"], "prompt")

    def measure(model, tok, row, head):
        found = {}
        for kind in KINDS if model.transformer.wte.reads_bytes else KINDS[:3]:
            word, one_slot = row[kind.split()[0]], kind.endswith("slot")
            ids = [prompt_ids(model, tok, row["prompt"], word, one_slot)] * args.samples
            said = continue_text(model, tok, torch.tensor(ids, device=model.device),
                                 word=f" {word}", **SAMPLER)
            found[kind] = [fewest_edits(text, word) for text in said]
            found[f"first {kind}"] = said[0]
        return found
    runs, found = measure_models(args, prompts, measure)
    of_runs = [results for seeds in found.values() for results in seeds.values()]
    first_samples = {run["name"]: {kind: results.get(f"first {kind}", []) for kind in KINDS}
                     for run, results in zip(runs, of_runs)}
    rates = aggregate(found)
    text = [f"How often a continuation says the prompt's word again: {len(prompts)} prompts x "
            f"{args.samples} samples a run, 30 new tokens, temperature 0.7, top-p 0.9, seed 42. "
            "95 % intervals are over prompts (bootstrap) crossed with seeds (Student); where fewer "
            "than five prompts bring the word back, or all but a few do, each counts as one trial "
            "(Wilson). In one slot: the word's bytes as a single token, which only codes that read "
            "bytes can."]
    for what, (_, title) in LIMITS.items():
        rows = []
        for arm, of_kinds in rates.items():
            cells = [interval(x["percent"], x["interval"]) if x else "-"
                     for x in map(of_kinds[what].get, KINDS)]
            rows.append([arm, of_kinds[what]["normal"]["samples"], *cells])
        text += [f"Says it {title} (% of the continuations):",
                 markdown_table(["arm", "samples", *KINDS], rows)]
    save(args, [*text, PUBLISHED],
         {"sampler": SAMPLER | {"samples": args.samples}, "rates": rates,
          "prompts": [row["prompt"] for row in prompts], "first_samples": first_samples},
         None, runs)
