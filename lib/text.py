"""Where text comes from: files, the Hub, the docstrings of the installed Python, nanoGPT's bins.

.txt and .md are cut into documents; .jsonl, .json, .csv, .tsv and .parquet have one in each row.
"""
import ast
import csv
import glob
import hashlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import re
import sys
import sysconfig
import textwrap
import warnings
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import tokenizer
from lib.errors import InputError, one_line
from lib.unicode_tokenizer import CPUS, END_OF_TEXT

BATCH = 4_000_000  # characters that are encoded at a time
PIECE = 10_000     # characters; a text file is cut into documents of at least this
CHUNK = 1_000_000  # a text file is read by as many whole lines as have these characters
KNOWN = ".txt, .md, .jsonl, .json, .csv, .tsv, each also .gz or .zst, and .parquet"
KIND = re.compile(r"\.(parquet$|txt|md|jsonl|json|csv|tsv)(?:\.(gz|zst))?$", re.IGNORECASE)


class Source(namedtuple("Source", "name identity start rows share", defaults=[1.0])):
    """Documents in a fixed order. `identity`: JSON; another identity is another text. `start`: the
    first position, JSON. `rows(position)` gives (text or None, position after it) from there on.
    `share`: its part of the tokens."""

    def batches(self, position):
        """Lists of such rows, about BATCH characters each, without those of blank text. A lone
        surrogate, which no encoding of Unicode has, becomes '?'."""
        batch, characters = [], 0
        for text, position in self.rows(position):
            if text is None:
                batch.append((None, position))
            elif text.strip():
                batch.append((text.encode(errors="replace").decode(), position))
                characters += len(text)
            if characters >= BATCH:
                yield batch
                batch, characters = [], 0
        yield batch


# A document of a text file ends at SEPARATOR, a line. A file without one is cut at the first of
# ENDS that comes in time: a blank line, the end of a line, of a sentence, of a word.
SEPARATOR = re.compile(rf"^[^\S\n]*{re.escape(END_OF_TEXT)}[^\S\n]*(?:\n|\Z)", re.MULTILINE)
SENTENCE = r"[.!?]['\")\]”’]*\s|[।॥。！？]\s*"
ENDS = [re.compile(end) for end in (r"\n[^\S\n]*\n", r"\n", SENTENCE, r"\s")]


def cut(text):
    """Text -> its pieces, which joined are the text. All have PIECE to 4 * PIECE characters, the
    last as many as are left."""
    pieces, at = [], 0
    while len(text) - at > 4 * PIECE:
        found = (end.search(text, at + PIECE - 1, at + 4 * PIECE) for end in ENDS)
        stop = next((end.end() for end in found if end), at + 4 * PIECE)
        pieces.append(text[at:stop])
        at = stop
    return [*pieces, text[at:]]


def plain_text(file):
    """An open text file -> its documents. They end at lines that are END_OF_TEXT; a file with none
    in its first CHUNK is cut."""
    chunk, rest = "".join(file.readlines(CHUNK)), ""
    split = SEPARATOR.split if SEPARATOR.search(chunk) else cut
    while chunk:
        *documents, rest = split(rest + chunk)
        yield from (document.strip("\n") for document in documents)
        chunk = "".join(file.readlines(CHUNK))
    # newlines at the end, or `cut` would leave the rest whole where it is short
    yield from (document.strip("\n") for document in split(rest + 4 * PIECE * "\n"))


# ---- files -------------------------------------------------------------------------------------

def json_rows(file, kind):
    """An open .jsonl or .json file -> its values, one a line. A .json file is read whole and may
    also be one array of rows, or one row."""
    if kind == "json":
        whole = file.read()
        try:
            value = json.loads(whole)
        except ValueError:
            file = io.StringIO(whole)
        else:
            yield from value if isinstance(value, list) else [value]
            return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None


def parquet_rows(raw, start, column):
    """An open parquet file -> its rows {column: value} from row `start` on. Row groups before it
    are not read."""
    import pyarrow.parquet
    file = pyarrow.parquet.ParquetFile(raw)
    columns = [column] if column in file.schema_arrow.names else None
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if start < size:
            batches = file.iter_batches(500, [group], columns, use_threads=False)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from itertools.islice(rows, start, None)
        start = max(0, start - size)


def file_rows(raw, kind, packing, start, column):
    """An open file -> its rows from row `start` on, each a dict or the text itself."""
    if kind == "parquet":
        return parquet_rows(raw, start, column)
    if packing:
        import pyarrow  # a dependency of datasets, which takes half a second
        raw = pyarrow.CompressedInputStream(raw, {"gz": "gzip", "zst": "zstd"}[packing])
    file = io.TextIOWrapper(raw, "utf-8-sig")  # reads \r\n and \r as \n
    if kind in ("txt", "md"):
        rows = plain_text(file)
    elif kind in ("jsonl", "json"):
        rows = json_rows(file, kind)
    else:
        csv.field_size_limit(2**31 - 1)
        rows = csv.DictReader(file, delimiter="\t" if kind == "tsv" else ",")
    return itertools.islice(rows, start, None)


def read_file(raw, name, start, column):
    """An open file -> its texts from row `start` on, None for a row without one. InputError if it
    cannot be read, or if its first row that is not null has no text in the column."""
    if not (found := KIND.search(name)):
        raise InputError(f"{name}: unknown kind of file ({KNOWN} are known)")
    kind, packing = ((part or "").lower() for part in found.groups())
    known = start > 0  # whether rows have text
    try:
        for row in file_rows(raw, kind, packing, start, column):
            row = row if isinstance(row, dict) else {column: row}
            text = row.get(column)
            if isinstance(text, str):
                known = True
                yield text.removeprefix("\ufeff").replace("\r\n", "\n")
            elif known or column in row and text is None:
                yield None
            else:
                columns = textwrap.shorten(", ".join(map(str, row)), 200)
                raise InputError(f"{name}: no text in column '{column}', but "
                                 f"{type(text).__name__}; choose with --column ({columns})")
    except (ValueError, RecursionError, csv.Error, OSError) as error:
        if isinstance(error, OSError) and not packing:
            raise
        if "too much memory" in str(error):
            error = "its window is over 128 MiB; pack it again without --long"
        raise InputError(f"{name}: damaged, not UTF-8 or not {packing or kind} ({error})") from None


def read_files(paths, open_file, position, column):
    """Files one after the other from a position {"file": i, "row": n} on, as `Source.rows`."""
    for i in range(position["file"], len(paths)):
        row = position["row"] if i == position["file"] else 0
        with open_file(paths[i], "rb") as raw:
            for row, text in enumerate(read_file(raw, str(paths[i]), row, column), row + 1):
                yield text, position | {"file": i, "row": row}


def files_below(folder):
    """The files of known kinds below a folder, sorted, without hidden ones; links are followed,
    each folder is read once."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [Path(here, name) for name in names if KIND.search(name) and name[0] != "."]
    return sorted(found)


def files(patterns, column):
    """Files, folders and patterns -> Source; a text is read from each before anything is made."""
    paths = []
    for pattern in patterns:
        there = [pattern] if pattern.exists() else sorted(glob.glob(str(pattern), recursive=True))
        before = len(paths)
        for path in map(Path, there):
            paths += files_below(path) if path.is_dir() else [path]
        if len(paths) == before:
            raise InputError(f"{pattern}: no such file, or none of a known kind in it ({KNOWN})")
    for path in paths:
        with open(path, "rb") as raw:
            next(filter(None, read_file(raw, str(path), 0, column)), None)
    identity = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return Source("text", identity, {"file": 0, "row": 0},
                  lambda position: read_files(paths, open, position, column))


# ---- nanoGPT's bins ----------------------------------------------------------------------------

class PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; whatever would run code is an error."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def nanogpt_tokenizer(path):
    """The tokenizer of nanoGPT's meta.pkl, GPT-2's where there is none. InputError if the file is
    not a table of characters."""
    if not path.exists():
        return tokenizer.gpt2()
    with one_line(f"{path}: not nanoGPT's table of characters", InputError):
        table = PlainUnpickler(io.BytesIO(path.read_bytes())).load()["itos"]
        characters = "".join(table[i] for i in range(len(table)))
        if not 0 < len(table) == len(characters) == len(set(characters)):
            raise ValueError("its itos has not a character of its own for each id")
    return tokenizer.CharTokenizer(characters)


def nanogpt_ids(path, dtype):
    """A file of raw ids -> memory map; dtype None is nanoGPT's uint16. InputError if it is none."""
    ids, size, says = np.fromfile(path, np.uint16, 2**19), path.stat().st_size, ""
    if size == 0 or size % np.dtype(dtype or "uint16").itemsize:
        says = f"{size:,} bytes are not ids of {dtype or 'uint16'}"
    elif ids.tobytes().startswith((b"\x93NUMPY", (20240520).to_bytes(4, "little"))):
        says = "a header stands before the ids, .npy's or llm.c's; array.tofile(path) writes none"
    elif not dtype and len(ids) > 3 and ids[::2].any() and not ids[1::2].any():
        wide = "uint32" if ids[2::4].any() else "int64"
        says = f"every second number is 0: --dtype={wide}, or --dtype=uint16 if that is right"
    if says:
        raise InputError(f"{path}: {says}")
    return np.memmap(path, dtype or "uint16", mode="r")


def adopt(source, folder, dtype):
    """Copy nanoGPT's train.bin and val.bin into a folder: (tokenizer, what meta.json says)."""
    bins = {split: nanogpt_ids(source / f"{split}.bin", dtype) for split in ("train", "val")}
    tok = nanogpt_tokenizer(source / "meta.pkl")
    meta = {"tokens": {}, "documents": {}, "text_bytes": {}, "sources": {}, "kept": 1.0}
    for split, every in bins.items():
        path, count = source / f"{split}.bin", np.zeros(tok.vocab_size, np.int64)
        with open(folder / path.name, "wb") as copy:
            for i in range(0, len(every), 2**22):
                ids = every[i:i + 2**22]
                if ids.min() < 0 or ids.max() >= tok.vocab_size:
                    raise InputError(f"{path}: ids from {ids.min():,} to {ids.max():,}, {tok.name} "
                                     f"has {tok.vocab_size:,}; is meta.pkl or --dtype missing?")
                copy.write(ids.astype(tokenizer.id_type(tok)).tobytes())
                count += np.bincount(ids, minlength=tok.vocab_size)
        meta["tokens"][split] = len(every)
        meta["documents"][split] = int(count[tok.eot]) + int(every[-1] != tok.eot)
        meta["text_bytes"][split] = int(count @ tokenizer.text_bytes(tok))
    return tok, meta


# ---- the Hub -----------------------------------------------------------------------------------

HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
       "cosmopedia": ("HuggingFaceTB/cosmopedia", "web_samples_v2")}


def stream(repo, config, split="train", column="text", revision=None, name=None, share=1.0):
    """A dataset of the Hub, streamed -> Source. `datasets` says which files a split has; its own
    iterator is not used, as it would read a file from its start again to go on within it."""
    from huggingface_hub import HfApi, HfFileSystem
    says = f"cannot stream {repo}"
    with one_line(says):
        sha = HfApi().dataset_info(repo, revision=revision).sha

    def rows(position):
        import datasets
        with one_line(says):
            builder = datasets.load_dataset_builder(repo, config, revision=position["revision"])
            paths = builder.config.data_files
            if split not in paths:
                raise InputError(f"no split '{split}', but {', '.join(paths)}; choose with --split")
            yield from read_files(paths[split], HfFileSystem().open, position, column)

    return Source(name or repo, [repo, config, split, column, revision],
                  {"revision": sha, "file": 0, "row": 0}, rows, share)


# ---- docstrings --------------------------------------------------------------------------------

# What `docstrings` reads beside the standard library; each is pinned in requirements.txt.
PACKAGES = ("datasets", "fontTools", "huggingface_hub", "matplotlib", "mpmath", "networkx",
            "numpy", "pandas", "sympy", "torch")
# Some distributions leave these out of Python, or package them apart.
APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "tkinter", "turtledemo",
         "test", "tests"}


def file_docstrings(path):
    """The docstrings of one Python file, top to bottom; none from a file that does not parse."""
    def within(node):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
                yield from within(child)
    try:
        with warnings.catch_warnings(action="ignore"):
            return list(filter(None, within(ast.parse(path.read_bytes()))))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []


def python_files(folder, names):
    """The Python files of modules and packages in a folder, without those APART, in an order that
    does not depend on where the folder is."""
    found = [path for name in names
             for path in (folder / f"{name}.py", *(folder / name).rglob("*.py"))
             if APART.isdisjoint(path.relative_to(folder).parts)]
    return sorted(found, key=Path.as_posix)


def docstrings():
    """The docstrings of the standard library and of PACKAGES -> Source: real technical English, the
    same wherever Python and requirements.txt are. InputError if a package is missing."""
    paths = python_files(Path(sysconfig.get_path("stdlib")), sys.stdlib_module_names)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if not spec:
            raise InputError(f"docstrings needs {name}, as in requirements.txt")
        paths += python_files(Path(spec.origin).parent.parent, [name])
    with ProcessPoolExecutor(CPUS) as pool:
        found = pool.map(file_docstrings, paths, chunksize=64)
        found = tqdm(found, "reading docstrings", len(paths), unit="file")
        texts = list(dict.fromkeys(itertools.chain.from_iterable(found)))  # each once, in order
    identity = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
    return Source("docstrings", identity, 0,
                  lambda row: zip(texts[row:], range(row + 1, len(texts) + 1)))
