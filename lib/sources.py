"""Where documents come from: docstrings, files, the Hub.

A source gives its documents in a fixed order, a batch at a time: `read(position)` is a generator of
(documents, share of the source that is read, position), and `read(None)` starts. A position is
JSON: reading from it gives what follows the batch that it came with. `identity` is what must not
change between the two; `share` is the source's part of the tokens.
"""
import ast
import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import re
import sys
import sysconfig
import time
import warnings
import zlib
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.common import InputError

PIECE = 10_000        # characters; a text file is cut at blank lines into documents of at least this
BATCH = 4_000_000     # characters that are encoded at a time,
ROWS = 500            # or documents of a stream
WAITS = 2, 5, 15, 45, 135  # seconds before a stream is opened again, after the client's own tries
HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
       "cosmopedia": ("HuggingFaceTB/cosmopedia", "web_samples_v2")}
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# What `docstrings` reads beside the standard library: each pinned in requirements.txt, so that the
# text depends on nothing but the Python version and that file.
PACKAGES = ("datasets", "fontTools", "huggingface_hub", "matplotlib", "mpmath", "networkx",
            "numpy", "pandas", "sympy", "torch")
# Not in every Python of one version: packaged apart by distributions, or left out.
APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "tkinter", "turtledemo",
         "test", "tests"}

Source = namedtuple("Source", "name share identity read")


def batches(documents):
    """(document, share read) pairs -> (list of documents of about BATCH characters in all, share
    read)."""
    texts, size = [], 0
    for text, share in documents:
        texts.append(text)
        size += len(text)
        if size >= BATCH:
            yield texts, share
            texts, size = [], 0
    if texts:
        yield texts, share


def local(name, identity, documents):
    """A source whose `documents()`, pairs of a document and the share read, always starts at the
    first: a position is how many to pass over."""
    def read(position):
        position = position or 0
        for texts, share in batches(itertools.islice(documents(), position, None)):
            position += len(texts)
            yield texts, share, position
    return Source(name, 1.0, identity, read)


# ---- the Hub -----------------------------------------------------------------------------------

def stream(name, share):
    """A dataset of the Hub, streamed. A position is the dataset's revision, the shard and the row.

    `datasets` says which files a configuration has. Their row groups are read here, one at a time:
    its own iterator lets arrow read far ahead, and to go on within a shard it fetches that shard
    again from its start. The client itself tries a failing request again for half a minute; then
    the stream is opened anew at the last position, after each of WAITS; then OSError.
    """
    repo, config = HUB[name]
    pinned = []  # the revision, asked once: the tokenizer and the bins are of the same

    def read(position):
        import datasets
        import pyarrow.parquet
        from huggingface_hub import HfApi, HfFileSystem
        position = dict(position or {"revision": None, "shard": 0, "row": 0})
        waits = iter(WAITS)
        while True:
            try:
                if not position["revision"]:
                    pinned[:] = pinned or [HfApi().dataset_info(repo).sha]
                    position["revision"] = pinned[0]
                    yield [], 0.0, dict(position)  # where the first documents' state belongs to
                builder = datasets.load_dataset_builder(repo, config,
                                                        revision=position["revision"])
                paths = builder.config.data_files["train"]
                while position["shard"] < len(paths):
                    with (HfFileSystem().open(paths[position["shard"]]) as raw,
                          pyarrow.parquet.ParquetFile(raw) as file):
                        for texts in rows_from(file, position["row"], "text"):
                            position["row"] += len(texts)
                            share_of_shard = position["row"] / file.metadata.num_rows
                            done = (position["shard"] + share_of_shard) / len(paths)
                            yield [text or "" for text in texts], done, dict(position)
                            waits = iter(WAITS)
                    position.update(shard=position["shard"] + 1, row=0)
                return
            except Exception as error:  # the client raises its own, httpx's, pyarrow's, OSError ...
                answer = getattr(getattr(error, "response", None), "status_code", 0)
                unknown = datasets.exceptions.DatasetNotFoundError, ValueError
                refused = 400 <= answer < 500 and answer not in (408, 429)
                wait = None if isinstance(error, unknown) or refused else next(waits, None)
                says = f"{type(error).__name__}: {' '.join(str(error).split())}"
                says = f"cannot stream {repo} from {datasets.config.HF_ENDPOINT} ({says})"
                if wait is None:
                    raise OSError(says) from error
                tqdm.write(f"{says}; trying again in {wait} s", file=sys.stderr)
                time.sleep(wait)
    return Source(name, share, [repo, config], read)


def rows_from(file, row, column):
    """A column of an open parquet file from a row on, in lists of at most ROWS; row groups before
    it are not read."""
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    group = int(np.searchsorted(ends, row, "right"))  # the one that holds the row
    skip = row - int(ends[group - 1] if group else 0)
    groups = range(group, file.num_row_groups)
    for batch in file.iter_batches(ROWS, groups, [column], use_threads=False):
        texts = batch[column].to_pylist()[skip:]
        skip = max(0, skip - len(batch))
        if texts:
            yield texts


# ---- docstrings --------------------------------------------------------------------------------

def blocks(tree):
    """A syntax tree and the statements in it, as ast.walk gives them but without the expressions,
    which are most of it."""
    statements = ast.stmt, ast.excepthandler, ast.match_case
    nodes = [tree]
    for node in nodes:
        yield node
        nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, statements)]


def file_docstrings(path):
    """The docstrings of one Python file, top to bottom; none from a file that does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    except OSError:  # a folder or a dangling link of that name
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in blocks(tree) if isinstance(node, documented)]
    found.sort(key=lambda node: getattr(node, "lineno", 0))  # a module has no line
    texts = [ast.get_docstring(node) for node in found]
    return [text for text in texts if text]


def python_files(folder, names):
    """The Python files of modules and packages in a folder, without those APART, in an order that
    does not depend on where the folder is."""
    found = {}
    for name in names:
        inside = (folder / name).rglob("*.py")
        for path in [folder / f"{name}.py", *inside]:
            parts = path.relative_to(folder).parts
            if APART.isdisjoint(parts):
                found["/".join(parts)] = path
    return [found[key] for key in sorted(found)]


def docstrings():
    """The docstrings of the standard library and of PACKAGES: real technical English, on every
    machine already, and the same wherever Python and requirements.txt are. One line names the
    packages that are not there."""
    paths = python_files(Path(sysconfig.get_path("stdlib")), sys.stdlib_module_names)
    missing = []
    for name in PACKAGES:
        if spec := importlib.util.find_spec(name):
            paths += python_files(Path(spec.origin).parent.parent, [name])
        else:
            missing.append(name)
    if missing:
        print(f"docstrings: without {', '.join(missing)}, which requirements.txt has; "
              "the data will not be that of a whole installation")
    with ProcessPoolExecutor(CPUS) as pool:
        found = pool.map(file_docstrings, paths, chunksize=64)
        found = tqdm(found, "reading docstrings", len(paths), unit="file")
        texts = list(dict.fromkeys(itertools.chain.from_iterable(found)))  # each once, in order
    identity = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
    shares = [(i + 1) / len(texts) for i in range(len(texts))]
    return local("docstrings", identity, lambda: zip(texts, shares))


# ---- files -------------------------------------------------------------------------------------

def plain_text(lines):
    """Numbered lines -> documents: pieces of at least PIECE characters that end at a blank line."""
    piece, size = [], 0
    for _, line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE and not line.strip():
            yield "".join(piece).strip("\n")
            piece, size = [], 0
    yield "".join(piece).strip("\n")


def json_lines(lines, path, column):
    """Numbered lines of JSON objects -> the text in `column` of each."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"{path}, line {number}: no text in column '{column}' "
                             f"(it has: {has}); choose with --column")
        yield row[column]


def parquet(path, column):
    """Rows of a parquet file -> (the text in `column`, share read)."""
    import pyarrow.parquet  # a dependency of datasets
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                what = "two columns" if column in names else "no column"
                raise InputError(f"{path}: {what} '{column}' (it has: {', '.join(names)}); "
                                 "choose with --column")
            row = 0
            for texts in rows_from(file, 0, column):
                for text in texts:
                    if not isinstance(text, str):
                        raise InputError(f"{path}, row {row}: column '{column}' is not text")
                    row += 1
                    yield text, row / file.metadata.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a parquet file of UTF-8 text, or damaged "
                         f"({error})") from None


def read_file(path, column):
    """One file of any known kind -> (document, share read)."""
    if path.suffix == ".parquet":
        yield from parquet(path, column)
        return
    size = max(path.stat().st_size, 1)
    with open(path, "rb") as raw:
        def lines():
            for number, line in enumerate(gzip.open(raw) if path.suffix == ".gz" else raw, 1):
                yield number, line.decode()
        try:
            plain = path.suffix in (".txt", ".md")
            for text in plain_text(lines()) if plain else json_lines(lines(), path, column):
                yield text, raw.tell() / size
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 ({error})") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip ({error})") from None


def files(paths, column):
    """Text files -> documents; all are checked to be there before the first is read."""
    for path in paths:
        if not re.search(r"\.(txt|md|jsonl|jsonl\.gz|parquet)$", path.name):
            raise InputError(f"{path}: unknown kind of file "
                             "(.txt, .md, .jsonl, .jsonl.gz and .parquet are known)")
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    def documents():
        for i, path in enumerate(paths):
            for text, share in read_file(path, column):
                yield text, (i + share) / len(paths)
    return local("text", identity, documents)
