"""Heads without a table of their own, `tied` and `code`, against explicit products; the bias per
token; every code's run, which goes on bit for bit."""
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from conftest import ROOT, series
from lib.config import read_config
from lib.generation import generate
from lib.run_folder import load_checkpoint
from model import CODES, GPT, GPTConfig
from rivals import deal
from test_model import loud
from test_rivals import V, text, tokens  # noqa: F401, fixtures are used by name
from toy import folder, same_state, train_in  # noqa: F401

CODED = [(code, head) for code, kind in CODES.items() for head in ("tied", "code")
         if "linear" in kind.head_lifts]
# one of each way in which head and input can hang together
FEW = [("kron", "tied"), ("kron", "code"), ("lowrank", "tied"), ("phase", "code")]
ALL = [("learned", "tied"), ("kron", "table"), *FEW]
CONFIGURED = {path.stem: read_config(path)["code"] for path in (ROOT / "configs").glob("*.py")
              if "code" in read_config(path)}


def gpt(tokens, code, head, **options):
    """A small model of an arm with that head."""
    options = {"n_layer": 2, "n_head": 3, "n_embd": 48, "block_size": 32} | options
    return GPT(GPTConfig(vocab_size=len(tokens), code=code, lift=CODES[code].lifts[-1], head=head,
                         **options), tokens)


@pytest.mark.parametrize("code, head", CODED)
def test_first_loss(tokens, text, code, head):
    """At the start the model knows nothing: ln V, nearly; less so where h is near many rows."""
    model = gpt(tokens, code, head, n_embd=192, n_head=6, n_layer=1, block_size=64)
    with torch.no_grad():
        loss = model(text[:1024].view(-1, 64), text[1:1025].view(-1, 64)).item()
    near = 0.6 if (code, head) in (("binary", "tied"), ("affine", "tied")) else 0.2
    assert loss == pytest.approx(math.log(V), abs=near)


@pytest.mark.parametrize("code, head", CODED)
def test_logits_and_gradients_are_those_of_the_product(tokens, text, code, head):
    """logits_t = alpha h . e(t), written out over a table of the vectors: loss and gradients are
    the same, so that with `tied` both parts flow into the one W. Free ids get -inf."""
    model = loud(gpt(tokens, code, head))
    x, y = text[:96].view(3, 32), text[1:97].view(3, 32)
    logits, trained = model(x), [p for p in model.parameters()]
    assert logits.shape == (3, 32, 1024) and (logits[..., V:] == -math.inf).all()
    alpha = {"code": 0.02, "tied": 4 / 48}[head] / model.transformer.wte.std
    rows = model.transformer.wte if head == "tied" else model.lm_head
    exact = alpha * model.hidden(x) @ rows(torch.arange(V)).T
    torch.testing.assert_close(logits[..., :V], exact, rtol=1e-4, atol=1e-4)
    loss, wanted = model(x, y), F.cross_entropy(exact.flatten(0, 1), y.flatten())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(wanted, trained)):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


@pytest.mark.parametrize("head, size, bias", [("tied", V, "none"), ("code", V, "zero"),
                                              ("tied", 960, "zero"), ("code", 960, "none")])
@pytest.mark.parametrize("code", ["kron", "kron_shuffled", "trigram", "phase"])
def test_a_slot_can_be_said(tokens, text, code, head, size, bias):
    """A slot that is given a token's bytes has its logit but for the bias; the other logits do not
    change. 960 is a multiple of 64: the slot lies past the padded vocabulary."""
    spelled, token, ids = tokens[:size], 777, text[:16].view(1, 16) % size
    model = loud(gpt(spelled, code, head, head_bias=bias, seed=3))
    whose = deal(spelled, 16, seed=3)[token] if code == "kron_shuffled" else token
    with torch.no_grad():
        before, slot, after = model(ids), model.set_bytes(spelled[whose]), model(ids)
        own = before[..., token].clone()
        if bias != "none":  # past its end a slot is as likely as the rarest token
            offset = model.head_bias
            own += (offset[slot] if slot < len(offset) else offset.min()) - offset[token]
    assert slot == size and torch.equal(after[..., :size], before[..., :size])
    torch.testing.assert_close(after[..., slot], own, rtol=1e-4, atol=1e-4)
    assert (after[..., slot + 1:] == -math.inf).all()
    # and where its logit is high it is said
    matrix, offset = model.head_rows()
    model.head_rows = lambda: (matrix, offset.index_fill(0, torch.tensor(slot), 1e3))
    assert {int(i) for i in generate(model, ids, 3, temperature=0)} == {slot}


# ---- the bias per token -------------------------------------------------------------------------

@pytest.mark.parametrize("code, head", ALL)
def test_head_bias(tokens, text, code, head):
    """A number per token, 0 at the start, added to its logit, and trained."""
    plain, model = (gpt(tokens, code, head, head_bias=bias) for bias in ("none", "zero"))
    ids, more = text[:32].view(1, 32), torch.linspace(-1, 1, 1024)
    assert torch.equal(plain(ids)[..., :V], model(ids)[..., :V])
    with torch.no_grad():
        model.head_bias.copy_(more)
    torch.testing.assert_close(model(ids)[..., :V], plain(ids)[..., :V] + more[:V])
    model(ids, ids).backward()
    assert model.head_bias.grad[:V].all()


@pytest.mark.parametrize("code, head", ALL)
def test_unigram_bias(tokens, text, code, head):
    """Where the hidden state is zero, text costs what its own frequencies say."""
    model = gpt(tokens, code, head, head_bias="unigram")
    counts = 100 * np.bincount(text, minlength=V)
    model.start_at_unigram(counts)
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    p = counts[counts > 0] / counts.sum()
    some = text[:len(text) // 32 * 32].view(-1, 32)
    with torch.no_grad():
        assert model(some, some).item() == pytest.approx(-(p * np.log(p)).sum(), abs=0.02)


def test_unigram_bias_of_a_run(train_in, folder):
    """train.py counts the training split: the first validation is near its cross-entropy with the
    validation split; ln V is 6.2."""
    run = train_in("configs/bpe_untied.py", "--head_bias=unigram", "--eval_tokens=8192")
    train_ids, val_ids = (np.fromfile(folder / f"data/small/{split}.bin", np.uint16)
                          for split in ("train", "val"))
    p = (np.bincount(train_ids, minlength=512) + 1) / (len(train_ids) + 512)
    assert series(run, "val_loss")[0] == pytest.approx(-np.log(p[val_ids]).mean(), abs=0.15)


# ---- every code's run --------------------------------------------------------------------------

def test_every_code_has_a_config():
    assert set(CONFIGURED.values()) == set(CODES)


@pytest.mark.parametrize("options", [
    *([f"configs/{arm}.py"] for arm in {code: arm for arm, code in CONFIGURED.items()}.values()),
    ["configs/bpe_tied.py", "--head_bias=unigram", "--input_multiplier=14", "--input_norm=True"]],
    ids=lambda options: options[0])
def test_every_code_resumes_bit_for_bit(options, train_in, monkeypatch):
    """Stopped in step 2 it ends with the weights, optimizer and losses of the run that was not."""
    monkeypatch.setattr(train, "evaluate", lambda *_: {})  # it takes most of the time
    run = train_in(*options)
    whole = series(run, "loss"), series(run, "val_loss"), load_checkpoint(run)
    shutil.rmtree(run)
    train_in(*options, after=2)
    train_in(*options)
    resumed = series(run, "loss"), series(run, "val_loss"), load_checkpoint(run)
    assert same_state(resumed, whole) and max(whole[0]) == 6
