"""Every arm against its equation written out in float64, and what holds for all of them."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codes import AffineEmbedding, draw
from lib.tokenizer import token_bytes
from model import CODES, GPTConfig, make_embedding
from rivals import bitmap, hash32

V, WIDTH = 1000, 24  # V is no multiple of 64, so that 24 ids are left over
BAGS = ["kron", "kron_shuffled", "kron_raw", "random", "trigram", "phase"]  # a fixed code times W
TRAINED = [*BAGS, "lowrank", "hash", "qr", "bytes2word", "kron_wide"]
READERS = [name for name, kind in CODES.items() if kind.reads_bytes]
BYTES_ALONE = [name for name in READERS if name != "kron_wide"]  # which knows an id as well
KINDS = [(code, lift, form) for code, kind in CODES.items()
         for lift in kind.lifts for form in kind.forms]


def embedding(code, spelled, **options):
    """An arm's input for a vocabulary of these byte strings, d = 24, its weights drawn by seed."""
    options = {"n_embd": WIDTH, "lift": CODES[code].lifts[-1]} | options
    config = GPTConfig(vocab_size=len(spelled), code=code, head="table", n_head=3, **options)
    config.check()
    module = make_embedding(config, spelled)
    module.reset_parameters(config.seed)
    return module


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

def bag_code(spelled, row=None, centred=True, P=16):
    """kappa = the sum of one-hot `row(t, i, byte)`, kron's byte * P + i, over the first P bytes of
    t, / sqrt L; z = (kappa - mean) / (std + 1e-6), mean and unbiased std those of L equal entries
    among D = 256 P. (V, D) float64."""
    z = np.zeros((len(spelled), 256 * P))
    for t, raw in enumerate(spelled):
        L = len(raw[:P])
        for i, byte in enumerate(raw[:P]):
            z[t, row(t, i, byte) if row else byte * P + i] += L**-0.5
        if raw:
            kappa = np.repeat([L**-0.5, 0], [L, 256 * P - L])
            z[t] = (z[t] - kappa.mean() * centred) / (kappa.std(ddof=1) + 1e-6)
    return z


def deal_out(spelled, seed):
    """The tokens' bytes, dealt in windows of 64 ids of equal min(L, 16)."""
    rng, dealt = np.random.RandomState(seed), list(spelled)
    for L in range(17):
        ids = [t for t, raw in enumerate(spelled) if len(raw[:16]) == L]
        for start in range(0, len(ids), 64):
            window = ids[start:start + 64]
            for t, source in zip(window, rng.permutation(window)):
                dealt[t] = spelled[source]
    return dealt


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
    if code == "random":  # kron's with row i of token t = hash(seed, t, i) mod D
        return bag_code(spelled, lambda t, i, byte: hash32(hash32(hash32(seed) + t) + i) % 4096)
    if code in ("trigram", "phase"):
        return {"trigram": trigram_code, "phase": phase_code}[code](spelled)
    spelled = deal_out(spelled, seed) if code == "kron_shuffled" else spelled
    return bag_code(spelled, centred=code != "kron_raw")


def read_bytes(w, raw, heads=3):
    """bytes2word's equation of one token: a learned query of each head attends over its bytes."""
    if not raw:
        return torch.zeros(WIDTH, dtype=torch.float64)
    x = w["B"][list(raw)] + w["S"][:len(raw)]  # (L, e)
    keys, values = (x @ w[name] for name in "KV")  # (L, d)
    read = []
    for q, k, v in zip(w["q"], keys.chunk(heads, 1), values.chunk(heads, 1)):
        read.append((k @ q / math.sqrt(WIDTH / heads)).softmax(0) @ v)
    return F.layer_norm(torch.cat(read), (WIDTH,), w["norm.weight"]) @ w["O"]


def exact_vectors(code, w, spelled, seed):
    """e(t) of every token from the arm's equation and its weights in float64, (V, d)."""
    n, ids = len(spelled), torch.arange(len(spelled))
    if code in BAGS:
        return torch.from_numpy(dense_code(code, spelled, seed)) @ w["W"]
    if code == "kron_wide":
        wide = AffineEmbedding(n, WIDTH, n, code_levels="signs", code_width=-1, seed=seed)(ids)
        return torch.from_numpy(bag_code(spelled)) @ w["W"] + 0.5 * wide.double()
    if code == "lowrank":
        return w["A"][:n] @ w["B"]
    if code == "hash":
        rows = torch.tensor([[hash32(hash32(hash32(seed) + k) + hash32(t)) % len(w["W"])
                              for k in range(2)] for t in range(n)])
        return (w["importance"][:n].unsqueeze(-1) * w["W"][rows]).sum(1)
    if code == "qr":
        m = math.ceil(math.sqrt(-(-n // 64) * 64))
        return w["R"][ids % m] * w["Q"][ids // m]
    return torch.stack([read_bytes(w, raw[:16]) for raw in spelled])  # bytes2word


def close(a, b, tolerance):
    """Whether two tensors differ by at most `tolerance` of the largest value."""
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
    upstream = torch.randn(2, 512, WIDTH, generator=torch.Generator().manual_seed(1))
    module(ids).backward(upstream)
    exact[ids].backward(upstream.double())
    for name, p in module.named_parameters():
        assert close(p.grad, w[name].grad, 1e-4), name


# ---- what holds for all ------------------------------------------------------------------------

def run(forward, module, ids):
    """The vectors of ids through `forward`, and the gradients of the sum of their squares."""
    module.zero_grad()
    vectors = forward(ids)
    if vectors.requires_grad:
        vectors.square().sum().backward()
    return [vectors.detach(), *[p.grad.clone() for p in module.parameters()]]


@pytest.mark.parametrize("code, lift, form, backend", [
    *((*kind, "aot_eager") for kind in KINDS), ("kron", "linear", "on_the_fly", "inductor")])
def test_compiled_equals_eager(code, lift, form, backend, tokens, text):
    """The same vectors and gradients, a token without bytes and a free id included."""
    torch._dynamo.reset()
    module = embedding(code, [b"", *tokens[1:]], lift=lift, code_form=form)
    ids = torch.cat([text[:62], torch.tensor([0, V])]).view(4, 16)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for found, plain in zip(run(compiled, module, ids), run(module, module, ids), strict=True):
        assert plain.any() and close(found, plain, 1e-5)


@pytest.mark.parametrize("code", [code for code, kind in CODES.items() if "table" in kind.forms])
def test_table_and_on_the_fly_agree(code, tokens, text):
    """The table of all codes gives the vectors and gradients of the form without one."""
    fly, table = (embedding(code, tokens, code_form=form) for form in ("on_the_fly", "table"))
    for one, other in zip(run(fly, fly, text[:512]), run(table, table, text[:512]), strict=True):
        assert close(one, other, 1e-5)


@pytest.mark.parametrize("code, lift, form", KINDS)
def test_a_vector_depends_on_its_id_alone(code, lift, form, tokens, text):
    """Not on its neighbours: a token that is sampled comes alone."""
    module = embedding(code, tokens, lift=lift, code_form=form)
    ids = text[:60].view(5, 12)
    alone = torch.stack([module(id.view(1, 1))[0, 0] for id in ids.flatten()])
    torch.testing.assert_close(module(ids).flatten(0, 1), alone)


@pytest.mark.parametrize("code, lift, form", KINDS)
def test_bfloat16_in_bfloat16_out(code, lift, form, tokens):
    """Made under that default type or cast later, as an nn.Embedding: vectors and gradients are
    bfloat16, and near those of float32."""
    plain = embedding(code, tokens, lift=lift, code_form=form)
    exact = plain(torch.arange(V + 1)).detach()
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = embedding(code, tokens, lift=lift, code_form=form)
        made.load_state_dict(plain.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    for module in (made, plain.to(torch.bfloat16)):
        vectors, *gradients = run(module, module, torch.arange(V + 1))
        assert vectors.dtype == torch.bfloat16 and close(vectors.float(), exact, 0.03)
        assert all(g.dtype == torch.bfloat16 and g.any() for g in gradients)


@pytest.mark.parametrize("code", [*READERS, "random", "visual"])
def test_ids_past_the_vocabulary_are_zero(code, tokens):
    """They have no bytes: the zero vector, and no gradient."""
    module = embedding(code, tokens)
    vectors, *gradients = run(module, module, torch.tensor([[V, V + 1], [V + 2, V + 3]]))
    assert not vectors.any() and module(torch.tensor([5])).any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("code, form", [(code, form) for code in BYTES_ALONE
                                        for form in CODES[code].forms])
def test_set_bytes(code, form, tokens):
    """Bytes put into a free slot embed as a token with these bytes would; nobody else's vector
    changes; a later word replaces it, and no bytes are the zero vector."""
    words = [tokens[900], "internationalization".encode(), "कार्य".encode(), b"", b"zyzzyva"]
    # kron_shuffled deals a vocabulary's spellings, so these words are alone in their windows
    theirs, module = (embedding(code, spelled, code_form=form) for spelled in (words, tokens))
    module.load_state_dict(theirs.state_dict())
    before = module(torch.arange(V + 1)).detach()
    assert not before[V].any()
    for i, raw in enumerate(words):
        module.set_bytes(V, raw)
        after = module(torch.arange(V + 1)).detach()
        torch.testing.assert_close(after[V], theirs(torch.tensor([i]))[0].detach())
        assert torch.equal(after[:V], before[:V]) and after[V].any() == bool(raw)


DEFAULT = {"learned": 0.02, "lowrank": 0.02, "hash": 0.02, "qr": 0.02, "kron_wide": 1.25**0.5,
           "frozen_random": WIDTH**-0.5, "visual": WIDTH**-0.5,
           "binary": 0.5**0.5, "affine": 0.5**0.5}  # half of the bits are 1


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("code", CODES)
def test_scale_of_the_vectors(code, std, tokens):
    """rms(e), averaged over 20 seeds, is embed_std or the arm's default, 1 where none is named."""
    module, expected = embedding(code, tokens, embed_std=std), std or DEFAULT.get(code, 1.0)
    found = []
    for seed in range(1 if code == "visual" else 20):  # nothing in it is random
        module.reset_parameters(seed)
        found.append(module(torch.arange(V)).detach().square().mean().sqrt().item())
    # a byte that a token has twice may count twice: kron with no positions is 5 % above
    assert np.mean(found) == pytest.approx(expected, rel=0.1)
    assert module.std == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("code, lift", [(code, lift) for code, lift, form in KINDS
                                        if form == "on_the_fly"])
def test_params_in_use(code, lift, tokens):
    """The trained parameters that get a gradient when every token is embedded, kron's mean term
    aside. Tokens have 2 to 11 bytes, so that bytes and positions are left over."""
    spelled = [raw for raw in tokens if 2 <= len(raw) <= 11]
    module = embedding(code, spelled, lift=lift)
    if hasattr(module, "shift"):
        module.shift.zero_()
    _, *gradients = run(module, module, torch.arange(len(spelled)))
    touched = sum(gradient.count_nonzero().item() for gradient in gradients)
    assert module.params_in_use(len(spelled)) == touched
    if code in ("learned", "kron"):  # which forks inherit from, and may freeze
        assert module.requires_grad_(False).params_in_use(len(spelled)) == 0


def test_another_seed_is_another_draw(tokens):
    """Equal seeds repeat, other seeds differ, in every arm with anything random in it."""
    fixed = [("binary", "tile"), ("visual", "none")]
    for code, lift, _ in KINDS:
        one, again, other = (embedding(code, tokens[:300], lift=lift, seed=seed)(torch.arange(300))
                             for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert torch.equal(one, other) == ((code, lift) in fixed)


# ---- one arm each ------------------------------------------------------------------------------

@pytest.mark.parametrize("raw, digits", [(b"\n", "0A"), (" a".encode(), "20a"), (b"\xe0", "E0"),
                                         ("क".encode(), "915")])
def test_what_cannot_be_drawn_is_its_hex_digits(raw, digits):
    """White space, bytes that are no UTF-8, and what the font lacks."""
    assert np.array_equal(bitmap(raw), bitmap(digits.encode()))


def test_visual_equals_the_equation(tokens):
    """The pixels, centred, along their leading directions by numpy's SVD, normalised: the same
    cosines between all tokens. Latin a and Cyrillic а are one."""
    spelled = ["a".encode(), "а".encode(), *tokens[2:]]
    x = np.stack([bitmap(raw) for raw in spelled]).reshape(V, 1024)
    e = embedding("visual", spelled, n_embd=48)(torch.arange(V)).double().numpy()
    x = x - x.mean(0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    code = x @ directions[:48].T
    code /= np.linalg.norm(code, axis=1, keepdims=True)
    assert np.abs(e @ e.T - code @ code.T).max() < 0.005  # it is stored in float16
    assert e[0] @ e[1] > 0.99


def test_frozen_random_is_a_random_direction(tokens):
    """Each row is N(0, I) at unit norm, drawn by the seed."""
    drawn = torch.randn(1024, WIDTH, generator=draw(5, "table", (1024, WIDTH)))
    e = embedding("frozen_random", tokens, seed=5)(torch.arange(1024))
    assert close(e, F.normalize(drawn), 1e-3)


@pytest.mark.parametrize("code", ["affine", "frozen_random", "visual"])
def test_fixed_vectors_live_in_the_state(code, tokens):
    """Nothing is trained, and a state dict brings the vectors into a module that drew others."""
    module, other = (embedding(code, spelled, lift=CODES[code].lifts[0], seed=seed)
                     for seed, spelled in enumerate((tokens, [b"x"] * V)))
    assert not list(module.parameters())
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(torch.arange(V)), other(torch.arange(V)))


def test_the_hash_is_lowbias32():
    """By its published constants, of integers and of tensors."""
    assert hash32(1) == hash32(torch.tensor(1)) == 1753845952
