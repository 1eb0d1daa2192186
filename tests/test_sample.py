"""sample.py: text as it is generated, whole characters only; the demo; bad input is one line."""
import torch

import sample
from conftest import script
from lib.run_folder import load_model
from lib.generation import generate


def test_samples_repeat_with_their_seed_and_stream(docstrings, runs, call, capsys):
    args = [runs["kron"], "--prompt=The length of", "--max_new_tokens=20", "--temperature=1",
            "--top_p=1"]
    first = script("sample.py", *args, "--seed=1", cwd=docstrings).stdout
    texts = {}
    for seed in (1, 2):
        assert call(sample.main, *args, f"--seed={seed}", cwd=docstrings) == 0
        texts[seed] = capsys.readouterr().out
    assert first == texts[1] != texts[2] and first.startswith("The length of")


def test_pieces_join_to_the_decoded_text(runs):
    """Streaming splits the text between characters, never inside one, and past the context the
    window slides."""
    model, tok, _ = load_model(str(runs["kron"]))
    ids = sample.prompt_ids(model, tok, "naïve café → 日本")
    how = dict(max_new_tokens=3 * model.config.block_size, temperature=2.0)
    generator = torch.Generator().manual_seed(5)
    new = [i.item() for i in generate(model, ids, generator=generator, **how)]
    new = new[:new.index(tok.eot)] if tok.eot in new else new
    pieces = list(sample.continuation(model, tok, ids, 5, **how))
    assert "".join(pieces) == tok.decode(new)


def test_forced_word_is_one_slot_with_its_bytes(runs):
    """--oov: the word and the space before it become one id past the vocabulary, whose embedding is
    that of those bytes."""
    model, tok, _ = load_model(str(runs["kron"]))
    ids = sample.prompt_ids(model, tok, "The zorblatt of a zorblatt", "zorblatt")[0].tolist()
    slot = model.config.vocab_size
    assert ids == tok.encode("The") + [slot] + tok.encode(" of a") + [slot]
    word = tok.encode(" the")[0]
    model.transformer.wte.set_bytes(slot, b" the")
    forced, plain = (model.transformer.wte(torch.tensor([i])) for i in (slot, word))
    torch.testing.assert_close(forced, plain)


def test_two_runs_stand_side_by_side(docstrings, runs):
    done = script("sample.py", runs["kron"], runs["bpe_tied"], "--prompt=-", "--oov=frob",
                  "--max_new_tokens=5", cwd=docstrings, input="The frob\n")
    assert done.stdout.splitlines()[0].split(" | ")[0].strip() == "kron"
    assert "bpe_tied" in done.stderr and "as its usual tokens" in done.stderr


def test_several_runs_without_a_prompt_are_the_demo(docstrings, runs, call, capsys):
    """Which run and at what step, then bars for each; one run alone gives its text and no more."""
    assert call(sample.main, runs["kron"], runs["bpe_tied"], "--max_new_tokens=3",
                cwd=docstrings) == 0
    said = capsys.readouterr().out
    assert "bpe_tied: bpe_tied, step " in said and said.count("(the clean word)") == 4
    assert call(sample.main, runs["kron"], "--max_new_tokens=3", cwd=docstrings) == 0
    assert "step" not in capsys.readouterr().out


def test_prompts_as_they_are_typed(docstrings, runs):
    done = script("sample.py", runs["kron"], runs["bpe_tied"], "--interactive",
                  "--max_new_tokens=3", cwd=docstrings, input="The {lenght|length} of it. The\n")
    assert done.stdout.count("length (the clean word)") == 1


def test_bad_input_is_one_line(runs, tmp_path, refuse, monkeypatch):
    monkeypatch.setattr("lib.show.CARRIED", tmp_path)
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    kron = runs["kron"]
    for argv, named in [(["out/none"], "no checkpoint"), (["no.pt"], "not a checkpoint"),
                        ([], "no pair of a byte-reading and a learned input"),
                        ([kron, "--prompt=" + "word " * 200], "the context of kron is 64"),
                        ([kron, "--oov=x", "--prompt=y"], "does not have that word"),
                        ([kron, "--temperature=-1"], "temperature"), ([kron, "--top_k=0"], "top_k"),
                        ([kron, "--max_new_tokens=x"], "max_new_tokens")]:
        assert named in refuse(sample.main, *argv, cwd=tmp_path)
