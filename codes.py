"""Fixed token codes and their lifts: input embedding = lift(code(token id)).

    code     what it is of token t                            lift to width d          trained
    learned  a table's row, E[t]                              none                     V*d
    binary   the K = ceil(log2 V) bits of t                   tile: [c, c, ...] cut    0
    affine   A x + b over GF(2), x = those bits; K' of them   tile                     0
    kron     z = standardised sum_i of byte_i (x) position i  linear: z W              256 P d

binary and affine: A. Bochkov, arXiv 2605.09751. kron: R. Shravan, arXiv 2605.29459. rivals.py has
the other answers to the same question.

To add an arm, write a class like these (`forward(ids)`, `reset_parameters` if something is trained)
and name it in `CODES`. Every constructor takes num_embeddings and embedding_dim, and by name:

    arguments   what else it needs of a run: token_bytes, vocab_size, lift, form, std, seed, ...
    options     keys of its own with their defaults: `--pos_dim=8` is known from then on, to the
                command line, to --help and to compare.py, and refused where the code has none such
"""
import hashlib
import itertools

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


def draw(seed, name, shape):
    """A generator that is a pure function of (seed, parameter's name, its shape): the order in
    which parameters are drawn does not matter, so all arms share one transformer body."""
    key = hashlib.sha256(f"{seed} {name} {tuple(shape)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


class LearnedEmbedding(nn.Embedding):
    """e(t) = E[t], E ~ N(0, std): the table that the others replace. ids (...) -> (..., d)."""
    lifts = head_lifts = ("none",)
    arguments, options = ("std",), {}
    reads_bytes, default_std = False, 0.02

    def __init__(self, num_embeddings, embedding_dim, std=None):
        self.std = std or self.default_std
        super().__init__(num_embeddings, embedding_dim)

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        """Draw the initial values: a pure function of (seed, name, shape)."""
        shape = self.weight.shape
        self.weight.normal_(0, self.std, generator=draw(seed, f"{name}weight", shape))

    def params_in_use(self, vocab_size):
        """Trained parameters in rows that a vocabulary token touches."""
        return vocab_size * self.embedding_dim


class FixedCode(nn.Module):
    """What the fixed codes share: two forms that give the same vectors, ids (...) -> (..., d).

    `on_the_fly` computes from the ids with no table; `table` looks up all codes, V x D.
    A subclass has `code(ids)`, (n,) -> (n, D); `lift(code)`, (..., D) -> (..., d); and
    `embed(ids)`, the same without the dense code.
    """
    lifts = head_lifts = ("linear",)  # the latter: with which it can also be the output head
    reads_bytes = False       # whether it knows a token by its bytes, and so has `set_bytes`
    default_std = 1.0         # rms of e per coordinate at the start, where nothing else is asked

    def set_form(self, form):
        """Build the table if `form` is "table", once all that `code` needs is there."""
        codes = self.code(torch.arange(self.num_embeddings)) if form == "table" else None
        self.register_buffer("table", codes, persistent=False)

    def forward(self, ids):
        if self.table is None:
            return self.embed(ids)
        return self.lift(F.embedding(ids, self.table))


# ---- arithmetic on bits -----------------------------------------------------------------------

def ids_of(code):
    """The inverse of `binary_code`. (..., K) -> (...) int64."""
    return (code.long() << torch.arange(code.size(-1), device=code.device)).sum(-1)


def affine_code(code, A, b):
    """A c + b over GF(2), one to one if A (K' x K) has rank K. 2605.09751, there with K' = K.

    (..., K) float, (K', K), (K',) -> (..., K') float. Integers up to K are exact in every float
    format in use, so a matrix product and a remainder are arithmetic over GF(2).
    """
    return (code @ A.to(code.dtype).T + b).to(code.dtype) % 2


def affine_decode(code, A, b):
    """The x with `affine_code(x, A, b) == code`: A^-1 (c + b). (..., K') -> (..., K).

    ValueError if A has not rank K.
    """
    return affine_code((code + b) % 2, gf2_inverse(A), torch.zeros(A.size(1), dtype=b.dtype))


def gf2_inverse(A):
    """Left inverse (K, K') of a (K', K) matrix of 0 and 1 over GF(2), by Gauss-Jordan elimination;
    the inverse where K' = K.

    ValueError if there is none: if the rank is below K.
    """
    rows, K = A.shape
    M = torch.cat([A.bool(), torch.eye(rows, dtype=torch.bool, device=A.device)], dim=1)
    for j in range(K):
        pivots = M[j:, j].nonzero()
        if not len(pivots):
            raise ValueError("the matrix has no inverse over GF(2)")
        pivot = j + int(pivots[0])
        M[[j, pivot]] = M[[pivot, j]]
        others = M[:, j].clone()
        others[j] = False
        M[others] ^= M[j]
    return M[:K, K:].to(A.dtype)


def draw_affine(bits, seed, width=0):
    """A of rank K and b uniform over GF(2)^K': ((K', K), (K',)) uint8, a pure function of (bits =
    K, seed, width = K'; unset: K).

    Matrices are drawn until one has rank K; about 29 % of the square ones have it, and all of those
    are equally likely. Where K' > K a row that is zero or repeats an earlier one is replaced.
    """
    width = width or bits
    rng = np.random.RandomState(seed)  # its stream is frozen: equal in every numpy version
    b = torch.from_numpy(rng.randint(0, 2, width).astype(np.uint8))
    while True:
        A = rng.randint(0, 2, (width, bits))
        seen = {(0,) * bits}
        for row in A if width > bits else []:
            while tuple(row) in seen:
                row[:] = rng.randint(0, 2, bits)
            seen.add(tuple(row))
        A = torch.from_numpy(A.astype(np.uint8))
        try:
            gf2_inverse(A)
            return A, b
        except ValueError:
            pass


# ---- binary and affine codes -------------------------------------------------------------------

def code_bits(vocab_size):
    """K = ceil(log2 V), at least 1: how many bits tell `vocab_size` ids apart."""
    return max(1, (vocab_size - 1).bit_length())


def binary_code(ids, bits):
    """The `bits` lowest bits of each id, least significant first, as 0.0 and 1.0. 2605.09751.

    (...) int -> (..., K) float.
    """
    return ((ids.unsqueeze(-1) >> torch.arange(bits, device=ids.device)) & 1).float()


def tile(code, width):
    """The whole code repeated, [c, c, ...], the last copy cut. (..., K) -> (..., width)."""
    return code.repeat(*[1] * (code.dim() - 1), -(-width // code.size(-1)))[..., :width]


class BinaryEmbedding(FixedCode):
    """e(t) = lift(c(t)), c(t) the K bits of t: as 0 and 1, or with `code_levels` = "signs" as -1
    and +1, which have no mean that all tokens share. Trained: nothing with lift `tile`, K*d with
    `linear`. Default scale: what the levels give, about sqrt(1/2) or 1; `std` scales code or W."""
    lifts = ("tile", "linear")
    arguments, options = ("vocab_size", "lift", "form", "std"), {"code_levels": "bits"}

    def __init__(self, num_embeddings, embedding_dim, vocab_size, lift="tile", form="on_the_fly",
                 std=None, code_levels="bits"):
        super().__init__()
        if code_levels not in ("bits", "signs"):
            raise ValueError(f"code_levels='{code_levels}': must be one of bits, signs")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.bits = self.code_width = code_bits(vocab_size)
        self.signs = code_levels == "signs"
        self.prepare()
        self.W = None
        if lift == "linear":
            self.W = nn.Parameter(torch.empty(self.code_width, embedding_dim))
        if not self.signs:  # of those it is 1
            codes = self.code(torch.arange(vocab_size, device="cpu"))
            codes = tile(codes, embedding_dim) if lift == "tile" else codes
            self.default_std = codes.square().mean().sqrt().item() or 1.0  # 0 only where V = 1
        self.std = std or self.default_std
        self.scale = self.std / self.default_std
        self.set_form(form)
        self.reset_parameters()

    def prepare(self):
        """Make what `code` needs besides the bits, before it is first called: here nothing."""

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        """Draw the initial values: a pure function of (seed, name, shape)."""
        if self.W is not None:
            generator = draw(seed, f"{name}weight", self.W.shape)  # a table's name
            self.W.normal_(0, self.scale * self.code_width**-0.5, generator=generator)

    def code_of_bits(self, bits):
        """The code's zeros and ones from the id's, (..., K) -> (..., K'): here the same."""
        return bits

    def code(self, ids):
        code = self.code_of_bits(binary_code(ids, self.bits))
        return 2 * code - 1 if self.signs else code

    def lift(self, code):
        if self.W is not None:
            return code @ self.W
        tiled = tile(code, self.embedding_dim)
        return tiled if self.scale == 1 else self.scale * tiled

    def embed(self, ids):
        return self.lift(self.code(ids))

    def params_in_use(self, vocab_size):
        """Every row of W belongs to a bit that some token has."""
        return 0 if self.W is None else self.W.numel()


class AffineEmbedding(BinaryEmbedding):
    """e(t) = lift(A c(t) + b over GF(2)); A and b, drawn by `seed`, live in the checkpoint.

    As published A is K x K, the minimal code (`code_width` 0). A wide code, this project's own, has
    K' > K rows, distinct and not zero: each entry is the parity of some of the id's bits, plain or
    flipped. As signs any two entries are orthogonal over all 2^K ids, so K bits become K' features
    that are easy to read, with no table and nothing trained. K' is at most d and 2^K - 1 (-1: that
    many); with every row there is, it is the Hadamard code. Nearest in print: linear maps over
    finite fields as codes of items in recommender systems (Modular Linear Tokenization, 2025).

    ValueError if K' is out of this range.
    """
    arguments = (*BinaryEmbedding.arguments, "seed")
    options = BinaryEmbedding.options | {"code_width": 0}

    def __init__(self, num_embeddings, embedding_dim, vocab_size, lift="tile", form="on_the_fly",
                 std=None, code_levels="bits", code_width=0, seed=0):
        self.asked, self.seed = code_width, seed
        super().__init__(num_embeddings, embedding_dim, vocab_size, lift, form, std, code_levels)

    def prepare(self):
        most = max(self.bits, min(self.embedding_dim, 2**self.bits - 1))
        self.code_width = {0: self.bits, -1: most}.get(self.asked, self.asked)
        if not self.bits <= self.code_width <= most:
            raise ValueError(f"code_width={self.asked}: code 'affine' takes {self.bits} to {most} "
                             f"here, 0 for the fewest, -1 for the most")
        A, b = draw_affine(self.bits, self.seed, self.code_width)
        self.register_buffer("A", A)
        self.register_buffer("b", b)

    def code_of_bits(self, bits):
        return affine_code(bits, self.A, self.b)


# ---- Kronecker codes ---------------------------------------------------------------------------

def pack_bytes(token_bytes, count, pos_dim):
    """Byte strings -> ((count, P) uint8 of their first P bytes, (count,) uint8 of L = how many
    those are); ids past the list have L = 0. ValueError unless P is from 1 to 255."""
    if not 1 <= pos_dim <= 255:
        raise ValueError(f"pos_dim={pos_dim}: must be from 1 to 255, lengths are stored in a byte")
    packed = np.zeros((count, pos_dim), np.uint8)
    length = np.zeros(count, np.uint8)
    for i, raw in enumerate(token_bytes):
        raw = raw[:pos_dim]
        packed[i, :len(raw)] = np.frombuffer(raw, np.uint8)
        length[i] = len(raw)
    return torch.from_numpy(packed), torch.from_numpy(length)


def kron_levels(pos_dim, D):
    """(scale, shift), (P + 1,) float32 each, indexed by a token's length L: its code z is scale +
    shift in the L entries where it has a byte, and shift in the D - L others.

    kappa is s = 1/sqrt(L) in the former and 0 in the latter; z = (kappa - mean) / (std + 1e-6), std
    unbiased. 2605.29459, worked out. L = 0 gives the zero vector.
    """
    L = torch.arange(1, pos_dim + 1, dtype=torch.float64)
    s = L**-0.5
    mean = L * s / D
    std = ((L * (s - mean)**2 + (D - L) * mean**2) / (D - 1)).sqrt() + 1e-6
    return tuple(F.pad(x / std, (1, 0)).float() for x in (s, -mean))


class KroneckerEmbedding(FixedCode):
    """e(t) = z(bytes(t)) W: V*(P+1) bytes of buffer, and W (D x d) ~ N(0, 1/sqrt(D)), so that
    rms(e) starts at 1. ids (...) -> (..., d). `set_bytes` fills a free slot.

    Because z takes two values, the dense code never has to exist: with row(i) = byte_i * P + i,
        e(t) = scale[L] * sum_i W[row(i)] + shift[L] * sum_j W[j],
    a bag of at most P rows of W plus a rank-one term. A batch repeats tokens, so each distinct id
    is summed once.
    """
    reads_bytes = True
    arguments, options = ("token_bytes", "form", "std"), {"pos_dim": 16}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, form="on_the_fly",
                 std=None, persistent=False):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.pos_dim, self.std = pos_dim, std or self.default_std
        self.code_width = self.width()  # D
        self.W = nn.Parameter(torch.empty(self.code_width, embedding_dim))
        buffers = (*pack_bytes(token_bytes, num_embeddings, pos_dim), *self.levels())
        for name, value in zip(("bytes", "length", "scale", "shift"), buffers):
            self.register_buffer(name, value, persistent)  # ours follow from the tokenizer
        self.set_form(form)
        self.reset_parameters()

    @classmethod
    def from_tokenizer(cls, tokenizer, embedding_dim, num_embeddings=None, pos_dim=16, std=None):
        """In place of an `nn.Embedding` of a model of yours, with its codes in the checkpoint.
        tokenizer: what `lib.tokenizer.token_bytes` takes. No head can be tied to it."""
        from lib.tokenizer import token_bytes  # here, so that codes.py alone needs nothing of lib/
        spelled = token_bytes(tokenizer)
        count = num_embeddings or len(spelled)
        if count < len(spelled):
            raise ValueError(f"{count} embeddings for a tokenizer of {len(spelled)} ids")
        return cls(count, embedding_dim, spelled, pos_dim, std=std, persistent=True)

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, pos_dim={self.pos_dim}"

    def width(self):
        """D, the width of the code."""
        return 256 * self.pos_dim

    def levels(self):
        """The two values of a code for each length."""
        return kron_levels(self.pos_dim, self.code_width)

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        """Draw the initial values: a pure function of (seed, name, shape)."""
        generator = draw(seed, f"{name}weight", self.W.shape)  # a table's name
        self.W.normal_(0, self.std * self.code_width**-0.5, generator=generator)

    def set_bytes(self, id, raw):
        """Give one id other bytes, as for a forced out-of-vocabulary word in a free slot."""
        ids = torch.tensor([id], device=self.bytes.device)
        packed, length = pack_bytes([raw], 1, self.pos_dim)
        self.bytes[ids], self.length[ids] = packed.to(ids.device), length.to(ids.device)
        if self.table is not None:
            self.table[ids] = self.code(ids)

    def rows(self, ids):
        """The rows of W that each id sums: (n,) -> (n, P); those from column L on do not count."""
        spelled = self.bytes.index_select(0, ids).long()
        return spelled * self.pos_dim + torch.arange(self.pos_dim, device=ids.device)

    def present(self, ids):
        """Which of the P columns of `rows` count: (n,) -> (n, P) bool."""
        return torch.arange(self.pos_dim, device=ids.device) < self.length[ids].unsqueeze(-1)

    def code(self, ids):
        """The dense code z, (n,) -> (n, D) float32: what the table form looks up."""
        kappa = torch.zeros(len(ids), self.code_width, device=ids.device)
        kappa.scatter_add_(1, self.rows(ids), self.present(ids).float())
        L = self.length[ids].long().unsqueeze(-1)
        return self.scale[L] * kappa + self.shift[L]

    def lift(self, code):
        return code @ self.W

    def sum_rows(self, ids):
        """sum_i W[row(i)], (n,) -> (n, d). The same sum in two ways: ragged bags are fast on a CPU,
        torch.compile needs static shapes."""
        rows, present = self.rows(ids), self.present(ids)
        if torch.compiler.is_compiling():
            # fused: the (n, P, d) product is never in memory
            return (self.W[rows] * present.unsqueeze(-1)).sum(-2)
        length = self.length[ids].long()
        starts = length.cumsum(0) - length
        return F.embedding_bag(rows[present], self.W, starts, mode="sum")

    def vectors(self, ids):
        """e(t) of each id, repeated ids too: (n,) -> (n, d)."""
        L = self.length[ids].long().unsqueeze(-1)
        return self.scale[L] * self.sum_rows(ids) + self.shift[L] * self.W.sum(0)

    def embed(self, ids):
        return once_per_id(self.vectors, ids)

    def params_in_use(self, vocab_size):
        """Trained parameters in rows of W that a vocabulary token sums."""
        ids = torch.arange(vocab_size, device=self.length.device)
        return len(self.rows(ids)[self.present(ids)].unique()) * self.embedding_dim


def once_per_id(vectors, ids):
    """`vectors`, (n,) -> (n, d), of ids (...), computed once for each distinct id: (..., d).
    torch.compile needs static shapes: there every id is computed."""
    if torch.compiler.is_compiling():
        return vectors(ids.flatten()).view(*ids.shape, -1)
    distinct, where = ids.unique(return_inverse=True)
    return F.embedding(where, vectors(distinct))


# name: class. rivals.py has more.
CODES = {"learned": LearnedEmbedding, "binary": BinaryEmbedding, "affine": AffineEmbedding,
         "kron": KroneckerEmbedding}


# ---- python codes.py [WORD...] ------------------------------------------------------------------

def kron_rows(raw, pos_dim=16):
    """Which rows of W kron sums for a token with these bytes: a list of at most P numbers."""
    embedding, id = KroneckerEmbedding(1, 1, [raw], pos_dim), torch.zeros(1, dtype=torch.int64)
    return embedding.rows(id)[embedding.present(id)].tolist()


def kron_cosine(a, b, pos_dim=16):
    """cos(z(a), z(b)) of two byte strings."""
    z = KroneckerEmbedding(2, 1, [a, b], pos_dim).code(torch.arange(2)).double()
    return F.cosine_similarity(z[0], z[1], dim=0).item()


def quoted(text):
    """A text in quotes, what cannot be printed escaped."""
    return f'"{text}"' if text.isprintable() else repr(text)


def print_codes(words, tok, strings):
    """The codes of words (str) as text; `strings`: the bytes of each of the tokenizer's ids."""
    K, P, seed = code_bits(tok.vocab_size), 16, 1337
    A, b = draw_affine(K, seed)
    print(f"binary: x, the K = {K} bits of the token id, lowest first, repeated to the model's "
          f"width\naffine: A x + b over GF(2), A and b drawn once a run, here by seed {seed}\n")
    print(f"  {'token':12}  {'id':>6}  {'binary':{K}}  affine")
    for id in dict.fromkeys(id for word in words for id in tok.encode(word)):
        x = binary_code(torch.tensor(id), K)
        codes = ["".join(str(int(bit)) for bit in code) for code in (x, affine_code(x, A, b))]
        text = quoted(strings[id].decode("utf-8", "backslashreplace"))
        print(f"  {text:12}  {id:6}  {codes[0]}  {codes[1]}")

    print(f"\nkron: byte value v at position i has row v * {P} + i of W, a trained matrix; "
          f"a word's vector is\nthe sum of the rows of its first {P} bytes, scaled and shifted by "
          "its length\n")
    rows = {word: kron_rows(word.encode(), P) for word in words}
    for word in words:
        print(f"  {quoted(word)}\n    bytes " + " ".join(f"{byte:4}" for byte in word.encode()))
        print("    rows  " + " ".join(f"{row:4}" for row in rows[word]))
    print("\ncosine of kron's codes, rows in common\n")
    for one, other in itertools.combinations(words, 2):
        common = len(set(rows[one]) & set(rows[other]))
        pair = f"{quoted(one)}, {quoted(other)}"
        print(f"  {pair:26}  {kron_cosine(one.encode(), other.encode(), P):6.3f}"
              f"  {common} of {len(rows[one])} and {len(rows[other])}")


def main():
    """The codes of words as they stand in running text, with a space before them."""
    from lib.config import ROOT  # here, so that codes.py alone needs nothing of lib/
    from lib.errors import InputError, Parser
    from lib.run_folder import load_checkpoint
    from lib.tokenizer import from_state, token_bytes
    parser = Parser(description=main.__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", default=["run", "runs", "RUN", "ran"],
                        help="default: run runs RUN ran")
    words = [f" {word.removeprefix(' ')}" for word in parser.parse_args().words]
    if " " in words:
        raise InputError("an empty word has no code")
    try:
        "".join(words).encode()
    except UnicodeError as error:
        raise InputError(f"a word is not UTF-8 ({error})") from None
    tok = from_state(load_checkpoint(ROOT / "results" / "demo" / "kron.pt")["tokenizer"])
    print(f"ids are those of the tokenizer of results/demo, {tok.name}, V = {tok.vocab_size:,}\n")
    print_codes(list(dict.fromkeys(words)), tok, token_bytes(tok))


if __name__ == "__main__":
    from lib.errors import run
    run(main)
