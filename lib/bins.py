"""Documents -> token ids on disk: train.bin and val.bin, saved on the way so that whatever ends the
work, the same command goes on where it was."""
import array
import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import tokenizer
from lib.errors import InputError, write_atomic
from lib.formats import cut
from lib.run_folder import hold_lock
from lib.sources import CPUS

SAVE_EVERY = 5  # seconds between saved states, at most; what a kill costs
SMALLEST_SHARE = 0.02  # of a small corpus, for the side that would be empty
# what can be in data/NAME; the last two are lib/data.py's
OURS = {"meta.json", "train.bin", "val.bin", "state.json", "verified.json", "lock"}
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def hash_number(text):
    """A document's place between 0 and 2^64, by its hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def is_validation(text, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    return hash_number(text) < fraction * 2**64


def clean(texts):
    """Drop rows without text and empty documents; a lone surrogate, which no encoding of Unicode
    has, becomes '?'."""
    texts = [text.encode(errors="replace").decode() for text in texts if text is not None]
    return [text for text in texts if text.strip()]


def recut(source, size):
    """A source whose documents are cut into pieces of about `size` characters."""
    def read(position):
        for texts, share, position in source.read(position):
            pieces = [[None] if text is None else cut(text, size) for text in texts]
            yield list(itertools.chain.from_iterable(pieces)), share, position
    return source._replace(read=read)


def settle_split(sources, fraction):
    """Which documents go to validation: (fraction for `is_validation`, size for `recut` or None).

    In a corpus so small that none does, or all do, those of the smallest hashes (the largest)
    change sides until they are its share of the text; where they would be far more, all documents
    are cut first. Reading ends as soon as both sides have a document. InputError if there is too
    little text for two sides.
    """
    size, as_read = None, sources
    share = max(SMALLEST_SHARE, min(fraction, 1 - fraction))
    while True:
        characters, lowest, highest = Counter(), 2**64, -1  # characters of each hash
        for source in as_read:
            for texts, _, _ in source.read(None):
                for text in clean(texts):
                    number = hash_number(text)
                    characters[number] += len(text)
                    lowest, highest = min(lowest, number), max(highest, number)
                if lowest < fraction * 2**64 <= highest:
                    return fraction, size
        total, taken, all_in_val = characters.total(), 0, highest < fraction * 2**64
        for number in sorted(characters, reverse=all_in_val):
            taken += characters[number]
            if taken >= share * total:
                break
        if size or (len(characters) > 1 and taken <= 4 * share * total):
            break
        size = max(1, int(total * share))
        as_read = [recut(source, size) for source in sources]
    if len(characters) < 2:
        raise InputError(f"too little text for training and validation: {total:,} characters")
    return math.nextafter(number / 2**64, 0 if all_in_val else 1), size


def documents(source, tok, at):
    """(document, ids, share read) of a source from `at` on, which is kept up to date: `used` of the
    batch after `position` are done, `skipped` rows before it had no text."""
    for texts, share, position in source.read(at["position"]):
        skipped = texts.count(None)
        texts = clean(texts)
        fresh = texts[at["used"]:]
        for text, ids in zip(fresh, tok.encode_batch(fresh, CPUS)):
            at["used"] += 1
            yield text, ids, share
        at.update(position=position, used=at["used"] - len(texts),
                  skipped=at["skipped"] + skipped)


def new_state(sources):
    """Where a preparation stands that has not begun."""
    begun = {source.name: {"position": None, "used": 0, "skipped": 0, "documents": 0, "tokens": 0}
             for source in sources}
    counts = {key: {"train": 0, "val": 0} for key in ("tokens", "documents", "text_bytes")}
    return {"sources": begun, "sha256": {}} | counts


def checksum(state):
    """The hash that goes into state.json and meta.json."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def hash_of_first(path, size):
    """A running SHA-256 of the first `size` bytes of a file, or of what there is."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size and (chunk := file.read(min(size, 2**20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest


def resume(folder):
    """What encode() saved in a folder -> (state, tokenizer, running hashes of the bins).
    InputError if any of it was changed since."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state.pop("checksum") != checksum(state):
            raise ValueError
        tok, hashes = tokenizer.from_state(state["tokenizer"]), {}
        for split, tokens in state["tokens"].items():
            size = tokens * id_type(tok).itemsize
            hashes[split] = hash_of_first(folder / f"{split}.bin", size)
            if hashes[split].hexdigest() != state["sha256"][split]:
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"what an earlier call left in {folder} is damaged; "
                         "--overwrite starts over") from None
    return state, tok, hashes


def id_type(tok):
    """The numpy type of token ids on disk."""
    return np.dtype(np.uint16 if tok.vocab_size <= 2**16 else np.uint32)


def encode(folder, sources, tok, val_fraction, wanted, state, hashes=None):
    """Encode documents of the sources into folder/{train,val}.bin, from `state` on, until each
    split has its `wanted` tokens.

    The next document is always from the source that is furthest behind its share. `state` is kept
    up to date; every SAVE_EVERY seconds it is written to folder/state.json, after the tokens that
    it counts. `hashes`: from `resume`, where it went on from there.
    """
    dtype, tokens, done = id_type(tok), state["tokens"], state["sources"]
    hashes = hashes or {split: hashlib.sha256() for split in wanted}
    pending = {split: array.array("I") for split in wanted}
    found = {source.name: documents(source, tok, done[source.name]) for source in sources}
    share_of = {source.name: source.share for source in sources}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.bin", "ab"))
                 for split in wanted}
        for split, file in files.items():
            file.truncate(tokens[split] * dtype.itemsize)  # what came after the state was saved

        def save():
            for split, file in files.items():
                raw = np.frombuffer(pending[split], np.uint32).astype(dtype).tobytes()
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
                hashes[split].update(raw)
                state["sha256"][split] = hashes[split].hexdigest()
                pending[split] = array.array("I")
            whole = json.dumps(state | {"checksum": checksum(state)}).encode()
            write_atomic(folder / "state.json", lambda file: file.write(whole))

        first, begun = sum(tokens.values()), time.monotonic()
        bar = tqdm(desc="encoding", total=1.0, initial=min(1, tokens["train"] / wanted["train"]),
                   bar_format=BAR)
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
                rate = (total - first) / (now - begun)
                bar.set_postfix_str(f"{total:,} tokens, {rate:,.0f} tokens/s", False)
                bar.update(max(bar.n, share, min(1, tokens["train"] / wanted["train"])) - bar.n)
                shown = now
            if now - saved >= SAVE_EVERY or len(pending[split]) >= 2**22:
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


def clear(folder):
    """Delete the files of ours that a folder has, and the folder if it is empty then."""
    for name in sorted(OURS, key=lambda name: name == "meta.json"):  # by which it is known as ours
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def locked(folder):
    """Hold data/NAME.partial.lock. Afterwards it is gone, and data/ too if that is empty."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = Path(f"{folder}.lock")
    lock = hold_lock(path, folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows lets no open file be deleted
            path.unlink()
        lock.close()
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
    """What an earlier call left in a folder, as `resume` gives it, or three times None.
    InputError if it is another's or damaged; with `overwrite` it is deleted then."""
    if not (folder / "state.json").exists():
        return None, None, None
    try:
        state, tok, hashes = resume(folder)
        if state["job"] != json.loads(json.dumps(job)):
            raise InputError(f"{folder} was begun by '{state['command']}', with other options, "
                             "text or libraries; --overwrite starts over")
        return state, tok, hashes
    except InputError:
        if not overwrite:
            raise
        clear(folder)
        return None, None, None


def finish(folder, final, meta, overwrite):
    """Write meta.json and put the folder in its place; with `overwrite` the old data leaves only
    when the new is complete."""
    meta["checksum"] = checksum(meta)
    raw = json.dumps(meta, indent=1).encode() + b"\n"
    write_atomic(folder / "meta.json", lambda file: file.write(raw))
    replaced = Path(f"{final}.replaced")
    if is_ours(replaced):  # left there by a kill
        clear(replaced)
    if final.exists():
        if not overwrite:
            raise OSError(f"{final} was made by another process in the meantime")
        if not is_ours(final):
            raise OSError(f"{final} holds what prepare.py did not make; move it away")
        os.rename(final, replaced)
    os.rename(folder, final)
    (final / "state.json").unlink(missing_ok=True)
    if is_ours(replaced):
        clear(replaced)
