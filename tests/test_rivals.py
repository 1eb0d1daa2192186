"""The other answers to the question, each against its equation written out in float64."""
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codes import draw
from codes import draw_affine
from lib.tokenizer import token_bytes
from model import CODES, GPTConfig, make_embedding
from rivals import RIVALS, bitmap, deal

V, D_MODEL = 1000, 24  # V is no multiple of 64, so that 24 ids are left over
BAGS = ["kron_shuffled", "kron_raw", "random", "trigram", "phase"]  # a fixed code times one matrix
TRAINED = [*BAGS, "lowrank", "hash", "qr", "bytes2word", "kron_wide"]
READERS = [name for name, kind in CODES.items() if kind.reads_bytes]
BYTES_ALONE = [name for name in READERS if name != "kron_wide"]  # which knows an id as well


def embedding(code, spelled, **options):
    """An arm's input for a vocabulary of these byte strings, d = 24."""
    options = {"n_embd": D_MODEL, "lift": CODES[code].lifts[-1]} | options
    config = GPTConfig(vocab_size=len(spelled), code=code, head="table", n_head=3, **options)
    config.check()
    return make_embedding(config, spelled)


@pytest.fixture(scope="module")
def tokens(bpe):
    """The bytes of the first 1,000 tokens of a trained BPE."""
    return token_bytes(bpe)[:V]


@pytest.fixture(scope="module")
def text(bpe, docs):
    """64 kB of real text in these tokens, (n,)."""
    ids = torch.tensor(bpe.encode(" ".join(docs)[:2**16]))
    return ids[ids < V]


# ---- the equations, float64 --------------------------------------------------------------------

def hash32(x):
    """Wellons' lowbias32 of a Python integer."""
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def standardised(counts, lengths, D, centred=True):
    """kappa = counts / sqrt L, z = (kappa - mean) / (std + 1e-6) with mean and unbiased std those
    of L equal entries among D; not centred, only divided. (V, D); L = 0 gives zero."""
    z = np.zeros((len(lengths), D))
    for t, L in enumerate(lengths):
        if L:
            kappa = np.zeros(D)
            kappa[:L] = L**-0.5
            mean, std = kappa.mean(), kappa.std(ddof=1)
            z[t] = (counts[t] * L**-0.5 - mean * centred) / (std + 1e-6)
    return z


def kron_code(spelled, P=16, centred=True):
    """sum_i byte_i (x) position i, standardised."""
    counts = np.zeros((len(spelled), 256, P))
    for t, raw in enumerate(spelled):
        for i, byte in enumerate(raw[:P]):
            counts[t, byte, i] = 1
    lengths = [min(len(raw), P) for raw in spelled]
    return standardised(counts.reshape(len(spelled), -1), lengths, 256 * P, centred)


def shuffled_code(spelled, seed, P=16):
    """kron's, dealt in windows of 64 ids in the order (min(L, P), id) within a length."""
    rng = np.random.RandomState(seed)
    dealt = list(spelled)
    by_length = sorted(range(len(spelled)), key=lambda t: (min(len(spelled[t]), P), t))
    for _, ids in itertools.groupby(by_length, key=lambda t: min(len(spelled[t]), P)):
        ids = list(ids)
        for start in range(0, len(ids), 64):
            window = ids[start:start + 64]
            for t, source in zip(window, rng.permutation(window)):
                dealt[t] = spelled[source]
    return kron_code(dealt, P)


def random_code(spelled, seed, P=16):
    """kron's with row i of token t = hash(seed, t, i) mod D."""
    D = 256 * P
    counts = np.zeros((len(spelled), D))
    lengths = [min(len(raw), P) for raw in spelled]
    for t, L in enumerate(lengths):
        of_token = hash32(hash32(seed) + t)
        for i in range(L):
            counts[t, hash32(of_token + i) % D] += 1
    return standardised(counts, lengths, D)


def trigram_code(spelled, v=4096, m=4):
    """sqrt(v/n) at the n rows of the set of trigrams, a sentinel 256 at either end."""
    z = np.zeros((len(spelled), v))
    for t, raw in enumerate(spelled):
        s = [256, *raw, 256]
        trigrams = {tuple(s[i:i + 3]) for i in range(len(raw))}
        for a, b, c in trigrams:
            for j in range(m):
                z[t, hash32(hash32(a * 257**2 + b * 257 + c) + j) % v] += 1
        if trigrams:
            z[t] *= math.sqrt(v / (m * len(trigrams)))
    return z


def phase_code(spelled, D=1536):
    """sqrt(D) kappa / |kappa|, kappa = sum_p exp(i (theta[byte_p] + p omega)) as [Re, Im]."""
    rng = np.random.RandomState(0)
    theta = rng.uniform(-np.pi, np.pi, (256, D // 2))
    omega = rng.uniform(-np.pi, np.pi, D // 2)
    z = np.zeros((len(spelled), D))
    for t, raw in enumerate(spelled):
        kappa = sum(np.exp(1j * (theta[b] + p * omega)) for p, b in enumerate(raw))
        if raw:
            z[t] = np.concatenate([kappa.real, kappa.imag]) * D**0.5 / np.linalg.norm(kappa)
    return z


def dense_code(code, spelled, seed):
    """The code of every token, (V, D) float64."""
    if code in ("kron", "kron_raw"):
        return kron_code(spelled, centred=code == "kron")
    if code in ("trigram", "phase"):
        return {"trigram": trigram_code, "phase": phase_code}[code](spelled)
    return {"kron_shuffled": shuffled_code, "random": random_code}[code](spelled, seed)


def wide_signs(n, seed):
    """The wide code of ids below n as -1 and +1, (n, d) float64: parities by Python's integers."""
    K = (n - 1).bit_length()
    A, b = draw_affine(K, seed, D_MODEL)
    masks = [sum(bit << j for j, bit in enumerate(row)) for row in A.tolist()]
    return torch.tensor([[2 * ((bin(mask & t).count("1") + flip) % 2) - 1
                          for mask, flip in zip(masks, b.tolist())] for t in range(n)]).double()


def read_bytes(w, raws, heads=3):
    """bytes2word's equation for n tokens of one length L: one learned query a head attends over
    their bytes. (n, d)."""
    d = w["O"].shape[0]
    width = d // heads
    x = w["B"][torch.tensor([list(raw) for raw in raws])] + w["S"][:len(raws[0])]  # (n, L, e)
    keys, values = x @ w["K"], x @ w["V"]  # (n, L, d)
    read = []
    for h in range(heads):
        mine = slice(h * width, (h + 1) * width)
        a = (keys[..., mine] @ w["q"][h] / math.sqrt(d / heads)).softmax(1)  # (n, L)
        read.append((a.unsqueeze(1) @ values[..., mine]).squeeze(1))
    return F.layer_norm(torch.cat(read, -1), (d,), w["norm.weight"]) @ w["O"]


def exact_vectors(code, w, spelled, seed):
    """e(t) of every token from the arm's equation and its weights, {name: float64 tensor}: (V, d)
    float64, with the gradient."""
    n = len(spelled)
    ids = torch.arange(n)
    if code in BAGS:
        return torch.from_numpy(dense_code(code, spelled, seed)) @ w["W"]
    if code == "kron_wide":
        return torch.from_numpy(kron_code(spelled)) @ w["W"] + 0.5 * wide_signs(n, seed)
    if code == "lowrank":
        return w["A"][:n] @ w["B"]
    if code == "hash":
        e = 0
        for k in range(2):
            of_hash = hash32(hash32(seed) + k)
            rows = [hash32(of_hash + hash32(t)) % len(w["W"]) for t in range(n)]
            e = e + w["importance"][:n, k:k + 1] * w["W"][rows]
        return e
    if code == "qr":
        m = math.ceil(math.sqrt(-(-n // 64) * 64))
        return w["R"][ids % m] * w["Q"][ids // m]
    cut = [raw[:16] for raw in spelled]
    e = torch.zeros(n, D_MODEL, dtype=torch.float64)
    for L in set(map(len, cut)):
        of_length = [t for t in range(n) if len(cut[t]) == L]
        e = e.index_copy(0, torch.tensor(of_length), read_bytes(w, [cut[t] for t in of_length]))
    return e


def close(a, b, tolerance):
    """Whether two tensors differ by less than `tolerance` of the largest value."""
    return (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("code", TRAINED)
@pytest.mark.parametrize("vocabulary", ["bpe", "gpt2"])
def test_vectors_and_gradients_equal_the_equation(request, docs, vocabulary, code):
    """Over the whole vocabulary of a trained BPE and every 49th token of GPT-2's, and the gradient
    of text in which tokens repeat."""
    tok = request.getfixturevalue(vocabulary)
    spelled = token_bytes(tok)[::49 if vocabulary == "gpt2" else 1]
    module = embedding(code, spelled, seed=7)
    with torch.no_grad():  # away from the start, at which hash's p is 1/sqrt(2) throughout
        for name, p in module.named_parameters():
            p.mul_(1 + 0.2 * torch.randn(p.shape, generator=draw(1, name, p.shape)))
    w = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    exact = exact_vectors(code, w, spelled, seed=7)
    assert close(module(torch.arange(len(spelled))).detach(), exact.detach(), 1e-5)

    ids = torch.tensor(tok.encode(" ".join(docs))[:1024]).view(2, 512) % len(spelled)
    assert len(ids.unique()) < ids.numel() / 2
    upstream = torch.randn(2, 512, D_MODEL, generator=torch.Generator().manual_seed(1))
    module(ids).backward(upstream)
    exact[ids].backward(upstream.double())
    for name, p in module.named_parameters():
        assert close(p.grad, w[name].grad, 1e-4), name


@pytest.mark.parametrize("code", BAGS)
def test_table_and_on_the_fly_agree(code, tokens):
    """The table of all codes gives the vectors and gradients of the form without one."""
    vectors, gradients = [], []
    for form in ("table", "on_the_fly"):
        module = embedding(code, tokens, code_form=form)
        assert (module.table is None) == (form == "on_the_fly")
        vectors.append(module(torch.arange(V + 1)))  # the last has no bytes
        vectors[-1][::3].square().sum().backward()
        gradients.append(module.W.grad)
    assert close(*vectors, 1e-5) and close(*gradients, 1e-4)


@pytest.mark.parametrize("code", RIVALS)
def test_compiled_forward_gives_the_same_vectors(code, tokens, text):
    """torch.compile(fullgraph=True): the same vectors and gradients, a token without bytes and an
    id past the vocabulary included."""
    torch._dynamo.reset()
    module = embedding(code, [b"", *tokens[1:]])
    module.reset_parameters()
    ids = torch.cat([text[:62], torch.tensor([0, V])]).view(4, 16)
    results = []
    for forward in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        vectors = forward(ids)
        if vectors.requires_grad:
            vectors.square().sum().backward()
        results.append([vectors.detach(), *[p.grad.clone() for p in module.parameters()]])
    for plain, compiled in zip(*results):
        assert plain.any() and close(compiled, plain, 1e-5)


# ---- what holds for all ------------------------------------------------------------------------

@pytest.mark.parametrize("code", [*READERS, "random", "visual"])
def test_ids_past_the_vocabulary_are_zero(code, tokens):
    """They have no bytes: the zero vector, and no gradient."""
    module = embedding(code, tokens)
    module.reset_parameters()
    vectors = module(torch.tensor([[V, V + 1], [V + 2, V + 3]]))
    assert not vectors.any() and module(torch.tensor([5])).any()
    if vectors.requires_grad:
        vectors.sum().backward()
        assert not any(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("code", BYTES_ALONE)
def test_a_token_without_bytes_is_zero(code, tokens):
    """Also among others, and in a slot whose word was taken away."""
    module = embedding(code, [b"", *tokens[:300], b""])
    zero = ~module(torch.arange(302)).any(-1)
    assert zero.nonzero().flatten().tolist() == [0, 301]
    slot = torch.tensor([302])
    module.set_bytes(302, b"word")
    assert module(slot).any()
    module.set_bytes(302, b"")
    assert not module(slot).any()


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("code", CODES)
def test_scale_of_the_vectors(code, std, tokens):
    """rms(e) over the vocabulary, averaged over 20 seeds, is the arm's natural scale, or else
    embed_std, within 5 %."""
    natural = {"learned": 0.02, "lowrank": 0.02, "hash": 0.02, "qr": 0.02,
               "kron_wide": 1.25**0.5, "frozen_random": D_MODEL**-0.5, "visual": D_MODEL**-0.5,
               "binary": None, "affine": None}  # of these: what 0 and 1 give
    module, ids = embedding(code, tokens, embed_std=std), torch.arange(V)
    total, seeds = 0, 1 if code == "visual" else 20  # nothing in it is random
    for seed in range(seeds):
        module.reset_parameters(seed)
        total += module(ids).detach().square().mean().sqrt().item() / seeds
    expected = std or natural.get(code, 1.0)
    if expected is None:
        bits = module.code(ids)
        expected = bits.square().mean().sqrt().item()
        assert 0.6 < expected < 0.75  # half of them are 1
    assert total == pytest.approx(expected, rel=0.05) and module.std == pytest.approx(expected)


def test_a_forced_word_has_no_identity(tokens):
    """kron_wide: in a slot past the vocabulary a word's bytes are all that is known of it."""
    module, kron = (embedding(code, tokens) for code in ("kron_wide", "kron"))
    kron.W = module.W
    for one in (module, kron):
        one.set_bytes(V, b"zyzzyva")
    assert torch.equal(module(torch.tensor([V])), kron(torch.tensor([V])))
    assert not torch.equal(module(torch.tensor([5])), kron(torch.tensor([5])))


@pytest.mark.parametrize("form", ["on_the_fly", "table"])
@pytest.mark.parametrize("code", BYTES_ALONE)
def test_set_bytes(code, form, tokens):
    """Bytes put into a free slot embed as a token with these bytes would; nobody else's vector
    changes; a later word replaces it."""
    if form == "table" and not hasattr(CODES[code], "set_form"):
        pytest.skip(f"{code} has no table")
    words = [tokens[900], "internationalization".encode(), "कार्य".encode(), b"", b"zyzzyva"]
    slot = V
    # kron_shuffled deals a vocabulary's spellings, so these words are alone in their windows
    theirs = embedding(code, words, code_form=form)
    module = embedding(code, tokens, code_form=form)
    module.load_state_dict(theirs.state_dict())
    before = module(torch.arange(slot + 1)).detach()
    assert not before[slot].any()
    for i, raw in enumerate(words):
        module.set_bytes(slot, raw)
        after = module(torch.arange(slot + 1)).detach()
        torch.testing.assert_close(after[slot], theirs(torch.tensor([i]))[0].detach())
        assert torch.equal(after[:slot], before[:slot])


@pytest.mark.parametrize("code, lift", [(code, lift) for code, kind in CODES.items()
                                        for lift in kind.lifts])
def test_params_in_use(code, lift, tokens):
    """The trained input parameters that get a gradient when every token of a vocabulary is
    embedded, kron's mean term aside, through which all rows do. Of tokens of 2 to 11 bytes, so that
    bytes and positions are left over."""
    spelled = [raw for raw in tokens if 2 <= len(raw) <= 11]
    module = embedding(code, spelled, lift=lift)
    if hasattr(module, "shift"):
        module.shift.zero_()
    vectors = module(torch.arange(len(spelled)))
    touched = 0
    if vectors.requires_grad:
        upstream = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3))
        vectors.backward(upstream)
        touched = sum(p.grad.count_nonzero().item() for p in module.parameters())
    assert module.params_in_use(len(spelled)) == touched
    assert touched <= sum(p.numel() for p in module.parameters())


def test_another_seed_is_another_draw(tokens):
    """What is drawn follows from the seed: equal seeds repeat, other seeds differ, in every arm
    but `visual`; the codes of kron, kron_raw, trigram, phase and visual know no seed."""
    spelled = tokens[:300]
    ids = torch.arange(300)
    for code in RIVALS:
        vectors = []
        for seed in (1, 1, 2):
            module = embedding(code, spelled, seed=seed)
            module.reset_parameters(seed)
            vectors.append(module(ids))
        assert torch.equal(*vectors[:2]), code
        assert torch.equal(*vectors[1:]) == (code == "visual"), code


# ---- kron_shuffled -----------------------------------------------------------------------------

def test_shuffled_is_a_permutation_within_windows(tok):
    """It keeps min(length, P), and moves no token out of its window of 64 among those of its
    length; most tokens move."""
    spelled, P = token_bytes(tok), 16
    permutation = deal(spelled, P, seed=3)
    assert sorted(permutation) == list(range(len(spelled)))
    length = np.array([min(len(raw), P) for raw in spelled])
    place = np.zeros(len(spelled), int)  # of each id among those of its length
    for L in set(length):
        place[length == L] = np.arange((length == L).sum())
    assert (length[permutation] == length).all()
    assert (place[permutation] // 64 == place // 64).all()
    assert (permutation == np.arange(len(spelled))).mean() < 0.04
    assert (permutation != deal(spelled, P, seed=4)).mean() > 0.9


def test_shuffled_has_krons_codes(tokens):
    """The multiset of codes is kron's, so are the rows of W in use, and the codes' order is not."""
    ids, codes = torch.arange(V), {}
    for code in ("kron", "kron_shuffled"):
        module = embedding(code, tokens)
        rows, present = module.rows(ids), module.present(ids)
        codes[code] = [tuple(row[there].tolist()) for row, there in zip(rows, present)]
        assert module.params_in_use(V) == len(set().union(*codes[code])) * D_MODEL
    assert Counter(codes["kron"]) == Counter(codes["kron_shuffled"])
    assert codes["kron"] != codes["kron_shuffled"]


def test_shuffled_neighbours_in_spelling_are_no_neighbours(tok):
    """Words and their plurals (run, runs): in kron far nearer than plurals of other words of the
    same lengths, in kron_shuffled no nearer."""
    spelled = token_bytes(tok)
    number = {raw: t for t, raw in enumerate(spelled)}
    pairs = [(t, number[raw + b"s"]) for raw, t in number.items()
             if len(raw) >= 4 and raw + b"s" in number]
    pairs = pairs[::-(-len(pairs) // 400)]
    length = np.array([len(spelled[word]) for word, _ in pairs])
    rng = np.random.RandomState(0)
    for code in ("kron", "kron_shuffled"):
        module = embedding(code, spelled, seed=3)
        words, plurals = (F.normalize(module.code(torch.tensor(ids))) for ids in zip(*pairs))
        near = (words * plurals).sum(1).mean().item()
        chance = []
        for _ in range(50):
            other = np.arange(len(pairs))
            for L in set(length):
                other[length == L] = rng.permutation(other[length == L])
            chance.append((words * plurals[other]).sum(1).mean().item())
        if code == "kron":
            assert near > 0.85 and np.mean(chance) < 0.5
        else:
            assert abs(near - np.mean(chance)) < 4 * np.std(chance)


def test_row_traffic_of_the_shuffled_arm(tok, docs):
    """How far dealing moves the use of W's rows on real text: the total variation distance between
    kron's and the shuffled arm's row counts. It is printed; windows keep it below that of a deal
    among all tokens of a length."""
    spelled = token_bytes(tok)
    times = np.bincount(tok.encode(" ".join(docs)), minlength=len(spelled))

    def traffic(permutation):
        rows = np.zeros(4096)
        for t, source in enumerate(permutation):
            for i, byte in enumerate(spelled[source][:16]):
                rows[16 * byte + i] += times[t]
        return rows / rows.sum()
    kron = traffic(range(len(spelled)))
    moved = {}
    for window in (64, len(spelled)):
        deals = [traffic(deal(spelled, 16, seed, window)) for seed in range(3)]
        moved[window] = np.mean([np.abs(dealt - kron).sum() / 2 for dealt in deals])
    print(f"{tok.name}: {moved[64]:.0%} of the row traffic moves, "
          f"{moved[len(spelled)]:.0%} without windows")
    assert 0.05 < moved[64] < moved[len(spelled)]


# ---- phase, trigram, visual --------------------------------------------------------------------

def codes_of(code, *words, **options):
    """The codes of some words, (n, D)."""
    spelled = [word if isinstance(word, bytes) else word.encode() for word in words]
    return embedding(code, spelled, **options).code(torch.arange(len(words)))


def distance(a, b):
    """|a - b| / |a|."""
    return ((a - b).norm() / a.norm()).item()


def test_phase_never_cuts():
    """Words that agree in their first 16 bytes, or in all but the 200th, differ; kron cuts."""
    long = "internationaliz"
    for a, b in [(f" {long}ation", f" {long}er"), ("x" * 199 + "y", "x" * 199 + "z"),
                 ("x" * 40, "x" * 41)]:
        assert a[:16] == b[:16]
        assert distance(*codes_of("phase", a, b)) > 0.05
        assert distance(*codes_of("kron", a, b)) == 0


def test_phase_knows_the_order():
    """dog and god, and every order of four letters, have codes of their own, of one norm."""
    words = ["dog", "god", *map("".join, itertools.permutations("stop"))]
    codes = codes_of("phase", *words)
    torch.testing.assert_close(codes.norm(dim=1), torch.full((len(words),), 1536**0.5))
    apart = torch.cdist(codes, codes) / 1536**0.5
    assert apart.fill_diagonal_(1).min() > 0.3


def test_phase_tells_hindi_words_apart():
    """कार्य, कार्यक्रम and कार्यालय begin with the same 15 bytes, and the 16th is that of every
    letter of Devanagari: three codes, where kron with P = 16 has two."""
    words = ["कार्य", "कार्यक्रम", "कार्यालय"]
    for width in (0, 4096):
        codes = codes_of("phase", *words, code_width=width)
        assert min(distance(codes[a], codes[b]) for a, b in [(0, 1), (0, 2), (1, 2)]) > 0.3
    assert distance(*codes_of("kron", *words)[1:]) == 0


def test_trigrams_are_a_set():
    """aaaa has saa, aaa, aas, each once, as aaa has; ab and ba share none."""
    a3, a4, ab, ba = codes_of("trigram", "aaa", "aaaa", "ab", "ba")
    assert torch.equal(a3, a4) and a4.count_nonzero() == 12
    torch.testing.assert_close(a4[a4 > 0], torch.full((12,), (4096 / 12)**0.5))
    assert ab @ ba == 0


def test_trigrams_are_local():
    """A stem is shared wherever it stands: station and nation are near, which kron cannot see."""
    words = "nation", "station", "walk"
    near, far = (F.cosine_similarity(a, b, dim=0) for a, b in
                 (codes_of("trigram", *words)[[0, 1]], codes_of("trigram", *words)[[0, 2]]))
    assert near > 0.5 > 0.2 > far
    assert abs(F.cosine_similarity(*codes_of("kron", "nation", "station"), dim=0)) < 0.01


def test_visual_twins_and_what_cannot_be_drawn(tokens):
    """Latin a and Cyrillic а look alike and are near or equal; letters of Devanagari, which the
    font lacks, a newline, a space and a byte that is no UTF-8 are told apart."""
    strange = ["a", "а", "e", "е", "क", "ख", "\n", " ", b"\xe0", b"\xe1"]
    spelled = [word if isinstance(word, bytes) else word.encode() for word in strange]
    module = embedding("visual", [*spelled, *tokens[:400]], n_embd=96)
    module.reset_parameters()
    e = module(torch.arange(len(spelled)))
    cosine = e @ e.T  # rows have unit norm
    assert cosine[0, 1] > 0.99 and cosine[2, 3] > 0.99 and cosine[0, 2] < 0.95
    others = cosine[4:, 4:] - torch.eye(6)
    assert others.max() < 0.95


@pytest.mark.parametrize("raw, digits", [(b"\n", "0A"), (" a".encode(), "20a"), (b"\xe0", "E0"),
                                         ("क".encode(), "915")])
def test_what_cannot_be_drawn_is_its_hex_digits(raw, digits):
    """White space, bytes that are no UTF-8, and what the font lacks."""
    assert np.array_equal(bitmap(raw), bitmap(digits.encode()))


def test_visual_equals_the_equation(tokens):
    """The pixels, centred, along their leading principal directions by numpy's SVD, normalised: the
    same cosines between all tokens (directions are known up to their sign)."""
    d = 48
    module = embedding("visual", tokens, n_embd=d)
    module.reset_parameters()
    e = module(torch.arange(V)).double().numpy()
    x = np.stack([bitmap(raw) for raw in tokens]).reshape(V, 1024).astype(float)
    x -= x.mean(0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    code = x @ directions[:d].T
    code /= np.linalg.norm(code, axis=1, keepdims=True)
    assert np.abs(e @ e.T - code @ code.T).max() < 0.005  # it is stored in float16


def test_visual_tokens_stay_distinct(tokens):
    """Nearly all tokens of a vocabulary have a picture of their own: 98 % and more."""
    pictures = {bitmap(raw).tobytes() for raw in tokens}
    assert len(pictures) > 0.98 * V


def test_frozen_random_is_a_random_direction(tokens):
    """Each row is N(0, I) at unit norm, drawn by the seed: rows are as near as chance has it."""
    module = embedding("frozen_random", tokens, n_embd=96)
    module.reset_parameters(5, "transformer.wte.")
    e = module(torch.arange(V))
    shape = (1024, 96)  # padded
    drawn = torch.randn(shape, generator=draw(5, "transformer.wte.table", shape))
    assert (e - F.normalize(drawn[:V])).abs().max() < 1e-3
    cosine = (e @ e.T).triu(1)
    assert cosine[cosine != 0].square().mean().item() == pytest.approx(1 / 96, rel=0.02)


@pytest.mark.parametrize("code", ["frozen_random", "visual"])
def test_frozen_vectors_live_in_the_state(code, tokens):
    """Nothing is trained, and a state dict brings the vectors into a module that drew others."""
    module, other = embedding(code, tokens), embedding(code, [b"x"] * V)
    module.reset_parameters(1)
    other.reset_parameters(2)
    ids = torch.arange(V)
    assert not list(module.parameters()) and not torch.equal(module(ids), other(ids))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(ids), other(ids))
