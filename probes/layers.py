"""Which tokens are nearest to a word at the input and after the first two blocks: itself, its root,
its family?"""
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F

from lib import tokenizer
from lib.run_folder import build_model
from lib.plots import draw_bars, look, panels
from lib.tables import markdown_table
from probes.shared import PROMPTS, canonical, measure_runs, nearest, read_families, save

# arXiv 2605.29459, GPT-2 124M: L / M / S over all families
PUBLISHED = {("E_raw", "bpe_tied"): "0.90 / 0.30 / 0.28", ("E_raw", "kron"): "0.97 / 0.24 / 0.22",
             ("L1", "bpe_tied"): "0.94 / 0.17 / 0.16", ("L1", "kron"): "0.97 / 0.26 / 0.23"}


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="like out/tiny-kron-s1")
    parser.add_argument("--families", default=PROMPTS / "families.tsv",
                        help="word families: .tsv or .jsonl of family, root, word")


def word_vectors(model, tok, words):
    """Input vectors (n, d) of " word", and the id of each, -1 where it is several tokens: there a
    code that reads bytes encodes the whole string's, the other arms average their tokens' rows."""
    wte, vectors, own = model.transformer.wte, [], []
    for word in words:
        ids = tok.encode(f" {word}")
        own.append(ids[0] if len(ids) == 1 else -1)
        if len(ids) > 1 and wte.reads_bytes:
            ids = [model.set_bytes(f" {word}".encode())]  # the free slot
        vectors.append(wte(torch.tensor(ids, device=model.device)).mean(0))
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
    """L, M, S of a word's neighbours (texts): the share that is no typographic variant / has the
    root / is in the family. All are compared in their canonical form."""
    names = [canonical(text) for text in neighbours]
    word, root, family = canonical(word), canonical(root), {canonical(w) for w in family}
    counts = (sum(name != word for name in names), sum(root in name for name in names),
              sum(name in family for name in names))
    return [count / len(names) for count in counts]


def study(model, tok, families):
    """A model -> ({level: {family or "overall": [L, M, S], "self_retrieval", "random_pair"}},
    the words that are several tokens)."""
    words = [(family, word) for family, (_, members) in families.items() for word in members]
    texts = [raw.decode(errors="replace") for raw in tokenizer.token_bytes(tok)]
    ids = torch.arange(len(texts), device=model.device)
    vectors, own = word_vectors(model, tok, [word for _, word in words])
    queries = levels(model, vectors)
    parts = [levels(model, model.embed(part)) for part in ids.split(4096)]
    pairs = np.random.RandomState(0).randint(0, len(ids), (2, 10_000))
    pairs = torch.from_numpy(pairs).to(model.device)
    found = {}
    for level in queries:
        table = torch.cat([part[level] for part in parts])  # (V, d)
        mean = table.mean(0)
        near, itself = nearest(queries[level], own, lambda i: table[i], ids, 10, mean)
        lms = []
        for row, (family, word) in zip(near, words):
            lms.append(shares([texts[i] for i, _ in row], word, *families[family]))
        lms = np.array(lms)  # (words, 3)
        numbers = {}
        for family in families:
            mask = [name == family for name, _ in words]
            numbers[family] = lms[mask].mean(0).tolist()
        single = [hit for hit, id in zip(itself, own) if id >= 0]
        cosine = F.cosine_similarity(*(table[pairs] - mean), dim=-1)
        numbers |= {"overall": lms.mean(0).tolist(),
                    "self_retrieval": float(np.mean(single)) if single else None,
                    "random_pair": cosine.mean().item()}
        found[level] = numbers
    return found, {word for (_, word), id in zip(words, own) if id < 0}


def main(args):
    families = read_families(args.families)
    split = set()  # the words that are several tokens

    def measure(model, tok, tick):
        untrained = build_model(asdict(model.config), tok).eval().to(model.device)
        stages = {}
        for stage, m in (("trained", model), ("step 0", untrained)):
            stages[stage], several = study(m, tok, families)
            split.update(several)
            tick()
        return stages
    found, runs = measure_runs(args.runs, args.tuned, 2, measure)
    save(args, tables(found, families, split),
         {"runs": runs, "words_of_several_tokens": sorted(split), "levels": aggregate(found)},
         draw(found))


def values_of(seeds, stage, level, key):
    """One number or triple a seed: (seeds,) or (seeds, 3); nan for a None."""
    return np.array([stages[stage][level][key] for stages in seeds.values()], float)


def aggregate(found):
    """{arm: {seed: {stage: {level: numbers}}}} -> {arm: {stage: {level: {key: the mean over seeds,
    "sd": of the overall L, M, S}}}}; None where there is nothing to average."""
    levels = {}
    for arm, seeds in found.items():
        levels[arm] = {}
        for stage, by_level in next(iter(seeds.values())).items():
            levels[arm][stage] = {}
            for level, keys in by_level.items():
                means = {key: values_of(seeds, stage, level, key).mean(0).tolist() for key in keys}
                if keys["self_retrieval"] is None:
                    means["self_retrieval"] = None
                overall = values_of(seeds, stage, level, "overall")
                means["sd"] = overall.std(0, ddof=1).tolist() if len(overall) > 1 else None
                levels[arm][stage][level] = means
    return levels


def triple(x):
    """L / M / S as text."""
    return " / ".join(f"{value:.2f}" for value in x)


def tables(found, families, split):
    """The page's texts: a table a level."""
    words = [word for _, members in families.values() for word in members]
    several = ", ".join(word for word in words if word in split) or "none"
    text = ["L / M / S: the share of the ten nearest tokens (by cosine, mean-centred, the word's "
            "own token left out) that is no typographic variant / contains the family's root / is "
            "in the family. Words have a leading space; means over seeds. Step 0: the same model "
            "before its first step; what it has too is a property of the code, not of training.",
            f"Of the {len(words)} words {len(split)} are several tokens in this vocabulary: codes "
            "that read bytes encode their whole bytes, the other arms average their tokens' rows. "
            f"They are: {several}."]
    if len(split) < len(set(words)):
        text.append("Sanity: a word of one token should be its own nearest always (1.00), and "
                    "random pairs should have a cosine near 0.")
    else:
        text.append("No word is one token here, so whether words find themselves is not tested.")
    means = aggregate(found)
    first_arm = next(iter(means.values()))
    for level in first_arm["trained"]:
        trained = [stages["trained"][level] for stages in means.values()]
        untrained = [stages["step 0"][level] for stages in means.values()]
        rows = []
        for family, (_, members) in families.items():
            count = f"{len(split & set(members))} of {len(members)}"
            rows.append([f"{family} ({count} words are several tokens)",
                         *(triple(numbers[family]) for numbers in trained)])
        rows.append(["overall", *(triple(numbers["overall"]) for numbers in trained)])
        rows.append(["sd over seeds",
                     *(triple(numbers["sd"]) if numbers["sd"] else "-" for numbers in trained)])
        rows.append(["overall at step 0", *(triple(numbers["overall"]) for numbers in untrained)])
        rows.append(["published, 124M, overall",
                     *(PUBLISHED.get((level, arm), "-") for arm in means)])
        if len(split) < len(set(words)):
            rows.append(["sanity: its own nearest",
                         *(f"{numbers['self_retrieval']:.2f}" for numbers in trained)])
        rows.append(["sanity: random pairs' cosine",
                     *(f"{numbers['random_pair']:.2f}" for numbers in trained)])
        text.append(markdown_table([level, *means], rows))
    return text


def draw(found):
    """The picture: L, M and S against the level; hollow at step 0."""
    names = list(next(iter(next(iter(found.values())).values()))["trained"])
    figure, axes = panels(3, 5)
    titles = ("L: no typographic variant", "M: contains the root", "S: in the family")
    for j, (ax, title) in enumerate(zip(axes, titles)):
        for i, (arm, seeds) in enumerate(found.items()):
            x = np.arange(len(names)) + (i - (len(found) - 1) / 2) * 0.04
            y = np.array([values_of(seeds, "trained", level, "overall")[:, j] for level in names])
            draw_bars(ax, arm, x, y.mean(1), y.min(1), y.max(1))  # y (levels, seeds)
            y = np.array([values_of(seeds, "step 0", level, "overall")[:, j] for level in names])
            ax.plot(x, y.mean(1), ls="", mfc="none", color=look(arm)["color"],
                    marker=look(arm)["marker"], label="step 0" if i == 0 else None)
        ax.set(xticks=range(len(names)), xticklabels=names, xlabel="level (bars: range over seeds)",
               title=title, ylabel="share of the ten nearest", ylim=(0, 1.08 * ax.get_ylim()[1]))
    axes[0].legend(fontsize=8)
    return figure
