"""sample.py: text comes out as it is generated, whole characters only, and bad input is one line."""
import torch

import sample
from conftest import script
from model import load_model


def test_samples_repeat_with_their_seed_and_stream(docstrings, runs):
    args = [runs["kron"], "--prompt=The length of", "--max_new_tokens=20", "--temperature=1", "--top_p=1"]
    first, again, other = (script("sample.py", *args, f"--seed={s}", cwd=docstrings).stdout for s in (1, 1, 2))
    assert first == again != other and first.startswith("The length of")


def test_pieces_join_to_the_decoded_text(runs):
    """Streaming splits the text between characters, never inside one, and past the context the window slides."""
    model, tok, _ = load_model(str(runs["kron"]))
    ids = sample.prompt_ids(model, tok, "naïve café → 日本")
    how = dict(max_new_tokens=3 * model.config.block_size, temperature=2.0)
    new = [i.item() for i in model.generate(ids, generator=torch.Generator().manual_seed(5), **how)]
    new = new[:new.index(tok.eot)] if tok.eot in new else new
    pieces = list(sample.continuation(model, tok, ids, 5, **how))
    assert "".join(pieces) == tok.decode(new)


def test_forced_word_is_one_slot_with_its_bytes(runs):
    """--oov: the word and the space before it become one id past the vocabulary, whose embedding is that of those bytes."""
    model, tok, _ = load_model(str(runs["kron"]))
    ids = sample.prompt_ids(model, tok, "The zorblatt of a zorblatt", "zorblatt")[0].tolist()
    slot = model.config.vocab_size
    assert ids == tok.encode("The") + [slot] + tok.encode(" of a") + [slot]
    word = tok.encode(" the")[0]
    model.transformer.wte.set_bytes(slot, b" the")
    torch.testing.assert_close(model.transformer.wte(torch.tensor([slot])), model.transformer.wte(torch.tensor([word])))


def test_two_runs_stand_side_by_side(docstrings, runs):
    done = script("sample.py", runs["kron"], runs["bpe_tied"], "--prompt=-", "--oov=frob", "--max_new_tokens=5",
                  cwd=docstrings, input="The frob\n")
    assert done.stdout.splitlines()[0].split(" | ")[0].strip() == "kron" and "bpe_tied is no kron run" in done.stderr


def test_without_arguments_the_newest_kron_and_bpe_runs_echo(docstrings, runs):
    assert script("sample.py", "--max_new_tokens=3", cwd=docstrings).stdout.count("prompt:") == 2 * len(sample.TYPO_PROMPTS)


def test_bad_input_is_one_line(docstrings, runs, tmp_path, refuse):
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    for argv, named in [(["out/none"], "no checkpoint"), ([tmp_path / "no.pt"], "not a checkpoint"),
                        ([], "no trained kron and bpe runs"),
                        ([runs["kron"], "--prompt=" + "word " * 200], "the context of kron is 64"),
                        ([runs["kron"], "--oov=x", "--prompt=y"], "does not have that word"),
                        ([runs["kron"], "--temperature=-1"], "temperature"), ([runs["kron"], "--top_k=0"], "top_k"),
                        ([runs["kron"], "--max_new_tokens=x"], "max_new_tokens")]:
        assert named in refuse(sample.main, *argv, cwd=tmp_path)
