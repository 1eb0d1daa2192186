"""prepare.py: text -> tokens on disk. The real script on real text; bad input through its main, in
this process."""
import argparse
import ast
import csv
import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prepare
import test_tokenizer
from conftest import ROOT, command, error_line, script, tree
from lib import bins, formats, sources, tokenizer
from lib.run_folder import hold_lock
from lib.tokenizer import END_OF_TEXT, from_state, token_bytes, train_bpe


def load(folder):
    """data/NAME -> (meta, tokenizer, {split: array of ids})."""
    meta = json.loads((folder / "meta.json").read_text())
    ids = {split: np.fromfile(folder / f"{split}.bin", meta["dtype"]) for split in ("train", "val")}
    return meta, from_state(meta["tokenizer"]), ids


def documents(ids, tok):
    """Token ids -> the documents they spell, each ended by the separator."""
    assert ids[-1] == tok.eot
    parts = np.split(ids, np.flatnonzero(ids == tok.eot) + 1)[:-1]
    return [tok.decode(part[:-1].tolist()) for part in parts]


def check(folder):
    """What meta.json says of the bins is true. Returns (meta, tokenizer, {split: documents})."""
    left = {p.name for p in folder.iterdir()} - {"lock", "verified.json"}  # which training leaves
    assert left == {"meta.json", "train.bin", "val.bin"}
    meta, tok, ids = load(folder)
    found = {split: documents(array, tok) for split, array in ids.items()}
    for split, array in ids.items():
        raw = (folder / f"{split}.bin").read_bytes()
        assert meta["tokens"][split] == len(array)
        assert meta["documents"][split] == len(found[split])
        assert meta["text_bytes"][split] == sum(len(text.encode()) for text in found[split])
        assert meta["sha256"][split] == hashlib.sha256(raw).hexdigest()
    assert meta["vocab_size"] == tok.vocab_size > max(array.max() for array in ids.values())
    assert meta["command"].startswith("python prepare.py ")
    assert {"python", "numpy", "tiktoken", "rustbpe", "datasets"} <= meta["versions"].keys()
    return meta, tok, found


def jsonl(texts, column="text"):
    """Texts as lines of JSON."""
    return "".join(json.dumps({column: text}) + "\n" for text in texts)


def pack_zst(raw):
    """Bytes -> zstandard."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def made(call, tmp_path):
    """made(*argv) prepares text in tmp_path and gives what `check` finds in data/x."""
    def made(*argv):
        assert call(prepare.main, "text", "--tokenizer=bpe:270", *argv, "--name=x", "--overwrite",
                    cwd=tmp_path) == 0
        return check(tmp_path / "data" / "x")
    return made


def everything(found):
    """The documents of both sides, sorted."""
    return sorted(found["train"] + found["val"])


# ---- what is made ------------------------------------------------------------------------------

def test_docstrings(data_dir):
    """The default: millions of tokens of docstrings in bpe:4096, uint16, split 2 % by hash, nothing
    twice, meta.json true."""
    meta, tok, found = check(data_dir)
    assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", "bpe:4096", 4096)
    assert sum(meta["text_bytes"].values()) > 10e6
    texts = found["train"] + found["val"]
    assert len(texts) == len(set(texts))
    assert 0.015 < len(found["val"]) / len(texts) < 0.025
    assert all(bins.is_validation(text, 0.02) == (split == "val")
               for split in found for text in found[split])
    own = [ast.get_docstring(ast.parse(open(module.__file__).read()))
           for module in (ast, gzip, json)]
    assert set(own) <= set(texts)


def test_docstrings_follow_from_python_and_requirements(tmp_path, monkeypatch, capsys):
    """The text depends on no other package, nor on where one lies: each that is read is pinned, a
    stranger beside it and its tests change nothing; one that is missing is one line."""
    pinned = dict(line.split("#")[0].strip().split("==")
                  for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    for package in sources.PACKAGES:
        name = package.lower()
        assert pinned[name] == version(name).split("+")[0]

    installed = Path(pq.__file__).parents[2]
    for at in ("here", "there/deep"):
        shutil.copytree(installed / "tqdm", tmp_path / at / "tqdm")
    (tmp_path / "here" / "tqdm" / "tests").mkdir()
    (tmp_path / "here" / "tqdm" / "tests" / "more.py").write_text('"""A test."""')
    (tmp_path / "here" / "stranger.py").write_text('"""A stranger."""')
    monkeypatch.setattr(sources, "PACKAGES", ("tqdm",))
    monkeypatch.setattr(sys, "stdlib_module_names", {"json", "ast", "tkinter"})
    identities = set()
    for at in (tmp_path / "here", tmp_path / "there" / "deep", installed):
        with monkeypatch.context() as patch:
            patch.syspath_prepend(at)
            identities.add(sources.docstrings().identity)
    assert len(identities) == 1
    capsys.readouterr()
    monkeypatch.setattr(sources, "PACKAGES", ("tqdm", "not_here"))
    assert {sources.docstrings().identity} == identities
    assert capsys.readouterr().out.startswith("docstrings: without not_here, which requirements")


def test_documents_come_back(small_data, docs):
    """The bins decode to the documents, in order, each followed by <|endoftext|>; a document's hash
    alone decides its side."""
    _, _, found = check(small_data / "data" / "small")
    for split, is_val in (("train", False), ("val", True)):
        assert found[split] == [text for text in docs if bins.is_validation(text, 0.1) == is_val]
    assert not set(found["train"]) & set(found["val"])


def test_bpe_is_trained_on_the_training_documents_only(small_data, docs):
    """The tokenizer is the one that the training documents give, and not the one that all documents
    give."""
    _, tok, found = check(small_data / "data" / "small")
    assert token_bytes(tok) == token_bytes(train_bpe(found["train"], 512))
    assert token_bytes(tok) != token_bytes(train_bpe(docs, 512))


@pytest.mark.parametrize("V, dtype", [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_fit_their_type(tmp_path, bpe, V, dtype):
    """uint16 holds vocabularies up to 65,536, the last id included; beyond, uint32."""
    class Padded:  # the trained BPE with ids moved to the end of a vocabulary of V
        vocab_size, eot = V, V - 1
        encode_batch = staticmethod(lambda texts, threads: bpe.encode_batch(texts, threads))
    one = [sources.local("one", None, lambda: iter([("some text", 1.0)]))]
    wanted = dict.fromkeys(("train", "val"), float("inf"))
    bins.encode(tmp_path, one, Padded, 0.02, wanted, bins.new_state(one))
    ids = np.fromfile(tmp_path / "train.bin", dtype)
    assert bins.id_type(Padded) == dtype and ids.tolist() == [*bpe.encode("some text"), V - 1]


# ---- files -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pieces(docs):
    """The docstrings as documents of 10,000 characters and more."""
    text = "\n\n".join(docs)
    found = list(formats.plain_text([text[:50_000], text[50_000:]], sources.SEPARATOR))
    assert len(found) > 10
    return found


def files_of(pieces):
    """{file name: (its bytes, --column)} of every kind with the same documents."""
    text = "\n\n".join(pieces).encode()
    rows = [{"id": i, "text": text} for i, text in enumerate(pieces)]
    lines = jsonl(pieces).encode()
    tables = {}
    for kind, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ("id", "text"), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
        tables[kind] = out.getvalue().encode()
    found = {"a.txt": text, "a.md": text, "a.jsonl": lines, "lines.json": lines,
             "a.json": json.dumps(rows, indent=1).encode(), "strings.json": json.dumps(pieces),
             "a.csv": tables["csv"], "a.tsv": tables["tsv"], "A.TXT": text, "a.Jsonl": lines,
             "a.txt.gz": gzip.compress(text), "a.jsonl.GZ": gzip.compress(lines),
             "a.csv.zst": pack_zst(tables["csv"]), "a.txt.zst": pack_zst(text),
             "bom.txt": b"\xef\xbb\xbf" + text, "bom.jsonl": b"\xef\xbb\xbf" + lines,
             "crlf.txt": text.replace(b"\n", b"\r\n"),
             "crlf.jsonl": jsonl(p.replace("\n", "\r\n") for p in pieces).encode()}
    return {name: raw.encode() if isinstance(raw, str) else raw for name, raw in found.items()}


def read_all(path, column="text"):
    """The documents of a file."""
    return [text for texts, _ in sources.read_file(path, column, sources.SEPARATOR)
            for text in texts]


def test_every_kind_of_file_gives_the_same_documents(tmp_path, made, pieces):
    """Text, lines and arrays of JSON, tables and parquet, packed or not, endings in any case, with
    a byte order mark or CRLF: the same documents."""
    for name, raw in files_of(pieces).items():
        (tmp_path / name).write_bytes(raw)
        assert read_all(tmp_path / name) == pieces, name
    pq.write_table(pa.table({"text": pieces}), tmp_path / "a.parquet")
    body = pa.array(pieces).dictionary_encode()
    pq.write_table(pa.table({"body": body, "n": range(len(pieces))}), tmp_path / "b.parquet")
    results = {}
    for name, *options in (["a.txt"], ["a.jsonl.GZ"], ["a.json"], ["a.csv.zst"], ["a.parquet"],
                           ["b.parquet", "--column=body"]):
        meta, _, found = made(name, "--val_fraction=0.2", *options)
        results[name] = found, meta["sha256"], meta["tokenizer"]
    assert all(value == results["a.txt"] for value in results.values())
    assert everything(results["a.txt"][0]) == sorted(pieces)


def test_large_json_arrays(tmp_path, monkeypatch, docs):
    """An array is read a piece at a time, wherever the pieces end; what follows it is not read."""
    path = tmp_path / "a.json"
    path.write_text("\n\n " + json.dumps([{"text": text} for text in docs]) + "\n")
    for chunk in (7, 1000, 99_999):
        monkeypatch.setattr(formats, "CHUNK", chunk)
        assert read_all(path) == docs
    path.write_text("[ ]")
    assert read_all(path) == []


def test_rows_as_long_as_books(tmp_path, monkeypatch, docs):
    """Few long rows are held at a time, and none is lost."""
    monkeypatch.setattr(formats, "CHUNK", 5_000)
    books = ["\n".join(docs[i:i + 50]) for i in range(0, 600, 50)]
    (tmp_path / "a.jsonl").write_text(jsonl(books))
    with open(tmp_path / "a.jsonl", "rb") as raw:
        read = [texts for texts, _ in formats.read_texts(raw, "a.jsonl", 3, "text", "---")]
    assert [text for texts in read for text in texts] == books[3:]
    assert max(map(len, read)) <= 3 and len(read) > 3


def test_folders_and_patterns(tmp_path, made, refuse, docs):
    """A folder gives the files of known kinds below it, in order and without hidden ones; a quoted
    pattern those that match. With gpt2's ids or another's; empty documents are dropped."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for i, name in enumerate(("b.jsonl", "deep/a.JSONL", ".hidden.jsonl", "deep/notes.pdf")):
        texts = ["", " \n", *docs[i * 50:i * 50 + 50]]
        (tmp_path / "texts" / name).write_text(jsonl(texts))
    _, _, found = made("texts", "--val_fraction=0.1")
    assert found["val"] == [t for t in docs[:100] if bins.is_validation(t, 0.1)]
    assert everything(found) == sorted(docs[:100])
    for pattern in ("texts/**/*.[jJ]*", "tex*"):
        assert made(pattern, "--val_fraction=0.1")[2] == found
    assert "no such files" in refuse(prepare.main, "text", "none/*.txt", "--name=y", cwd=tmp_path)
    (tmp_path / "empty.txt").mkdir()
    line = refuse(prepare.main, "text", "empty.txt", "--name=y", cwd=tmp_path)
    assert "no file of a known kind" in line and ".jsonl" in line


def test_rows_without_text_are_skipped_and_counted(tmp_path, made, capsys, docs):
    """Null, missing and other values at any place: the preparation goes on, meta.json and one line
    count them."""
    rows = [{"text": text} for text in docs[:100]]
    for at, row in ((0, {"text": None}), (50, {}), (51, {"text": 3}), (104, {"text": None})):
        rows.insert(at, row)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"text": [row.get("text") if row.get("text") != 3 else None
                                      for row in rows]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        meta, _, found = made(name, "--val_fraction=0.1")
        assert meta["sources"]["text"]["skipped"] == 4 and everything(found) == sorted(docs[:100])
        assert "4 rows without text were skipped" in capsys.readouterr().out


def test_separators(tmp_path, made, docs):
    """Lines that are <|endoftext|>, or --separator, end documents and never become text: not in
    files of text, which are then cut nowhere else, nor in rows. Elsewhere in a line it is text."""
    stories = [f"{text}\n\nIt says {END_OF_TEXT} here." for text in docs[:60]]
    stories[7] = "\n\n".join(docs[60:200])  # longer than what is cut in files without separators
    assert len(stories[7]) > 2 * formats.PIECE
    for line, options in ((END_OF_TEXT, []), (f"  {END_OF_TEXT} ", []),
                          ("=== next ===", ["--separator=" + "=== next ==="])):
        (tmp_path / "a.txt").write_text(f"\n{line}\n".join(stories) + f"\n{line}")
        _, tok, found = made("a.txt", *options)
        assert everything(found) == sorted(stories)
    (tmp_path / "a.jsonl").write_text(jsonl([f"{END_OF_TEXT}\n".join(f"{s}\n" for s in stories)]))
    _, _, found = made("a.jsonl")
    assert [text.strip("\n") for text in everything(found)] == sorted(stories)


def test_text_without_blank_lines_is_cut(docs):
    """At lines where there are some, else at sentences, at words, or anywhere; nothing is lost and
    no piece is longer than four times the size."""
    lines = "\n".join(line for text in docs for line in text.splitlines() if line.strip())
    flat = " ".join(lines.split())
    hindi = "राम घर गया। सीता वन में फूल चुन रही थी। " * 2000
    for text, ends in ((lines, r"\n\Z"), (flat, r"[.!?]['\")\]]*\s\Z"), (hindi, r"। \Z"),
                       (re.sub(r"[.!?\n]", "", flat), r"\s\Z"), ("x" * 100_000, "x")):
        pieces = formats.cut(text, formats.PIECE)
        assert "".join(pieces) == text and len(pieces) > 2
        assert all(len(piece) <= 4 * formats.PIECE for piece in pieces)
        assert all(len(piece) >= formats.PIECE and re.search(ends, piece) for piece in pieces[:-1])


def test_chunks_do_not_matter(docs):
    """A file of text gives the same documents however it is read, separators included."""
    plain = "\n\n".join(docs)
    for text in (plain, f"\n{END_OF_TEXT}\n".join(docs)):
        whole = list(formats.plain_text([text], sources.SEPARATOR))
        assert "\n\n".join(whole).replace("\n", "") == text.replace(END_OF_TEXT, "").replace(
            "\n", "")
        for size in (45_000, 70_001):
            chunks = [text[i:i + size] for i in range(0, len(text), size)]
            assert list(formats.plain_text(chunks, sources.SEPARATOR)) == whole


# ---- two sides ---------------------------------------------------------------------------------

def test_equal_documents_stay_on_one_side(tmp_path, made, docs):
    """Documents that occur many times are never on both sides."""
    (tmp_path / "a.jsonl").write_text(jsonl(docs[:100] * 3))
    _, _, found = made("a.jsonl", "--val_fraction=0.3")
    assert len(everything(found)) == 300 and not set(found["train"]) & set(found["val"])


def test_a_small_corpus_has_two_sides(tmp_path, made, capsys, docs):
    """However few documents, even one, validation gets about its share, by default too; which part
    follows from the text alone, not from file names or order."""
    text = "\n\n".join(docs)
    files = {f"{i}.txt": text[i * 15_000:(i + 1) * 15_000].replace("\n\n", "\n") for i in range(9)}
    for name, part in files.items():
        (tmp_path / name).write_text(part)
    names = sorted(files)
    (tmp_path / "one.jsonl").write_text(jsonl([docs[0] * 3]))
    (tmp_path / "two.jsonl").write_text(jsonl([docs[0], "\n\n".join(docs[1:90])]))
    sides = {}
    for given in (names, names[::-1], ["one.jsonl"], ["two.jsonl"]):
        for fraction in ("0.02", "0.001", "0.9999"):
            meta, _, found = made(*given, f"--val_fraction={fraction}", "--tokenizer=bpe:257")
            assert found["train"] and found["val"] and not set(found["train"]) & set(found["val"])
            sides.setdefault((*sorted(given), fraction), []).append(set(found["val"]))
            if fraction == "0.02":
                share = meta["text_bytes"]["val"] / sum(meta["text_bytes"].values())
                assert 0.002 < share < 0.15, given
    assert all(len(some) == 1 or some[0] == some[1] for some in sides.values())
    assert "few documents, all on one side at --val_fraction=0.02: cut" in capsys.readouterr().out


# ---- tokenizers --------------------------------------------------------------------------------

HINDI = ("हिन्दी में यह एक छोटी कहानी है। "
         "बच्चों ने नदी के किनारे मिट्टी के घर बनाये और खूब खेले।\n\n")
MALAYALAM = ("മലയാളത്തിൽ ഇതൊരു ചെറിയ കഥയാണ്. "
             "കുട്ടികൾ പുഴയുടെ തീരത്ത് മണ്ണുകൊണ്ട് വീടുകൾ ഉണ്ടാക്കി.\n\n")


def test_patterns(tmp_path, made, refuse, capsys):
    """The default says when it cuts words at vowel signs; --pattern=indic does not cut there, is
    recorded, and says nothing. Words of Hindi and Malayalam then are one token each."""
    (tmp_path / "hi.txt").write_text(HINDI * 300)
    (tmp_path / "ml.txt").write_text(MALAYALAM * 300)
    sizes = {}
    for pattern in ("gpt2", "gpt4", "indic"):
        size = "--tokenizer=bpe:" + ("425" if pattern == "indic" else "345")
        meta, tok, _ = made("hi.txt", "ml.txt", size, f"--pattern={pattern}")
        assert meta["tokenizer"]["pattern"] == tok.pattern == pattern
        said = capsys.readouterr().out
        assert ("of the letters of this text are marks" in said) == (pattern != "indic")
        sizes[pattern] = sum(meta["text_bytes"].values()) / sum(meta["tokens"].values())
    assert len(tok.encode(" बच्चों")) == len(tok.encode(" കുട്ടികൾ")) == 1
    assert sizes["indic"] > 2 * sizes["gpt2"]
    assert made("hi.txt", "--tokenizer=bpe:300")[0]["tokenizer"]["pattern"] == "gpt2"
    assert "--pattern=indic keeps them whole" in capsys.readouterr().out
    line = refuse(prepare.main, "text", "hi.txt", "--name=y", "--tokenizer=unicode",
                  "--pattern=indic", cwd=tmp_path)
    assert "--pattern is for a trained bpe:N" in line


def test_what_a_code_needs_to_know(tmp_path, made, gpt2, capsys, docs):
    """The last lines: GPT-2's 72 tokens longer than 16 bytes and 44 that share their code, by
    script; the indic words are Devanagari's."""
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    made("a.jsonl", "--tokenizer=gpt2")
    said = capsys.readouterr().out
    assert re.search(r"P = 16: 72 are longer \(.*Latin \d+.*\); 44 share them with another", said)
    assert re.search(r"P = 32: 14 are longer \(.*\); 17 share them with another", said)
    (tmp_path / "हिन्दी.txt").write_text(HINDI * 300)
    made("हिन्दी.txt", "--tokenizer=bpe:335", "--pattern=indic")
    assert re.search(r"P = 16: \d+ are longer \(Devanagari \d+", capsys.readouterr().out)


def test_a_tokenizer_of_hugging_face(tmp_path, made, docs):
    """--tokenizer=FILE.json: its ids on disk, the file once and packed in meta.json, and the text
    comes back; documents are ended by its own special token."""
    (tmp_path / "mine.json").write_text(json.dumps(test_tokenizer.byte_level(docs)))
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    meta, tok, found = made("a.jsonl", "--tokenizer=mine.json", "--val_fraction=0.1")
    assert everything(found) == sorted(docs)
    assert token_bytes(tok)[tok.eot] == END_OF_TEXT.encode() and tok.vocab_size == 901
    assert meta["tokenizer"].keys() == {"name", "tokenizer.json"} and meta["sample"] is None
    assert meta["versions"]["tokenizers"] == version("tokenizers")


def test_the_unicode_tokenizer(tmp_path, made, docs):
    """--tokenizer=unicode: 65,536 ids in uint16; the text comes back."""
    (tmp_path / "a.jsonl").write_text(jsonl(docs[:300]))
    meta, tok, found = made("a.jsonl", "--tokenizer=unicode")
    assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", "unicode", 65536)
    assert everything(found) == sorted(docs[:300])


# ---- nanoGPT's bins ----------------------------------------------------------------------------

def nanogpt_folder(folder, ids, meta=None):
    """A folder as nanoGPT's prepare.py leaves it."""
    folder.mkdir()
    for split, some in zip(("train", "val"), ids):
        np.array(some, np.uint16).tofile(folder / f"{split}.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))


class Trap:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_bins(tmp_path, call, refuse, gpt2, docs):
    """nanoGPT's data is adopted as it is: GPT-2's ids, or the characters of its meta.pkl."""
    sides = [[i for text in some for i in (*gpt2.encode(text), gpt2.eot)]
             for some in (docs[:90], docs[90:100])]
    nanogpt_folder(tmp_path / "openwebtext", sides)
    assert call(prepare.main, "bins", "openwebtext", "--name=owt", cwd=tmp_path) == 0
    meta, tok, found = check(tmp_path / "data" / "owt")
    assert tok.name == "gpt2" and (found["train"], found["val"]) == (docs[:90], docs[90:100])

    text = "\n\n".join(docs[:100])
    characters = sorted(set(text))
    ids = [characters.index(c) for c in text]
    tables = {"vocab_size": len(characters), "itos": dict(enumerate(characters)),
              "stoi": {c: i for i, c in enumerate(characters)}}
    nanogpt_folder(tmp_path / "shakespeare_char", (ids[:9000], ids[9000:]), tables)
    assert call(prepare.main, "bins", "shakespeare_char", "--name=chars", cwd=tmp_path) == 0
    meta, tok, ids = load(tmp_path / "data" / "chars")
    assert tok.decode(ids["train"].tolist()) == text[:9000]
    assert tok.decode(tok.encode(text)) == text and tok.vocab_size == len(characters) + 1
    assert meta["text_bytes"]["train"] == len(text[:9000].encode())
    assert meta["documents"] == {"train": 1, "val": 1}
    with pytest.raises(Exception, match="'क' is not one of the"):
        tok.encode("क")


@pytest.mark.parametrize("ids, table, says", [
    (([1, 2], [60_000]), None, "val.bin: the id 60,000 is none of the 50,257 of gpt2"),
    (([0, 5], [1]), {"itos": {0: "a", 1: "b"}}, "the id 5 is none of the 3 of chars"),
    (([0], []), {"itos": {0: "a"}}, "val.bin: there is nothing in it"),
    (([0], [0]), {"itos": {0: "a", 1: Trap()}}, "it would run"),
    (([0], [0]), {"itos": {0: "ab"}}, "single characters"), (([0], [0]), {"stoi": {}}, "KeyError"),
    (([0], [0]), b"\x80nonsense", "meta.pkl: not nanoGPT's table of characters"),
    (([0], [0]), [], "not nanoGPT's table")])
def test_bins_that_are_none(tmp_path, refuse, gpt2, ids, table, says):
    """Ids beyond the vocabulary, an empty file, a table that is none or would run code: one line,
    nothing run, nothing left."""
    nanogpt_folder(tmp_path / "theirs", ids, table)
    assert says in refuse(prepare.main, "bins", "theirs", "--name=x", cwd=tmp_path)
    assert not (tmp_path / "trapped").exists()


# ---- what is kept ------------------------------------------------------------------------------

def test_killed_preparation_leaves_nothing_that_looks_finished(tmp_path, small_data, docs):
    """SIGKILL while it encodes: no data/NAME. Another command for the same name is then refused,
    and with --overwrite starts over."""
    (tmp_path / "big.txt").write_text("\n\n".join(docs) * 40)
    process = subprocess.Popen(command("prepare.py", "text", "big.txt", "--name=small",
                                       "--tokenizer=bpe:260"),
                               cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half_done = tmp_path / "data" / "small.partial" / "train.bin"
    while not (half_done.exists() and half_done.stat().st_size):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    other = ["text", small_data / "docs.jsonl", "--name=small", "--tokenizer=bpe:512",
             "--val_fraction=0.1"]
    line = error_line(script("prepare.py", *other, "--overwrite", cwd=tmp_path, status=2).stderr)
    assert f"small.partial is in use by process {process.pid}" in line
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.rglob("meta.json"))
    partial = tmp_path / "data" / "small.partial"
    before = tree(partial)
    line = error_line(script("prepare.py", *other, cwd=tmp_path, status=2).stderr)
    assert "prepare.py text big.txt --name=small --tokenizer=bpe:260" in line
    assert "--overwrite" in line and tree(partial) == before
    script("prepare.py", *other, "--overwrite", cwd=tmp_path)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["small"]
    for name in ("train.bin", "val.bin"):
        raw = (small_data / "data" / "small" / name).read_bytes()
        assert (tmp_path / "data" / "small" / name).read_bytes() == raw


def test_existing_data_is_kept_unless_told(tmp_path, call, refuse, docs):
    """A second preparation of a name is refused; --overwrite replaces it, but not when the new text
    turns out bad."""
    for name, texts in (("one", docs[:200]), ("two", docs[200:400])):
        (tmp_path / f"{name}.jsonl").write_text(jsonl(texts))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    options = ["--name=x", "--tokenizer=bpe:300", "--val_fraction=0.2"]
    assert call(prepare.main, "text", "one.jsonl", *options, cwd=tmp_path) == 0
    line = refuse(prepare.main, "text", "two.jsonl", *options, cwd=tmp_path)
    assert "exists; --overwrite replaces it" in line
    options += ["--overwrite"]
    assert "UTF-8" in refuse(prepare.main, "text", "bad.txt", *options, cwd=tmp_path)
    assert call(prepare.main, "text", "two.jsonl", *options, cwd=tmp_path) == 0
    _, _, found = check(tmp_path / "data" / "x")
    assert set(found["train"] + found["val"]) == set(docs[200:400])


def test_what_is_not_ours_is_never_replaced(tmp_path, call, refuse, docs):
    """A folder with the input, with a stranger's file beside ours or with nothing of ours is left
    alone, --overwrite or not; so is one that changes in the meantime."""
    data = tmp_path / "data"
    (data / "shakespeare").mkdir(parents=True)
    (data / "shakespeare" / "input.txt").write_text("\n\n".join(docs))
    options = ["--tokenizer=bpe:300", "--overwrite"]
    line = refuse(prepare.main, "text", "data/shakespeare/input.txt", "--name=shakespeare",
                  *options, cwd=tmp_path)
    assert "what prepare.py did not make" in line and "choose another --name" in line
    text = "text", "data/shakespeare/input.txt", "--name=x", *options
    assert call(prepare.main, *text, cwd=tmp_path) == 0
    for name in ("notes.txt", "deep"):
        stranger = data / "x" / name
        stranger.write_text("mine") if "." in name else stranger.mkdir()
        assert "what prepare.py did not make" in refuse(prepare.main, *text, cwd=tmp_path)
        stranger.unlink() if "." in name else stranger.rmdir()
    nanogpt_folder(data / "owt", ([0, 1], [1]), {"itos": {0: "a", 1: "b"}})
    line = refuse(prepare.main, "bins", "data/owt", "--name=owt", "--overwrite", cwd=tmp_path)
    assert "choose another --name" in line
    assert call(prepare.main, "bins", "data/owt", "--name=y", cwd=tmp_path) == 0
    line = refuse(prepare.main, "bins", "data/y", "--name=y", "--overwrite", cwd=tmp_path)
    assert "lies where the result goes" in line
    (data / "x.partial").mkdir()
    (data / "x.partial" / "input.txt").write_text("\n\n".join(docs))
    line = refuse(prepare.main, "text", "data/x.partial", "--name=x", *options, cwd=tmp_path)
    assert "lies where the result goes" in line


def test_a_stranger_in_the_meantime(tmp_path, call, capsys, monkeypatch, docs):
    """A file that is put into data/NAME while its successor is made: nothing is deleted."""
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    job = "text", "a.jsonl", "--name=x", "--tokenizer=bpe:300", "--overwrite"
    assert call(prepare.main, *job, cwd=tmp_path) == 0
    stranger, encode = tmp_path / "data" / "x" / "notes.txt", bins.encode

    def slowly(*args):
        encode(*args)
        stranger.write_text("mine")
    monkeypatch.setattr(bins, "encode", slowly)
    assert call(prepare.main, *job, cwd=tmp_path) == 2
    assert "did not make" in error_line(capsys.readouterr().err) and stranger.exists()


def test_locks(tmp_path, capfd, monkeypatch):
    """A lock refuses a second process and names the first, is free when that is killed, and is
    never a file that stays in the way. Where a system has none: one warning, and none."""
    path = tmp_path / "lock"
    code = (f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from lib.run_folder import hold_lock;"
            f"lock = hold_lock({str(path)!r}, 'it'); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(Exception, match=f"^the folder is in use by process {other.pid}$"):
        hold_lock(path, "the folder")
    other.kill()
    other.wait()
    with hold_lock(path, "the folder"):
        assert path.read_text() == str(os.getpid())
    with hold_lock(path, "the folder"):
        assert capfd.readouterr().err == ""

    def no_locks(*args, **kwargs):
        raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr("filelock.lock_descriptor", no_locks)
    with hold_lock(path, "the folder"):
        assert re.fullmatch("warning: .* cannot be locked .*\n", capfd.readouterr().err)


# ---- bad input ---------------------------------------------------------------------------------

GOOD = '{"text": "The quick brown fox jumps over the lazy dog, again and again and again."}\n'
BAD_FILES = {
    "empty.txt": (b"", "too little text"),
    "blank.md": (b" \n\n \n", "too little text"),
    "latin1.txt": (b"caf\xe9 " * 3000, "latin1.txt.*UTF-8"),
    "latin1.jsonl": (GOOD.encode() + b'{"text": "caf\xe9"}\n', "latin1.jsonl.*UTF-8"),
    "utf16.txt": (("caf\xe9 " * 3000).encode("utf-16"), "utf16.txt.*UTF-8"),
    "column.jsonl": (b'{"body": "x", "id": 3}\n', "column 'text'.*body, id"),
    "number.jsonl": (b'{"text": 3}\n', "column 'text'"),
    "list.jsonl": (b"[1]\n", "column 'text' .it has: list"),
    "json.jsonl": (GOOD.encode() + b"nope\n", "line 2: not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1.*not JSON"),
    "cut.json": (b'[{"text": "a"}, {"text": ', "cut.json: not a whole JSON array"),
    "object.json": (b'{\n "data": [1]\n}\n', "line 1: not JSON"),
    "column.csv": (b"id,body\n1,x\n", "column 'text' .it has: id, body"),
    "quote.csv": (b"id,text\n1,\"\0x\n", "quote.csv|too little"),
    "plain.jsonl.gz": (b"hello", "plain.jsonl.gz: damaged gz"),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 50)[:-20], "cut.jsonl.gz: damaged gz"),
    "plain.txt.zst": (b"hello" * 9, "plain.txt.zst: damaged zst"),
    "cut.txt.zst": (pack_zst(GOOD.encode() * 50)[:-9], "cut.txt.zst: damaged zst"),
    "plain.parquet": (b"hello" * 100, "plain.parquet: not a parquet"),
    "column.parquet": (pa.table({"body": ["x"]}), "no column 'text'.*body"),
    "number.parquet": (pa.table({"text": [1, 2]}), "column 'text' is not text but int64"),
    "lists.parquet": (pa.table({"text": [["a"]]}), "column 'text' is not text but list"),
    "rowless.parquet": (pa.table({"text": pa.array([], pa.string())}), "too little text"),
    "text.pdf": (b"%PDF", "text.pdf: unknown kind"),
    "one.txt": (b"x", "too little text for training and validation: 1 characters"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, refuse, name):
    """A file that cannot be used is one line that names what is wrong, and no data folder."""
    content, says = BAD_FILES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(content, tmp_path / name)
    line = refuse(prepare.main, "text", name, "--name=x", "--tokenizer=bpe:260", cwd=tmp_path)
    assert re.search(says, line)


def test_a_bad_file_among_good_ones(tmp_path, refuse, docs):
    """The column of each file is looked at before the first is read to its end."""
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    (tmp_path / "b.jsonl").write_text(jsonl(docs, "body"))
    line = refuse(prepare.main, "text", "a.jsonl", "b.jsonl", "--name=x", cwd=tmp_path)
    assert line == ("error: b.jsonl: no text in column 'text' (it has: body); "
                    "choose with --column")


@pytest.mark.parametrize("options, says", [
    ("", "--name"), ("--name=../x", "plain folder name"), ("--name=", "plain folder name"),
    ("--name=x.lock", "plain folder name"), ("--name=a/b", "plain folder name"),
    ("--name=.x", "plain folder name"), ("--name=x --separator=", "separator"),
    ("--name=x --tokenizer=word", "unknown tokenizer 'word' (gpt2, unicode, bpe:N"),
    ("--name=x --tokenizer=gpt", "unknown tokenizer 'gpt'"),
    ("--name=x --tokenizer=bpe:10", "too small"), ("--name=x --tokenizer=bpe:60000", "gives only"),
    ("--name=x --tokenizer=bpe:" + "9" * 30, "bpe"),
    ("--name=x --tokenizer=none.json", "none.json: no such file"),
    ("--name=x --tokenizer=docs.json", "docs.json: not a tokenizer.json"),
    ("--name=x --val_fraction=1", "val_fraction"), ("--name=x --val_fraction=nan", "val_fraction"),
    ("--name=x --nane=y", "nane"), ("--name=x --pattern=hindi", "pattern"),
    ("absent.txt --name=x", "absent.txt: no such file")])
def test_bad_options(small_data, tmp_path, refuse, options, says):
    """An option that cannot be meant is one line, and no data folder."""
    (tmp_path / "docs.json").write_text('{"text": "no vocabulary"}')
    argv = ["--tokenizer=bpe:300"] * ("tokenizer" not in options)
    argv += [str(small_data / "docs.jsonl"), *options.split()]
    assert says in refuse(prepare.main, "text", *argv, cwd=tmp_path)


@pytest.mark.parametrize("tokens", ["0", "-3", "1.5", "many", "nan", "inf"])
def test_bad_token_counts(tmp_path, refuse, tokens):
    assert "--tokens" in refuse(prepare.main, "fineweb-edu", f"--tokens={tokens}", cwd=tmp_path)


@pytest.mark.parametrize("name", ["कहानी", "my-data.v2", "_x"])
def test_names_of_any_script(tmp_path, monkeypatch, name):
    """A plain name may have marks and dots."""
    monkeypatch.chdir(tmp_path)
    prepare.check_place(argparse.Namespace(name=name, overwrite=False), [])


def test_val_tokens_go_with_tokens(tmp_path, refuse):
    assert "--tokens" in refuse(prepare.main, "hub", "a/b", "--val_tokens=9", cwd=tmp_path)


def test_data_is_a_file(tmp_path, refuse, small_data):
    (tmp_path / "data").write_text("mine")
    refuse(prepare.main, "text", small_data / "docs.jsonl", "--name=x", "--tokenizer=bpe:300",
           cwd=tmp_path)
    assert (tmp_path / "data").read_text() == "mine"


def test_real_process_ends_in_one_line(tmp_path):
    """As a command: exit status 2, one line and no traceback on standard error, nothing on standard
    output, nothing written."""
    done = script("prepare.py", "text", "absent.txt", "--name=x", cwd=tmp_path, status=2)
    assert done.stderr == "error: absent.txt: no such file\n"
    assert done.stdout == "" and not tree(tmp_path)


def test_no_vocabulary_no_network(tmp_path, small_data):
    """Where tiktoken has no copy of GPT-2's vocabulary and cannot fetch one, one line names
    TIKTOKEN_CACHE_DIR."""
    (tmp_path / "work").mkdir()
    nowhere = dict.fromkeys(["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"],
                            "http://127.0.0.1:9")
    done = script("prepare.py", "text", small_data / "docs.jsonl", "--name=x", "--tokenizer=gpt2",
                  cwd=tmp_path / "work", status=2, TIKTOKEN_CACHE_DIR=str(tmp_path / "cache"),
                  **nowhere)
    line = error_line(done.stderr)
    assert "TIKTOKEN_CACHE_DIR" in line and str(tmp_path / "cache") in line
    assert not tree(tmp_path / "work")


def test_a_damaged_download_names_the_cache(tmp_path, monkeypatch):
    """tiktoken's check of what it fetched fails: one line that names its cache."""
    def damaged(name):
        raise ValueError("Hash mismatch for data downloaded from https://example.org/encoder.json")
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", damaged)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=f"Hash mismatch.*its cache is {tmp_path}/cache"):
        tokenizer.gpt2()
