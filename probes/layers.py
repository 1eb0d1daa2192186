"""Which tokens are nearest to a word at the input and after the first two blocks: itself, its root,
its family?"""
import itertools
from dataclasses import asdict

import numpy as np
import torch

from lib.plots import look, panels
from lib.run_folder import build_model
from lib.tables import markdown_table
from lib.tokenizer import token_bytes
from probes.shared import (PROMPTS, canonical, draw_points, measure_models, nearest, read_rows,
                           save)

# arXiv 2605.29459, GPT-2 124M: L / M / S over all families
PUBLISHED = {("E_raw", "bpe_tied"): "0.90 / 0.30 / 0.28", ("E_raw", "kron"): "0.97 / 0.24 / 0.22",
             ("L1", "bpe_tied"): "0.94 / 0.17 / 0.16", ("L1", "kron"): "0.97 / 0.26 / 0.23"}
OPTIONS = {"--families": dict(default=PROMPTS / "families.tsv",
                              help="word families: .tsv of family, root, word")}


def word_vectors(model, tok, words):
    """Input vectors (n, d) of " word", and the id of each, -1 where it is several tokens: there a
    code that reads bytes encodes the whole string's, the other arms average their tokens' rows."""
    vectors, own = [], []
    for word in words:
        ids = tok.encode(f" {word}")
        own.append(ids[0] if len(ids) == 1 else -1)
        if len(ids) > 1 and model.transformer.wte.reads_bytes:
            ids = [model.set_bytes(f" {word}".encode())]  # the free slot
        vectors.append(model.embed(torch.tensor(ids, device=model.device)).mean(0))
    return torch.stack(vectors), own


def levels(model, x):
    """Input vectors (n, d) -> {"E_raw": the same, "L0", "L1": after blocks 0 and 1}, each alone at
    position 0. (n, d) each."""
    found, rotary = {"E_raw": x}, None
    x = x.unsqueeze(1)  # (n, 1, d)
    if model.config.positions == "learned":
        x = x + model.transformer.wpe.weight[:1]
    else:
        rotary = model.cos[:1], model.sin[:1]
    for i, block in enumerate(model.transformer.h[:2]):
        x = block(x, rotary)
        found[f"L{i}"] = x.squeeze(1)
    return found


def shares(neighbours, word, root, family):
    """L, M, S of a word's neighbours (texts), in canonical form: the share that is no typographic
    variant / has the root / is in the family."""
    names = [canonical(text) for text in neighbours]
    word, root, family = canonical(word), canonical(root), {canonical(w) for w in family}
    return np.mean([(name != word, root in name, name in family) for name in names], 0).tolist()


def study(model, tok, rows):
    """A model -> ({level: [L, M, S]}, the words that are several tokens). rows: of the families."""
    texts = [raw.decode(errors="replace") for raw in token_bytes(tok)]
    words, families, found = [row["word"] for row in rows], {}, {}
    for row in rows:
        families.setdefault(row["family"], []).append(row["word"])
    ids = torch.arange(len(texts), device=model.device)
    parts = [levels(model, model.embed(part)) for part in ids.split(4096)]
    vectors, own = word_vectors(model, tok, words)
    for level, queries in levels(model, vectors).items():
        table = torch.cat([part[level] for part in parts])  # (V, d)
        near = nearest(queries, own, lambda i: table[i], ids, 10, table.mean(0))
        lms = [shares([texts[i] for i, _ in ten], row["word"], row["root"], families[row["family"]])
               for ten, row in zip(near, rows)]  # (words, 3)
        found[level] = np.mean(lms, 0).tolist()
    return found, {word for word, id in zip(words, own) if id < 0}


def aggregate(found):
    """{arm: {seed: {stage: {level: [L, M, S]}}}} -> {arm: {stage: {level: {"overall": the mean over
    seeds, "sd": None for one seed, "per_seed"}}}}."""
    means = {}
    for arm, seeds in found.items():
        first = next(iter(seeds.values()))
        means[arm] = {stage: {} for stage in first}
        for stage, level in itertools.product(first, first["trained"]):
            lms = np.array([stages[stage][level] for stages in seeds.values()])  # (seeds, 3)
            means[arm][stage][level] = {
                "overall": lms.mean(0).tolist(), "per_seed": lms.tolist(),
                "sd": lms.std(0, ddof=1).tolist() if len(lms) > 1 else None}
    return means


def main(args):
    rows, split = read_rows(args.families, ["family", "root", "word"]), set()

    def measure(model, tok, tick):
        untrained = build_model(asdict(model.config), tok).eval().to(model.device)
        stages = {}
        for stage, m in (("trained", model), ("step 0", untrained)):
            stages[stage], several = study(m, tok, rows)
            split.update(several)
            tick()
        return stages
    runs, found = measure_models(args, 2, measure)
    means, split = aggregate(found), sorted(split)
    save(args, tables(means, len(rows), split),
         {"words_of_several_tokens": split, "levels": means}, draw(means), runs)


def triple(x):
    """L / M / S as text."""
    return " / ".join(f"{value:.2f}" for value in x) if x else "-"


def tables(means, count, split):
    """The page's texts: a table a level."""
    text = ["L / M / S: the share of the ten nearest tokens (by cosine, mean-centred, the word's "
            "own token left out) that is no typographic variant / contains the family's root / is "
            "in the family. Words have a leading space; means over seeds. Step 0: the same model "
            "before its first step; what it has too is a property of the code, not of training.",
            f"Of the {count} words {len(split)} are several tokens in this vocabulary: codes that "
            "read bytes encode their whole bytes, the other arms average their tokens' rows. They "
            f"are: {', '.join(split) or 'none'}."]
    for level in next(iter(means.values()))["trained"]:
        trained = [stages["trained"][level] for stages in means.values()]
        untrained = [stages["step 0"][level] for stages in means.values()]
        text.append(markdown_table([level, *means], [
            ["L / M / S", *(triple(numbers["overall"]) for numbers in trained)],
            ["sd over seeds", *(triple(numbers["sd"]) for numbers in trained)],
            ["at step 0", *(triple(numbers["overall"]) for numbers in untrained)],
            ["published, 124M", *(PUBLISHED.get((level, arm), "-") for arm in means)]]))
    return text


def draw(means):
    """The picture: L, M and S against the level; dotted at step 0."""
    figure, axes = panels(3, 5)
    titles = ("L: no typographic variant", "M: contains the root", "S: in the family")
    for j, (ax, title) in enumerate(zip(axes, titles)):
        points = {}
        for arm, stages in means.items():
            points[arm] = []
            for numbers in stages["trained"].values():
                of_seeds = [lms[j] for lms in numbers["per_seed"]]
                points[arm].append((numbers["overall"][j], min(of_seeds), max(of_seeds)))
            untrained = [numbers["overall"][j] for numbers in stages["step 0"].values()]
            ax.plot(range(len(untrained)), untrained, ":", color=look(arm)["color"])
        draw_points(ax, points, list(stages["trained"]), None)
        ax.set(xlabel="level (bars: range over seeds; dotted: step 0)", title=title,
               ylabel="share of the ten nearest", ylim=(0, 1.08 * ax.get_ylim()[1]))
    axes[0].legend(fontsize=8)
    return figure
