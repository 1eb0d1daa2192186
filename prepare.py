"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                                    # the default: prose that every Python already carries
    python prepare.py text FILE... --name=mine --tokenizer=gpt2     # .txt .md .jsonl .jsonl.gz .parquet
    python prepare.py fineweb-edu --tokens=10e6 --name=fineweb      # streamed from the Hub, or from HF_ENDPOINT

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and meta.json. A document goes to
validation by its hash, so equal documents never stand on both sides. Work happens in data/NAME.partial, which is renamed when all is
done: a preparation that is interrupted leaves nothing that looks finished.
"""
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
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tokenizer as tokenizers
from common import InputError, Parser, run, whole_number

PIECE = 10_000        # characters; a plain text file is cut at blank lines into documents of at least this size
BATCH = 4_000_000     # characters that are encoded at a time
BPE_SAMPLE = 256e6    # characters of training text that a tokenizer is trained on, at most
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# A source is a generator of (document, share of the source read so far); one that is asked twice gives the same documents.


def file_docstrings(path):
    """The docstrings of one Python file, top to bottom; none from a file that does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = ((node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, documented))
    return [text for node, text in sorted(found, key=lambda pair: getattr(pair[0], "lineno", 0)) if text]


def docstrings():
    """The docstrings of the standard library and of the installed packages: real technical English, on every machine already."""
    standard, installed = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    paths = [p for p in sorted(standard.rglob("*.py")) if "site-packages" not in p.parts] + sorted(installed.rglob("*.py"))
    with ProcessPoolExecutor(CPUS) as pool:
        found = tqdm(pool.map(file_docstrings, paths, chunksize=64), "reading docstrings", len(paths), unit="file")
        texts = list(dict.fromkeys(itertools.chain.from_iterable(found)))  # without duplicates, in order
    return lambda: ((text, (i + 1) / len(texts)) for i, text in enumerate(texts))


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
    from datasets import load_dataset
    try:
        about = pyarrow.parquet.read_metadata(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a parquet file ({error})") from None
    names = about.schema.to_arrow_schema().names
    if column not in names:
        raise InputError(f"{path}: no column '{column}' (it has: {', '.join(names)}); choose with --column")
    rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True, columns=[column])
    try:
        for i, row in enumerate(rows):
            if not isinstance(row[column], str):
                raise InputError(f"{path}, row {i}: column '{column}' is not text")
            yield row[column], (i + 1) / about.num_rows
    except (ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


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
    return lambda: ((text, (i + share) / len(paths)) for i, path in enumerate(paths) for text, share in read_file(path, column))


def fineweb_edu():
    """FineWeb-Edu's 10-billion-token sample, streamed; how far the stream goes is not known in advance."""
    from datasets import load_dataset
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        for row in load_dataset("HuggingFaceFW/fineweb-edu", "sample-10BT", split="train", streaming=True):
            yield row["text"], 0.0
    except Exception as error:  # the client raises its own, httpx's, pyarrow's, OSError and ValueError
        raise InputError(f"cannot stream HuggingFaceFW/fineweb-edu from {where} ({type(error).__name__}: {error})") from error


def is_validation(text, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < fraction * 2**64


def clean(source):
    """Drop empty documents; a lone surrogate, which no encoding of Unicode has, becomes '?'."""
    return ((text, share) for text, share in ((t.encode(errors="replace").decode(), s) for t, s in source) if text.strip())


def make_tokenizer(name, source, val_fraction, limit):
    """`gpt2`, or `bpe:N` trained on the first `limit` characters of the training documents of `source`."""
    def training_text():
        seen = 0
        with tqdm(desc=f"training {name}", total=1.0, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:
            for text, share in source():
                if not is_validation(text, val_fraction):
                    yield text
                    seen += len(text)
                    bar.update(max(share, min(seen / limit, 1)) - bar.n)
                if seen >= limit:
                    break
        if not seen:
            raise InputError("no text to train a tokenizer on: there are no documents for train")
    if name == "gpt2":
        return tokenizers.gpt2()
    size = re.fullmatch(r"bpe:(\d+)", name)
    if not size:
        raise InputError(f"unknown tokenizer '{name}' (gpt2 and bpe:N are known, as in bpe:4096)")
    try:
        return tokenizers.train_bpe(training_text(), int(size[1]))
    except ValueError as error:
        raise InputError(str(error)) from None


def encode(folder, source, tok, val_fraction, wanted):
    """Encode the documents of `source` into folder/{train,val}.bin, at most `wanted` tokens; returns what meta.json says of them."""
    dtype = np.dtype(np.uint16 if tok.vocab_size <= 2**16 else np.uint32)
    stats = {split: dict(tokens=0, documents=0, text_bytes=0, sha256=hashlib.sha256()) for split in ("train", "val")}
    total = 0
    bar = tqdm(desc="encoding", total=1.0, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
    with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val, bar:
        for texts, share in batches(source):
            written = total
            ids = {"train": [], "val": []}
            for text, tokens in zip(texts, tok.encode_batch(texts, CPUS)):
                split = "val" if is_validation(text, val_fraction) else "train"
                ids[split] += tokens
                ids[split].append(tok.eot)
                total += len(tokens) + 1
                stats[split]["documents"] += 1
                stats[split]["text_bytes"] += len(text.encode())
                if total >= wanted:
                    break
            for split, file in (("train", train), ("val", val)):
                raw = np.array(ids[split], dtype).tobytes()
                file.write(raw)
                stats[split]["sha256"].update(raw)
                stats[split]["tokens"] += len(ids[split])
            bar.set_postfix_str(f"{total:,} tokens, {total / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            bar.update(min(1, max(share, total / wanted)) - bar.n)
            if total >= wanted:
                break
        for file in (train, val):
            file.flush()
            os.fsync(file.fileno())
    for split in stats.values():
        split["sha256"] = split["sha256"].hexdigest()
    return {"dtype": dtype.name} | {key: {split: stats[split][key] for split in stats} for key in stats["train"]}


def batches(source):
    """(document, share) pairs -> (list of documents of about BATCH characters in all, share)."""
    texts, size = [], 0
    for text, share in source:
        texts.append(text)
        size += len(text)
        if size >= BATCH:
            yield texts, share
            texts, size = [], 0
    if texts:
        yield texts, share


def prepare(args, source):
    """Make the tokenizer, encode, check that there is something on both sides, and put the finished folder in its place."""
    final, folder = Path("data") / args.name, Path("data") / f"{args.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being written by another process") from None
        try:
            wanted = args.tokens or float("inf")
            tok = make_tokenizer(args.tokenizer, lambda: clean(source()), args.val_fraction, min(BPE_SAMPLE, 5 * wanted))
            stats = encode(folder, clean(source()), tok, args.val_fraction, wanted)
            for split, tokens in stats["tokens"].items():
                if not tokens:
                    documents = sum(stats["documents"].values())
                    raise InputError(f"no text for {split}: {documents} documents, --val_fraction={args.val_fraction}")
            if (total := sum(stats["tokens"].values())) < wanted < float("inf") and not args.allow_short:
                raise InputError(f"the stream ended after {total:,} of {args.tokens:,} tokens; --allow_short keeps what there is")
            meta = {"name": args.name, "vocab_size": tok.vocab_size} | stats | {
                "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": {"python": platform.python_version()} | {p: version(p) for p in ("numpy", "tiktoken", "rustbpe", "datasets")},
                "tokenizer": tok.state}
            meta["checksum"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
            (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
            os.remove(folder / "lock")
            replaced = Path(f"{final}.replaced")
            if final.exists():  # --overwrite: the old data leaves only when the new is complete
                shutil.rmtree(replaced, ignore_errors=True)
                os.rename(final, replaced)
            os.rename(folder, final)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # data/ itself goes if it is empty
                folder.parent.rmdir()
    print(f"{final}: {meta['tokens']['train']:,} training tokens, {meta['tokens']['val']:,} validation tokens, "
          f"{tok.vocab_size:,} ids, {sum(meta['text_bytes'].values()) / sum(meta['tokens'].values()):.2f} bytes/token")


def fraction(text):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


def main():
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="docstrings|text|fineweb-edu")
    for kind, default in (("docstrings", "bpe:4096"), ("text", "gpt2"), ("fineweb-edu", "gpt2")):
        sub = kinds.add_parser(kind)
        sub.add_argument("--name", default=None if kind == "text" else kind, required=kind == "text", help="the folder below data/")
        sub.add_argument("--tokenizer", default=default, help="gpt2, or bpe:N trained on the training text")
        sub.add_argument("--val_fraction", type=fraction, default=0.02, help="share of the documents kept for validation")
        sub.add_argument("--overwrite", action="store_true", help="replace data/NAME once the new data is complete")
        sub.set_defaults(tokens=None, allow_short=False)
        if kind == "text":
            sub.add_argument("files", nargs="+", type=Path)
            sub.add_argument("--column", default="text", help="of .jsonl and .parquet files")
        if kind == "fineweb-edu":
            sub.add_argument("--tokens", type=whole_number, default=10_000_000, help="how many to take, both splits together")
            sub.add_argument("--allow_short", action="store_true", help="accept a stream that ends earlier")
    args = parser.parse_args()
    if not re.fullmatch(r"[\w-][\w.-]*", args.name):
        raise InputError(f"--name='{args.name}' is not a plain folder name")
    if (Path("data") / args.name).exists() and not args.overwrite:
        raise InputError(f"data/{args.name} exists; --overwrite replaces it")
    prepare(args, {"docstrings": docstrings, "text": lambda: files(args.files, args.column), "fineweb-edu": lambda: fineweb_edu}[args.kind]())


if __name__ == "__main__":
    run(main)
