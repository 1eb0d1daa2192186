"""sample.py: text of checkpoints, and the copying demo."""
import io
import json
import math
import os
import re
import shutil
import sys

import pytest
import torch

import sample
from conftest import HEADER, build, config_of
from lib.generation import continue_text
from lib.run_folder import build_model, load_model, save_checkpoint
from probes.echo import echo_nats
from runs.export_weights import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe):
    """A folder with out/ARM of a few untrained models, the newest last."""
    folder = tmp_path_factory.mktemp("untrained")
    for i, arm in enumerate(("bpe_tied", "bpe_untied", "kron_tied", "kron", "trigram")):
        config = vars(config_of(f"configs/{arm}.py", "--n_layer=1", "--n_head=3", "--n_embd=48",
                                "--block_size=32"))
        run = folder / "out" / arm
        run.mkdir(parents=True)
        header = HEADER | {"arm": arm, "config": config}
        (run / "log.jsonl").write_text(json.dumps(header) + "\n")
        save_checkpoint(run / "ckpt.pt", {
            "model": build_model(config, bpe).state_dict(), "config": config | {"arm": arm},
            "tokenizer": bpe.state, "step": 0, "best": [8.0, 0]})
        os.utime(run / "ckpt.pt", (i, i))
    return folder


def test_samples_repeat_with_their_seed(folder, call, capsys):
    texts = []
    for seed in (1, 1, 2):
        assert call(sample.main, "out/kron", "--prompt=The length of", "--max_new_tokens=9",
                    "--temperature=1", f"--seed={seed}", cwd=folder) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("The length of")


@torch.no_grad()
def always_say(model, row):
    """Make a head like one of its rows best: hidden states point along a line, as does the row."""
    line = torch.linspace(-1, 1, model.config.n_embd)
    model.transformer.wpe.weight.copy_(100 * line.expand_as(model.transformer.wpe.weight))
    row.copy_(100 * line)


@pytest.mark.parametrize("likes, shown", [(None, ""), ("\n", r"\n\n\n")])
def test_a_text_ends_with_its_document(bpe, capsys, likes, shown):
    """At <|endoftext|>. What is newlines alone is shown escaped."""
    model = build("bpe_untied", bpe).eval()
    always_say(model, model.lm_head.weight[bpe.encode(likes)[0] if likes else bpe.eot])
    how = {"max_new_tokens": 3, "temperature": 0}
    sample.show_texts([("x", model, bpe)], "Return to", 1, how)
    assert capsys.readouterr().out == f"Return to{shown}\n"


def test_a_coded_head_says_the_slot_as_its_word(bpe):
    """A head that likes the third byte of " Zürich", which no token of the vocabulary has."""
    model = build("kron_code_head", bpe).eval()
    always_say(model, model.lm_head.W[0xC3 * 16 + 2])
    ids, how = torch.tensor([bpe.encode("Return to")]), dict(max_new_tokens=4, temperature=0)
    without, = continue_text(model, bpe, ids, **how)
    model.set_bytes(" Zürich".encode())
    said, = continue_text(model, bpe, ids, word=" Zürich", **how)
    assert said == 4 * " Zürich" and "Zürich" not in without


def test_the_newest_pair_is_of_one_kind(folder, monkeypatch, tmp_path):
    """kron and a learned table, both untied and of equal steps, though newer runs of other arms
    are there; a pair of two sizes is none."""
    monkeypatch.chdir(folder)
    assert sample.demo_runs() == ["out/kron", "out/bpe_untied"]
    monkeypatch.chdir(tmp_path)
    for arm in ("kron", "bpe_untied"):
        shutil.copytree(folder / "out" / arm, tmp_path / "out" / arm)
    log = tmp_path / "out" / "kron" / "log.jsonl"
    log.write_text(re.sub('"max_steps": [0-9]+', '"max_steps": 2', log.read_text()))
    assert [path.parent for path in sample.demo_runs()] == [sample.DEMO] * 2


def test_a_folder_of_weights_is_those_models(folder, tmp_path, call, capsys):
    """As the one that the repository carries; weights in bfloat16 give the run's vectors, rounded.
    """
    for arm in ("kron", "bpe_untied"):
        export(folder / "out" / arm, tmp_path / "weights" / f"{arm}.pt")
    assert call(sample.main, "weights", "--prompt=The", "--max_new_tokens=1", cwd=tmp_path) == 0
    prompt, _, names, *_ = capsys.readouterr().out.split("\n")
    assert prompt == '"The"' and names.split() == ["bpe_untied", "|", "kron"]
    whole, _, _ = load_model(folder / "out" / "kron")
    carried, _, _ = load_model(tmp_path / "weights" / "kron.pt")
    mine, theirs = (model.transformer.wte(torch.arange(100)) for model in (carried, whole))
    torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_the_demo(folder, call, capsys):
    """Under each prompt the models' texts side by side, and a bar for each model: exp of
    `echo_nats` of the odd and of the clean word."""
    assert call(sample.main, "out/kron", "out/bpe_untied", "--max_new_tokens=3", cwd=folder) == 0
    said = capsys.readouterr().out
    assert "bpe_untied: bpe_untied, step 0 of" in said and said.count("(the clean word)") == 4
    assert len(re.findall(r"^kron +\| bpe_untied$", said, re.M)) == 4
    template = "Return the {} of the sequence. The {}"
    for name in ("kron", "bpe_untied"):
        model, tok, _ = load_model(folder / "out" / name)
        odd = echo_nats(model, tok, template, "lenght", "length")
        clean = echo_nats(model, tok, template, "length", "lenght")
        row = re.search(rf"^  {name} .*$", said[said.index("lenght of"):], re.M)[0]
        numbers = [float(ratio.replace(",", "")) for ratio in re.findall(r"(\S+)x", row)]
        assert numbers == pytest.approx([math.exp(odd), math.exp(clean)], abs=0.06)


def test_a_bar_grows_with_the_nats():
    """Six # a nat; what is longer than the column ends in >."""
    bars = [sample.bar(nats) for nats in (-1, 0, 0.5, 1, 2, 4, 4.2, 100)]
    assert [bar.count("#") for bar in bars] == [0, 0, 3, 6, 12, 24, 23, 23]
    assert [">" in bar for bar in bars] == 6 * [False] + 2 * [True]
    assert sample.bar(math.log(2.5)).endswith(" 2.5x")
    assert sample.bar(math.log(2500)).endswith(" 2,500x")


def test_own_prompts(folder, call, capsys, monkeypatch):
    """Each is continued; one past the context is refused and the next is read."""
    lines = ["Return the length", "word " * 80, "The odd {}"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert call(sample.main, "out/kron", "out/bpe_tied", "--interactive", "--max_new_tokens=3",
                cwd=folder) == 0
    said = capsys.readouterr().out
    assert said.count("| bpe_tied") == 2 and said.count("the context of kron is 32") == 1


@pytest.mark.parametrize("argv, says", [
    (["out/none"], "no checkpoint"), (["no.pt"], "not a checkpoint"),
    (["out/kron", "--prompt=" + "word " * 200], "the context of kron is 32"),
    (["out/kron", "--temperature=-1"], "temperature"), (["out/kron", "--top_p=nan"], "top_p"),
    (["out/kron", "--temperature=1e-320"], "0.001 and more"), (["--seed=-1"], "from 0 to 2^64 - 1"),
    (["--interactive", "--prompt=a"], "not allowed with"),
    (["out/kron", "--max_new_tokens=x"], "max_new_tokens")])
def test_refusals(folder, refuse, argv, says):
    """One line each, before a word is said."""
    (folder / "no.pt").write_bytes(b"no checkpoint")
    assert says in refuse(sample.main, *argv, cwd=folder)
