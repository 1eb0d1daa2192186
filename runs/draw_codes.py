"""Draws results/codes.png, the README's picture of the codes of four words.

    python -m runs.draw_codes
"""
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from codes import (KroneckerEmbedding, affine_code, binary_code, code_bits, draw_affine,
                   kron_cosine, kron_rows, tile)
from lib.config import ROOT
from lib.run_folder import load_model
from lib.tokenizer import token_bytes

WORDS = [b" run", b" runs", b" RUN", b" ran"]
NAMES = [f'"{word.decode()}"' for word in WORDS]
P, D, SEED = 16, 192, 1337  # pos_dim, width and seed of configs/tiny.py
CELLS = ListedColormap(["#F2F2F2", "#F0B030", "#0B4F8A"])  # no byte; rows of several words, of one
BITS = {"cmap": "Greys", "vmin": -0.1, "vmax": 1.2}
WEIGHTS = {"cmap": "RdBu", "vmin": -3, "vmax": 3}
HEADING = {"x": 0.01, "ha": "left", "fontsize": 9.5}
MONO = {"family": "monospace", "fontsize": 8}


def picture(ax, values, names=(), title="", cells=False, **ink):
    """Numbers as a picture, a name before each row; `cells`: with white lines around each."""
    rows, columns = np.shape(values)
    if cells:
        ax.pcolormesh(values, edgecolors="white", linewidth=1, **ink)
    else:
        ax.imshow(values, extent=(0, columns, 0, rows), origin="lower", aspect="auto",
                  interpolation="nearest", **ink)
    if rows < 10:
        ax.hlines(range(1, rows), 0, columns, color="white", lw=2)
    ax.set(xticks=[], ylim=(rows, 0))
    ax.set_yticks(np.arange(len(names)) + 0.5, names, **MONO)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=9)
    ax.spines[:].set_visible(False)


def arrow(left, start, right, end, text=""):
    """An arrow from a point of one panel, in its data, to a point of another; or from a text."""
    right.annotate(text, end, start, textcoords=left, **MONO, va="center", annotation_clip=False,
                   arrowprops={"arrowstyle": "->", "lw": 0.8})


def draw_bits(figure, title, names, bits):
    """Codes (tokens, K), and the strips that repeat each to the model's width."""
    figure.suptitle(title, **HEADING)
    left, right = figure.subplots(1, 2, width_ratios=[2, 5])
    picture(left, bits, names, cells=True, **BITS)
    picture(right, tile(bits, D), **BITS)
    right.axvline(bits.shape[1], color=CELLS(1), lw=1.5)
    middle = len(names) / 2
    arrow(left.transData, (bits.shape[1] + 0.1, middle), right, (-0.5, middle))


def draw_words(figure):
    """Each word's grid of byte x position, with the row of W in each cell that it has; cosines."""
    figure.suptitle(f"""kron, of whole words: byte value v at position i has row v x {P} + i of W, \
a trained matrix of {256 * P:,} x {D} numbers.
Light orange: rows that several of these words have; dark blue: rows of one""", **HEADING)
    rows, used = [kron_rows(word, P) for word in WORDS], sorted(set(b"".join(WORDS)))
    bytes_of = [f"{'space' if byte == 32 else chr(byte)} {byte:>3}" for byte in used]
    *axes, last = figure.subplots(1, 5, width_ratios=[*map(len, WORDS), 6])
    for ax, name, own in zip(axes, NAMES, rows):
        cells = np.zeros((len(used), len(own)))
        for i, row in enumerate(own):
            y, shared = used.index(row // P), sum(row in other for other in rows) > 1
            cells[y, i] = 1 if shared else 2
            ax.text(i + 0.5, y + 0.5, row, ha="center", va="center", fontsize=7,
                    color="black" if shared else "white")
        picture(ax, cells, bytes_of if ax is axes[0] else (), cells=True, cmap=CELLS, vmax=2)
        ax.set_xticks(np.arange(len(own)) + 0.5, range(len(own)), fontsize=7)
        ax.set_title(name, family="monospace", fontsize=9)
    axes[0].set_xlabel("position", fontsize=8)
    cosines = [[kron_cosine(a, b, P) for b in WORDS] for a in WORDS]
    picture(last, cosines, NAMES, "cosines of kron's codes", cells=True, **BITS | {"vmax": 1.6})
    for (y, x), cosine in np.ndenumerate(cosines):
        last.text(x + 0.5, y + 0.5, f"{cosine:.2f}", ha="center", va="center", fontsize=8)


def draw_sum(figure):
    """From the rows of the first word through W, before training, to its vector."""
    kron, rows = KroneckerEmbedding(1, D, WORDS[:1], P), kron_rows(WORDS[0], P)
    W, vector = kron.W.detach() / kron.W.std().item(), kron(torch.tensor([0])).detach()
    whole, some, total = figure.subplots(1, 3, width_ratios=[1.4, 4, 4])
    picture(whole, W, (), "W", **WEIGHTS, alpha=0.4)
    whole.hlines(rows, 0, D, color="black", lw=1)
    picture(some, W[rows], (), f"the rows of {NAMES[0]}, before training", **WEIGHTS)
    picture(total, vector, **WEIGHTS)
    total.set_ylim(2.5, -1.5)
    total.set_title(f"their sum, scaled and shifted: the vector of {NAMES[0]}", fontsize=9, y=0.65)
    for i, row in enumerate(rows):
        middle = 256 * P * (i + 0.5) / len(rows)
        arrow("data", (-0.8 * D, middle), whole, (0, row), f"row {row}")
        arrow(whole.transData, (D, row), some, (0, i + 0.5))
    arrow(some.transData, (D + 1, len(rows) / 2), total, (-1, 0.5))


def draw():
    """The picture, with the tokenizer of results/demo."""
    _, tok, _ = load_model(ROOT / "results" / "demo" / "kron.pt")
    found = [tok.encode(word.decode()) for word in WORDS]
    ids = sum(found, [])
    strings, K = token_bytes(tok), code_bits(tok.vocab_size)
    names = [f'"{strings[id].decode()}" {id:>5}' for id in ids]
    bits = binary_code(torch.tensor(ids), K)
    figure = Figure((9, 9.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    binary, affine, wide, words, total = figure.subfigures(5, 1, height_ratios=[2, 2, 2, 3.6, 1.6])
    draw_bits(binary, f"binary: the {K} bits of the token id, lowest first, repeated to the width "
              f"{D} of the model (line: end of the first copy; {NAMES[2]} is {len(found[2])} "
              "tokens)", names, bits)
    draw_bits(affine, "affine: the same bits x, mixed: A x + b modulo 2, with A and b drawn once",
              names, affine_code(bits, *draw_affine(K, SEED)))
    wide.suptitle(f"wide: {D} different mixtures, one for each number of the vector, as -1 and +1. "
                  "In these three nothing is trained", **HEADING)
    picture(wide.subplots(), affine_code(bits, *draw_affine(K, SEED, D)), names, **BITS)
    draw_words(words)
    draw_sum(total)
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "results" / "codes.png", dpi=200)
