"""Does the continuation repeat a word of the prompt (normal, misspelled, made up), exactly or
within one edit?"""
import itertools
import math

import numpy as np
import regex  # tiktoken's; it knows Unicode's categories
import torch

from lib.errors import whole_number
from lib.generation import continue_text
from lib.plots import panels
from lib.stats import share_interval
from lib.tables import markdown_table
from probes.shared import (PROMPTS, draw_points, edit_distance, interval, measure_models, normal,
                           read_rows, save)

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
    there is none, and for a word of one letter, which every short word is near."""
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
        for kind in next(iter(seeds.values())):
            hits = np.array([edits[kind] for edits in seeds.values()]) <= limit
            shares = hits.mean(2)  # (seeds, prompts)
            rates[arm][what][kind] = {
                "samples": hits.size, "hits": int(hits.sum()), "percent": 100 * shares.mean(),
                "interval": [100 * end for end in share_interval(shares)]}
    return rates


def main(args):
    prompts = read_rows(args.prompts, ["prompt", "normal", "typo", "novel"], "prompt")
    first_samples = []  # of each run

    def measure(model, tok, tick):
        edits, texts = {}, {kind: [] for kind in KINDS}
        for row, kind in itertools.product(prompts, KINDS):
            word, one_slot = row[kind.split()[0]], kind.endswith("slot")
            if model.transformer.wte.reads_bytes or not one_slot:
                ids = [prompt_ids(model, tok, row["prompt"], word, one_slot)] * args.samples
                said = continue_text(model, tok, torch.tensor(ids, device=model.device),
                                     word=f" {word}", **SAMPLER)
                edits.setdefault(kind, []).append([fewest_edits(text, word) for text in said])
                texts[kind].append(said[0])
            tick()
        first_samples.append(texts)
        return edits
    runs, found = measure_models(args, len(prompts) * len(KINDS), measure)
    rates = aggregate(found)
    text = [f"How often a continuation says the prompt's word again: {len(prompts)} prompts x "
            f"{args.samples} samples a run, 30 new tokens, temperature 0.7, top-p 0.9, seed 42. "
            "95 % intervals are over prompts (bootstrap) crossed with seeds (Student); where fewer "
            "than five prompts bring the word back, or all but a few do, each counts as one trial "
            "(Wilson). In one slot: the word's bytes as a single token, which only codes that read "
            "bytes can."]
    save(args, text + tables(rates) + [PUBLISHED],
         {"sampler": SAMPLER | {"samples": args.samples}, "rates": rates,
          "prompts": [row["prompt"] for row in prompts],
          "first_samples": dict(zip([run["name"] for run in runs], first_samples))},
         draw(rates), runs)


def points_of(rates, what, arm):
    """(percent, low, high) of each kind, None where the arm has none."""
    return [numbers and (numbers["percent"], *numbers["interval"])
            for numbers in map(rates[arm][what].get, KINDS)]


def tables(rates):
    """The page's tables."""
    text = []
    for what, (_, title) in LIMITS.items():
        rows = [[arm, rates[arm][what]["normal"]["samples"],
                 *(interval(*x) if x else "-" for x in points_of(rates, what, arm))]
                for arm in rates]
        text += [f"Says it {title} (% of the continuations):",
                 markdown_table(["arm", "samples", *KINDS], rows)]
    return text


def draw(rates):
    """The picture: exactly, and within one edit."""
    figure, axes = panels(2, 6.5)
    for ax, (what, (_, title)) in zip(axes, LIMITS.items()):
        points = {arm: points_of(rates, what, arm) for arm in rates}
        draw_points(ax, points, [kind.replace(" in", "\nin") for kind in KINDS])
        ax.set(ylabel="share of continuations (%)", title=f"Says the word {title}", ylim=(0, None))
    axes[0].legend(fontsize=8)
    return figure
