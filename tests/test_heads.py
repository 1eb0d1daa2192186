"""Heads without a table of their own: `tied` and `code`, against explicit products, dense
constructions and themselves; and every config's run, which goes on bit for bit."""
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import train
from conftest import ROOT
from lib.config import read_config
from lib.generation import generate
from lib.run_folder import load_checkpoint, read_log
from model import CODES, GPT, GPTConfig
from rivals import deal
from toy import same_state
from test_rivals import V, dense_code, text, tokens  # noqa: F401, fixtures are used by name

CODED = [(code, head) for code, kind in CODES.items() for head in ("tied", "code")
         if "linear" in kind.head_lifts]
# one of each way in which head and input can hang together
FEW = [("kron", "tied"), ("kron", "code"), ("lowrank", "tied"), ("phase", "code")]

CONFIGURED = {path.stem: read_config(path)["code"] for path in sorted((ROOT / "configs").glob("*"))
              if path.suffix == ".py" and "code" in read_config(path)}
BRIEF = ["--dataset=small", "--name=again", "--vocab_size=0", "--n_layer=1", "--n_head=3",
         "--n_embd=36", "--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=1",
         "--max_steps=4", "--warmup_steps=2", "--eval_interval=2", "--eval_tokens=256",
         "--log_interval=1", "--device=cpu", "--dtype=float32"]


def gpt(tokens, code, head, **options):
    """A small model of an arm with that head."""
    options = {"n_layer": 2, "n_head": 3, "n_embd": 48, "block_size": 32} | options
    lift = CODES[code].head_lifts[-1] if CODES[code].head_lifts else CODES[code].lifts[-1]
    return GPT(GPTConfig(vocab_size=len(tokens), code=code, lift=lift, head=head, **options),
               tokens)


def randomise(model):
    """A body and bias far from their start, so that an untrained model has opinions, and a tied one
    does not only repeat what it reads."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("transformer.h.") or name in ("transformer.wpe.weight", "head_bias"):
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return model.eval()


def alpha_of(model):
    """The factor of the head's rows, as RIVALS.md has it."""
    if model.config.head == "tied":
        return 4 / (model.config.n_embd * model.transformer.wte.std)
    return 0.02 / model.lm_head.std


# ---- what it says ------------------------------------------------------------------------------

# nats by which the first loss may differ from ln V. Any two tokens share half of their bits, so
# that h is near many rows at once; without spelling, e is nearer to that of the text's next token.
# No config ties these.
FIRST = {("binary", "tied"): 0.6, ("affine", "tied"): 0.6, ("kron_shuffled", "tied"): 0.2}


@pytest.mark.parametrize("d, limit, code, head", [
    (192, FIRST.get(pair, 0.15), *pair) for pair in CODED])
def test_first_loss(tokens, text, d, limit, code, head):
    """At the start the model knows nothing: ln V, nearly."""
    model = gpt(tokens, code, head, n_embd=d, n_head=6, n_layer=1, block_size=64)
    n = 1024  # tokens
    with torch.no_grad():
        loss = model(text[:n].view(-1, 64), text[1:n + 1].view(-1, 64)).item()
    assert loss == pytest.approx(math.log(V), abs=limit)


@pytest.mark.parametrize("code, head", CODED)
def test_logits_are_the_explicit_product(tokens, text, code, head):
    """logits_t = alpha h . e(t), in float64, e(t) by the input or by a second module of the code;
    ids past the vocabulary, which have no code, get -inf."""
    model = randomise(gpt(tokens, code, head))
    rows = model.transformer.wte if head == "tied" else model.lm_head
    ids = text[:32].view(1, 32)
    with torch.no_grad():
        h, e, logits = model.hidden(ids), rows(torch.arange(V)), model(ids)
    assert logits.shape == (1, 32, 1024) and (logits[..., V:] == -math.inf).all()
    torch.testing.assert_close(logits[..., :V].double(),
                               alpha_of(model) * h.double() @ e.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["tied", "code"])
@pytest.mark.parametrize("code", ["kron", "kron_shuffled", "phase", "lowrank"])
def test_gradients_equal_a_dense_construction(tokens, text, code, head):
    """Loss and gradients are those of a plain GPT whose V x d table and head are written out as
    dense code times W: with `tied` both parts flow into the one W."""
    model = randomise(gpt(tokens, code, head, seed=3))
    x, y = text[:96].view(3, 32), text[1:97].view(3, 32)
    loss = model(x, y)
    loss.backward()

    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    known = None if code == "lowrank" else torch.from_numpy(dense_code(code, tokens, seed=3))

    def table(prefix):
        if code == "lowrank":
            return weights[f"{prefix}A"][:V] @ weights[f"{prefix}B"]
        return known @ weights[f"{prefix}W"]
    plain = {name: w for name, w in weights.items()
             if not name.startswith(("transformer.wte", "lm_head"))}
    plain["transformer.wte.weight"] = table("transformer.wte.")
    source = "transformer.wte." if head == "tied" else "lm_head."
    plain["lm_head.weight"] = alpha_of(model) * table(source)
    reference = gpt(tokens, "learned", "table").double()
    exact = F.cross_entropy(functional_call(reference, plain, (x,)).flatten(0, 1), y.flatten())
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    for name, p in model.named_parameters():
        wanted = weights[name].grad
        assert (p.grad - wanted).abs().max() < 1e-4 * wanted.abs().max(), name


@pytest.mark.parametrize("code, head, bias", [
    ("kron", "tied", "none"), ("kron", "code", "zero"), ("lowrank", "tied", "unigram"),
    ("phase", "code", "none")])
def test_compiled_equals_eager(tokens, text, code, head, bias):
    """torch.compile(fullgraph=True) of the whole model: the same loss and gradients."""
    torch._dynamo.reset()
    model, results = randomise(gpt(tokens, code, head, head_bias=bias, n_layer=1)), []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = forward(text[:64].view(2, 32), text[1:65].view(2, 32))
        loss.backward()
        results.append([loss.detach(), *[p.grad.clone() for p in model.parameters()]])
    for plain, compiled in zip(*results):
        assert (plain - compiled).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("bias", ["none", "zero"])
@pytest.mark.parametrize("code, head", FEW)
def test_cached_generation_equals_uncached(tokens, text, code, head, bias):
    """Greedy, token for token, past block_size; every id is of the vocabulary."""
    model = randomise(gpt(tokens, code, head, head_bias=bias, block_size=16))
    start = text[:7].view(1, 7)
    said = [torch.stack(list(generate(model, start, 40, temperature=0, use_cache=use)))
            for use in (True, False)]
    assert torch.equal(*said) and said[0].max() < V and len(said[0].unique()) > 1


# ---- a word that can be said -------------------------------------------------------------------

@pytest.mark.parametrize("head, size, bias", [("tied", V, "none"), ("code", V, "zero"),
                                              ("tied", 960, "zero"), ("code", 960, "none")])
@pytest.mark.parametrize("code", ["kron", "kron_shuffled", "trigram", "phase"])
def test_a_slot_can_be_said(tokens, text, code, head, size, bias):
    """An assigned slot's logit is that of its bytes: given those of a token of the vocabulary, that
    token's but for its bias. The other logits do not change, and past the slot there is none. 960
    is a multiple of 64, so that the slot lies past the padded vocabulary."""
    spelled, token = tokens[:size], 777
    model = randomise(gpt(spelled, code, head, head_bias=bias, seed=3))
    raw = spelled[token]
    if code == "kron_shuffled":
        raw = spelled[deal(spelled, 16, seed=3)[token]]  # those it was dealt
    ids = text[:16].view(1, 16) % size
    with torch.no_grad():
        before, slot = model(ids), model.set_bytes(raw)
        after = model(ids)
        own = before[..., token].clone()
        if bias != "none":
            own -= model.head_bias[token]
            offset = model.head_bias  # past its end a slot is as likely as the rarest token
            own += offset[slot] if slot < len(offset) else offset.min()
    assert slot == size and torch.equal(after[..., :size], before[..., :size])
    torch.testing.assert_close(after[..., slot], own, rtol=1e-4, atol=1e-4)
    assert (after[..., slot + 1:] == -math.inf).all()
    # and where its logit is high it is said, with a cache and without
    matrix, offset = model.head_rows()
    offset = offset.index_fill(0, torch.tensor(slot), 1e3)
    model.head_rows = lambda: (matrix, offset)
    for use in (True, False):
        assert {int(i) for i in generate(model, ids, 3, temperature=0, use_cache=use)} == {slot}


# ---- bias, counts, refusals --------------------------------------------------------------------

@pytest.mark.parametrize("code, head", [("learned", "tied"), ("learned", "table"),
                                        ("kron", "table"), *FEW])
def test_head_bias(tokens, text, code, head):
    """A number per token, 0 at the start, added to its logit, trained, and counted in the head."""
    plain, model = (gpt(tokens, code, head, head_bias=bias) for bias in ("none", "zero"))
    ids = text[:32].view(1, 32)
    assert torch.equal(plain(ids)[..., :V], model(ids)[..., :V])
    with torch.no_grad():
        model.head_bias.copy_(torch.linspace(-1, 1, 1024))
    more = torch.linspace(-1, 1, 1024)[:V]
    torch.testing.assert_close(model(ids)[..., :V], plain(ids)[..., :V] + more)
    model(ids, ids).backward()
    assert model.head_bias.grad[:V].all()
    more = {key: model.num_params()[key] - plain.num_params()[key] for key in plain.num_params()}
    assert more == {"input": 0, "body": 0, "head": 1024, "total": 1024}


@pytest.mark.parametrize("code, head", [("learned", "tied"), ("learned", "table"),
                                        ("kron", "table"), *FEW])
def test_unigram_bias(tokens, text, code, head):
    """Where the hidden state is zero the loss starts at the unigram entropy: text costs what its
    own frequencies say, as far as one more of each token lets it."""
    model = gpt(tokens, code, head, head_bias="unigram")
    counts = 100 * np.bincount(text, minlength=V)
    model.start_at_unigram(counts)
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    p = counts[counts > 0] / counts.sum()
    n = len(text) // 32 * 32
    with torch.no_grad():
        loss = model(text[:n].view(-1, 32), text[:n].view(-1, 32)).item()
    assert loss == pytest.approx(-(p * np.log(p)).sum(), abs=0.02)
    assert model.head_bias.exp()[:V].sum().item() == pytest.approx(1)
    unseen = 1 / (counts.sum() + V)
    assert model.head_bias.exp()[V:].tolist() == pytest.approx([unseen] * 24)


def test_unigram_bias_of_a_run(small_data, tmp_path, call):
    """train.py counts the training split: the first validation is near the entropy of the
    validation split under those counts, where ln V is 6.2, and a run that goes on does not count again."""
    (tmp_path / "data").symlink_to(small_data / "data")
    argv = [ROOT / "configs" / "bpe_untied.py", *BRIEF, "--head_bias=unigram", "--n_embd=12"]
    assert call(train.main, *argv, cwd=tmp_path) == 0
    train_ids, val_ids = (np.fromfile(small_data / f"data/small/{split}.bin", np.uint16)
                          for split in ("train", "val"))
    p = (np.bincount(train_ids, minlength=512) + 1) / (len(train_ids) + 512)
    start = next(r["val_loss"] for r in read_log(tmp_path / "out/again/log.jsonl")[0]
                 if "val_loss" in r)
    assert start == pytest.approx(-np.log(p[val_ids]).mean(), abs=0.15)


@pytest.mark.parametrize("code, head", [("learned", "tied"), *CODED])
def test_num_params_counts_once(tokens, code, head):
    """What is shared counts once, as input; a coded head counts as many as the input; the body is
    every arm's."""
    counts = gpt(tokens, code, head).num_params()
    body = gpt(tokens, "learned", "table").num_params()["body"]
    inputs = sum(p.numel() for p in gpt(tokens, code, "table").transformer.wte.parameters())
    outputs = 0 if head == "tied" else inputs
    assert counts == {"input": inputs, "body": body, "head": outputs,
                      "total": inputs + body + outputs}


@pytest.mark.parametrize("head", ["tied", "code"])
@pytest.mark.parametrize("arm", ["bytes2word", "frozen_random", "visual", "binary", "affine"])
def test_what_cannot_be_a_head(arm, head, small_data, refuse):
    """bytes2word and codes that are never trained: refused in one line, before anything is
    written."""
    config = ROOT / "configs" / f"{arm}.py"
    line = refuse(train.main, config, *BRIEF, f"--head={head}", cwd=small_data)
    assert f"head='{head}': code '{CONFIGURED[arm]}'" in line and "set head='table'" in line


def test_a_second_table_is_no_code():
    """A learned table's head is `tied` or `table`."""
    with pytest.raises(ValueError, match="is head='table'"):
        GPT(GPTConfig(code="learned", head="code"))


# ---- every arm's run ---------------------------------------------------------------------------

def test_configs_are_the_arms():
    """Every code has a config."""
    assert set(CONFIGURED.values()) == set(CODES)


@pytest.mark.parametrize("arm, options", [
    *((arm, []) for arm in {code: arm for arm, code in CONFIGURED.items()}.values()),
    ("bpe_tied", ["--head_bias=unigram", "--input_multiplier=14", "--input_norm=True"])])
def test_every_arm_resumes_bit_for_bit(arm, options, small_data, tmp_path, call, capsys,
                                       monkeypatch):
    """A run that goes on from its checkpoint of step 2 ends with the weights, the optimizer and the
    losses of the run that was not interrupted."""
    (tmp_path / "data").symlink_to(small_data / "data")
    out, early = tmp_path / "out" / "again", tmp_path / "early"
    save = train.RunFolder.save

    def keep(folder, step, *state):
        save(folder, step, *state)
        if step == 2:
            shutil.copytree(out, early, dirs_exist_ok=True)
    monkeypatch.setattr(train.RunFolder, "save", keep)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays the tests'
    monkeypatch.setattr(train, "loss_picture", lambda *_: None)  # it takes most of the time
    monkeypatch.setattr(train, "evaluate", lambda *_: {})

    ends = []
    for start in (0, 2):
        assert call(train.main, ROOT / "configs" / f"{arm}.py", *BRIEF, *options,
                    cwd=tmp_path) == 0
        assert ("step 1/4" in capsys.readouterr().out) == (start == 0)
        losses = [{key: r[key] for key in ("step", "loss", "grad_norm", "val_loss") if key in r}
                  for r in read_log(out / "log.jsonl")[0]]
        ends.append((losses, load_checkpoint(out)))
        shutil.rmtree(out)
        shutil.copytree(early, out)
    assert ends[0][0] == ends[1][0] and ends[0][0][-1]["step"] == 4
    assert same_state(ends[0][1], ends[1][1])
