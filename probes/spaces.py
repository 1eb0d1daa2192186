"""Measures of token vectors: neighbours and word families of any, and of Kronecker codes the rows
in use, the rank, and which tokens share a code."""
import itertools
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

from codes import KroneckerEmbedding
from lib.tokenizer import script_of
from probes.shared import canonical, nearest

PUBLISHED_P = 32  # bytes that 2605.29459's own encoder reads


# ---- Kronecker space ---------------------------------------------------------------------------

def kron_code(strings, pos_dim=PUBLISHED_P):
    """The Kronecker codes z of byte strings, as a function: ids (n,) -> (n, 256 P)."""
    return KroneckerEmbedding(len(strings), 1, strings, pos_dim).code


def sharing(strings, pos_dim):
    """Of a vocabulary's byte strings, which share their first P bytes with another: list of bool.
    Ids without bytes share nothing."""
    counts = Counter(raw[:pos_dim] for raw in strings)
    return [bool(raw) and counts[raw[:pos_dim]] > 1 for raw in strings]


def truncation(strings, pos_dim):
    """What P does to a vocabulary: {"longer": tokens of more than P bytes, "share": tokens that
    share their code, "scripts": {script: [tokens, longer, share]} of the scripts that lose any}."""
    scripts = {}
    for raw, shared in zip(strings, sharing(strings, pos_dim)):
        if raw:
            counts = scripts.setdefault(script_of(raw.decode(errors="replace")), [0, 0, 0])
            counts[0] += 1
            counts[1] += len(raw) > pos_dim
            counts[2] += shared
    longer = sum(counts[1] for counts in scripts.values())
    share = sum(counts[2] for counts in scripts.values())
    lossy = {name: counts for name, counts in sorted(scripts.items()) if counts[1] or counts[2]}
    return {"longer": longer, "share": share, "scripts": lossy}


def rows_and_rank(strings, pos_dim):
    """(how many of the 256 P rows of W some token sums, the rank of the vocabulary's codes).

    The rank is that of the 0/1 matrix of tokens by rows in use, by the eigenvalues of its Gram
    matrix, whose entries are whole numbers and exact in float32.
    """
    code = KroneckerEmbedding(len(strings), 1, strings, pos_dim)
    ids = torch.arange(len(strings))
    used = code.rows(ids)[code.present(ids)].unique()
    place = torch.zeros(256 * pos_dim, dtype=torch.int64)
    place[used] = torch.arange(len(used))
    gram = torch.zeros(len(used), len(used), dtype=torch.float64)
    for part in ids.split(4096):
        bag = torch.zeros(len(part), len(used))
        bag.scatter_add_(1, place[code.rows(part)], code.present(part).float())
        gram += (bag.T @ bag).double()
    rank = int((torch.linalg.eigvalsh(gram) > 1e-6).sum()) if len(used) else 0
    return len(used), rank


# ---- spaces and their neighbours ---------------------------------------------------------------

def typographic(near):
    """{word: its neighbours' texts} -> the share of neighbours that are typographic variants of
    their word; None without neighbours."""
    variants = [canonical(text) == canonical(word) for word, texts in near.items()
                for text in texts]
    return float(np.mean(variants)) if variants else None


def mean_cosine(rows, pairs, centre):
    """Mean cosine of pairs of ids (2, n) once `centre` is taken off; None without pairs."""
    if not pairs.numel():
        return None
    return F.cosine_similarity(rows(pairs[0]) - centre, rows(pairs[1]) - centre).mean().item()


def study_space(rows, ids, texts, words, families):
    """One space over a vocabulary: the five tokens nearest to each word, and cosines inside
    families and of random pairs.

    rows: a function, ids (n,) -> (n, d); ids: the candidates; texts: of every id; words:
    {word: id}; families: lists of ids.
    """
    mean = (sum(rows(part).double().sum(0) for part in ids.split(4096)) / len(ids)).float()
    own = list(words.values())
    best, _ = nearest(rows(torch.tensor(own)), own, rows, ids, 5)
    near = {word: [texts[i] for i, _ in row] for word, row in zip(words, best)}
    inside = [pair for family in families for pair in itertools.combinations(family, 2)]
    inside = torch.tensor(inside, dtype=torch.int64).view(-1, 2).T
    random = torch.from_numpy(np.random.RandomState(0).randint(0, len(ids), (2, 2000)))
    cosine = {}
    for name, centre in (("raw", 0.0), ("centred", mean)):
        cosine[name] = [mean_cosine(rows, inside, centre), mean_cosine(rows, ids[random], centre)]
    return {"typographic": typographic(near), "neighbours": near, "cosine": cosine}


def jaccard(a, b):
    """Two {word: neighbours} -> mean over common words of |A n B| / |A u B|, sets of canonical
    forms; None without any."""
    values = []
    for word in a:
        if word in b:
            x, y = {canonical(text) for text in a[word]}, {canonical(text) for text in b[word]}
            values.append(len(x & y) / len(x | y))
    return sum(values) / len(values) if values else None
