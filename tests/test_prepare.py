"""prepare.py: text -> tokens on disk. Its main in this process on real text, and as a command."""
import ast
import csv
import gzip
import hashlib
import io
import json
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
from lib import text, tokenizer
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
    assert {p.name for p in folder.iterdir()} - {"lock"} == {"meta.json", "train.bin", "val.bin"}
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
    assert all(prepare.is_validation(text, 0.02) == (split == "val")
               for split in found for text in found[split])
    own = [ast.get_docstring(ast.parse(open(module.__file__).read()))
           for module in (ast, gzip, json)]
    assert set(own) <= set(texts)


def test_docstrings_follow_from_python_and_requirements(tmp_path, monkeypatch, capsys):
    """The text depends on no other package, nor on where one lies: each that is read is pinned, a
    stranger beside it and its tests change nothing; one that is missing is one line."""
    pinned = dict(line.split("#")[0].strip().split("==")
                  for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    for package in text.PACKAGES:
        assert pinned[package.lower()] == version(package).split("+")[0]
    installed = Path(pq.__file__).parents[2]
    here = tmp_path / "here"
    shutil.copytree(installed / "tqdm", here / "tqdm")
    (here / "tqdm" / "tests").mkdir()
    (here / "tqdm" / "tests" / "more.py").write_text('"""A test."""')
    (here / "stranger.py").write_text('"""A stranger."""')
    monkeypatch.setattr(text, "PACKAGES", ("tqdm",))
    monkeypatch.setattr(sys, "stdlib_module_names", {"json", "tkinter"})
    identity = text.docstrings().identity
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(text, "PACKAGES", ("tqdm", "not_here"))
    capsys.readouterr()
    assert text.docstrings().identity == identity
    assert capsys.readouterr().out.startswith("docstrings: without not_here, which requirements")


def test_documents_come_back(small_data, docs):
    """The bins decode to the documents, in order, each followed by <|endoftext|>; a document's hash
    alone decides its side. The tokenizer is the one that the training documents give, and not the
    one that all documents give."""
    _, tok, found = check(small_data / "data" / "small")
    for split, is_val in (("train", False), ("val", True)):
        assert found[split] == [text for text in docs if prepare.is_validation(text, 0.1) == is_val]
    assert token_bytes(tok) == token_bytes(train_bpe(found["train"], 512))
    assert token_bytes(tok) != token_bytes(train_bpe(docs, 512))


@pytest.mark.parametrize("V, dtype", [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_fit_their_type(tmp_path, bpe, V, dtype):
    """uint16 holds vocabularies up to 65,536, the last id included; beyond, uint32."""
    class Padded:  # the trained BPE with ids moved to the end of a vocabulary of V
        vocab_size, eot = V, V - 1
        encode_batch = staticmethod(bpe.encode_batch)
    one = text.Source("one", None, lambda: 0, lambda position: iter([(["some text"], 1.0, 1)]))
    counts = {"train": 0, "val": 0}
    state = {key: counts.copy() for key in ("tokens", "documents", "text_bytes")}
    state |= {"split": {"fraction": 0.02, "size": None},
              "sources": {"one": {"position": 0, "used": 0, "skipped": 0} | counts
                          | {"documents": 0, "tokens": 0}}}
    prepare.encode(tmp_path, [one], Padded, dict.fromkeys(counts, float("inf")), state)
    ids = np.fromfile(tmp_path / "train.bin", dtype)
    assert tokenizer.id_type(Padded) == dtype and ids.tolist() == [*bpe.encode("some text"), V - 1]


# ---- files -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pieces(docs):
    """The docstrings as documents of 10,000 characters and more."""
    whole = "\n\n".join(docs)
    found = list(text.plain_text([whole[:50_000], whole[50_000:]], text.SEPARATOR))
    assert len(found) > 10
    return found


def files_of(pieces):
    """{file name: its bytes} of every kind with the same documents."""
    whole = "\n\n".join(pieces).encode()
    rows = [{"id": i, "text": text} for i, text in enumerate(pieces)]
    lines = jsonl(pieces).encode()
    tables = {}
    for kind, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ("id", "text"), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
        tables[kind] = out.getvalue().encode()
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(pieces).dictionary_encode()}), sink)
    found = {"a.txt": whole, "a.md": whole, "a.jsonl": lines, "lines.json": lines,
             "a.json": json.dumps(rows, indent=1), "strings.json": json.dumps(pieces),
             "data.json": json.dumps({"version": 1, "data": rows}),
             "ids.json": json.dumps({f"id{i}": row for i, row in enumerate(rows)}, indent=1),
             "a.csv": tables["csv"], "a.tsv": tables["tsv"], "A.TXT": whole, "a.Jsonl": lines,
             "a.txt.gz": gzip.compress(whole), "a.jsonl.GZ": gzip.compress(lines),
             "a.csv.zst": pack_zst(tables["csv"]), "a.txt.zst": pack_zst(whole),
             "bom.txt": b"\xef\xbb\xbf" + whole, "bom.jsonl": b"\xef\xbb\xbf" + lines,
             "crlf.txt": whole.replace(b"\n", b"\r\n"), "a.parquet": sink.getvalue(),
             "crlf.jsonl": jsonl(p.replace("\n", "\r\n") for p in pieces),
             "nulls.jsonl": jsonl([None] * 600) + jsonl(pieces)}
    return {name: raw.encode() if isinstance(raw, str) else raw for name, raw in found.items()}


def read_all(paths, column="text"):
    """The documents of files."""
    source = text.files(paths, column)
    return [text for batch in source.read(source.start()) for text in batch.documents]


def test_every_kind_of_file_gives_the_same_documents(tmp_path, made, pieces, docs):
    """Text, lines and values of JSON, tables and parquet, packed or not, endings in any case, with
    a byte order mark or CRLF or nulls before: the same documents, and so the same bins."""
    for name, raw in files_of(pieces).items():
        (tmp_path / name).write_bytes(raw)
        assert read_all([tmp_path / name]) == pieces, name
    results = [made(name, "--val_fraction=0.2") for name in ("a.txt", "a.csv.zst", "a.parquet")]
    assert results[0][0]["sha256"] == results[1][0]["sha256"] == results[2][0]["sha256"]
    assert everything(results[0][2]) == sorted(pieces)
    (tmp_path / "one.json").write_text(json.dumps({"id": 1, "text": docs[0]}, indent=1))
    assert read_all([tmp_path / "one.json"]) == docs[:1]


def test_a_source_goes_on_from_any_position(tmp_path, monkeypatch, docs):
    """Read on from any of its positions, a source gives exactly what follows, over files, lists of
    rows and row groups."""
    monkeypatch.setattr(text, "ROWS", 20)
    monkeypatch.setattr(text, "BATCH", 10_000)
    table = pa.table({"text": docs[:200]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(docs[200:400]).encode()))
    (tmp_path / "c.txt").write_text("\n\n".join(docs[400:]))
    source = text.files(sorted(tmp_path.iterdir()), "text")
    whole = list(source.read(source.start()))
    assert len(whole) > 10 and [t for b in whole for t in b.documents][:400] == docs[:400]
    for i, batch in enumerate(whole):
        rest = [t for b in source.read(batch.position) for t in b.documents]
        assert rest == [t for b in whole[i + 1:] for t in b.documents]


def test_folders_links_and_patterns(tmp_path, made, refuse, docs):
    """A folder gives the files of known kinds below it, in order and without hidden ones; a link to
    a folder is followed, once; one to nothing is named. A quoted pattern gives those that match.
    Empty documents are dropped."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for i, name in enumerate(("b.jsonl", "deep/a.JSONL", ".hidden.jsonl", "deep/notes.pdf")):
        texts = ["", " \n", *docs[i * 50:i * 50 + 50]]
        (tmp_path / "texts" / name).write_text(jsonl(texts))
    _, _, found = made("texts", "--val_fraction=0.1")
    assert found["val"] == [t for t in docs[:100] if prepare.is_validation(t, 0.1)]
    assert everything(found) == sorted(docs[:100])
    for pattern in ("texts/**/*.[jJ]*", "tex*"):
        assert made(pattern, "--val_fraction=0.1")[2] == found
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "deep" / "loop").symlink_to(tmp_path / "texts")
    assert made("links", "--val_fraction=0.1")[2] == found
    (tmp_path / "links" / "gone.txt").symlink_to("annex/object")
    with pytest.raises(Exception, match="links/gone.txt is a link to nothing"):
        text.expand([tmp_path / "links"])
    (tmp_path / "links" / "gone.txt").unlink()
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
    meta, _, found = made("a.jsonl", "--val_fraction=0.1")
    assert meta["sources"]["text"]["skipped"] == 4 and everything(found) == sorted(docs[:100])
    assert "4 rows without text were skipped" in capsys.readouterr().out


def test_separators(tmp_path, made, docs):
    """Lines that are <|endoftext|>, or --separator, end documents and never become text: not in
    files of text, which are then cut nowhere else, nor in rows. Elsewhere in a line it is text."""
    stories = [f"{text}\n\nIt says {END_OF_TEXT} here." for text in docs[:60]]
    stories[7] = "\n\n".join(docs[60:200])  # longer than what is cut in files without separators
    assert len(stories[7]) > 2 * text.PIECE
    for line, options in ((f"  {END_OF_TEXT} ", []),
                          ("=== next ===", ["--separator=" + "=== next ==="])):
        (tmp_path / "a.txt").write_text(f"\n{line}\n".join(stories) + f"\n{line}")
        assert everything(made("a.txt", *options)[2]) == sorted(stories)
    (tmp_path / "a.jsonl").write_text(jsonl([f"{END_OF_TEXT}\n".join(f"{s}\n" for s in stories)]))
    assert [text.strip("\n") for text in read_all([tmp_path / "a.jsonl"])] == stories


def test_text_is_cut(docs):
    """Without blank lines: at lines, else at sentences, at words, or anywhere; nothing is lost, no
    piece is longer than four times the size, and it does not matter how a file is read."""
    lines = "\n".join(line for text in docs for line in text.splitlines() if line.strip())
    flat = " ".join(lines.split())
    hindi = "राम घर गया। सीता वन में फूल चुन रही थी। " * 2000
    for whole, ends in ((lines, r"\n\Z"), (flat, r"[.!?]['\")\]]*\s\Z"), (hindi, r"। \Z"),
                        (re.sub(r"[.!?\n]", "", flat), r"\s\Z"), ("x" * 100_000, "x")):
        pieces = text.cut(whole, text.PIECE)
        assert "".join(pieces) == whole and len(pieces) > 2
        assert all(len(piece) <= 4 * text.PIECE for piece in pieces)
        assert all(len(piece) >= text.PIECE and re.search(ends, piece) for piece in pieces[:-1])
    for whole in ("\n\n".join(docs), f"\n{END_OF_TEXT}\n".join(docs)):
        found = list(text.plain_text([whole], text.SEPARATOR))
        chunks = [whole[i:i + 45_000] for i in range(0, len(whole), 45_000)]
        assert list(text.plain_text(chunks, text.SEPARATOR)) == found


def test_a_small_corpus_has_two_sides(tmp_path, made, capsys, docs):
    """However few documents, even one, validation gets about its share; which part follows from the
    text alone, not from file names or order. Equal documents stay on one side."""
    whole = "\n\n".join(docs)
    for i in range(9):
        part = whole[i * 15_000:(i + 1) * 15_000].replace("\n\n", "\n")
        (tmp_path / f"{i}.txt").write_text(part)
    names = [f"{i}.txt" for i in range(9)]
    (tmp_path / "one.jsonl").write_text(jsonl([docs[0] * 3]))
    (tmp_path / "two.jsonl").write_text(jsonl([docs[0], "\n\n".join(docs[1:90])] * 3))
    sides = {}
    for given in (names, names[::-1], ["one.jsonl"], ["two.jsonl"]):
        for fraction in ("0.02", "0.9999"):
            meta, _, found = made(*given, f"--val_fraction={fraction}", "--tokenizer=bpe:257")
            assert found["train"] and found["val"] and not set(found["train"]) & set(found["val"])
            sides.setdefault((*sorted(given), fraction), []).append(set(found["val"]))
            share = meta["text_bytes"]["val"] / sum(meta["text_bytes"].values())
            assert 0.002 < share < 0.15 if fraction == "0.02" else share > 0.8, given
    assert all(some[0] == some[-1] for some in sides.values())
    assert "few documents, all on one side at --val_fraction=0.02: cut" in capsys.readouterr().out


# ---- tokenizers --------------------------------------------------------------------------------

HINDI = ("हिन्दी में यह एक छोटी कहानी है। "
         "बच्चों ने नदी के किनारे मिट्टी के घर बनाये और खूब खेले।\n\n")


def test_patterns(tmp_path, made, refuse, capsys):
    """The default says when it cuts words at vowel signs; --pattern=indic does not cut there, is
    recorded, and says nothing. Words of Hindi then are one token each, and the last lines call them
    Devanagari's."""
    (tmp_path / "hi.txt").write_text(HINDI * 300)
    for pattern, size in (("gpt2", 300), ("indic", 335)):
        meta, tok, _ = made("hi.txt", f"--tokenizer=bpe:{size}", f"--pattern={pattern}")
        assert meta["tokenizer"]["pattern"] == tok.pattern == pattern
        said = capsys.readouterr().out
        assert ("--pattern=indic keeps them whole" in said) == (pattern != "indic")
    assert len(tok.encode(" बच्चों")) == 1
    assert re.search(r"P = 16: \d+ are longer \(Devanagari \d+", said)
    line = refuse(prepare.main, "text", "hi.txt", "--name=y", "--tokenizer=unicode",
                  "--pattern=indic", cwd=tmp_path)
    assert "--pattern is for a trained bpe:N" in line


def test_given_tokenizers(tmp_path, made, refuse, gpt2, capsys, docs):
    """--tokenizer=gpt2, unicode, FILE.json and a folder that has one: the text comes back, and the
    last lines say how many tokens share a code. A folder without a tokenizer is one line."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(test_tokenizer.byte_level(docs)))
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    metas = []
    for name, vocab_size in (("gpt2", 50257), ("unicode", 65536), ("tok/tokenizer.json", 901),
                             ("tok", 901)):
        meta, tok, found = made("a.jsonl", f"--tokenizer={name}", "--val_fraction=0.1")
        assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", name, vocab_size)
        assert everything(found) == sorted(docs) and meta["kept"] == 1
        metas.append(meta)
    assert metas[2]["sha256"] == metas[3]["sha256"]
    assert metas[3]["tokenizer"].keys() == {"name", "tokenizer.json"}
    said = capsys.readouterr().out
    assert re.search(r"P = 16: 72 are longer \(.*Latin \d+.*\); 44 share them with another", said)
    (tmp_path / "bare").mkdir()
    line = refuse(prepare.main, "text", "a.jsonl", "--name=y", "--tokenizer=bare", cwd=tmp_path)
    assert "no tokenizer.json in this folder" in line


def test_a_tokenizer_that_loses_text(tmp_path, made, refuse, capsys, docs):
    """A tokenizer that has not learned a script: refused with what it loses, unless --lossy; then
    meta.json says how much is kept. A little loss is said."""
    tok = json.dumps(test_tokenizer.byte_level(docs, alphabet=[]))
    (tmp_path / "latin.json").write_text(tok)
    (tmp_path / "hi.txt").write_text(HINDI * 300)
    line = refuse(prepare.main, "text", "hi.txt", "--name=y", "--tokenizer=latin.json",
                  cwd=tmp_path)
    assert re.search("latin.json loses 7\\d.\\d % of the characters .* --lossy", line)
    meta, _, _ = load_lossy(made, "hi.txt")
    assert meta["kept"] < 0.3
    (tmp_path / "most.txt").write_text("\n\n".join(docs) + HINDI * 20)
    capsys.readouterr()
    load_lossy(made, "most.txt", lossy=False)
    assert re.search("latin.json loses \\d.\\d %", capsys.readouterr().out)


def load_lossy(made, name, lossy=True):
    """Prepare a file with latin.json; its documents do not come back."""
    options = ["--lossy"] * lossy
    with pytest.raises(AssertionError):  # text_bytes counts the text, not what came back
        made(name, "--tokenizer=latin.json", *options)
    return load(Path("data/x"))


# ---- nanoGPT's bins ----------------------------------------------------------------------------

def nanogpt_folder(folder, ids, meta=None, dtype=np.uint16):
    """A folder as nanoGPT's prepare.py leaves it."""
    folder.mkdir(exist_ok=True)
    for split, some in zip(("train", "val"), ids):
        np.array(some, dtype).tofile(folder / f"{split}.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))


class Trap:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_bins(tmp_path, call, refuse, gpt2, docs):
    """nanoGPT's data is adopted as it is: GPT-2's ids, or the characters of its meta.pkl. Ids of
    another type are named, and read with --dtype."""
    sides = [[i for text in some for i in (*gpt2.encode(text), gpt2.eot)]
             for some in (docs[:90], docs[90:100])]
    for dtype in ("uint16", "uint32", "int64"):
        nanogpt_folder(tmp_path / "owt", sides, dtype=dtype)
        options = []
        if dtype != "uint16":
            line = refuse(prepare.main, "bins", "owt", "--name=x", cwd=tmp_path)
            says = f"train.bin: every second number is 0 .* look like {dtype}: --dtype={dtype}"
            assert re.search(says, line)
            options = [f"--dtype={dtype}"]
        assert call(prepare.main, "bins", "owt", f"--name={dtype}", *options, cwd=tmp_path) == 0
        meta, tok, found = check(tmp_path / "data" / dtype)
        assert tok.name == "gpt2" and meta["dtype"] == "uint16"
        assert (found["train"], found["val"]) == (docs[:90], docs[90:100])

    whole = "\n\n".join(docs[:100])
    characters = sorted(set(whole))
    ids = [characters.index(c) for c in whole]
    tables = {"vocab_size": len(characters), "itos": dict(enumerate(characters)),
              "stoi": {c: i for i, c in enumerate(characters)}}
    nanogpt_folder(tmp_path / "shakespeare_char", (ids[:9000], ids[9000:]), tables)
    assert call(prepare.main, "bins", "shakespeare_char", "--name=chars", cwd=tmp_path) == 0
    meta, tok, ids = load(tmp_path / "data" / "chars")
    assert tok.decode(ids["train"].tolist()) == whole[:9000]
    assert tok.decode(tok.encode(whole)) == whole and tok.vocab_size == len(characters) + 1
    assert meta["text_bytes"]["train"] == len(whole[:9000].encode())
    assert meta["documents"] == {"train": 1, "val": 1}
    with pytest.raises(Exception, match="'क' is not one of the"):
        tok.encode("क")


@pytest.mark.parametrize("ids, table, says", [
    (([1, 2], [60_000]), None, "val.bin: the id 60,000 is none of the 50,257 of gpt2"),
    (([0, 5], [1]), {"itos": {0: "a", 1: "b"}}, "the id 5 is none of the 3 of chars"),
    (([0], []), {"itos": {0: "a"}}, "val.bin: there is nothing in it"),
    (([0x4E93, 0x4D55], [0]), None, "a .npy file"),
    (([20240520 & 0xFFFF, 20240520 >> 16], [0]), None, "llm.c's header"),
    (([0], [0]), {"itos": {0: "a", 1: Trap()}}, "it would run"),
    (([0], [0]), {"itos": {0: "ab"}}, "single characters"), (([0], [0]), {"stoi": {}}, "KeyError"),
    (([0], [0]), b"\x80nonsense", "meta.pkl: not nanoGPT's table of characters")])
def test_bins_that_are_none(tmp_path, refuse, gpt2, ids, table, says):
    """Ids beyond the vocabulary, an empty file, a header, a table that is none or would run code:
    one line, nothing run, nothing left."""
    nanogpt_folder(tmp_path / "theirs", ids, table)
    if says == "a .npy file":
        np.save(tmp_path / "x.npy", np.arange(9, dtype=np.uint16))
        (tmp_path / "x.npy").rename(tmp_path / "theirs" / "train.bin")
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
    partial = tmp_path / "data" / "small.partial"
    while not (partial / "state.json").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    other = ["text", small_data / "docs.jsonl", "--name=small", "--tokenizer=bpe:512",
             "--val_fraction=0.1"]
    line = error_line(script("prepare.py", *other, "--overwrite", cwd=tmp_path, status=2).stderr)
    assert "small.partial is in use by another process" in line
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.rglob("meta.json"))
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
    turns out bad. An empty folder is used; a link is followed, and stays a link."""
    for name, texts in (("one", docs[:200]), ("two", docs[200:400])):
        (tmp_path / f"{name}.jsonl").write_text(jsonl(texts))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "large" / "disk").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").symlink_to(tmp_path / "large" / "disk")
    options = ["--name=x", "--tokenizer=bpe:300", "--val_fraction=0.2"]
    assert call(prepare.main, "text", "one.jsonl", *options, cwd=tmp_path) == 0
    line = refuse(prepare.main, "text", "two.jsonl", *options, cwd=tmp_path)
    assert "exists; --overwrite replaces it" in line
    options += ["--overwrite"]
    assert "UTF-8" in refuse(prepare.main, "text", "bad.txt", *options, cwd=tmp_path)
    assert call(prepare.main, "text", "two.jsonl", *options, cwd=tmp_path) == 0
    _, _, found = check(tmp_path / "large" / "disk")
    assert set(found["train"] + found["val"]) == set(docs[200:400])
    assert [p.name for p in (tmp_path / "large").iterdir()] == ["disk"]
    assert (tmp_path / "data" / "x").is_symlink()


def test_what_is_not_ours_is_never_replaced(tmp_path, call, refuse, capsys, monkeypatch, docs):
    """A folder with the input, with a stranger's file beside ours or with nothing of ours is left
    alone, --overwrite or not; so is one that changes while its successor is made."""
    data = tmp_path / "data"
    (data / "shakespeare").mkdir(parents=True)
    (data / "shakespeare" / "input.txt").write_text("\n\n".join(docs))
    options = ["--tokenizer=bpe:300", "--overwrite"]
    line = refuse(prepare.main, "text", "data/shakespeare/input.txt", "--name=shakespeare",
                  *options, cwd=tmp_path)
    assert "lies where the result goes" in line and "choose another --name" in line
    job = "text", "data/shakespeare/input.txt", "--name=x", *options
    assert call(prepare.main, *job, cwd=tmp_path) == 0
    for name in ("notes.txt", "deep"):
        stranger = data / "x" / name
        stranger.write_text("mine") if "." in name else stranger.mkdir()
        assert "what prepare.py did not make" in refuse(prepare.main, *job, cwd=tmp_path)
        stranger.unlink() if "." in name else stranger.rmdir()
    stranger, encode = data / "x" / "notes.txt", prepare.encode

    def slowly(*args):
        encode(*args)
        stranger.write_text("mine")
    monkeypatch.setattr(prepare, "encode", slowly)
    assert call(prepare.main, *job, cwd=tmp_path) == 2
    assert "did not make" in error_line(capsys.readouterr().err) and stranger.exists()


# ---- bad input ---------------------------------------------------------------------------------

GOOD = '{"text": "The quick brown fox jumps over the lazy dog, again and again and again."}\n'
BAD_FILES = {
    "empty.txt": (b"", "too little text"),
    "latin1.txt": (b"caf\xe9 " * 3000, "latin1.txt.*UTF-8"),
    "latin1.jsonl": (GOOD.encode() + b'{"text": "caf\xe9"}\n', "latin1.jsonl.*UTF-8"),
    "column.jsonl": (b'{"body": "x", "id": 3}\n', "column 'text' .it has: body, id"),
    "number.jsonl": (b'{"text": 3}\n', "column 'text' is not text but int"),
    "list.jsonl": (b"[1]\n", "column 'text' .it has: list"),
    "json.jsonl": (GOOD.encode() + b"nope\n", "line 2: not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1.*not JSON"),
    "cut.json": (b'[{"text": "a"}, {"text": ', "cut.json: neither JSON nor lines"),
    "ids.json": (json.dumps({f"id{i}": i for i in range(999)}).encode(), "id0, .{,200} \\.\\.\\."),
    "column.csv": (b"id,body\n1,x\n", "column 'text' .it has: id, body"),
    "plain.jsonl.gz": (b"hello", "plain.jsonl.gz: damaged gz"),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 50)[:-20], "cut.jsonl.gz: damaged gz"),
    "plain.txt.zst": (b"hello" * 9, "plain.txt.zst: damaged zst"),
    "wide.txt.zst": (bytes.fromhex("28b52ffd0090") + b"\x09\0\0a", "zstd window is larger"),
    "plain.parquet": (b"hello" * 100, "plain.parquet: not a parquet"),
    "column.parquet": (pa.table({"body": ["x"]}), "no column 'text'.*body"),
    "lists.parquet": (pa.table({"text": [["a"]]}), "column 'text' is not text but list"),
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


TEXT = "text docs.jsonl --name=x"


@pytest.mark.parametrize("argv, says", [
    ("text docs.jsonl", "--name"), ("text docs.jsonl --name=a/b", "plain folder name"),
    ("text docs.jsonl --name=x.lock", "plain folder name"), (f"{TEXT} --separator=", "separator"),
    (f"{TEXT} --tokenizer=word", "unknown tokenizer 'word' (gpt2, unicode, bpe:N"),
    (f"{TEXT} --tokenizer=bpe:10", "too small"), (f"{TEXT} --tokenizer=bpe:60000", "gives only"),
    (f"{TEXT} --tokenizer=none.json", "none.json: no such file"),
    (f"{TEXT} --tokenizer=docs.json", "docs.json: not a tokenizer.json"),
    (f"{TEXT} --val_fraction=nan", "val_fraction"), (f"{TEXT} --nane=y", "nane"),
    ("text absent.txt --name=x", "absent.txt: no such file"),
    ("fineweb-edu --tokens=1.5", "--tokens"), ("fineweb-edu --tokens=inf", "--tokens"),
    ("hub a/b --val_tokens=9", "--val_tokens goes with --tokens"),
    ("fineweb-edu --mix=wikipedia=0.2", "--mix"), ("fineweb-edu --mix=cosmopedia=1", "--mix"),
    ("fineweb-edu --mix=cosmopedia=0.2 --mix=cosmopedia=0.3", "--mix")])
def test_bad_options(tmp_path, refuse, docs, argv, says):
    """An option that cannot be meant is one line, and no data folder."""
    (tmp_path / "docs.jsonl").write_text(jsonl(docs[:100]))
    (tmp_path / "docs.json").write_text('{"text": "no vocabulary"}')
    assert says in refuse(prepare.main, *argv.split(), cwd=tmp_path)


def test_real_process_ends_in_one_line(tmp_path, docs):
    """As a command: exit status 2, one line and no traceback on standard error, nothing on standard
    output, nothing written; also where tiktoken cannot fetch GPT-2's vocabulary."""
    done = script("prepare.py", "text", "absent.txt", "--name=x", cwd=tmp_path, status=2)
    assert done.stderr == "error: absent.txt: no such file\n"
    assert done.stdout == "" and not tree(tmp_path)
    nowhere = dict.fromkeys(["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"],
                            "http://127.0.0.1:9")
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    done = script("prepare.py", "text", "a.jsonl", "--name=x", "--tokenizer=gpt2", cwd=tmp_path,
                  status=2, TIKTOKEN_CACHE_DIR=str(tmp_path / "cache"), **nowhere)
    line = error_line(done.stderr)
    assert "TIKTOKEN_CACHE_DIR" in line and str(tmp_path / "cache") in line
    assert not (tmp_path / "data").exists()


def test_a_damaged_download_names_the_cache(tmp_path, monkeypatch):
    """tiktoken's check of what it fetched fails: one line that names its cache."""
    def damaged(name):
        raise ValueError("Hash mismatch for data downloaded from https://example.org/encoder.json")
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", damaged)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=f"Hash mismatch.*its cache is {tmp_path}/cache"):
        tokenizer.gpt2()
