"""Where documents come from: files, the Hub, the docstrings of the installed Python.

A `Source` gives its documents in a fixed order, from any position on. .txt and .md are cut into
documents; .jsonl, .json, .csv, .tsv and .parquet have one in a column of each row. All but parquet
may be packed, .gz or .zst.
"""
import ast
import contextlib
import csv
import functools
import glob
import gzip
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
import zlib
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.errors import InputError

BATCH = 4_000_000  # characters that are encoded at a time
PIECE = 10_000     # characters; a text file is cut into documents of at least this
CHUNK = 1_000_000  # characters of a text file that are read at a time, at most
SEPARATOR = "<|endoftext|>"
KNOWN = ".txt, .md, .jsonl, .json, .csv, .tsv, each also .gz or .zst, and .parquet"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Source(namedtuple("Source", "name identity start rows share", defaults=[1.0])):
    """Documents in a fixed order. `identity`: JSON; another identity is another text. `start()`
    gives the first position, which is JSON. `rows(position)` gives (text or None, share of the
    source that is read, position after it) from there on. `share`: its part of the tokens."""

    def read(self, position):
        """Batches of about BATCH characters from a position on: (documents that are not empty, how
        many rows between them have no text, share of the source that is read, position after
        them). A lone surrogate, which no encoding of Unicode has, becomes '?'."""
        documents, skipped, characters = [], 0, 0
        for text, done, position in self.rows(position):
            if text is None:
                skipped += 1
            elif text.strip():
                documents.append(text.encode(errors="replace").decode())
                characters += len(text)
            if characters >= BATCH:
                yield documents, skipped, done, position
                documents, skipped, characters = [], 0, 0
        if documents or skipped:
            yield documents, skipped, 1.0, position


# ---- documents of a text file ------------------------------------------------------------------

# where text without blank lines is cut: at a line, a sentence, a word
ENDS = [re.compile(end) for end in (r"\n", r"[.!?]['\")\]”’]*\s|[।॥。！？]\s*", r"\s")]


def cut(text, size):
    """Text without blank lines -> its pieces, which joined are the text. All but the last have at
    least `size` characters and end at a line; where none comes within four times the size, at the
    end of a sentence, a space, or there."""
    pieces, at = [], 0
    while len(text) - at > 4 * size:
        found = None
        for end in ENDS:
            found = found or end.search(text, at + size - 1, at + 4 * size)
        stop = found.end() if found else at + 4 * size
        pieces.append(text[at:stop])
        at = stop
    return [*pieces, text[at:]]


def plain_text(file):
    """An open text file -> its documents. They end at lines that are SEPARATOR; in a file that has
    none in its first CHUNK, at the first blank line after PIECE characters."""
    head = file.read(CHUNK) + file.readline()
    separated = any(line.strip() == SEPARATOR for line in io.StringIO(head))
    lines = itertools.chain(io.StringIO(head), iter(lambda: file.readline(CHUNK), ""))
    document, size = [], 0
    for line in lines:
        ends = line.strip() == SEPARATOR
        if not ends:
            document.append(line)
            ends = not separated and size >= PIECE and not line.strip()
            size += len(line)
        if ends:
            yield "".join(document).strip("\n")
            document, size = [], 0
        elif size > 4 * PIECE and not separated:
            *pieces, rest = cut("".join(document), PIECE)
            for piece in pieces:
                yield piece.strip("\n")
            document, size = [rest], len(rest)
    yield "".join(document).strip("\n")


# ---- one file ----------------------------------------------------------------------------------

def kind_of(name):
    """A file's name -> (kind, packing), as ("jsonl", "gz"), or None if the kind is unknown."""
    found = re.search(r"\.(?:(parquet)|(txt|md|jsonl|json|csv|tsv)(?:\.(gz|zst))?)$", str(name),
                      re.IGNORECASE)
    return found and ((found[1] or found[2]).lower(), (found[3] or "").lower())


def json_lines(lines):
    """Lines of JSON -> their values. ValueError for a line that is none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None


def json_rows(file):
    """A .json file -> its rows: lines of JSON, or one value, an array of rows or a row."""
    first = file.readline()
    try:
        value = json.loads(first)
    except ValueError:  # a value of several lines
        value = json.loads(first + file.read())
        return value if isinstance(value, list) else [value]
    return value if isinstance(value, list) else json_lines(itertools.chain([first], file))


def parquet_rows(raw, start, column):
    """An open parquet file -> ({column: value}, share of the file read) from row `start` on. Row
    groups before it are not read."""
    import pyarrow.parquet  # a dependency of datasets
    file = pyarrow.parquet.ParquetFile(raw)
    columns = [column] if column in file.schema_arrow.names else None
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum([0, *sizes])
    group = int(np.searchsorted(ends[1:], start, "right"))  # the one that holds the row
    number = int(ends[group])
    for batch in file.iter_batches(500, range(group, len(sizes)), columns, use_threads=False):
        for row in batch.to_pylist():
            number += 1
            if number > start:
                yield row, number / file.metadata.num_rows


def file_rows(raw, name, start, column):
    """An open file -> (row, share of the file read) from row `start` on; a row is a dict, or the
    text itself."""
    kind, packing = kind_of(name)
    if kind == "parquet":
        yield from parquet_rows(raw, start, column)
        return
    size = max(1, raw.seek(0, os.SEEK_END))
    raw.seek(0)
    unpacked = raw
    if packing == "gz":
        unpacked = gzip.open(raw)
    elif packing == "zst":
        import pyarrow
        unpacked = pyarrow.CompressedInputStream(raw, "zstd")
    file = io.TextIOWrapper(unpacked, "utf-8-sig")  # reads \r\n and \r as \n
    if kind in ("txt", "md"):
        rows = plain_text(file)
    elif kind == "jsonl":
        rows = json_lines(file)
    elif kind == "json":
        rows = json_rows(file)
    else:
        csv.field_size_limit(2**31 - 1)
        rows = csv.DictReader(file, delimiter="\t" if kind == "tsv" else ",")
    for row in itertools.islice(rows, start, None):
        yield row, raw.tell() / size


def read_file(raw, name, start, column):
    """An open file -> (text, share of the file read) from row `start` on; text is None for a row
    without one. InputError if the file cannot be read, or if its first row that is not null has no
    text in the column."""
    if not kind_of(name):
        raise InputError(f"{name}: unknown kind of file ({KNOWN} are known)")
    known = start > 0  # whether rows have text
    try:
        for row, done in file_rows(raw, name, start, column):
            value = row.get(column) if isinstance(row, dict) else row
            if isinstance(value, str):
                known = True
                yield value.removeprefix("\ufeff").replace("\r\n", "\n"), done
                continue
            absent = isinstance(row, dict) and column not in row
            if not known and (absent or value is not None):
                has = f"is {type(value).__name__}"
                if absent:
                    has = "is not among " + textwrap.shorten(", ".join(map(str, row)), 200)
                raise InputError(f"{name}: no text in column '{column}', which {has}; choose with "
                                 "--column")
            yield None, done
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error})") from None
    except (ValueError, RecursionError, EOFError, zlib.error, csv.Error, OSError) as error:
        kind, packing = kind_of(name)
        if isinstance(error, OSError) and not packing:
            raise
        if "too much memory" in str(error):
            error = "its window is over 128 MiB; pack it again without --long"
        raise InputError(f"{name}: damaged, or not {packing or kind} ({error})") from None


def read_files(paths, open_file, position, column):
    """Files one after the other from a position {"file": i, "row": n} on, as `Source.rows`."""
    for i in range(position["file"], len(paths)):
        row = position["row"] if i == position["file"] else 0
        name = re.sub("^hf://datasets/.*?@[^/]*/", "", str(paths[i]))
        with open_file(paths[i], "rb") as raw:
            for text, done in read_file(raw, name, row, column):
                row += 1
                yield text, (i + done) / len(paths), position | {"file": i, "row": row}


# ---- files -------------------------------------------------------------------------------------

def files_below(folder):
    """The files of known kinds below a folder, sorted, without hidden ones; links are followed,
    each folder is read once."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in names if not name.startswith(".") and kind_of(name)]
        found += [Path(here, name) for name in names]
    return sorted(found)


def expand(patterns):
    """Files, folders and patterns -> files. InputError for what is not there."""
    found = []
    for pattern in patterns:
        paths = [pattern] if pattern.exists() else sorted(glob.glob(str(pattern), recursive=True))
        before = len(found)
        for path in map(Path, paths):
            found += files_below(path) if path.is_dir() else [path]
        if len(found) == before:
            raise InputError(f"{pattern}: no such file, or none of a known kind in it ({KNOWN})")
    for path in found:
        if not path.is_file():
            raise InputError(f"{path} is a link to nothing (its content may have to be fetched)")
    return found


def files(paths, column):
    """Text files -> Source; a text is read from each before anything is made."""
    for path in paths:
        with open(path, "rb") as raw:
            next((text for text, _ in read_file(raw, str(path), 0, column) if text), None)
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return Source("text", identity, lambda: {"file": 0, "row": 0},
                  lambda position: read_files(paths, open, position, column))


# ---- nanoGPT's bins ----------------------------------------------------------------------------

class PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; whatever would run code is an error."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def nanogpt_characters(path):
    """nanoGPT's meta.pkl -> its characters in id order, a str. Nothing in it is run. InputError if
    it is not a table of single characters."""
    try:
        table = PlainUnpickler(io.BytesIO(path.read_bytes())).load()["itos"]
        characters = [table[i] for i in range(len(table))]
        if set(map(len, characters)) != {1} or len(set(characters)) < len(characters):
            raise ValueError("its itos is not a table of different single characters")
        return "".join(characters)
    except Exception as error:  # unpickling bytes raises whatever they lead to
        raise InputError(f"{path}: not nanoGPT's table of characters "
                         f"({type(error).__name__}: {error})") from None


def nanogpt_ids(path, dtype):
    """A file of raw ids -> memory map; dtype None is nanoGPT's uint16. InputError where the file
    has a header, is of another type or empty."""
    raw = np.fromfile(path, np.uint8, 2**20)
    ids, says = raw[:len(raw) // 8 * 8].view(np.uint16), ""
    if len(raw) == 0 or path.stat().st_size % np.dtype(dtype or "uint16").itemsize:
        says = f"{path.stat().st_size:,} bytes are not ids of {dtype or 'uint16'}"
    elif raw.tobytes().startswith(b"\x93NUMPY"):
        says = "a .npy file, not raw ids; write them with array.tofile(path)"
    elif raw.tobytes().startswith((20240520).to_bytes(4, "little")):
        says = "llm.c's header of 1,024 bytes stands before the ids; write it without"
    elif not dtype and ids[::2].any() and not ids[1::2].any():
        wide = "uint32" if ids[2::4].any() else "int64"
        says = f"every second number is 0: --dtype={wide}, or --dtype=uint16 if that is right"
    if says:
        raise InputError(f"{path}: {says}")
    return np.memmap(path, dtype or "uint16", mode="r")


# ---- the Hub -----------------------------------------------------------------------------------

HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
       "cosmopedia": ("HuggingFaceTB/cosmopedia", "web_samples_v2")}


@contextlib.contextmanager
def one_line(repo):
    """Whatever the Hub's clients raise, which have tried again by then, becomes an OSError of one
    line."""
    try:
        yield
    except Exception as error:  # their own, httpx's, pyarrow's, ours ...
        says = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        endpoint = os.environ.get("HF_ENDPOINT", "the Hub")
        raise OSError(f"cannot stream {repo} from {endpoint} ({says})") from error


def stream(name, repo, config=None, split="train", column="text", revision=None, share=1.0):
    """A dataset of the Hub, streamed -> Source. A position is the dataset's revision, the file and
    the row.

    `datasets` says which files a split has. They are read here, parquet a row group at a time: its
    own iterator lets arrow read far ahead, and to go on within a file it fetches that file again
    from its start (as is done here for files other than parquet, which have no index).
    """
    @functools.cache
    def start():
        from huggingface_hub import HfApi
        with one_line(repo):
            sha = HfApi().dataset_info(repo, revision=revision).sha
        return {"revision": sha, "file": 0, "row": 0}

    def rows(position):
        import datasets
        from huggingface_hub import HfFileSystem
        with one_line(repo):
            builder = datasets.load_dataset_builder(repo, config, revision=position["revision"])
            paths = builder.config.data_files
            if split not in paths:
                raise InputError(f"no split '{split}' (it has: {', '.join(paths)}); choose with "
                                 "--split")
            yield from read_files(paths[split], HfFileSystem().open, position, column)

    return Source(name, [repo, config, split, column, revision], start, rows, share)


# ---- docstrings --------------------------------------------------------------------------------

# What `docstrings` reads beside the standard library: each pinned in requirements.txt, so that the
# text depends on nothing but the Python version and that file.
PACKAGES = ("datasets", "fontTools", "huggingface_hub", "matplotlib", "mpmath", "networkx",
            "numpy", "pandas", "sympy", "torch")
# Not in every Python of one version: packaged apart by distributions, or left out.
APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "tkinter", "turtledemo",
         "test", "tests"}


def file_docstrings(path):
    """The docstrings of one Python file, top to bottom; none from a file that does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = [ast.parse(path.read_bytes())]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []
    # as ast.walk, but without the expressions, which are most of a tree
    statements = ast.stmt, ast.excepthandler, ast.match_case
    for node in nodes:
        nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, statements)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in nodes if isinstance(node, documented)]
    found.sort(key=lambda node: getattr(node, "lineno", 0))  # a module has no line
    return [text for text in map(ast.get_docstring, found) if text]


def python_files(folder, names):
    """The Python files of modules and packages in a folder, without those APART, in an order that
    does not depend on where the folder is."""
    found = {}
    for name in names:
        for path in [folder / f"{name}.py", *(folder / name).rglob("*.py")]:
            parts = path.relative_to(folder).parts
            if APART.isdisjoint(parts):
                found["/".join(parts)] = path
    return [found[key] for key in sorted(found)]


def docstrings():
    """The docstrings of the standard library and of PACKAGES -> Source: real technical English, on
    every machine already, and the same wherever Python and requirements.txt are. InputError if a
    package is missing."""
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

    def rows(position):
        for row in range(position, len(texts)):
            yield texts[row], (row + 1) / len(texts), row + 1
    return Source("docstrings", identity, lambda: 0, rows)
