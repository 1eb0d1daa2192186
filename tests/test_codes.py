"""The codes of the two papers, against their definitions; codes.py's command and picture.
test_rivals.py has what holds for every arm: equations, gradients, forms, compiling, types."""
import re
from collections import Counter

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import codes
from codes import (AffineEmbedding, BinaryEmbedding, KroneckerEmbedding, code_bits, draw_affine,
                   gf2_inverse)
from conftest import ROOT
from lib.run_folder import load_model
from lib.tokenizer import token_bytes
from runs import draw_codes
from test_rivals import bag_code


def numbers(bits):
    """Rows of 0 and 1, least significant first, (..., K) -> whole numbers (...)."""
    return (bits.long() << torch.arange(bits.size(-1))).sum(-1)


def decode(code, A, b):
    """The ids of affine codes: A^-1 (code + b) over GF(2)."""
    return numbers((code.long() + b) % 2 @ gf2_inverse(A).long().T % 2)


# ---- binary and affine -------------------------------------------------------------------------

@pytest.mark.parametrize("V", [1, 2, 3, 4, 5, 31, 32, 33, 4095, 4096, 4097, 20_000])
def test_a_binary_code_is_the_bits_of_the_id(V):
    """K = ceil(log2 V), at least 1, least significant first; both forms repeat it to the width."""
    K, ids = code_bits(V), torch.arange(V)
    assert 2**K >= V and (K == 1 or 2**(K - 1) < V)
    fly, table = (BinaryEmbedding(V, 2 * K + 1, V, form=form) for form in ("on_the_fly", "table"))
    vectors = fly(ids)
    assert torch.equal(vectors, table(ids)) and torch.equal(numbers(vectors[:, :K]), ids)
    assert torch.equal(vectors[:, K:2 * K], vectors[:, :K])
    assert torch.equal(vectors[:, -1], vectors[:, 0])


@pytest.mark.parametrize("arm", [BinaryEmbedding, AffineEmbedding])
@pytest.mark.parametrize("lift, trained", [("tile", 0), ("linear", 16 * 100)])
def test_id_bits_hold_no_table(arm, lift, trained):
    """On the fly nothing is of size V; tile trains nothing, linear K*d. Ids have any shape."""
    module = arm(50304, 100, 50304, lift)
    assert module(torch.randint(0, 50304, (2, 3, 5))).shape == (2, 3, 5, 100)
    assert sum(p.numel() for p in module.parameters()) == trained
    assert sum(b.numel() for b in module.buffers()) <= 16 * 17 + 1


def test_affine_is_uniform_over_gl2():
    """K = 2: all six invertible matrices and all four shifts, equally often; a seed repeats."""
    drawn = [draw_affine(2, seed) for seed in range(1500)]
    for place, cells in ((0, 6), (1, 4)):
        counts = Counter(tuple(pair[place].flatten().tolist()) for pair in drawn)
        assert len(counts) == cells and chisquare([*counts.values()]).pvalue > 0.001
    assert all(map(torch.equal, drawn[7], draw_affine(2, 7)))
    assert gf2_inverse(torch.ones(2, 2, dtype=torch.uint8)) is None


# ---- the wide code -----------------------------------------------------------------------------

@pytest.mark.parametrize("V", [1000, 4096, 50257])
@pytest.mark.parametrize("times", [0, 1, 2, "most"])
def test_an_affine_code_tells_every_id_apart(V, times):
    """K' = K, K + 1, 2 K and min(d, 2^K - 1): its rows are distinct and not zero, every id is
    decoded, and each entry is the parity of the id's bits that its row of A names, flipped where b
    is 1."""
    K = code_bits(V)
    width = {0: K, 1: K + 1, 2: 2 * K, "most": min(1024, 2**K - 1)}[times]
    asked, ids = -1 if times == "most" else width, torch.arange(V)
    module = AffineEmbedding(V, 1024, V, code_levels="signs", code_width=asked, seed=7)
    A, b = module.A.long(), module.b.long()
    assert module.code_width == len(A.unique(dim=0)) == width and A.any(1).all()
    bits = (module.code(ids) + 1).long() // 2  # (V, K')
    assert torch.equal(decode(bits, A, b), ids)
    for t in (0, 1, V // 3, V - 1):
        assert bits[t].tolist() == [(bin(row & t).count("1") + flip) % 2
                                    for row, flip in zip(numbers(A).tolist(), b.tolist())]


def test_a_wide_code_is_signs_and_nothing_else():
    """Vectors of -1 and +1, equal in both forms; A and b are its whole state; any two entries,
    summed over all 2^K ids, cancel: with all 2^K - 1 rows it is a Hadamard code."""
    fly, table = (AffineEmbedding(1024, 1024, 1024, code_levels="signs", code_width=-1, form=form)
                  for form in ("on_the_fly", "table"))
    vectors = fly(torch.arange(1024))
    assert torch.equal(vectors, table(torch.arange(1024))) and fly.std == 1
    assert vectors.unique().tolist() == [-1, 1] and set(fly.state_dict()) == {"A", "b"}
    columns = vectors[:, :1023]
    assert torch.equal(columns.T @ columns, 1024 * torch.eye(1023))


def test_the_stream_of_draws_does_not_change():
    A, b = draw_affine(4, seed=1)
    assert numbers(A).tolist() == [1, 15, 11, 9] and b.tolist() == [1, 1, 0, 0]


# ---- Kronecker ---------------------------------------------------------------------------------

@pytest.mark.parametrize("P", [4, 16, 32])
def test_kron_is_the_papers_code(P):
    """The dense code equals the definition for tokens of 0, 1, ..., P and more bytes, and both
    forms are its product with W. On the fly a token costs P + 1 bytes."""
    spelled = [b"", b"a", b"the", b"\x00\xff\x00", b"compute", b"commute", bytes(range(P)),
               b"x" * (P + 7)]
    z, ids = bag_code(spelled, P=P), torch.arange(len(spelled))
    for form in ("on_the_fly", "table"):
        module = KroneckerEmbedding(len(spelled), 8, spelled, P, form)
        assert np.abs(module.code(ids).numpy() - z).max() < 1e-5
        exact = z @ module.W.detach().double().numpy()
        assert np.abs(module(ids).detach().numpy() - exact).max() < 1e-5
        held = sum(b.nbytes for b in module.buffers()) - 2 * 4 * (P + 1)  # the rest is per length
        assert held == len(spelled) * (P + 1 + 4 * 256 * P * (form == "table"))


# ---- python codes.py ---------------------------------------------------------------------------

def test_what_is_printed_is_what_the_codes_are(call, tmp_path, capsys):
    """Binary digits read back as the token's id, affine ones through A^-1; rows are those that the
    module sums, whether or not a word is quoted with its space; a long word shows all its bytes."""
    _, tok, _ = load_model(ROOT / "results" / "demo" / "kron.pt")
    assert call(codes.main, "get", " receive", "कार्यालय", "get", cwd=tmp_path) == 0
    said, words = capsys.readouterr().out, [" get", " receive", " कार्यालय"]
    tokens = re.findall(r"^  ('.*') +(\d+)  ([01]+)  ([01]+)$", said, re.M)
    ids = dict.fromkeys(id for word in words for id in tok.encode(word))
    A, b = draw_affine(12, 1337)
    for id, (text, shown, *digits) in zip(ids, tokens, strict=True):
        x, c = (torch.tensor([*map(int, bits)]) for bits in digits)
        assert f"b{text}" == str(token_bytes(tok)[id])
        assert numbers(x) == decode(c, A, b) == int(shown) == id
    kron = KroneckerEmbedding(3, 1, [word.encode() for word in words])
    for i, word in enumerate(words):
        found = re.search(rf"  {word!r}\n    bytes +(.*)\n    rows +(.*)\n", said).groups()
        raw, rows = ([*map(int, line.split())] for line in found)
        assert bytes(raw) == word.encode()
        assert rows == kron.rows(torch.tensor([i]))[0, :kron.length[i]].tolist()
    cosine = re.search(r"' get', ' receive' +(\S+)  2 of 4 and 8$", said, re.M)[1]
    assert float(cosine) == pytest.approx(2 / 32**0.5, abs=2e-3)


def test_the_picture_of_the_readme_is_what_its_script_draws(tmp_path):
    draw_codes.draw().savefig(tmp_path / "codes.png", dpi=200)
    drawn, shown = (matplotlib.image.imread(folder / "codes.png")
                    for folder in (tmp_path, ROOT / "results"))
    assert drawn.shape == shown.shape and (drawn == shown).all()
