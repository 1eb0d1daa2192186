"""The ideas in one look: the codes of some words, and what two trained models do with a word that
they have never seen.

    python codes.py [WORD...] [--out=FILE.png]    # `main`: what the three codes are
    python sample.py                              # `echo_demo`

A worked example. kron sees the first P = 16 bytes of a token. Each byte, where it stands, has a row
of the trained matrix W, row = byte * P + position, and the token's vector is the sum of its rows:

    >>> list(b" run")
    [32, 114, 117, 110]
    >>> kron_rows(b" run")
    [512, 1825, 1874, 1763]

So two tokens are as near as they share rows. "run" has three, "runs" four, three are common, and
3 / sqrt(3 * 4) is

    >>> round(kron_cosine(b"run", b"runs"), 3)
    0.866

Swapping two letters changes two rows of 13. Losing one letter moves all that follow, to other rows:

    >>> round(kron_cosine(b"international", b"internatoinal"), 2)
    0.85
    >>> round(kron_cosine(b"international", b"interntional"), 2)
    0.48
"""
import itertools
import json
import math
import re
import shutil
import sys
import textwrap
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from codes import KroneckerEmbedding, binary_code, code_bits, tile
from lib import tokenizer
from lib.run_folder import load_checkpoint, load_model
from lib.errors import InputError, Parser, write_atomic
from codes import affine_code, draw_affine
from lib.generation import generate, refuse_context
from lib.config import ROOT
from lib.results import read_run
from model import CODES
from probes.echo import echo_nats, read_prompts

POS_DIM, WIDTH, SEED = 16, 192, 1337  # P, d and the seed of A and b: those of configs/tiny.py
CARRIED = ROOT / "results" / "demo"   # the two checkpoints that the repository carries
MOST_DRAWN = 6                        # words that a picture has room for


# ---- the codes ---------------------------------------------------------------------------------

def kron_rows(raw, pos_dim=POS_DIM):
    """Which rows of W kron sums for a token with these bytes: a list of at most P numbers."""
    embedding, id = KroneckerEmbedding(1, 1, [raw], pos_dim), torch.zeros(1, dtype=torch.int64)
    return embedding.rows(id)[embedding.present(id)].tolist()


def kron_cosine(a, b, pos_dim=POS_DIM):
    """The cosine of the Kronecker codes z of two byte strings."""
    z = KroneckerEmbedding(2, 1, [a, b], pos_dim).code(torch.arange(2)).double()
    return F.cosine_similarity(z[0], z[1], dim=0).item()


def known_tokenizer():
    """(a tokenizer, where it is from): of the carried checkpoint, or else of the docstrings that
    were prepared. InputError if neither is here."""
    checkpoint, meta = CARRIED / "kron.pt", Path("data/docstrings/meta.json")
    if checkpoint.is_file():
        return tokenizer.from_state(load_checkpoint(checkpoint)["tokenizer"]), "results/demo"
    if not meta.is_file():
        raise InputError("no tokenizer is here, neither results/demo/kron.pt nor "
                         "data/docstrings; python prepare.py docstrings makes the second")
    try:
        return tokenizer.from_state(json.loads(meta.read_bytes())["tokenizer"]), "data/docstrings"
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{meta} is damaged ({type(error).__name__}: {error}); "
                         "prepare the data again") from None


class Look:
    """Some words and their codes: what `print_codes` and `draw_codes` show.

    words: with the space that stands before them in running text; ids: of each word's tokens;
    binary and affine: {id: its K bits}, A and b as drawn by SEED.
    """

    def __init__(self, words, tok):
        self.words = [f" {word}" for word in words]
        self.raw = [word.encode() for word in self.words]
        self.ids = [tok.encode(word) for word in self.words]
        strings = tokenizer.token_bytes(tok)
        self.tokens = {id: strings[id] for ids in self.ids for id in ids}
        ids, K = torch.tensor([*self.tokens]), code_bits(tok.vocab_size)
        self.A, self.b = draw_affine(K, SEED)
        bits = binary_code(ids, K)
        self.binary = dict(zip(self.tokens, bits))
        self.affine = dict(zip(self.tokens, affine_code(bits, self.A, self.b)))
        self.rows = [kron_rows(raw) for raw in self.raw]

    def cosine(self, i, j):
        """{code: cosine of words i and j}; binary and affine only between single tokens."""
        found = {"kron": kron_cosine(self.raw[i], self.raw[j])}
        if len(self.ids[i]) == len(self.ids[j]) == 1:
            for name, codes in (("binary", self.binary), ("affine", self.affine)):
                a, b = codes[self.ids[i][0]], codes[self.ids[j][0]]
                found[name] = F.cosine_similarity(a, b, dim=0).item()
        return found

    def used_bytes(self):
        """The distinct bytes of the words, as far as kron reads them."""
        return sorted({byte for raw in self.raw for byte in raw[:POS_DIM]})

    def several(self):
        """A sentence on the words that are several tokens; empty if there are none."""
        split = [f'"{word.strip()}" is {len(ids)} tokens'
                 for word, ids in zip(self.words, self.ids) if len(ids) > 1]
        return ", ".join(split) + " here; kron below is of the whole word" if split else ""


def spelled(raw):
    """A token's bytes as text in quotes, escaped where they are none."""
    text = raw.decode("utf-8", "backslashreplace")
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + '"'


def byte_name(byte):
    """A byte as a reader knows it: a letter, space, or its number in hex."""
    if byte == 32:
        return "space"
    return chr(byte) if 32 < byte < 127 else f"0x{byte:02x}"


def digits(code):
    """A code of zeros and ones as text."""
    return "".join(str(int(bit)) for bit in code)


def print_codes(look):
    """The codes as text."""
    K = len(look.b)
    print(f"binary: the K = {K} bits of the token id, lowest first, repeated to the model's width "
          f"d ({WIDTH} / {K} = {WIDTH / K:g} times)\n"
          "affine: A x + b over GF(2), x the bits; an invertible A and a b drawn once a run, here "
          f"by seed {SEED}\n")
    width = max(len(spelled(raw)) for raw in look.tokens.values())
    print(f"  {'token':{width}}  {'id':>6}  {'binary x':{K}}  affine A x + b")
    for id, raw in look.tokens.items():
        print(f"  {spelled(raw):{width}}  {id:6}  {digits(look.binary[id])}  "
              f"{digits(look.affine[id])}")
    if look.several():
        print(f"\n  {look.several()}")

    print(f"\nkron: each byte, where it stands, is a row of W: row = byte * {POS_DIM} + position. "
          f"W has {256 * POS_DIM:,} rows; the token's vector is the sum of its own\n")
    for word, raw, rows in zip(look.words, look.raw, look.rows):
        bytes_read = " ".join(f"{byte:>4}" for byte in raw[:POS_DIM])
        cut = f"   (cut: {len(raw)} bytes, kron reads {POS_DIM})" if len(raw) > POS_DIM else ""
        print(f'  "{word}"\n    bytes {bytes_read}{cut}')
        print("    rows  " + " ".join(f"{row:>4}" for row in rows))
    lengths = [min(len(raw), POS_DIM) for raw in look.raw]
    widths = [max(length, len(word) + 2) for word, length in zip(look.words, lengths)]
    print("\n  byte \\ position  " + "  ".join(f'"{word}"'.ljust(width)
                                              for word, width in zip(look.words, widths)))
    for byte in look.used_bytes():
        cells = []
        for raw, length, width in zip(look.raw, lengths, widths):
            marks = ["#" if raw[i] == byte else "." for i in range(length)]
            cells.append("".join(marks).ljust(width))
        print(f"  {byte:>6} {byte_name(byte):8}  " + "  ".join(cells).rstrip())

    print("\ncosines\n")
    pairs = [*itertools.combinations(range(len(look.words)), 2)]
    names = [f'"{look.words[i]}", "{look.words[j]}"' for i, j in pairs]
    width = max(map(len, names), default=0)
    print(f"  {'':{width}}   kron  rows in common   binary  affine")
    for name, (i, j) in zip(names, pairs):
        cosine = look.cosine(i, j)
        common = len(set(look.rows[i]) & set(look.rows[j]))
        of = f"{common} of {len(look.rows[i])} and {len(look.rows[j])}"
        bits = [f"{cosine[code]:6.3f}" if code in cosine else "     -"
                for code in ("binary", "affine")]
        print(f"  {name:{width}}  {cosine['kron']:5.3f}  {of:14}   {'  '.join(bits)}")


# ---- the codes as a picture --------------------------------------------------------------------

# Two colours that differ in grey as well: a row of W that several words sum, and one word's own.
SHARED, OWN = "#F0B030", "#0B4F8A"
INK = {"cmap": "Greys", "vmin": -0.1, "vmax": 1.2, "interpolation": "nearest", "aspect": "auto"}
LEFT, RIGHT = 0.14, 0.985  # of what is drawn, as shares of the width


def bare(figure, left, bottom, width, height, cells=None):
    """Axes without frame and ticks; `cells`, (columns, rows), draws white lines between them."""
    ax = figure.add_axes([left, bottom, width, height])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xticks=[], yticks=[])
    if cells:
        for axis, count in zip((ax.xaxis, ax.yaxis), cells):
            axis.set_ticks([i - 0.5 for i in range(count + 1)], minor=True)
        ax.grid(which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    return ax


def draw_bits(figure, bottom, height, look, codes):
    """A panel of one of the two codes of an id: its tokens' bits, then the strip that repeats them
    to the model's width."""
    bits = torch.stack([codes[id] for id in look.tokens])
    n, K = bits.shape
    ax = bare(figure, LEFT, bottom, 0.18, height, (K, n))
    ax.imshow(bits.numpy(), **INK)
    names = [f"{spelled(raw)} {id:>5}" for id, raw in look.tokens.items()]
    ax.set_yticks(range(n), names, fontsize=8, family="monospace")
    figure.text(LEFT + 0.195, bottom + height / 2, "→", ha="center", va="center", fontsize=11)
    strip = bare(figure, LEFT + 0.21, bottom, 0.42, height)
    strip.imshow(tile(bits, WIDTH).numpy(), **INK)
    for i in range(n + 1):
        strip.axhline(i - 0.5, color="white", lw=2)
    strip.axvline(K - 0.5, color=SHARED, lw=1.5)


def draw_word(ax, look, i):
    """A word's grid of byte x position, with the row of W in each cell that it has."""
    of_others = {row for j, rows in enumerate(look.rows) if j != i for row in rows}
    used, columns = look.used_bytes(), len(look.rows[i])
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(len(used) - 0.5, -0.5), facecolor="#F2F2F2")
    ax.set_title(f'"{look.words[i]}"', fontsize=9, family="monospace")
    room = sum(map(len, look.rows)) <= 26
    labelled = range(0, columns, 1 if room else 4)
    ax.set_xticks(labelled, labelled, fontsize=7)
    for position, row in enumerate(look.rows[i]):
        shared, y = row in of_others, used.index(row // POS_DIM)
        colour = SHARED if shared else OWN
        ax.add_patch(Rectangle((position - 0.5, y - 0.5), 1, 1, facecolor=colour, ec="white"))
        if room:
            ax.text(position, y, row, ha="center", va="center", fontsize=6.5,
                    color="black" if shared else "white")


def draw_cosines(ax, look):
    """The cosine of kron's codes of each word with each."""
    names = [textwrap.shorten(f'"{word}"', 18, placeholder='..."') for word in look.words]
    n = len(names)
    cosines = [[look.cosine(i, j)["kron"] for j in range(n)] for i in range(n)]
    ax.imshow(cosines, **INK | {"vmax": 1.6})
    for i, row in enumerate(cosines):
        for j, cosine in enumerate(row):
            ax.text(j, i, f"{cosine:.2f}", ha="center", va="center", fontsize=7.5)
    style = {"fontsize": 7, "family": "monospace"}
    if max(map(len, names)) <= 8:
        ax.set_xticks(range(n), names, **style)
    ax.set_yticks(range(n), names, **style)
    ax.set_title("cosines of kron's codes", fontsize=9, loc="right")


def draw_codes(look):
    """The codes as a figure, 9 inches wide."""
    K, id = len(look.b), next(iter(look.tokens))
    strip, grid = 0.18 * len(look.tokens), 0.2 * len(look.used_bytes())  # inches
    height = 2 * strip + grid + 1.9
    figure = Figure(figsize=(9, height))

    def heading(name, text, inches):  # over `bottom`
        y = bottom + inches / height
        figure.text(0.012, y, name, fontsize=10, weight="bold", va="baseline")
        figure.text(LEFT, y, text[0], fontsize=9, va="baseline")
        for line in text[1:]:
            y -= 0.16 / height
            figure.text(LEFT, y, line, fontsize=9, va="baseline")

    bottom = 1 - (0.3 + strip) / height
    heading("binary", [f"the {K} bits of the token id, lowest first, repeated to the model's width "
                       f"{WIDTH} (line: end of the first copy); nothing is trained"], strip + 0.09)
    draw_bits(figure, bottom, strip / height, look, look.binary)
    powers = [2**i for i in range(K) if (id >> i) & 1]
    note = [f"{id} = " + " + ".join(map(str, powers)), look.several()]
    note = "\n\n".join(textwrap.fill(part, 24) for part in note if part)
    figure.text(LEFT + 0.65, bottom + strip / height, note, fontsize=8, va="top")

    bottom -= (0.4 + strip) / height
    heading("affine", ["the same bits x, mixed: A x + b modulo 2, with A and b drawn once for all; "
                       "nothing is trained"], strip + 0.09)
    draw_bits(figure, bottom, strip / height, look, look.affine)
    side = min(strip, 1.0)
    place = bottom + (strip - side) / height
    ax = bare(figure, LEFT + 0.655, place, side / 9, side / height)
    ax.imshow(look.A.numpy(), **INK)
    ax.set_xlabel("A", fontsize=8, labelpad=1)
    ax = bare(figure, LEFT + 0.665 + side / 9, place, 0.012, side / height)
    ax.imshow(look.b.unsqueeze(1).numpy(), **INK)
    ax.set_xlabel("b", fontsize=8, labelpad=1)

    bottom = 0.4 / height
    heading("kron", ["each byte, where it stands, is a row of a trained matrix W: row = byte x "
                     f"{POS_DIM} + position;", "the token's vector is the sum of its rows. Orange "
                     "(light): rows that several of these words have"], grid + 0.48)
    side = min(grid, 1.5)
    ax = bare(figure, RIGHT - side / 9, bottom + (grid - side) / height, side / 9, side / height)
    draw_cosines(ax, look)
    lengths, gap = [*map(len, look.rows)], 0.015
    room = 0.58 - gap * (len(lengths) - 1)
    left = LEFT
    for i, length in enumerate(lengths):
        width = room * length / sum(lengths)
        ax = bare(figure, left, bottom, width, grid / height, (length, len(look.used_bytes())))
        draw_word(ax, look, i)
        if i == 0:
            names = [f"{byte_name(byte)} {byte:>3}" for byte in look.used_bytes()]
            ax.set_yticks(range(len(names)), names, fontsize=8, family="monospace")
        left += width + gap
    figure.text(LEFT - 0.015, 0.24 / height, "position", fontsize=8, ha="right")
    return figure


def main():
    parser = Parser(description="What the three codes are, for words as they stand in running text "
                                "(with a space before them).")
    parser.add_argument("words", nargs="*", metavar="WORD", default=["run", "runs", "RUN", "ran"],
                        help="default: run runs RUN ran")
    parser.add_argument("--out", help="draw it too, FILE.png")
    args = parser.parse_args()
    words = list(dict.fromkeys(args.words))
    if "" in words:
        raise InputError("an empty word has no code")
    try:
        "".join(words).encode()
    except UnicodeError as error:
        raise InputError(f"a word is not UTF-8 ({error})") from None
    if args.out and not args.out.endswith(".png"):
        raise InputError(f"--out={args.out}: a picture is a .png file")
    if args.out and len(words) > MOST_DRAWN:
        raise InputError(f"--out: a picture has room for {MOST_DRAWN} words, not for {len(words)}")
    tok, where = known_tokenizer()
    look = Look(words, tok)
    print(f"{len(words)} words; ids are those of the tokenizer {tok.name} in {where}, "
          f"V = {tok.vocab_size:,}\n")
    print_codes(look)
    if args.out:
        figure = draw_codes(look)
        with warnings.catch_warnings():  # a character that the font lacks is drawn as a box
            warnings.filterwarnings("ignore", "Glyph .* missing")
            write_atomic(args.out, lambda file: figure.savefig(file, format="png", dpi=200))
        print(f"\nwrote {args.out}")


# ---- text side by side -------------------------------------------------------------------------

def continuation(model, tok, ids, seed, word="", **how):
    """Continue ids (1, T) up to <|endoftext|>; yields text as it comes, whole characters only.
    `word`: what the model's slot stands for, if it has one. `how`: arguments of `generate`."""
    generator = torch.Generator(ids.device).manual_seed(seed)
    held = []  # ids that end within a character
    for next_id in generate(model, ids, generator=generator, **how):
        if next_id == tok.eot:
            break
        if next_id == model.slot:  # it has no bytes in the tokenizer
            yield tok.decode(held) + word
            held.clear()
            continue
        held.append(next_id.item())
        text = tok.decode(held)
        if not text.endswith("\ufffd"):
            yield text
            held.clear()
    yield tok.decode(held)


def continued(model, tok, prompt, seed, **how):
    """What a model says after a prompt, whole; an empty prompt begins a document."""
    ids = torch.tensor([tok.encode(prompt) or [tok.eot]], device=model.device)
    return "".join(continuation(model, tok, ids, seed, **how))


def highlight(text, word):
    """The text with every `word` in reverse video, where standard output is a terminal."""
    if word and sys.stdout.isatty():
        return text.replace(word, f"\033[7m{word}\033[0m")
    return text


def side_by_side(columns, word=None):
    """Print texts in columns: [(title, text), ...]."""
    bars = 3 * (len(columns) - 1)
    width = max(20, (shutil.get_terminal_size((110, 24)).columns - bars) // len(columns))
    cells = []
    for title, text in columns:
        cells.append([title, "-" * len(title)])
        for line in text.split("\n"):
            cells[-1] += textwrap.wrap(line, width) or [""]
    for row in itertools.zip_longest(*cells, fillvalue=""):
        print(highlight(" | ".join(cell.ljust(width) for cell in row).rstrip(), word))
    print()


# ---- which two models --------------------------------------------------------------------------

def newest_pair():
    """The newest two runs under out/ that can stand side by side: one whose input reads bytes (kron
    if it is there), one with a learned table (bpe_untied if it is there), of one dataset, size,
    number of steps and seed. [folder, folder], or None."""
    groups = {}  # {what they share: {arm: (folder, its code)}}, newest first
    paths = sorted(Path("out").glob("*/ckpt.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            header = read_run(path.parent)["header"]
        except InputError:
            continue  # not a run of ours
        config = header["config"]
        shared = [config.get(key) for key in ("dataset", "max_steps", "n_layer", "n_embd", "seed")]
        group = groups.setdefault(json.dumps([header["data"], *shared]), {})
        group.setdefault(header["arm"], (path.parent, config.get("code")))
    for group in groups.values():
        readers = [arm for arm, (_, code) in group.items()
                   if code in CODES and CODES[code].reads_bytes]
        tables = [arm for arm, (_, code) in group.items() if code == "learned"]
        if readers and tables:
            reader = "kron" if "kron" in readers else readers[0]
            table = "bpe_untied" if "bpe_untied" in tables else tables[0]
            return [group[reader][0], group[table][0]]
    return None


def demo_runs():
    """What the demo shows where no run is named: the newest pair under out/, else the two
    checkpoints that the repository carries. A list of two paths; InputError if there are none."""
    pair = newest_pair()
    if pair:
        print("the newest pair under out/")
        return pair
    pair = [CARRIED / "kron.pt", CARRIED / "bpe_untied.pt"]
    if not all(path.is_file() for path in pair):
        raise InputError("no pair of a byte-reading and a learned input under out/, and no "
                         "results/demo/*.pt; bash runs/demo.sh trains such a pair")
    print("two checkpoints that come with the repository; your own are shown once out/ has some")
    return pair


def load_models(runs, device, quiet=False):
    """Trained runs -> ([(name, model, tokenizer), ...], the highest of their best validation
    losses). Says of each which it is, and at what step, unless it is to be quiet."""
    models, losses = [], []
    for run in map(Path, runs):
        model, tok, checkpoint = load_model(run, device)
        config, (loss, _) = checkpoint["config"], checkpoint["best"]
        refuse_context(model, run)
        name = run.stem if run.is_file() else run.name
        if not quiet:
            print(f"  {name}: {config.get('arm')}, step {checkpoint['step']:,} of "
                  f"{config['max_steps']:,} on {config['dataset']}, perplexity "
                  f"{math.exp(loss):.0f}")
        models.append((name, model, tok))
        losses.append(loss)
    return models, max(losses)


# ---- the echo ----------------------------------------------------------------------------------

READABLE = math.log(60)  # nats per token: what models of a small vocabulary say begins to read well
OWN_PROMPT = re.compile(r"\{([^{}|]+)\|([^{}|]+)\}")  # {fucntion|function}


EXPLAINED = """\
Each prompt has a misspelled or made-up word, and ends where it could be said again. Models as small
as these seldom say it. What they have noticed is in the bars: how many times likelier the word is
there because the prompt had it and not the clean word in its place; beside it the clean word,
likewise. Six # are a nat, which is a factor of 2.7.
"""


def bar(nats, width=24):
    """A bar of six characters a nat, as text of a fixed width; nothing below 0."""
    return ("#" * max(0, min(width, round(6 * nats)))).ljust(width)


def times(nats):
    """exp(nats) as text: how many times likelier."""
    ratio = math.exp(nats)
    return f"{ratio:,.1f}x" if ratio < 100 else f"{ratio:,.0f}x"


def up_to_the_echo(template, word):
    """A template's text with its first {} filled, up to where the second stands."""
    start, between, _ = template.split("{}")
    return (start + word + between).rstrip()


def show_echo(models, template, clean, written):
    """Per model: how many times likelier the written and the clean word are at the template's
    second {} for having stood at the first."""
    width = max(len(name) for name, *_ in models)
    print(f"  {'':{width}}  {written:33}  {clean} (the clean word)")
    for name, model, tok in models:
        cells = []
        for word, other in ((written, clean), (clean, written)):
            nats = echo_nats(model, tok, template, word, other)
            cells.append(f"{bar(nats)} {times(nats):>8}")
        print(f"  {name:{width}}  {'  '.join(cells)}".rstrip())
    print()


def show_texts(models, prompt, word, seed, how):
    """A prompt's continuation by each model, side by side."""
    side_by_side([(name, continued(model, tok, prompt, seed, **how))
                  for name, model, tok in models], word)


@torch.no_grad()
def neighbours(model, tok, word, k):
    """The k tokens nearest to `word`, one token, in the input space: [(text, cosine)], the mean of
    all tokens taken off."""
    vectors = model.transformer.wte(torch.arange(tok.vocab_size, device=model.device)).float()
    vectors = F.normalize(vectors - vectors.mean(0), dim=-1)
    own, = tok.encode(word)
    cosines = vectors @ vectors[own]  # (V,)
    cosines[own] = -math.inf
    values, ids = cosines.topk(k)
    return [(tok.decode([id]), value) for id, value in zip(ids.tolist(), values.tolist())]


def show_neighbours(models, words=("compute", "returns", "list", "time")):
    """What is near a word at each model's input: the first of `words` that is one token."""
    single = [f" {word}" for word in words
              if all(len(tok.encode(f" {word}")) == 1 for _, _, tok in models)]
    if not single:
        return
    print(f'nearest to "{single[0]}" at the input (cosine, the mean of all tokens taken off; where '
          "a code reads bytes,\nwords of like spelling are near before any training):")
    width = max(len(name) for name, *_ in models)
    for name, model, tok in models:
        near = [f"{text!r} {cosine:.2f}" for text, cosine in neighbours(model, tok, single[0], 5)]
        print(f"  {name:{width}}  {'  '.join(near)}")
    print()


def echo_demo(models, how, seed=42, loss=0.0):
    """The demo of sample.py: what models do with a word that they have never seen.

    models: [(name, model, tokenizer), ...]; how: arguments of `generate`; loss: the highest
    validation loss of the models. Where it is too high for text that is worth reading, only what is
    measured is shown.
    """
    print("\n" + EXPLAINED)
    readable = loss < READABLE
    for i, row in enumerate(read_prompts(ROOT / "prompts" / "echo.tsv")[:4]):
        written = row["typo"] if i < 3 else row["novel"]
        prompt = up_to_the_echo(row["template"], written)
        print(f'"{highlight(prompt, written)}"\n')
        if readable:
            show_texts(models, prompt, written, seed, how)
        show_echo(models, row["template"], row["clean"], written)
    show_neighbours(models)
    if not readable:
        print(f"Their text is left out: it is not worth reading before a perplexity of about "
              f"{math.exp(READABLE):.0f}.\npython sample.py RUN --prompt=... shows it.")
    print("The same over all of prompts/echo.tsv, with intervals: python probe.py echo RUN...\n"
          "Your own prompts: python sample.py --interactive")


def interactive(models, how, seed=42):
    """Prompts from standard input until it ends, each continued side by side; {fucntion|function}
    in one measures the echo of fucntion against function."""
    print("A prompt a line; Ctrl-D ends. An echo is measured where a word is {odd|usual}, as in\n"
          "Call the {fucntion|function} twice. The second time, the")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        pairs = OWN_PROMPT.findall(line)
        prompt = OWN_PROMPT.sub(r"\1", line)
        longest = min(model.config.block_size for _, model, _ in models)
        if any(len(tok.encode(prompt)) + 20 > longest for _, _, tok in models):
            print(f"too long: the context is {longest} tokens")
            continue
        word = pairs[0][0] if len(pairs) == 1 and "{}" not in line else None
        show_texts(models, prompt, word, seed, how)
        if word:
            template = OWN_PROMPT.sub("{}", line).rstrip() + " {}"
            show_echo(models, template, clean=pairs[0][1], written=word)
