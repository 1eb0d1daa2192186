"""prepare.py: text -> tokens on disk. The real script on real text; bad input through its main, in this process."""
import ast
import gzip
import hashlib
import json
import re
import signal
import subprocess
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prepare
from conftest import command, error_line, script, tree
from lib import bins, sources
from lib.tokenizer import from_state, token_bytes, train_bpe


def load(folder):
    """data/NAME -> (meta, tokenizer, {split: array of ids})."""
    meta = json.loads((folder / "meta.json").read_text())
    return meta, from_state(meta["tokenizer"]), {s: np.fromfile(folder / f"{s}.bin", meta["dtype"]) for s in ("train", "val")}


def documents(ids, tok):
    """Token ids -> the documents they spell, each ended by the separator."""
    assert ids[-1] == tok.eot
    return [tok.decode(part[:-1].tolist()) for part in np.split(ids, np.flatnonzero(ids == tok.eot) + 1)[:-1]]


def check(folder):
    """What meta.json says of the bins is true. Returns (meta, tokenizer, {split: documents})."""
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    meta, tok, ids = load(folder)
    found = {split: documents(array, tok) for split, array in ids.items()}
    for split, array in ids.items():
        assert meta["tokens"][split] == len(array)
        assert meta["documents"][split] == len(found[split])
        assert meta["text_bytes"][split] == sum(len(text.encode()) for text in found[split])
        assert meta["sha256"][split] == hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()
    assert meta["vocab_size"] == tok.vocab_size > max(array.max() for array in ids.values())
    assert (meta["command"].startswith("python prepare.py ")
            and {"python", "numpy", "tiktoken", "rustbpe", "datasets"} <= meta["versions"].keys())
    return meta, tok, found


# ---- what is made ------------------------------------------------------------------------------------------

def test_docstrings(data_dir):
    """The default: millions of tokens of this machine's docstrings in bpe:4096, uint16, split 2 % by hash,
    nothing twice, meta.json true."""
    meta, tok, found = check(data_dir)
    assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", "bpe:4096", 4096)
    assert sum(meta["text_bytes"].values()) > 10e6
    everything = found["train"] + found["val"]
    assert len(everything) == len(set(everything))
    assert 0.015 < len(found["val"]) / len(everything) < 0.025
    assert all(bins.is_validation(text, 0.02) == (split == "val") for split in found for text in found[split])
    own = [ast.get_docstring(ast.parse(open(module.__file__).read())) for module in (ast, gzip, json)]
    assert set(own) <= set(everything)


def test_documents_come_back(small_data, docs):
    """The bins decode to the documents, in order, each followed by <|endoftext|>; a document's hash alone decides its side."""
    _, _, found = check(small_data / "data" / "small")
    for split, is_val in (("train", False), ("val", True)):
        assert found[split] == [text for text in docs if bins.is_validation(text, 0.1) == is_val]
    assert not set(found["train"]) & set(found["val"])


def test_bpe_is_trained_on_the_training_documents_only(small_data, docs):
    """The tokenizer is the one that the training documents give, and not the one that all documents give."""
    _, tok, found = check(small_data / "data" / "small")
    assert token_bytes(tok) == token_bytes(train_bpe(found["train"], 512)) != token_bytes(train_bpe(docs, 512))


@pytest.mark.parametrize("V, dtype", [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_fit_their_type(tmp_path, bpe, V, dtype):
    """uint16 holds vocabularies up to 65,536, the last id included; beyond, uint32."""
    class Padded:  # the trained BPE with ids moved to the end of a vocabulary of V
        vocab_size, eot = V, V - 1
        encode_batch = staticmethod(lambda texts, threads: bpe.encode_batch(texts, threads))
    one = [sources.local("one", None, lambda: iter([("some text", 1.0)]))]
    bins.encode(tmp_path, one, Padded, 0.02, dict.fromkeys(("train", "val"), float("inf")), bins.new_state(one))
    ids = np.fromfile(tmp_path / "train.bin", dtype)
    assert bins.id_type(Padded) == dtype and ids.tolist() == [*bpe.encode("some text"), V - 1]


def test_every_kind_of_file_gives_the_same_documents(tmp_path, call, docs):
    """.txt .md .jsonl .jsonl.gz .parquet with the same documents, a column of another name too:
    the same bins and the same tokenizer."""
    pieces = list(sources.plain_text(enumerate("\n\n".join(docs).splitlines(keepends=True))))
    rows = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(pieces))
    assert len(pieces) > 10
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("\n\n".join(pieces))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    pq.write_table(pa.table({"text": pieces}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": pieces, "n": range(len(pieces))}), tmp_path / "b.parquet")
    made = {}
    for file, extra in ([(f"a.{kind}", []) for kind in ("txt", "md", "jsonl", "jsonl.gz", "parquet")]
                        + [("b.parquet", ["--column=body"])]):
        assert call(prepare.main, "text", file, f"--name={file}", "--tokenizer=bpe:400", "--val_fraction=0.2",
                    *extra, cwd=tmp_path) == 0
        meta, _, found = check(tmp_path / "data" / file)
        made[file] = found, meta["sha256"], meta["tokenizer"]
    assert all(value == made["a.txt"] for value in made.values())
    assert sorted(made["a.txt"][0]["train"] + made["a.txt"][0]["val"]) == sorted(pieces)


def test_many_files_and_gpt2(tmp_path, call, gpt2, docs):
    """Several files are read one after the other; with gpt2 the ids are GPT-2's; empty documents are dropped."""
    for i in range(2):
        (tmp_path / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", " \n", *docs[i::2]]))
    assert call(prepare.main, "text", "0.jsonl", "1.jsonl", "--name=both", "--tokenizer=gpt2", "--val_fraction=0.1",
                cwd=tmp_path) == 0
    _, tok, found = check(tmp_path / "data" / "both")
    assert tok.vocab_size == 50257
    assert found["val"] == [text for text in docs[::2] + docs[1::2] if bins.is_validation(text, 0.1)]


def test_equal_documents_stay_on_one_side(tmp_path, call, docs):
    """Documents that occur many times are never on both sides."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in docs[:100] * 3))
    assert call(prepare.main, "text", "a.jsonl", "--name=a", "--tokenizer=bpe:300", "--val_fraction=0.3", cwd=tmp_path) == 0
    _, _, found = check(tmp_path / "data" / "a")
    assert len(found["train"]) + len(found["val"]) == 300 and not set(found["train"]) & set(found["val"])


# ---- what is kept ------------------------------------------------------------------------------------------

def test_killed_preparation_leaves_nothing_that_looks_finished(tmp_path, data_dir, small_data):
    """SIGKILL while it encodes: no data/NAME. Another command for the same name is then refused,
    and with --overwrite starts over."""
    _, tok, ids = load(data_dir)
    (tmp_path / "big.txt").write_text(tok.decode(ids["train"][:4_000_000].tolist()))
    process = subprocess.Popen(command("prepare.py", "text", "big.txt", "--name=small", "--tokenizer=bpe:260"),
                               cwd=tmp_path, stderr=subprocess.DEVNULL)
    half_done = tmp_path / "data" / "small.partial" / "train.bin"
    while not (half_done.exists() and half_done.stat().st_size):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["small.partial"] and not list(tmp_path.rglob("meta.json"))

    other = "text", small_data / "docs.jsonl", "--name=small", "--tokenizer=bpe:512", "--val_fraction=0.1"
    before = tree(tmp_path)
    line = error_line(script("prepare.py", *other, cwd=tmp_path, status=2).stderr)
    assert ("prepare.py text big.txt --name=small --tokenizer=bpe:260" in line and "--overwrite" in line
            and tree(tmp_path) == before)
    script("prepare.py", *other, "--overwrite", cwd=tmp_path)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["small"]
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "data" / "small" / name).read_bytes() == (small_data / "data" / "small" / name).read_bytes()


def test_existing_data_is_kept_unless_told(tmp_path, call, refuse, docs):
    """A second preparation of a name is refused; --overwrite replaces it, but not when the new text turns out bad."""
    for name, texts in (("one", docs[:200]), ("two", docs[200:400])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    options = ["--name=x", "--tokenizer=bpe:300", "--val_fraction=0.2"]
    assert call(prepare.main, "text", "one.jsonl", *options, cwd=tmp_path) == 0
    assert "exists" in refuse(prepare.main, "text", "two.jsonl", *options, cwd=tmp_path)
    assert "UTF-8" in refuse(prepare.main, "text", "bad.txt", *options, "--overwrite", cwd=tmp_path)
    assert call(prepare.main, "text", "two.jsonl", *options, "--overwrite", cwd=tmp_path) == 0
    _, _, found = check(tmp_path / "data" / "x")
    assert set(found["train"] + found["val"]) == set(docs[200:400])


# ---- bad input ---------------------------------------------------------------------------------------------

GOOD = '{"text": "The quick brown fox jumps over the lazy dog, again and again and again."}\n'
BAD_FILES = {
    "empty.txt": (b"", "empty.txt|no text|no document"),
    "blank.md": (b" \n\n \n", "blank.md|no text|no document"),
    "latin1.txt": (b"caf\xe9 " * 3000, "latin1.txt.*UTF-8"),
    "latin1.jsonl": (GOOD.encode() + b'{"text": "caf\xe9"}\n', "latin1.jsonl.*UTF-8"),
    "column.jsonl": (b'{"body": "x", "id": 3}\n', "line 1.*column 'text'.*body, id"),
    "number.jsonl": (b'{"text": 3}\n', "line 1.*column 'text'"),
    "list.jsonl": (b"[1]\n", "line 1.*column 'text'"),
    "json.jsonl": (GOOD.encode() + b"nope\n", "line 2: not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1.*not JSON"),
    "plain.jsonl.gz": (b"hello", "plain.jsonl.gz.*gzip"),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 50)[:-20], "cut.jsonl.gz.*gzip"),
    "plain.parquet": (b"hello" * 100, "plain.parquet: not a parquet"),
    "column.parquet": (pa.table({"body": ["x"]}), "no column 'text'.*body"),
    "number.parquet": (pa.table({"text": [1, 2]}), "column 'text' is not text"),
    "null.parquet": (pa.table({"text": ["some text", None]}), "column 'text' is not text"),
    "rowless.parquet": (pa.table({"text": pa.array([], pa.string())}), "rowless.parquet|no text"),
    "text.pdf": (b"%PDF", "text.pdf: unknown kind"),
    "one.jsonl": (GOOD.encode() * 20, "no text for val"),
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


@pytest.mark.parametrize("options, says", [
    ("", "--name"), ("--name=../x", "plain folder name"), ("--name=", "plain folder name"),
    ("--name=x --tokenizer=word", "gpt2, unicode and bpe:N"), ("--name=x --tokenizer=bpe:10", "too small"),
    ("--name=x --tokenizer=bpe:60000", "gives only"), ("--name=x --tokenizer=bpe:" + "9" * 30, "bpe"),
    ("--name=x --val_fraction=1", "val_fraction"), ("--name=x --val_fraction=nan", "val_fraction"), ("--name=x --nane=y", "nane"),
    ("absent.txt --name=x", "absent.txt: no such file"), ("folder.txt --name=x", "folder.txt: no such file")])
def test_bad_options(small_data, tmp_path, refuse, options, says):
    """An option that cannot be meant is one line, and no data folder."""
    (tmp_path / "folder.txt").mkdir()
    argv = ["--tokenizer=bpe:300"] * ("tokenizer" not in options) + [str(small_data / "docs.jsonl"), *options.split()]
    assert says in refuse(prepare.main, "text", *argv, cwd=tmp_path)


@pytest.mark.parametrize("tokens", ["0", "-3", "1.5", "many", "nan", "inf"])
def test_bad_token_counts(tmp_path, refuse, tokens):
    assert "--tokens" in refuse(prepare.main, "fineweb-edu", f"--tokens={tokens}", cwd=tmp_path)


def test_data_is_a_file(tmp_path, refuse, small_data):
    (tmp_path / "data").write_text("mine")
    refuse(prepare.main, "text", small_data / "docs.jsonl", "--name=x", "--tokenizer=bpe:300", cwd=tmp_path)
    assert (tmp_path / "data").read_text() == "mine"


def test_real_process_ends_in_one_line(tmp_path):
    """As a command: exit status 2, one line and no traceback on standard error, nothing on standard output, nothing written."""
    done = script("prepare.py", "text", "absent.txt", "--name=x", cwd=tmp_path, status=2)
    assert done.stderr == "error: absent.txt: no such file\n" and done.stdout == "" and not tree(tmp_path)


def test_no_vocabulary_no_network(tmp_path, small_data):
    """Where tiktoken has no copy of GPT-2's vocabulary and cannot fetch one, one line names TIKTOKEN_CACHE_DIR."""
    (tmp_path / "work").mkdir()
    nowhere = dict.fromkeys(["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"], "http://127.0.0.1:9")
    done = script("prepare.py", "text", small_data / "docs.jsonl", "--name=x", "--tokenizer=gpt2", cwd=tmp_path / "work",
                  status=2, TIKTOKEN_CACHE_DIR=str(tmp_path / "cache"), **nowhere)
    assert "TIKTOKEN_CACHE_DIR" in error_line(done.stderr) and not tree(tmp_path / "work")
