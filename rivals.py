"""The other answers to the same question: does a language model need a trainable input table?

Each is an arm like those of codes.py: a class with its entry in `RIVALS`.

    kron_shuffled  kron's codes, dealt to other tokens: all of kron but the spelling
    kron_raw       kron without centring
    kron_wide      kron plus a wide affine code: bytes and identity
    random         kron's bag with rows drawn by a hash of the id: a multi-hash (Bloom) embedding
    trigram        a bag of hashed byte trigrams (T-FREE)
    phase          bytes as phases, positions as rotations: nothing is ever cut
    lowrank        a table of rank r (ALBERT)
    hash           two hashed rows with learned weights (hash embeddings)
    qr             a row by quotient times a row by remainder
    frozen_random  a random unit vector per token, never trained
    visual         what the token looks like, never trained
    bytes2word     learned queries attend over the token's bytes

Default scale, rms(e) per coordinate at the start: 1 for what sums rows of a projection, 0.02 for
what is a table or a product of tables, 1/sqrt(d) (unit norm) for what is never trained.
"""
import functools
import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from codes import AffineEmbedding, KroneckerEmbedding, TokenEmbedding, draw, pack_bytes


# ---- kron, but for one thing -------------------------------------------------------------------

class ShuffledKronecker(KroneckerEmbedding):
    """e(t) = z(bytes(pi(t))) W with pi a permutation among tokens of equal length and similar
    frequency, drawn by `seed`: kron's codes, rank and idle rows, but no spelling. How often a row
    is read changes: on docstrings with bpe:4096 a quarter of the reads move to other rows."""
    arguments, options = (*KroneckerEmbedding.arguments, "seed"), {"pos_dim": 16}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, form="on_the_fly",
                 std=None, seed=0):
        dealt = [token_bytes[i] for i in deal(token_bytes, pos_dim, seed)]
        super().__init__(num_embeddings, embedding_dim, dealt, pos_dim, form, std)


def deal(token_bytes, pos_dim, seed):
    """A permutation of the ids, (V,) int array, within windows of 64 neighbouring ids of equal
    min(length, P): the ids of a trained BPE are roughly in order of frequency."""
    rng = np.random.RandomState(seed)  # its stream is frozen: equal in every numpy version
    length = np.array([min(len(raw), pos_dim) for raw in token_bytes], dtype=int)
    permutation = np.arange(len(token_bytes))
    for L in np.unique(length):
        ids = np.flatnonzero(length == L)
        for start in range(0, len(ids), 64):
            neighbours = ids[start:start + 64]
            permutation[neighbours] = rng.permutation(neighbours)
    return permutation


class RawKronecker(KroneckerEmbedding):
    """e(t) = scale[L] sum_i W[row(i)]: kron without the mean term, through which every idle row of
    W gets the same gradient and moves all tokens along one common direction."""
    centred = False


class KroneckerWideEmbedding(KroneckerEmbedding):
    """e(t) = kron(t) + s wide(t), s = 0.5: the token's bytes and its identity. wide is the affine
    code of K' = `code_width` signs (unset: the most there are). A word that is forced into a free
    slot has its bytes alone. Default scale sqrt(1 + s^2)."""
    share = 0.5
    default_std = 1.25**0.5
    arguments = (*KroneckerEmbedding.arguments, "vocab_size", "seed")
    options = {"pos_dim": 16, "code_width": 0}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, vocab_size, pos_dim=16,
                 form="on_the_fly", std=None, code_width=0, seed=0):
        super().__init__(num_embeddings, embedding_dim, token_bytes, pos_dim, form, std)
        self.vocab_size = vocab_size
        self.wide = AffineEmbedding(num_embeddings, embedding_dim, vocab_size, form=form,
                                    std=self.share * self.std / self.default_std, seed=seed,
                                    code_levels="signs", code_width=code_width or -1)

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        super().reset_parameters(seed, name)
        self.W.div_(self.default_std)  # W's share of the vector starts at 1

    def forward(self, ids):
        known = (ids < self.vocab_size).unsqueeze(-1)
        return super().forward(ids) + self.wide(ids) * known


class RandomEmbedding(KroneckerEmbedding):
    """kron with other rows: row i of token t is hash(seed, t, i) mod `rows` (unset: 256 P). A
    multi-hash (Bloom) embedding (Serra and Karatzoglou, arXiv 1706.03993) with as many hashes as
    the token has bytes. There is no spelling, and nearly all rows are in use."""
    reads_bytes = False
    arguments = (*KroneckerEmbedding.arguments, "seed")
    options = {"pos_dim": 16, "rows": 0}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, form="on_the_fly",
                 std=None, seed=0, rows=0):
        if rows and rows < 4 * pos_dim:
            raise ValueError(f"rows={rows}: must be at least 4 * pos_dim = {4 * pos_dim}")
        self.seed, self.asked = seed, rows
        super().__init__(num_embeddings, embedding_dim, token_bytes, pos_dim, form, std)

    def width(self):
        return self.asked or super().width()

    def rows(self, ids):
        i = torch.arange(self.pos_dim, device=ids.device)
        of_token = hash32(hash32(torch.full_like(ids, self.seed)) + ids)
        return hash32(of_token.unsqueeze(-1) + i) % self.code_width


def hash32(x):
    """A well-mixed 32-bit hash of int64 (Wellons' lowbias32), the same on every device.
    (...) int64 -> (...) int64 in [0, 2^32)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


# ---- bags of any length ------------------------------------------------------------------------

class BagEmbedding(TokenEmbedding):
    """e(t) = scale[t] * sum over the token's list of rows: a bag without a longest length.

    A subclass has `rows_of(bytes)`, `scale_of(ids)` and `lift(rows)`, a row's vector. The lists lie
    one after the other in `rows`, token t's from `start[t]`, `count[t]` long."""
    reads_bytes = True
    arguments = ("token_bytes", "std")

    def __init__(self, num_embeddings, embedding_dim, token_bytes, width, std=None):
        super().__init__(num_embeddings, embedding_dim, std)
        self.code_width = width  # D
        self.add_weight("W", (width, embedding_dim), self.std * width**-0.5)
        for name in ("rows", "count", "start", "distinct", "where", "scale"):
            self.register_buffer(name, None, persistent=False)
        lists = [*map(self.rows_of, token_bytes)]
        lists += [[]] * (num_embeddings - len(lists))  # these embed as zero
        # by numpy and on the CPU: a model that is built on the meta device has them too
        self.arrange([torch.from_numpy(np.array(rows, np.int32)) for rows in lists])

    def arrange(self, lists):
        """Lay the tokens' lists, (m,) int32 each, one after the other."""
        self.rows = torch.cat(lists)
        self.count = torch.tensor([len(rows) for rows in lists], device=self.rows.device)
        self.start = self.count.cumsum(0) - self.count
        self.distinct, self.where = self.rows.long().unique(return_inverse=True)

    def bags(self, ids):
        """The lists of ids (n,), joined, and where each begins: ((m,), (n,)) int64."""
        count = self.count[ids]
        begins = count.cumsum(0) - count
        shift = (self.start[ids] - begins).repeat_interleave(count)
        return self.rows[shift + torch.arange(len(shift), device=ids.device)].long(), begins

    def set_bytes(self, id, raw):
        lists = list(self.rows.split(self.count.tolist()))
        lists[id] = torch.tensor(self.rows_of(raw), dtype=torch.int32, device=self.rows.device)
        self.arrange(lists)
        ids = torch.tensor([id], device=self.rows.device)
        self.scale[ids] = self.scale_of(ids).to(self.scale.dtype)

    def vectors(self, ids):
        """e(t) of each id, (n,) -> (n, d): a row is lifted once, then summed into its tokens."""
        rows, begins = self.bags(ids)
        distinct, where = rows.unique(return_inverse=True)
        summed = F.embedding_bag(where, self.lift(distinct), begins, mode="sum")
        return (self.scale[ids].unsqueeze(-1) * summed).to(self.W.dtype)

    def forward(self, ids):
        if not torch.compiler.is_compiling():
            return super().forward(ids)
        # torch.compile needs static shapes: the bags of the whole vocabulary, looked up
        summed = F.embedding_bag(self.where, self.lift(self.distinct), self.start, mode="sum")
        return F.embedding(ids, (self.scale.unsqueeze(-1) * summed).to(self.W.dtype))


class TrigramEmbedding(BagEmbedding):
    """e(t) = sqrt(v/n) * sum of the n hashed rows of the token's byte trigrams, W ~ N(0,
    1/sqrt(v)), so that rms(e) starts at 1. T-FREE (Deiseroth et al., arXiv 2406.19223).

    With a sentinel before and after, L bytes have L trigrams; each one of their *set* gives m = 4
    rows, hash(trigram, j) mod v, v = `rows` (unset: 4,096, kron's budget). T-FREE has whole words,
    v = 32,000, m = 10, two of them shared with the lower-cased trigram, and does not normalise."""
    hashes, options = 4, {"rows": 0}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None, rows=0):
        width = chosen("rows", rows, 4096)
        super().__init__(num_embeddings, embedding_dim, token_bytes, width, std)
        self.scale = self.scale_of(torch.arange(num_embeddings, device="cpu"))

    def rows_of(self, raw):
        padded = [256, *raw, 256]
        found = sorted(set(zip(padded, padded[1:], padded[2:])))
        number = torch.tensor([(a * 257 + b) * 257 + c for a, b, c in found], dtype=torch.int64)
        rows = hash32(hash32(number).unsqueeze(-1) + torch.arange(self.hashes)) % self.code_width
        return rows.flatten().tolist()

    def scale_of(self, ids):
        count = self.count[ids].float()
        return torch.where(count > 0, (self.code_width / count.clamp(min=1)).sqrt(), 0.0)

    def lift(self, rows):
        return F.embedding(rows, self.W)

    def params_in_use(self, vocab_size):
        rows, _ = self.bags(torch.arange(vocab_size, device=self.rows.device))
        return len(rows.unique()) * self.embedding_dim


class PhaseEmbedding(BagEmbedding):
    """e(t) = z W, z = sqrt(D) kappa / |kappa|, kappa = sum_p exp(i (theta[byte_p] + p omega)) as
    D = 2F reals [Re, Im]: a position is a rotation, so there is no slot, no cut and no collision.

    theta (256, F) and omega (F,) are uniform on (-pi, pi), the same in all runs. W ~ N(0,
    1/sqrt(D)), so that rms(e) starts at 1. After abi2024/kronecker_v2. Tune its learning rate: a
    step of Adam moves e by up to lr * |z|_1, 1,263 at D = 1,536 against kron's 248 to 324."""
    options = {"code_width": 0}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None, code_width=0):
        if code_width < 0 or code_width % 2:
            raise ValueError(f"code_width={code_width}: code 'phase' takes an even number")
        super().__init__(num_embeddings, embedding_dim, token_bytes, code_width or 1536, std)
        drawn = np.random.RandomState(0).uniform(-math.pi, math.pi, (257, self.code_width // 2))
        # theta and omega as the bits of float64, which .to(bfloat16) leaves alone
        self.register_buffer("angles", torch.from_numpy(drawn).view(torch.int64), persistent=False)
        ids = torch.arange(num_embeddings, device="cpu")
        self.scale = torch.cat([self.scale_of(part) for part in ids.split(4096)])

    def rows_of(self, raw):
        """A row stands for a byte at a position: 256 * position + byte."""
        return [256 * position + byte for position, byte in enumerate(raw)]

    def phases(self, rows):
        """exp(i (theta[byte] + p omega)) of rows (n,) -> (n, D) float32."""
        theta, omega = self.angles.view(torch.float64).split([256, 1])
        angle = theta[rows % 256] + (rows // 256).unsqueeze(-1) * omega  # float64: p omega is large
        return torch.cat([angle.cos(), angle.sin()], -1).float()

    def scale_of(self, ids):
        rows, begins = self.bags(ids)
        distinct, where = rows.unique(return_inverse=True)
        norm = F.embedding_bag(where, self.phases(distinct), begins, mode="sum").norm(dim=-1)
        return torch.where(norm > 0, self.code_width**0.5 / norm.clamp(min=1e-6), 0.0)

    def lift(self, rows):
        return self.phases(rows).to(self.W.dtype) @ self.W


# ---- smaller tables ----------------------------------------------------------------------------

def chosen(key, value, default):
    """An option's value, the default where it is 0. ValueError if it is negative."""
    if value < 0:
        raise ValueError(f"{key}={value}: must be 0 (the default) or more")
    return value or default


class LowRankEmbedding(TokenEmbedding):
    """e(t) = A[t] B, A (V x r) ~ N(0, std), B (r x d) ~ N(0, 1/sqrt(r)): a table of rank r = `rank`
    (unset: 62, kron's budget at GPT-2's vocabulary). ALBERT (Lan et al., arXiv 1909.11942), here
    with a scale that does not depend on r."""
    options, default_std = {"rank": 0}, 0.02

    def __init__(self, num_embeddings, embedding_dim, std=None, rank=0):
        super().__init__(num_embeddings, embedding_dim, std)
        self.rank = chosen("rank", rank, 62)
        self.add_weight("A", (num_embeddings, self.rank), self.std)
        self.add_weight("B", (self.rank, embedding_dim), self.rank**-0.5)

    def forward(self, ids):
        return F.embedding(ids, self.A) @ self.B

    def params_in_use(self, vocab_size):
        return vocab_size * self.rank + self.B.numel()


class HashEmbedding(TokenEmbedding):
    """e(t) = sum_{k < 2} p[t, k] W[h_k(t)], h_k(t) = hash(seed, k, t) mod `rows` (unset: 4,096):
    shared rows, told apart by learned weights p, which start at 1/sqrt(2), so that rms(e) = std.
    Hash embeddings (Svenstrup et al. 2017; there W ~ N(0, 0.1) and p ~ N(0, 0.0005))."""
    arguments, options, default_std = ("std", "seed"), {"rows": 0}, 0.02

    def __init__(self, num_embeddings, embedding_dim, std=None, seed=0, rows=0):
        super().__init__(num_embeddings, embedding_dim, std)
        self.seed = seed
        self.add_weight("W", (chosen("rows", rows, 4096), embedding_dim), self.std)
        self.importance = nn.Parameter(torch.full((num_embeddings, 2), 0.5**0.5))  # p

    def rows(self, ids):
        """Which two rows of W each id sums: (n,) -> (n, 2) int64."""
        k = torch.arange(2, device=ids.device)
        of_hash = hash32(hash32(torch.full_like(k, self.seed)) + k)
        return hash32(of_hash + hash32(ids).unsqueeze(-1)) % len(self.W)

    def vectors(self, ids):
        weights = F.embedding(ids, self.importance).unsqueeze(-1)  # (n, 2, 1)
        return (weights * F.embedding(self.rows(ids), self.W)).sum(-2)

    def params_in_use(self, vocab_size):
        ids = torch.arange(vocab_size, device=self.W.device)
        return len(self.rows(ids).unique()) * self.embedding_dim + 2 * vocab_size


class QuotientRemainderEmbedding(TokenEmbedding):
    """e(t) = R[t mod m] * Q[t div m], elementwise, m = `buckets` (unset: ceil(sqrt V)). Shi et al.,
    arXiv 1909.02107. Both factors ~ N(0, sqrt(std)), so that rms(e) = std (the reference draws one
    of them uniformly between 1/sqrt(n) and 1, by a slip)."""
    options, default_std = {"buckets": 0}, 0.02

    def __init__(self, num_embeddings, embedding_dim, std=None, buckets=0):
        super().__init__(num_embeddings, embedding_dim, std)
        self.buckets = chosen("buckets", buckets, math.isqrt(num_embeddings - 1) + 1)
        quotients = (num_embeddings - 1) // self.buckets + 1
        self.add_weight("R", (self.buckets, embedding_dim), self.std**0.5)
        self.add_weight("Q", (quotients, embedding_dim), self.std**0.5)

    def vectors(self, ids):
        return F.embedding(ids % self.buckets, self.R) * F.embedding(ids // self.buckets, self.Q)

    def params_in_use(self, vocab_size):
        rows = min(vocab_size, self.buckets) + (vocab_size - 1) // self.buckets + 1
        return rows * self.embedding_dim


# ---- never trained -----------------------------------------------------------------------------

class FrozenEmbedding(TokenEmbedding):
    """A V x d table that is never trained; default scale 1/sqrt(d), rows of unit norm. The
    checkpoint has it as float16."""
    lifts, head_lifts = ("none",), ()

    def __init__(self, num_embeddings, embedding_dim, std=None):
        self.default_std = embedding_dim**-0.5
        super().__init__(num_embeddings, embedding_dim, std)
        self.register_buffer("table", torch.zeros(num_embeddings, embedding_dim).half())
        scale = torch.tensor(self.std / self.default_std)  # of the type that the vectors have
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids):
        return F.embedding(ids, self.table).to(self.scale.dtype) * self.scale


class FrozenRandomEmbedding(FrozenEmbedding):
    """e(t) = g(t) / |g(t)|, g(t) ~ N(0, I_d), drawn by the run's seed and never trained: the null
    hypothesis of every frozen code."""

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        shape = self.table.shape
        drawn = torch.randn(shape, generator=draw(seed, f"{name}table", shape), device="cpu")
        self.table.copy_(F.normalize(drawn, dim=-1))


class VisualEmbedding(FrozenEmbedding):
    """e(t) = PCA_d(x(t)) / |PCA_d(x(t))|, x(t) = `bitmap` of the token's text, 1,024 pixels: what
    the shapes of its letters are worth. Emergent semantics (Bochkov, arXiv 2507.04886), there in
    GNU Unifont, here in DejaVu Sans, which matplotlib has. Ids past the vocabulary are zero."""
    arguments = ("token_bytes", "std")

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None):
        if embedding_dim > 1024:
            raise ValueError(f"n_embd={embedding_dim}: code 'visual' has at most its 1,024 pixels")
        super().__init__(num_embeddings, embedding_dim, std)
        self.token_bytes = token_bytes

    @torch.no_grad()
    def reset_parameters(self, seed=0, name=""):
        """Draw every token and reduce the pixels; nothing is random."""
        if self.token_bytes:
            pixels = torch.from_numpy(np.stack([bitmap(raw) for raw in self.token_bytes]))
            x = pixels.flatten(1).double()  # (V, 1024)
            x -= x.mean(0)
            _, directions = torch.linalg.eigh(x.T @ x)  # ascending
            codes = (x @ directions.flip(1)[:, :self.embedding_dim]).float()
            self.table[:len(codes)] = F.normalize(codes, dim=-1).half().to(self.table.device)


def bitmap(raw):
    """A token as a picture, (32, 32) bool: each character at font size 32, centred in a 32 x 32
    cell, cells side by side, resized to 32 x 32, then True above half of the brightest. White
    space, characters that the font lacks and bytes that are no UTF-8 are drawn as hex digits."""
    from PIL import Image
    characters = ""
    for c in raw.decode("utf-8", errors="surrogateescape"):
        is_byte = "\udc80" <= c <= "\udcff"  # that is no UTF-8: 0x80 is U+DC80
        digits = f"{ord(c) - 0xDC00 * is_byte:02X}"
        characters += digits if c.isspace() or ord(c) not in font()[1] else c
    cells = [glyph(c) for c in characters] or [np.zeros((32, 32), np.uint8)]
    strip = Image.fromarray(np.concatenate(cells, axis=1))
    pixels = np.asarray(strip.resize((32, 32), Image.Resampling.BOX))
    return pixels > pixels.max() / 2


@functools.cache
def font():
    """(DejaVu Sans at size 32, the set of code points that it has)."""
    from matplotlib import font_manager, ft2font
    from PIL import ImageFont
    path = font_manager.findfont("DejaVu Sans")
    return ImageFont.truetype(path, 32), set(ft2font.FT2Font(path).get_charmap())


@functools.cache
def glyph(character):
    """A character, centred in a (32, 32) uint8 cell."""
    from PIL import Image, ImageDraw
    cell = Image.new("L", (32, 32))
    ImageDraw.Draw(cell).text((16, 16), character, 255, font()[0], anchor="mm")
    return np.asarray(cell)


# ---- a trained reader of spelling --------------------------------------------------------------

class BytesToWordEmbedding(TokenEmbedding):
    """Learned queries attend over the token's bytes. In the spirit of Byte2Word (Lee, Guo, Qiu,
    arXiv 2211.12677), whose exact sizes we could not read:

        x_i = B[byte_i] + S[i]                                      256 x e and P x e, e = 256
        a_h = softmax_i(q_h . (x_i K)_h / sqrt(d/H))                over the bytes that are there
        e(t) = LayerNorm(concat_h sum_i a_h,i (x_i V)_h) O          K, V: e x d, O: d x d

    A sum over bytes commutes with V, and q_h with K, so both act once per token instead of once
    per byte. O ~ N(0, std/sqrt(d)) after the norm gives rms(e) = std."""
    lifts, head_lifts = ("attention",), ()
    arguments, options = ("token_bytes", "std", "n_head"), {"pos_dim": 16}
    reads_bytes = True
    inner = 256  # e
    present, set_bytes = KroneckerEmbedding.present, KroneckerEmbedding.set_bytes
    table = None  # the form that set_bytes would keep up to date

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, std=None, n_head=8):
        super().__init__(num_embeddings, embedding_dim, std)
        self.pos_dim, self.heads = pos_dim, n_head
        packed, length = pack_bytes(token_bytes, num_embeddings, pos_dim)
        self.register_buffer("bytes", packed, persistent=False)
        self.register_buffer("length", length, persistent=False)
        e, d = self.inner, embedding_dim
        self.add_weight("B", (256, e), 0.02)
        self.add_weight("S", (pos_dim, e), 0.02)
        self.add_weight("q", (n_head, d // n_head), 1.0)
        self.add_weight("K", (e, d), e**-0.5)
        self.add_weight("V", (e, d), e**-0.5)
        self.norm = nn.LayerNorm(d, bias=False)
        self.add_weight("O", (d, d), self.std * d**-0.5)

    def vectors(self, ids):
        H, d = self.heads, self.embedding_dim
        x = F.embedding(self.bytes[ids].long(), self.B) + self.S  # (n, P, e)
        present = self.present(ids)  # (n, P)
        queries = torch.einsum("ehw,hw->eh", self.K.view(-1, H, d // H), self.q)  # q_h K_h^T
        scores = x @ queries * (d / H)**-0.5  # (n, P, H)
        # a token without bytes attends evenly to nothing: finite, and zero in the end
        scores = scores.masked_fill(~present.unsqueeze(-1), -1e4)
        read = scores.softmax(1).transpose(1, 2) @ x  # (n, H, e)
        heads = torch.einsum("nhe,ehw->nhw", read, self.V.view(-1, H, d // H))
        return self.norm(heads.flatten(1)) @ self.O * present[:, :1]

    def params_in_use(self, vocab_size):
        ids = torch.arange(vocab_size, device=self.bytes.device)
        used = len(self.bytes[ids][self.present(ids)].unique()) + int(self.length[ids].max())
        idle = 256 + self.pos_dim - used  # rows of B and S: bytes and positions of no token
        return super().params_in_use(vocab_size) - idle * self.inner


RIVALS = {
    "kron_shuffled": ShuffledKronecker, "kron_raw": RawKronecker, "random": RandomEmbedding,
    "trigram": TrigramEmbedding, "phase": PhaseEmbedding, "lowrank": LowRankEmbedding,
    "hash": HashEmbedding, "qr": QuotientRemainderEmbedding,
    "frozen_random": FrozenRandomEmbedding, "visual": VisualEmbedding,
    "bytes2word": BytesToWordEmbedding, "kron_wide": KroneckerWideEmbedding}
