"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                             # prose that every Python carries
    python prepare.py text FILE... --name=mine               # or folders, or "texts/*.jsonl.gz"
    python prepare.py hub roneneldan/TinyStories             # any text dataset of the Hub
    python prepare.py fineweb-edu --tokens=2.5e9 --mix=cosmopedia=0.2 --tokenizer=unicode
    python prepare.py bins ../nanoGPT/data/shakespeare_char --name=chars    # nanoGPT's own files

--tokenizer is gpt2, whose vocabulary is fetched once; or bpe:N or unicode, trained on the text
(bpe:N:indic does not cut words at vowel signs); or a tokenizer of Hugging Face: FILE.json, a
folder, or OWNER/NAME. Files are .txt .md .jsonl .json .csv .tsv, each also .gz or .zst, and
.parquet. hub and fineweb-edu stream from the Hub (HF_ENDPOINT names another).

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and
meta.json. A document goes to validation by its hash, so equal documents never stand on both sides.
The work is done in data/NAME.partial, which is renamed at the end. A state is saved every minute:
after a kill, a lost network or a full disk the same command goes on, to the same files.
"""
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from lib import text, tokenizer
from lib.errors import InputError, Parser, run, this_command, whole_number, write_atomic

SAMPLE = 256_000_000   # characters of training text that a tokenizer is trained on, at most
SAVE_EVERY = 60        # seconds between saved states: what a kill costs
# what can be in data/NAME; meta.json, by which it is known as ours, is deleted last
OURS = "train.bin", "val.bin", "state.json", "lock", "meta.json"


def place(document):
    """A document's place between 0 and 1, by its hash. Those below a fraction are validation."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) / 2**64


def training_text(found, fraction, limit):
    """The first training documents of the sources, `limit` characters, shared as the tokens are."""
    total, read = limit if limit < SAMPLE else None, 0  # a text may be far shorter than SAMPLE
    with tqdm(desc="training a tokenizer", total=total, unit=" characters", unit_scale=1) as bar:
        for source in found:
            wanted = read + limit * source.share
            for document, _ in itertools.chain.from_iterable(source.batches(source.start)):
                if read >= wanted:
                    break
                if document and place(document) >= fraction:
                    yield document
                    read += len(document)
                    bar.update(len(document))


def kept_share(tok, opening, lossy):
    """The share of the opening's characters that decoding gives back. Says so if it is under
    99.9 %, InputError if it is under 95 %, unless `lossy`."""
    lost = Counter(opening) - Counter(tok.decode(tok.encode(opening)))
    kept = 1 - lost.total() / max(1, len(opening))
    if kept < 0.999:
        most = ", ".join(repr(character) for character, _ in lost.most_common(5))
        says = f"{tok.name} loses {100 * (1 - kept):.1f} % of the characters, most of them {most}"
        if kept < 0.95 and not lossy:
            raise InputError(f"{says}; --lossy takes it nevertheless")
        print(f"{says}; bits per byte then count text that is not there")
    return kept


def encoded(source, tok, position):
    """(document or None, position after it, ids) of each row of a source from a position on."""
    for batch in source.batches(position):
        texts = [document or "" for document, _ in batch]
        for (document, position), ids in zip(batch, tok.encode_batch(texts)):
            yield document, position, ids


def encode(folder, found, tok, wanted, state):
    """Encode documents into folder/{train,val}.bin, from `state` on, until each split has its
    `wanted` tokens. The next document is always from the source that is furthest behind its share.
    `state` is written to folder/state.json every SAVE_EVERY seconds, after the tokens it counts."""
    dtype, tokens, done = tokenizer.id_type(tok), state["tokens"], state["sources"]
    rows = {s.name: encoded(s, tok, done[s.name]["position"]) for s in found}
    with (open(folder / "train.bin", "ab") as train, open(folder / "val.bin", "ab") as val,
          tqdm(desc="encoding", total=sum(wanted.values()), initial=sum(tokens.values()),
               unit=" tokens", unit_scale=True) as bar):
        files = {"train": train, "val": val}

        def save():
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            write_atomic(folder / "state.json", lambda file: file.write(json.dumps(state).encode()))
            return time.monotonic()

        for split, file in files.items():
            file.truncate(tokens[split] * dtype.itemsize)  # what came after the state was saved
        saved = save()
        while any(tokens[split] < wanted[split] for split in tokens):
            source = min(found, key=lambda s: done[s.name]["tokens"] / s.share)
            row, counts = next(rows[source.name], None), done[source.name]
            if not row:
                break
            document, counts["position"], ids = row
            if document is None:
                counts["skipped"] += 1
                continue
            split = "val" if place(document) < state["fraction"] else "train"
            if tokens[split] < wanted[split]:
                files[split].write(np.array([*ids, tok.eot], dtype).tobytes())
                tokens[split] += len(ids) + 1
                counts["tokens"] += len(ids) + 1
                state["documents"][split] += 1
                state["text_bytes"][split] += len(document.encode())
                bar.update(len(ids) + 1)
            if time.monotonic() - saved >= SAVE_EVERY:
                saved = save()
        save()


def prepare(args, found, folder, job, state):
    """Make a tokenizer and encode the sources, or go on from a state: (tokenizer, meta)."""
    wanted, fraction = {"train": math.inf, "val": math.inf}, args.val_fraction
    if args.tokens:
        # the share that fills both splits at the same time; a full split drops the rest
        wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
        fraction = max(wanted["val"] / sum(wanted.values()), 0.001)
    if state:
        tok = tokenizer.from_state(state["tokenizer"])
        print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
    else:
        opening = [document for document, _ in next(found[0].batches(found[0].start)) if document]
        whole = "".join(opening)
        if len(whole) < text.BATCH and not args.tokens:
            if len(set(opening)) < 2:
                raise InputError("training and validation need two different documents; lines of "
                                 f"{text.END_OF_TEXT} separate them in a file")
            # however few documents there are, the one with the lowest place goes to validation
            fraction = max(fraction, math.nextafter(min(map(place, opening)), 1))
        limit = min(SAMPLE, 5 * sum(wanted.values()))
        tok = tokenizer.make(args.tokenizer, training_text(found, fraction, limit))
        state = {key: {"train": 0, "val": 0} for key in ("tokens", "documents", "text_bytes")}
        state["sources"] = {source.name: {"position": source.start, "skipped": 0, "tokens": 0}
                            for source in found}
        state |= {"job": job, "fraction": fraction, "tokenizer": tok.state,
                  "kept": kept_share(tok, whole[:1_000_000], args.lossy)}
    encode(folder, found, tok, wanted, state)
    for split, tokens in state["tokens"].items():
        if not tokens:
            raise InputError(f"no text for {split} in {sum(state['documents'].values())} documents")
        if tokens < wanted[split] < math.inf:
            print(f"the text ended after {tokens:,} of {wanted[split]:,} {split} tokens")
    recorded = "tokens", "documents", "text_bytes", "sources", "kept"
    return tok, {key: state[key] for key in recorded}


# ---- the folder --------------------------------------------------------------------------------

def check_place(final, overwrite):
    """InputError if data/NAME is there and may not be replaced. An empty folder may."""
    names = {path.name for path in final.iterdir()} if final.is_dir() else {"a file"}
    may = not names or overwrite and {"meta.json"} <= names <= set(OURS)
    if final.exists() and not may:
        raise InputError(f"{final} exists; choose another --name, or --overwrite, which replaces "
                         "only what prepare.py made")


def clear(folder):
    """Delete the files of ours that a folder has, then it and data/ where they are empty."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.removedirs(folder)


def left_over(folder, job, overwrite):
    """The state that an earlier call of the same job left in a folder, or None."""
    if not (folder / "state.json").exists():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / "state.json").read_bytes())
        size = tokenizer.id_type(tokenizer.from_state(state["tokenizer"])).itemsize
        if state["job"] == job and all((folder / f"{split}.bin").stat().st_size >= n * size
                                       for split, n in state["tokens"].items()):
            return state
    if not overwrite:
        raise InputError(f"{folder} was begun by another command, on other text or with other "
                         "libraries, or is damaged; --overwrite starts over")


def finish(args, final, folder, tok, meta):
    """Write meta.json, put the folder in the place of the old one, say what a code has to know."""
    meta |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), "sha256": {},
             "vocab_size": tok.vocab_size, "dtype": tokenizer.id_type(tok).name,
             "tokenizer": tok.state}
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "rb") as file:
            meta["sha256"][split] = hashlib.file_digest(file, "sha256").hexdigest()
    meta["checksum"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    raw = json.dumps(meta, indent=1).encode() + b"\n"
    write_atomic(folder / "meta.json", lambda file: file.write(raw))
    check_place(final, args.overwrite)  # it may have come in the meantime
    clear(final)
    os.rename(folder, final)
    for name in ("lock", "state.json"):
        (final / name).unlink(missing_ok=True)

    tokens, fits = meta["tokens"], min(meta["tokens"].values()) - 1
    size = sum(meta["text_bytes"].values()) / sum(tokens.values())
    skipped = sum(source["skipped"] for source in meta["sources"].values())
    print(f"data/{args.name}: {tokens['train']:,} training tokens, {tokens['val']:,} validation "
          f"tokens, {tok.vocab_size:,} ids, {size:.2f} bytes/token")
    if skipped:
        print(f"{skipped:,} rows without text were skipped")
    if fits < 256:
        print(f"block_size=256 does not fit so little text; train.py --block_size={fits} does")
    for P in (16, 32):
        longer, shared = (tokenizer.by_script(itertools.compress(tok.token_bytes, which))
                          for which in tokenizer.unseen(tok.token_bytes, P))
        print(f"codes of a token's first {P} bytes | longer tokens: {longer} | tokens that share a "
              f"vector: {shared}")


# ---- the command -------------------------------------------------------------------------------

def share(value):
    """An argparse type: a number between 0 and 1, also written cosmopedia=0.2. Or ValueError."""
    if not 0 < (number := float(value.removeprefix("cosmopedia="))) < 1:
        raise ValueError
    return number


def parse():
    """The command line."""
    parser = Parser(description=__doc__)
    names = "docstrings", "text", "hub", "fineweb-edu", "bins"
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="|".join(names))
    for kind in names:
        add = kinds.add_parser(kind).add_argument
        add("--name", required=kind in ("text", "bins"), help="the folder below data/")
        add("--overwrite", action="store_true", help="replace data/NAME once the new is complete; "
            "start over where another command left data/NAME.partial")
        if kind == "bins":
            add("folder", type=Path, help="of train.bin, val.bin and, for characters, meta.pkl")
            add("--dtype", choices=("uint16", "uint32", "int32", "int64"), help="default: uint16")
            continue
        add("--tokenizer", default="bpe:4096" if kind == "docstrings" else "gpt2",
            help="gpt2, bpe:N, bpe:N:indic, unicode, FILE.json, a folder or OWNER/NAME")
        add("--lossy", action="store_true", help="take a tokenizer that loses text")
        add("--val_fraction", type=share, default=0.02, help="of the documents, without --tokens")
        add("--tokens", type=whole_number, default=10_000_000 if kind == "fineweb-edu" else None,
            help="how many training tokens (default: all, of fineweb-edu 10e6)")
        add("--val_tokens", type=whole_number, help="default: 2 %% of --tokens")
        if kind == "text":
            add("files", nargs="+", type=Path, help="files, folders or quoted patterns")
        if kind == "hub":
            add("repo", help="OWNER/NAME of a dataset")
            add("--config", help="one of the dataset's configurations")
            add("--split", default="train")
            add("--revision", help="branch, tag or commit; refs/convert/parquet often has parquet")
        if kind in ("text", "hub"):
            add("--column", default="text", help="of files with rows")
        if kind == "fineweb-edu":
            add("--mix", type=share, default=0.0, metavar="cosmopedia=SHARE",
                help="share of the tokens that come from HuggingFaceTB/cosmopedia, web_samples_v2")
    args = parser.parse_args()
    if args.kind != "bins" and args.val_tokens and not args.tokens:
        raise InputError("--val_tokens goes with --tokens; without it, --val_fraction does")
    if args.name is None:
        args.name = args.repo.split("/")[-1] if args.kind == "hub" else args.kind
    if not re.fullmatch(r"""(?!\.)[^\s/\\:*?"'<>|]+(?<!\.partial)""", args.name):
        raise InputError(f"--name='{args.name}' is not a plain folder name")
    return args


def sources(args):
    """Where the documents of a command line come from."""
    if args.kind == "docstrings":
        return [text.docstrings()]
    if args.kind == "text":
        return [text.files(args.files, args.column)]
    if args.kind == "hub":
        return [text.stream(args.repo, args.config, args.split, args.column, args.revision)]
    shares = {"fineweb-edu": 1 - args.mix, "cosmopedia": args.mix}
    return [text.stream(*text.HUB[name], name=name, share=shares[name])
            for name in shares if shares[name]]


def main():
    args = parse()
    final = Path("data") / args.name
    if final.is_symlink():  # the folder that it leads to is replaced, on its own disk
        final = final.resolve()
    folder = Path(f"{final}.partial")
    check_place(final, args.overwrite)
    found = [] if args.kind == "bins" else sources(args)
    libraries = "numpy", "tiktoken", "rustbpe", "datasets", "tokenizers"
    job = {"command": this_command().replace(" --overwrite", ""),
           "versions": {"python": sys.version.split()[0]} | {n: version(n) for n in libraries},
           "sources": [[source.name, source.share, source.identity] for source in found]}
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock", blocking=False):
        state = left_over(folder, job, args.overwrite)
        try:
            if args.kind == "bins":
                tok, meta = text.adopt(args.folder, folder, args.dtype)
            else:
                tok, meta = prepare(args, found, folder, job, state)
            meta |= {"name": args.name, "command": job["command"], "versions": job["versions"]}
            finish(args, final, folder, tok, meta)
        except BaseException as error:
            if isinstance(error, InputError) or not (folder / "state.json").exists():
                clear(folder)
            else:
                print(f"{folder} is kept, the same command goes on from there")
            raise


if __name__ == "__main__":
    run(main)
