"""Fixed token codes and their lifts: input embedding = lift(code(token id)).

    code     what it is of token t                            lift to width d          trained
    learned  a table's row, E[t]                              none                     V*d
    binary   the K = ceil(log2 V) bits of t                   tile: [c, c, ...] cut    0
    affine   A x + b over GF(2), x = those bits; K' of them   tile                     0
    kron     z = standardised sum_i of byte_i (x) position i  linear: z W              256 P d

binary and affine: A. Bochkov, arXiv 2605.09751. kron: R. Shravan, arXiv 2605.29459. rivals.py has
other answers to the same question. To add one, write a `TokenEmbedding` and name it in `RIVALS`.
`python codes.py WORD...` prints the codes of words.
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


class TokenEmbedding(nn.Module):
    """What all arms share: ids (...) -> vectors (..., d), each of its own id alone. An arm has
    `vectors(ids)`, (n,) -> (n, d), or its own `forward`, and adds its weights by `add_weight`."""
    lifts = head_lifts = ("linear",)  # values of --lift; those with which it can also be a head
    forms = ("on_the_fly",)           # values of --code_form
    arguments = ("std",)              # what the constructor takes of a run: token_bytes, seed, ...
    options = {}                      # its own keys, --pos_dim=8, with their defaults
    reads_bytes = False               # whether it knows a token by its bytes, and has `set_bytes`
    default_std = 1.0                 # rms of e per coordinate at the start, where `std` is None

    def __init__(self, num_embeddings, embedding_dim, std=None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.std, self.stds = std or self.default_std, {}

    def add_weight(self, name, shape, std):
        """A trained matrix of normal numbers with mean 0 and deviation std."""
        setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.stds[name] = std
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        """Draw the weights, each a pure function of (seed, name, shape)."""
        for key, std in self.stds.items():
            weight = self.get_parameter(key)
            drawn = name + ("weight" if key == "W" else key)  # W is drawn as a table is
            weight.normal_(0, std, generator=draw(seed, drawn, weight.shape))

    def forward(self, ids):
        """Each distinct id once; torch.compile needs static shapes, so there every id."""
        if torch.compiler.is_compiling():
            return self.vectors(ids.flatten()).view(*ids.shape, -1)
        distinct, where = ids.unique(return_inverse=True)
        return F.embedding(where, self.vectors(distinct))

    def params_in_use(self, vocab_size):
        """Trained parameters that some token reads, kron's mean term aside."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class LearnedEmbedding(TokenEmbedding, nn.Embedding):
    """e(t) = E[t], E ~ N(0, std): the table that the others replace."""
    lifts = head_lifts = ("none",)
    default_std = 0.02
    forward = nn.Embedding.forward

    def __init__(self, num_embeddings, embedding_dim, std=None):
        self.std = std or self.default_std
        self.stds = {"weight": self.std}
        nn.Embedding.__init__(self, num_embeddings, embedding_dim)

    def params_in_use(self, vocab_size):
        return vocab_size * self.embedding_dim * self.weight.requires_grad


class FixedCode(TokenEmbedding):
    """e(t) = lift(code(t)): a subclass has `code(ids)`, (n,) -> (n, D), and `lift(code)`, (..., D)
    -> (..., d). Both forms give the same vectors; `table` holds all codes in a buffer, V x D."""
    forms = ("on_the_fly", "table")

    def set_form(self, form):
        """Build the table if `form` is "table", once all that `code` needs is there."""
        codes = self.code(torch.arange(self.num_embeddings)) if form == "table" else None
        self.register_buffer("table", codes, persistent=False)

    def forward(self, ids):
        return self.lift(self.code(ids) if self.table is None else F.embedding(ids, self.table))


# ---- binary and affine codes -------------------------------------------------------------------

def code_bits(vocab_size):
    """K = ceil(log2 V), at least 1: how many bits tell `vocab_size` ids apart."""
    return max(1, (vocab_size - 1).bit_length())


def binary_code(ids, bits, dtype=torch.float32):
    """The `bits` lowest bits of each id, least significant first, as 0.0 and 1.0. 2605.09751.
    (...) int -> (..., K) float."""
    return ((ids.unsqueeze(-1) >> torch.arange(bits, device=ids.device)) & 1).to(dtype)


def tile(code, width):
    """The whole code repeated, [c, c, ...], the last copy cut. (..., K) -> (..., width)."""
    return code.repeat(*[1] * (code.dim() - 1), -(-width // code.size(-1)))[..., :width]


def affine_code(code, A, b):
    """A c + b over GF(2), one to one if A (K' x K) has rank K. 2605.09751, there with K' = K.
    (..., K) float -> (..., K') float. Integers to 256 are exact in bfloat16 too, so a matrix
    product and a remainder are arithmetic over GF(2). The way back is A^-1 (code + b)."""
    return (code @ A.to(code.dtype).T + b).to(code.dtype) % 2


def gf2_inverse(A):
    """The (left) inverse (K, K') of a (K', K) matrix of 0 and 1 over GF(2), by Gauss-Jordan
    elimination; None if there is none, where the rank is below K."""
    rows, K = A.shape
    M = torch.cat([A.bool(), torch.eye(rows, dtype=torch.bool, device=A.device)], dim=1)
    for j in range(K):
        pivots = M[j:, j].nonzero()
        if not len(pivots):
            return None
        pivot = j + int(pivots[0])
        M[[j, pivot]] = M[[pivot, j]]
        others = M[:, j].clone()
        others[j] = False
        M[others] ^= M[j]
    return M[:K, K:].to(A.dtype)


def draw_affine(bits, seed, width=0):
    """A of rank K, uniform over those, and b: ((K', K), (K',)) uint8, a pure function of (bits = K,
    seed, width = K'; unset: K). Matrices are drawn until one has rank K, which 29 % of the square
    ones have. Where K' > K a row that is zero or repeats an earlier one is replaced."""
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
        if gf2_inverse(A) is not None:
            return A, b


class BinaryEmbedding(FixedCode):
    """e(t) = lift(c(t)), c(t) the K bits of t: as 0 and 1, or with `code_levels` = "signs" as -1
    and +1, which have no mean that all tokens share. Trained: nothing with lift `tile`, K*d with
    `linear`. Default scale: what the levels give, about sqrt(1/2) or 1; `std` scales code or W."""
    lifts = ("tile", "linear")
    arguments = ("vocab_size", "lift", "form", "std")
    options = {"code_levels": "bits"}

    def __init__(self, num_embeddings, embedding_dim, vocab_size, lift="tile", form="on_the_fly",
                 std=None, code_levels="bits", A=None, b=None):
        super().__init__(num_embeddings, embedding_dim)
        if code_levels not in ("bits", "signs"):
            raise ValueError(f"code_levels='{code_levels}': must be one of bits, signs")
        self.bits, self.signs = code_bits(vocab_size), code_levels == "signs"
        self.affine = A is not None
        self.code_width = len(A) if self.affine else self.bits
        self.register_buffer("A", A)
        self.register_buffer("b", b)
        self.register_buffer("scale", torch.ones(()), persistent=False)  # follows .to(dtype)
        codes = self.code(torch.arange(vocab_size, device="cpu"))
        codes = tile(codes, embedding_dim) if lift == "tile" else codes
        self.default_std = codes.square().mean().sqrt().item() or 1.0  # 0 only where V = 1
        self.std = std or self.default_std
        scale, self.W = self.std / self.default_std, None
        self.scale.fill_(scale)
        if lift == "linear":
            self.add_weight("W", (self.code_width, embedding_dim), scale * self.code_width**-0.5)
        self.scaled = scale != 1
        self.set_form(form)

    def code(self, ids):
        code = binary_code(ids, self.bits, self.scale.dtype)
        if self.affine:
            code = affine_code(code, self.A, self.b)
        return 2 * code - 1 if self.signs else code

    def lift(self, code):
        if self.W is not None:
            return code @ self.W
        return tile(self.scale * code if self.scaled else code, self.embedding_dim)


class AffineEmbedding(BinaryEmbedding):
    """e(t) = lift(A c(t) + b over GF(2)); A and b, drawn by `seed`, live in the checkpoint.

    As published A is K x K, the minimal code (`code_width` 0). A wide code, this project's own, has
    K' > K rows, distinct and not zero: each entry is the parity of some of the id's bits, plain or
    flipped. As signs any two entries are orthogonal over all 2^K ids. K' is at most d and 2^K - 1
    (-1: that many)."""
    arguments = (*BinaryEmbedding.arguments, "seed")
    options = BinaryEmbedding.options | {"code_width": 0}

    def __init__(self, num_embeddings, embedding_dim, vocab_size, lift="tile", form="on_the_fly",
                 std=None, code_levels="bits", code_width=0, seed=0):
        K = code_bits(vocab_size)
        most = max(K, min(embedding_dim, 2**K - 1))
        rows = {0: K, -1: most}.get(code_width, code_width)  # K'
        if not K <= rows <= most:
            raise ValueError(f"code_width={code_width}: code 'affine' takes {K} to {most} here, "
                             "0 for the fewest, -1 for the most")
        super().__init__(num_embeddings, embedding_dim, vocab_size, lift, form, std, code_levels,
                         *draw_affine(K, seed, rows))


# ---- Kronecker codes ---------------------------------------------------------------------------

def pack_bytes(token_bytes, count, pos_dim):
    """Byte strings -> ((count, P) uint8 of their first P bytes, (count,) uint8 of L = how many
    those are); ids past the list have L = 0. ValueError unless P is from 1 to 255."""
    if not 1 <= pos_dim <= 255:
        raise ValueError(f"pos_dim={pos_dim}: must be from 1 to 255, lengths are stored in a byte")
    packed, length = np.zeros((count, pos_dim), np.uint8), np.zeros(count, np.uint8)
    for i, raw in enumerate(token_bytes):
        length[i] = min(len(raw), pos_dim)
        packed[i, :length[i]] = list(raw[:pos_dim])
    return torch.from_numpy(packed), torch.from_numpy(length)


def kron_levels(pos_dim, D, centred=True):
    """(scale, shift), (P + 1,) float32 each, by a token's length L: z = (kappa - mean) / (std +
    1e-6) is scale + shift in the L entries where kappa is s = 1/sqrt(L), and shift in the D - L
    where it is 0. The std is unbiased. 2605.29459. L = 0 gives the zero vector."""
    L = torch.arange(1, pos_dim + 1, dtype=torch.float64)
    s = L**-0.5
    mean = L * s / D
    std = ((L * (s - mean)**2 + (D - L) * mean**2) / (D - 1)).sqrt() + 1e-6
    return tuple(F.pad(x / std, (1, 0)).float() for x in (s, -mean * centred))


class KroneckerEmbedding(FixedCode):
    """e(t) = z(bytes(t)) W: V*(P+1) bytes of buffer, and W (D x d) ~ N(0, 1/sqrt(D)), so that
    rms(e) starts at 1.

    Because z takes two values, the dense code never has to exist: with row(i) = byte_i * P + i,
        e(t) = scale[L] * sum_i W[row(i)] + shift[L] * sum_j W[j],
    a bag of at most P rows of W plus a rank-one term."""
    reads_bytes = True
    arguments, options = ("token_bytes", "form", "std"), {"pos_dim": 16}
    centred = True  # False: without the mean term

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, form="on_the_fly",
                 std=None, persistent=False):
        super().__init__(num_embeddings, embedding_dim, std)
        self.pos_dim, packed = pos_dim, pack_bytes(token_bytes, num_embeddings, pos_dim)
        self.code_width = self.width()  # D
        self.add_weight("W", (self.code_width, embedding_dim), self.std * self.code_width**-0.5)
        buffers = *packed, *kron_levels(pos_dim, self.code_width, self.centred)
        for name, value in zip(("bytes", "length", "scale", "shift"), buffers):
            self.register_buffer(name, value, persistent)  # ours follow from the tokenizer
        self.set_form(form)

    @classmethod
    def from_tokenizer(cls, tokenizer, embedding_dim, num_embeddings=0, pos_dim=16, std=None):
        """In place of an `nn.Embedding` of a model of yours, with its codes in the checkpoint.
        tokenizer: what `lib.tokenizer.token_bytes` takes. No head can be tied to it."""
        module = cls(num_embeddings, embedding_dim, [], pos_dim, std=std, persistent=True)
        return module.set_tokenizer(tokenizer)

    def set_tokenizer(self, tokenizer, num_embeddings=0):
        """Read the bytes of all ids anew, as after tokens were added; `num_embeddings` unset: into
        as many rows as there were. ValueError if the tokenizer has more ids."""
        from lib.tokenizer import token_bytes  # here, so that codes.py alone needs nothing of lib/
        tokens = token_bytes(tokenizer)
        count = num_embeddings or self.num_embeddings or len(tokens)
        if count < len(tokens):
            raise ValueError(f"{count} embeddings for a tokenizer of {len(tokens)} ids: set "
                             "num_embeddings, and give the head as many rows")
        self.num_embeddings, device = count, self.bytes.device
        self.bytes, self.length = (x.to(device) for x in pack_bytes(tokens, count, self.pos_dim))
        if self.table is not None:
            self.table = self.code(torch.arange(count, device=device))
        return self

    def __getattr__(self, name):
        if name == "weight":  # tying a head to it and resizing it ask for that
            raise AttributeError("KroneckerEmbedding has no wte.weight with a row per token; after "
                                 "adding tokens call its set_tokenizer(tokenizer, rows)")
        return super().__getattr__(name)

    def width(self):
        return 256 * self.pos_dim  # D

    def set_bytes(self, id, raw):
        """Give one id other bytes, as for a forced out-of-vocabulary word in a free slot."""
        packed, length = pack_bytes([raw], 1, self.pos_dim)
        self.bytes[id], self.length[id] = packed[0], length[0]
        if self.table is not None:
            self.table[id] = self.code(torch.tensor([id], device=self.bytes.device))[0]

    def rows(self, ids):
        """The rows of W that each id sums: (n,) -> (n, P); those from column L on do not count."""
        values = self.bytes.index_select(0, ids).long()
        return values * self.pos_dim + torch.arange(self.pos_dim, device=ids.device)

    def present(self, ids):
        """Which of the P columns of `rows` count: (n,) -> (n, P) bool."""
        return torch.arange(self.pos_dim, device=ids.device) < self.length[ids].unsqueeze(-1)

    def code(self, ids):
        """The dense code z, (n,) -> (n, D): what the table form looks up."""
        kappa = torch.zeros(len(ids), self.code_width, device=ids.device, dtype=self.scale.dtype)
        kappa.scatter_add_(1, self.rows(ids), self.present(ids).to(kappa.dtype))
        L = self.length[ids].long().unsqueeze(-1)
        return self.scale[L] * kappa + self.shift[L]

    def lift(self, code):
        return code.to(self.W.dtype) @ self.W

    def vectors(self, ids):
        """Ragged bags are fast on a CPU; torch.compile needs static shapes, and fuses: (n, P, d) is
        never in memory."""
        rows, present, L = self.rows(ids), self.present(ids), self.length[ids].long()
        if torch.compiler.is_compiling():
            summed = (self.W[rows] * present.unsqueeze(-1)).sum(-2)
        else:
            count = present.sum(-1)
            summed = F.embedding_bag(rows[present], self.W, count.cumsum(0) - count, mode="sum")
        L = L.unsqueeze(-1)
        return (self.scale[L] * summed + self.shift[L] * self.W.sum(0)).to(self.W.dtype)

    def forward(self, ids):
        if self.table is None:
            return TokenEmbedding.forward(self, ids)
        return super().forward(ids)

    def params_in_use(self, vocab_size):
        ids = torch.arange(vocab_size, device=self.length.device)
        rows = self.rows(ids)[self.present(ids)].unique()
        return len(rows) * self.embedding_dim * self.W.requires_grad


def kron_rows(raw, pos_dim=16):
    """Which rows of W kron sums for a token with these bytes: a list of at most P numbers."""
    return [byte * pos_dim + i for i, byte in enumerate(raw[:pos_dim])]


def kron_cosine(a, b, pos_dim=16):
    """cos(z(a), z(b)) of two byte strings."""
    z = KroneckerEmbedding(2, 1, [a, b], pos_dim).code(torch.arange(2)).double()
    return F.cosine_similarity(z[0], z[1], dim=0).item()


CODES = {"learned": LearnedEmbedding, "binary": BinaryEmbedding, "affine": AffineEmbedding,
         "kron": KroneckerEmbedding}


def main():
    """The codes of words (unset: run runs RUN ran) as in running text, with a space before them."""
    from lib.config import ROOT  # here, as in set_tokenizer
    from lib.errors import Parser
    from lib.run_folder import load_model
    from lib.tokenizer import token_bytes
    parser = Parser(description=main.__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", default=["run", "runs", "RUN", "ran"])
    words = [f" {word.removeprefix(' ')}" for word in parser.parse_args().words]
    words = {word: word.encode(errors="surrogateescape") for word in words}  # bytes as they came
    _, tok, _ = load_model(ROOT / "results" / "demo" / "kron.pt")
    strings, K = token_bytes(tok), code_bits(tok.vocab_size)
    A, b = draw_affine(K, seed=1337)
    print(f"""\
ids are those of the tokenizer of results/demo, {tok.name}, V = {tok.vocab_size:,}

binary: x, the K = {K} bits of the token id, lowest first, repeated to the model's width
affine: A x + b over GF(2), A and b drawn once a run, here by seed 1337

  {"token":12}  {"id":>6}  {"binary":{K}}  affine""")
    for id in dict.fromkeys(id for word in words for id in tok.encode(word)):
        x = binary_code(torch.tensor(id), K)
        bits, mixed = ("".join(f"{bit:.0f}" for bit in code) for code in (x, affine_code(x, A, b)))
        print(f"  {str(strings[id])[1:]:12}  {id:6}  {bits}  {mixed}")
    print("""
kron: byte value v at position i has row v * 16 + i of W, a trained matrix; a word's vector is
the sum of the rows of its first 16 bytes, scaled and shifted by its length
""")
    for word, raw in words.items():
        print(f"  {word!r}\n    bytes " + " ".join(f"{byte:4}" for byte in raw))
        print("    rows  " + " ".join(f"{row:4}" for row in kron_rows(raw)))
    print("\ncosine of kron's codes, rows in common\n")
    for one, other in itertools.combinations(words, 2):
        a, b = set(kron_rows(words[one])), set(kron_rows(words[other]))
        print(f"  {f'{one!r}, {other!r}':26}  {kron_cosine(words[one], words[other]):6.3f}"
              f"  {len(a & b)} of {len(a)} and {len(b)}")


if __name__ == "__main__":
    from lib.errors import run
    run(main)
