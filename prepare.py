"""Text -> tokens on disk, with the tokenizer that they need.

    python prepare.py docstrings                             # prose that every Python carries
    python prepare.py text FILE... --name=mine               # or folders, or "texts/*.jsonl.gz"
    python prepare.py hub roneneldan/TinyStories             # any text dataset of the Hub
    python prepare.py fineweb-edu --tokens=2.5e9 --mix=cosmopedia=0.2 --tokenizer=unicode
    python prepare.py bins ../nanoGPT/data/shakespeare_char --name=chars    # nanoGPT's own files

--tokenizer is gpt2; or bpe:N or unicode, trained on the text; or FILE.json or OWNER/NAME, a
tokenizer of Hugging Face. Files are .txt .md .jsonl .json .csv .tsv, each also .gz or .zst, and
.parquet. docstrings, text and bins are local; hub and fineweb-edu stream from the Hub (HF_ENDPOINT
names another), and gpt2 fetches GPT-2's vocabulary once.

Writes data/NAME/train.bin and val.bin (raw token ids, each document followed by <|endoftext|>) and
meta.json. A document goes to validation by its hash, so equal documents never stand on both sides.
Work happens in data/NAME.partial, which is renamed when all is done. Whatever ends it earlier - a
kill, the network, a full disk - the same command goes on where it was last saved, and the files are
byte for byte those of a run that nothing disturbed. Only bad input leaves nothing.
"""
import contextlib
import math
import os
import platform
import re
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from lib import bins, nanogpt, sources, tokenizer
from lib.errors import InputError, Parser, run, whole_number

SAMPLE = 256_000_000  # characters of training text that a tokenizer is trained on, at most


# ---- the tokenizer -----------------------------------------------------------------------------

def training_text(name, found, val_fraction, limit, sample):
    """The first training documents of the sources, `limit` characters, shared as the tokens are.
    `sample` counts them. InputError if there are none."""
    with tqdm(desc=f"training {name}", total=1.0, bar_format=bins.BAR) as bar:
        for source in found:
            wanted = sample["characters"] + limit * source.share
            for texts, share, _ in source.read(None):
                for text in bins.clean(texts):
                    is_val = bins.is_validation(text, val_fraction)
                    if not is_val and sample["characters"] < wanted:
                        yield text
                        sample["documents"] += 1
                        sample["characters"] += len(text)
                done = max(share * source.share, sample["characters"] / limit)
                bar.update(max(bar.n, min(1, done)) - bar.n)
                if sample["characters"] >= wanted:
                    break
    if not sample["characters"]:
        raise InputError("no text to train a tokenizer on: there are no documents for train")


def make_tokenizer(args, found, val_fraction, limit):
    """The tokenizer that --tokenizer says, trained on `limit` characters of the sources if need be.
    Returns it and the size of that sample, None for one that exists."""
    name, size = args.tokenizer, re.fullmatch(r"bpe:(\d+)", args.tokenizer)
    if args.pattern and not size:
        raise InputError(f"--pattern is for a trained bpe:N, not for --tokenizer={name}")
    if name == "gpt2":
        return tokenizer.gpt2(), None
    if "/" in name or name.lower().endswith(".json"):
        return tokenizer.hugging_face(name), None
    if not size and name != "unicode":
        raise InputError(f"unknown tokenizer '{name}' (gpt2, unicode, bpe:N as in bpe:4096, "
                         "FILE.json and OWNER/NAME are known)")
    sample = {"documents": 0, "characters": 0}
    texts = training_text(name, found, val_fraction, limit, sample)
    try:
        if size:
            tok = tokenizer.train_bpe(texts, int(size[1]), args.pattern or "gpt2")
        else:
            tok = tokenizer.train_unicode(texts)
    except ValueError as error:
        raise InputError(str(error)) from None
    print(f"{name}: trained on the first {sample['characters']:,} characters of training text, "
          f"{sample['documents']:,} documents")
    return tok, sample


def say_marks(tok, text):
    """One line if a tokenizer cuts the words of this text at vowel signs or accents."""
    share = tokenizer.share_of_marks(text)
    if getattr(tok, "pattern", "indic") != "indic" and share > 0.01:
        print(f"{tok.name}: {100 * share:.0f} % of the letters of this text are marks (vowel "
              f"signs, accents), at which the pattern '{tok.pattern}' cuts words; "
              "--tokenizer=bpe:N --pattern=indic keeps them whole")


# ---- the work ----------------------------------------------------------------------------------

def targets(args):
    """({split: how many tokens are wanted}, the share of the documents for validation)."""
    if not args.tokens:
        return {"train": math.inf, "val": math.inf}, args.val_fraction
    # the share that fills both splits at the same time; a full split drops the rest
    wanted = {"train": args.tokens, "val": args.val_tokens or max(1, args.tokens // 50)}
    return wanted, max(wanted["val"] / sum(wanted.values()), 0.001)


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


def begin(args, found, wanted, val_fraction):
    """The split, the tokenizer and the state of a preparation that begins: (state, tokenizer)."""
    size = None
    if not args.tokens:
        asked = val_fraction
        val_fraction, size = bins.settle_split(found, asked)
        if val_fraction != asked:
            how = f"cut into pieces of about {size:,} characters, " if size else ""
            print(f"few documents, all on one side at --val_fraction={asked:g}: {how}"
                  "those whose hashes are nearest to it go to the other")
        if size:
            found = [bins.recut(source, size) for source in found]
    limit = min(SAMPLE, 5 * sum(wanted.values()))
    tok, sample = make_tokenizer(args, found, val_fraction, limit)
    first = next((texts for texts, _, _ in found[0].read(None) if texts), [])
    say_marks(tok, "".join(bins.clean(first))[:1_000_000])
    split = {"fraction": val_fraction, "size": size}
    return bins.new_state(found) | {"split": split, "sample": sample, "tokenizer": tok.state}, tok


def refuse_empty_or_short(state, wanted, allow_short):
    """InputError if a split got no text, OSError if a stream ended before its tokens were there."""
    tokens = state["tokens"]
    for split in tokens:
        if not tokens[split]:
            raise InputError(f"no text for {split}: {sum(state['documents'].values())} documents, "
                             f"validation share {state['split']['fraction']:g}")
    short = any(tokens[split] < wanted[split] < math.inf for split in tokens)
    if short and not allow_short:
        had = " and ".join(f"{tokens[split]:,} of {wanted[split]:,} {split} tokens"
                           for split in tokens)
        raise OSError(f"the stream ended after {had}; with --allow_short these are kept")


def finish(args, folder, final, command, versions, tok, counts):
    """Write meta.json, put the folder in its place and say what a code needs to know of it."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    meta = {"name": args.name, "vocab_size": tok.vocab_size, "dtype": bins.id_type(tok).name}
    meta |= counts | {"command": command, "date": date, "versions": versions,
                      "tokenizer": tok.state}
    bins.finish(folder, final, meta, args.overwrite)
    tokens = counts["tokens"]
    size = sum(counts["text_bytes"].values()) / sum(tokens.values())
    print(f"{final}: {tokens['train']:,} training tokens, {tokens['val']:,} validation tokens, "
          f"{tok.vocab_size:,} ids, {size:.2f} bytes/token")
    skipped = sum(source["skipped"] for source in counts["sources"].values())
    if skipped:
        print(f"{skipped:,} rows without text were skipped")
    print("codes that read a token's first P bytes:")
    for line in tokenizer.code_lines(tok):
        print(f"  {line}")


def prepare(args, found):
    """Make the tokenizer, encode the sources that were found, check that there is something on both
    sides, and finish; or go on where an earlier call was ended."""
    final, folder = Path("data") / args.name, Path("data") / f"{args.name}.partial"
    wanted, val_fraction = targets(args)
    command, versions, arguments = describe(args)
    job = {"arguments": arguments, "versions": versions,
           "sources": [[source.name, source.share, source.identity] for source in found]}
    with bins.locked(folder):
        state, tok, hashes = bins.left_over(folder, job, args.overwrite)
        with bins.kept_or_cleared(folder):
            if state:
                print(f"going on with {folder} at {sum(state['tokens'].values()):,} tokens")
            else:
                state, tok = begin(args, found, wanted, val_fraction)
                state |= {"job": job, "command": command}
            val_fraction, size = state["split"]["fraction"], state["split"]["size"]
            if size:
                found = [bins.recut(source, size) for source in found]
            bins.encode(folder, found, tok, val_fraction, wanted, state, hashes)
            refuse_empty_or_short(state, wanted, args.allow_short)
            kept = "tokens", "documents", "text_bytes", "sha256", "sources", "sample"
            counts = {key: state[key] for key in kept}
            finish(args, folder, final, command, versions, tok, counts)


def prepare_bins(args):
    """Adopt a folder of nanoGPT's."""
    final, folder = Path("data") / args.name, Path("data") / f"{args.name}.partial"
    command, versions, _ = describe(args)
    with bins.locked(folder):
        if folder.exists() and not args.overwrite:
            raise InputError(f"{folder} is there from another preparation; "
                             "--overwrite starts over")
        bins.clear(folder)
        with bins.kept_or_cleared(folder):
            counts, tok = nanogpt.adopt(args.folder, folder)
            source = {"position": None, "used": 0, "skipped": 0,
                      "documents": sum(counts["documents"].values()),
                      "tokens": sum(counts["tokens"].values())}
            counts |= {"sources": {"bins": source}, "sample": None}
            finish(args, folder, final, command, versions, tok, counts)


# ---- the command -------------------------------------------------------------------------------

def fraction(text):
    """An argparse type: a share strictly between 0 and 1. Raises ValueError."""
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


def mixed(text):
    """An argparse type: NAME=SHARE -> (name, share). Raises ValueError."""
    name, _, share = text.partition("=")
    if name not in sources.HUB or name == "fineweb-edu":
        raise ValueError
    return name, fraction(share)


def separator(text):
    """An argparse type: a line that ends documents, not blank. Raises ValueError."""
    if not text.strip() or "\n" in text:
        raise ValueError
    return text.strip()


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
        if kind == "bins":
            add("folder", type=Path, help="of train.bin, val.bin and, for characters, meta.pkl")
        named = {"docstrings": "docstrings", "fineweb-edu": "fineweb-edu"}.get(kind)
        add("--name", default=named, required=kind in ("text", "bins"),
            help="the folder below data/")
        add("--overwrite", action="store_true",
            help="replace data/NAME once the new is complete; start over where another left "
                 "data/NAME.partial")
        if kind == "bins":
            continue
        add("--tokenizer", default="bpe:4096" if kind == "docstrings" else "gpt2",
            help="gpt2; bpe:N or unicode, trained on the first "
                 f"{SAMPLE:,} characters (at most) of training text; FILE.json or OWNER/NAME")
        add("--pattern", choices=tokenizer.PATTERNS,
            help="how bpe:N cuts text into words (default: gpt2); indic keeps vowel signs")
        if kind in ("text", "hub"):
            add("--column", default="text", help="of files with rows")
            add("--separator", type=separator, default=sources.SEPARATOR,
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
    final = Path("data") / args.name
    if final.exists() and not final.is_dir():
        raise InputError(f"{final} exists and is no folder")
    if final.exists() and not bins.is_ours(final):
        raise InputError(f"{final} exists and holds what prepare.py did not make; move it away, "
                         "or choose another --name")
    if final.exists() and not args.overwrite:
        raise InputError(f"{final} exists; --overwrite replaces it")
    for path in inputs:
        if {final.resolve(), Path(f"{final}.partial").resolve()} & {*path.resolve().parents}:
            raise InputError(f"{path} lies where the result goes; choose another --name")


def main():
    args = parse()
    if args.kind == "hub":
        args.name = args.name or args.repo.split("/")[-1]
        if args.val_tokens and not args.tokens:
            raise InputError("--val_tokens goes with --tokens; without it, --val_fraction does")
    if args.kind == "text":
        args.files = sources.expand(args.files)
        check_place(args, args.files)
        prepare(args, [sources.files(args.files, args.column, args.separator)])
    elif args.kind == "bins":
        needed = [args.folder / "train.bin", args.folder / "val.bin"]
        for path in needed:
            if not path.is_file():
                raise InputError(f"{path}: no such file")
        check_place(args, needed)
        prepare_bins(args)
    elif args.kind == "docstrings":
        check_place(args, [])
        prepare(args, [sources.docstrings()])
    elif args.kind == "hub":
        check_place(args, [])
        prepare(args, [sources.stream(args.repo, args.repo, args.config, args.split, args.column,
                                      args.revision, separator=args.separator)])
    else:
        check_place(args, [])
        shares = dict(args.mix)
        if len(shares) < len(args.mix) or sum(shares.values()) >= 1:
            raise InputError("--mix: the shares are one for each source and leave something for "
                             "fineweb-edu")
        shares = {"fineweb-edu": 1 - sum(shares.values())} | shares
        prepare(args, [sources.stream(name, *sources.HUB[name], share=share)
                       for name, share in shares.items()])


if __name__ == "__main__":
    run(main)
