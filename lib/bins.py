"""Documents -> token ids on disk: train.bin and val.bin, saved on the way so that whatever ends the
work, the same command goes on where it was."""
import array
import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import tokenizer
from lib.common import InputError, write_atomic
from lib.sources import CPUS

SAVE_EVERY = 5  # seconds between saved states, at most; what a kill costs
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def is_validation(text, fraction):
    """Whether a document belongs to validation: decided by its own hash and by nothing else."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return number < fraction * 2**64


def clean(texts):
    """Drop empty documents; a lone surrogate, which no encoding of Unicode has, becomes '?'."""
    texts = [text.encode(errors="replace").decode() for text in texts]
    return [text for text in texts if text.strip()]


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
    begun = {source.name: {"position": None, "used": 0, "documents": 0, "tokens": 0}
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


def finish(folder, final, meta, overwrite):
    """Write meta.json and put the folder in its place; with --overwrite the old data leaves only
    when the new is complete."""
    meta["checksum"] = checksum(meta)
    raw = json.dumps(meta, indent=1).encode() + b"\n"
    write_atomic(folder / "meta.json", lambda file: file.write(raw))
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
