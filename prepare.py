"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                                    # the default: prose that every Python already carries
    python prepare.py text FILE... --name=mine --tokenizer=gpt2     # .txt .md .jsonl .jsonl.gz .parquet
    python prepare.py fineweb-edu --tokens=2.5e9 --val_tokens=10e6  # streamed from the Hub, or from HF_ENDPOINT
    python prepare.py fineweb-edu --mix=cosmopedia=0.2 --tokenizer=unicode --name=mixed

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and meta.json. A document goes to
validation by its hash, so equal documents never stand on both sides. Work happens in data/NAME.partial, which is renamed when all
is done. Whatever ends it earlier - a kill, the network, a full disk - the same command goes on where it was last saved, and the
files are byte for byte those of a run that nothing disturbed. Only bad input leaves nothing.
"""
import array
import ast
import contextlib
import fcntl
import gzip
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import time
import warnings
import zlib
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import tokenizer
from lib.common import InputError, Parser, run, whole_number, write_atomic

PIECE = 10_000        # characters; a plain text file is cut at blank lines into documents of at least this size
BATCH = 4_000_000     # characters that are encoded at a time,
ROWS = 500            # or documents of a stream
SAMPLE = 256_000_000  # characters of training text that a tokenizer is trained on, at most
SAVE_EVERY = 5        # seconds between saved states, at most; what a kill costs
WAITS = 2, 5, 15, 45, 135  # seconds before the stream is opened again, after the client's own tries at each request
HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"), "cosmopedia": ("HuggingFaceTB/cosmopedia", "web_samples_v2")}
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# A source gives its documents in a fixed order, a batch at a time: read(position) is a generator of (documents, how far the
# source is read, position), and read(None) starts. A position is JSON: reading from it gives what follows the batch it came with.
# `identity` is what must not change between the two; `share` is the source's part of the tokens.
Source = namedtuple("Source", "name share identity read")


def batches(documents):
    """(document, share read) pairs -> (list of documents of about BATCH characters in all, share read)."""
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
    """A source whose `documents()` always starts at the first: a position is how many to pass over."""
    def read(position):
        position = position or 0
        for texts, share in batches(itertools.islice(documents(), position, None)):
            position += len(texts)
            yield texts, share, position
    return Source(name, 1.0, identity, read)


def stream(name, share):
    """A dataset of the Hub, streamed. A position is the dataset's revision, the shard and the row.

    `datasets` says which files a configuration has. Their row groups are read here, one at a time: its own iterator lets arrow
    read far ahead, and to go on within a shard it fetches that shard again from its start. The client itself tries a failing
    request again for half a minute; then the stream is opened anew at the last position, after each of WAITS; then OSError.
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
                paths = datasets.load_dataset_builder(repo, config, revision=position["revision"]).config.data_files["train"]
                while position["shard"] < len(paths):
                    with HfFileSystem().open(paths[position["shard"]]) as raw, pyarrow.parquet.ParquetFile(raw) as file:
                        for texts in rows_from(file, position["row"], "text"):
                            position["row"] += len(texts)
                            read_so_far = (position["shard"] + position["row"] / file.metadata.num_rows) / len(paths)
                            yield [text or "" for text in texts], read_so_far, dict(position)
                            waits = iter(WAITS)
                    position.update(shard=position["shard"] + 1, row=0)
                return
            except Exception as error:  # the client raises its own, httpx's, pyarrow's, OSError and ValueError
                answer = getattr(getattr(error, "response", None), "status_code", 0)
                final = (isinstance(error, (datasets.exceptions.DatasetNotFoundError, ValueError))
                         or 400 <= answer < 500 and answer not in (408, 429))
                wait = None if final else next(waits, None)
                says = f"{type(error).__name__}: {' '.join(str(error).split())}"
                says = f"cannot stream {repo} from {datasets.config.HF_ENDPOINT} ({says})"
                if wait is None:
                    raise OSError(says) from error
                tqdm.write(f"{says}; trying again in {wait} s", file=sys.stderr)
                time.sleep(wait)
    return Source(name, share, [repo, config], read)


def rows_from(file, row, column):
    """A column of an open parquet file from a row on, in lists of at most ROWS; row groups before it are not read."""
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    group = int(np.searchsorted(ends, row, "right"))  # the one that holds the row
    skip = row - int(ends[group - 1] if group else 0)
    for batch in file.iter_batches(ROWS, range(group, file.num_row_groups), [column], use_threads=False):
        texts = batch[column].to_pylist()[skip:]
        skip = max(0, skip - len(batch))
        if texts:
            yield texts


def blocks(tree):
    """A syntax tree and the statements in it, as ast.walk gives them but without the expressions, which are most of it."""
    nodes = [tree]
    for node in nodes:
        yield node
        nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler, ast.match_case))]


def file_docstrings(path):
    """The docstrings of one Python file, top to bottom; none from a file that does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):  # the last: a folder or a dangling link of that name
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = ((node, ast.get_docstring(node)) for node in blocks(tree) if isinstance(node, documented))
    return [text for node, text in sorted(found, key=lambda pair: getattr(pair[0], "lineno", 0)) if text]


def docstrings():
    """The docstrings of the standard library and of the installed packages: real technical English, on every machine already."""
    standard, installed = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    paths = [p for p in sorted(standard.rglob("*.py")) if "site-packages" not in p.parts] + sorted(installed.rglob("*.py"))
    with ProcessPoolExecutor(CPUS) as pool:
        found = tqdm(pool.map(file_docstrings, paths, chunksize=64), "reading docstrings", len(paths), unit="file")
        texts = list(dict.fromkeys(itertools.chain.from_iterable(found)))  # without duplicates, in order
    identity = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
    return local("docstrings", identity, lambda: ((text, (i + 1) / len(texts)) for i, text in enumerate(texts)))


def plain_text(lines):
    """Lines -> documents: pieces of at least PIECE characters that end at a blank line."""
    piece, size = [], 0
    for _, line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE and not line.strip():
            yield "".join(piece).strip("\n")
            piece, size = [], 0
    yield "".join(piece).strip("\n")


def json_lines(lines, path, column):
    """Lines of JSON objects -> the text in `column` of each."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"{path}, line {number}: no text in column '{column}' (it has: {has}); choose with --column")
        yield row[column]


def parquet(path, column):
    """Rows of a parquet file -> (the text in `column`, share read)."""
    import pyarrow.parquet  # a dependency of datasets
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                raise InputError(f"{path}: {'two columns' if column in names else 'no column'} '{column}' "
                                 f"(it has: {', '.join(names)}); choose with --column")
            row = 0
            for texts in rows_from(file, 0, column):
                for text in texts:
                    if not isinstance(text, str):
                        raise InputError(f"{path}, row {row}: column '{column}' is not text")
                    row += 1
                    yield text, row / file.metadata.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a parquet file of UTF-8 text, or damaged ({error})") from None


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
            for text in plain_text(lines()) if path.suffix in (".txt", ".md") else json_lines(lines(), path, column):
                yield text, raw.tell() / size
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 ({error})") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip ({error})") from None


def files(paths, column):
    """Text files -> documents; all are checked to be there before the first is read."""
    for path in paths:
        if not re.search(r"\.(txt|md|jsonl|jsonl\.gz|parquet)$", path.name):
            raise InputError(f"{path}: unknown kind of file (.txt, .md, .jsonl, .jsonl.gz and .parquet are known)")
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return local("text", identity, lambda: ((text, (i + share) / len(paths)) for i, path in enumerate(paths)
                                            for text, share in read_file(path, column)))


def is_validation(text, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < fraction * 2**64


def clean(texts):
    """Drop empty documents; a lone surrogate, which no encoding of Unicode has, becomes '?'."""
    return [text for text in (t.encode(errors="replace").decode() for t in texts) if text.strip()]


def make_tokenizer(name, sources, val_fraction, limit):
    """`gpt2`; or `bpe:N` or `unicode`, trained on the first training documents of the sources: `limit` characters, shared as the
    tokens are. Returns the tokenizer and the size of that sample.
    """
    sample = {"documents": 0, "characters": 0}

    def training_text():
        with tqdm(desc=f"training {name}", total=1.0, bar_format=BAR) as bar:
            for source in sources:
                wanted = sample["characters"] + limit * source.share
                for texts, share, _ in source.read(None):
                    for text in clean(texts):
                        if not is_validation(text, val_fraction) and sample["characters"] < wanted:
                            yield text
                            sample["documents"] += 1
                            sample["characters"] += len(text)
                    bar.update(max(bar.n, min(1, share * source.share), min(1, sample["characters"] / limit)) - bar.n)
                    if sample["characters"] >= wanted:
                        break
        if not sample["characters"]:
            raise InputError("no text to train a tokenizer on: there are no documents for train")
    if name == "gpt2":
        return tokenizer.gpt2(), None
    size = re.fullmatch(r"bpe:(\d+)", name)
    if not size and name != "unicode":
        raise InputError(f"unknown tokenizer '{name}' (gpt2, unicode and bpe:N are known, as in bpe:4096)")
    try:
        tok = tokenizer.train_bpe(training_text(), int(size[1])) if size else tokenizer.train_unicode(training_text())
    except ValueError as error:
        raise InputError(str(error)) from None
    print(f"{name}: trained on the first {sample['characters']:,} characters of training text, {sample['documents']:,} documents")
    return tok, sample


def documents(source, tok, at):
    """(document, ids, share read) of a source from `at` on, which is kept up to date:
    `used` of the batch after `position` are done."""
    for texts, share, position in source.read(at["position"]):
        texts = clean(texts)
        fresh = texts[at["used"]:]
        for text, ids in zip(fresh, tok.encode_batch(fresh, CPUS)):
            at["used"] += 1
            yield text, ids, share
        at.update(position=position, used=at["used"] - len(texts))


def new_state(sources):
    """Where a preparation stands that has not begun."""
    begun = {source.name: {"position": None, "used": 0, "documents": 0, "tokens": 0} for source in sources}
    return {"sources": begun, "sha256": {}} | {key: {"train": 0, "val": 0} for key in ("tokens", "documents", "text_bytes")}


def checksum(state):
    """The hash that goes into state.json and meta.json."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def resume(folder):
    """What encode() saved in a folder -> (state, tokenizer, running hashes of the bins).
    InputError if any of it was changed since."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state.pop("checksum") != checksum(state):
            raise ValueError
        tok, hashes = tokenizer.from_state(state["tokenizer"]), {}
        for split, tokens in state["tokens"].items():
            left, hashes[split] = tokens * id_type(tok).itemsize, hashlib.sha256()
            with open(folder / f"{split}.bin", "rb") as file:
                while left and (chunk := file.read(min(left, 2**20))):
                    hashes[split].update(chunk)
                    left -= len(chunk)
            if hashes[split].hexdigest() != state["sha256"][split]:
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"what an earlier call left in {folder} is damaged; --overwrite starts over") from None
    return state, tok, hashes


def id_type(tok):
    """The numpy type of token ids on disk."""
    return np.dtype(np.uint16 if tok.vocab_size <= 2**16 else np.uint32)


def encode(folder, sources, tok, val_fraction, wanted, state, hashes=None):
    """Encode documents of the sources into folder/{train,val}.bin, from `state` on, until each split has its `wanted` tokens.

    The next document is always from the source that is furthest behind its share. `state` is kept up to date; every SAVE_EVERY
    seconds it is written to folder/state.json, after the tokens that it counts.
    `hashes`: from `resume`, where it went on from there.
    """
    dtype, tokens, done = id_type(tok), state["tokens"], state["sources"]
    hashes = hashes or {split: hashlib.sha256() for split in wanted}
    pending = {split: array.array("I") for split in wanted}
    found = {source.name: documents(source, tok, done[source.name]) for source in sources}
    share_of = {source.name: source.share for source in sources}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.bin", "ab")) for split in wanted}
        for split, file in files.items():
            file.truncate(tokens[split] * dtype.itemsize)  # what came after the state was saved

        def save():
            for split, file in files.items():
                raw = np.frombuffer(pending[split], np.uint32).astype(dtype).tobytes()
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
                hashes[split].update(raw)
                state["sha256"][split], pending[split] = hashes[split].hexdigest(), array.array("I")
            whole = json.dumps(state | {"checksum": checksum(state)}).encode()
            write_atomic(folder / "state.json", lambda file: file.write(whole))

        first, begun = sum(tokens.values()), time.monotonic()
        bar = tqdm(desc="encoding", total=1.0, initial=min(1, tokens["train"] / wanted["train"]), bar_format=BAR)
        stack.enter_context(bar)
        save()
        saved = shown = begun
        while tokens["train"] < wanted["train"] or tokens["val"] < wanted["val"]:
            name = min(found, key=lambda name: done[name]["tokens"] / share_of[name])
            text, ids, share = next(found[name], (None, None, None))
            if text is None:
                break
            split = "val" if is_validation(text, val_fraction) else "train"
            if tokens[split] < wanted[split]:
                pending[split].extend(ids)
                pending[split].append(tok.eot)
                tokens[split] += len(ids) + 1
                done[name]["tokens"] += len(ids) + 1
                done[name]["documents"] += 1
                state["documents"][split] += 1
                state["text_bytes"][split] += len(text.encode())
            if (now := time.monotonic()) - shown >= 0.2:
                total = sum(tokens.values())
                bar.set_postfix_str(f"{total:,} tokens, {(total - first) / (now - begun):,.0f} tokens/s", False)
                bar.update(max(bar.n, share, min(1, tokens["train"] / wanted["train"])) - bar.n)
                shown = now
            if now - saved >= SAVE_EVERY or len(pending[split]) >= 2**22:
                save()
                saved = now
        save()
        bar.update(1 - bar.n)


def finish(folder, final, meta, overwrite):
    """Write meta.json and put the folder in its place; with --overwrite the old data leaves only when the new is complete."""
    meta["checksum"] = checksum(meta)
    write_atomic(folder / "meta.json", lambda file: file.write(json.dumps(meta, indent=1).encode() + b"\n"))
    if final.exists():
        if not overwrite:
            raise OSError(f"{final} was made by another process in the meantime")
        replaced = Path(f"{final}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
        os.rename(folder, final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(folder, final)
    for name in ("state.json", "lock"):
        os.remove(final / name)


def prepare(args, sources):
    """Make the tokenizer, encode, check that there is something on both sides, and finish;
    or go on where an earlier call was ended."""
    final, folder = Path("data") / args.name, Path("data") / f"{args.name}.partial"
    infinite = float("inf")
    wanted, val_fraction = {"train": infinite, "val": infinite}, args.val_fraction
    if args.tokens:  # the share that gives both splits at the same time; what is left over of a full split is dropped
        wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
        val_fraction = max(wanted["val"] / sum(wanted.values()), 0.001)
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("numpy", "tiktoken", "rustbpe", "datasets")}
    command = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
    job = {"arguments": {key: str(value) for key, value in vars(args).items() if key not in ("overwrite", "allow_short")},
           "sources": [[source.name, source.share, source.identity] for source in sources], "versions": versions}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being written by another process") from None
        saved, state, hashes = folder / "state.json", None, None
        if saved.exists():
            try:
                state, tok, hashes = resume(folder)
                if state["job"] != json.loads(json.dumps(job)):
                    raise InputError(f"{folder} was begun by '{state['command']}', with other options, text or libraries; "
                                     "--overwrite starts over")
            except InputError:
                if not args.overwrite:
                    raise
                os.remove(saved)
                state, hashes = None, None
        try:
            if state:
                print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
            else:
                tok, sample = make_tokenizer(args.tokenizer, sources, val_fraction, min(SAMPLE, 5 * sum(wanted.values())))
                state = new_state(sources) | {"job": job, "command": command, "sample": sample, "tokenizer": tok.state}
            encode(folder, sources, tok, val_fraction, wanted, state, hashes)
            tokens = state["tokens"]
            for split in tokens:
                if not tokens[split]:
                    found = sum(state["documents"].values())
                    raise InputError(f"no text for {split}: {found} documents, validation share {val_fraction:g}")
            if any(tokens[split] < wanted[split] < infinite for split in tokens) and not args.allow_short:
                had = " and ".join(f"{tokens[split]:,} of {wanted[split]:,} {split} tokens" for split in tokens)
                raise OSError(f"the stream ended after {had}; with --allow_short these are kept")
            meta = {"name": args.name, "vocab_size": tok.vocab_size, "dtype": id_type(tok).name}
            meta |= {key: state[key] for key in ("tokens", "documents", "text_bytes", "sha256", "sources", "sample")}
            meta |= {"command": command, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "versions": versions,
                     "tokenizer": tok.state}
            finish(folder, final, meta, args.overwrite)
        except BaseException as error:
            if isinstance(error, InputError) or not saved.exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # data/ itself goes if it is empty
                    folder.parent.rmdir()
                raise
            kept = f"{folder} is kept, the same command goes on from there"
            if isinstance(error, OSError):
                raise OSError(f"{error}; {kept}") from error
            print(kept, file=sys.stderr)
            raise
    print(f"{final}: {tokens['train']:,} training tokens, {tokens['val']:,} validation tokens, "
          f"{tok.vocab_size:,} ids, {sum(meta['text_bytes'].values()) / sum(tokens.values()):.2f} bytes/token")


def fraction(text):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


def mixed(text):
    """An argparse type: NAME=SHARE -> (name, share). Raises ValueError."""
    name, _, share = text.partition("=")
    if name not in HUB or name == "fineweb-edu":
        raise ValueError
    return name, fraction(share)


def main():
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="docstrings|text|fineweb-edu")
    for kind, default in (("docstrings", "bpe:4096"), ("text", "gpt2"), ("fineweb-edu", "gpt2")):
        sub = kinds.add_parser(kind)
        own = kind != "text"
        sub.add_argument("--name", default=kind if own else None, required=not own, help="the folder below data/")
        sub.add_argument("--tokenizer", default=default,
                         help=f"gpt2; or bpe:N or unicode, trained on the first {SAMPLE:,} characters (at most) of training text")
        sub.add_argument("--overwrite", action="store_true",
                         help="replace data/NAME once the new is complete; start over where another left data/NAME.partial")
        sub.set_defaults(tokens=None, val_tokens=None, val_fraction=None, allow_short=False, mix=[])
        if kind != "fineweb-edu":
            sub.add_argument("--val_fraction", type=fraction, default=0.02, help="share of the documents kept for validation")
        if kind == "text":
            sub.add_argument("files", nargs="+", type=Path)
            sub.add_argument("--column", default="text", help="of .jsonl and .parquet files")
        if kind == "fineweb-edu":
            sub.add_argument("--tokens", type=whole_number, default=10_000_000,
                             help="how many training tokens; the last document is whole")
            sub.add_argument("--val_tokens", type=whole_number, help="how many validation tokens (default: 2 %% of --tokens)")
            sub.add_argument("--mix", type=mixed, action="append", metavar="cosmopedia=SHARE",
                             help="share of the tokens that come from HuggingFaceTB/cosmopedia, web_samples_v2")
            sub.add_argument("--allow_short", action="store_true", help="accept a stream that ends earlier")
    args = parser.parse_args()
    if not re.fullmatch(r"[\w-][\w.-]*", args.name) or args.name.endswith((".partial", ".replaced")):
        raise InputError(f"--name='{args.name}' is not a plain folder name, or one that prepare.py uses itself")
    if (final := Path("data") / args.name).exists() and not (args.overwrite and final.is_dir()):
        raise InputError(f"{final} exists" + ("; --overwrite replaces it" if final.is_dir() else " and is no folder"))
    shares = dict(args.mix)
    if len(shares) < len(args.mix) or sum(shares.values()) >= 1:
        raise InputError("--mix: the shares are one for each source and leave something for fineweb-edu")
    if args.kind == "fineweb-edu":
        sources = [stream(name, share) for name, share in {"fineweb-edu": 1 - sum(shares.values()), **shares}.items()]
    else:
        sources = [docstrings() if args.kind == "docstrings" else files(args.files, args.column)]
    prepare(args, sources)


if __name__ == "__main__":
    run(main)
