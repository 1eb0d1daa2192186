"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                             # prose that every Python carries
    python prepare.py text FILE... --name=mine               # or folders, or "texts/*.jsonl.gz"
    python prepare.py hub roneneldan/TinyStories             # any text dataset of the Hub
    python prepare.py fineweb-edu --tokens=2.5e9 --mix=cosmopedia=0.2 --tokenizer=unicode
    python prepare.py bins ../nanoGPT/data/shakespeare_char --name=chars    # nanoGPT's own files

--tokenizer is gpt2; or bpe:N or unicode, trained on the text; or a tokenizer of Hugging Face:
FILE.json, a folder, or OWNER/NAME. Files are .txt .md .jsonl .json .csv .tsv, each also .gz or
.zst, and .parquet. docstrings, text and bins are local; hub and fineweb-edu stream from the Hub
(HF_ENDPOINT names another), and gpt2 fetches GPT-2's vocabulary once.

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and
meta.json. A document goes to validation by its hash, so equal documents never stand on both sides.
The work is done in data/NAME.partial, which is renamed at the end. A state is saved every minute:
after a kill, a lost network or a full disk the same command goes on from there, and its files are
byte for byte those of a run that nothing disturbed. Bad input leaves nothing behind.
"""
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from lib import text, tokenizer
from lib.errors import InputError, Parser, run, whole_number, write_atomic

SAMPLE = 256_000_000   # characters of training text that a tokenizer is trained on, at most
SAVE_EVERY = 60        # seconds between saved states: what a kill costs
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
# what can be in data/NAME; meta.json, by which it is known as ours, is deleted last
OURS = "train.bin", "val.bin", "state.json", "lock", "verified.json", "meta.json"


# ---- the split ---------------------------------------------------------------------------------

def hash_number(document):
    """A document's place between 0 and 2^64, by its hash."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8])


def is_validation(document, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    return hash_number(document) < fraction * 2**64


def settle_split(documents, fraction):
    """The fraction for `is_validation` that leaves no side of the opening empty: a fiftieth or
    more of few documents goes to validation. A corpus of up to text.BATCH characters is all
    opening. InputError if it has no two different documents."""
    hashes = sorted({hash_number(document) for document in documents})
    if len(hashes) < 2:
        raise InputError("training and validation need two different documents at least, this text "
                         f"has {len(hashes)}; lines of {text.SEPARATOR} separate them in a file")
    if len({is_validation(document, fraction) for document in documents}) == 2:
        return fraction
    count = min(int(max(fraction, 0.02) * len(hashes)) + 1, len(hashes) - 1)
    print(f"few documents: {count} of {len(hashes)}, those of the smallest hashes, go to "
          "validation")
    return (hashes[count - 1] + hashes[count]) / 2**65


# ---- the tokenizer -----------------------------------------------------------------------------

def training_text(found, fraction, limit, sample):
    """The first training documents of the sources, `limit` characters, shared as the tokens are.
    `sample` counts them. InputError if there are none."""
    with tqdm(desc="training a tokenizer", total=1.0, bar_format=BAR) as bar:
        for source in found:
            wanted = sample["characters"] + limit * source.share
            for documents, _, done, _ in source.read(source.start()):
                for document in documents:
                    if sample["characters"] < wanted and not is_validation(document, fraction):
                        yield document
                        sample["documents"] += 1
                        sample["characters"] += len(document)
                done = max(done * source.share, min(1, sample["characters"] / limit))
                bar.update(max(0, done - bar.n))
                if sample["characters"] >= wanted:
                    break
    if not sample["characters"]:
        raise InputError("no text to train a tokenizer on: there are no documents for train")
    print(f"trained on the first {sample['characters']:,} characters of training text, "
          f"{sample['documents']:,} documents")


def check_tokenizer(tok, opening, lossy):
    """The share of the opening's characters that decoding gives back. Says so if it is under
    99.9 %, InputError if it is under 95 %, unless `lossy`."""
    if not opening or not isinstance(tok, tokenizer.HuggingFaceTokenizer):
        return 1.0  # the others lose nothing
    lost = Counter(opening) - Counter(tok.decode(tok.encode(opening)))
    kept = 1 - lost.total() / len(opening)
    if kept < 0.999:
        most = ", ".join(repr(character) for character, _ in lost.most_common(5))
        says = (f"{tok.name} loses {100 * (1 - kept):.1f} % of the characters of this text, "
                f"most of them {most}; bits per byte then count text that is not there")
        if kept < 0.95 and not lossy:
            raise InputError(f"{says}; --lossy takes it nevertheless")
        print(says)
    return kept


# ---- text -> ids -------------------------------------------------------------------------------

def begin(args, found, wanted, fraction):
    """The split, the tokenizer and the state of a preparation that begins: (state, tokenizer)."""
    opening, *_ = next(found[0].read(found[0].start()), [[]])
    if not args.tokens:
        fraction = settle_split(opening, fraction)
    state = {key: {"train": 0, "val": 0} for key in ("tokens", "documents", "text_bytes")}
    state |= {"fraction": fraction, "sample": {"documents": 0, "characters": 0}}
    limit = min(SAMPLE, 5 * sum(wanted.values()))
    tok = tokenizer.make(args.tokenizer, training_text(found, fraction, limit, state["sample"]),
                         args.pattern)
    state["kept"] = check_tokenizer(tok, "".join(opening)[:1_000_000], args.lossy)
    state["sources"] = {source.name: {"position": source.start(), "used": 0, "skipped": 0,
                                      "documents": 0, "tokens": 0} for source in found}
    return state | {"tokenizer": tok.state}, tok


def documents(source, tok, at):
    """(document, ids, share read) of a source from `at` on, which is kept up to date: `used` of the
    batch after `position` are done, `skipped` rows before it had no text."""
    for batch, skipped, done, position in source.read(at["position"]):
        fresh = batch[at["used"]:]
        for document, ids in zip(fresh, tok.encode_batch(fresh, text.CPUS)):
            at["used"] += 1
            yield document, ids, done
        at.update(position=position, used=0, skipped=at["skipped"] + skipped)


def encode(folder, found, tok, wanted, state):
    """Encode documents of the sources into folder/{train,val}.bin, from `state` on, until each
    split has its `wanted` tokens.

    The next document is always from the source that is furthest behind its share. `state` is kept
    up to date; every SAVE_EVERY seconds it is written to folder/state.json, after the tokens that
    it counts.
    """
    dtype, tokens, done = tokenizer.id_type(tok), state["tokens"], state["sources"]
    shares = {source.name: source.share for source in found}
    streams = {source.name: documents(source, tok, done[source.name]) for source in found}
    with (open(folder / "train.bin", "ab") as train, open(folder / "val.bin", "ab") as val,
          tqdm(desc="encoding", total=1.0, bar_format=BAR) as bar):
        files = {"train": train, "val": val}

        def save():
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            raw = json.dumps(state).encode()
            write_atomic(folder / "state.json", lambda file: file.write(raw))
            return time.monotonic()

        for split, file in files.items():
            file.truncate(tokens[split] * dtype.itemsize)  # what came after the state was saved
        saved = save()
        while any(tokens[split] < wanted[split] for split in tokens):
            name = min(streams, key=lambda name: done[name]["tokens"] / shares[name])
            document, ids, share = next(streams[name], (None, None, None))
            if document is None:
                break
            split = "val" if is_validation(document, state["fraction"]) else "train"
            if tokens[split] < wanted[split]:
                files[split].write(np.array([*ids, tok.eot], dtype).tobytes())
                tokens[split] += len(ids) + 1
                done[name]["tokens"] += len(ids) + 1
                done[name]["documents"] += 1
                state["documents"][split] += 1
                state["text_bytes"][split] += len(document.encode())
            bar.postfix = f"{sum(tokens.values()):,} tokens"
            share = max(share, min(1, tokens["train"] / wanted["train"]))
            bar.update(max(0, share - bar.n))
            if time.monotonic() - saved >= SAVE_EVERY:
                saved = save()
        save()
        bar.update(1 - bar.n)


def prepare(args, found, folder, job, state, tok):
    """Make a tokenizer and encode the sources, or go on from a state. Returns (tokenizer, what
    meta.json says of the tokens)."""
    wanted, fraction = {"train": math.inf, "val": math.inf}, args.val_fraction
    if args.tokens:
        # the share that fills both splits at the same time; a full split drops the rest
        wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
        fraction = max(wanted["val"] / sum(wanted.values()), 0.001)
    if state:
        print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
    else:
        state, tok = begin(args, found, wanted, fraction)
        state["job"] = job
    encode(folder, found, tok, wanted, state)
    for split, tokens in state["tokens"].items():
        if not tokens:
            raise InputError(f"no text for {split} in {sum(state['documents'].values())} documents")
        if tokens < wanted[split] < math.inf:
            print(f"the text ended after {tokens:,} of {wanted[split]:,} {split} tokens")
    recorded = "tokens", "documents", "text_bytes", "sources", "sample", "kept"
    return tok, {key: state[key] for key in recorded}


def adopt(source, folder, dtype):
    """Copy nanoGPT's train.bin and val.bin, with the characters of a meta.pkl or else GPT-2's ids,
    into a folder. Returns (tokenizer, what meta.json says of the tokens)."""
    table = source / "meta.pkl"
    if table.exists():
        tok = tokenizer.CharTokenizer(text.nanogpt_characters(table))
    else:
        tok = tokenizer.gpt2()
    width = np.array([len(raw) for raw in tok.spelled])
    width[tok.eot] = 0  # it separates documents and is no text
    meta = {"tokens": {}, "documents": {}, "text_bytes": {}, "sources": {}, "kept": 1.0}
    for split in ("train", "val"):
        count = np.zeros(tok.vocab_size, np.int64)
        every = text.nanogpt_ids(source / f"{split}.bin", dtype)
        with open(folder / f"{split}.bin", "wb") as copy:
            for i in range(0, len(every), 2**22):
                ids = every[i:i + 2**22]
                low, high = ids.min(), ids.max()
                if low < 0 or high >= tok.vocab_size:
                    raise InputError(f"{source}/{split}.bin: ids from {low:,} to {high:,}, "
                                     f"{tok.name} has {tok.vocab_size:,}; characters need meta.pkl "
                                     "beside the bins, other types --dtype")
                copy.write(ids.astype(tokenizer.id_type(tok)).tobytes())
                count += np.bincount(ids, minlength=tok.vocab_size)
        meta["tokens"][split] = len(every)
        meta["documents"][split] = int(count[tok.eot]) + int(every[-1] != tok.eot)
        meta["text_bytes"][split] = int(count @ width)
    return tok, meta


# ---- the folder --------------------------------------------------------------------------------

def check_place(final, overwrite):
    """InputError if data/NAME is there and may not be replaced. An empty folder may."""
    names = {path.name for path in final.iterdir()} if final.is_dir() else set()
    if not final.exists() or final.is_dir() and not names:
        return
    if not {"meta.json"} <= names <= set(OURS):
        raise InputError(f"{final} exists and holds what prepare.py did not make; move it away, or "
                         "choose another --name")
    if not overwrite:
        raise InputError(f"{final} exists; --overwrite replaces it")


def clear(folder):
    """Delete the files of ours that a folder has, then it and data/ where they are empty."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.removedirs(folder)


def left_over(folder, job, overwrite):
    """What an earlier call of the same job left in a folder: (state, tokenizer), or twice None.
    InputError if it is another's or damaged, unless `overwrite`."""
    if not (folder / "state.json").exists():
        return None, None
    begun = {}
    try:
        state = json.loads((folder / "state.json").read_bytes())
        begun, tok = state["job"], tokenizer.from_state(state["tokenizer"])
        whole = all((folder / f"{split}.bin").stat().st_size >= n * tokenizer.id_type(tok).itemsize
                    for split, n in state["tokens"].items())
        if whole and begun == json.loads(json.dumps(job)):
            return state, tok
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    if not overwrite:
        raise InputError(f"{folder} was begun by '{begun.get('command')}' with other options, text "
                         "or libraries, or is damaged; --overwrite starts over")
    return None, None


def finish(args, final, folder, tok, meta):
    """Write meta.json, put the folder in its place (with --overwrite the old data leaves only now)
    and say what a code needs to know of it."""
    meta["sha256"] = {}
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "rb") as file:
            os.fsync(file.fileno())
            meta["sha256"][split] = hashlib.file_digest(file, "sha256").hexdigest()
    meta |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
             "vocab_size": tok.vocab_size, "dtype": tokenizer.id_type(tok).name,
             "tokenizer": tok.state}
    meta["checksum"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    raw = json.dumps(meta, indent=1).encode() + b"\n"
    write_atomic(folder / "meta.json", lambda file: file.write(raw))
    check_place(final, args.overwrite)  # it may have come in the meantime
    clear(final)
    os.rename(folder, final)
    for name in ("lock", "state.json"):
        (final / name).unlink(missing_ok=True)

    tokens = meta["tokens"]
    size = sum(meta["text_bytes"].values()) / sum(tokens.values())
    print(f"data/{args.name}: {tokens['train']:,} training tokens, {tokens['val']:,} validation "
          f"tokens, {tok.vocab_size:,} ids, {size:.2f} bytes/token")
    skipped = sum(source["skipped"] for source in meta["sources"].values())
    if skipped:
        print(f"{skipped:,} rows without text were skipped")
    fits = min(tokens.values()) - 1
    if fits < 256:
        print(f"block_size=256 does not fit so little text; train.py --block_size={fits} does")
    print("codes that read a token's first P bytes:")
    for line in tokenizer.code_lines(tok):
        print(f"  {line}")


# ---- the command -------------------------------------------------------------------------------

def fraction(value):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < float(value) < 1:
        raise ValueError
    return float(value)


def mixed(value):
    """An argparse type: cosmopedia=SHARE -> share. Raises ValueError."""
    return fraction(value.removeprefix("cosmopedia="))


def parse():
    """The command line."""
    parser = Parser(description=__doc__)
    names = "docstrings", "text", "hub", "fineweb-edu", "bins"
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="|".join(names))
    for kind in names:
        sub = kinds.add_parser(kind)
        add = sub.add_argument
        add("--name", default=kind if kind in ("docstrings", "fineweb-edu") else None,
            required=kind in ("text", "bins"), help="the folder below data/")
        add("--overwrite", action="store_true", help="replace data/NAME once the new is complete; "
            "start over where another command left data/NAME.partial")
        if kind == "bins":
            add("folder", type=Path, help="of train.bin, val.bin and, for characters, meta.pkl")
            add("--dtype", choices=("uint16", "uint32", "int32", "int64"),
                help="of the ids in them (default: nanoGPT's uint16)")
            continue
        add("--tokenizer", default="bpe:4096" if kind == "docstrings" else "gpt2",
            help="gpt2; bpe:N or unicode, trained on the first 256 million characters of training "
                 "text at most; FILE.json, a folder or OWNER/NAME")
        add("--pattern", choices=tokenizer.PATTERNS,
            help="how bpe:N cuts text into words (default: gpt2); indic keeps vowel signs")
        add("--lossy", action="store_true", help="take a tokenizer that loses text")
        add("--val_fraction", type=fraction, default=0.02,
            help="share of the documents kept for validation, where --tokens says nothing")
        sub.set_defaults(tokens=None)
        if kind == "text":
            add("files", nargs="+", type=Path, help="files, folders or quoted patterns")
        if kind == "hub":
            add("repo", help="OWNER/NAME of a dataset")
            add("--config", help="one of the dataset's configurations")
            add("--split", default="train")
            add("--revision", help="a branch, tag or commit; refs/convert/parquet has many "
                                   "datasets in parquet")
        if kind in ("text", "hub"):
            add("--column", default="text", help="of files with rows")
        if kind in ("hub", "fineweb-edu"):
            add("--tokens", type=whole_number, default=None if kind == "hub" else 10_000_000,
                help="how many training tokens (default: all, of fineweb-edu 10e6)")
            add("--val_tokens", type=whole_number, help="default: 2 %% of --tokens")
        if kind == "fineweb-edu":
            add("--mix", type=mixed, default=0.0, metavar="cosmopedia=SHARE",
                help="share of the tokens that come from HuggingFaceTB/cosmopedia, web_samples_v2")
    args = parser.parse_args()
    if args.kind == "hub" and args.val_tokens and not args.tokens:
        raise InputError("--val_tokens goes with --tokens; without it, --val_fraction does")
    args.name = args.name or args.repo.split("/")[-1]
    if not re.fullmatch(r"""(?!\.)[^\s/\\:*?"'<>|]+(?<!\.partial)""", args.name):
        raise InputError(f"--name='{args.name}' is not a plain folder name")
    return args


def sources(args):
    """The sources that a command line names; none for bins."""
    if args.kind == "docstrings":
        return [text.docstrings()]
    if args.kind == "text":
        return [text.files(text.expand(args.files), args.column)]
    if args.kind == "hub":
        return [text.stream(args.repo, args.repo, args.config, args.split, args.column,
                            args.revision)]
    if args.kind == "fineweb-edu":
        shares = {"fineweb-edu": 1 - args.mix, "cosmopedia": args.mix}
        return [text.stream(name, *text.HUB[name], share=share)
                for name, share in shares.items() if share]
    return []


def work(args, final, folder, found):
    """All that is done in data/NAME.partial, up to its renaming."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    versions = {package.name: package.version for package in distributions()
                if package.name in ("numpy", "tiktoken", "rustbpe", "datasets", "tokenizers")}
    job = {"command": shlex.join(["python", os.path.basename(sys.argv[0]), *words]),
           "versions": versions | {"python": platform.python_version()},
           "sources": [[source.name, source.share, source.identity] for source in found]}
    state, tok = left_over(folder, job, args.overwrite)
    try:
        if args.kind == "bins":
            tok, meta = adopt(args.folder, folder, args.dtype)
        else:
            tok, meta = prepare(args, found, folder, job, state, tok)
        meta |= {"name": args.name, "command": job["command"], "versions": job["versions"]}
        finish(args, final, folder, tok, meta)
    except BaseException as error:
        if isinstance(error, InputError) or not (folder / "state.json").exists():
            clear(folder)
        else:
            print(f"{folder} is kept, the same command goes on from there")
        raise


def main():
    args = parse()
    final = Path("data") / args.name
    if final.is_symlink():  # the folder that it leads to is replaced, on its own disk
        final = final.resolve()
    folder = Path(f"{final}.partial")
    check_place(final, args.overwrite)
    found = sources(args)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "lock", blocking=False):
            work(args, final, folder, found)
    except filelock.Timeout:
        raise InputError(f"{folder} is in use by another process") from None


if __name__ == "__main__":
    run(main)
