"""sample.py: text as it is generated, whole characters only; --oov, a word in one token, which a
code that reads bytes knows by its spelling and a coded head can say; the copying demo."""
import json
import math
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch

import sample
from conftest import ROOT, build, script
from lib.config import compose
from lib.generation import cut_out, generate, one_line_sample, prompt_ids
from lib.run_folder import build_model, load_model, save_checkpoint
from probes.echo import echo_nats
from runs.export_weights import export

LONG = "internationalization"
ARMS = ("bpe_tied", "bpe_untied", "kron_tied", "kron", "kron_code_head", "trigram", "bytes2word")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe):
    """A folder with out/ARM of a few untrained models, the newest last."""
    folder = tmp_path_factory.mktemp("untrained")
    for i, arm in enumerate(ARMS):
        config, _, _ = compose([str(ROOT / f"configs/{arm}.py"), "--n_layer=1", "--n_head=3",
                                "--n_embd=48", "--block_size=32"])
        config, model = vars(config), build_model(vars(config), bpe)
        if arm == "kron_code_head":
            say_words_with(model, byte=0xC3, position=2)  # " Zürich" alone
        run = folder / "out" / arm
        run.mkdir(parents=True)
        header = {"arm": arm, "config": config, "data": {}, "params": {}}
        (run / "log.jsonl").write_text(json.dumps(header) + "\n")
        save_checkpoint(run / "ckpt.pt", {
            "model": model.state_dict(), "config": config | {"arm": arm}, "tokenizer": bpe.state,
            "step": 0, "best": [8.0, 0]})
        os.utime(run / "ckpt.pt", (i, i))
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


# ---- text --------------------------------------------------------------------------------------

def test_samples_repeat_with_their_seed_and_stream(folder, call, capsys):
    args = ["out/kron", "--prompt=-", "--max_new_tokens=9", "--temperature=1", "--top_p=1"]
    first = script("sample.py", *args, "--seed=1", cwd=folder, input="The length of\n").stdout
    texts = []
    args[1] = "--prompt=The length of"
    for argv in (["--seed=1"], ["--seed=2"], ["--seed=1", "--num_samples=2"]):
        assert call(sample.main, *args, *argv, cwd=folder) == 0
        texts.append(capsys.readouterr().out)
    assert first == texts[0] != texts[1] and first.startswith("The length of")
    line = "-" * 20 + "\n"
    assert texts[2] == texts[0] + line + texts[1] + line


def test_pieces_join_to_the_decoded_text(folder):
    """Streaming splits the text between characters, never inside one, and past the context the
    window slides."""
    model, tok = loaded(folder, "kron")
    ids = prompt_ids(model, tok, "naïve café → 日本")
    how = dict(max_new_tokens=3 * model.config.block_size, temperature=2.0)
    generator = torch.Generator().manual_seed(5)
    new = [i.item() for i in generate(model, ids, generator=generator, **how)]
    new = new[:new.index(tok.eot)] if tok.eot in new else new
    pieces = list(sample.continuation(model, tok, ids, 5, **how))
    assert "".join(pieces) == tok.decode(new)


def test_a_text_of_newlines_alone_is_shown_escaped(capsys):
    """Whether it is streamed or stands in a column; a text that begins with some is shown as is."""
    sample.stream(iter(["\n", "\n\n"]))
    sample.stream(iter(["\n", "a", "\n", "b"]))
    assert capsys.readouterr().out == "\\n\\n\\n\n" + "\na\nb\n"
    assert sample.visible("\n \n") == "\\n \\n" and sample.visible("") == ""


def test_a_line_at_a_validation_disturbs_nothing(bpe):
    """The same line each time, on one line; the mode and the random numbers of training stay."""
    model = build("kron", bpe, "--dropout=0.1").train()
    before = torch.get_rng_state()
    lines = [one_line_sample(model, bpe) for _ in range(2)]
    assert lines[0] == lines[1] and lines[0].startswith("sample: ") and "\n" not in lines[0]
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_how_a_document_begins(folder, call, capsys):
    """The literal text of <|endoftext|> is ordinary text, and the note says so; an empty prompt
    begins a document, as the token does."""
    model, tok = loaded(folder, "kron")
    assert call(sample.main, "out/kron", "--prompt=<|endoftext|>", "--max_new_tokens=1",
                cwd=folder) == 0
    assert capsys.readouterr().err == ("note: <|endoftext|> is ordinary text in a prompt; "
                                       "an empty prompt begins a document\n")
    assert tok.eot not in prompt_ids(model, tok, "<|endoftext|>")
    assert prompt_ids(model, tok, "").tolist() == [[tok.eot]]


# ---- a word in one token -----------------------------------------------------------------------

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
    assert cut_out(word, prompt) == (text, pieces)


@pytest.mark.parametrize("arm", ["kron", "kron_tied", "trigram", "bytes2word"])
def test_prompt_has_the_slot_in_place_of_the_word(folder, arm):
    """Each place of the word is the slot, which embeds as its bytes do; the rest is encoded as
    ever, and an arm that reads no bytes encodes everything so. The next prompt forgets it."""
    model, tok = loaded(folder, arm)
    prompt = "Cat and category: a Cat"
    ids = prompt_ids(model, tok, prompt, "Cat")[0].tolist()
    slot = tok.vocab_size
    assert ids == [slot, *tok.encode(" and category: a"), slot]
    token = tok.encode(" the")[0]
    prompt_ids(model, tok, "in the", "the")
    wte = model.transformer.wte
    torch.testing.assert_close(wte(torch.tensor([slot])), wte(torch.tensor([token])))
    ids = prompt_ids(model, tok, prompt)
    assert model.slot is None and model(ids).size(-1) == tok.vocab_size
    bpe_tied, _ = loaded(folder, "bpe_tied")
    assert prompt_ids(bpe_tied, tok, prompt, "Cat")[0].tolist() == tok.encode(prompt)


def test_a_coded_head_says_the_word(folder, call, capsys):
    """It likes the third byte of " Zürich", which no token of the vocabulary has: the word comes
    out, and without a slot it cannot. A table beside it reads the usual tokens, and says so."""
    prompt = "Return to Zürich, the"
    argv = ["out/kron_code_head", f"--prompt={prompt}", "--max_new_tokens=4", "--temperature=0"]
    assert call(sample.main, *argv, "--oov=Zürich", cwd=folder) == 0
    assert capsys.readouterr().out == prompt + 4 * " Zürich" + "\n"
    assert call(sample.main, *argv, cwd=folder) == 0
    said = capsys.readouterr().out
    assert said.startswith(prompt) and "Zürich" not in said[len(prompt):]
    assert call(sample.main, "out/kron_code_head", "out/bpe_tied", *argv[1:], "--oov=Zürich",
                cwd=folder) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split(" | ")[0].strip() == "kron_code_head"
    assert err == "note: bpe_tied reads no bytes; it reads 'Zürich' as its usual tokens\n"


def test_a_slot_within_a_character(bpe, monkeypatch):
    """Bytes that are no character yet when the slot is chosen stand as U+FFFD; whole ones stay
    whole."""
    e_acute = [bpe.tokens.index(bytes([b])) for b in "é".encode()]
    ids = [*e_acute, bpe.vocab_size, e_acute[0], bpe.vocab_size, *e_acute]
    model = SimpleNamespace(slot=bpe.vocab_size)
    monkeypatch.setattr(sample, "generate", lambda *_, **how: iter(torch.tensor(how["said"])))
    pieces = list(sample.continuation(model, bpe, torch.zeros(1, 1), 0, " word", said=ids))
    assert "".join(pieces) == "é word\ufffd wordé"


@pytest.mark.parametrize("arm, cut", [("kron", True), ("bytes2word", True), ("trigram", False)])
def test_a_cut_is_told(folder, call, capsys, arm, cut):
    """Codes that see 16 bytes say which of a longer word those are; the others see it whole."""
    for word in (LONG, "short"):
        assert call(sample.main, f"out/{arm}", f"--prompt=The {word}", f"--oov={word}",
                    "--max_new_tokens=1", cwd=folder) == 0
        told = (f"note: {arm} sees the first 16 bytes of ' {LONG}' alone, ' internationaliz'\n"
                if cut and word == LONG else "")
        assert capsys.readouterr().err == told


# ---- the demo ----------------------------------------------------------------------------------

@pytest.fixture
def models(folder, monkeypatch, capsys):
    """What the demo shows where no run is named."""
    monkeypatch.chdir(folder)
    models, _ = sample.load_models(sample.demo_runs(), "cpu")
    assert "  kron: kron, step 0 of" in capsys.readouterr().out
    return models


def test_the_newest_pair_is_of_one_kind(models, folder, monkeypatch, tmp_path):
    """kron and a learned table, both untied and of equal steps, though newer runs of other arms
    are there; a pair of two sizes is none."""
    assert [name for name, *_ in models] == ["kron", "bpe_untied"]
    monkeypatch.chdir(tmp_path)
    for arm, steps in (("kron", 2), ("bpe_untied", 3)):
        header = json.loads((folder / "out" / arm / "log.jsonl").read_text())
        header["config"]["max_steps"] = steps
        (tmp_path / "out" / arm).mkdir(parents=True)
        (tmp_path / "out" / arm / "ckpt.pt").touch()
        (tmp_path / "out" / arm / "log.jsonl").write_text(json.dumps(header) + "\n")
    assert [path.parent for path in sample.demo_runs()] == [sample.CARRIED] * 2


def test_a_folder_of_weights_is_those_models(folder, tmp_path, call, capsys):
    """As the one that the repository carries; weights in bfloat16 give the run's vectors, rounded.
    """
    for arm in ("kron", "bpe_untied"):
        export(folder / "out" / arm, tmp_path / "weights" / f"{arm}.pt")
    assert call(sample.main, "weights", "--prompt=The", "--max_new_tokens=1", cwd=tmp_path) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["bpe_untied", "|", "kron"]
    ids, whole = torch.arange(100), loaded(folder, "kron")[0].transformer.wte
    carried, _, _ = load_model(tmp_path / "weights" / "kron.pt")
    torch.testing.assert_close(carried.transformer.wte(ids), whole(ids), rtol=0.02, atol=0.02)


def test_the_bars_are_the_probes_numbers(models, folder, call, capsys):
    """Under each prompt and for each model: exp of `echo_nats` of the odd and of the clean word. No
    text at such a loss; one run alone gives its text and no more."""
    assert call(sample.main, "out/kron", "out/bpe_untied", "--max_new_tokens=3", cwd=folder) == 0
    said = capsys.readouterr().out
    assert "bpe_untied: bpe_untied, step 0 of" in said and said.count("(the clean word)") == 4
    template = "Return the {} of the sequence. The {}"
    for name, model, tok in models:
        odd = echo_nats(model, tok, template, "lenght", "length")
        clean = echo_nats(model, tok, template, "length", "lenght")
        row = re.search(rf"^  {name} .*$", said[said.index("lenght of"):], re.M)[0]
        assert re.findall(r"\S+x", row) == [sample.times(odd), sample.times(clean)]
    assert "left out" in said and " | " not in said
    assert call(sample.main, "out/kron", "--max_new_tokens=3", cwd=folder) == 0
    assert "step" not in capsys.readouterr().out


def test_text_that_reads_well_is_shown_side_by_side(models, capsys):
    sample.echo_demo(models, {"max_new_tokens": 3}, seed=1, loss=3.0)
    said = capsys.readouterr().out
    assert said.count("kron ") >= 8 and said.count(" | ") >= 8 and "left out" not in said


def test_a_bar_grows_with_the_nats():
    """Six # a nat; what is longer than the column ends in >."""
    bars = [sample.bar(nats) for nats in (-1, 0, 0.5, 1, 2, 4, 4.2, 100)]
    assert [bar.count("#") for bar in bars] == [0, 0, 3, 6, 12, 24, 23, 23]
    assert [">" in bar for bar in bars] == 6 * [False] + 2 * [True]
    assert {len(bar) for bar in bars} == {24}
    assert (sample.times(math.log(2.5)), sample.times(math.log(2500))) == ("2.5x", "2,500x")


def test_neighbours_are_those_of_the_input(bpe):
    """A table in which two tokens are alike and all others drawn: each is the other's nearest."""
    model = build("bpe_untied", bpe)
    one, other = bpe.encode(" list")[0], bpe.encode(" time")[0]
    with torch.no_grad():
        model.transformer.wte.weight[one] = model.transformer.wte.weight[other] * 1.5
    (text, cosine), *more = sample.neighbours(model, bpe, " list", 3)
    assert text == " time" and cosine > 0.99 and len(more) == 2


def test_own_prompts(folder, call, capsys, monkeypatch):
    """A plain prompt is continued, {odd|usual} is measured too, one past the context is refused
    and the next is read."""
    lines = ["Return the length", "word " * 80, "The {lenght|length} of it. The", "odd {} {a|b}"]
    with open(folder / "typed", "w+") as typed:
        typed.write("\n".join(lines))
        typed.seek(0)
        monkeypatch.setattr(sys, "stdin", typed)
        assert call(sample.main, "out/kron", "out/bpe_tied", "--interactive", "--max_new_tokens=3",
                    cwd=folder) == 0
    said = capsys.readouterr().out
    assert said.count("kron ") == 3 + 1 and said.count("length (the clean word)") == 1
    assert "the context is 32 tokens" in said


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, says", [
    (["out/none"], "no checkpoint"), (["no.pt"], "not a checkpoint"),
    (["out/kron", "--prompt=" + "word " * 200], "the context of kron is 32"),
    (["out/kron", "--temperature=-1"], "temperature"), (["out/kron", "--top_k=0"], "top_k"),
    (["out/kron", "--max_new_tokens=x"], "max_new_tokens"),
    (["out/kron", "out/bpe_tied", "--oov=cat"], "a --prompt that has it"),
    (["out/kron", "--oov= ", "--prompt=a cat"], "takes a word"),
    (["out/kron", "--oov=Cat", "--prompt=a cat, category"], "does not have that word"),
    (["out/kron", "--oov=\udcff", "--prompt=a"], "not UTF-8"),
    (["out/kron", "--device=cuda"], "no CUDA device is here")])
def test_refusals(folder, refuse, argv, says, monkeypatch):
    """One line each, before a word is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (folder / "no.pt").write_bytes(b"no checkpoint")
    assert says in refuse(sample.main, *argv, cwd=folder)


def test_without_any_pair_the_way_to_one_is_told(tmp_path, refuse, monkeypatch):
    monkeypatch.setattr(sample, "CARRIED", tmp_path)
    assert "bash runs/demo.sh" in refuse(sample.main, cwd=tmp_path)
