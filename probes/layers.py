"""Which tokens are nearest to a word at the input and after the first two blocks: itself, its root,
its family?"""
from dataclasses import asdict

import numpy as np
import torch

from lib.run_folder import build_model
from lib.tables import markdown_table
from lib.tokenizer import token_bytes
from probes.shared import PROMPTS, canonical, measure_models, nearest, read_rows, save

# arXiv 2605.29459, GPT-2 124M: L / M / S over all families
PUBLISHED = {("E_raw", "bpe_tied"): "0.90 / 0.30 / 0.28", ("E_raw", "kron"): "0.97 / 0.24 / 0.22",
             ("L1", "bpe_tied"): "0.94 / 0.17 / 0.16", ("L1", "kron"): "0.97 / 0.26 / 0.23"}
OPTIONS = {"--families": dict(default=PROMPTS / "families.tsv",
                              help="word families: .tsv of family, root, word")}
STAGES = ["trained", "step 0"]


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
    position 0, where rotary positions turn nothing. (n, d) each."""
    found, x = {"E_raw": x}, x.unsqueeze(1)  # (n, 1, d)
    if model.config.positions == "learned":
        x = x + model.transformer.wpe.weight[:1]
    for i, block in enumerate(model.transformer.h[:2]):
        x = block(x)
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
    """{arm: {seed: {level: [L, M, S] of each stage}}} -> {arm: {stage: {level: {"overall": the mean
    over seeds, "sd": None for one seed}}}}."""
    means = {arm: {stage: {} for stage in STAGES} for arm in found}
    for arm, seeds in found.items():
        for level in next(iter(seeds.values())):
            values = np.array([of_seed[level] for of_seed in seeds.values()])  # (seeds, stages, 3)
            for stage, lms in zip(STAGES, values.swapaxes(0, 1)):
                means[arm][stage][level] = {
                    "overall": lms.mean(0).tolist(),
                    "sd": lms.std(0, ddof=1).tolist() if len(lms) > 1 else None}
    return means


def main(args):
    families, split = read_rows(args.families, ["family", "root", "word"]), set()

    def measure(model, tok, stage, head):
        if stage == "step 0":
            model = build_model(asdict(model.config), tok).eval().to(model.device)
        found, several = study(model, tok, families)
        split.update(several)
        return found
    runs, found = measure_models(args, STAGES, measure)
    means, several = aggregate(found), sorted(split)
    text = ["L / M / S: the share of the ten nearest tokens (by cosine, mean-centred, the word's "
            "own token left out) that is no typographic variant / contains the family's root / is "
            "in the family. Words have a leading space; means over seeds. Step 0: the same model "
            "before its first step; what it has too is a property of the code, not of training.",
            f"Of the {len(families)} words {len(several)} are several tokens in this vocabulary: "
            "codes that read bytes encode their whole bytes, the other arms average their tokens' "
            f"rows. They are: {', '.join(several) or 'none'}."]
    wanted = {"L / M / S": ("trained", "overall"), "sd over seeds": ("trained", "sd"),
              "at step 0": ("step 0", "overall")}
    for level in next(iter(means.values()))["trained"]:
        rows = []
        for name, (stage, key) in wanted.items():
            triples = [stages[stage][level][key] or [] for stages in means.values()]
            rows.append([name, *(" / ".join(f"{x:.2f}" for x in lms) or "-" for lms in triples)])
        rows.append(["published, 124M", *(PUBLISHED.get((level, arm), "-") for arm in means)])
        text.append(markdown_table([level, *means], rows))
    save(args, text, {"words_of_several_tokens": several, "levels": means}, None, runs)
