"""Fixed codes and their lifts, against their definitions; codes.py's command."""
import re
from collections import Counter

import matplotlib.image
import numpy as np
import pytest
import torch

import codes
from codes import (CODES, AffineEmbedding, BinaryEmbedding, KroneckerEmbedding, affine_code,
                   affine_decode, binary_code, code_bits, draw_affine, gf2_inverse, ids_of,
                   kron_cosine, kron_rows, tile)
from conftest import ROOT
from lib.run_folder import load_checkpoint
from lib.tokenizer import from_state, token_bytes
from model import GPTConfig, make_embedding
from rivals import RandomEmbedding
from runs import draw_codes

EDGES = {1, 3, 20_000}
for k in range(14):
    EDGES |= {n for n in (2**k - 1, 2**k, 2**k + 1) if n >= 1}


def definition(raw, P):
    """z(b) of arXiv 2605.29459, word for word, in float64:
    kappa = (1/sqrt L) vec(sum c_b (x) p_i), z = (kappa - mean) / (std + 1e-6)."""
    raw = raw[:P]
    if not raw:
        return np.zeros(256 * P)
    c, p = np.eye(256), np.eye(P)
    kappa = sum(np.kron(c[b], p[i]) for i, b in enumerate(raw)) / np.sqrt(len(raw))
    return (kappa - kappa.mean()) / (kappa.std(ddof=1) + 1e-6)


def fast_definition(spelled, P):
    """The same for many tokens at once, (V, 256 P) float64; `test_kron_code` holds it against the
    slow one."""
    kappa = np.zeros((len(spelled), 256, P))
    for t, raw in enumerate(spelled):
        kappa[t, list(raw[:P]), range(len(raw[:P]))] = 1 / np.sqrt(len(raw[:P]))
    kappa = kappa.reshape(len(spelled), -1)
    return (kappa - kappa.mean(1, keepdims=True)) / (kappa.std(1, ddof=1, keepdims=True) + 1e-6)


# ---- binary and affine -------------------------------------------------------------------------

def test_binary_table_equals_on_the_fly():
    """Both forms give the same bits, least significant first, and K = ceil(log2 V), at least 1."""
    for V in EDGES:
        K, ids = code_bits(V), torch.arange(V)
        assert K >= 1 and 2**K >= V and (K == 1 or 2 ** (K - 1) < V)
        table, fly = (BinaryEmbedding(V, 2 * K + 1, V, form=f) for f in ("table", "on_the_fly"))
        assert torch.equal(table(ids), fly(ids))
        assert torch.equal(ids_of(fly(ids)[:, :K]), ids)
        last = binary_code(torch.tensor([V - 1]), K)[0]
        assert last.tolist() == [float(bit) for bit in reversed(f"{V - 1:0{K}b}")]


def test_tile_repeats_the_whole_code():
    """[c, c, ...], the last copy cut."""
    assert tile(torch.tensor([[1., 2., 3.]]), 8).tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert tile(torch.tensor([[1., 2., 3.]]), 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("arm", [BinaryEmbedding, AffineEmbedding])
@pytest.mark.parametrize("lift", ["tile", "linear"])
def test_bit_embeddings_agree_and_shape(arm, lift):
    """Table and on-the-fly agree bit for bit under either lift; tile trains nothing, linear trains
    K*d; on the fly holds no table."""
    ids = torch.randint(0, 50304, (2, 3, 5))
    table, fly = (arm(50304, 100, 50304, lift, form) for form in ("table", "on_the_fly"))
    vectors = fly(ids)
    assert vectors.shape == (2, 3, 5, 100) and torch.equal(table(ids), vectors)
    assert sum(p.numel() for p in fly.parameters()) == (1600 if lift == "linear" else 0)
    assert sum(b.numel() for b in fly.buffers()) <= 16 * 17


def test_affine_is_invertible_for_200_seeds():
    """A A^-1 = 1 over GF(2), a seed repeats, and seeds differ."""
    drawn = [draw_affine(16, seed) for seed in range(200)]
    for A, _ in drawn:
        assert torch.equal(A.long() @ gf2_inverse(A).long() % 2, torch.eye(16, dtype=torch.long))
    assert all(map(torch.equal, drawn[7], draw_affine(16, 7)))
    assert len({tuple(A.flatten().tolist() + b.tolist()) for A, b in drawn}) == 200


@pytest.mark.parametrize("K", [1, 2, 3, 7, 12, 16])
def test_affine_decodes_every_code(K):
    """decode(recode(x)) = x for all x < 2^K, and recoding is A x + b over GF(2)."""
    A, b = draw_affine(K, seed=K)
    x = torch.arange(2**K)
    code = affine_code(binary_code(x, K), A, b)
    assert torch.equal(ids_of(affine_decode(code, A, b)), x)
    some = np.random.RandomState(0).randint(0, 2**K, 50)
    bits = (some[:, None] >> np.arange(K)) & 1
    assert np.array_equal(code[some].numpy(), (bits @ A.numpy().T.astype(int) + b.numpy()) % 2)


def test_affine_is_uniform_over_gl2():
    """K = 2: all six invertible matrices and all four shifts, equally often (chi-square,
    p > 0.001)."""
    drawn = [draw_affine(2, seed) for seed in range(1500)]
    matrices = [tuple(A.flatten().tolist()) for A, _ in drawn]
    shifts = [tuple(b.tolist()) for _, b in drawn]
    for values, cells, limit in ((matrices, 6, 20.5), (shifts, 4, 16.3)):
        counts = Counter(values)
        expected = len(values) / cells
        assert len(counts) == cells
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < limit


def test_singular_matrix_has_no_inverse():
    with pytest.raises(ValueError):
        gf2_inverse(torch.tensor([[1, 1], [1, 1]], dtype=torch.uint8))


def test_affine_seed_is_in_the_state():
    """A and b travel in the state dict: a checkpoint of one seed loaded into a module of another
    gives the first one's codes."""
    one, other = (AffineEmbedding(512, 27, 512, seed=seed) for seed in (1, 2))
    ids = torch.arange(512)
    assert not torch.equal(one(ids), other(ids))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(ids), other(ids))


# ---- the wide code -----------------------------------------------------------------------------

def wide(V, width, d=1024, **options):
    """An affine code of K' = `width` signs, tiled to d."""
    return AffineEmbedding(V, d, V, code_width=width, code_levels="signs", **options)


@pytest.mark.parametrize("V", [1000, 4096, 50257])
@pytest.mark.parametrize("times", [0, 1, 2, "most"])
def test_a_wide_code_tells_every_id_apart(V, times):
    """K' = K, K + 1, 2 K and min(d, 2^K - 1): its rows are distinct and not zero, no two ids share
    a code, every id is decoded, and each entry is the parity of the id's bits that its row of A
    names, flipped where b is 1."""
    K = code_bits(V)
    width = {0: K, 1: K + 1, 2: 2 * K, "most": min(1024, 2**K - 1)}[times]
    module = wide(V, -1 if times == "most" else width, seed=7)
    A, b = module.A.long(), module.b.long()
    assert module.code_width == len(A) == width and A.any(1).all()
    assert len(A.unique(dim=0)) == width
    ids = torch.arange(V)
    bits = (module.code(ids) + 1).long() // 2  # (V, K')
    assert len(bits.unique(dim=0)) == V
    assert torch.equal(ids_of(affine_decode(bits, A, b)), ids)
    for t in (0, 1, 2, V // 3, V - 1):
        assert bits[t].tolist() == [(bin(ids_of(row) & t).count("1") + flip) % 2
                                    for row, flip in zip(A, b.tolist())]


def test_the_forms_of_a_wide_code_agree():
    """Table, on the fly and compiled: the same vectors bit for bit, of norm sqrt(d), with nothing
    trained; A and b are its whole state."""
    ids = torch.randint(0, 5000, (2, 3, 5))
    table, fly = (wide(5000, 40, d=96, form=form) for form in ("table", "on_the_fly"))
    vectors = fly(ids)
    assert torch.equal(table(ids), vectors) and not list(fly.parameters())
    assert torch.equal(torch.compile(fly, fullgraph=True, backend="aot_eager")(ids), vectors)
    assert vectors.unique().tolist() == [-1, 1] and fly.std == 1
    assert set(fly.state_dict()) == {"A", "b"} and fly.params_in_use(5000) == 0


def test_parities_are_orthogonal_over_all_ids():
    """Any two entries of a wide code as signs, summed over all 2^K ids, cancel: with all 2^K - 1
    rows it is a Hadamard code."""
    codes = wide(1024, -1).code(torch.arange(1024))  # (1024, 1023)
    assert torch.equal(codes.T @ codes, 1024 * torch.eye(1023))


def test_the_narrowest_code_is_the_published_one():
    """code_width = K is bit for bit what 0 is: one stream of draws, today's A and b for K = 4."""
    for seed in range(20):
        minimal, named = (AffineEmbedding(4096, 30, 4096, code_width=width, seed=seed)
                          for width in (0, 12))
        assert torch.equal(minimal(torch.arange(4096)), named(torch.arange(4096)))
    A, b = draw_affine(4, seed=1)
    assert ids_of(A).tolist() == [1, 15, 11, 9] and b.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("width", [-2, 1, 11, 97, 4096])
def test_a_width_out_of_range_is_refused(width):
    """Below K the code is not one to one; above d it would be cut, above 2^K - 1 rows repeat."""
    with pytest.raises(ValueError, match="code 'affine' takes 12 to 96 here"):
        wide(4096, width, d=96)
    with pytest.raises(ValueError, match="takes 3 to 7 here"):
        wide(8, 8)


# ---- Kronecker ---------------------------------------------------------------------------------

@pytest.mark.parametrize("P", [4, 16, 32])
def test_kron_code(P):
    """The dense code equals the definition for tokens of 0, 1, ..., P and more bytes."""
    spelled = [b"", b"a", b"the", b"\x00\xff\x00", b"compute", b"commute", bytes(range(P)),
               b"x" * (P + 7)]
    module = KroneckerEmbedding(len(spelled), 8, spelled, P)
    slow = np.stack([definition(raw, P) for raw in spelled])
    assert np.abs(module.code(torch.arange(len(spelled))).numpy() - slow).max() < 1e-5
    assert np.abs(fast_definition(spelled[1:], P) - slow[1:]).max() < 1e-12


@pytest.mark.parametrize("P", [16, 32])
def test_kron_forms_equal_the_definition_on_the_whole_vocabulary(bpe, P):
    """On the fly, by table, and the float64 definition times W: max difference below 1e-5 over
    every token."""
    spelled = token_bytes(bpe)
    for start in range(0, len(spelled), 512):  # by parts: a whole table is large
        part = spelled[start:start + 512]
        code = torch.from_numpy(fast_definition(part, P))
        for form in ("on_the_fly", "table"):
            module = KroneckerEmbedding(len(part), 16, part, P, form)
            exact = code @ module.W.double()
            assert (module(torch.arange(len(part))) - exact).abs().max() < 1e-5


def test_tokens_share_a_code_only_when_cut_to_the_same_bytes(bpe):
    """As many distinct codes as distinct byte strings of at most P bytes: a token's code is its own
    unless its end was cut off."""
    cut = {raw[:6] for raw in token_bytes(bpe)}
    module = KroneckerEmbedding(bpe.vocab_size, 8, token_bytes(bpe), 6)
    codes = module.code(torch.arange(bpe.vocab_size)).unique(dim=0)
    assert len(codes) == len(cut) < bpe.vocab_size


def test_kron_gradients_equal_the_dense_form(bpe, docs):
    """W's gradient through the bag is that through the dense code, z^T dL/de, on text whose tokens
    repeat."""
    spelled = token_bytes(bpe)
    ids = torch.tensor(bpe.encode(" ".join(docs))[:1024]).view(2, 512)
    upstream = torch.randn(2, 512, 24, generator=torch.Generator().manual_seed(1))
    module = KroneckerEmbedding(len(spelled), 24, spelled)
    module(ids).backward(upstream)
    code = torch.from_numpy(fast_definition([spelled[i] for i in ids.flatten()], 16))
    dense = code.T @ upstream.flatten(0, 1).double()
    assert len(ids.unique()) < ids.numel()
    assert (module.W.grad - dense).abs().max() < 1e-4 * dense.abs().max()


@pytest.mark.parametrize("a, b, cosine", [
    ("run", "runs", 3 / 12**0.5), ("compute", "commute", 6 / 7), ("nation", "station", 0),
    ("walk", "walking", 4 / 28**0.5)])
def test_cosines(a, b, cosine):
    """cos z(run, runs) = 0.866; a shared prefix of k bytes gives k / sqrt(m n); a shift by one byte
    gives about 0."""
    assert kron_cosine(a.encode(), b.encode()) == pytest.approx(cosine, abs=0.004)


@pytest.mark.parametrize("arm", [KroneckerEmbedding, RandomEmbedding])
def test_kron_buffers_are_small(bpe, arm):
    """On the fly, what is held per token is P + 2 bytes or less; the rest depends on the length
    alone."""
    for P in (16, 32):
        module = arm(bpe.vocab_size, 8, token_bytes(bpe), P)
        size = sum(b.nbytes for b in module.buffers())
        assert size <= bpe.vocab_size * (P + 2) + 2 * 4 * (P + 1)


@pytest.mark.parametrize("form", ["on_the_fly", "table"])
def test_set_bytes(bpe, form):
    """Bytes put into a free slot embed as a token with these bytes would; nobody else's vector
    changes; a later word replaces it."""
    spelled, slot = token_bytes(bpe), bpe.vocab_size + 3
    module = KroneckerEmbedding(bpe.vocab_size + 8, 24, spelled, form=form)
    before = module(torch.arange(slot + 1)).detach()
    assert not before[slot].any()
    for raw in (spelled[500], b"internationalization", b"", b"zyzzyva"):
        module.set_bytes(slot, raw)
        after = module(torch.arange(slot + 1)).detach()
        expected = torch.from_numpy(definition(raw, 16)) @ module.W.detach().double()
        assert (after[slot] - expected).abs().max() < 1e-5
        assert torch.equal(after[:slot], before[:slot])


def test_padding_ids_embed_as_zero():
    """A token with no bytes has the zero vector, and its projection gets no gradient from it."""
    module = KroneckerEmbedding(64, 8, [b"a"])
    module(torch.tensor([[5, 6]])).sum().backward()
    assert not module(torch.tensor([5])).any() and not module.W.grad.any()


# ---- random ------------------------------------------------------------------------------------

def test_random_ignores_spelling(bpe):
    """random's vectors depend on the seed, the id and the length of a token, never on its bytes;
    kron's depend on nothing else."""
    spelled = token_bytes(bpe)[:2000]
    other = [bytes(255 - b for b in raw) for raw in spelled]
    ids = torch.arange(2000)
    plain = RandomEmbedding(2000, 16, spelled, seed=3)(ids)
    assert torch.equal(plain, RandomEmbedding(2000, 16, other, seed=3)(ids))
    assert not torch.equal(plain, RandomEmbedding(2000, 16, spelled, seed=4)(ids))
    kron, other_kron = (KroneckerEmbedding(2000, 16, raw)(ids) for raw in (spelled, other))
    assert not torch.allclose(kron, other_kron)


def test_random_draws_rows_as_kron_spells_them(bpe):
    """As many rows per token as kron, anywhere in D equally often, and tokens of one spelling share
    no more than chance."""
    spelled = token_bytes(bpe)[:2000]
    module, ids = RandomEmbedding(2000, 8, spelled), torch.arange(2000)
    assert torch.equal(module.present(ids), KroneckerEmbedding(2000, 8, spelled).present(ids))
    rows = module.rows(ids).flatten()
    counts = torch.bincount(rows // 256, minlength=16).double()  # 32,000 in 16 parts of D = 4,096
    assert len(counts) == 16
    assert ((counts - 2000) ** 2 / 2000).sum() < 37.7  # chi-square of 15 degrees, p > 0.001
    assert max(Counter(rows.tolist()).values()) < 30  # 8 expected


# ---- every code --------------------------------------------------------------------------------

def cases():
    """(code, lift, form) of every code: each lift, and both forms where there are two."""
    for code, kind in CODES.items():
        forms = ("on_the_fly", "table") if hasattr(kind, "set_form") else ("on_the_fly",)
        for lift in kind.lifts:
            for form in forms:
                yield code, lift, form


def compare_compiled(tok, docs, backend, code, lift, form):
    torch._dynamo.reset()
    config = GPTConfig(vocab_size=tok.vocab_size, n_embd=24, code=code, lift=lift, head="table",
                       code_form=form)
    module = make_embedding(config, token_bytes(tok))
    ids = torch.tensor(tok.encode(" ".join(docs))[:64]).view(4, 16)
    results = []
    for forward in (module, torch.compile(module, fullgraph=True, backend=backend)):
        module.zero_grad()
        vectors = forward(ids)
        if vectors.requires_grad:
            vectors.square().sum().backward()
        results.append([vectors.detach(), *[p.grad.clone() for p in module.parameters()]])
    for plain, compiled in zip(*results, strict=True):
        assert (plain - compiled).abs().max() <= 1e-5 * max(1, plain.abs().max())


@pytest.mark.parametrize("code, lift, form", list(cases()))
def test_compiled_forward_gives_the_same_vectors(bpe, docs, code, lift, form):
    """torch.compile(fullgraph=True) of a code's forward gives the same vectors, and the same
    gradient."""
    compare_compiled(bpe, docs, "aot_eager", code, lift, form)


def test_kron_through_the_real_compiler(bpe, docs):
    compare_compiled(bpe, docs, "inductor", "kron", "linear", "on_the_fly")


# ---- python codes.py ---------------------------------------------------------------------------

def test_what_is_printed_is_what_the_codes_are(call, tmp_path, capsys):
    """Binary digits read back as the token's id, affine ones through A^-1; rows are those that the
    module sums, whether or not a word is quoted with its space; a long word shows all its bytes."""
    tok = from_state(load_checkpoint(ROOT / "results" / "demo" / "kron.pt")["tokenizer"])
    assert call(codes.main, "get", " receive", "कार्यालय", "get", cwd=tmp_path) == 0
    said = capsys.readouterr().out
    tokens = re.findall(r"^  (.*\S) +(\d+)  ([01]+)  ([01]+)$", said, re.M)
    words = [" get", " receive", " कार्यालय"]
    ids = dict.fromkeys(id for word in words for id in tok.encode(word))
    assert [int(id) for _, id, _, _ in tokens] == list(ids)
    A, b = draw_affine(len(tokens[0][2]), 1337)
    for text, id, binary, affine in tokens:
        assert text.strip('"').encode() == token_bytes(tok)[int(id)] or text.startswith('"\\x')
        x, c = (torch.tensor([float(digit) for digit in bits]) for bits in (binary, affine))
        assert ids_of(x) == ids_of(affine_decode(c, A, b)) == int(id)
    for kind, expected in (("bytes", [list(word.encode()) for word in words]),
                           ("rows ", [kron_rows(word.encode()) for word in words])):
        lines = re.findall(rf"    {kind} ([\d ]+)\n", said)
        assert [[int(number) for number in line.split()] for line in lines] == expected
    assert kron_rows(b" receive")[:2] == [32 * 16, ord("r") * 16 + 1]
    cosine = re.search(r'" get", " receive" +(\S+)  2 of 4 and 8$', said, re.M)[1]
    assert float(cosine) == pytest.approx(2 / 32**0.5, abs=2e-3)


def test_words_without_a_code_are_one_line(tmp_path, refuse):
    for word, named in (("", "empty word"), (" ", "empty word"), ("\udcff", "not UTF-8")):
        assert named in refuse(codes.main, word, cwd=tmp_path)


def test_the_picture_of_the_readme_is_what_its_script_draws(call, tmp_path):
    assert call(draw_codes.main, "--out=codes.png", cwd=tmp_path) == 0
    drawn, shown = (matplotlib.image.imread(folder / "codes.png")
                    for folder in (tmp_path, ROOT / "results"))
    assert drawn.shape == (1440, 1800, 4) and (drawn == shown).all()
