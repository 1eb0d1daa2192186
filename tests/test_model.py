"""The GPT: against torch's own encoder layer, against nanoGPT written out, against itself without
a cache."""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from codes import CODES
from conftest import ARMS, build, config_of
from lib.evaluate import input_norm
from lib.generation import choose, generate
from model import GPT, Block, GPTConfig, make_embedding, rotate


def small(**options):
    shape = dict(vocab_size=128, block_size=16, n_layer=2, n_head=3, n_embd=48)
    return GPTConfig(**shape | options)


def loud(model):
    """Weights ten times as large, so that an untrained model has opinions."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(10)
    return model.eval()


@pytest.fixture
def ids(bpe, docs):
    """Real text: (4, 12) ids below 128, the bytes of ASCII among them."""
    return torch.tensor([ord(c) for c in " ".join(docs) if ord(c) < 128][:48]).view(4, 12)


# ---- equal to what others published ------------------------------------------------------------

@pytest.mark.parametrize("bias", [True, False])
def test_block_equals_torchs(bias):
    """A block is torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu") under a
    causal mask, with the same weights."""
    torch.manual_seed(0)
    block = Block(small(bias=bias))
    reference = nn.TransformerEncoderLayer(48, 3, 192, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True, bias=bias)
    theirs = {"self_attn.in_proj_": "attn.c_attn.", "self_attn.out_proj.": "attn.c_proj.",
              "linear1.": "mlp.c_fc.", "linear2.": "mlp.c_proj.",
              "norm1.": "ln_1.", "norm2.": "ln_2."}
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0, 0.3)
    ours, state = block.state_dict(), {}
    for name, mine in theirs.items():
        for kind in ("weight", "bias") if bias else ("weight",):
            state[name + kind] = ours[mine + kind]
    reference.load_state_dict(state)
    x = torch.randn(2, 16, 48)
    causal = nn.Transformer.generate_square_subsequent_mask(16)
    expected = reference(x, src_mask=causal, is_causal=True)
    assert (block(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def nanogpt_names(layers):
    """The names in a nanoGPT state dict, written out."""
    names = ["transformer.wte.weight", "transformer.wpe.weight",
             "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"]
    for i in range(layers):
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            names += [f"transformer.h.{i}.{part}.{kind}" for kind in ("weight", "bias")]
    return names


def nanogpt_logits(w, ids, heads):
    """nanoGPT's forward, written out over its state dict."""
    B, T = ids.shape
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:T]
    d = x.size(-1)

    def norm(x, name):
        return F.layer_norm(x, (d,), w[name + ".weight"], w[name + ".bias"], 1e-5)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]
    for layer in range(2):
        h = f"transformer.h.{layer}."
        q, k, v = (y.view(B, T, heads, d // heads).transpose(1, 2)
                   for y in linear(norm(x, h + "ln_1"), h + "attn.c_attn").split(d, 2))
        scores = q @ k.transpose(2, 3) / math.sqrt(d // heads)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, d)
        x = x + linear(y, h + "attn.c_proj")
        u = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
        x = x + linear(u * 0.5 * (1 + torch.erf(u / math.sqrt(2))), h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("head", ["tied", "table"])
def test_nanogpt_state_dict_loads(ids, head):
    """A nanoGPT state dict of the same shape loads with strict=True into bpe_tied and bpe_untied
    and gives nanoGPT's logits."""
    torch.manual_seed(0)
    matrices = {"wte": (128, 48), "wpe": (16, 48), "lm_head": (128, 48), "attn.c_attn": (144, 48),
                "attn.c_proj": (48, 48), "mlp.c_fc": (192, 48), "mlp.c_proj": (48, 192)}
    state = {}
    for name in nanogpt_names(layers=2):
        shape = (48,)  # a norm's
        for part in matrices:
            if f"{part}." in name:
                shape = matrices[part]
        if name.endswith("bias"):
            shape = shape[:1]
        state[name] = torch.randn(shape) * (0.2 if len(shape) == 2 else 1)
    if head == "tied":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model = GPT(small(bias=True, head=head)).eval()
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state, strict=True)
    assert (model(ids) - nanogpt_logits(state, ids, heads=3)).abs().max() < 1e-3


# ---- equal to itself ---------------------------------------------------------------------------

@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("code", [dict(), dict(code="kron", lift="linear", head="table"),
                                  dict(code="affine", lift="tile", head="table")])
@pytest.mark.parametrize("prompt", [1, 7, 12])
def test_cached_generation_equals_uncached(ids, positions, code, prompt):
    """Greedy, token for token, from prompts of several lengths and far past block_size."""
    model = loud(GPT(small(positions=positions, **code), [bytes([i]) for i in range(128)]))
    cached, uncached = (
        torch.stack(list(generate(model, ids[:, :prompt], 40, temperature=0, use_cache=use)))
        for use in (True, False))
    assert torch.equal(cached, uncached)
    assert len(cached.unique()) > 4  # it says something


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_future_is_not_seen(ids, positions):
    """Changing a token changes no logits before it, and does change its own."""
    model, changed = loud(GPT(small(positions=positions))), ids.clone()
    changed[:, 6] += 1
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_rotary_scores_depend_on_distance_only():
    """q at position i and k at position j score by i - j, and by nothing else."""
    model = GPT(small(positions="rotary", block_size=32))
    assert not any("wpe" in name for name in model.state_dict())
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    q, k = (rotate(x.expand(1, 1, 32, 16), model.cos, model.sin)[0, 0] for x in (q, k))
    scores = q @ k.T
    for distance in range(-31, 32):
        assert scores.diagonal(distance).sub(scores.diagonal(distance)[0]).abs().max() < 1e-4
    assert scores[0].unique().numel() == 32


def test_loss_is_the_cross_entropy_of_the_logits(bpe, docs):
    """In nats per token, also where it is computed in pieces (2,048 x 2,048 logits on a CPU),
    targets of -100 left out."""
    model = loud(build("bpe_tied", bpe))
    ids = torch.tensor(bpe.encode(" ".join(docs))[:64 * 33]).view(64, 33)
    x, y = ids[:, :-1], ids[:, 1:].clone()
    y[5:9] = -100
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    assert model(x, y).item() == pytest.approx(expected.item(), rel=1e-5)


def kinds_of_model():
    """One arm of the papers' codes for each combination of code, lift and head: the others are the
    same computation. test_rivals.py and test_heads.py compile the rest."""
    kinds = {}
    for arm in ARMS:
        config = config_of(f"configs/{arm}.py")
        if config.code in CODES:
            kinds.setdefault((config.code, config.lift, config.head), arm)
    return list(kinds.values())


@pytest.mark.parametrize("arm", kinds_of_model())
def test_every_model_compiles_whole(bpe, docs, arm):
    """torch.compile(fullgraph=True) of a whole model: the same loss, logits and gradients."""
    torch._dynamo.reset()
    model = loud(build(arm, bpe, "--n_layer=1"))
    ids = torch.tensor(bpe.encode(" ".join(docs))[:66]).view(2, 33)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *[p.grad.clone() for p in model.parameters()]])
    for plain, other in zip(*results, strict=True):
        assert (plain - other).abs().max() <= 1e-4 * plain.abs().max()


# ---- initial weights ---------------------------------------------------------------------------

def body_of(model):
    """{name: tensor} of all weights but the input's and the head's."""
    return {name: p for name, p in model.named_parameters()
            if not name.startswith(("transformer.wte", "lm_head"))}


@pytest.mark.parametrize("arm", ARMS)
def test_equal_seeds_give_every_arm_the_same_body(bpe, arm):
    """All weights but the input's start equal in all arms, a head of its own too; the same seed
    repeats every value, another changes all that is drawn."""
    plain, model, again, other = (
        build("bpe_untied", bpe, "--seed=5"), build(arm, bpe, "--seed=5"),
        build(arm, bpe, "--seed=5"), build(arm, bpe, "--seed=6"))
    body, wanted = body_of(model), body_of(plain)
    assert len(body) > 10 and body.keys() == wanted.keys()
    assert all(torch.equal(body[name], wanted[name]) for name in wanted)
    if model.config.head == "table":
        assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    others = dict(other.named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, again.get_parameter(name)), name
        drawn = len(p.unique()) > 1  # the others start at 0, 1 or 1/sqrt(2)
        assert not drawn or not torch.equal(p, others[name]), name


@pytest.mark.parametrize("arm, scale", [
    ("bpe_tied", 0.02), ("bpe_untied", 0.02), ("bpe_untied_unit", 1), ("bpe_untied_lr", 1),
    ("kron", 1), ("random", 1), ("binary", 0.5**0.5), ("affine", 0.5**0.5)])
def test_scale_of_the_input(bpe, arm, scale):
    """The arms' inputs start at the papers' scales: 0.02 per coordinate, or about 1, or the bits
    themselves."""
    vectors = build(arm, bpe).transformer.wte(torch.arange(bpe.vocab_size))
    assert vectors.square().mean().sqrt().item() == pytest.approx(scale, rel=0.05)


# ---- counts ------------------------------------------------------------------------------------

def test_parameters_of_the_124m_shape():
    """Table 38,633,472 (50,304 x 768) against projection 3,145,728 (4,096 x 768), the binary arms
    nothing, and one body."""
    table, body = 38_633_472, 85_740_288
    with torch.device("meta"):
        tied, untied = (GPT(GPTConfig(head=head)).num_params() for head in ("tied", "table"))
    assert tied == {"input": table, "body": body, "head": 0, "total": table + body}
    assert untied == {"input": table, "body": body, "head": table, "total": 2 * table + body}
    spelled = [b"a"] * 50257
    for code, lift, inputs in (("kron", "linear", 3_145_728), ("random", "linear", 3_145_728),
                               ("binary", "tile", 0), ("affine", "tile", 0)):
        model = make_embedding(GPTConfig(code=code, lift=lift, head="table"), spelled)
        assert sum(p.numel() for p in model.parameters()) == inputs


@pytest.mark.parametrize("V, padded", [(1, 64), (64, 64), (65, 128), (4096, 4096), (50257, 50304)])
def test_vocabulary_is_padded_to_64(V, padded):
    assert GPTConfig(vocab_size=V).padded_size == padded


def test_input_norm(bpe):
    """Mean norm of the table's rows, of the projection's as d x D, and none where nothing is
    trained."""
    table, projection = build("bpe_untied", bpe), build("kron", bpe)
    rows = table.transformer.wte.weight[:bpe.vocab_size]
    assert input_norm(table) == pytest.approx(rows.square().sum(1).sqrt().mean().item())
    assert input_norm(projection) == pytest.approx(1.0, abs=0.01)  # N(0, 1/sqrt D) over D entries
    assert input_norm(build("binary", bpe)) is None


def test_sampling_keeps_what_it_should():
    """top_k keeps the k likeliest, top_p the fewest that reach p, temperature 0 the likeliest; one
    seed repeats."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(4000, 4)

    def frequencies(temperature=1.0, top_k=None, top_p=None):
        drawn = choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(1))
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()
    assert frequencies() == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert frequencies(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.03)
    assert frequencies(top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.03)
    assert frequencies(temperature=0) == [1, 0, 0, 0] and frequencies() == frequencies()


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("options, says", [
    (dict(n_head=5), "n_embd=48 is not divisible by n_head=5"),
    (dict(code="binary", lift="tile"), "head='tied'"), (dict(head="untied"), "table, tied"),
    (dict(code="kron", lift="tile", head="table"), "linear"),
    (dict(code="crown"), "code='crown': must be one of learned, binary, affine, kron"),
    (dict(positions="alibi"), "learned, rotary"), (dict(code_form="dense"), "on_the_fly, table"),
    (dict(n_layer=0), "at least 1"),
    (dict(code="kron", lift="linear", head="table", pos_dim=300), "255"), (dict(dropout=1.0), "dropout"),
    (dict(positions="rotary", n_head=16), "even")])
def test_impossible_models(options, says):
    """One line that says what is known; an unknown code is never some other code."""
    with pytest.raises(ValueError, match=says):
        GPT(small(**options))


# ---- between look-up and body -------------------------------------------------------------------

def test_the_input_multiplier_is_of_the_input_alone(bpe, docs):
    """A table times 5 after look-up is a table 5 times as large; a tied head does not see it."""
    ids = torch.tensor(bpe.encode(" ".join(docs))[:32]).view(1, 32)
    loud, plain = (build("bpe_untied", bpe, f"--input_multiplier={m}") for m in (5, 1))
    assert torch.equal(plain.embed(ids), plain.transformer.wte(ids))
    with torch.no_grad():
        plain.transformer.wte.weight.mul_(5)
    torch.testing.assert_close(loud(ids), plain(ids))
    tied = build("bpe_tied", bpe, "--input_multiplier=5")
    assert torch.equal(tied.head_rows()[0], tied.transformer.wte.weight)


def test_the_input_norm_gives_every_token_the_same_size(bpe, docs):
    """RMSNorm of e, whatever its scale; the body is given the same whatever the multiplier."""
    ids = torch.tensor(bpe.encode(" ".join(docs))[:32]).view(1, 32)
    normed, louder = (build("kron", bpe, "--input_norm=True", f"--input_multiplier={m}")
                      for m in (1, 7))
    sizes = normed.embed(ids)[0].square().mean(-1).sqrt()
    assert sizes.tolist() == pytest.approx([1] * 32, rel=1e-4)
    torch.testing.assert_close(normed(ids), louder(ids))
