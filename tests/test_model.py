"""The GPT: against torch's own encoder layers, against itself without a cache and compiled."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from conftest import ARMS, build
from lib.evaluate import input_norm
from lib.generation import choose, generate
from model import CODES, GPT, GPTConfig, make_embedding, rotate

KRON = dict(code="kron", lift="linear", head="table")


def small(**options):
    shape = dict(vocab_size=128, block_size=16, n_layer=2, n_head=3, n_embd=48)
    return GPTConfig(**shape | options)


def loud(model):
    """Move body and bias from their start: a tied model would only repeat what it reads."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("transformer.h.") or name in ("transformer.wpe.weight", "head_bias"):
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return model.eval()


@pytest.fixture
def ids(docs):
    """Real text: (4, 12) ids below 128, the bytes of ASCII among them."""
    return torch.tensor([ord(c) for c in " ".join(docs) if ord(c) < 128][:48]).view(4, 12)


# ---- equal to what others published ------------------------------------------------------------

# a matrix or a norm of nanoGPT's block, its shape, and its name in torch's encoder layer
BLOCK = {"ln_1": (48,), "attn.c_attn": (144, 48), "attn.c_proj": (48, 48),
         "ln_2": (48,), "mlp.c_fc": (192, 48), "mlp.c_proj": (48, 192)}
TORCHS = ["norm1.", "self_attn.in_proj_", "self_attn.out_proj.", "norm2.", "linear1.", "linear2."]


@pytest.mark.parametrize("head, bias", [("tied", True), ("table", True), ("table", False)])
def test_a_nanogpt_state_dict_gives_the_logits_of_torchs_layers(ids, head, bias):
    """A state dict by nanoGPT's names loads with strict=True into bpe_tied and bpe_untied; a block
    is torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu"), causal."""
    torch.manual_seed(0)
    shapes = {f"transformer.h.{i}.{name}": shape for i in (0, 1) for name, shape in BLOCK.items()}
    shapes["transformer.ln_f"] = (48,)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) * (0.2 if len(shape) == 2 else 1)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[:1])
    for name, rows in (("transformer.wte", 128), ("transformer.wpe", 16), ("lm_head", 128)):
        state[f"{name}.weight"] = 0.2 * torch.randn(rows, 48)
    if head == "tied":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model = GPT(small(bias=bias, head=head)).eval()
    model.load_state_dict(state, strict=True)

    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:12]
    causal = nn.Transformer.generate_square_subsequent_mask(12)
    for i in (0, 1):
        layer = nn.TransformerEncoderLayer(48, 3, 192, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True, bias=bias)
        layer.load_state_dict({theirs + kind: state[f"transformer.h.{i}.{ours}.{kind}"]
                               for theirs, ours in zip(TORCHS, BLOCK)
                               for kind in ("weight", "bias")[:1 + bias]})
        x = layer(x, src_mask=causal, is_causal=True)
    norm = state["transformer.ln_f.weight"], state.get("transformer.ln_f.bias")
    expected = F.layer_norm(x, (48,), *norm) @ state["lm_head.weight"].T
    assert (model(ids) - expected).abs().max() < 1e-4 * expected.abs().max()


# ---- equal to itself ---------------------------------------------------------------------------

@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("code", [dict(), KRON, KRON | dict(head="tied", head_bias="zero"),
                                  KRON | dict(head="code"),
                                  dict(code="affine", lift="tile", head="table")])
@pytest.mark.parametrize("prompt", [1, 12])
def test_cached_generation_equals_uncached(ids, positions, code, prompt):
    """Greedy, token for token, far past block_size; every id is of the vocabulary."""
    spelled = [bytes([i]) for i in range(128)]
    model = loud(GPT(small(positions=positions, **code), spelled))
    context, said = ids[:, :prompt], list(generate(model, ids[:, :prompt], 40, temperature=0))
    for new in said:
        if context.size(1) > 16:
            context = context[:, -8:]
        assert torch.equal(new, model(context)[:, -1, :128].argmax(-1))
        context = torch.cat((context, new.unsqueeze(1)), dim=1)
    assert len(torch.stack(said).unique()) > 4  # it says something


def test_rotary_scores_depend_on_distance_only():
    """q at position i and k at position j score by i - j, and by nothing else."""
    model = GPT(small(positions="rotary", block_size=32))
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    q, k = (rotate(x.expand(1, 1, 32, 16), model.cos, model.sin)[0, 0] for x in (q, k))
    scores = q @ k.T
    for distance in range(-31, 32):
        assert scores.diagonal(distance).sub(scores.diagonal(distance)[0]).abs().max() < 1e-4
    assert scores[0].unique().numel() == 32


def test_loss_is_the_cross_entropy_of_the_logits(bpe, docs):
    """In nats per token, also in pieces (2,048 x 2,048 logits), targets of -100 left out."""
    model = loud(build("bpe_tied", bpe))
    ids = torch.tensor(bpe.encode(" ".join(docs))[:64 * 33]).view(64, 33)
    x, y = ids[:, :-1], ids[:, 1:].clone()
    y[5:9] = -100
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    assert model(x, y).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("arm, options", [
    ("bpe_tied", []), ("bpe_untied", []), ("kron", []), ("kron_code_head", ["--head_bias=zero"]),
    ("kron_tied", []), ("lowrank_tied", ["--head_bias=unigram"]), ("affine", [])])
def test_a_model_compiles_whole(bpe, docs, arm, options):
    """Each kind of head: the same loss and gradients. test_rivals.py compiles every input."""
    torch._dynamo.reset()
    model = loud(build(arm, bpe, "--n_layer=1", *options))
    ids = torch.tensor(bpe.encode(" ".join(docs))[:66]).view(2, 33)
    results = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *[p.grad.clone() for p in model.parameters()]])
    for plain, other in zip(*results, strict=True):
        assert (plain - other).abs().max() <= 1e-4 * plain.abs().max()


# ---- initial weights and counts ----------------------------------------------------------------

@pytest.mark.parametrize("arm", ARMS)
def test_equal_seeds_give_every_arm_the_same_body(bpe, arm):
    """All weights but the input's, a head's too; another seed changes all that is drawn."""
    plain, model, other = (build(*which) for which in (
        ("bpe_untied", bpe, "--seed=5"), (arm, bpe, "--seed=5"), (arm, bpe, "--seed=6")))
    body, wanted = ({name: p for name, p in some.named_parameters()
                     if not name.startswith(("transformer.wte", "lm_head"))}
                    for some in (model, plain))
    assert len(body) > 10 and body.keys() == wanted.keys()
    assert all(torch.equal(body[name], wanted[name]) for name in wanted)
    if model.config.head == "table":
        assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    for name, p in model.named_parameters():
        drawn = len(p.unique()) > 1  # the others start at 0, 1 or 1/sqrt(2)
        assert not drawn or not torch.equal(p, other.get_parameter(name)), name


def test_parameters_of_the_124m_shape():
    """Table 50,304 x 768 against projection 4,096 x 768, the binary arms nothing, and one body."""
    table, body = 38_633_472, 85_740_288
    with torch.device("meta"):
        for head, rows in (("tied", 0), ("table", table)):
            assert GPT(GPTConfig(head=head)).num_params() == {
                "input": table, "body": body, "head": rows, "total": table + body + rows}
    for code, inputs in (("kron", 3_145_728), ("random", 3_145_728), ("binary", 0), ("affine", 0)):
        config = GPTConfig(code=code, lift=CODES[code].lifts[0], head="table")
        module = make_embedding(config, [b"a"] * 50257)
        assert sum(p.numel() for p in module.parameters()) == inputs


def test_input_norm(bpe):
    """Mean norm of the table's rows, of the projection's as d x D, and none without weights."""
    table, projection = build("bpe_untied", bpe), build("kron", bpe)
    rows = table.transformer.wte.weight[:bpe.vocab_size]
    assert input_norm(table) == pytest.approx(rows.square().sum(1).sqrt().mean().item())
    assert input_norm(projection) == pytest.approx(1.0, abs=0.01)  # N(0, 1/sqrt D) over D entries
    assert input_norm(build("binary", bpe)) is None


def test_sampling_keeps_what_it_should():
    """top_p keeps the fewest that reach p, temperature 0 the likeliest."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(4000, 4)

    def frequencies(temperature=1.0, top_p=1.0):
        drawn = choose(logits, temperature, top_p, torch.Generator().manual_seed(1))
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()
    assert frequencies() == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert frequencies(top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.03)
    assert frequencies(temperature=0) == [1, 0, 0, 0]


@pytest.mark.parametrize("options, says", [
    (dict(n_head=5), "n_embd=48 is not divisible by n_head=5"),
    (dict(code="binary", lift="tile"), "head='tied'"), (dict(head="untied"), "table, tied"),
    (KRON | dict(lift="tile"), "lift='tile': code 'kron' takes linear"),
    (dict(code="crown"), "code='crown': must be one of learned, binary, affine, kron"),
    (dict(positions="alibi"), "learned, rotary"),
    (KRON | dict(code_form="dense"), "on_the_fly or table"), (dict(n_layer=0), "at least 1"),
    (dict(code_form="table"), "code_form='table': code 'learned' takes on_the_fly"),
    (KRON | dict(pos_dim=300), "255"), (dict(dropout=1.0), "dropout"),
    (dict(positions="rotary", n_head=16), "even")])
def test_impossible_models(options, says):
    """One line that says what is known."""
    with pytest.raises(ValueError, match=says):
        GPT(small(**options))


def test_what_lies_between_look_up_and_body(bpe, docs):
    """input_multiplier: a table times 5 after look-up; a tied head does not see it. input_norm:
    RMSNorm of e, whatever its scale."""
    ids = torch.tensor(bpe.encode(" ".join(docs))[:32]).view(1, 32)
    tied = build("bpe_tied", bpe, "--input_multiplier=5")
    wte = tied.transformer.wte
    assert torch.equal(tied.embed(ids), 5 * wte(ids))
    assert torch.equal(tied.head_rows()[0], wte.weight)
    normed = build("kron", bpe, "--input_norm=True", "--input_multiplier=7")
    e = normed.transformer.wte(ids)
    expected = e / e.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(normed.embed(ids), expected, rtol=1e-4, atol=1e-4)
