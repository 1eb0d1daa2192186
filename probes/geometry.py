"""Which tokens are nearest in Kronecker space, and which in the input tables of public models? What
does the code have rows for, and what does it confuse?"""
import itertools
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codes import kron_cosine
from lib import tokenizer
from lib.run_folder import load_model
from lib.errors import InputError
from lib.tables import markdown_table
from lib.plots import panels
from probes.public import read_embedding, read_vocabulary
from probes.shared import PROMPTS, edit_distance, nearest, read_families, save
from probes.spaces import (PUBLISHED_P, jaccard, kron_code, rows_and_rank, study_space, truncation,
                           typographic)

FALLOFF = {"run": "runs RUN ran running rerun",
           "compute": "computed computer commute compete",
           "nation": "nations notion national station",
           "international": "internationally interntional internatoinal"}
SPACES = {"trained": ("#0072B2", ""), "random": ("#DDDDDD", ".."), "Kronecker": ("#E69F00", "//")}
WIDTHS = (8, 16, 32)  # P, in bytes
PUBLISHED = (
    "Published (2605.29459): in models of 135M to 671B parameters the five nearest are often "
    "typographic variants in trained tables, seldom in Kronecker space. What follows from its "
    "definition: cosines of about k / sqrt(m n); 72 GPT-2 tokens have more than 16 bytes, 14 more "
    "than 32; 44 (P = 16) and 17 (P = 32) share their code.")


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("--words", default="run,compute,nation,return,value,water,Monday,science",
                        help="comma-separated")
    parser.add_argument("--families", default=PROMPTS / "families.tsv",
                        help="word families: .tsv of family, root, word")
    parser.add_argument("--tokenizer", help="the vocabulary to look at: gpt2, a run, FILE.json, a "
                        "folder with a tokenizer.json, or OWNER/NAME of the Hub; else the first "
                        "model's, else gpt2")
    parser.add_argument("--model", nargs="+", action="extend", default=[],
                        help="safetensors models: folders or Hub ids")
    parser.add_argument("--tensor", help="the input table's name, where it is not found")


def study_model(model, tensor, words, families):
    """`study_space` of a public model's trained table, a random table of its shape and the
    Kronecker code of its vocabulary."""
    strings = read_vocabulary(model)  # the small file first
    name, table = read_embedding(model, tensor)
    strings = strings[:len(table)] + [b""] * (len(table) - len(strings))
    ids = torch.tensor([i for i, raw in enumerate(strings) if raw])
    index = {strings[i]: i for i in reversed(ids.tolist())}

    def find(words):
        found = {}
        for word in words:
            id = index.get(f" {word}".encode(), index.get(word.encode()))
            if id is not None:
                found[word] = id
        return found
    found = find(words)
    if not found:
        raise InputError(f"{model}: none of the words is one token of its vocabulary: "
                         f"{', '.join(words)}")
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0),
                        dtype=torch.bfloat16)  # half the memory of a large table
    spaces = {"trained": lambda i: table[i].float(), "random": lambda i: noise[i].float(),
              "Kronecker": kron_code(strings)}
    texts = [raw.decode(errors="replace") for raw in strings]
    members = [list(find(family).values()) for _, family in families.values()]
    studied = {}
    for space, rows in tqdm(spaces.items(), model):
        studied[space] = study_space(rows, ids, texts, found, members)
    return {"tensor": name, "shape": list(table.shape), "words": list(found), "spaces": studied}


def choose_vocabulary(args, models):
    """The vocabulary to look at: (its name, the bytes of every id, the model width d).
    --tokenizer's, else the first model's, else GPT-2's."""
    source = args.tokenizer or next(iter(models), "gpt2")
    if source in models:
        return source, read_vocabulary(source), models[source]["shape"][1]
    if source == "gpt2":
        return "gpt2", tokenizer.token_bytes(tokenizer.gpt2()), 768
    path = Path(source)
    of_hub = "/" in source and not path.parent.is_dir()  # what is in a folder here is a run
    if source.endswith(".json") or (path / "tokenizer.json").is_file() or of_hub:
        return source, read_vocabulary(source), 768
    model, tok, _ = load_model(source)
    return tok.name, tokenizer.token_bytes(tok), model.config.n_embd


def study_vocabulary(strings, words):
    """The five tokens nearest to each " word" in Kronecker space: {word: [(text, cosine), ...]}."""
    ids = torch.tensor([i for i, raw in enumerate(strings) if raw])
    spelled = [f" {word}".encode() for word in words]
    rows = kron_code(strings + spelled)
    index = {raw: i for i, raw in reversed(list(enumerate(strings)))}
    own = [index.get(raw, -1) for raw in spelled]
    best, _ = nearest(rows(len(strings) + torch.arange(len(words))), own, rows, ids, 5)
    near = {}
    for word, row in zip(words, best):
        near[word] = [(strings[i].decode(errors="replace"), cosine) for i, cosine in row]
    return near


def main(args):
    words = [word for word in dict.fromkeys(args.words.split(",")) if word]
    families = read_families(args.families)
    if not words:
        raise InputError("--words is empty")
    models = {model: study_model(model, args.tensor, words, families)
              for model in dict.fromkeys(args.model)}
    name, strings, width = choose_vocabulary(args, models)
    if not any(strings):
        raise InputError(f"{name}: its vocabulary has no token")
    near = study_vocabulary(strings, words)
    falloff = []
    for anchor, variants in FALLOFF.items():
        for variant in variants.split():
            falloff.append({"anchor": anchor, "variant": variant,
                            "edits": edit_distance(anchor, variant),
                            "cosine": kron_cosine(anchor.encode(), variant.encode(),
                                                  PUBLISHED_P)})
    use = {}
    for pos_dim in WIDTHS:
        rows, rank = rows_and_rank(strings, pos_dim)
        use[pos_dim] = truncation(strings, pos_dim) | {
            "rows": rows, "rank": rank, "params": 256 * pos_dim * width,
            "params_in_use": rows * width}
    stability = []
    for a, b in itertools.combinations(models, 2):
        shared = {space: jaccard(models[a]["spaces"][space]["neighbours"],
                                 models[b]["spaces"][space]["neighbours"]) for space in SPACES}
        stability.append({"models": [a, b]} | shared)
    text = vocabulary_tables(name, strings, width, near, falloff, use)
    if models:
        text += model_tables(models, stability)
    save(args, text + [PUBLISHED],
         {"tokenizer": name, "tokens": len(strings), "width": width, "neighbours": near,
          "falloff": falloff, "use": use, "models": models, "jaccard": stability},
         draw(falloff, models))


def percent(share):
    """A share as text, in percent."""
    return "-" if share is None else f"{100 * share:.0f}"


def vocabulary_tables(name, strings, width, near, falloff, use):
    """The page's texts about one vocabulary."""
    rows = []
    for word, neighbours in near.items():
        cells = [f"{text!r} ({cosine:.2f})".replace("|", "¦") for text, cosine in neighbours]
        rows.append([word, ", ".join(cells)])
    share = typographic({word: [text for text, _ in row] for word, row in near.items()})
    text = [f"Of {name}'s {len(strings):,} tokens the five nearest to \" word\" in Kronecker space "
            f"(P = 32), {percent(share)} % typographic variants:",
            markdown_table(["word", "nearest (cosine)"], rows)]
    rows = [[row["anchor"], row["variant"], row["edits"], f"{row['cosine']:.3f}"]
            for row in falloff]
    text += ["Falloff with edit distance:",
             markdown_table(["anchor", "variant", "edits", "cos z"], rows)]
    rows = []
    for pos_dim, numbers in use.items():
        rows.append([pos_dim, numbers["longer"], numbers["share"],
                     f"{numbers['rows']:,} of {256 * pos_dim:,}", f"{numbers['rank']:,}",
                     f"{numbers['params_in_use']:,} of {numbers['params']:,}"])
    text += [f"What P does to {name}'s tokens. Rows of W that some token sums, the rank of all "
             f"tokens' codes, and the parameters in those rows at d = {width}:",
             markdown_table(["P (bytes)", "longer than P", "share their code", "rows in use",
                             "rank", "parameters in use"], rows)]
    rows = []
    for pos_dim, numbers in use.items():
        for writing, (tokens, longer, shared) in numbers["scripts"].items():
            rows.append([pos_dim, writing, f"{tokens:,}", longer, shared])
    if rows:
        text += ["By script, where any token is longer than P or shares its code:",
                 markdown_table(["P (bytes)", "script", "tokens", "longer than P",
                                 "share their code"], rows)]
    else:
        text.append("No token is longer than any of these P or shares its code.")
    return text


def model_tables(models, stability):
    """The page's texts about public models."""
    rows = []
    for model, study in models.items():
        size = f"{study['shape'][0]:,} x {study['shape'][1]:,}"
        for space, numbers in study["spaces"].items():
            share = numbers["typographic"]
            row = [f"{model} ({study['tensor']}, {size})", space, len(study["words"]),
                   percent(share), percent(None if share is None else 1 - share)]
            for inside, random in numbers["cosine"].values():
                row.append(f"{'-' if inside is None else f'{inside:.3f}'} over {random:.3f}")
            rows.append(row)
    text = ["Input tables of public models: of the five nearest (raw cosine) of the words that are "
            "one token, how many are typographic variants; mean cosine of pairs in a word family "
            "over that of 2,000 random pairs, raw and centred:",
            markdown_table(["model", "table", "words", "typographic (%)", "other (%)", "raw",
                            "centred"], rows)]
    rows = []
    for entry in stability:
        values = [entry[space] for space in SPACES]
        rows.append([", ".join(entry["models"]),
                     *("-" if value is None else f"{value:.2f}" for value in values)])
    if rows:
        text += ["Stability across vocabularies, mean Jaccard index of the neighbours' canonical "
                 "forms:", markdown_table(["models", *SPACES], rows)]
    return text


def draw(falloff, models):
    """The picture: the falloff, and beside it the models' typographic neighbours."""
    figure, axes = panels(2 if models else 1, 6.5)
    rows = sorted(falloff, key=lambda row: (-row["edits"], row["cosine"]))
    labels = [f"{row['anchor']} -> {row['variant']} ({row['edits']} "
              f"edit{'s' if row['edits'] > 1 else ''})" for row in rows]
    axes[0].barh(labels, [row["cosine"] for row in rows], color="#0072B2")
    axes[0].set(xlabel="cosine of z", title="Kronecker space, P = 32")
    if models:
        for i, (space, (colour, hatch)) in enumerate(SPACES.items()):
            y = [100 * (study["spaces"][space]["typographic"] or 0) for study in models.values()]
            axes[1].bar(np.arange(len(y)) + 0.27 * (i - 1), y, 0.25, label=space, color=colour,
                        hatch=hatch, edgecolor="black")
        axes[1].set(xticks=range(len(models)), title="Input tables",
                    ylabel="typographic variants among the five nearest (%)")
        axes[1].set_xticklabels([Path(model).name for model in models], rotation=20, ha="right")
        axes[1].legend()
    return figure
