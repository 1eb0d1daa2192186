"""Where documents come from: docstrings, files, the Hub.

A source gives its documents in a fixed order, a batch at a time: `read(position)` is a generator of
(documents, share of the source that is read, position), and `read(None)` starts. A position is
JSON: reading from it gives what follows the batch that it came with. `identity` is what must not
change between the two; `share` is the source's part of the tokens.
"""
import ast
import glob
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
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lib.errors import InputError
from lib.formats import KNOWN, Damaged, kind_of, read_texts, split_rows

BATCH = 4_000_000  # characters that are encoded at a time; of a stream, what formats.ROWS rows have
SEPARATOR = "<|endoftext|>"
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
        size += len(text or "")
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
    shares = [(i + 1) / len(texts) for i in range(len(texts))]
    return local("docstrings", identity, lambda: zip(texts, shares))


# ---- files -------------------------------------------------------------------------------------

def expand(paths):
    """Files, folders and patterns -> files, each checked to be there. A folder gives all files of
    known kinds below it, without hidden ones."""
    found = []
    for path in paths:
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and kind_of(p.name)]
            below = [p for p in below
                     if not any(part.startswith(".") for part in p.relative_to(path).parts)]
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


def read_file(path, column, separator):
    """One file -> (list of documents, share of the file read)."""
    with open(path, "rb") as raw:
        for texts, share in read_texts(raw, str(path), 0, column, separator):
            yield split_rows(texts, separator), share


def files(paths, column, separator=SEPARATOR):
    """Text files -> documents; of all of them the first is read before anything is made."""
    paths = expand(paths)
    for path in paths:
        next(read_file(path, column, separator), None)
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    def documents():
        for i, path in enumerate(paths):
            for texts, share in read_file(path, column, separator):
                for text in texts:
                    yield text, (i + share) / len(paths)
    return local("text", identity, documents)


# ---- the Hub -----------------------------------------------------------------------------------

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


def stream(name, repo, config=None, split="train", column="text", revision=None, share=1.0,
           separator=SEPARATOR):
    """A dataset of the Hub, streamed. A position is the dataset's revision, the shard and the row.

    `datasets` says which files a split has. They are read here, parquet a row group at a time: its
    own iterator lets arrow read far ahead, and to go on within a shard it fetches that shard again
    from its start (as is done here for files other than parquet, which have no index). The client
    itself tries a failing request again for half a minute; then the stream is opened anew at the
    last position, after each of WAITS; then OSError.
    """
    pinned = []  # the revision, asked once: the tokenizer and the bins are of the same

    def from_position(position):
        import datasets
        from huggingface_hub import HfApi, HfFileSystem
        endpoint = datasets.config.HF_ENDPOINT
        if not re.match("https?://", endpoint):
            raise InputError(f"HF_ENDPOINT={endpoint} does not begin with https:// or http://")
        position = dict(position)
        if not position["revision"]:
            pinned[:] = pinned or [HfApi().dataset_info(repo, revision=revision).sha]
            position["revision"] = pinned[0]
            yield [], 0.0, dict(position)  # where the first documents' state belongs to
        builder = datasets.load_dataset_builder(repo, config, revision=position["revision"])
        paths = builder.config.data_files
        if split not in paths:
            raise InputError(f"{repo} has no split '{split}' (it has: {', '.join(paths)}); "
                             "choose with --split")
        paths = paths[split]
        while position["shard"] < len(paths):
            path = paths[position["shard"]]
            if not kind_of(path):
                raise InputError(f"{path}: unknown kind of file ({KNOWN} are known); a copy in "
                                 "parquet may be at --revision=refs/convert/parquet")
            name = re.sub("^hf://datasets/.*?@[^/]*/", "", path)
            with HfFileSystem().open(path) as raw:
                for texts, done in read_texts(raw, name, position["row"], column, separator):
                    position["row"] += len(texts)
                    done = (position["shard"] + done) / len(paths)
                    yield split_rows(texts, separator), done, dict(position)
            position.update(shard=position["shard"] + 1, row=0)

    def read(position):
        position = position or {"revision": None, "shard": 0, "row": 0}
        waits = iter(WAITS)
        while True:
            try:
                for texts, done, position in from_position(position):
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
    return Source(name, share, [repo, config, split, column, revision], read)
