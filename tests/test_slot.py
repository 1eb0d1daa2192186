"""sample.py --oov: a word in one token, which a code that reads bytes knows by its spelling and a
coded head can say; and what sample.py says of prompts."""
from types import SimpleNamespace

import pytest
import torch

import sample
from conftest import ROOT
from lib import show
from lib.run_folder import build_model, load_model, save_checkpoint
from lib.config import compose

LONG = "internationalization"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe):
    """A folder with out/ARM of a few untrained models."""
    folder = tmp_path_factory.mktemp("untrained")
    for arm in ("bpe_tied", "kron", "kron_tied", "kron_code_head", "trigram", "bytes2word"):
        config, _, _ = compose([str(ROOT / f"configs/{arm}.py"), "--n_layer=1", "--n_head=3",
                                "--n_embd=48", "--block_size=32"])
        model = build_model(vars(config), bpe)
        if arm == "kron_code_head":
            say_words_with(model, byte=0xC3, position=2)  # " Zürich" alone
        (folder / "out" / arm).mkdir(parents=True)
        save_checkpoint(folder / "out" / arm / "ckpt.pt", {
            "model": model.state_dict(), "config": vars(config), "tokenizer": bpe.state, "step": 0,
            "best": [8.0, 0]})
    return folder


@torch.no_grad()
def say_words_with(model, byte, position):
    """Make a coded head say whatever has that byte there, wherever it stands: hidden states point
    along a line, as does that row of W."""
    line = torch.linspace(-1, 1, model.config.n_embd)
    model.transformer.wpe.weight.copy_(100 * line.expand_as(model.transformer.wpe.weight))
    model.lm_head.W[byte * 16 + position] = 100 * line


def loaded(folder, arm):
    """(model, tokenizer) of out/ARM."""
    return load_model(folder / "out" / arm)[:2]


# ---- which words -------------------------------------------------------------------------------

@pytest.mark.parametrize("word, prompt, text, pieces", [
    ("cat", "a category, a cat", " cat", ["a category, a", ""]),
    ("cat", "concat cat2 _cat cats", "", ["concat cat2 _cat cats"]),
    ("Cat", "Cat and Cat", " Cat", ["", " and", ""]),
    ("Cat", "Cat's", "Cat", ["", "'s"]),
    ("cat", "Cat (cat) cat.", " cat", ["Cat (", ")", "."]),
    ("C++", "C++, not C", "C++", ["", ", not C"]),
    ("a.b", "axb a.b", " a.b", ["axb", ""]),
    ("कार", "कार्य की कार", " कार", ["कार्य की", ""]),
    ("new york", "in new york", " new york", ["in", ""])])
def test_whole_words_just_so(word, prompt, text, pieces):
    """A part of a longer word is none, in any script; case counts; the space before belongs to the
    word, also at the start, where there is none."""
    assert sample.cut_out(word, prompt) == (text, pieces)


@pytest.mark.parametrize("arm", ["kron", "kron_tied", "trigram", "bytes2word"])
def test_prompt_has_the_slot_in_place_of_the_word(folder, arm):
    """Each place of the word is the slot, which embeds as its bytes do; the rest is encoded as
    ever, and an arm that reads no bytes encodes everything so."""
    model, tok = loaded(folder, arm)
    prompt = "Cat and category: a Cat"
    ids = sample.prompt_ids(model, tok, prompt, "Cat")[0].tolist()
    slot = tok.vocab_size
    assert ids == [slot, *tok.encode(" and category: a"), slot]
    token = tok.encode(" the")[0]
    sample.prompt_ids(model, tok, "in the", "the")
    wte = model.transformer.wte
    torch.testing.assert_close(wte(torch.tensor([slot])), wte(torch.tensor([token])))
    bpe_tied, _ = loaded(folder, "bpe_tied")
    assert sample.prompt_ids(bpe_tied, tok, prompt, "Cat")[0].tolist() == tok.encode(prompt)


def test_a_word_is_forgotten_with_its_prompt(folder):
    """The next prompt's model cannot say it."""
    model, tok = loaded(folder, "kron_tied")
    ids = sample.prompt_ids(model, tok, "a zorblatt", "zorblatt")
    assert model(ids)[0, -1, tok.vocab_size].isfinite()
    ids = sample.prompt_ids(model, tok, "a zorblatt")
    assert model.slot is None and model(ids).size(-1) == tok.vocab_size


# ---- said --------------------------------------------------------------------------------------

def test_a_coded_head_says_the_word(folder, call, capsys):
    """It likes the third byte of " Zürich", which no token of the vocabulary has: the word comes
    out, and without a slot it cannot."""
    prompt = "Return to Zürich, the"
    argv = ["out/kron_code_head", f"--prompt={prompt}", "--max_new_tokens=4", "--temperature=0"]
    assert call(sample.main, *argv, "--oov=Zürich", cwd=folder) == 0
    assert capsys.readouterr().out == prompt + 4 * " Zürich" + "\n"
    assert call(sample.main, *argv, cwd=folder) == 0
    said = capsys.readouterr().out
    assert said.startswith(prompt) and "Zürich" not in said[len(prompt):]


def test_two_runs_with_a_word_stand_side_by_side(folder, call, capsys):
    """One that can say it beside one that reads it as its usual tokens, and says so."""
    assert call(sample.main, "out/kron_code_head", "out/bpe_tied", "--prompt=to Zürich",
                "--oov=Zürich", "--max_new_tokens=3", "--temperature=0", cwd=folder) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split(" | ")[0].strip() == "kron_code_head"
    assert "to Zürich Zürich Zürich Zürich" in " ".join(out.split())
    assert err == "note: bpe_tied reads no bytes; it reads 'Zürich' as its usual tokens\n"


def test_a_slot_within_a_character(bpe, monkeypatch):
    """Bytes that are no character yet when the slot is chosen stand as U+FFFD; whole ones stay
    whole."""
    e_acute = [bpe.tokens.index(bytes([b])) for b in "é".encode()]
    ids = [*e_acute, bpe.vocab_size, e_acute[0], bpe.vocab_size, *e_acute]
    model = SimpleNamespace(slot=bpe.vocab_size)
    monkeypatch.setattr(show, "generate", lambda *_, **how: iter(torch.tensor(how["said"])))
    pieces = list(sample.continuation(model, bpe, torch.zeros(1, 1), 0, " word", said=ids))
    assert "".join(pieces) == "é word\ufffd wordé"


# ---- said on standard error --------------------------------------------------------------------

@pytest.mark.parametrize("arm, cut", [("kron", True), ("bytes2word", True), ("trigram", False)])
def test_a_cut_is_told(folder, call, capsys, arm, cut):
    """Codes that see 16 bytes say which of a longer word those are; the others see it whole."""
    for word in (LONG, "short"):
        assert call(sample.main, f"out/{arm}", f"--prompt=The {word}", f"--oov={word}",
                    "--max_new_tokens=1", cwd=folder) == 0
        err = capsys.readouterr().err
        if word == LONG and cut:
            assert err == (f"note: {arm} sees the first 16 bytes of ' {LONG}' alone, "
                           "' internationaliz'\n")
        else:
            assert err == ""


def test_how_a_document_begins(folder, call, capsys):
    """The literal text of <|endoftext|> is ordinary text, and the note says so; an empty prompt
    begins a document, as the token does."""
    model, tok = loaded(folder, "kron")
    assert call(sample.main, "out/kron", "--prompt=<|endoftext|>", "--max_new_tokens=1",
                cwd=folder) == 0
    assert capsys.readouterr().err == ("note: <|endoftext|> is ordinary text in a prompt; "
                                       "an empty prompt begins a document\n")
    assert tok.eot not in sample.prompt_ids(model, tok, "<|endoftext|>")
    assert sample.prompt_ids(model, tok, "").tolist() == [[tok.eot]]


@pytest.mark.parametrize("argv, says", [
    (["out/kron", "out/bpe_tied", "--oov=cat"], "a --prompt that has it"),
    (["out/kron", "--oov=cat"], "a --prompt that has it"),
    (["out/kron", "--oov= ", "--prompt=a cat"], "takes a word"),
    (["out/kron", "--oov=cat", "--prompt=category"], "does not have that word"),
    (["out/kron", "--oov=Cat", "--prompt=a cat"], "does not have that word"),
    (["out/kron", "--oov=\udcff", "--prompt=a"], "not UTF-8"),
    (["out/kron", "--device=cuda"], "no CUDA device is here")])
def test_refusals(folder, refuse, argv, says, monkeypatch):
    """One line each, before a word is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert says in refuse(sample.main, *argv, cwd=folder)
