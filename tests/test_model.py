"""The GPT: against torch's own encoder layer, against nanoGPT written out, against itself without a cache."""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib.common import InputError
from conftest import ARMS, build
from model import GPT, Block, GPTConfig, choose, load_checkpoint, load_model, rotate, save_checkpoint


def small(**options):
    return GPTConfig(**dict(vocab_size=128, block_size=16, n_layer=2, n_head=3, n_embd=48) | options)


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


# ---- equal to what others published ------------------------------------------------------------------------

@pytest.mark.parametrize("bias", [True, False])
def test_block_equals_torchs(bias):
    """A block is torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu") under a causal mask,
    with the same weights."""
    torch.manual_seed(0)
    block = Block(small(bias=bias))
    reference = nn.TransformerEncoderLayer(48, 3, 192, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True, bias=bias)
    theirs = dict(zip(["self_attn.in_proj_", "self_attn.out_proj.", "linear1.", "linear2.", "norm1.", "norm2."],
                      ["attn.c_attn.", "attn.c_proj.", "mlp.c_fc.", "mlp.c_proj.", "ln_1.", "ln_2."]))
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0, 0.3)
    ours = block.state_dict()
    reference.load_state_dict({name + kind: ours[mine + kind] for name, mine in theirs.items()
                               for kind in ("weight", "bias") if bias or kind == "weight"})
    x = torch.randn(2, 16, 48)
    expected = reference(x, src_mask=nn.Transformer.generate_square_subsequent_mask(16), is_causal=True)
    assert (block(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def nanogpt_names(layers):
    """The names in a nanoGPT state dict, written out."""
    names = ["transformer.wte.weight", "transformer.wpe.weight",
             "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"]
    for i in range(layers):
        names += [f"transformer.h.{i}.{part}.{kind}"
                  for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
                  for kind in ("weight", "bias")]
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
    layer = 0
    while (h := f"transformer.h.{layer}.") + "ln_1.weight" in w:
        q, k, v = (y.view(B, T, heads, d // heads).transpose(1, 2)
                   for y in linear(norm(x, h + "ln_1"), h + "attn.c_attn").split(d, 2))
        scores = (q @ k.transpose(2, 3) / math.sqrt(d // heads)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, d), h + "attn.c_proj")
        u = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
        x = x + linear(u * 0.5 * (1 + torch.erf(u / math.sqrt(2))), h + "mlp.c_proj")
        layer += 1
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("tie", [True, False])
def test_nanogpt_state_dict_loads(ids, tie):
    """A nanoGPT state dict of the same shape loads with strict=True into bpe_tied and bpe_untied and gives nanoGPT's logits."""
    torch.manual_seed(0)
    shapes = {"wte": (128, 48), "wpe": (16, 48), "lm_head": (128, 48), "c_attn": (144, 48), "c_fc": (192, 48),
              "attn.c_proj": (48, 48), "mlp.c_proj": (48, 192)}
    state = {}
    for name in nanogpt_names(layers=2):
        shape = next((s for part, s in shapes.items() if f"{part}.weight" in name), None)
        state[name] = (torch.randn(shape) * 0.2 if shape else
                       torch.randn({"c_attn": 144, "c_fc": 192}.get(name.split(".")[-2], 48)))
    if tie:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model = GPT(small(bias=True, tie=tie)).eval()
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state, strict=True)
    assert (model(ids) - nanogpt_logits(state, ids, heads=3)).abs().max() < 1e-3


# ---- equal to itself ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("code", [dict(), dict(code="kron", lift="linear", tie=False),
                                  dict(code="affine", lift="tile", tie=False)])
@pytest.mark.parametrize("prompt", [1, 7, 12])
def test_cached_generation_equals_uncached(ids, positions, code, prompt):
    """Greedy, token for token, from prompts of several lengths and far past block_size."""
    model = loud(GPT(small(positions=positions, **code), [bytes([i]) for i in range(128)]))
    cached, uncached = (torch.stack(list(model.generate(ids[:, :prompt], 40, temperature=0, use_cache=use)))
                        for use in (True, False))
    assert torch.equal(cached, uncached)
    assert len(cached.unique()) > 4  # it says something


def test_generation_within_the_block_is_the_argmax_of_the_logits(ids):
    """Greedy generation is what forward's logits say, one token after the other, and never a padding id."""
    model = loud(GPT(small(vocab_size=100)))
    with torch.no_grad():
        model.lm_head.weight[100:] = 100 * model.lm_head.weight[:28]
    text = ids[:, :5] % 100
    for next_ids in model.generate(text, 11, temperature=0):
        assert torch.equal(next_ids, model(text)[:, -1, :100].argmax(-1))
        text = torch.cat((text, next_ids[:, None]), 1)


def test_trained_checkpoint_generates_the_same_with_a_cache(runs):
    """The same for a model that train.py wrote, on its own tokenizer's text, past its block_size of 64."""
    model, tok, checkpoint = load_model(runs["kron"])
    prompt = torch.tensor([tok.encode("Return the number of")])
    cached, uncached = ([int(i) for i in model.generate(prompt, 80, temperature=0, use_cache=use)] for use in (True, False))
    assert cached == uncached and max(cached) < tok.vocab_size and checkpoint["step"] == 60


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_future_is_not_seen(ids, positions):
    """Changing a token changes no logits before it, and does change its own."""
    model, changed = loud(GPT(small(positions=positions))), ids.clone()
    changed[:, 6] += 1
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6], after[:, 6])


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


def test_order_matters_to_rotary(ids):
    """Without a position table the model still tells ab from ba."""
    model = loud(GPT(small(positions="rotary")))
    assert not torch.allclose(model(ids)[:, -1], model(ids[:, [1, 0, *range(2, 12)]])[:, -1], atol=1e-3)


def test_loss_is_the_cross_entropy_of_the_logits(bpe, docs):
    """In nats per token, also where it is computed in pieces (2,048 x 2,048 logits on a CPU), targets of -100 left out."""
    model = loud(build("bpe_tied", bpe))
    ids = torch.tensor(bpe.encode(" ".join(docs))[:64 * 33]).view(64, 33)
    x, y = ids[:, :-1], ids[:, 1:].clone()
    y[5:9] = -100
    assert model(x, y).item() == pytest.approx(F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item(), rel=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_compiles_whole(bpe, docs, arm):
    """torch.compile(fullgraph=True) of an arm's whole model: the same loss, logits and gradients."""
    torch._dynamo.reset()
    model, ids = loud(build(arm, bpe, "--n_layer=1")), torch.tensor(bpe.encode(" ".join(docs))[:66]).view(2, 33)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *[p.grad.clone() for p in model.parameters()]])
    for plain, other in zip(*results):
        assert (plain - other).abs().max() <= 1e-4 * plain.abs().max()


# ---- initial weights ---------------------------------------------------------------------------------------

def test_equal_seeds_give_every_arm_the_same_body(bpe):
    """All weights but the input's (and a tied head, which is the input) start equal in the eight arms;
    another seed changes every matrix."""
    first, *others = models = [build(arm, bpe, "--seed=5") for arm in ARMS]
    body = [name for name, _ in first.named_parameters() if not name.startswith("transformer.wte") and name != "lm_head.weight"]
    assert len(body) > 10
    for other in others:
        assert all(torch.equal(first.get_parameter(name), other.get_parameter(name)) for name in body)
        assert torch.equal(models[1].lm_head.weight, other.lm_head.weight)
    for arm in ARMS:
        again, seed6, seed5 = build(arm, bpe, "--seed=5"), build(arm, bpe, "--seed=6"), models[ARMS.index(arm)]
        for (name, p), a, b in zip(seed5.named_parameters(), again.parameters(), seed6.parameters()):
            assert torch.equal(p, a) and (p.dim() == 1 or not torch.equal(p, b)), name


@pytest.mark.parametrize("arm, scale", [("bpe_tied", 0.02), ("bpe_untied", 0.02), ("bpe_untied_unit", 1), ("bpe_untied_lr", 1),
                                        ("kron", 1), ("random", 1)])
def test_scale_of_the_input(bpe, arm, scale):
    """The arms' inputs start at the papers' scales: 0.02 per coordinate, or about 1."""
    vectors = build(arm, bpe).transformer.wte(torch.arange(bpe.vocab_size))
    assert vectors.std().item() == pytest.approx(scale, rel=0.05)


# ---- counts ------------------------------------------------------------------------------------------------

def test_parameters_of_the_124m_shape():
    """Table 38,633,472 (50,304 x 768) against projection 3,145,728 (4,096 x 768), the binary arms nothing, and one body."""
    spelled = [b"a"] * 50257
    with torch.device("meta"):
        tied, untied = (GPT(GPTConfig(tie=tie)).num_params() for tie in (True, False))
    inputs = [GPT(GPTConfig(n_layer=1, n_head=1, block_size=1, code=code, lift=lift, tie=False), spelled).num_params()["input"]
              for code, lift in (("kron", "linear"), ("random", "linear"), ("binary", "tile"), ("affine", "tile"))]
    assert tied == {"input": 38_633_472, "body": 85_740_288, "head": 0, "total": 124_373_760}
    assert untied == {"input": 38_633_472, "body": 85_740_288, "head": 38_633_472, "total": 163_007_232}
    assert inputs == [3_145_728, 3_145_728, 0, 0]


@pytest.mark.parametrize("V, padded", [(1, 64), (64, 64), (65, 128), (4096, 4096), (50257, 50304)])
def test_vocabulary_is_padded_to_64(V, padded):
    assert GPTConfig(vocab_size=V).padded_size == padded


def test_input_norm(bpe):
    """Mean norm of the table's rows, of the projection's as d x D, and none where nothing is trained."""
    table, projection = build("bpe_untied", bpe), build("kron", bpe)
    assert table.input_norm() == pytest.approx(table.transformer.wte.weight[:bpe.vocab_size].square().sum(1).sqrt().mean().item())
    assert projection.input_norm() == pytest.approx(1.0, abs=0.01)  # N(0, 1/sqrt D) over D entries
    assert build("binary", bpe).input_norm() is None


def test_sampling_keeps_what_it_should():
    """top_k keeps the k likeliest, top_p the fewest that reach p, temperature 0 the likeliest; one seed repeats."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(4000, 4)

    def frequencies(temperature=1.0, top_k=None, top_p=None):
        drawn = choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(1))
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()
    assert frequencies() == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert frequencies(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.03)
    assert frequencies(top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.03)
    assert frequencies(temperature=0) == [1, 0, 0, 0] and frequencies() == frequencies()


# ---- bad input ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, says", [
    (dict(n_head=5), "n_embd=48 is not divisible by n_head=5"), (dict(code="kron", lift="linear"), "tie=True"),
    (dict(code="kron", lift="tile", tie=False), "linear"), (dict(code="crown"), "learned, binary, affine, kron, random"),
    (dict(positions="alibi"), "learned, rotary"), (dict(code_form="dense"), "on_the_fly, table"), (dict(n_layer=0), "at least 1"),
    (dict(pos_dim=300), "255"), (dict(dropout=1.0), "dropout"), (dict(positions="rotary", n_head=16), "even")])
def test_impossible_models(options, says):
    with pytest.raises(ValueError, match=says):
        GPT(small(**options), [b""])


def test_what_is_no_checkpoint(tmp_path, runs):
    """Nothing, text, half a checkpoint, another project's, one that does not hold together: an InputError that names the path."""
    real = (runs["binary"] / "ckpt.pt").read_bytes()
    whole = load_checkpoint(runs["binary"])
    torch.save({"model": {}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    save_checkpoint(tmp_path / "tokenizer.pt", whole | {"tokenizer": {}})
    save_checkpoint(tmp_path / "weights.pt", whole | {"model": {}})
    save_checkpoint(tmp_path / "shape.pt", whole | {"config": whole["config"] | {"n_head": 7}})
    save_checkpoint(tmp_path / "config.pt", whole | {"config": 3})
    for name, content in (("text.pt", b"hello"), ("empty.pt", b""), ("half.pt", real[:len(real) // 2])):
        (tmp_path / name).write_bytes(content)
    # What a pickle can run is never run.
    torch.save({"model": print, "config": 0, "tokenizer": 0, "step": 0}, tmp_path / "code.pt")
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "absent", *tmp_path.iterdir()]
    assert len(paths) == 12
    for path in paths:
        with pytest.raises(InputError, match=path.name):
            load_model(path)
