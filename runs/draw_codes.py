"""Draws results/codes.png, the picture of the README: the codes of four words.

    python -m runs.draw_codes [--out=FILE.png]

`python codes.py WORD...` prints the same of any words.
"""
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from codes import (KroneckerEmbedding, affine_code, binary_code, code_bits, draw_affine,
                   kron_cosine, kron_rows, tile)
from lib.config import ROOT
from lib.errors import Parser, run, write_atomic
from lib.run_folder import load_checkpoint
from lib.tokenizer import from_state, token_bytes

WORDS = [" run", " runs", " RUN", " ran"]
P, D, SEED = 16, 192, 1337  # pos_dim, width and seed of configs/tiny.py
SHARED, OWN = "#F0B030", "#0B4F8A"  # rows of W that several words have, or one; also in grey
INK = {"cmap": "Greys", "vmin": -0.1, "vmax": 1.2, "interpolation": "nearest", "aspect": "auto"}
LEFT = 0.14  # of what is drawn, as a share of the width
WIDTH, HEIGHT = 9, 7.2  # inches
MONO = {"family": "monospace", "fontsize": 8}


def bare(figure, left, bottom, width, height, cells=None):
    """Axes at a place in inches from the bottom, without frame and ticks; `cells`, (columns, rows),
    draws white lines between them."""
    ax = figure.add_axes([left, bottom / HEIGHT, width, height / HEIGHT])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xticks=[], yticks=[])
    if cells:
        for axis, count in zip((ax.xaxis, ax.yaxis), cells):
            axis.set_ticks([i - 0.5 for i in range(count + 1)], minor=True)
        ax.grid(which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    return ax


def heading(figure, inches, name, text):
    """A code's name and what it is."""
    figure.text(0.012, inches / HEIGHT, name, fontsize=10, weight="bold", va="top")
    figure.text(LEFT, inches / HEIGHT, text, fontsize=9, va="top")


def draw_bits(figure, bottom, height, names, bits):
    """Codes (tokens, K), and the strips that repeat each to the model's width."""
    n, K = bits.shape
    ax = bare(figure, LEFT, bottom, 0.18, height, (K, n))
    ax.imshow(bits.numpy(), **INK)
    ax.set_yticks(range(n), names, **MONO)
    figure.text(LEFT + 0.195, (bottom + height / 2) / HEIGHT, "→", ha="center", va="center")
    strip = bare(figure, LEFT + 0.21, bottom, 0.42, height)
    strip.imshow(tile(bits, D).numpy(), **INK)
    for i in range(n + 1):
        strip.axhline(i - 0.5, color="white", lw=2)
    strip.axvline(K - 0.5, color=SHARED, lw=1.5)


def draw_words(figure, bottom, height):
    """Each word's grid of byte x position, with the row of W in each cell that it has."""
    rows = [kron_rows(word.encode(), P) for word in WORDS]
    used, left = sorted(set("".join(WORDS).encode())), LEFT
    for i, (word, own) in enumerate(zip(WORDS, rows)):
        ax = bare(figure, left, bottom, 0.0315 * len(own), height, (len(own), len(used)))
        ax.set(xlim=(-0.5, len(own) - 0.5), ylim=(len(used) - 0.5, -0.5), facecolor="#F2F2F2")
        ax.set_title(f'"{word}"', fontsize=9, family="monospace")
        ax.set_xticks(range(len(own)), range(len(own)), fontsize=7)
        if i == 0:
            names = [f"{'space' if byte == 32 else chr(byte)} {byte:>3}" for byte in used]
            ax.set_yticks(range(len(used)), names, **MONO)
        for x, row in enumerate(own):
            y, shared = used.index(row // P), sum(row in others for others in rows) > 1
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, ec="white",
                                   facecolor=SHARED if shared else OWN))
            ax.text(x, y, row, ha="center", va="center", fontsize=6.5,
                    color="black" if shared else "white")
        left += 0.0315 * len(own) + 0.015
    figure.text(LEFT - 0.015, (bottom - 0.17) / HEIGHT, "position", fontsize=8, ha="right")


def draw_cosines(figure, bottom, height):
    """The cosine of kron's codes of each word with each."""
    ax = bare(figure, 0.985 - height / WIDTH, bottom, height / WIDTH, height)
    cosines = [[kron_cosine(a.encode(), b.encode(), P) for b in WORDS] for a in WORDS]
    ax.imshow(cosines, **INK | {"vmax": 1.6})
    for y, row in enumerate(cosines):
        for x, cosine in enumerate(row):
            ax.text(x, y, f"{cosine:.2f}", ha="center", va="center", fontsize=7.5)
    names = [f'"{word}"' for word in WORDS]
    ax.set_xticks(range(len(names)), names, family="monospace", fontsize=7)
    ax.set_yticks(range(len(names)), names, family="monospace", fontsize=7)
    ax.set_title("cosines of kron's codes", fontsize=9, loc="right")


def draw_sum(figure, bottom, height):
    """The first word's rows of W, before training, and the vector that they give."""
    kron, rows = KroneckerEmbedding(1, D, [WORDS[0].encode()], P), kron_rows(WORDS[0].encode(), P)
    with torch.no_grad():
        vector = kron(torch.zeros(1, dtype=torch.int64))  # (1, D)
    ink = INK | {"cmap": "RdBu", "vmin": -3, "vmax": 3}
    ax = bare(figure, LEFT, bottom, 0.36, height, (0, len(rows)))
    ax.imshow(kron.W[rows].detach().numpy() / kron.W.std().item(), **ink)
    ax.set_yticks(range(len(rows)), [f"W[{row}]" for row in rows], **MONO)
    ax.set_title(f'↓ rows of W that "{WORDS[0]}" has (before training)', fontsize=9, loc="left")
    figure.text(LEFT + 0.375, (bottom + height / 2) / HEIGHT, "→ sum →", va="center")
    ax = bare(figure, LEFT + 0.46, bottom + height / 2 - 0.09, 0.36, 0.18)
    ax.imshow(vector.numpy(), **ink)
    ax.set_title(f'the vector of "{WORDS[0]}"', fontsize=9)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "results" / "codes.png"))
    out = parser.parse_args().out
    tok = from_state(load_checkpoint(ROOT / "results" / "demo" / "kron.pt")["tokenizer"])
    ids = [id for word in WORDS for id in tok.encode(word)]
    strings, K = token_bytes(tok), code_bits(tok.vocab_size)
    names = [f'"{strings[id].decode()}" {id:>5}' for id in ids]
    A, b = draw_affine(K, SEED)
    bits = binary_code(torch.tensor(ids), K)
    figure = Figure(figsize=(WIDTH, HEIGHT))

    heading(figure, 7.12, "binary", f"the {K} bits of the token id, lowest first, repeated to the "
            f"model's width {D} (line: end of the first copy); nothing is trained")
    draw_bits(figure, 5.82, 1.08, names, bits)
    powers = " + ".join(str(2**i) for i in range(K) if ids[0] >> i & 1)
    figure.text(LEFT + 0.65, 6.9 / HEIGHT, f'{ids[0]} = {powers}\n\n"RUN" is 3 tokens here;\n'
                "kron below is of the\nwhole word", fontsize=8, va="top")
    heading(figure, 5.62, "affine", "the same bits x, mixed: A x + b modulo 2, with A and b drawn "
            "once for all; nothing is trained")
    draw_bits(figure, 4.32, 1.08, names, affine_code(bits, A, b))
    for left, width, name, values in ((0.795, 0.111, "A", A), (0.917, 0.012, "b", b[:, None])):
        ax = bare(figure, left, 4.4, width, 1.0)
        ax.imshow(values.numpy(), **INK)
        ax.set_xlabel(name, fontsize=8, labelpad=1)

    heading(figure, 4.08, "kron", f"byte value v at position i has row v x {P} + i of W, a trained "
            f"matrix of {256 * P:,} rows of {D} numbers.\nOrange (light): rows that several of "
            "these words have")
    draw_words(figure, 1.6, 1.8)
    draw_cosines(figure, 1.9, 1.5)
    draw_sum(figure, 0.25, 0.8)
    write_atomic(out, lambda file: figure.savefig(file, format="png", dpi=200))
    print(f"wrote {out}")


if __name__ == "__main__":
    run(main)
