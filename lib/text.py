"""Where documents come from: files, the Hub, the docstrings of the installed Python.

A `Source` gives its documents in a fixed order. .txt and .md are cut into documents; .jsonl, .json,
.csv, .tsv and .parquet have a text in one column of each row. All but parquet may be packed, .gz or
.zst.
"""
import ast
import csv
import glob
import gzip
import hashlib
import importlib.util
import io
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

from lib.errors import InputError

BATCH = 4_000_000  # characters that are encoded at a time
PIECE = 10_000     # characters; a text file is cut into documents of at least this
CHUNK = 1_000_000  # characters of a text file that are read at a time
ROWS = 500         # in a list, at most
SEPARATOR = "<|endoftext|>"
KNOWN = ".txt, .md, .jsonl, .json, .csv, .tsv, each also .gz or .zst, and .parquet"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Damaged(InputError):
    """A file that cannot be read as what it should be; from a network it may come whole later."""


Batch = namedtuple("Batch", "documents skipped done position")


class Source:
    """Documents in a fixed order. `share`: its part of the tokens. `identity`: JSON; another
    identity is another text. `start()` gives its first position. `rows(position)` gives (texts,
    share of the source that is read, position), where a position is JSON and reading from it gives
    what follows these texts; None stands for a row without text."""

    def __init__(self, name, identity, start, rows, share=1.0):
        self.name, self.identity, self.share = name, identity, share
        self.start, self.rows = start, rows

    def read(self, position):
        """Batches of about BATCH characters from a position on. Empty documents are left out; a
        lone surrogate, which no encoding of Unicode has, becomes '?'."""
        documents, skipped, characters = [], 0, 0
        for texts, done, position in self.rows(position):
            skipped += texts.count(None)
            for text in texts:
                if text and text.strip():
                    documents.append(text.encode(errors="replace").decode())
                    characters += len(text)
            if characters >= BATCH:
                yield Batch(documents, skipped, done, position)
                documents, skipped, characters = [], 0, 0
        if documents or skipped:
            yield Batch(documents, skipped, 1.0, position)


# ---- documents ---------------------------------------------------------------------------------

BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# where a text without blank lines is cut: at a line, a sentence, a word
OTHER_ENDS = [re.compile(end) for end in
              (r"\n", r"[.!?]['\")\]”’]*\s|[।॥。！？]\s*", r"\s")]


def cut(text, size):
    """A text -> its pieces, which joined are the text. A piece has at least `size` characters and
    ends at a blank line; where none comes within four times the size, at a line, the end of a
    sentence, a space, or there."""
    pieces, at = [], 0
    while len(text) - at > size:
        limit = at + 4 * size
        found = BLANK_LINE.search(text, at + size - 1, limit)
        if not found and len(text) <= limit:
            break
        for end in OTHER_ENDS:
            found = found or end.search(text, at + size - 1, limit)
        stop = found.end() if found else limit
        pieces.append(text[at:stop])
        at = stop
    return [*pieces, text[at:]]


def separator_lines(separator):
    """A regular expression for lines that are the separator."""
    return re.compile(rf"^[^\S\n]*{re.escape(separator)}[^\S\n]*(?:\n|\Z)", re.MULTILINE)


def plain_text(chunks, separator):
    """The text of a file in chunks -> documents. They end at lines that are the separator; a file
    without one in its first chunk is cut into pieces of about PIECE characters."""
    line, rest, separated = separator_lines(separator), "", None
    for chunk in chunks:
        rest += chunk
        known, newline, unknown = rest.rpartition("\n")  # a separator may be cut in two
        *found, rest = line.split(known + newline)
        rest += unknown
        if separated is None:
            separated = bool(found)
        if not separated:
            found = [piece for document in found for piece in cut(document, PIECE)]
            *pieces, rest = cut(rest, PIECE)
            found += pieces
        for text in found:
            yield text.strip("\n")
    for text in line.split(rest):
        for piece in [text] if separated else cut(text, PIECE):
            yield piece.strip("\n")


def split_rows(texts, separator):
    """The texts of rows -> documents, without byte order marks, every line end a newline. A row
    without text stays None."""
    line, documents = separator_lines(separator), []
    for text in texts:
        if text is None:
            documents.append(None)
            continue
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        documents += line.split(text) if separator in text else [text]
    return documents


# ---- one file ----------------------------------------------------------------------------------

def kind_of(name):
    """A file's name -> (kind, packing), as ("jsonl", "gz"), or None if the kind is unknown."""
    found = re.search(r"\.(?:(parquet)|(txt|md|jsonl|json|csv|tsv)(?:\.(gz|zst))?)$", str(name),
                      re.IGNORECASE)
    if not found:
        return None
    return (found[1] or found[2]).lower(), (found[3] or "").lower()


def json_lines(lines, where):
    """Lines of JSON -> their values."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Damaged(f"{where}, line {number}: not JSON ({error})") from None


def json_rows(text, column, where):
    """A .json file -> its rows: lines of JSON; or one value, read whole: an array of rows, an
    object with the column, or one whose values are rows or an array of rows."""
    first = text.readline()
    try:
        value = json.loads(first)
        if isinstance(value, dict) and (second := text.readline()):
            return json_lines(itertools.chain([first, second], text), where)
    except (ValueError, RecursionError):
        try:
            value = json.loads(first + text.read())
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{where}: neither JSON nor lines of it ({error})") from None
    if isinstance(value, dict) and column not in value:
        rows = list(value.values())
        lists = [row for row in rows if isinstance(row, list)]
        if len(lists) == 1:  # {"version": 1, "data": [...]}
            return lists[0]
        if rows and all(isinstance(row, dict) for row in rows):  # {"id1": {...}, "id2": {...}}
            return rows
    return value if isinstance(value, list) else [value]


def table_rows(text, delimiter, where):
    """Lines of a table whose first line names the columns -> dicts."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(text, delimiter=delimiter)
    try:
        yield from rows
    except csv.Error as error:
        raise Damaged(f"{where}, line {rows.line_num}: {error}") from None


def column_of(rows, column, where):
    """Rows, objects or strings, -> the text in their column; None where there is none. InputError
    if the first ROWS rows that are not null, or all, have none."""
    some, wrong = False, 0
    for row in rows:
        text = row.get(column) if isinstance(row, dict) else row
        some = some or isinstance(text, str)
        if not some and not (text is None and (row is None or column in row)):
            wrong, last = wrong + 1, row
            if wrong == ROWS:
                break
        yield text if isinstance(text, str) else None
    if some or not wrong:
        return
    if isinstance(last, dict) and column in last:
        kind = type(last[column]).__name__
        raise InputError(f"{where}: column '{column}' is not text but {kind}")
    has = ", ".join(map(str, last)) if isinstance(last, dict) else type(last).__name__
    has = f"{has[:200]} ..." if len(has) > 200 else has
    raise InputError(f"{where}: no text in column '{column}' (it has: {has}); choose with --column")


def parquet(raw, row, column, where):
    """An open parquet file from a row on -> (list of at most ROWS texts, share of it read); row
    groups before it are not read."""
    import pyarrow.parquet  # a dependency of datasets
    try:
        with pyarrow.parquet.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                what = "two columns" if column in names else "no column"
                raise InputError(f"{where}: {what} '{column}' (it has: {', '.join(names)}); "
                                 "choose with --column")
            kind = file.schema_arrow.field(column).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if str(kind) not in ("string", "large_string", "string_view"):
                raise InputError(f"{where}: column '{column}' is not text but {kind}")
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum([0, *sizes])
            group = int(np.searchsorted(ends[1:], row, "right"))  # the one that holds the row
            skip = row - int(ends[group])
            groups = range(group, len(sizes))
            for batch in file.iter_batches(ROWS, groups, [column], use_threads=False):
                texts = batch[column].to_pylist()[skip:]
                skip = max(0, skip - len(batch))
                if texts:
                    row += len(texts)
                    yield texts, row / file.metadata.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"{where}: not a parquet file of UTF-8 text, or damaged ({error})") from None


def lists(texts, row):
    """Texts, of which `row` are passed over -> lists of at most ROWS, and of few characters more
    than BATCH."""
    some, size = [], 0
    for text in itertools.islice(texts, row, None):
        some.append(text)
        size += len(text or "")
        if len(some) == ROWS or size >= BATCH:
            yield some
            some, size = [], 0
    if some:
        yield some


def read_texts(raw, name, row, column, separator):
    """An open file of any known kind, from its row `row` on -> (list of at most ROWS texts, share
    of the file read). A row without text is None. InputError if it cannot be read so."""
    kind, packing = kind_of(name)
    if kind == "parquet":
        yield from parquet(raw, row, column, name)
        return
    size = max(1, raw.seek(0, os.SEEK_END))
    raw.seek(0)
    try:
        unpacked = raw
        if packing == "gz":
            unpacked = gzip.open(raw)
        elif packing == "zst":
            import pyarrow
            unpacked = pyarrow.CompressedInputStream(raw, "zstd")
        text = io.TextIOWrapper(unpacked, "utf-8-sig")  # reads \r\n and \r as \n
        if kind in ("txt", "md"):
            texts = plain_text(iter(lambda: text.read(CHUNK), ""), separator)
        else:
            if kind == "jsonl":
                rows = json_lines(text, name)
            elif kind == "json":
                rows = json_rows(text, column, name)
            else:
                rows = table_rows(text, "\t" if kind == "tsv" else ",", name)
            texts = column_of(rows, column, name)
        for some in lists(texts, row):
            yield some, raw.tell() / size
    except UnicodeDecodeError as error:
        raise Damaged(f"{name}: not UTF-8 ({error})") from None
    except (EOFError, zlib.error, OSError) as error:
        if "too much memory" in str(error):
            raise InputError(f"{name}: its zstd window is larger than 128 MiB (zstd --long=28 and "
                             "more); pack it again without --long") from None
        if not packing:
            raise
        raise Damaged(f"{name}: damaged {packing} ({error})") from None


def read_files(paths, names, open_file, position, column, separator):
    """Files one after the other, from a position {"file": i, "row": n} on, as `Source.rows`.
    `names` are for messages, `open_file(path)` opens one."""
    for i in range(position["file"], len(paths)):
        row = position["row"] if i == position["file"] else 0
        with open_file(paths[i]) as raw:
            for texts, done in read_texts(raw, names[i], row, column, separator):
                row += len(texts)
                done = (i + done) / len(paths)
                yield split_rows(texts, separator), done, position | {"file": i, "row": row}


# ---- files -------------------------------------------------------------------------------------

def files_below(folder):
    """The files of known kinds below a folder, sorted, without hidden ones; links are followed,
    each folder is read once. InputError for a link that leads nowhere."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [f for f in sorted(folders) if not f.startswith(".")]
        names = [] if real in seen else names
        seen.add(real)
        found += [Path(here, name) for name in names if not name.startswith(".") and kind_of(name)]
    for path in found:
        if not path.exists():
            raise InputError(f"{path} is a link to nothing (its content may have to be fetched)")
    return sorted(path for path in found if path.is_file())


def expand(paths):
    """Files, folders and patterns -> files, each checked to be there and of a known kind."""
    found = []
    for path in paths:
        if path.is_dir():
            below = files_below(path)
            if not below:
                raise InputError(f"{path}: no file of a known kind in this folder ({KNOWN})")
            found += below
        elif not path.exists() and re.search(r"[*?[]", str(path)):  # a shell that leaves them
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise InputError(f"{path}: no such files")
            found += expand(map(Path, matches))
        elif not kind_of(path.name):
            raise InputError(f"{path}: unknown kind of file ({KNOWN} are known)")
        elif not path.is_file():
            raise InputError(f"{path}: no such file")
        else:
            found.append(path)
    return found


def files(paths, column, separator=SEPARATOR):
    """Text files -> Source; the first rows of each are read before anything is made."""
    names = list(map(str, paths))

    def rows(position):
        return read_files(paths, names, lambda path: open(path, "rb"), position, column, separator)

    for path, name in zip(paths, names):
        with open(path, "rb") as raw:
            next(read_texts(raw, name, 0, column, separator), None)
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return Source("text", identity, lambda: {"file": 0, "row": 0}, rows)


# ---- the Hub -----------------------------------------------------------------------------------

HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
       "cosmopedia": ("HuggingFaceTB/cosmopedia", "web_samples_v2")}
WAITS = 2, 5, 15, 45, 135  # seconds before a stream is opened again, after the client's own tries
PROGRAM = "Dataset scripts are no longer supported"  # what `datasets` says of a dataset that is one


def permanent(error):
    """Whether trying again cannot help: what was asked for is wrong, or the Hub says so."""
    import datasets
    import pyarrow
    from huggingface_hub.errors import OfflineModeIsEnabled
    damaged = Damaged, pyarrow.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError
    wrong = (InputError, OfflineModeIsEnabled, ValueError,
             datasets.exceptions.FileNotFoundDatasetsError)
    while error:
        if isinstance(error, damaged):  # garbage came, or half of it
            return False
        answer = getattr(getattr(error, "response", None), "status_code", 0)
        refused = 400 <= answer < 500 and answer not in (408, 429)
        if refused or PROGRAM in str(error) or isinstance(error, wrong):
            return True
        error = error.__cause__
    return False


def tried_again(repo, rows, position):
    """`rows(position)`, opened anew at the last position when it fails, after each of WAITS; then
    OSError. The client itself has tried a failing request for half a minute by then."""
    waits = iter(WAITS)
    while True:
        try:
            for texts, done, position in rows(position):
                yield texts, done, position
                waits = iter(WAITS)
            return
        except Exception as error:  # the client raises its own, httpx's, pyarrow's, OSError ...
            wait = None if permanent(error) else next(waits, None)
            says = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if isinstance(error, InputError):
                says = str(error)
            endpoint = os.environ.get("HF_ENDPOINT", "the Hub")
            says = f"cannot stream {repo} from {endpoint} ({says})"
            if PROGRAM in says:
                says += "; --revision=refs/convert/parquet may have it as parquet"
            if wait is None:
                raise OSError(says) from error
            tqdm.write(f"{says}; trying again in {wait} s", file=sys.stderr)
            time.sleep(wait)


def stream(name, repo, config=None, split="train", column="text", revision=None, share=1.0,
           separator=SEPARATOR):
    """A dataset of the Hub, streamed -> Source. A position is the dataset's revision, the file and
    the row.

    `datasets` says which files a split has. They are read here, parquet a row group at a time: its
    own iterator lets arrow read far ahead, and to go on within a file it fetches that file again
    from its start (as is done here for files other than parquet, which have no index).
    """
    def first_position(_):
        import datasets
        from huggingface_hub import HfApi
        endpoint = datasets.config.HF_ENDPOINT
        if not re.match("https?://", endpoint):
            raise InputError(f"HF_ENDPOINT={endpoint} does not begin with https:// or http://")
        sha = HfApi().dataset_info(repo, revision=revision).sha
        yield [], 0.0, {"revision": sha, "file": 0, "row": 0}

    def rows(position):
        import datasets
        from huggingface_hub import HfFileSystem
        builder = datasets.load_dataset_builder(repo, config, revision=position["revision"])
        paths = builder.config.data_files
        if split not in paths:
            raise InputError(f"{repo} has no split '{split}' (it has: {', '.join(paths)}); "
                             "choose with --split")
        paths = paths[split]
        unknown = [path for path in paths if not kind_of(path)]
        if unknown:
            raise InputError(f"{unknown[0]}: unknown kind of file ({KNOWN} are known); a copy in "
                             "parquet may be at --revision=refs/convert/parquet")
        names = [re.sub("^hf://datasets/.*?@[^/]*/", "", path) for path in paths]
        yield from read_files(paths, names, HfFileSystem().open, position, column, separator)

    return Source(name, [repo, config, split, column, revision],
                  lambda: next(tried_again(repo, first_position, None))[2],
                  lambda position: tried_again(repo, rows, position), share)


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
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    except OSError:  # a folder or a dangling link of that name
        return []
    # as ast.walk, but without the expressions, which are most of a tree
    statements = ast.stmt, ast.excepthandler, ast.match_case
    nodes = [tree]
    for node in nodes:
        nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, statements)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in nodes if isinstance(node, documented)]
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
    """The docstrings of the standard library and of PACKAGES -> Source: real technical English, on
    every machine already, and the same wherever Python and requirements.txt are. One line names
    the packages that are not there."""
    paths = python_files(Path(sysconfig.get_path("stdlib")), sys.stdlib_module_names)
    missing = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
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

    def rows(row):
        for some in lists(texts, row):
            row += len(some)
            yield some, row / len(texts), row
    return Source("docstrings", identity, lambda: 0, rows)
