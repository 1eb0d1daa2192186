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
import array
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from lib import nanogpt, text, tokenizer
from lib.errors import InputError, Parser, run, whole_number, write_atomic

SAMPLE = 256_000_000   # characters of training text that a tokenizer is trained on, at most
SAVE_EVERY = 60        # seconds between saved states: what a kill costs
SMALLEST_SHARE = 0.02  # of a small corpus, for the side that would be empty
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
# what can be in data/NAME: ours, a lock, and what an earlier version of train.py left there
OURS = {"meta.json", "train.bin", "val.bin", "state.json", "lock", "verified.json"}


# ---- the split ---------------------------------------------------------------------------------

def hash_number(document):
    """A document's place between 0 and 2^64, by its hash."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8])


def is_validation(document, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    return hash_number(document) < fraction * 2**64


def pieces(documents, size):
    """Documents, cut into pieces of about `size` characters unless that is None."""
    if not size:
        return documents
    found = [piece for document in documents for piece in text.cut(document, size)]
    return [piece for piece in found if piece.strip()]


def settle_split(documents, fraction):
    """Which documents go to validation: (fraction for `is_validation`, size for `pieces` or None).

    Where none of the opening's documents does, or all do, those of the smallest hashes do, until
    they are its share of the text; where these are few, they are cut into pieces first. A corpus of
    up to text.BATCH characters is all opening. InputError if there is too little text for two
    sides.
    """
    if len({is_validation(document, fraction) for document in documents}) == 2:
        return fraction, None
    share, size = min(max(fraction, SMALLEST_SHARE), 1 - SMALLEST_SHARE), None
    total = sum(map(len, documents))
    if len(set(documents)) < 20:
        size = max(1, int(total * SMALLEST_SHARE))
    by_hash = sorted(set(pieces(documents, size)), key=hash_number)
    if len(by_hash) < 2:
        raise InputError(f"too little text for training and validation: {total:,} characters")
    characters = np.cumsum([len(document) for document in by_hash])
    last = min(int(np.searchsorted(characters, share * characters[-1])), len(by_hash) - 2)
    how = f"cut into pieces of about {size:,} characters, " if size else ""
    print(f"few documents, all on one side at --val_fraction={fraction:g}: {how}"
          f"those of the smallest hashes go to validation")
    return math.nextafter(hash_number(by_hash[last]) / 2**64, 1), size


# ---- the tokenizer -----------------------------------------------------------------------------

def training_text(found, starts, split, limit, sample):
    """The first training documents of the sources, `limit` characters, shared as the tokens are.
    `sample` counts them. InputError if there are none."""
    with tqdm(desc="training a tokenizer", total=1.0, bar_format=BAR) as bar:
        for source in found:
            wanted = sample["characters"] + limit * source.share
            for batch in source.read(starts[source.name]):
                for document in pieces(batch.documents, split["size"]):
                    is_val = is_validation(document, split["fraction"])
                    if not is_val and sample["characters"] < wanted:
                        yield document
                        sample["documents"] += 1
                        sample["characters"] += len(document)
                done = max(batch.done * source.share, sample["characters"] / limit)
                bar.update(max(bar.n, min(1, done)) - bar.n)
                if sample["characters"] >= wanted:
                    break
    if not sample["characters"]:
        raise InputError("no text to train a tokenizer on: there are no documents for train")


def make_tokenizer(args, training_text):
    """The tokenizer that --tokenizer says, trained on an iterable of text if need be."""
    name, size = args.tokenizer, re.fullmatch(r"bpe:(\d+)", args.tokenizer)
    if args.pattern and not size:
        raise InputError(f"--pattern is for a trained bpe:N, not for --tokenizer={name}")
    if name == "gpt2":
        return tokenizer.gpt2()
    if "/" in name or name.lower().endswith(".json") or Path(name).is_dir():
        return tokenizer.hugging_face(name)
    if not size and name != "unicode":
        raise InputError(f"unknown tokenizer '{name}' (gpt2, unicode, bpe:N as in bpe:4096, "
                         "FILE.json, a folder and OWNER/NAME are known)")
    try:
        if size:
            return tokenizer.train_bpe(training_text, int(size[1]), args.pattern or "gpt2")
        return tokenizer.train_unicode(training_text)
    except ValueError as error:
        raise InputError(str(error)) from None


def check_tokenizer(tok, opening, lossy):
    """The share of the opening's characters that decoding gives back. Says so if it is under
    99.9 %, InputError if it is under 95 %, unless `lossy`. Also says if words are cut at marks."""
    share = tokenizer.share_of_marks(opening)
    if getattr(tok, "pattern", "indic") != "indic" and share > 0.01:
        print(f"{tok.name}: {100 * share:.0f} % of the letters of this text are marks (vowel "
              f"signs, accents), at which the pattern '{tok.pattern}' cuts words; "
              "--tokenizer=bpe:N --pattern=indic keeps them whole")
    if not opening or not isinstance(tok, tokenizer.HuggingFaceTokenizer):
        return 1.0  # the others lose nothing
    back = tok.decode([i for i in tok.encode(opening) if i != tok.unknown])
    lost = Counter(opening) - Counter(back)
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
    starts = {source.name: source.start() for source in found}
    first = next(found[0].read(starts[found[0].name]), None)
    opening, size = first.documents if first else [], None
    if not args.tokens:
        fraction, size = settle_split(opening, fraction)
    split, sample = {"fraction": fraction, "size": size}, {"documents": 0, "characters": 0}
    limit = min(SAMPLE, 5 * sum(wanted.values()))
    tok = make_tokenizer(args, training_text(found, starts, split, limit, sample))
    if sample["documents"]:
        print(f"{tok.name}: trained on the first {sample['characters']:,} characters of training "
              f"text, {sample['documents']:,} documents")
    kept = check_tokenizer(tok, "".join(opening)[:1_000_000], args.lossy)
    state = {"split": split, "sample": sample, "kept": kept, "tokenizer": tok.state}
    state["sources"] = {name: {"position": start, "used": 0, "skipped": 0, "documents": 0,
                               "tokens": 0} for name, start in starts.items()}
    for key in ("tokens", "documents", "text_bytes"):
        state[key] = {"train": 0, "val": 0}
    return state, tok


def documents(source, tok, at, size):
    """(document, ids, share read) of a source from `at` on, which is kept up to date: `used` of the
    batch after `position` are done, `skipped` rows before it had no text."""
    for batch in source.read(at["position"]):
        some = pieces(batch.documents, size)
        fresh = some[at["used"]:]
        for document, ids in zip(fresh, tok.encode_batch(fresh, text.CPUS)):
            at["used"] += 1
            yield document, ids, batch.done
        at.update(position=batch.position, used=at["used"] - len(some),
                  skipped=at["skipped"] + batch.skipped)


def encode(folder, found, tok, wanted, state):
    """Encode documents of the sources into folder/{train,val}.bin, from `state` on, until each
    split has its `wanted` tokens.

    The next document is always from the source that is furthest behind its share. `state` is kept
    up to date; every SAVE_EVERY seconds it is written to folder/state.json, after the tokens that
    it counts.
    """
    dtype, tokens, done = tokenizer.id_type(tok), state["tokens"], state["sources"]
    pending = {split: array.array("I") for split in tokens}
    streams = {source.name: documents(source, tok, done[source.name], state["split"]["size"])
               for source in found}
    share_of = {source.name: source.share for source in found}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.bin", "ab"))
                 for split in tokens}
        for split, file in files.items():
            file.truncate(tokens[split] * dtype.itemsize)  # what came after the state was saved

        def save():
            for split, file in files.items():
                file.write(np.frombuffer(pending[split], np.uint32).astype(dtype).tobytes())
                file.flush()
                os.fsync(file.fileno())
                pending[split] = array.array("I")
            raw = json.dumps(state).encode()
            write_atomic(folder / "state.json", lambda file: file.write(raw))

        first, begun = sum(tokens.values()), time.monotonic()
        bar = tqdm(desc="encoding", total=1.0, initial=min(1, tokens["train"] / wanted["train"]),
                   bar_format=BAR)
        stack.enter_context(bar)
        save()
        saved = shown = begun
        while tokens["train"] < wanted["train"] or tokens["val"] < wanted["val"]:
            name = min(streams, key=lambda name: done[name]["tokens"] / share_of[name])
            document, ids, share = next(streams[name], (None, None, None))
            if document is None:
                break
            split = "val" if is_validation(document, state["split"]["fraction"]) else "train"
            if tokens[split] < wanted[split]:
                pending[split].extend(ids)
                pending[split].append(tok.eot)
                tokens[split] += len(ids) + 1
                done[name]["tokens"] += len(ids) + 1
                done[name]["documents"] += 1
                state["documents"][split] += 1
                state["text_bytes"][split] += len(document.encode())
            if (now := time.monotonic()) - shown >= 0.2:
                total = sum(tokens.values())
                rate = (total - first) / (now - begun)
                bar.set_postfix_str(f"{total:,} tokens, {rate:,.0f} tokens/s", False)
                bar.update(max(bar.n, share, min(1, tokens["train"] / wanted["train"])) - bar.n)
                shown = now
            if now - saved >= SAVE_EVERY or len(pending[split]) >= 2**24:
                save()
                saved = now
        save()
        bar.update(1 - bar.n)


# ---- the folder --------------------------------------------------------------------------------

def is_ours(folder):
    """Whether a folder is data that was prepared here, and nothing else is in it."""
    if not folder.is_dir() or any(path.name not in OURS for path in folder.iterdir()):
        return False
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        return {"tokenizer", "sha256", "tokens"} <= meta.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def is_empty(folder):
    """Whether a path is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def clear(folder):
    """Delete the files of ours that a folder has, and the folder if it is empty then."""
    for name in sorted(OURS, key=lambda name: name == "meta.json"):  # by which it is known as ours
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def places(name):
    """Where data/NAME is and where the work for it is done. A link is followed: the folder that it
    leads to is replaced, on its own disk."""
    final = Path("data") / name
    if final.is_symlink():
        final = final.resolve()
    return final, Path(f"{final}.partial")


@contextlib.contextmanager
def locked(folder):
    """Hold data/NAME.partial.lock. Afterwards it is gone, and data/ too if that is empty.
    InputError if another process holds it; one warning where the file system has no locks."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{folder}.lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"{folder} is in use by another process") from None
    except (OSError, NotImplementedError) as error:
        print(f"warning: {lock.lock_file} cannot be locked ({error}); nothing keeps a second "
              f"process from {folder}", file=sys.stderr)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows lets no open file be deleted
            os.unlink(lock.lock_file)
        lock.release()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


@contextlib.contextmanager
def kept_or_cleared(folder):
    """What is left of the work in a folder if it ends early: nothing after bad input, else what was
    saved."""
    folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError) or not (folder / "state.json").exists():
            clear(folder)
            raise
        kept = f"{folder} is kept, the same command goes on from there"
        if isinstance(error, OSError):
            raise OSError(f"{error}; {kept}") from error
        print(kept, file=sys.stderr)
        raise


def left_over(folder, job, overwrite):
    """What an earlier call left in a folder: (state, tokenizer), or twice None. InputError if it is
    another's or damaged; with `overwrite` it is deleted then."""
    if not (folder / "state.json").exists():
        return None, None
    try:
        try:
            state = json.loads((folder / "state.json").read_bytes())
            tok, begun_by = tokenizer.from_state(state["tokenizer"]), state["command"]
            width = tokenizer.id_type(tok).itemsize
            for split, tokens in state["tokens"].items():
                if (folder / f"{split}.bin").stat().st_size < tokens * width:
                    raise ValueError(f"{split}.bin is too short")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"what an earlier call left in {folder} is damaged; "
                             "--overwrite starts over") from None
        if state["job"] != json.loads(json.dumps(job)):
            raise InputError(f"{folder} was begun by '{begun_by}', with other options, "
                             "text or libraries; --overwrite starts over")
        return state, tok
    except InputError:
        if not overwrite:
            raise
        clear(folder)
        return None, None


def finish(args, command, versions, tok, counts):
    """Write meta.json, put the folder in its place (with --overwrite the old data leaves only now)
    and say what a code needs to know of it."""
    final, folder = places(args.name)
    meta = {"name": args.name, "vocab_size": tok.vocab_size}
    meta |= {"dtype": tokenizer.id_type(tok).name} | counts | {"sha256": {}}
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "rb") as file:
            meta["sha256"][split] = hashlib.file_digest(file, "sha256").hexdigest()
    meta |= {"command": command, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
             "versions": versions, "tokenizer": tok.state}
    meta["checksum"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    raw = json.dumps(meta, indent=1).encode() + b"\n"
    write_atomic(folder / "meta.json", lambda file: file.write(raw))
    replaced = Path(f"{final}.replaced")
    if is_ours(replaced):  # left there by a kill
        clear(replaced)
    if is_empty(final):
        final.rmdir()
    if final.exists():
        if not args.overwrite:
            raise OSError(f"{final} was made by another process in the meantime")
        if not is_ours(final):
            raise OSError(f"{final} holds what prepare.py did not make; move it away")
        os.rename(final, replaced)
    os.rename(folder, final)
    (final / "state.json").unlink(missing_ok=True)
    if is_ours(replaced):
        clear(replaced)

    tokens = counts["tokens"]
    size = sum(counts["text_bytes"].values()) / sum(tokens.values())
    print(f"data/{args.name}: {tokens['train']:,} training tokens, {tokens['val']:,} validation "
          f"tokens, {tok.vocab_size:,} ids, {size:.2f} bytes/token")
    skipped = sum(source["skipped"] for source in counts["sources"].values())
    if skipped:
        print(f"{skipped:,} rows without text were skipped")
    if min(tokens.values()) <= 256:
        print(f"so little text takes train.py --block_size={min(tokens.values()) - 1} or less")
    print("codes that read a token's first P bytes:")
    for line in tokenizer.code_lines(tok):
        print(f"  {line}")


def describe(args):
    """The command, the versions and the arguments that a preparation is recorded with."""
    versions = {"python": platform.python_version()}
    for package in ("numpy", "tiktoken", "rustbpe", "datasets", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    arguments = {key: str(value) for key, value in vars(args).items()
                 if key not in ("overwrite", "allow_short")}
    command = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return command, versions, arguments


def prepare(args, found):
    """Make the tokenizer, encode the sources that were found, check that there is something on both
    sides, and finish; or go on where an earlier call was ended."""
    _, folder = places(args.name)
    wanted, fraction = {"train": math.inf, "val": math.inf}, args.val_fraction
    if args.tokens:
        # the share that fills both splits at the same time; a full split drops the rest
        wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
        fraction = max(wanted["val"] / sum(wanted.values()), 0.001)
    command, versions, arguments = describe(args)
    job = {"arguments": arguments, "versions": versions,
           "sources": [[source.name, source.share, source.identity] for source in found]}
    with locked(folder):
        state, tok = left_over(folder, job, args.overwrite)
        with kept_or_cleared(folder):
            if state:
                print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
            else:
                state, tok = begin(args, found, wanted, fraction)
                state |= {"job": job, "command": command}
            encode(folder, found, tok, wanted, state)
            tokens = state["tokens"]
            for split in tokens:
                if not tokens[split]:
                    raise InputError(f"no text for {split}: {sum(state['documents'].values())} "
                                     f"documents, validation share {state['split']['fraction']:g}")
            short = any(tokens[split] < wanted[split] < math.inf for split in tokens)
            if short and not args.allow_short:
                had = " and ".join(f"{tokens[split]:,} of {wanted[split]:,} {split} tokens"
                                   for split in tokens)
                raise OSError(f"the stream ended after {had}; with --allow_short these are kept")
            recorded = "tokens", "documents", "text_bytes", "sources", "sample", "kept"
            finish(args, command, versions, tok, {key: state[key] for key in recorded})


def adopt(args):
    """Copy nanoGPT's bins, and finish."""
    _, folder = places(args.name)
    command, versions, _ = describe(args)
    with locked(folder):
        if folder.exists() and not args.overwrite:
            raise InputError(f"{folder} is there from another preparation; "
                             "--overwrite starts over")
        clear(folder)
        with kept_or_cleared(folder):
            tok, counts = nanogpt.adopt(args.folder, folder, args.dtype)
            finish(args, command, versions, tok, counts)


# ---- the command -------------------------------------------------------------------------------

def fraction(value):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < float(value) < 1:
        raise ValueError
    return float(value)


def mixed(value):
    """An argparse type: NAME=SHARE -> (name, share). Raises ValueError."""
    name, _, share = value.partition("=")
    if name not in text.HUB or name == "fineweb-edu":
        raise ValueError
    return name, fraction(share)


def separator(value):
    """An argparse type: a line that ends documents, not blank. Raises ValueError."""
    if not value.strip() or "\n" in value:
        raise ValueError
    return value.strip()


def parse():
    """The command line."""
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True,
                                  metavar="docstrings|text|hub|fineweb-edu|bins")
    for kind in ("docstrings", "text", "hub", "fineweb-edu", "bins"):
        sub = kinds.add_parser(kind)
        add = sub.add_argument
        sub.set_defaults(tokens=None, val_tokens=None, val_fraction=None, allow_short=False, mix=[])
        if kind == "text":
            add("files", nargs="+", type=Path, help="files, folders or quoted patterns")
        if kind == "hub":
            add("repo", help="OWNER/NAME of a dataset")
            add("--config", help="one of the dataset's configurations")
            add("--split", default="train")
            add("--revision", help="a branch, tag or commit; refs/convert/parquet has many "
                                   "datasets in parquet")
        named = kind if kind in ("docstrings", "fineweb-edu") else None
        add("--name", default=named, required=kind in ("text", "bins"),
            help="the folder below data/")
        add("--overwrite", action="store_true",
            help="replace data/NAME once the new is complete; start over where another left "
                 "data/NAME.partial")
        if kind == "bins":
            add("folder", type=Path, help="of train.bin, val.bin and, for characters, meta.pkl")
            add("--dtype", choices=("uint16", "uint32", "int32", "int64"),
                help="of the ids in them (default: nanoGPT's uint16)")
            continue
        add("--tokenizer", default="bpe:4096" if kind == "docstrings" else "gpt2",
            help="gpt2; bpe:N or unicode, trained on the first "
                 f"{SAMPLE:,} characters (at most) of training text; FILE.json, a folder or "
                 "OWNER/NAME")
        add("--pattern", choices=tokenizer.PATTERNS,
            help="how bpe:N cuts text into words (default: gpt2); indic keeps vowel signs")
        add("--lossy", action="store_true",
            help="accept a tokenizer that loses more than 5 %% of the text")
        if kind in ("text", "hub"):
            add("--column", default="text", help="of files with rows")
            add("--separator", type=separator, default=text.SEPARATOR,
                help="lines that are this end a document (default: %(default)s)")
        if kind != "fineweb-edu":
            add("--val_fraction", type=fraction, default=0.02,
                help="share of the documents kept for validation")
        if kind in ("hub", "fineweb-edu"):
            add("--tokens", type=whole_number, default=None if kind == "hub" else 10_000_000,
                help="how many training tokens; the last document is whole (default: "
                     f"{'all there are' if kind == 'hub' else '10e6'})")
            add("--val_tokens", type=whole_number,
                help="how many validation tokens (default: 2 %% of --tokens)")
            add("--allow_short", action="store_true", help="accept a stream that ends earlier")
        if kind == "fineweb-edu":
            add("--mix", type=mixed, action="append", metavar="cosmopedia=SHARE",
                help="share of the tokens that come from HuggingFaceTB/cosmopedia, web_samples_v2")
    return parser.parse_args()


def check_place(args, inputs):
    """InputError if data/NAME cannot be made, or replaced without losing what is not ours."""
    reserved = args.name.endswith((".partial", ".replaced", ".lock"))
    if not re.fullmatch(r"""[^\s./\\:*?"'<>|][^\s/\\:*?"'<>|]*""", args.name) or reserved:
        raise InputError(f"--name='{args.name}' is not a plain folder name, "
                         "or one that prepare.py uses itself")
    final, partial = places(args.name)
    if final.exists() and not final.is_dir():
        raise InputError(f"{final} exists and is no folder")
    for path in inputs:
        if {final.resolve(), partial.resolve()} & {*path.resolve().parents}:
            raise InputError(f"{path} lies where the result goes; choose another --name")
    if final.exists() and not is_empty(final):
        if not is_ours(final):
            raise InputError(f"{final} exists and holds what prepare.py did not make; move it "
                             "away, or choose another --name")
        if not args.overwrite:
            raise InputError(f"{final} exists; --overwrite replaces it")


def main():
    args = parse()
    inputs = []
    if args.kind == "hub":
        args.name = args.name or args.repo.split("/")[-1]
        if args.val_tokens and not args.tokens:
            raise InputError("--val_tokens goes with --tokens; without it, --val_fraction does")
    if args.kind == "text":
        inputs = args.files = text.expand(args.files)
    if args.kind == "bins":
        inputs = [args.folder / "train.bin", args.folder / "val.bin"]
        for path in inputs:
            if not path.is_file():
                raise InputError(f"{path}: no such file")
    check_place(args, inputs)
    if args.kind == "bins":
        adopt(args)
    elif args.kind == "text":
        prepare(args, [text.files(args.files, args.column, args.separator)])
    elif args.kind == "docstrings":
        prepare(args, [text.docstrings()])
    elif args.kind == "hub":
        prepare(args, [text.stream(args.repo, args.repo, args.config, args.split, args.column,
                                   args.revision, separator=args.separator)])
    else:
        shares = dict(args.mix)
        if len(shares) < len(args.mix) or sum(shares.values()) >= 1:
            raise InputError("--mix: the shares are one for each source and leave something for "
                             "fineweb-edu")
        shares = {"fineweb-edu": 1 - sum(shares.values())} | shares
        prepare(args, [text.stream(name, *text.HUB[name], share=share)
                       for name, share in shares.items()])


if __name__ == "__main__":
    run(main)
