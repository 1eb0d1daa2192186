"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                                # prose that every Python carries
    python prepare.py text FILE... --name=mine --tokenizer=gpt2 # .txt .md .jsonl .jsonl.gz .parquet
    python prepare.py fineweb-edu --tokens=2.5e9 --val_tokens=10e6  # from the Hub, or HF_ENDPOINT
    python prepare.py fineweb-edu --mix=cosmopedia=0.2 --tokenizer=unicode --name=mixed

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and
meta.json. A document goes to validation by its hash, so equal documents never stand on both sides.
Work happens in data/NAME.partial, which is renamed when all is done. Whatever ends it earlier - a
kill, the network, a full disk - the same command goes on where it was last saved, and the files are
byte for byte those of a run that nothing disturbed. Only bad input leaves nothing.
"""
import contextlib
import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from lib import sources as documents
from lib import tokenizer
from lib.bins import BAR, clean, encode, finish, id_type, is_validation, new_state, resume
from lib.common import InputError, Parser, run, whole_number

SAMPLE = 256_000_000  # characters of training text that a tokenizer is trained on, at most


def training_text(name, sources, val_fraction, limit, sample):
    """The first training documents of the sources, `limit` characters, shared as the tokens are.
    `sample` counts them. InputError if there are none."""
    with tqdm(desc=f"training {name}", total=1.0, bar_format=BAR) as bar:
        for source in sources:
            wanted = sample["characters"] + limit * source.share
            for texts, share, _ in source.read(None):
                for text in clean(texts):
                    if not is_validation(text, val_fraction) and sample["characters"] < wanted:
                        yield text
                        sample["documents"] += 1
                        sample["characters"] += len(text)
                done = max(share * source.share, sample["characters"] / limit)
                bar.update(max(bar.n, min(1, done)) - bar.n)
                if sample["characters"] >= wanted:
                    break
    if not sample["characters"]:
        raise InputError("no text to train a tokenizer on: there are no documents for train")


def make_tokenizer(name, sources, val_fraction, limit):
    """`gpt2`; or `bpe:N` or `unicode`, trained on the first training documents of the sources:
    `limit` characters. Returns the tokenizer and the size of that sample."""
    if name == "gpt2":
        return tokenizer.gpt2(), None
    size = re.fullmatch(r"bpe:(\d+)", name)
    if not size and name != "unicode":
        raise InputError(f"unknown tokenizer '{name}' (gpt2, unicode and bpe:N are known, "
                         "as in bpe:4096)")
    sample = {"documents": 0, "characters": 0}
    texts = training_text(name, sources, val_fraction, limit, sample)
    try:
        if size:
            tok = tokenizer.train_bpe(texts, int(size[1]))
        else:
            tok = tokenizer.train_unicode(texts)
    except ValueError as error:
        raise InputError(str(error)) from None
    print(f"{name}: trained on the first {sample['characters']:,} characters of training text, "
          f"{sample['documents']:,} documents")
    return tok, sample


def prepare(args, sources):
    """Make the tokenizer, encode, check that there is something on both sides, and finish;
    or go on where an earlier call was ended."""
    final, folder = Path("data") / args.name, Path("data") / f"{args.name}.partial"
    infinite = float("inf")
    wanted, val_fraction = {"train": infinite, "val": infinite}, args.val_fraction
    if args.tokens:  # the share that fills both splits at the same time; a full split drops the rest
        wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
        val_fraction = max(wanted["val"] / sum(wanted.values()), 0.001)
    versions = {p: version(p) for p in ("numpy", "tiktoken", "rustbpe", "datasets")}
    versions = {"python": platform.python_version()} | versions
    command = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
    arguments = {key: str(value) for key, value in vars(args).items()
                 if key not in ("overwrite", "allow_short")}
    job = {"arguments": arguments, "versions": versions,
           "sources": [[source.name, source.share, source.identity] for source in sources]}
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
                    raise InputError(f"{folder} was begun by '{state['command']}', with other "
                                     "options, text or libraries; --overwrite starts over")
            except InputError:
                if not args.overwrite:
                    raise
                os.remove(saved)
                state, hashes = None, None
        try:
            if state:
                print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
            else:
                limit = min(SAMPLE, 5 * sum(wanted.values()))
                tok, sample = make_tokenizer(args.tokenizer, sources, val_fraction, limit)
                state = new_state(sources) | {"job": job, "command": command, "sample": sample,
                                              "tokenizer": tok.state}
            encode(folder, sources, tok, val_fraction, wanted, state, hashes)
            tokens = state["tokens"]
            for split in tokens:
                if not tokens[split]:
                    found = sum(state["documents"].values())
                    raise InputError(f"no text for {split}: {found} documents, "
                                     f"validation share {val_fraction:g}")
            short = any(tokens[split] < wanted[split] < infinite for split in tokens)
            if short and not args.allow_short:
                had = " and ".join(f"{tokens[split]:,} of {wanted[split]:,} {split} tokens"
                                   for split in tokens)
                raise OSError(f"the stream ended after {had}; with --allow_short these are kept")
            meta = {"name": args.name, "vocab_size": tok.vocab_size, "dtype": id_type(tok).name}
            kept = "tokens", "documents", "text_bytes", "sha256", "sources", "sample"
            meta |= {key: state[key] for key in kept}
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            meta |= {"command": command, "date": date, "versions": versions,
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
    size = sum(meta["text_bytes"].values()) / sum(tokens.values())
    print(f"{final}: {tokens['train']:,} training tokens, {tokens['val']:,} validation tokens, "
          f"{tok.vocab_size:,} ids, {size:.2f} bytes/token")


def fraction(text):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


def mixed(text):
    """An argparse type: NAME=SHARE -> (name, share). Raises ValueError."""
    name, _, share = text.partition("=")
    if name not in documents.HUB or name == "fineweb-edu":
        raise ValueError
    return name, fraction(share)


def main():
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="docstrings|text|fineweb-edu")
    for kind, default in (("docstrings", "bpe:4096"), ("text", "gpt2"), ("fineweb-edu", "gpt2")):
        sub = kinds.add_parser(kind)
        own = kind != "text"
        sub.add_argument("--name", default=kind if own else None, required=not own,
                         help="the folder below data/")
        sub.add_argument("--tokenizer", default=default,
                         help="gpt2; or bpe:N or unicode, trained on the first "
                              f"{SAMPLE:,} characters (at most) of training text")
        sub.add_argument("--overwrite", action="store_true",
                         help="replace data/NAME once the new is complete; start over where "
                              "another left data/NAME.partial")
        sub.set_defaults(tokens=None, val_tokens=None, val_fraction=None, allow_short=False, mix=[])
        if kind != "fineweb-edu":
            sub.add_argument("--val_fraction", type=fraction, default=0.02,
                             help="share of the documents kept for validation")
        if kind == "text":
            sub.add_argument("files", nargs="+", type=Path)
            sub.add_argument("--column", default="text", help="of .jsonl and .parquet files")
        if kind == "fineweb-edu":
            sub.add_argument("--tokens", type=whole_number, default=10_000_000,
                             help="how many training tokens; the last document is whole")
            sub.add_argument("--val_tokens", type=whole_number,
                             help="how many validation tokens (default: 2 %% of --tokens)")
            sub.add_argument("--mix", type=mixed, action="append", metavar="cosmopedia=SHARE",
                             help="share of the tokens that come from HuggingFaceTB/cosmopedia, "
                                  "web_samples_v2")
            sub.add_argument("--allow_short", action="store_true",
                             help="accept a stream that ends earlier")
    args = parser.parse_args()
    reserved = args.name.endswith((".partial", ".replaced"))
    if not re.fullmatch(r"[\w-][\w.-]*", args.name) or reserved:
        raise InputError(f"--name='{args.name}' is not a plain folder name, "
                         "or one that prepare.py uses itself")
    final = Path("data") / args.name
    if final.exists() and not (args.overwrite and final.is_dir()):
        says = "; --overwrite replaces it" if final.is_dir() else " and is no folder"
        raise InputError(f"{final} exists{says}")
    shares = dict(args.mix)
    if len(shares) < len(args.mix) or sum(shares.values()) >= 1:
        raise InputError("--mix: the shares are one for each source and leave something for "
                         "fineweb-edu")
    if args.kind == "fineweb-edu":
        shares = {"fineweb-edu": 1 - sum(shares.values())} | shares
        sources = [documents.stream(name, share) for name, share in shares.items()]
    elif args.kind == "docstrings":
        sources = [documents.docstrings()]
    else:
        sources = [documents.files(args.files, args.column)]
    prepare(args, sources)


if __name__ == "__main__":
    run(main)
