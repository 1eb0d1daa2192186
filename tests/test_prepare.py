"""prepare.py: text -> tokens on disk. Its main in this process on real text, and as a command."""
import gzip
import hashlib
import inspect
import io
import json
import os
import pickle
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tqdm

import prepare
import test_tokenizer
from conftest import ROOT
from lib import text
from lib.errors import InputError
from lib.tokenizer import END_OF_TEXT, from_state, token_bytes, train_bpe


def check(folder):
    """What meta.json says of the bins is true. Returns (meta, tokenizer, {split: documents})."""
    assert {p.name for p in folder.iterdir()} == {"meta.json", "train.bin", "val.bin"}
    meta, found = json.loads((folder / "meta.json").read_text()), {}
    tok = from_state(meta["tokenizer"])
    for split in ("train", "val"):
        ids = np.fromfile(folder / f"{split}.bin", meta["dtype"])
        parts = np.split(ids, np.flatnonzero(ids == tok.eot) + 1)
        assert len(parts.pop()) == 0 and ids.max() < tok.vocab_size == meta["vocab_size"]
        found[split] = [tok.decode(part[:-1].tolist()) for part in parts]
        assert meta["tokens"][split] == len(ids) and meta["documents"][split] == len(parts)
        assert meta["text_bytes"][split] == sum(len(text.encode()) for text in found[split])
        assert meta["sha256"][split] == hashlib.sha256(ids.tobytes()).hexdigest()
    assert meta["command"].startswith("python prepare.py ") and "tiktoken" in meta["versions"]
    return meta, tok, found


def jsonl(texts, column="text"):
    """Texts as lines of JSON."""
    return "".join(json.dumps({column: text}) + "\n" for text in texts)


def pack_zst(raw):
    """Bytes -> zstandard: two frames, and between them one that readers skip."""
    frames = [pa.compress(part, "zstd", asbytes=True) for part in (raw[:999], raw[999:])]
    return frames[0] + bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc" + frames[1]


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


def test_docstrings(docstrings):
    """The default: millions of tokens of docstrings in bpe:4096, uint16, split 2 % by hash, nothing
    twice, meta.json true."""
    meta, tok, found = check(docstrings / "data" / "docstrings")
    assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", "bpe:4096", 4096)
    texts = found["train"] + found["val"]
    assert sum(meta["text_bytes"].values()) > 10e6 and len(texts) == len(set(texts))
    assert set(found["val"]) == {text for text in texts if prepare.place(text) < 0.02}
    assert 0.015 < len(found["val"]) / len(texts) < 0.025
    assert {inspect.getdoc(module) for module in (inspect, gzip, json)} <= set(texts)


def test_docstrings_follow_from_python_and_requirements(tmp_path, monkeypatch):
    """The text depends on no other package, nor on where one lies: each that is read is pinned;
    one that is missing is named."""
    pins = re.findall(r"^(\w+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for package in text.PACKAGES:
        assert dict(pins)[package.lower()] == version(package).split("+")[0]
    monkeypatch.setattr(text, "PACKAGES", ("tqdm",))
    monkeypatch.setattr(sys, "stdlib_module_names", {"json", "tkinter"})
    identity = text.docstrings().identity
    shutil.copytree(Path(tqdm.__file__).parent, tmp_path / "tqdm")
    monkeypatch.syspath_prepend(tmp_path)
    assert text.docstrings().identity == identity
    monkeypatch.setattr(text, "PACKAGES", ("tqdm", "not_here"))
    with pytest.raises(InputError, match="docstrings needs not_here"):
        text.docstrings()


def test_documents_come_back(small_data, docs):
    """The bins decode to the documents, in order; a document's hash alone decides its side. The
    tokenizer is the one that the training documents give, and not the one that all give."""
    _, tok, found = check(small_data / "data" / "small")
    for split, is_val in (("train", False), ("val", True)):
        assert found[split] == [text for text in docs if (prepare.place(text) < 0.1) == is_val]
    assert token_bytes(tok) == token_bytes(train_bpe(found["train"], 512))
    assert token_bytes(tok) != token_bytes(train_bpe(docs, 512))


def test_a_small_corpus_has_two_sides(tmp_path, made, capsys):
    """However few documents there are, one goes to validation, in whichever order they come. The
    last lines say which block size fits."""
    lines = [f"Sentence number {i * i} is short." for i in range(9)]
    (tmp_path / "a.jsonl").write_text(jsonl(lines))
    (tmp_path / "b.jsonl").write_text(jsonl(lines[::-1]))
    meta, _, found = made("a.jsonl", "--tokenizer=bpe:257", "--val_fraction=1e-9")
    assert everything(found) == sorted(lines) and len(found["val"]) == 1
    assert made("b.jsonl", "--tokenizer=bpe:257", "--val_fraction=1e-9")[2]["val"] == found["val"]
    fits = f"so little text; train.py --block_size={meta['tokens']['val'] - 1} does"
    assert fits in capsys.readouterr().out


def files_of(pieces):
    """{file name: its bytes} of every kind with the same documents."""
    whole = "\n\n".join(pieces).encode()
    rows = pandas.DataFrame({"id": range(len(pieces)), "text": pieces})
    lines, table = jsonl(pieces).encode(), rows.to_csv(index=False).encode()
    return {"a.md": whole, "A.TXT": whole, "a.jsonl": lines, "lines.json": lines,
            "a.json": rows.to_json(orient="records", indent=1).encode(),
            "strings.json": json.dumps(pieces).encode(), "a.csv": table,
            "a.tsv": rows.to_csv(index=False, sep="\t").encode(),
            "a.txt.gz": gzip.compress(whole), "a.jsonl.GZ": gzip.compress(lines),
            "a.csv.zst": pack_zst(table), "bom.txt": b"\xef\xbb\xbf" + whole,
            "crlf.txt": whole.replace(b"\n", b"\r\n"), "a.parquet": rows.to_parquet(),
            "crlf.jsonl": jsonl(p.replace("\n", "\r\n") for p in pieces).encode(),
            "nulls.jsonl": (jsonl([None] * 600) + jsonl(pieces)).encode()}


def read_all(path):
    """The documents of a file, folder or pattern."""
    source = text.files([path], "text")
    return [text for batch in source.batches(source.start) for text, _ in batch]


def test_every_kind_of_file_gives_the_same_documents(tmp_path, made, docs):
    """Text (cut at blank lines), lines and values of JSON, tables, parquet, packed or not, with a
    byte order mark or CRLF or nulls before: the same documents, and so the same bins."""
    pieces = list(filter(None, text.plain_text(io.StringIO("\n\n".join(docs)))))
    assert "\n\n".join(pieces) == "\n\n".join(docs) and max(map(len, pieces)) < 2 * text.PIECE
    for name, raw in files_of(pieces).items():
        (tmp_path / name).write_bytes(raw)
        assert [text for text in read_all(tmp_path / name) if text] == pieces, name
    results = [made(name, "--val_fraction=0.2") for name in ("a.md", "a.csv.zst", "a.parquet")]
    assert results[0][0]["sha256"] == results[1][0]["sha256"] == results[2][0]["sha256"]
    assert everything(results[0][2]) == sorted(pieces)
    (tmp_path / "one.json").write_text(json.dumps({"id": 1, "text": docs[0]}, indent=1))
    assert read_all(tmp_path / "one.json") == docs[:1]


def test_a_source_goes_on_from_any_position(tmp_path, monkeypatch, docs):
    """Read on from any of its positions, a source gives exactly what follows, over files, rows and
    row groups."""
    monkeypatch.setattr(text, "BATCH", 10_000)
    table = pa.table({"text": docs[:200]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(docs[200:400]).encode()))
    (tmp_path / "c.txt").write_text("\n\n".join(docs[400:]))
    source = text.files([tmp_path], "text")
    whole = [row for batch in source.batches(source.start) for row in batch]
    assert [text for text, _ in whole][:400] == docs[:400] and len(whole) > 400
    for i in (0, 1, 63, 64, 100, 199, 200, 300, 399, 400, len(whole) - 1):
        rest = [row for batch in source.batches(whole[i][1]) for row in batch]
        assert rest == whole[i + 1:]


def test_folders_links_and_patterns(tmp_path, refuse, docs):
    """A folder gives the files of known kinds below it, in order and without hidden ones and empty
    documents; a link to a folder is followed, once; one to nothing is named."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for i, name in enumerate(("b.jsonl", "deep/a.JSONL", ".hidden.jsonl", "deep/notes.pdf")):
        (tmp_path / "texts" / name).write_text(jsonl(["", " \n", *docs[i * 50:i * 50 + 50]]))
    (tmp_path / "links").mkdir()
    for link, target in (("texts/deep/loop", "texts"), ("links/all", "texts"), ("root", "links")):
        (tmp_path / link).symlink_to(tmp_path / target)
    for given in ("texts", "tex*", "links", "root", "texts/*.[jJ]*"):
        assert read_all(tmp_path / given) == docs[:50 if "*." in given else 100], given
    for given in ("none/*.txt", "root/none"):
        line = refuse(prepare.main, "text", given, "--name=y", cwd=tmp_path)
        assert f"{given}: no such file, or none of a known kind in it" in line and ".jsonl" in line
    (tmp_path / "links" / "gone.txt").symlink_to("annex/object")
    for given in ("links", "links/*", "links/gone.txt"):
        with pytest.raises(FileNotFoundError, match="links/gone.txt"):
            read_all(tmp_path / given)


def test_rows_without_text_are_skipped_and_counted(tmp_path, made, capsys, docs):
    """Null at any place, missing and other values after the first text: the preparation goes on,
    meta.json and one line count them."""
    rows = [{"text": None}, {"text": docs[0]}, {}, {"text": 3}, {"text": docs[1]}, {"text": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta, _, found = made("a.jsonl", "--tokenizer=bpe:257")
    assert meta["sources"]["text"]["skipped"] == 4 and everything(found) == sorted(docs[:2])
    assert "4 rows without text were skipped" in capsys.readouterr().out


def test_separators(tmp_path, docs):
    """Lines that are <|endoftext|> end the documents of a text file and never become text; it is
    then cut nowhere else. Elsewhere in a line, and in rows, it is text."""
    stories = [f"{text}\n\nIt says {END_OF_TEXT} here." for text in docs[:60]]
    stories[7] = "\n\n".join(docs[60:200])  # longer than what is cut in files without separators
    assert len(stories[7]) > 2 * text.PIECE
    line = f"\n  {END_OF_TEXT} \n"
    (tmp_path / "a.txt").write_text(line.join(stories) + line)
    (tmp_path / "a.jsonl").write_text(jsonl(stories))
    assert read_all(tmp_path / "a.txt") == read_all(tmp_path / "a.jsonl") == stories


@pytest.mark.parametrize("kind, ends", [("lines", r"\n\Z"), ("flat", r"[.!?]['\")\]]*\s\Z"),
                                        ("hindi", r"। \Z"), ("words", r"\s\Z"), ("x", "x")])
def test_text_is_cut(docs, kind, ends):
    """Without blank lines: at lines, else at sentences, at words, or anywhere; nothing is lost, no
    piece is longer than four times the size."""
    flat = " ".join(" ".join(docs).split())
    whole = {"lines": "\n".join(docs).replace("\n\n", "\n"), "flat": flat, "x": "x" * 100_000,
             "hindi": HINDI.replace("\n\n", " ") * 999, "words": re.sub(r"[.!?]", "", flat)}[kind]
    pieces = text.cut(whole)
    assert "".join(pieces) == whole and len(pieces) > 2
    assert all(len(piece) <= 4 * text.PIECE for piece in pieces)
    assert all(len(piece) >= text.PIECE and re.search(ends, piece) for piece in pieces[:-1])


HINDI = ("हिन्दी में यह एक छोटी कहानी है। "
         "बच्चों ने नदी के किनारे मिट्टी के घर बनाये और खूब खेले।\n\n")


def test_given_tokenizers(tmp_path, made, refuse, capsys, gpt2, docs):
    """--tokenizer=gpt2, unicode, FILE.json, a folder that has one: the text comes back; what a code
    of bytes cannot tell apart is said by script. A folder without a tokenizer is one line."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(test_tokenizer.byte_level(docs)))
    (tmp_path / "a.jsonl").write_text(jsonl(docs[:100]))
    for name, vocab_size in (("gpt2", 50257), ("unicode", 65536), ("tok/tokenizer.json", 901),
                             ("tok", 901)):
        meta, tok, found = made("a.jsonl", f"--tokenizer={name}", "--val_fraction=0.1")
        assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", name, vocab_size)
        assert everything(found) == sorted(docs[:100]) and meta["kept"] == 1
    said = r"first 16 bytes \| longer tokens: 72 \(.*Latin 35.*share a vector: 44 \(.*Latin 6"
    assert re.search(said, capsys.readouterr().out)
    (tmp_path / "bare").mkdir()
    line = refuse(prepare.main, "text", "a.jsonl", "--name=y", "--tokenizer=bare", cwd=tmp_path)
    assert "bare/tokenizer.json is not there" in line and "merges.txt" in line


def test_a_tokenizer_that_loses_text(tmp_path, call, refuse, capsys, docs):
    """A tokenizer that has not learned a script, or drops the spaces: refused with what it loses,
    unless --lossy; then meta.json says how much is kept. A little loss is said."""
    latin = test_tokenizer.byte_level(docs, alphabet=[])
    words = latin | {"pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "hi.txt").write_text(HINDI * 300)
    (tmp_path / "most.txt").write_text("\n\n".join(docs) + HINDI * 20)
    job = "--name=x", "--tokenizer=some.json"
    for tok, file, loss in ((words, "most.txt", r"\d\d.\d % .* them ' '"),
                            (latin, "hi.txt", r"7\d.\d % .* them 'े'")):
        (tmp_path / "some.json").write_text(json.dumps(tok))
        line = refuse(prepare.main, "text", file, *job, cwd=tmp_path)
        assert re.search(f"some.json loses {loss}.* --lossy", line)
    assert call(prepare.main, "text", "hi.txt", "--lossy", *job, cwd=tmp_path) == 0
    assert json.loads((tmp_path / "data" / "x" / "meta.json").read_text())["kept"] < 0.3
    assert call(prepare.main, "text", "most.txt", "--overwrite", *job, cwd=tmp_path) == 0
    assert re.search(r"some.json loses \d.\d %", capsys.readouterr().out)


def nanogpt_folder(folder, ids, itos=None, dtype=np.uint16):
    """A folder as nanoGPT's prepare.py leaves it."""
    folder.mkdir()
    for split, some in zip(("train", "val"), ids):
        np.array(some, dtype).tofile(folder / f"{split}.bin")
    if itos is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": itos, "vocab_size": len(itos)}))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_bins(tmp_path, call, refuse, gpt2, docs, dtype):
    """nanoGPT's ids of GPT-2 are adopted as they are. Ids of another type are named, and read with
    --dtype."""
    sides = {"train": docs[:90], "val": docs[90:100]}
    ids = [gpt2.encode_batch(texts) for texts in sides.values()]
    ids = [[i for some in batch for i in (*some, gpt2.eot)] for batch in ids]
    nanogpt_folder(tmp_path / "owt", ids, dtype=dtype)
    job = ["bins", "owt", "--name=x"]
    if dtype != "uint16":
        line = refuse(prepare.main, *job, cwd=tmp_path)
        assert f"train.bin: every second number is 0: --dtype={dtype}" in line
        job.append(f"--dtype={dtype}")
    assert call(prepare.main, *job, cwd=tmp_path) == 0
    meta, tok, found = check(tmp_path / "data" / "x")
    assert (tok.name, meta["dtype"], found) == ("gpt2", "uint16", sides)


def test_bins_of_characters(tmp_path, call, docs):
    """The characters of nanoGPT's meta.pkl are the tokenizer; one that it lacks is named."""
    whole = "\n\n".join(docs[:100])
    table = dict(enumerate(sorted(set(whole))))
    ids = [list(table.values()).index(c) for c in whole]
    nanogpt_folder(tmp_path / "theirs", (ids[:9000], ids[9000:]), table)
    assert call(prepare.main, "bins", "theirs", "--name=x", cwd=tmp_path) == 0
    meta = json.loads((tmp_path / "data" / "x" / "meta.json").read_text())
    tok, ids = from_state(meta["tokenizer"]), np.fromfile("data/x/train.bin", np.uint16)
    assert tok.decode(ids) == whole[:9000] and tok.decode(tok.encode(whole)) == whole
    assert meta["text_bytes"]["train"] == len(whole[:9000].encode())
    assert meta["documents"] == {"train": 1, "val": 1}
    with pytest.raises(InputError, match="'क' is not one of the"):
        tok.encode("क")


@pytest.mark.parametrize("ids, itos, says", [
    (([1, 2], [60_000]), None, "val.bin: ids from 60,000 to 60,000, gpt2 has 50,257"),
    (([0, 5], [1]), {0: "a", 1: "b"}, "ids from 0 to 5, chars has 3"),
    (([256 * i for i in range(99)], [0]), {0: "a"}, "ids from 0 to 25,088, chars has 2"),
    (([0], []), {0: "a"}, "val.bin: 0 bytes are not ids"),
    (([0x4E93, 0x4D55, 0x5950], [0]), None, "a header stands before"),
    (([20240520 & 0xFFFF, 20240520 >> 16], [0]), None, "a header stands before"),
    (([0], [0]), {0: "a", 1: open}, "it would run io.open"),
    (([0], [0]), {0: "ab"}, "a character of its own"),
    (([0], [0]), {1: "a"}, "meta.pkl: not nanoGPT's table of characters")])
def test_bins_that_are_none(tmp_path, refuse, gpt2, ids, itos, says):
    """Ids beyond the vocabulary (also of big-endian files), an empty file, a header, a table that
    is none or would run code: one line, nothing left."""
    nanogpt_folder(tmp_path / "theirs", ids, itos)
    assert says in refuse(prepare.main, "bins", "theirs", "--name=x", cwd=tmp_path)


def test_existing_data_is_kept_unless_told(tmp_path, call, refuse, docs):
    """A second preparation of a name is refused; --overwrite replaces it, but not with bad text,
    nor where something else is in the folder. A link to an empty folder is used and stays one."""
    job, disk = ("text", "a.jsonl", "--name=x", "--tokenizer=bpe:300"), tmp_path / "large" / "disk"
    (tmp_path / "a.jsonl").write_text(jsonl(docs[:200]))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "data").mkdir()
    disk.mkdir(parents=True)
    (tmp_path / "data" / "x").symlink_to(disk)
    assert call(prepare.main, *job, cwd=tmp_path) == 0
    assert "choose another --name, or --overwrite" in refuse(prepare.main, *job, cwd=tmp_path)
    assert "UTF-8" in refuse(prepare.main, "text", "bad.txt", *job[2:], "--overwrite", cwd=tmp_path)
    (disk / "notes.txt").write_text("mine")
    line = refuse(prepare.main, *job, "--overwrite", cwd=tmp_path)
    assert "replaces only what prepare.py made" in line
    (disk / "notes.txt").unlink()
    (tmp_path / "a.jsonl").write_text(jsonl(docs[200:400]))
    assert call(prepare.main, *job, "--overwrite", cwd=tmp_path) == 0
    assert everything(check(disk)[2]) == sorted(docs[200:400])
    assert os.listdir(tmp_path / "large") == ["disk"] and (tmp_path / "data" / "x").is_symlink()


GOOD = b'{"text": "The quick brown fox jumps over the lazy dog."}\n'
BAD_FILES = {
    "empty.txt": (b"", "two different documents"), "one.txt": (b"x", "two different documents"),
    "latin1.txt": (b"caf\xe9 " * 3000, "latin1.txt: damaged, not UTF-8 or not txt"),
    "column.jsonl": (b'{"body": "x", "id": 3}\n', "column 'text', but NoneType; .*[(]body, id[)]"),
    "list.jsonl": (b"[3]\n", "column 'text', but list"),
    "json.jsonl": (GOOD + b"nope\n", "not UTF-8 or not jsonl .line 2: "),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "not UTF-8 or not jsonl .line 1: "),
    "cut.json": (b'[{"text": "a"}, {"text": ', "cut.json: damaged"),
    "ids.json": (json.dumps({f"id{i}": i for i in range(999)}).encode(), "[(]id0, .{,200}$"),
    "column.csv": (b"id,body\n1,x,y\n", "column 'text', but .*[(]id, body, None[)]"),
    "plain.jsonl.gz": (b"hello", "plain.jsonl.gz: damaged, not UTF-8 or not gz"),
    "cut.jsonl.gz": (gzip.compress(GOOD * 50)[:-20], "cut.jsonl.gz: damaged"),
    "wide.txt.zst": (bytes.fromhex("28b52ffd0090") + b"\x09\0\0a", "its window is over 128 MiB"),
    "plain.parquet": (b"hello" * 100, "plain.parquet: damaged, not UTF-8 or not parquet"),
    "text.pdf": (b"%PDF", "text.pdf: unknown kind")}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, refuse, name):
    """A file that cannot be used is one line that names what is wrong, and no data folder."""
    content, says = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    line = refuse(prepare.main, "text", name, "--name=x", "--tokenizer=bpe:260", cwd=tmp_path)
    assert re.search(says, line)


TEXT = "text docs.jsonl --name=x"


@pytest.mark.parametrize("argv, says", [
    ("text docs.jsonl", "--name"), ("text docs.jsonl --name=a/b", "plain folder name"),
    ("text docs.jsonl --name=x.partial", "plain folder name"), (f"{TEXT} --mix=0.1", "--mix"),
    (f"{TEXT} --tokenizer=word", "unknown tokenizer 'word' (gpt2, unicode, bpe:N"),
    (f"{TEXT} --tokenizer=unicode:indic", "unknown tokenizer 'unicode:indic'"),
    (f"{TEXT} --tokenizer=bpe:10", "at least 257"), (f"{TEXT} --tokenizer=bpe:60000", "gives only"),
    (f"{TEXT} --tokenizer=none.json", "none.json is not there"),
    (f"{TEXT} --tokenizer=docs.json", "docs.json: not a tokenizer.json"),
    ("text docs.jsonl --name=file", "file exists; choose another --name"),
    (f"{TEXT} --val_fraction=nan", "val_fraction"), ("bins absent --name=x", "absent/train.bin"),
    ("hub a/b --val_tokens=9", "--val_tokens goes with --tokens"),
    ("fineweb-edu --mix=wikipedia=0.2", "--mix"), ("fineweb-edu --mix=cosmopedia=1", "--mix")])
def test_bad_options(tmp_path, refuse, docs, argv, says):
    """An option that cannot be meant is one line, and no data folder."""
    (tmp_path / "docs.jsonl").write_text(jsonl(docs[:100]))
    (tmp_path / "docs.json").write_text('{"text": "no vocabulary"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    assert says in refuse(prepare.main, *argv.split(), cwd=tmp_path)
