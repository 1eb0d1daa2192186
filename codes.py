"""Fixed token codes and their lifts: input embedding = lift(code(token id)).

    arm      code of token t                                           lift to model width d            trained parameters
    binary   the K = ceil(log2 V) bits of t                            tile: [c, c, ...] cut to d       0
    affine   A x + b over GF(2), x = those bits                        tile                             0
    kron     z = standardised sum of one-hot(byte_i) (x) one-hot(i)    linear: z W, W is D x d          D*d, D = 256 P
    random   kron's code, its rows drawn by a hash instead             linear                           D*d

binary and affine: A. Bochkov, arXiv 2605.09751. kron: R. Shravan, arXiv 2605.29459. random is this project's control. Every
code has two forms that give the same vectors: a `table` of V codes that is looked up, and `on_the_fly`, computed from the ids
with no table. To add an arm, write a class like the ones below and name it in `make_embedding`.
"""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


# ---- binary and affine codes -------------------------------------------------------------------------------

def code_bits(vocab_size):
    """K = ceil(log2 V), at least 1: how many bits tell `vocab_size` ids apart."""
    return max(1, (vocab_size - 1).bit_length())


def binary_code(ids, bits):
    """The `bits` lowest bits of each id, least significant first, as 0.0 and 1.0. (...) int -> (..., K) float. 2605.09751."""
    return (ids.unsqueeze(-1) >> torch.arange(bits, device=ids.device) & 1).float()


def ids_of(code):
    """The inverse of `binary_code`. (..., K) -> (...) int64."""
    return (code.long() << torch.arange(code.size(-1), device=code.device)).sum(-1)


def affine_code(code, A, b):
    """A c + b over GF(2), a bijection of {0, 1}^K if A is invertible. (..., K) float, (K, K), (K,) -> (..., K) float. 2605.09751.

    Integers up to K are exact in every float format in use, so a matrix product and a remainder are arithmetic over GF(2).
    """
    return (code @ A.to(code.dtype).T + b).to(code.dtype) % 2


def affine_decode(code, A, b):
    """The x with `affine_code(x, A, b) == code`: A^-1 (c + b). Same shapes. ValueError if A is not invertible."""
    return affine_code((code + b) % 2, gf2_inverse(A), torch.zeros_like(b))


def gf2_inverse(A):
    """Inverse of a (K, K) matrix of 0 and 1 over GF(2), by Gauss-Jordan elimination. ValueError if there is none."""
    K = len(A)
    M = torch.cat([A.bool(), torch.eye(K, dtype=torch.bool, device=A.device)], dim=1)
    for j in range(K):
        pivots = M[j:, j].nonzero()
        if not len(pivots):
            raise ValueError("the matrix has no inverse over GF(2)")
        pivot = j + int(pivots[0])
        M[[j, pivot]] = M[[pivot, j]]
        others = M[:, j].clone()
        others[j] = False
        M[others] ^= M[j]
    return M[:, K:].to(A.dtype)


def draw_affine(bits, seed):
    """A uniform over GL(K, 2) and b uniform over GF(2)^K: ((K, K), (K,)) uint8, a pure function of (bits, seed).

    Uniform matrices are drawn until one is invertible, so all invertible ones are equally likely; about 29 % of draws are.
    """
    rng = np.random.RandomState(seed)  # its stream is frozen: the same in every numpy version
    b = torch.from_numpy(rng.randint(0, 2, bits).astype(np.uint8))
    while True:
        A = torch.from_numpy(rng.randint(0, 2, (bits, bits)).astype(np.uint8))
        try:
            gf2_inverse(A)
            return A, b
        except ValueError:
            pass


def tile(code, width):
    """The whole code repeated, [c, c, ...], the last copy cut. (..., K) -> (..., width)."""
    return code.repeat(*[1] * (code.dim() - 1), -(-width // code.size(-1)))[..., :width]


class BinaryEmbedding(nn.Module):
    """e(t) = lift(c(t)), c(t) the K bits of t: no trained parameter with lift `tile`, K*d with `linear`.
    ids (...) -> (..., d)."""

    def __init__(self, vocab_size, bits, width, lift="tile", form="on_the_fly"):
        super().__init__()
        self.bits, self.width, self.init_std = bits, width, bits**-0.5
        self.weight = nn.Parameter(torch.empty(bits, width)) if lift == "linear" else None
        self.register_buffer("table", self.code(torch.arange(vocab_size)) if form == "table" else None, persistent=False)

    def code(self, ids):
        return binary_code(ids, self.bits)

    def forward(self, ids):
        code = self.code(ids) if self.table is None else F.embedding(ids, self.table)  # (..., K)
        return tile(code, self.width) if self.weight is None else code @ self.weight


class AffineEmbedding(BinaryEmbedding):
    """e(t) = lift(A c(t) + b over GF(2)); A and b are drawn by `seed` and live in the checkpoint. ids (...) -> (..., d)."""

    def __init__(self, vocab_size, bits, width, lift="tile", form="on_the_fly", seed=0):
        super().__init__(vocab_size, bits, width, lift)
        A, b = draw_affine(bits, seed)
        self.register_buffer("A", A)
        self.register_buffer("b", b)
        if form == "table":
            self.table = self.code(torch.arange(vocab_size))

    def code(self, ids):
        return affine_code(super().code(ids), self.A, self.b)


# ---- Kronecker codes ---------------------------------------------------------------------------------------

def pack_bytes(token_bytes, vocab_size, pos_dim):
    """Byte strings -> ((V, P) uint8 of their first P bytes, (V,) uint8 of L = how many those are);
    ids past the list have L = 0."""
    packed = np.zeros((vocab_size, pos_dim), np.uint8)
    length = np.zeros(vocab_size, np.uint8)
    for i, raw in enumerate(token_bytes):
        raw = raw[:pos_dim]
        packed[i, :len(raw)] = np.frombuffer(raw, np.uint8)
        length[i] = len(raw)
    return torch.from_numpy(packed), torch.from_numpy(length)


def kron_levels(pos_dim):
    """The two values that z takes for a token of L bytes. Returns (scale, shift), (P + 1,) float32 each, indexed by L.

    kappa is s = 1/sqrt(L) in L of its D = 256 P entries and 0 elsewhere, so z = (kappa - mean) / (std + 1e-6), std unbiased, is
    scale[L] + shift[L] there and shift[L] elsewhere. L = 0 gives the zero vector. 2605.29459, worked out.
    """
    D = 256 * pos_dim
    L = torch.arange(1, pos_dim + 1, dtype=torch.float64)
    s = L**-0.5
    mean = L * s / D
    std = ((L * (s - mean)**2 + (D - L) * mean**2) / (D - 1)).sqrt() + 1e-6
    return tuple(F.pad(x / std, (1, 0)).float() for x in (s, -mean))


class KroneckerEmbedding(nn.Module):
    """e(t) = z(bytes(t)) W. Holds V*(P+1) bytes of buffer and W (D x d). ids (...) -> (..., d). See `set_bytes` for free slots.

    Because z takes two values, the dense code never has to exist: with row(i) = byte_i * P + i,
        e(t) = scale[L] * sum_i W[row(i)] + shift[L] * sum_j W[j],
    a bag of at most P rows of W plus a rank-one term. A batch repeats tokens, so each distinct id is summed once.
    """

    def __init__(self, vocab_size, width, token_bytes, pos_dim=16, form="on_the_fly"):
        super().__init__()
        self.pos_dim, self.init_std = pos_dim, (256 * pos_dim)**-0.5
        self.weight = nn.Parameter(torch.empty(256 * pos_dim, width))
        scale, shift = kron_levels(pos_dim)
        bytes_, length = pack_bytes(token_bytes, vocab_size, pos_dim)
        for name, value in dict(bytes=bytes_, length=length, scale=scale, shift=shift).items():
            self.register_buffer(name, value, persistent=False)  # all of it follows from the tokenizer
        self.register_buffer("table", self.code(torch.arange(vocab_size)) if form == "table" else None, persistent=False)

    def set_bytes(self, id, raw):
        """Give one id other bytes, as for a forced out-of-vocabulary word in a free (padding) slot."""
        ids = torch.tensor([id], device=self.bytes.device)
        packed, length = pack_bytes([raw], 1, self.pos_dim)
        self.bytes[ids], self.length[ids] = packed.to(ids.device), length.to(ids.device)
        if self.table is not None:
            self.table[ids] = self.code(ids)

    def rows(self, ids):
        """Which rows of W each id sums: (n,) -> (n, P) int64; those from column L on do not count."""
        return self.bytes[ids].long() * self.pos_dim + torch.arange(self.pos_dim, device=ids.device)

    def present(self, ids):
        """Which of the P columns of `rows` count: (n,) -> (n, P) bool."""
        return torch.arange(self.pos_dim, device=ids.device) < self.length[ids].unsqueeze(-1)

    def code(self, ids):
        """The dense code z, (n,) -> (n, D) float32: what the table form looks up."""
        kappa = torch.zeros(len(ids), len(self.weight), device=ids.device)
        kappa.scatter_add_(1, self.rows(ids), self.present(ids).float())
        L = self.length[ids].long().unsqueeze(-1)
        return self.scale[L] * kappa + self.shift[L]

    def sum_rows(self, ids):
        """sum_i W[row(i)], (n,) -> (n, d). The same sum twice: a CPU wants ragged bags,
        a compiler wants shapes that stand still."""
        rows, present = self.rows(ids), self.present(ids)
        if torch.compiler.is_compiling():
            return (self.weight[rows] * present.unsqueeze(-1)).sum(-2)  # fused: the (n, P, d) product is never in memory
        length = self.length[ids].long()
        return F.embedding_bag(rows[present], self.weight, length.cumsum(0) - length, mode="sum")

    def forward(self, ids):
        if self.table is not None:
            return F.embedding(ids, self.table) @ self.weight
        flat = ids.flatten()
        if not torch.compiler.is_compiling():
            flat, inverse = flat.unique(return_inverse=True)
        L = self.length[flat].long().unsqueeze(-1)
        e = self.scale[L] * self.sum_rows(flat) + self.shift[L] * self.weight.sum(0)  # (n, d)
        if not torch.compiler.is_compiling():
            e = F.embedding(inverse, e)
        return e.view(*ids.shape, -1)


class RandomEmbedding(KroneckerEmbedding):
    """kron in everything but which rows: the i-th row of token t is hash(seed, t, i) mod D, so spelling is worth nothing."""

    def __init__(self, *args, seed=0, **kwargs):
        self.seed = seed
        super().__init__(*args, **kwargs)

    def rows(self, ids):
        i = torch.arange(self.pos_dim, device=ids.device)
        return hash32(hash32(hash32(torch.full_like(ids, self.seed)) + ids).unsqueeze(-1) + i) % len(self.weight)


def hash32(x):
    """A well-mixed 32-bit hash of int64 (Wellons' lowbias32), the same on every device.
    (...) int64 -> (...) int64 in [0, 2^32)."""
    x = x & 0xFFFFFFFF
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


# ---- one place where an arm's name becomes a module --------------------------------------------------------

LIFTS = {"learned": ("none",), "binary": ("tile", "linear"), "affine": ("tile", "linear"),
         "kron": ("linear",), "random": ("linear",)}


def make_embedding(code, lift, vocab_size, padded_size, width, *, form="on_the_fly", pos_dim=16, token_bytes=None, seed=0):
    """The input embedding of an arm: a module, ids (...) -> (..., width).

    code, lift: a pair that `LIFTS` allows (else ValueError); form: on_the_fly or table; vocab_size: ids that text can have,
    which sets K; padded_size: ids that the module accepts (kron has the free slot `vocab_size` in any case); token_bytes: for
    kron and random, from `tokenizer.token_bytes`.
    """
    if lift not in LIFTS.get(code, ()):
        pairs = ", ".join(f"{c} {l}" for c in LIFTS for l in LIFTS[c])
        raise ValueError(f"code '{code}' with lift '{lift}': the pairs are {pairs}")
    if code == "learned":
        return nn.Embedding(padded_size, width)
    if code == "binary":
        return BinaryEmbedding(padded_size, code_bits(vocab_size), width, lift, form)
    if code == "affine":
        return AffineEmbedding(padded_size, code_bits(vocab_size), width, lift, form, seed)
    if code == "kron":
        return KroneckerEmbedding(max(padded_size, vocab_size + 1), width, token_bytes, pos_dim, form)
    return RandomEmbedding(padded_size, width, token_bytes, pos_dim, form, seed=seed)
