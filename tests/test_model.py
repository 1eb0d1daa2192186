"""The GPT: against torch's own encoder layers, against itself without a cache and compiled."""
import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from conftest import ARMS, build
from lib.evaluate import input_norm
from lib.generation import choose, generate
from model import CODES, GPT, GPTConfig, rotate

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

# the parts of nanoGPT's block, and of torch's encoder layer
BLOCK = {"ln_1.": "norm1.", "attn.c_attn.": "self_attn.in_proj_", "ln_2.": "norm2.",
         "attn.c_proj.": "self_attn.out_proj.", "mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2."}


@pytest.mark.parametrize("head, bias", [("tied", True), ("table", True), ("table", False)])
def test_a_nanogpt_state_dict_gives_the_logits_of_torchs_layers(ids, head, bias):
    """A state dict by nanoGPT's names loads with strict=True into bpe_tied and bpe_untied; a block
    is torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu"), causal."""
    torch.manual_seed(0)
    tables = {"transformer.wte": 128, "transformer.wpe": 16, "lm_head": 128}
    state = {f"{name}.weight": 0.2 * torch.randn(rows, 48) for name, rows in tables.items()}
    if head == "tied":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:12]
    causal = nn.Transformer.generate_square_subsequent_mask(12)
    for i in (0, 1):
        layer = nn.TransformerEncoderLayer(48, 3, 192, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True, bias=bias)
        theirs = {name: nn.init.normal_(p, std=0.2) for name, p in layer.named_parameters()}
        for (ours, part), kind in itertools.product(BLOCK.items(), ("weight", "bias")[:1 + bias]):
            state[f"transformer.h.{i}.{ours}{kind}"] = theirs[part + kind]
        x = layer(x, src_mask=causal, is_causal=True)
    norm = nn.LayerNorm(48, bias=bias)
    state |= {f"transformer.ln_f.{kind}": nn.init.normal_(p) for kind, p in norm.named_parameters()}
    model = GPT(small(bias=bias, head=head)).eval()
    model.load_state_dict(state, strict=True)
    expected = norm(x) @ state["lm_head.weight"].T
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
    own = "transformer.wte" if model.config.head == "table" else ("transformer.wte", "lm_head")
    body, wanted = ({name: p for name, p in some.named_parameters() if not name.startswith(own)}
                    for some in (model, plain))
    assert len(body) > 10 and body.keys() == wanted.keys()
    assert all(torch.equal(body[name], wanted[name]) for name in wanted)
    for name, p in model.named_parameters():
        drawn = len(p.unique()) > 1  # the others start at 0, 1 or 1/sqrt(2)
        assert not drawn or not torch.equal(p, other.get_parameter(name)), name


def test_parameters_of_the_124m_shape():
    """Table 50,304 x 768 against projection 4,096 x 768, the bits nothing; what is shared counts
    once, as input; one body."""
    table, kron, body = 38_633_472, 3_145_728, 85_740_288
    for code, head, inputs, outputs in (
            ("learned", "tied", table, 0), ("learned", "table", table, table),
            ("kron", "table", kron, table), ("kron", "tied", kron, 0), ("kron", "code", kron, kron),
            ("random", "table", kron, table), ("affine", "table", 0, table)):
        with torch.device("meta"):
            config = GPTConfig(code=code, lift=CODES[code].lifts[0], head=head)
            counts = GPT(config, [b"a"] * 50257).num_params()
        total = inputs + body + outputs
        assert counts == {"input": inputs, "body": body, "head": outputs, "total": total}


def test_input_norm(bpe):
    """Mean norm of the table's rows, of the projection's as d x D, and none without weights."""
    table, projection = build("bpe_untied", bpe), build("kron", bpe)
    rows = table.transformer.wte.weight[:bpe.vocab_size]
    assert input_norm(table) == pytest.approx(rows.norm(dim=1).mean().item())
    assert input_norm(projection) == pytest.approx(1.0, abs=0.01)  # N(0, 1/sqrt D) over D entries
    assert input_norm(build("binary", bpe)) is None


def test_sampling_keeps_what_it_should():
    """top_p keeps the fewest that reach p, temperature 0 the likeliest."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(4000, 4)
    for temperature, top_p, wanted in ((1.0, 1.0, [0.4, 0.3, 0.2, 0.1]), (0, 1.0, [1, 0, 0, 0]),
                                       (1.0, 0.75, [4 / 9, 3 / 9, 2 / 9, 0])):
        drawn = choose(logits, temperature, top_p, torch.Generator().manual_seed(1))
        assert drawn.bincount(minlength=4).div(4000).tolist() == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("options, says", [
    (dict(n_head=5), "n_embd=48 is not divisible by n_head=5"),
    (dict(code="binary", lift="tile"), "head='tied'"), (dict(head="untied"), "table, tied"),
    (KRON | dict(lift="tile"), "lift='tile': code 'kron' takes linear"),
    (dict(code="crown"), "code='crown': must be one of learned, binary, affine, kron"),
    (dict(positions="alibi"), "learned, rotary"),
    (KRON | dict(code_form="dense"), "on_the_fly or table"), (dict(n_layer=0), "at least 1"),
    (dict(code_form="table"), "code_form='table': code 'learned' takes on_the_fly"),
    (dict(code="affine", lift="tile", head="table", code_width=6), "takes 7 to 48 here"),
    (dict(code="affine", lift="tile", head="table", code_width=49), "takes 7 to 48 here"),
    (dict(code="bytes2word", lift="attention", head="code"), "'bytes2word' .* set head='table'"),
    (dict(code="visual", head="tied"), "'visual' .* set head='table'"),
    (KRON | dict(pos_dim=300), "255"), (KRON | dict(pos_dim=0), "from 1 to 255"),
    (dict(dropout=1.5), "dropout"),
    (dict(positions="rotary", n_head=16), "even")])
def test_impossible_models(options, says):
    """One line that says what is known."""
    with pytest.raises(ValueError, match=says):
        GPT(small(**options))


@pytest.mark.parametrize("code, key", [(code, key) for code, kind in CODES.items()
                                       for key in kind.options if key != "code_levels"])
def test_options_below_their_range(code, key):
    """-2 is nothing that an option can be."""
    with pytest.raises(ValueError, match=f"{key}=-2"):
        GPT(small(code=code, lift=CODES[code].lifts[0], head="table", **{key: -2}), [b"a"])


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
